"""Time zones: around every kind of transition, days, edges and folds equal the raw query."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from aggregator import refresh
from aggregator.capture import SourceError
from aggregator.refresh import Progress
from tests.harness import COLLECTIONS, Database, snapshot, some

TRANSITIONS = [
    ("UTC", "2024-03-31 00:00:00+00"),
    ("Europe/Oslo", "2024-03-31 01:00:00+00"),
    ("Europe/Oslo", "2024-10-27 01:00:00+00"),
    ("Asia/Kathmandu", "2024-02-29 18:15:00+00"),
    ("America/St_Johns", "2015-03-08 05:30:00+00"),
    ("America/St_Johns", "2015-11-01 04:30:00+00"),
    ("Atlantic/Azores", "2023-10-29 01:00:00+00"),
    ("Atlantic/Azores", "2024-03-31 01:00:00+00"),
    ("America/Havana", "2023-11-05 05:00:00+00"),
    ("America/Havana", "2024-03-10 05:00:00+00"),
    ("Pacific/Apia", "2011-12-30 10:00:00+00"),
    ("Australia/Lord_Howe", "2024-04-06 15:00:00+00"),
    ("Australia/Lord_Howe", "2024-10-05 15:30:00+00"),
]
"""A zone and the instant of something odd in it (UTC and Asia/Kathmandu: the turn of a month)."""

# fmt: off
ZONES = sorted({zone for zone, _ in TRANSITIONS})

OFFSETS = [
    *("-26 hours", "-12 hours -1 microsecond", "-2 hours", "-1 hour -1 microsecond", "-1 hour", "-30 minutes"),
    *("-15 minutes", "-1 microsecond", "0", "1 microsecond", "7 minutes 30 seconds", "30 minutes"),
    *("1 hour -1 microsecond", "1 hour"),
    *("1 hour 1 microsecond", "90 minutes", "11 hours 59 minutes 59.999999 seconds", "12 hours 1 second", "25 hours"),
]
"""Cuts, from the transition on."""
# fmt: on

Windows = list[tuple[str, str | None, str | None]]


def fill(db: Database, instant: str) -> None:
    """Insert an event every 17 minutes two days around an instant, and at and beside its hours and half-hours."""
    db.execute(
        "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
        " select case when mod(n, 3) < 2 then ('00000000-0000-0000-0000-00000000000' || mod(n, 3) + 1)::uuid end,"
        " (array['ai', 'cas', 'tts'])[1 + mod(n, 3)],"
        " jsonb_build_object('tokens_in', n, 'tokens_out', 1, 'size_bytes', 0.1 * n, 'characters', n::text,"
        " 'job_type', mod(n, 2)), at"
        " from (select at, row_number() over (order by at)::integer as n from ("
        "   select %(at)s::timestamptz + minutes * interval '1 minute' as at"
        "     from generate_series(-2890, 2890, 17) minutes"
        "   union all"
        "   select %(at)s::timestamptz + half * interval '30 minutes' + beside * interval '1 microsecond'"
        "     from generate_series(-52, 52) half, generate_series(-1, 1) beside"
        "    where half between -5 and 5 or mod(half, 6) = 0"
        " ) a) e",
        {"at": instant},
    )


def cuts(db: Database, instant: str) -> list[str]:
    """Return the instants around a transition where windows are cut, and the first instants of days beside it."""
    odd = [db.scalar("select (%s::timestamptz + %s::interval)::text", (instant, offset)) for offset in OFFSETS]
    starts = db.execute(
        "select usage.day_start(usage.local_day(%s, s.time_zone) + n, s.time_zone)::text"
        " from usage.state s, generate_series(-1, 2) n",
        (instant,),
    )
    return sorted({*odd, *(start for (start,) in starts)})


def windows_of(bounds: list[str]) -> Windows:
    """Return windows that begin and end at each of the bounds, open, narrow and wide."""
    windows: Windows = [("-infinity", None, None), ("-infinity", None, COLLECTIONS[0])]
    windows += [(since, None, None) for since in bounds]
    windows += [("-infinity", until, None) for until in bounds]
    windows += [(since, until, None) for since, until in itertools.pairwise(bounds)]
    windows += [(since, until, COLLECTIONS[1]) for since, until in zip(bounds, bounds[7:], strict=False)]
    windows += [(since, until, None) for since, until in zip(bounds, reversed(bounds), strict=True)]
    return windows


@pytest.mark.parametrize(
    ("zone", "instant", "hours"),
    some([*((*case, False) for case in TRANSITIONS), *((*TRANSITIONS[n], True) for n in (3, 5, 6, 8, 11))], 5),
)
def test_windows_around_a_transition(new_database: Any, zone: str, instant: str, hours: bool) -> None:
    """Windows cut at any instant around a transition equal the raw query: unrefreshed, half refreshed and refreshed."""
    db: Database = new_database(zone=zone)
    db.attach(hourly=hours)
    fill(db, instant)
    bounds = cuts(db, instant)
    windows = windows_of(bounds)
    some = windows[:: len(windows) // 12]
    db.compare(some)

    frontiers: list[str] = []

    def compare_between(progress: Progress) -> None:
        frontiers.append(progress.frontier)
        shift = len(frontiers)
        at_frontier: Windows = [(progress.frontier, None, None), ("-infinity", progress.frontier, None)]
        db.compare([*windows[shift :: len(windows) // 8], *at_frontier])

    refresh.refresh(db.own, db.settings.model_copy(update={"step_events": 50}), progress=compare_between)
    assert len(frontiers) > 4
    db.compare(windows)
    assert db.verify().differences == 0
    db.execute("update public.resource_usage_log set created_at = created_at + interval '1 hour' where id % 5 = 0")
    db.execute("delete from public.resource_usage_log where id % 7 = 0")
    fill(db, instant)
    db.compare(some)
    db.refresh(step_events=50)
    db.compare(some)
    assert db.verify().differences == 0


class Stopped(Exception):  # noqa: N818 -- it is no error
    """The test stops a refresh."""


@pytest.mark.parametrize(("zone", "instant"), [TRANSITIONS[2], TRANSITIONS[8]])
def test_frontier_within_a_transition(new_database: Any, zone: str, instant: str) -> None:
    """A refresh that was stopped in the middle of a transition leaves a frontier there, and every answer exact."""
    db: Database = new_database(zone=zone)
    db.attach()
    fill(db, instant)
    windows = windows_of(cuts(db, instant))

    def stop(progress: Progress) -> None:
        if db.scalar("select frontier >= %s from usage.state", (instant,)):
            raise Stopped

    with pytest.raises(Stopped):
        refresh.refresh(db.own, db.settings.model_copy(update={"step_events": 10}), progress=stop)
    assert db.scalar("select frontier < %s::timestamptz + interval '1 day' from usage.state", (instant,))
    db.compare(windows)
    fill(db, instant)
    db.compare(windows[::3])
    db.refresh()
    db.compare(windows[::3])


@pytest.mark.parametrize("zone", ZONES)
def test_days_partition_time(new_database: Any, zone: str) -> None:
    """An instant's local day d has day_start(d) <= t < day_start(next day), and no other: hourly and by each start."""
    db: Database = new_database()
    first = "2012-01-02" if zone == "America/St_Johns" else "2005-01-01"
    parameters = {"zone": zone, "first": first}
    wrong = db.execute(
        "with sampled as materialized ("
        " select at"
        " from generate_series(%(first)s::timestamptz, timestamptz '2027-12-31 00:00:00+00', interval '1 hour') at"
        " union all"
        " select usage.day_start(d::date, %(zone)s) + n * interval '1 microsecond'"
        " from generate_series(%(first)s::timestamp, timestamp '2027-12-31', interval '1 day') d,"
        " generate_series(-1, 1) n)"
        " select at::text from sampled, lateral (select usage.local_day(at, %(zone)s) as day offset 0) l"
        " where day <> (at at time zone %(zone)s)::date"
        " or at < usage.day_start(day, %(zone)s) or at >= usage.day_start(usage.next_day(day), %(zone)s) limit 5",
        parameters,
    )
    assert wrong == []
    backwards = db.execute(
        "select d::date::text from generate_series(%(first)s::timestamp, timestamp '2027-12-31', interval '1 day') d"
        " where usage.day_start(d::date, %(zone)s) > usage.day_start(usage.next_day(d::date), %(zone)s)"
        " or usage.day_label(d::date, %(zone)s) < usage.day_start(d::date, %(zone)s)"
        " or (usage.day_label(d::date, %(zone)s) <> date_trunc('day', usage.day_start(d::date, %(zone)s), %(zone)s)"
        "     and usage.day_start(d::date, %(zone)s) < usage.day_start(usage.next_day(d::date), %(zone)s)) limit 5",
        parameters,
    )
    assert backwards == []


