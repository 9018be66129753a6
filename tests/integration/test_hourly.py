"""The hourly rollup: on, off and half filled, every answer equals the raw query; days of other time zones do too."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import psycopg
import pytest

from aggregator import UsageError, capture, fold, hourly, purge, rebuild, refresh, seal, usage_daily
from aggregator.errors import Stopped
from aggregator.status import read_status
from tests.harness import COLLECTIONS, ORACLE, Database, Mismatch, compare_days, snapshot, some
from tests.integration.sources import PARTITIONED, PARTITIONED_DDL

ZONES = [
    "UTC",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "America/St_Johns",
    "America/Havana",
    "Atlantic/Azores",
]

Windows = list[tuple[str, str | None, str | None]]


def fill(db: Database, events: int = 900, minutes: int = 37) -> None:
    """Insert events of the last weeks, one every some minutes."""
    db.execute(
        f"insert into {db.source} (collection_id, resource_type, detail, created_at)"
        " select case when n %% 4 > 0 then ('00000000-0000-0000-0000-00000000000' || n %% 3 + 1)::uuid end,"
        "        (array['ai', 'tts', 'cas', null, 'ai'])[n %% 5 + 1],"
        "        jsonb_build_object('tokens_in', n * 0.25, 'tokens_out', n, 'characters', n, 'size_bytes', 'x',"
        "                           'job_type', n %% 3), now() - n * make_interval(mins => %s)"
        "   from generate_series(1, %s) n",
        (minutes, events),
    )


def change(db: Database) -> None:
    """Late inserts, updates and deletes, all over."""
    fill(db, 100, 311)
    db.execute(f"delete from {db.source} where hashint8(id) % 7 = 0")
    db.execute(f"update {db.source} set created_at = created_at - interval '50 minutes' where hashint8(id) % 11 = 0")


def windows(db: Database) -> Windows:
    """Return windows cut anywhere: at, beside and between hours and midnights."""
    found: Windows = [("-infinity", None, None), ("now-3", None, None)]
    cut = "date_trunc('hour', now(), 'UTC') - {} * interval '1 minute' - interval '{} days'"
    for first, last in ((20, 40), (0, 30), (400, 29), (719, 721), (1000, 3), (61, 1401), (545, 555), (1439, 0)):
        since, until, near = db.execute(
            f"select ({cut.format(first, 9)})::text, ({cut.format(last, 2)})::text, ({cut.format(last, 9)} + interval '9 hours')::text"
        )[0]
        found += [(since, None, None), (since, until, None), (since, until, COLLECTIONS[1])]
        if first > last - 540:
            found.append((since, near, None))
    start = db.execute(
        "select usage.day_start(d, s.time_zone)::text, (usage.day_start(d, s.time_zone) + interval '25 minutes')::text,"
        "       (usage.day_start(d, s.time_zone) - interval '12 minutes')::text, s.frontier::text"
        "  from usage.state s, lateral (select usage.local_day(now(), s.time_zone) - 5 as d) d"
    )[0]
    found += [
        (start[2], start[1], None),
        (start[1], start[3], None),
        (start[0], None, None),
        ("-infinity", start[2], None),
    ]
    return [window for window in found if window[1] is None or window[0] != window[1]]


def compare(db: Database, *, zones: bool = False) -> None:
    """Compare the overview's sections, the general sums, and with ``zones`` days of other zones, in one snapshot."""
    cuts = windows(db)
    with snapshot(db.connection):
        for since, until, collection in cuts:
            parameters = {"since": since, "until": until, "collection": collection, "by": ["collection", "resource_type", "job_type"]}  # fmt: skip
            if since.startswith("now"):
                continue
            for grain in ("none", "day", "month"):
                query = ORACLE["totals"].replace("{source}", db.source)
                expected = db.connection.execute(
                    query.encode(), {**parameters, "grain": grain, "zone": db.zone}
                ).fetchall()
                found = db.connection.execute(
                    b"select bucket::text, collection_id, resource_type, job_type, model_level, event_count, total_value, secondary_value"
                    b" from usage.totals(%(since)s::timestamptz, %(until)s::timestamptz, %(by)s, %(grain)s, false, %(collection)s::uuid)",
                    {**parameters, "grain": grain},
                ).fetchall()
                if sorted(map(repr, expected)) != sorted(map(repr, found)):
                    raise Mismatch(f"totals by {grain} of {parameters}")
        if zones:
            for zone in ZONES:
                compare_days(db.connection, zone, cuts[1:9], source=db.source)
    db.compare(cuts)


