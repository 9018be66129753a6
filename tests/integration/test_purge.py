"""Purge and seal: raw events go, history stays, and what is not sealed equals the raw query."""

from __future__ import annotations

from typing import Any

import pytest

from aggregator import capture, purge, rebuild, seal
from aggregator.db import connect
from aggregator.errors import AggregatorError, Stopped, UsageError
from tests.harness import COLLECTIONS, LONG, Database, compare, snapshot, some

DAYS = (0, 1, 5, 29, 30, 31, 45, 60, 100, 200, 399)
KEEP = "30d"


def fill(db: Database) -> None:
    for n, days in enumerate(DAYS):
        for hour in (1, 13):
            db.execute(
                f"insert into {db.source} (collection_id, resource_type, detail, created_at) values"
                " (%s, 'ai', jsonb_build_object('tokens_in', %s, 'tokens_out', 0.5, 'job_type', 'a'),"
                " date_trunc('day', now(), %s) - make_interval(days => %s) + make_interval(hours => %s))",
                (None if n % 4 == 3 else COLLECTIONS[n % 3], n + 0.25, db.zone, days, hour),
            )


@pytest.fixture(params=some(["Europe/Oslo", "UTC"], 2))
def filled(new_database: Any, request: pytest.FixtureRequest) -> Database:
    db: Database = new_database(zone=request.param, lock_timeout=0.2, purge_batch=3)
    db.attach()
    fill(db)
    return db


@pytest.fixture
def partitioned(new_database: Any) -> Database:
    """By months, one of them with a default partition's events."""
    db: Database = new_database(source_table="public.events", lock_timeout=0.2, lock_retries=3, purge_batch=3)
    db.execute(
        "create table public.events (collection_id uuid, resource_type text, detail jsonb, created_at timestamptz, note text)"
        " partition by range (created_at);"
        "create index on public.events (created_at);"
        "do $$ begin for n in 0..4 loop execute format('create table public.events_%s partition of public.events for values from (%L) to (%L)', n,"
        " date_trunc('month', now()) - make_interval(months => n), date_trunc('month', now()) - make_interval(months => n - 1)); end loop; end $$;"
        "create table public.events_rest partition of public.events default"
    )
    db.attach()
    fill(db)
    return db


def raw(db: Database) -> int:
    return int(db.scalar(f"select count(*) from {db.source}"))


def history(db: Database) -> list[Any]:
    """All that there is, by month and key."""
    return db.execute(
        "select month::text, collection_id::text, resource_type, job_type, event_count, total_value::text from usage.monthly_live order by 1, 2, 3, 4"
    )


def answer(db: Database) -> list[Any]:
    return db.execute("select * from usage.by_collection('-infinity')")


def compare_unsealed(db: Database) -> None:
    """Windows that begin at the seal or above equal the raw query."""
    sealed = db.scalar("select sealed_until::text from usage.state")
    windows = [(sealed, None, None), (sealed, None, COLLECTIONS[0]), ("now-1", None, None), ("now-7", "now-2", None)]
    with snapshot(db.connection):
        compare(db.connection, db.zone, windows, source=db.source, titles=db.titles, live=False)


def run(db: Database, keep: str = KEEP, **options: Any) -> purge.Purged:
    return purge.purge(db.own, db.settings, keep, **options)


def test_history_stays_when_raw_events_go(filled: Database) -> None:
    """Every sum is what it was before, to the last digit; a second purge finds nothing to do."""
    before, total = history(filled), answer(filled)
    dry = run(filled, dry_run=True)
    assert (dry.events, raw(filled)) == (12, 22)
    assert filled.scalar("select sealed_until = '-infinity' from usage.state")
    done = run(filled)
    assert (done.events, raw(filled)) == (12, 10)
    assert history(filled) == before
    assert answer(filled) == total
    assert filled.scalar("select count(*) from usage.late_change") == 0, "a purge logs nothing"
    compare_unsealed(filled)
    assert filled.verify().differences == 0
    again = run(filled)
    assert (again.events, again.notes) == (0, ("nothing to purge: no event is that old",))
    filled.refresh()
    assert history(filled) == before


