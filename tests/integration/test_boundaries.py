"""Events that lie exactly where something begins or ends: each is on one side of it, and counts once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from aggregator import fold, frontier, hourly, refresh, seal, verify
from aggregator.db import connect
from tests.harness import Database, Hooked, compare_days, some, waits
from tests.integration.sources import Background, await_true

MIDNIGHT = "2026-01-02 00:00:00+00"


def _beside(db: Database, statement: str, what: Callable[[], None], **changes: int) -> None:
    """Refresh, with something done right before a statement of it."""
    before = {statement: what}
    refresh.refresh(Hooked(db.own, before), db.settings.model_copy(update=changes))  # type: ignore[arg-type]
    assert not before, "the interleaving did not happen"


def test_a_change_at_the_old_frontier(db: Database) -> None:
    """An event at the rollups' frontier itself, written after the writers' had moved: read raw, and logged too."""
    db.insert("2026-01-01 10:00+00")
    db.refresh()
    at = str(db.scalar("select frontier::text from usage.state"))
    _beside(db, frontier.SQL["writers"], lambda: db.insert(at))
    db.compare()
    db.refresh()
    db.compare()


def test_a_day_of_one_event_at_midnight(db: Database) -> None:
    """A step ends at a midnight; the next one begins with the event there, which is all of its day."""
    for at in ("2026-01-01 10:00+00", "2026-01-01 11:00+00", MIDNIGHT, "2026-01-03 10:00+00", "2026-01-03 11:00+00"):
        db.insert(at)
    assert db.refresh(step_events=2).steps > 1
    db.compare()
    assert db.verify().differences == 0


def _sealed(db: Database, *late: str) -> None:
    """Fold two days, then insert late events, and seal at the midnight between the days."""
    for at in ("2026-01-01 10:00+00", MIDNIGHT, "2026-01-03 10:00+00"):
        db.insert(at, "ai", 0, '{"tokens_in": 2}')
    db.refresh()
    for at in late:
        db.insert(at, "ai", 0, '{"tokens_in": 3}')
    seal.seal(db.own, db.settings, "2026-01-02")


def test_a_delete_at_the_seal(db: Database) -> None:
    """The seal's own instant is not sealed: an event deleted there is gone, one moved away is where it is now."""
    _sealed(db, MIDNIGHT)
    table = "public.resource_usage_log"
    db.execute(f"delete from {table} where created_at = '{MIDNIGHT}' and detail ->> 'tokens_in' = '2'")
    db.compare()
    db.execute(f"update {table} set created_at = '2026-01-04 00:00+00' where created_at = '{MIDNIGHT}'")
    db.compare()
    db.refresh()
    db.compare()
    assert db.verify().differences == 0


def test_a_late_change_at_the_seal(db: Database) -> None:
    """Of the late changes that wait, a seal takes those below it, and leaves the one at its instant."""
    _sealed(db, MIDNIGHT, "2026-01-01 23:59:59.999999+00")
    assert db.execute("select created_at::text from usage.late_change") == [(MIDNIGHT,)]
    db.compare()
    db.refresh()
    db.compare()


def test_late_corrections_below_a_new_seal(db: Database) -> None:
    """A deletion and a correction that wait are in what is sealed, with their values."""
    for tokens in (2, 3, 5):
        db.insert("2026-01-01 10:00+00", "ai", 0, f'{{"tokens_in": {tokens}, "tokens_out": {tokens * 10}}}')
    db.insert(MIDNIGHT)
    db.refresh()
    table = "public.resource_usage_log"
    db.execute(f"delete from {table} where detail ->> 'tokens_in' = '3'")
    db.execute(f"""update {table} set detail = '{{"tokens_in": 7}}' where detail ->> 'tokens_in' = '5'""")
    db.compare()
    seal.seal(db.own, db.settings, "2026-01-02")
    assert db.execute("select count(*) from usage.late_change") == [(0,)]
    db.compare()
    assert db.execute("select event_count, total_value, secondary_value from usage.daily where day = '2026-01-01'") == [
        (2, 9, 20)
    ]