def since(db: Database) -> str | None:
    found = db.scalar("select hourly_since::text from usage.state")
    return None if found is None else str(found)


def hours(db: Database) -> int:
    """Return how many events the hourly rollup has; both tables agree."""
    by_key, by_collection = db.execute(
        "select coalesce((select sum(event_count) from usage.hourly), 0)::int,"
        " coalesce((select sum(event_count) from usage.hourly_collection), 0)::int"
    )[0]
    assert by_key == by_collection
    return int(by_key)


@pytest.fixture(params=some(["partitioned", "plain"], 2))
def dense(request: pytest.FixtureRequest, new_database: Any) -> Database:
    """A plain, and a partitioned, source with events of some weeks: attached, not refreshed."""
    db: Database = new_database(**({} if request.param == "plain" else {"source_table": PARTITIONED}))
    if request.param == "partitioned":
        db.execute(PARTITIONED_DDL)
    db.attach(hourly=False)
    fill(db)
    return db


@pytest.mark.parametrize("zone", some(ZONES, 5))
def test_on_from_the_start(new_database: Any, zone: str) -> None:
    """With hours, windows are exact to the microsecond: refreshed, half refreshed, with late changes."""
    db: Database = new_database(zone=zone)
    db.attach(hourly=True)
    assert since(db) == "-infinity"
    fill(db)
    db.refresh(step_events=400)
    assert hours(db) == 900
    compare(db, zones=True)
    change(db)
    compare(db, zones=True)
    db.refresh(step_events=50)
    compare(db)
    assert db.verify().differences == 0


def test_on_later_filled_and_off(dense: Database) -> None:
    """Turned on later it is filled step by step; answers are exact after each, with changes coming in meanwhile."""
    dense.refresh()
    compare(dense)
    assert hourly.turn_on(dense.own)
    assert not hourly.turn_on(dense.own)
    assert hours(dense) == 0
    compare(dense)
    seen: list[str | None] = []

    def progress(filled: hourly.Filled) -> None:
        assert filled.since == since(dense)
        seen.append(filled.since)
        change(dense)
        if len(seen) % 2:
            refresh_only(dense)
        dense.compare(windows(dense)[::4])

    done = hourly.fill(dense.own, dense.settings.model_copy(update={"step_events": 200}), progress=progress)
    assert done.done
    assert done.since == since(dense) == "-infinity"
    assert len(seen) > 3
    assert seen == sorted(seen, reverse=True)  # type: ignore[type-var]
    compare(dense, zones=True)
    dense.refresh()
    assert hours(dense) == dense.scalar(f"select count(*) from {dense.source}")
    assert dense.verify().differences == 0
    compare(dense, zones=True)
    assert hourly.turn_off(dense.own)
    assert not hourly.turn_off(dense.own)
    assert (hours(dense), since(dense)) == (0, None)
    compare(dense, zones=True)
    dense.refresh()
    assert hours(dense) == 0


def refresh_only(db: Database) -> None:
    """Fold, and fill nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hourly, "fill", lambda *_, **__: None)
        db.refresh(step_events=100)


def test_a_refresh_fills(dense: Database) -> None:
    """Without the command's help, for a bounded time each."""
    dense.refresh()
    hourly.turn_on(dense.own)
    dense.refresh()
    assert since(dense) == "-infinity"
    assert hours(dense) == 900
    compare(dense)