def test_windows_into_sealed_history_say_what_they_cannot_cut(filled: Database) -> None:
    """A window that begins inside a sealed day counts it whole, and says so."""
    run(filled)
    exact, reasons = filled.execute("select exact, reasons from usage.receipt(now() - interval '45 days 3 hours')")[0]
    if filled.scalar(
        "select now() - interval '45 days 3 hours' <> date_trunc('day', now() - interval '45 days 3 hours', %s)",
        (filled.zone,),
    ):
        assert not exact
        assert any("sealed" in reason for reason in reasons)
    assert filled.scalar("select exact from usage.receipt('-infinity')")


def test_late_events_of_sealed_days_still_add(filled: Database) -> None:
    """Before the next refresh, after it, and after their raw rows were purged too; deletes below the seal do not count."""
    run(filled)
    total = filled.scalar("select sum(event_count) from usage.by_collection('-infinity')")
    filled.insert("now", "ai", 0, '{"tokens_in": 1}')
    filled.execute(
        f"update {filled.source} set created_at = now() - interval '99 days' where detail->>'tokens_in' = '1'"
    )
    filled.execute(
        f"insert into {filled.source} (resource_type, created_at) values ('ai', now() - interval '300 days')"
    )
    assert filled.scalar("select sum(event_count) from usage.by_collection('-infinity')") == total + 2
    filled.refresh()
    filled.execute(f"delete from {filled.source} where created_at < now() - interval '250 days'")
    assert filled.scalar("select sum(event_count) from usage.by_collection('-infinity')") == total + 2
    run(filled)
    filled.refresh()
    assert filled.scalar("select sum(event_count) from usage.by_collection('-infinity')") == total + 2
    compare_unsealed(filled)


@pytest.mark.parametrize("how", ["truncate table {}", "delete from {}"])
def test_nobody_empties_sealed_history(filled: Database, how: str) -> None:
    """A TRUNCATE or DELETE of all raw events leaves what is sealed, and takes the rest."""
    run(filled)
    sealed = filled.execute(
        "select sum(event_count), sum(total_value) from usage.daily, usage.state where day < usage.local_day(sealed_until, time_zone)"
    )
    filled.execute(how.format(filled.source))
    for _ in range(2):
        assert (
            filled.execute("select sum(event_count)::numeric from usage.by_collection('-infinity')")[0][0]
            == sealed[0][0]
        )
        assert filled.execute("select sum(event_count), sum(total_value) from usage.monthly_live") == sealed
        filled.refresh()
        compare_unsealed(filled)
    assert filled.scalar("select usage.doubt() is null")
    with pytest.raises(capture.SealedHistoryError):
        capture.detach(filled.own, filled.settings)
    with pytest.raises(UsageError, match="sealed"):
        filled.verify(since="2025-01-01", until="2025-02-01")
    with pytest.raises(UsageError, match="--until: days before .* are sealed"):
        filled.verify(until=day(filled, 31))


def test_nothing_unverified_is_deleted(filled: Database) -> None:
    """Rollups that differ from the raw events: none is deleted, reads are right at once, and after a repair it goes on."""
    filled.refresh()
    filled.execute(
        "update usage.daily_fact set total_value = total_value + 1 where day = (select min(day) from usage.daily)"
    )
    with pytest.raises(AggregatorError, match="verify --repair"):
        run(filled)
    assert raw(filled) == 22
    assert filled.scalar("select sealed_until = '-infinity' from usage.state")
    filled.compare()
    with pytest.raises(AggregatorError, match="may not be believed"):
        run(filled)
    assert filled.verify(repair=True).trusted
    assert run(filled).events == 12
    compare_unsealed(filled)