@pytest.mark.parametrize("zone", ["Atlantic/Azores", "America/Havana"])
def test_two_midnights(new_database: Any, zone: str) -> None:
    """Where midnight happens twice, a day begins at the first of them, and its label is date_trunc's."""
    db: Database = new_database(zone=zone)
    db.attach()
    day = {"Atlantic/Azores": "2023-10-29", "America/Havana": "2023-11-05"}[zone]
    fill(db, f"{day} 03:00:00+00")
    later = "select usage.day_label(%s, %s) - usage.day_start(%s, %s) = interval '1 hour'"
    assert db.scalar(later, (day, zone, day, zone))
    count = "select count(*) from public.resource_usage_log where (created_at at time zone %s)::date = %s"
    expected = db.scalar(count, (zone, day))
    for _ in range(2):
        bounds = "select usage.day_start(%s, %s), usage.day_start(%s::date + 1, %s)"
        start, end = db.execute(bounds, (day, zone, day, zone))[0]
        with snapshot(db.connection):
            series = "select day::text, sum(event_count) from usage.daily_series(%s, %s) group by 1"
            rows = db.execute(series, (start, end))
        assert rows == [(day, expected)]
        db.refresh()


def test_skipped_day(new_database: Any) -> None:
    """The day that Samoa skipped has no events and no length, and its neighbours lose none."""
    db: Database = new_database(zone="Pacific/Apia")
    db.attach()
    fill(db, "2011-12-30 10:00:00+00")
    for _ in range(2):
        days = [
            day for (day,) in db.execute("select distinct day::text from usage.daily_series('-infinity') order by 1")
        ]
        assert days == ["2011-12-27", "2011-12-28", "2011-12-29", "2011-12-31", "2012-01-01", "2012-01-02"]
        db.refresh()
    starts = "select usage.day_start('2011-12-30', 'Pacific/Apia') = usage.day_start('2011-12-31', 'Pacific/Apia')"
    assert db.scalar(starts)