def test_killed_while_filling(dense: Database) -> None:
    """Between steps and inside of one: what is not committed has not happened, and the next fill goes on."""
    dense.refresh()
    hourly.turn_on(dense.own)
    few = dense.settings.model_copy(update={"step_events": 300})

    class KilledError(Exception):
        pass

    real = fold.add_fact
    for rollup in fold.HOURLY_FACTS:

        def killed(*arguments: Any, rollup: str = rollup, **options: Any) -> None:
            real(*arguments, **options)
            if arguments[1] == rollup:
                raise KilledError

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fold, "add_fact", killed)
            with pytest.raises(KilledError):
                hourly.fill(dense.own, few)
        assert hours(dense) == 0
        compare(dense)

    calls = 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise Stopped

    with pytest.raises(Stopped):
        hourly.fill(dense.own, few, check=stop)
    assert 0 < hours(dense) < 900
    compare(dense)
    assert hourly.fill(dense.own, few).done
    assert hours(dense) == 900
    assert dense.verify().differences == 0


def test_events_of_one_hour_go_together(db: Database) -> None:
    """More events in an hour than a step has; and hours far apart, with nothing between."""
    for day in ("2026-01-01 10:{:02}+00", "2025-03-01 10:{:02}+00"):
        for minute in range(9):
            db.insert(day.format(minute))
    db.insert("'-infinity'".strip("'"))
    db.refresh()
    hourly.turn_off(db.own)
    hourly.turn_on(db.own)
    assert hourly.fill(db.own, db.settings.model_copy(update={"step_events": 2})).done
    assert db.execute("select hour::text, sum(event_count)::int from usage.hourly group by 1 order by 1") == [
        ("2025-03-01 10:00:00+00", 9), ("2026-01-01 10:00:00+00", 9)]  # fmt: skip
    assert db.verify().differences == 0


def test_a_delete_that_is_not_folded_yet_is_filled_in(db: Database) -> None:
    """The only event of an hour is gone from the source, and still in the days: so it has to be in the hours."""
    db.insert("2026-01-01 10:30+00", "ai", 0, '{"tokens_in": 7}')
    db.refresh()
    db.execute("delete from public.resource_usage_log")
    hourly.turn_off(db.own)
    hourly.turn_on(db.own)
    hourly.fill(db.own, db.settings)
    assert hours(db) == 1
    db.compare([("2026-01-01 09:59+00", None, None), ("2026-01-01 10:29+00", "2026-01-01 10:31+00", None)])
    db.refresh()
    assert hours(db) == 0
    assert db.verify().differences == 0


@pytest.mark.parametrize("zone", some(["Asia/Kathmandu", "UTC"], 2))
@pytest.mark.parametrize(
    "tamper",
    [
        "update usage.hourly_fact set total_value = total_value + 1 where hour = (select max(hour) from usage.hourly_fact)",
        "delete from usage.hourly_collection_fact where hour in (select hour from usage.hourly_collection_fact order by hour offset 100 limit 3)",
        "insert into usage.hourly_fact select '2020-01-01 00:00+00', min(id), 1, 1, 1, 0 from usage.key",
    ],
)  # fmt: skip
def test_differences_are_found_and_repaired(new_database: Any, zone: str, tamper: str) -> None:
    """Somebody changed hours: verify says which, turns trust off, and repairs them alone; restatements say so."""
    db: Database = new_database(zone=zone)
    db.attach(hourly=True)
    fill(db, 300)
    db.refresh()
    db.execute(tamper)
    found = db.verify()
    assert found.differences > 0
    assert {difference.rollup for difference in found.shown} <= {"hourly", "hourly_collection"}
    assert all(":00:00+00" in difference.bucket for difference in found.shown)
    assert not found.trusted
    compare(db)
    assert db.verify(repair=True).trusted
    compare(db)
    assert db.verify().differences == 0
    assert db.scalar("select bool_and(rollup like 'hourly%' and reason = 'repaired') from usage.restatement")


def test_trust_off_stops_the_fill(dense: Database) -> None:
    """While there is doubt nothing is filled in; a repair goes on beside it, whichever comes first."""
    dense.refresh()
    hourly.turn_on(dense.own)
    hourly.fill(dense.own, dense.settings.model_copy(update={"step_events": 300}), seconds=0)
    half = since(dense)
    dense.execute("update usage.state set trusted = false, distrust_reason = 'a test says so'")
    assert not hourly.fill(dense.own, dense.settings).done
    dense.refresh()
    assert since(dense) == half
    compare(dense, zones=True)
    assert dense.verify(repair=True).trusted
    assert hourly.fill(dense.own, dense.settings).done
    assert dense.verify().differences == 0
    compare(dense)