def test_dry_run_says_that_a_purge_would_be_refused(filled: Database) -> None:
    """And why, as the purge does; what the purge's own refresh mends is no reason, unless it goes on below the seal."""
    run(filled, "100d")
    assert run(filled, dry_run=True).notes == ()
    filled.execute("select setval('usage.frontier_seq', 1)")
    assert run(filled, dry_run=True).notes == ()
    with pytest.raises(AggregatorError, match="frontier sequence is behind"):
        purge._delete_batch(filled.own, filled.settings, "infinity")
    filled.insert("2026-01-01 00:00+00")
    filled.execute(
        "update usage.state set sealed_until = usage.day_start(usage.local_day(now(), time_zone) - 30, time_zone)"
    )
    assert "frontier sequence is behind" in str(run(filled, dry_run=True).notes)
    filled.refresh()
    filled.execute("update usage.state set trusted = false, distrust_reason = 'a test says so: run aggregator rebuild'")
    assert "would be refused" in str(run(filled, dry_run=True).notes)
    with pytest.raises(AggregatorError, match="a test says so"):
        run(filled)


def test_capture_that_breaks_stops_a_purge(filled: Database) -> None:
    """Triggers disabled between sealing and deleting: the rest stays until that is put right."""
    steps = 0

    def disable(_: purge.PurgeProgress) -> None:
        nonlocal steps
        steps += 1
        if steps == 2:
            filled.execute(f"alter table {filled.source} disable trigger usage_insert")

    with pytest.raises(AggregatorError, match="stopped deleting"):
        run(filled, progress=disable)
    assert 10 < raw(filled) < 22
    filled.attach()
    assert filled.verify(repair=True).trusted
    run(filled)
    assert raw(filled) == 10
    compare_unsealed(filled)


def test_killed_at_any_statement(new_database: Any) -> None:
    """Whatever statement is the last, answers stay, and the next purge ends the work."""
    statement = 0
    while True:
        db = new_database(purge_batch=5)
        db.attach()
        fill(db)
        db.refresh()
        before = history(db)
        with capture_connection(db) as connection:
            seen = 0

            def die(query: str, seen_before: int = statement) -> None:
                nonlocal seen
                if any(word in query.lower() for word in ("update ", "delete ", "insert ", "setval", "drop ")):
                    seen += 1
                    if seen > seen_before:
                        raise KeyboardInterrupt

            connection.before = die
            try:
                purge.purge(connection, db.settings, KEEP)
                finished = True
            except KeyboardInterrupt:
                finished = False
        assert history(db) == before, statement
        compare_unsealed(db)
        db.refresh()
        run(db)
        assert history(db) == before, statement
        assert raw(db) == 10
        compare_unsealed(db)
        db.close()
        if finished:
            break
        statement += 2 if LONG else 7


class capture_connection:  # noqa: N801
    """A connection whose statements are announced to ``before``; closed at the end, as a kill would."""

    def __init__(self, db: Database) -> None:
        self.db = db

    def __enter__(self) -> Any:
        self.connection = connect(self.db.settings)
        self.hooked = _Announced(self.connection)
        return self.hooked

    def __exit__(self, *_: object) -> None:
        self.connection.close()