def test_verify_part_of_a_month(db: Database) -> None:
    """The month is the sum of its days, its first and last one among them, also where only days between are compared."""
    for day in ("02-28", "03-01", "03-05", "03-31", "04-01"):
        db.insert(f"2026-{day} 00:00+00", "ai", 0, '{"tokens_in": 2}')
    db.refresh()
    for since, until in (("2026-03-03", "2026-03-10"), ("2026-03-01", "2026-03-02"), ("2026-03-31", "2026-04-01")):
        found = db.verify(since=since, until=until)
        assert found.differences == 0, found.shown


def _writers_see(db: Database, frontier: str) -> None:
    """Move the frontier that writers see ahead, without the wait for it."""
    db.execute("select setval('usage.frontier_seq', (extract(epoch from %s::timestamptz) * 1e6)::bigint)", (frontier,))


def test_an_event_where_hours_begin(db: Database) -> None:
    """The instant from which on there are hours is in the first of them."""
    db.insert("2026-01-01 10:00+00")
    db.refresh()
    db.days_only()
    hourly.turn_on(db.own)
    since = str(db.scalar("select hourly_since::text from usage.state"))
    db.insert(since)
    _writers_see(db, str(db.scalar("select (%s::timestamptz + interval '3 hours')::text", (since,))))
    db.refresh()
    db.compare([(since, None, None), ("-infinity", since, None)])
    assert db.scalar("select count(*) from usage.hourly where hour = %s::timestamptz", (since,)) == 1
    assert db.verify().differences == 0


def _with_hours_up_to(db: Database, time: str, *others: str) -> str:
    """Fold with hours up to a time of the day after tomorrow, and return the day; then events at other times, before and after."""
    hourly.turn_on(db.own)
    day = str(db.scalar("select (current_date + 2)::text"))
    _writers_see(db, f"{day} {time}+00")
    for at in others:
        db.insert(f"{day} {at}+00")
    db.refresh()
    assert db.scalar("select frontier = %s::timestamptz from usage.state", (f"{day} {time}+00",))
    return day


def test_hours_up_to_a_frontier_that_cuts_one(db: Database) -> None:
    """The hour that holds it is taken as it is folded: the events above it are the tail's, and taken off nothing."""
    day = _with_hours_up_to(db, "10:20", "08:10", "09:55", "10:10", "10:40")
    db.compare(
        [
            (f"{day} {since}+00", until, None)
            for since in ("08:05", "09:50", "10:05")
            for until in (None, f"{day} 10:45+00")
        ]
    )


def test_a_midnight_and_a_frontier_cut_the_same_hour(db: Database) -> None:
    """Days of a zone whose midnight is at half past: that hour is read raw up to the frontier, and from there as the tail, once."""
    day = _with_hours_up_to(db, "18:40", "17:10", "18:10", "18:35", "18:50")
    compare_days(
        db.connection, "Asia/Kolkata", [(f"{day} 16:00+00", until, None) for until in (None, f"{day} 18:45+00")]
    )


def test_late_changes_between_the_two_frontiers(db: Database) -> None:
    """What is noted above the rollups' frontier, where writers see a later one, is read raw with the tail, in any zone."""
    day = _with_hours_up_to(db, "10:20", "09:10", "10:10")
    _writers_see(db, f"{day} 10:50+00")
    db.insert(f"{day} 10:40+00")
    assert db.scalar("select count(*) from usage.late_change") == 1
    windows = [(f"{day} {since}+00", None, None) for since in ("08:00", "09:30", "10:15")]
    db.compare(windows)
    compare_days(db.connection, "Asia/Tokyo", windows)
    compare_days(db.connection, "Asia/Kolkata", windows)


def test_a_clock_set_back_past_midnight(db: Database) -> None:
    """Newfoundland's was set back at 00:01: a minute of the next day lies an hour before it begins for good."""
    hourly.turn_on(db.own)
    for at in ("02:10", "02:30:30", "02:40", "03:10", "03:29:59", "03:30", "04:10"):
        db.insert(f"2010-11-07 {at}+00")
    db.refresh()
    assert db.scalar("select count(*) from usage.hourly") == 3
    windows = [
        (f"2010-11-0{since}+00", until, None)
        for since in ("6 10:00", "7 02:30", "7 02:45")
        for until in (None, "2010-11-07 04:00+00")
    ]
    compare_days(db.connection, "America/St_Johns", windows)