def test_a_metric_changes(db: Database) -> None:
    """The rebuild that follows makes the hours anew."""
    hourly.turn_on(db.own)
    fill(db, 300)
    db.refresh()
    db.execute("update usage.metric set value_key = 'tokens_out' where resource_type = 'ai'")
    assert db.verify(repair=True).trusted
    assert db.scalar("select sum(total_value) from usage.hourly where resource_type = 'ai'") == db.scalar(
        "select sum((detail ->> 'tokens_out')::numeric) from public.resource_usage_log where resource_type = 'ai'"
    )
    assert db.verify().differences == 0


@pytest.mark.parametrize("zone", some(["Asia/Kathmandu", "UTC"], 2))
def test_truncate_and_fill_again(new_database: Any, zone: str) -> None:
    """Half filled or whole, after a TRUNCATE hours begin anew from the first."""
    db: Database = new_database(zone=zone)
    db.attach()
    fill(db, 300)
    db.refresh()
    hourly.turn_on(db.own)
    hourly.fill(db.own, db.settings.model_copy(update={"step_events": 100}), seconds=0)
    db.execute("truncate public.resource_usage_log")
    fill(db, 100)
    compare(db)
    db.refresh()
    assert (hours(db), since(db)) == (100, "-infinity")
    compare(db)
    assert db.verify().differences == 0


def test_a_frontier_in_the_future(db: Database) -> None:
    """What is taken out of the days is taken out of the hours."""
    hourly.turn_on(db.own)
    fill(db, 100)
    db.insert("now")
    db.refresh()
    db.execute("select setval('usage.frontier_seq', (extract(epoch from now() + interval '3 days') * 1e6)::bigint)")
    db.execute(
        "insert into public.resource_usage_log (resource_type, created_at) select 'ai', now() + n * interval '9 hours' from generate_series(1, 9) n"
    )
    db.refresh()
    compare(db)
    rebuild.reset_frontier(db.own)
    compare(db)
    db.refresh()
    assert db.verify().differences == 0
    compare(db)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Oslo", "Asia/Kathmandu", "Asia/Kolkata"])
def test_sealed_hours(new_database: Any, zone: str) -> None:
    """Below the seal windows are cut at hours, where days are of whole hours; elsewhere hours end at the seal."""
    db: Database = new_database(zone=zone)
    db.attach(hourly=True)
    fill(db, 900, 13)
    db.refresh()
    whole = zone in {"UTC", "Europe/Oslo"}
    cut, odd, day_cut = db.execute(
        "select (date_trunc('hour', now(), 'UTC') - interval '6 days')::text, (date_trunc('hour', now(), 'UTC') - interval '6 days 25 minutes')::text,"
        " (date_trunc('hour', now(), 'UTC') - interval '4 days')::text"
    )[0]
    before = db.execute("select * from usage.by_collection(%s, %s)", (cut, day_cut))
    sealed = db.scalar("select (usage.local_day(now(), %s) - 2)::text", (zone,))
    seal.seal(db.own, db.settings, sealed)
    db.execute("delete from public.resource_usage_log where created_at < (select sealed_until from usage.state)")
    receipt = "select exact, reasons::text from usage.receipt(%s, %s)"
    if whole:
        assert since(db) == "-infinity"
        assert db.execute("select * from usage.by_collection(%s, %s)", (cut, day_cut)) == before
        assert db.execute(receipt, (cut, day_cut)) == [(True, "{}")]
        exact, reasons = db.execute(receipt, (odd, None))[0]
        assert not exact
        assert "that hour counts whole" in reasons
        assert db.execute("select * from usage.by_collection(%s)", (odd,)) == db.execute(
            "select * from usage.by_collection(date_trunc('hour', %s::timestamptz, 'UTC'))", (odd,)
        )
    else:
        assert db.scalar("select hourly_since = usage.hours_from(sealed_until) from usage.state")
        assert db.scalar("select min(hour) >= (select sealed_until from usage.state) from usage.hourly")
        exact, reasons = db.execute(receipt, (cut, None))[0]
        assert not exact
        assert "that day counts whole" in reasons
    at_seal = db.scalar("select sealed_until::text from usage.state")
    db.execute(
        "insert into public.resource_usage_log (resource_type, created_at) values ('ai', %s::timestamptz - interval '40 minutes')",
        (at_seal,),
    )  # late, sealed
    for _ in range(2):
        with snapshot(db.connection):
            db.connection.execute(
                b"delete from public.resource_usage_log where created_at < %s::timestamptz", (at_seal,)
            )
        db.compare([(at_seal, None, None)], live=False)
        with snapshot(db.connection):
            compare_days(db.connection, "UTC" if zone != "UTC" else "Europe/Oslo", [("now-1", None, None)])
        assert db.verify().differences == 0
        db.refresh()
    if whole:
        daily = usage_daily(db.connection, time_zone="America/New_York", since=datetime.fromisoformat(cut))
        assert sum(row.event_count for row in daily) == db.scalar(
            "select sum(event_count) from usage.by_collection(%s)", (cut,)
        )
    with pytest.raises(UsageError, match="sealed by days of"):
        usage_daily(db.connection, time_zone="Asia/Kolkata" if zone != "Asia/Kolkata" else "Asia/Kathmandu", days=9)
    db.execute("truncate public.resource_usage_log")
    db.refresh()
    assert db.verify().differences == 0
    fill(db, 20)
    db.refresh()
    db.compare([(at_seal, None, None)], live=False)