def test_attach_refuses_years_without_day_intervals(new_database: Any) -> None:
    """In America/St_Johns local dates ran backwards in 2010: attach refuses data of then, and takes that of 2015."""
    db: Database = new_database(zone="America/St_Johns")
    db.insert("2015-06-01 00:00:00+00")
    db.insert("2010-06-01 00:00:00+00")
    with pytest.raises(SourceError, match="run backwards before 2010-11-07"):
        db.attach()
    assert db.scalar("select source is null from usage.state")
    db.execute("delete from public.resource_usage_log where created_at < '2015-01-01'")
    db.attach()
    db.compare()
    db.refresh()
    db.compare()


def test_late_data_of_years_without_day_intervals(new_database: Any) -> None:
    """An event of such a year that arrives later turns trust off, and the answers stay exact."""
    db: Database = new_database(zone="America/St_Johns")
    db.attach()
    db.insert("2015-06-01 00:00:00+00")
    db.refresh()
    db.insert("2010-11-07 02:31:00+00")
    db.compare()
    db.refresh()
    db.compare()
    assert "ran backwards" in db.scalar("select usage.doubt()")
    fill(db, "2010-11-07 02:31:00+00")
    windows: Windows = [("-infinity", None, None), ("2010-11-07 02:31:00+00", None, None)]
    db.compare([*windows, ("2010-11-07 03:15:00+00", "2010-11-08 00:00:00+00", None)])