def test_hours_at_a_midnight_late_in_one(new_database: Any) -> None:
    """Where a day ends at 00:44:30, its last hour is not the whole one, though that end is nearer: the rest is the next day's."""
    db: Database = new_database(zone="Africa/Monrovia")
    db.attach(hourly=True)
    for at in ("01 21:00", "02 00:30", "02 00:50", "02 01:10", "03 00:40"):
        db.insert(f"1970-01-{at}+00")
    db.refresh()
    db.compare([("1970-01-01 20:00+00", until, None) for until in (None, "1970-01-03 00:42+00", "1970-01-03 00:20+00")])


ROLLUPS = {"daily_fact": "day", "daily_collection_fact": "day", "monthly_fact": "month", "monthly_collection_fact": "month",
           "quarterly_collection_fact": "quarter", "hourly_fact": "hour", "hourly_collection_fact": "hour"}  # fmt: skip


@pytest.mark.parametrize("column", ["event_count", "total_value", "secondary_value", "rejected_count"])
@pytest.mark.parametrize("rollup", some([*ROLLUPS, "daily_total"], 3))
def test_a_number_that_is_off(db: Database, rollup: str, column: str) -> None:
    """One number of one row of any rollup: verify finds it, and a repair puts it right."""
    hourly.turn_on(db.own)
    db.insert("2026-01-02 10:00+00", "ai", 0, '{"tokens_in": "no", "tokens_out": 2}')
    db.refresh()
    db.execute(f"update usage.{rollup} set {column} = {column} + 1")
    found = db.verify()
    assert found.differences == 1, found.shown
    assert db.verify(repair=True).trusted
    assert db.verify().differences == 0
    db.compare()


@pytest.mark.parametrize("rollup", [*ROLLUPS, "daily_total"])
def test_a_row_without_events(db: Database, rollup: str) -> None:
    """A row of a day that has no events, nor any other row: verify finds it, and a repair removes it."""
    hourly.turn_on(db.own)
    db.insert("2026-01-02 10:00+00")
    db.refresh()
    if rollup == "daily_total":
        db.execute(
            "insert into usage.daily_total select date '2026-04-01', resource_type, 1, 1, 1, 0 from usage.daily_total"
        )
    else:
        db.execute(
            f"insert into usage.{rollup} select date '2026-04-01', key_id, 1, 1, 1, 0 from usage.{rollup} limit 1"
        )
    found = db.verify()
    assert found.differences == 1, found.shown
    assert db.verify(repair=True).trusted
    assert db.scalar(f"select count(*) from usage.{rollup} where {ROLLUPS.get(rollup, 'day')} = '2026-04-01'") == 0
    db.compare()


def test_a_writer_to_a_partition(partitioned: Database) -> None:
    """Whoever writes to a partition by its name holds no lock on the source, and is waited for all the same."""
    writer = partitioned.connect(autocommit=False)
    writer.execute(b"insert into public.events_new (resource_type, created_at) values ('ai', clock_timestamp())")
    _beside(partitioned, frontier.SQL["still_open"], writer.commit, wait_timeout=20)
    writer.commit()
    partitioned.compare()


@pytest.mark.parametrize("second", ["refresh", "repair"])
def test_two_at_once_with_the_same_new_key(db: Database, second: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one waits for the first, and finds the key; it does not number it too."""
    db.insert("2026-01-01 10:00+00", "new")
    if second == "repair":  # of rows that are gone, with the key
        db.refresh()
        db.execute(
            "".join(
                f"delete from usage.{rollup};"
                for rollup in (*(f"{name}_fact" for name in fold.FACTS), "daily_total", "key")
            )
        )
        db.insert("2026-01-01 11:00+00", "new")
    other: list[Background] = []
    real = fold.number_new_keys

    def beside(connection: psycopg.Connection[Any], rollup: str) -> None:
        real(connection, rollup)
        if not other:

            def work() -> None:
                with connect(db.settings) as own:
                    if second == "refresh":
                        refresh.refresh(own, db.settings)
                    else:
                        verify.verify(own, db.settings, repair=True)

            other.append(Background(work))
            await_true(lambda: db.scalar(waits()) or not other[0].alive, "the second one reaches the lock")

    monkeypatch.setattr(fold, "number_new_keys", beside)
    db.refresh()
    other[0].join()
    assert db.execute("select status from usage.refresh_run") == [("done",), ("done",)]
    if second == "repair":
        db.verify(repair=True)  # what the first one found too little of
    db.compare()
    assert db.verify().differences == 0