def test_a_seal_comes_down_before_the_fill(db: Database) -> None:
    """Hours of a part of a sealed day cannot cut it: the raw events of the rest may be gone."""
    db.days_only()
    fill(db, 300)
    db.refresh()
    hourly.turn_on(db.own)
    midnight = "select %s::timestamptz = date_trunc('day', %s::timestamptz, 'UTC')"
    hourly.fill(db.own, db.settings.model_copy(update={"step_events": 100}), seconds=0)
    if db.scalar(midnight, (since(db), since(db))):  # at some times of the day: hours would cover all of it
        hourly.fill(db.own, db.settings.model_copy(update={"step_events": 20}), seconds=0)
    half = since(db)
    db.execute("delete from public.resource_usage_log where created_at < %s::timestamptz - interval '10 days'", (half,))
    seal.seal(db.own, db.settings, db.scalar("select (usage.local_day(%s, 'UTC') + 1)::text", (half,)))
    whole = "select * from usage.by_collection(date_trunc('day', %s::timestamptz, 'UTC'))"
    expected = db.execute(whole, (half,))
    db.execute("delete from public.resource_usage_log where created_at < (select sealed_until from usage.state)")
    assert hourly.fill(db.own, db.settings).done
    assert since(db) == half
    for hours_later in (0, 1):
        at = db.scalar("select (%s::timestamptz + %s * interval '1 hour')::text", (half, hours_later))
        if db.scalar(midnight, (at, at)):
            continue
        assert db.execute("select * from usage.by_collection(%s)", (at,)) == expected
        assert db.execute("select exact from usage.receipt(%s)", (at,)) == [(False,)]
    db.compare([(db.scalar("select sealed_until::text from usage.state"), None, None)], live=False)
    assert db.verify().differences == 0


def test_purge_keeps_hours(db: Database) -> None:
    """Raw events go, and windows of the past are cut at hours still."""
    hourly.turn_on(db.own)
    fill(db)
    db.refresh()
    instant = db.scalar("select (date_trunc('hour', now(), 'UTC') - interval '10 days')::text")
    before = db.execute("select * from usage.by_collection(%s)", (instant,))
    assert purge.purge(db.own, db.settings, "3d").events > 0
    assert db.execute("select * from usage.by_collection(%s)", (instant,)) == before
    db.refresh()
    assert db.verify().differences == 0