class _Announced:
    before: Any = None

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
        text = query.as_string(self._connection) if hasattr(query, "as_string") else query
        text = text.decode() if isinstance(text, bytes) else text
        if self.before is not None:
            self.before(text)
        return self._connection.execute(query, *arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def test_stopped_between_batches(filled: Database) -> None:
    """SIGTERM: ends between transactions; the next purge goes on."""
    before = history(filled)
    left = 8

    def check() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Stopped

    with pytest.raises(Stopped):
        run(filled, check=check)
    assert history(filled) == before
    run(filled)
    assert raw(filled) == 10
    assert history(filled) == before


def test_whole_partitions_are_dropped(partitioned: Database) -> None:
    """Those below the cut go whole, the one that the cut goes through by rows; never the default partition; no doubt."""
    before, total = history(partitioned), answer(partitioned)
    dry = run(partitioned, "40d", dry_run=True)
    assert dry.partitions
    assert dry.size > 0
    done = run(partitioned, "40d")
    assert done.partitions == dry.partitions
    assert done.events == dry.events
    assert partitioned.scalar("select to_regclass('public.events_rest') is not null")
    for name in done.partitions:
        assert partitioned.scalar("select to_regclass(%s) is null", (name,))
    assert history(partitioned) == before
    assert answer(partitioned) == total
    assert partitioned.scalar("select usage.doubt() is null")
    compare_unsealed(partitioned)
    partitioned.refresh()
    assert partitioned.scalar("select usage.doubt() is null")
    assert partitioned.verify().differences == 0
    assert history(partitioned) == before


def test_late_events_of_a_dropped_partition_still_add(partitioned: Database) -> None:
    """The default partition takes them: they count before a refresh and after it, and when they are purged too."""
    partitioned.refresh()
    dropped = run(partitioned, "40d").partitions[-1]
    total = partitioned.scalar("select sum(total_value) from usage.by_collection('-infinity')")
    sealed = partitioned.scalar("select sealed_until from usage.state")
    partitioned.execute(
        "insert into public.events (collection_id, resource_type, detail, created_at)"
        " select null, 'tts', jsonb_build_object('characters', 0.25), date_trunc('month', %s::timestamptz) - interval '20 days' from generate_series(1, 4)",
        (sealed,),
    )
    assert partitioned.scalar("select to_regclass(%s) is null", (dropped,))
    for _ in range(2):
        assert partitioned.scalar("select sum(total_value) from usage.by_collection('-infinity')") == total + 1
        assert partitioned.scalar("select sum(total_value) from usage.monthly_live where resource_type = 'tts'") == 1
        compare_unsealed(partitioned)
        partitioned.refresh()
    assert run(partitioned, "40d").events == 4
    assert partitioned.scalar("select sum(total_value) from usage.by_collection('-infinity')") == total + 1
    assert partitioned.scalar("select usage.doubt()") is None
    assert partitioned.verify().differences == 0


def test_a_partition_that_is_in_use_is_not_waited_for(partitioned: Database) -> None:
    """A writer holds the parent: purge gives up its lock in time, says so, and nothing is lost; later it goes on."""
    writer = partitioned.connect(autocommit=False)
    partitioned.refresh()
    before = history(partitioned)
    run_settings = partitioned.settings
    purge._seal(partitioned.own, run_settings, 40, lambda: None)
    writer.execute(b"insert into public.events (resource_type, created_at) values ('ai', now())")
    with pytest.raises(AggregatorError, match="no lock on"):
        run(partitioned, "40d")
    other = partitioned.connect()
    other.execute(b"set lock_timeout = '2s'")
    other.execute(b"insert into public.events (resource_type, created_at) values ('ai', now())")
    writer.rollback()
    run(partitioned, "40d")
    assert [row for row in history(partitioned) if row[3]] == [row for row in before if row[3]]
    compare_unsealed(partitioned)


@pytest.mark.parametrize("keep", ["0d", "12h", "-3d", "x", "", "999999w", "365001d", "٣d"])
def test_bad_keep(filled: Database, keep: str) -> None:
    """Shorter than a day, longer than dates go back, or no time at all: refused, nothing changed."""
    with pytest.raises(UsageError, match="at least 1d and at most 365000d"):
        run(filled, keep)
    assert raw(filled) == 22


def test_keep_longer_than_history(filled: Database) -> None:
    """Nothing to do, and said with the oldest event; nothing is sealed."""
    assert run(filled, "365000d").oldest
    found = run(filled, "500d")
    assert found.notes == ("nothing to purge: no event is that old",)
    assert found.oldest
    assert filled.scalar("select sealed_until = '-infinity' from usage.state")


# Seal ----------------------------------------------------------------------------------------------------------------


def day(db: Database, ago: int) -> str:
    return str(db.scalar("select (usage.local_day(now(), time_zone) - %s)::text from usage.state", (ago,)))


def test_seal_keeps_a_dropped_partition(partitioned: Database) -> None:
    """Somebody drops an old partition: trust is off; seal keeps its history, the rest follows the raw events."""
    partitioned.refresh()
    before = history(partitioned)
    first = partitioned.scalar("select (date_trunc('month', now()) - interval '1 month')::date::text")
    partitioned.insert("2026-01-01 00:00+00", "tts", 0, '{"characters": 3}')  # pending while it happens
    partitioned.execute("drop table public.events_2")
    assert "seal" in partitioned.scalar("select usage.doubt()")
    partitioned.compare()
    with pytest.raises(UsageError, match="not over"):
        seal.seal(partitioned.own, partitioned.settings, day(partitioned, -1))
    dry = seal.seal(partitioned.own, partitioned.settings, first, dry_run=True)
    assert dry.events
    assert partitioned.scalar("select sealed_until = '-infinity' from usage.state")
    done = seal.seal(partitioned.own, partitioned.settings, first)
    assert done.events == dry.events
    assert partitioned.scalar("select usage.doubt()") is None
    assert [row for row in history(partitioned) if row[2] == "ai"] == before
    compare_unsealed(partitioned)
    with pytest.raises(UsageError, match="sealed already"):
        seal.seal(partitioned.own, partitioned.settings, first)


def test_seal_keeps_what_was_truncated(filled: Database) -> None:
    """Somebody truncates the source: before the next refresh, seal keeps the history up to a day."""
    filled.refresh()
    cut = day(filled, 30)
    kept = filled.execute("select sum(event_count), sum(total_value) from usage.daily where day < %s", (cut,))
    filled.execute(f"truncate table {filled.source}")
    filled.insert("now", "ai", 0, '{"tokens_in": 1}')
    seal.seal(filled.own, filled.settings, cut)
    assert filled.execute("select sum(event_count), sum(total_value) from usage.daily where day < %s", (cut,)) == kept
    assert filled.scalar("select usage.doubt()") is None
    compare_unsealed(filled)
    assert filled.scalar("select count(*) from usage.daily where day >= %s", (cut,)) == 1


def test_seal_refuses_what_is_not_to_be_believed(filled: Database) -> None:
    """Rollups under another doubt cannot be the record; nor can days that are not folded."""
    with pytest.raises(UsageError, match="not folded"):
        seal.seal(filled.own, filled.settings, day(filled, 30))
    filled.refresh()
    filled.execute("update usage.state set trusted = false, distrust_reason = 'a test says so'")
    with pytest.raises(UsageError, match="a test says so"):
        seal.seal(filled.own, filled.settings, day(filled, 30))
    assert filled.scalar("select sealed_until = '-infinity' from usage.state")


def test_seal_refuses_another_doubt_behind_a_dropped_partition(partitioned: Database) -> None:
    """A partition that is gone does not hide that the rollups were in doubt before."""
    partitioned.refresh()
    partitioned.execute("update usage.state set trusted = false, distrust_reason = 'a test says so'")
    partitioned.execute("drop table public.events_2")
    with pytest.raises(UsageError, match="a test says so"):
        seal.seal(partitioned.own, partitioned.settings, day(partitioned, 30))
    assert partitioned.scalar("select sealed_until = '-infinity' from usage.state")


def test_a_seal_in_the_middle_of_a_month(filled: Database) -> None:
    """Months that the seal cuts: verify, rebuild, attach and refresh leave their sealed days alone."""
    filled.refresh()
    before = history(filled)
    run(filled, f"{filled.scalar('select 28 + extract(day from now())::int')}d")
    rebuild.rebuild(filled.own, filled.settings)
    filled.execute("update usage.state set trusted = false, distrust_reason = 'a test says so'")
    assert rebuild.rebuild(filled.own, filled.settings).differences == 0
    filled.attach()
    filled.refresh()
    assert history(filled) == before
    compare_unsealed(filled)