def test_detach_forgets(db: Database) -> None:
    """It is off after a detach, and asked for anew."""
    hourly.turn_on(db.own)
    fill(db, 50)
    db.refresh()
    capture.detach(db.own, db.settings)
    assert (hours(db), since(db)) == (0, None)
    with pytest.raises(fold.NotAttachedError):
        hourly.turn_on(db.own)
    db.attach(hourly=True)
    db.refresh()
    assert hours(db) == 50


def test_days_of_another_zone_without_hours(dense: Database) -> None:
    """Exact too, from raw events; the arguments are checked; three arguments go on meaning the reporting zone."""
    dense.refresh()
    compare(dense, zones=True)
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="not recognized"):
        dense.execute("select usage.daily_series('2026-01-01', null, null, 'Nowhere/Else')")
    with pytest.raises(UsageError, match="not recognized"):
        usage_daily(dense.connection, time_zone="Nowhere/Else")
    own = "select * from usage.daily_series(now() - interval '3 days'{})"
    assert dense.execute(own.format(", null, null, null")) == dense.execute(own.format(""))
    assert dense.execute(own.format(", null, null, 'UTC'")) == dense.execute(own.format(""))
    found = usage_daily(dense.connection, time_zone="Asia/Kolkata", days=3, collection_id=COLLECTIONS[1])
    assert found[0].starts_at.endswith("T18:30:00Z")


@pytest.mark.parametrize("on", [False, True])
@pytest.mark.parametrize("instant", some(["2011-11-06 02:31+00", "2015-11-01 04:30+00", "2023-11-05 05:00+00", "2024-04-06 15:00+00", "2023-10-29 01:00+00"], 2))  # fmt: skip
def test_days_of_another_zone_around_a_transition(new_database: Any, instant: str, on: bool) -> None:
    """Clocks change within an hour, at midnight, and in St John's of 2011 back past it."""
    db: Database = new_database(zone="Europe/Oslo")
    db.attach(hourly=on)
    db.execute(
        "insert into public.resource_usage_log (resource_type, detail, created_at)"
        " select 'ai', '{\"tokens_in\": 1.5}', %s::timestamptz + n * interval '7 minutes 30 seconds' from generate_series(-600, 600) n",
        (instant,),
    )
    cuts: Windows = [("-infinity", None, None)]
    for offset in (-3000, -61, 0, 29):
        cuts.append(
            (db.scalar("select (%s::timestamptz + %s * interval '1 minute')::text", (instant, offset)), None, None)
        )
    db.refresh()
    db.execute("delete from public.resource_usage_log where id % 5 = 0")
    for _ in range(2):
        with snapshot(db.connection):
            for zone in ZONES:
                compare_days(db.connection, zone, cuts)
        db.refresh()


def test_status_says_when_it_would_pay(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a dense source, by a sample of its hours; it is advice, and no problem."""

    def line() -> str:
        return dict(read_status(db.own, db.settings).lines())["hourly rollup"]

    db.days_only()
    assert line() == "off"
    db.execute(
        "insert into public.resource_usage_log (resource_type, created_at)"
        " select 'ai', now() - n * interval '5 minutes' from generate_series(1, 30 * 288) n"
    )
    db.refresh()
    assert line().startswith("off; 2")
    assert "would pay" not in line()
    monkeypatch.setattr("aggregator.status._DENSE_DAY", 200)
    assert line().endswith("12.0 to a row of an hour: aggregator attach --hourly would pay")
    monkeypatch.setattr("aggregator.status._SAMPLED_EVENTS", 6)
    assert "at least 6.0" in line()
    problems = read_status(db.own, db.settings).problems
    hourly.turn_on(db.own)
    assert line().startswith("on, from 2")
    hourly.fill(db.own, db.settings)
    assert line() == "on"
    assert read_status(db.own, db.settings).problems == problems


Mutation = Callable[[Database, pytest.MonkeyPatch], None]


def _function(signature: str, *replacements: tuple[str, str]) -> Mutation:
    def mutate(db: Database, _patch: pytest.MonkeyPatch) -> None:
        text = db.scalar("select pg_get_functiondef(%s::regprocedure)", (signature,))
        for old, new in replacements:
            assert old in text, old
            text = text.replace(old, new)
        db.execute(text)

    return mutate


def _block(module: Any, name: str, old: str, new: str) -> Mutation:
    def mutate(_db: Database, patch: pytest.MonkeyPatch) -> None:
        assert old in module.SQL[name]
        patch.setitem(module.SQL, name, module.SQL[name].replace(old, new))

    return mutate


_PARTS = "usage.cut_window(timestamptz, timestamptz)"
_SERIES = "usage.daily_series(timestamptz, timestamptz, uuid, text)"
_WITH_HOURS = "usage.with_hours(usage.window_parts, integer, timestamptz, timestamptz, timestamptz, timestamptz, timestamptz, timestamptz)"

MUTATIONS: dict[str, tuple[str, Mutation]] = {
    "late changes are not folded into hours": ("UTC", _block(refresh, "add_late", ", {hour}\n", ", null::timestamptz\n")),
    "the fill forgets late changes": ("UTC", _block(hourly, "collect", "case when e.late then -e.sign else e.sign end", "case when e.late then 0 else e.sign end")),
    "the fill reads the tail": ("UTC", _block(hourly, "missing", "least(s.hourly_since, s.frontier)::text", "s.hourly_since::text")),
    "an hour that is cut counts whole": ("UTC", _function(_WITH_HOURS, ("if first <> from_at then", "if false then"))),
    "an hour at the end that is cut counts whole": ("UTC", _function(_WITH_HOURS, ("if last <> to_at then", "if false then"))),
    "late changes of hours do not count": ("UTC", _function(_PARTS, ("spans_from := array[p.hours_from[1]];", "spans_from := array[next_at];"))),
    "late changes count twice": ("UTC", _function(_PARTS, ("days_start := least(p.hours_to[1], top);", "days_start := first_at;"))),
    "late changes of gaps count": ("Asia/Kathmandu", _function("usage.window_events(usage.window_parts, uuid, text)", ("unnest(p.gap_from, p.gap_to)", "unnest(p.gap_from, p.gap_from)"))),
    "hours before the fill are used": ("UTC", _function(_WITH_HOURS, ("first := greatest(first, low);", ""))),
    "an hour of the day before": ("Asia/Kathmandu", _function(_WITH_HOURS, ("usage.hours_to(from_at) >= day_from and ", ""))),
    "hours that a midnight cuts lie in one day": ("UTC", _function(_SERIES, ("where c.from_at < c.to_at", "where false"))),
}  # fmt: skip


def _scenario(db: Database) -> None:
    fill(db, 900, 17)
    db.refresh()
    hourly.turn_on(db.own)
    fill(db, 40, 0)
    change(db)
    hourly.fill(db.own, db.settings.model_copy(update={"step_events": 200}), seconds=0)
    change(db)
    refresh_only(db)
    compare(db, zones=True)
    hourly.fill(db.own, db.settings)
    change(db)
    for _ in range(2):
        # So that an instant is beside each kind of midnight and hour.
        cuts: Windows = []
        for minutes in (5, 20, 50, 400, 1000, 1430):
            for days in (3, 4):
                at = db.scalar(
                    "select (usage.day_start(usage.local_day(now(), %s) - %s, %s) + make_interval(mins => %s))::text",
                    (db.zone, days, db.zone, minutes),
                )
                cuts += [(at, None, None), ("-infinity", at, None)]
        db.compare(cuts)
        compare(db, zones=True)
        db.refresh()


@pytest.mark.parametrize("zone", some(["Asia/Kathmandu", "UTC"], 2))
def test_unbroken(new_database: Any, zone: str) -> None:
    """What the mutations break is exact as the product is."""
    db: Database = new_database(zone=zone)
    db.attach(hourly=False)
    _scenario(db)


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutations_are_caught(new_database: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each guarantee broken on purpose: a comparison sees it."""
    zone, mutate = MUTATIONS[name]
    db: Database = new_database(zone=zone)
    db.attach(hourly=False)
    mutate(db, monkeypatch)
    with pytest.raises(Mismatch):
        _scenario(db)
