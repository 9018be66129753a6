"""Marks of the hourly rollup: windows to the second by running sums, exact wherever they are cut, and whatever changes meanwhile."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from aggregator import capture, hourly, marks, seal
from aggregator.errors import Stopped
from tests.harness import BY_ITSELF, LONG, ORACLE, TOTALS, Database, Mismatch, compare_days, snapshot, some
from tests.integration.test_zones import TRANSITIONS, cuts
from tests.integration.test_zones import fill as around_transition

Windows = list[tuple[str, str | None, str | None]]

OTHERS = {
    "Africa/Monrovia": "Asia/Kathmandu",
    "UTC": "Australia/Darwin",
    "Asia/Kathmandu": "UTC",
    "America/St_Johns": "Asia/Kathmandu",
    "America/New_York": "Asia/Kolkata",
}
"""Another zone for each."""

REMAINS = "select (select count(*) from usage.six_hours), (select count(*) from usage.mark_fact), (select count(*) from usage.mark_total)"

MARKED = "select count(marks)::int from usage.six_hours"

# Three days from 2024-05-01 on: two events every 3 minutes from 8 to 18, else one every 9 minutes and two every half hour.
EVENTS = """
insert into {source} (collection_id, resource_type, detail, created_at)
select case when n % 5 > 0 then ('00000000-0000-0000-0000-00000000000' || n % 5)::uuid end,
       (array['ai', 'tts', null, 'whisper'])[1 + n % 4],
       jsonb_build_object('tokens_in', n * 1.25, 'tokens_out', n, 'characters', n, 'duration_seconds', (n * 0.1)::text, 'job_type', n % 3), x.at
  from (select row_number() over () as n, m.at
          from generate_series(timestamptz '2024-05-01 00:00:30+00', '2024-05-03 23:59+00', interval '3 minutes') m (at), generate_series(1, 2) twice
         where twice = 1 and extract(minute from m.at)::integer % 9 = 0 or extract(minute from m.at)::integer % 30 = 0
            or extract(hour from m.at) between 8 and 17) x
"""

LATE = """
insert into {source} (collection_id, resource_type, detail, created_at)
select '00000000-0000-0000-0000-000000000001', 'ai', jsonb_build_object('tokens_in', n), '2024-04-30 23:50+00'::timestamptz + n * interval '37 minutes'
  from generate_series(1, 110) n
"""


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mark for every seventh event, and one by type for every third, in six hours with twenty of them."""
    monkeypatch.setattr(marks, "WORTH", 20)
    monkeypatch.setattr(marks, "EVERY", 7)
    monkeypatch.setattr(marks, "EVERY_TOTAL", 3)
    monkeypatch.setattr(marks, "PER_ROW", 0)
    monkeypatch.setattr(marks, "REST", 0.0)


def fill(db: Database, year: str = "2024") -> None:
    """Put the events in, attach with hours, and refresh."""
    db.execute(EVENTS.replace("{source}", db.source).replace("2024", year))
    db.attach(hourly=True)
    db.refresh()


@pytest.fixture(params=["UTC", "Asia/Kathmandu", "America/St_Johns"])
def dense(
    request: pytest.FixtureRequest, new_database: Callable[..., Database], monkeypatch: pytest.MonkeyPatch
) -> Database:
    """Three dense days, refreshed, with their marks; days of a zone, whose midnight lies before or behind the middle between two."""
    monkeypatch.setattr(marks, "EVERY", 20 if request.param == "Asia/Kathmandu" else 7)
    db = new_database(zone=request.param)
    fill(db)
    assert db.scalar(MARKED) == 12
    return db


@pytest.fixture
def plain(db: Database) -> Database:
    """The same by days of UTC."""
    fill(db)
    return db


def around(db: Database, every: int) -> list[str]:
    """Return instants at, beside and between marks, hours and midnights: one of so many of them."""
    rows = db.execute(
        "select distinct (x.at + o.by)::text as at"
        "  from (select unnest(marks || halves) from usage.six_hours"
        "         union select usage.day_start(date '2024-05-01' + n, s.time_zone) from usage.state s, generate_series(0, 3) n"
        "         union select timestamptz '2024-05-01 00:00+00' + n * interval '1 hour' from generate_series(0, 72, 5) n) x (at),"
        "       unnest(array['-11 min', '-1 us', '0', '1 us', '95 s']::interval[]) o (by) order by 1"
    )
    return [row[0] for row in rows][::every]


def windows(db: Database, every: int = 3) -> Windows:
    """Return windows that begin at such instants, and end at a later one, near or far, or never."""
    rng = random.Random(every)
    instants = around(db, every)
    found: Windows = []
    for number, since in enumerate(instants):
        ends = [None, *(instants[at] for at in (number + 1, number + 5, number * 2 + 9) if at < len(instants))]
        found.append((since, rng.choice(ends), None))
    return found


def by_marks(db: Database, window: tuple[str, str | None, Any]) -> int:
    """Return how many marks a window is read by."""
    since, until, _ = window
    return int(
        db.scalar(
            "select coalesce(cardinality((usage.with_marks(usage.window_parts(%(since)s, %(until)s), %(since)s, %(until)s)).marks), 0)",
            {"since": since, "until": until},
        )
    )


BY_MARKS = {
    "by_collection": "select * from usage.by_collection(%(since)s::timestamptz, %(until)s::timestamptz)",
    "daily": "select day::text, resource_type, event_count, total_value from usage.daily_series(%(since)s::timestamptz, %(until)s::timestamptz)",
}
"""The sections that go by marks, as the oracle has them."""


def compare(db: Database, cuts: Windows) -> None:
    """Compare what goes by marks, planned once and by itself, with the oracle, in one snapshot: days of another zone, too.

    Of each window two of five answers, in turn; all of them in make test-long.
    """
    asked = [(section, section, query) for section, query in BY_MARKS.items()]
    asked += [(section, f"window_rows, {section}", query) for section, query in BY_ITSELF.items()]
    asked.append(("totals", "totals by type", f"select {TOTALS} from usage.totals(%(since)s::timestamptz, %(until)s::timestamptz, %(by)s, %(grain)s)"))  # fmt: skip
    with snapshot(db.connection):
        for number, (since, until, _) in enumerate(cuts):
            window = {"since": since, "until": until, "collection": None, "zone": db.zone, "by": ["resource_type"], "grain": ("day", "none")[number % 2]}  # fmt: skip
            for section, name, query in asked if LONG else (asked[number % 5], asked[(number + 2) % 5]):
                raw = ORACLE[section].replace("{source}", db.source).replace("{titles}", db.titles)
                expected = db.connection.execute(raw.encode(), window).fetchall()
                found = db.connection.execute(query.encode(), window).fetchall()
                if section == "totals":
                    expected, found = (sorted(rows, key=repr) for rows in (expected, found))
                if found != expected:
                    raise Mismatch(f"{name} of {window}: {found} is not {expected}")
        compare_days(db.connection, OTHERS[db.zone], cuts[:: 3 if LONG else 9], source=db.source)


@pytest.mark.parametrize("part", some(range(6), 3))
def test_every_cut_of_a_window(dense: Database, part: int) -> None:
    """At, beside and between marks, hours and midnights, with late changes below all of them, folded and not."""
    cuts = windows(dense, 1)[part::6]
    assert sum(by_marks(dense, window) > 0 for window in cuts) > len(cuts) / 4
    compare(dense, cuts)
    dense.execute(LATE.replace("{source}", dense.source))
    dense.execute(
        "insert into public.resource_usage_log (resource_type, created_at)"
        " select 'tts', usage.day_start(date '2024-05-01' + n / 20, s.time_zone) + (n % 20 - 10) * interval '55 seconds'"
        "   from usage.state s, generate_series(0, 79) n"
    )
    dense.execute("delete from public.resource_usage_log where id % 13 = 0")
    dense.execute(
        "update public.resource_usage_log set created_at = created_at + interval '7 minutes' where id % 17 = 0"
    )
    compare(dense, cuts)
    assert sum(by_marks(dense, window) > 0 for window in cuts) > len(cuts) / 4
    dense.refresh()
    assert sum(by_marks(dense, window) > 0 for window in cuts) > len(cuts) / 4
    compare(dense, cuts)


def test_raw_events_are_few(plain: Database) -> None:
    """At most half of what lies between two marks, or none at a whole hour; and of hours three at either end."""
    for since in around(plain, 2):
        for until in (None, "2024-05-03 13:12:12+00"):
            if (until is not None and since >= until[:19]) or since >= "2024-05-03 20":
                continue
            hours, raw = plain.execute(
                "select coalesce((select sum(extract(epoch from h.to_hour - h.from_hour) / 3600)"
                "                   from unnest(p.hours_from, p.hours_to) h (from_hour, to_hour)), 0)::int,"
                "       (select max(n.events) from unnest(p.cut_from, p.cut_to) c (from_at, to_at),"
                "               lateral (select count(*) as events from public.resource_usage_log e"
                "                         where e.created_at >= c.from_at and e.created_at < c.to_at) n)"
                "  from usage.with_marks(usage.window_parts(%(since)s, %(until)s), %(since)s, %(until)s) p",
                {"since": since, "until": until},
            )[0]
            assert hours <= 6, since
            assert (raw or 0) <= 4 + 2, since  # and those of one instant


def test_raw_events_are_fewer_by_type(plain: Database) -> None:
    """Half of what lies between two marks by type at most, none where a quarter of an hour begins, and no longer a time than the window's."""
    parts = (
        "  from unnest(%s::timestamptz[]) s (since), usage.with_totals(usage.window_parts(s.since, s.since + {})) p,"
        "       unnest(p.cut_from || p.head_from || p.foot_from, p.cut_to || p.head_to || p.foot_to) c (from_at, to_at)"
    )
    instants = around(plain, 3)
    raw = [
        int(events)
        for (events,) in plain.execute(
            f"select count(e) {parts.format('null')} left join public.resource_usage_log e on e.created_at >= c.from_at and e.created_at < c.to_at group by s.since",
            (instants,),
        )
    ]
    assert max(raw) <= 3  # some instants have two
    assert sum(raw) < 0.87 * len(instants)
    short = parts.format("interval '40 seconds'")
    longer = f"select s.since {short} group by s.since having sum(c.to_at - c.from_at) > interval '40 seconds'"
    assert plain.execute(longer, (instants,)) == []
    quarters = ("2024-05-01 10:15+00", "2024-05-03 13:45+00")
    assert plain.execute(
        "select cut_from, head_from, foot_from, cardinality(marks) from usage.with_totals(usage.window_parts(%s, %s))",
        quarters,
    ) == [(None, None, None, 2)]


@pytest.mark.parametrize(("zone", "instant"), some([case for case in TRANSITIONS if case[0] != "UTC"], 3))
def test_days_of_other_zones(new_database: Callable[..., Database], zone: str, instant: str) -> None:
    """Cut anywhere around a change of their clocks, below marks and late changes."""
    db = new_database(zone="Asia/Kolkata")
    around_transition(db, instant)
    db.attach(hourly=True)
    db.refresh()
    assert db.scalar("select count(*) from usage.six_hours where has_totals") > 10
    bounds = cuts(db, instant)
    found = [
        *((since, None, None) for since in bounds),
        *(
            (since, until, None)
            for n, since in enumerate(bounds)
            for until in (bounds[n + 1 : n + 2] + bounds[n + 6 :: 7])
        ),
    ]
    for _ in range(2):
        with snapshot(db.connection):
            compare_days(db.connection, zone, found)
        db.execute(
            "update public.resource_usage_log set created_at = created_at + interval '7 minutes' where id % 5 = 0"
        )


def test_midnights_that_are_no_quarters(new_database: Callable[..., Database]) -> None:
    """In Liberia, until 1972: no mark beyond one is gone by, as late changes there would count twice, or not."""
    db = new_database(zone="Africa/Monrovia")
    fill(db, "1971")
    assert db.scalar("select extract(minute from usage.day_start('1971-05-02', 'Africa/Monrovia'))::int") == 44
    bounds = [
        f"1971-05-0{day} {hour}+00" for day in (1, 2, 3)
        for hour in ("00:30:31", "00:43:10", "00:44:29", "00:44:30", "00:44:31", "00:46:50", "01:10", "09:13:20", "14:40", "23:50")
    ]  # fmt: skip
    found: Windows = [
        (since, until, None)
        for n, since in enumerate(bounds)
        for until in (None, *bounds[n + 1 : n + 3], *bounds[n + 8 :: 5])
    ]
    compare(db, found)
    db.execute("update public.resource_usage_log set created_at = created_at + interval '110 seconds' where id % 3 = 0")
    db.execute(
        "insert into public.resource_usage_log (resource_type, created_at)"
        " select 'tts', '1971-05-01 00:42:05+00'::timestamptz + n / 20 * interval '1 day' + n % 20 * interval '15 seconds' from generate_series(0, 59) n"
    )
    compare(db, found)
    db.refresh()
    compare(db, found)
    # Nothing of a sealed day is read raw, also where a mark lies in it.
    days = "select * from usage.daily_series(%s, %s, null, %s)"
    found = [window for window in found if window[0] >= "1971-05-02 00:44:30"]
    before = [
        ((*window[:2], zone), db.execute(days, (*window[:2], zone))) for window in found for zone in (db.zone, "UTC")
    ]
    seal.seal(db.own, db.settings, "1971-05-02")
    db.execute("delete from public.resource_usage_log where created_at < '1971-05-02 00:44:30+00'")
    for asked, rows in before:
        assert db.execute(days, asked) == rows, asked


def test_sealed_days_of_other_zones(plain: Database) -> None:
    """Where their midnights are marks no event is read, so they can be told below a seal; without marks they cannot."""
    days = "select day::text, resource_type, event_count, total_value from usage.daily_series('2024-05-01 18:30+00', '2024-05-03 12:00+00', null, 'Asia/Kolkata')"
    expected = plain.execute(days)
    assert len(expected) > 5
    seal.seal(plain.own, plain.settings, "2024-05-03")
    plain.execute("delete from public.resource_usage_log where created_at < '2024-05-03'")
    assert plain.execute(days) == expected
    plain.execute("update usage.six_hours set marks = null, halves = null, has_totals = null")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="cannot be told"):
        plain.execute(days)


def test_the_newest_are_made_behind_the_frontier(db: Database) -> None:
    """Six hours get marks when all of them are folded, and those that are sparse none."""
    db.attach(hourly=True)
    db.execute(
        "insert into public.resource_usage_log (created_at)"
        " select generate_series(usage.six_hours_of(now()) - interval '1 day', now(), interval '1 minute')"
    )
    db.refresh()
    folded = "(starts_at + interval '6 hours' <= (select frontier from usage.state))"
    assert db.execute(
        f"select count(*) filter (where {folded}) >= 3, bool_and((marks is not null) = {folded}) from usage.six_hours"
    ) == [(True, True)]
    sparse = "select count(marks)::int from usage.six_hours where starts_at = '2024-01-05 06:00+00'"
    for number, marked in ((19, 0), (1, 1)):
        db.execute(
            "insert into public.resource_usage_log (created_at) select '2024-01-05 10:00+00' from generate_series(1, %s)",
            (number,),
        )
        db.refresh()
        assert db.scalar(sparse) == marked
    db.compare([("now-30", None, None), ("now-1", None, None), ("2024-01-05 10:00+00", None, None)])


def test_late_changes_let_go_of_them(plain: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the six hours that they are in, for an hour at least; then they are made anew, and old rows are gone."""
    monkeypatch.setattr(marks, "REST", 3600.0)
    cuts = windows(plain, 5)
    plain.insert("2024-05-02 10:10:10+00")
    compare(plain, cuts)
    plain.refresh()
    assert plain.execute("select starts_at::text from usage.six_hours where marks is null") == [
        ("2024-05-02 06:00:00+00",)
    ]
    compare(plain, cuts)
    plain.refresh()
    assert plain.scalar(MARKED) == 11
    plain.execute("update usage.six_hours set unmarked_at = unmarked_at - interval '1 hour' where marks is null")
    plain.refresh()
    assert plain.scalar(MARKED) == 12
    assert (
        plain.scalar("select count(*) from usage.mark_fact where at not in (select unnest(marks) from usage.six_hours)")
        == 0
    )
    assert plain.scalar("select count(*) from usage.six_hours where unmarked_at is not null") == 0
    assert plain.execute("delete from public.resource_usage_log where id % 3 = 0 returning 1")
    plain.refresh()
    assert plain.execute(
        "select usage.six_hours_of(hour), sum(event_count)::int from usage.hourly_collection_fact group by 1 order by 1"
    ) == plain.execute("select starts_at, event_count::int from usage.six_hours order by 1")
    compare(plain, cuts)


def test_an_event_moves_within_its_hour(plain: Database) -> None:
    """No sum of any hour changes; what marks say does."""
    cuts = windows(plain, 6)
    assert plain.execute(
        "update public.resource_usage_log set created_at = date_trunc('hour', created_at) + interval '59 minutes'"
        " where created_at >= '2024-05-02 09:00+00' and created_at < '2024-05-02 09:20+00' returning 1"
    )
    compare(plain, cuts)
    plain.refresh()
    compare(plain, cuts)
    assert plain.verify().differences == 0


def test_uncaptured_changes_within_an_hour(plain: Database) -> None:
    """A repair finds no difference in any hour, and yet marks are not believed any more."""
    cuts = windows(plain, 6)
    move = "update public.resource_usage_log set created_at = created_at + interval '7 minutes' where created_at = '2024-05-02 09:00:30+00'"
    plain.execute("set session_replication_role = replica")
    plain.execute("alter table public.resource_usage_log disable trigger all")
    assert plain.execute(f"{move} returning 1")
    plain.execute("reset session_replication_role")
    capture.attach(plain.own, plain.settings)
    assert plain.scalar("select usage.doubt()") is not None
    compare(plain, cuts)
    assert plain.verify(repair=True).trusted
    assert plain.scalar(MARKED) == 0
    compare(plain, cuts)
    plain.refresh()
    assert plain.scalar(MARKED) == 12
    compare(plain, cuts)


def test_verification_looks_at_marks(plain: Database) -> None:
    """What is wrong in them is a difference; found, it turns trust off, and repaired, they are made anew."""
    cuts = windows(plain, 12)
    wrong = "select at from usage.mark_fact where at > '2024-05-02 09:00+00' order by at limit 1"
    plain.execute(
        f"update usage.mark_fact set total_value = total_value + 1 where at = ({wrong}) and key_id = (select min(key_id) from usage.mark_fact where at = ({wrong}))"
    )
    with pytest.raises(Mismatch):
        compare(plain, windows(plain, 1))
    found = plain.verify()
    (shown,) = found.shown
    assert (shown.rollup == "mark", int(shown.total_value), shown.event_count) == (True, -1, 0)
    assert found.differences == 1
    assert not found.trusted
    compare(plain, cuts)
    found = plain.verify(repair=True)
    assert found.trusted
    plain.refresh()
    assert plain.scalar(MARKED) == 12
    compare(plain, cuts)

    for change in (
        "update usage.mark_total set total_value = total_value + 1 where at = '2024-05-02 09:15+00' and resource_type = 'ai'",
        "delete from usage.mark_total where at = '2024-05-02 09:15+00' and resource_type is null",
        "update usage.mark_total set at = at + interval '1 second' where at = '2024-05-02 09:15+00'",
        "insert into usage.mark_total values ('2024-05-02 09:15:01+00', 'other', 1, 0, 0)",
    ):
        plain.execute(change)
        found = plain.verify()
        assert {(one.rollup, one.collection_id, one.bucket[:16]) for one in found.shown} == {
            ("mark_total", None, "2024-05-02 09:15")
        }, change
        compare(plain, cuts[::5])
        plain.verify(repair=True)
        plain.refresh()
        assert plain.scalar(MARKED) == 12
        assert plain.verify().differences == 0, change
        compare(plain, cuts[::5])

    plain.execute(
        "delete from usage.mark_fact where at = (select marks[2] from usage.six_hours where starts_at = '2024-05-02 06:00+00')"
    )
    assert {one.rollup for one in plain.verify(since="2024-05-02", until="2024-05-03").shown} == {"mark"}
    plain.verify(repair=True)
    plain.refresh()
    plain.execute(
        "insert into usage.mark_fact select marks[2], 999999, 1, 0, 0 from usage.six_hours where starts_at = '2024-05-02 06:00+00'"
    )
    plain.execute("insert into usage.key (id, resource_type, collection_key) values (999999, 'other', 999999)")
    plain.execute(
        "update usage.mark_fact set event_count = 7 where at <= '2024-05-02 03:00+00' and at > '2024-05-02 00:00+00'"
    )
    # Found by a repair of these days alone, too.
    found = plain.verify(repair=True, since="2024-05-02", until="2024-05-03")
    assert {one.rollup for one in found.shown} == {"mark"}
    assert {one.bucket[:13] for one in found.shown} >= {"2024-05-02 02", "2024-05-02 07"}
    assert plain.verify().differences == 0
    compare(plain, cuts)


def test_repaired_days_are_marked_anew(plain: Database) -> None:
    """Also by a release that knows of no marks, which leaves its record."""
    plain.execute(
        "insert into usage.verification (day_from, day_to, differences, repaired) values ('2024-05-01', '2024-05-02', 0, false)"
    )
    assert plain.scalar(MARKED) == 12
    plain.execute(
        "insert into usage.verification (day_from, day_to, differences, repaired) values ('2024-05-03', '2024-05-04', 0, true)"
    )
    assert plain.execute("select min(starts_at)::text from usage.six_hours where marks is null") == [
        ("2024-05-02 18:00:00+00",)
    ]
    plain.execute(
        "insert into usage.verification (day_from, day_to, differences, repaired) values ('-infinity', 'infinity', 0, true)"
    )
    assert plain.scalar(MARKED) == 0


def test_a_release_that_knows_of_none_by_type(plain: Database) -> None:
    """It makes marks, and they are made anew with those by type; it cannot keep these, so they are let go of with the others."""
    cuts = windows(plain, 9)
    plain.insert("2024-05-02 10:10:10+00")
    plain.refresh()
    assert plain.scalar(MARKED) == 12
    plain.execute("update usage.six_hours set marks = null, has_totals = null where starts_at = '2024-05-02 06:00+00'")
    plain.execute("update usage.six_hours set marks = '{}', halves = '{}' where starts_at = '2024-05-02 06:00+00'")
    plain.execute(
        "update usage.mark_total set event_count = 77 where at >= '2024-05-02 06:00+00' and at < '2024-05-02 12:00+00'"
    )
    compare(plain, cuts)
    plain.refresh()
    assert plain.scalar("select count(*) from usage.six_hours where has_totals and marks <> '{}'") == 12
    assert plain.verify().differences == 0
    compare(plain, cuts)


def test_many_types(plain: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nearly every event is of another type, marks by type would take more room than the events."""
    cuts = windows(plain, 15)
    rows = plain.scalar("select count(*) from usage.mark_total")
    for per_row, fewer in ((1, True), (3, False)):
        monkeypatch.setattr(marks, "PER_ROW", per_row)
        plain.execute("update usage.six_hours set marks = null, halves = null, has_totals = null")
        plain.refresh()
        assert plain.scalar("select count(*) from usage.six_hours where has_totals is null") == 0
        assert (plain.scalar("select count(*) from usage.six_hours where has_totals") > 0) is fewer
        assert (0 < plain.scalar("select count(*) from usage.mark_total") < rows) is fewer
        between = "x.at > '2024-05-02 12:00+00' and x.at < '2024-05-02 18:00+00'"
        apart, events = plain.execute(
            f"select (select count(distinct x.at) from usage.mark_total x where {between} and x.at <> usage.quarter_hour_of(x.at)),"
            f"       (select count(*) from (select created_at from public.resource_usage_log) x (at) where {between})"
        )[0]
        assert (0 < apart <= events / 4) is fewer
        compare(plain, cuts)


def test_with_a_doubt_none_is_made_nor_read(plain: Database) -> None:
    cuts = windows(plain, 10)
    plain.execute("alter table public.resource_usage_log disable trigger usage_insert")
    plain.insert("2024-05-02 10:10:10+00")
    assert not any(by_marks(plain, window) for window in cuts)
    compare(plain, cuts)
    plain.execute("update usage.six_hours set marks = null, halves = null, has_totals = null")
    assert marks.make(plain.own, plain.settings) == 0
    compare(plain, cuts)


def test_off_and_on(plain: Database) -> None:
    """Without hours there are none, nor remains; with hours filled in they come back, those of the past too."""
    cuts = windows(plain, 10)
    hourly.turn_off(plain.own)
    assert plain.execute(REMAINS) == [(0, 0, 0)]
    plain.refresh()
    compare(plain, cuts)
    hourly.turn_on(plain.own)
    plain.refresh()
    assert plain.scalar(MARKED) == 12
    compare(plain, cuts)


@pytest.mark.parametrize("zone", ["UTC", "America/St_Johns"])
def test_while_the_past_is_filled_in(new_database: Callable[..., Database], zone: str) -> None:
    """Hours begin within the day that a window cuts, and six hours behind them have marks already."""
    db = new_database(zone=zone)
    db.execute(EVENTS.replace("{source}", db.source))
    db.attach(hourly=False)
    db.refresh()
    hourly.turn_on(db.own)
    steps = 0
    while not hourly.fill(db.own, db.settings.model_copy(update={"step_events": 100}), seconds=0).done:
        marks.make(db.own, db.settings)
        if steps % 2:
            db.execute(LATE.replace("{source}", db.source) + f" offset {steps * 9} limit 9")
        compare(db, [window for window in windows(db, 31) if window[0] < "2024-05-03 23"])
        steps += 1
    assert steps > 3
    marks.make(db.own, db.settings)
    assert db.scalar(MARKED) == 12
    compare(db, windows(db, 31))


def test_detached_and_truncated(plain: Database) -> None:
    cuts = windows(plain, 10)
    plain.execute("truncate public.resource_usage_log")
    compare(plain, cuts)
    plain.refresh()
    assert plain.execute(REMAINS) == [(0, 0, 0)]
    plain.execute(EVENTS.replace("{source}", plain.source))
    plain.refresh()
    assert plain.scalar(MARKED) == 12
    compare(plain, cuts)
    plain.execute("truncate usage.hourly_collection_fact")
    assert plain.execute(REMAINS) == [(0, 0, 0)]
    assert plain.verify(repair=True).differences > 0
    plain.refresh()
    assert plain.scalar(MARKED) == 12
    compare(plain, cuts)
    capture.detach(plain.own, plain.settings)
    assert plain.execute(REMAINS) == [(0, 0, 0)]


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kathmandu"])
def test_below_a_seal(new_database: Callable[..., Database], zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No event below it is read raw, as they may be gone, also where it lies within six hours; nor are marks made of what is left."""
    monkeypatch.setattr(marks, "EVERY", 20)
    db = new_database(zone=zone)
    fill(db)
    seal.seal(db.own, db.settings, "2024-05-02")
    sealed = db.scalar("select sealed_until::text from usage.state")
    cuts: Windows = [(f"2024-05-01 {hour:02}:00+00", None, None) for hour in range(24)] + windows(db, 4)
    beyond = "select (%s::timestamptz + n * interval '7 minutes 11 seconds')::text from generate_series(1, 40) n"
    cuts += [(since, None, None) for (since,) in db.execute(beyond, (sealed,))]
    exact = [window for window in cuts if db.scalar("select exact from usage.receipt(%s, %s)", window[:2])]
    assert any(window[0] < sealed for window in exact) is (zone != "Asia/Kathmandu")
    compare(db, exact)
    rows = "select * from usage.by_collection(%s, %s)"
    expected = {window: db.execute(rows, window[:2]) for window in exact}
    assert any(by_marks(db, window) for window in exact)
    db.execute("delete from public.resource_usage_log where created_at < %s", (sealed,))
    assert db.scalar("select usage.doubt()") is None
    assert db.verify().differences == 0
    for window in exact:
        assert db.execute(rows, window[:2]) == expected[window], window
    db.execute("update usage.six_hours set marks = null, halves = null, has_totals = null")
    made = marks.make(db.own, db.settings)
    assert 0 < made == db.scalar("select count(marks) from usage.six_hours where starts_at >= %s", (sealed,))
    assert marks.make(db.own, db.settings) == 0
    for window in exact:
        assert db.execute(rows, window[:2]) == expected[window], window


def test_partitions(new_database: Callable[..., Database]) -> None:
    """Of a partitioned source too, whose windows are planned one by one."""
    db = new_database(source_table="public.parted")
    db.execute(
        "create table public.parted (like public.resource_usage_log including identity) partition by range (created_at)"
    )
    for name, since, until in (
        ("early", "minvalue", "'2024-05-02 09:00+00'"),
        ("late", "'2024-05-02 09:00+00'", "maxvalue"),
    ):
        db.execute(f"create table public.{name} partition of public.parted for values from ({since}) to ({until})")
    db.execute("create index on public.parted (created_at)")
    fill(db)
    assert db.scalar(MARKED) == 12
    cuts = windows(db, 12)
    compare(db, cuts)
    db.execute(LATE.replace("{source}", db.source))
    compare(db, cuts)
    db.refresh()
    compare(db, cuts)
    # Another one in its place, with the same events elsewhere in their hours.
    db.execute("alter table public.parted detach partition public.early")
    compare(db, cuts)
    db.execute("update public.early set created_at = date_trunc('hour', created_at) + interval '25 minutes 1 second'")
    db.execute(
        "alter table public.parted attach partition public.early for values from (minvalue) to ('2024-05-02 09:00+00')"
    )
    compare(db, cuts)
    db.refresh()
    compare(db, cuts)
    db.verify(repair=True)
    compare(db, cuts)
    db.refresh()
    compare(db, cuts)
    assert db.scalar(MARKED) == 12


@pytest.mark.parametrize("frontier", ["11:00", "11:12"])
def test_the_frontier_is_put_back(db: Database, frontier: str) -> None:
    """Into six hours whose marks stay, as none of their events lies beyond: what comes there is read raw."""
    db.attach(hourly=True)
    db.execute(
        "insert into public.resource_usage_log (created_at)"
        " select timestamptz '2024-05-02 06:00+00' + n * interval '7 minutes' from generate_series(0, 31) n"
    )
    db.refresh()
    db.execute("update usage.state set frontier = %s", (f"2024-05-02 {frontier}+00",))
    # The sequence too: what comes from there on is no late change, which would count as well as its event.
    db.execute("select setval('usage.frontier_seq', (extract(epoch from frontier) * 1000000)::bigint) from usage.state")
    assert db.scalar(MARKED) == 1
    cuts: Windows = [
        (f"2024-05-02 {since}+00", until and f"2024-05-02 {until}+00", None)
        for since in ("06:10:30", "08:00", "09:40", "10:55", "11:20", "11:40")
        for until in ("11:09", "11:55", None)
        if until is None or since < until
    ]
    for at in ("09:30", "11:05", "11:13", "11:30", "11:50"):
        db.insert(f"2024-05-02 {at}+00")
        compare(db, cuts)
    db.refresh()
    compare(db, cuts)
    assert db.verify().differences == 0


def test_stopped_between_two(plain: Database) -> None:
    plain.execute("update usage.six_hours set marks = null, halves = null, has_totals = null")
    calls = iter(range(100))

    def check() -> None:
        if next(calls) == 6:
            raise Stopped

    with pytest.raises(Stopped):
        marks.make(plain.own, plain.settings, check=check)
    assert 0 < plain.scalar(MARKED) < 12
    cuts = windows(plain, 10)
    compare(plain, cuts)
    assert marks.make(plain.own, plain.settings, seconds=0) == 1
    assert marks.make(plain.own, plain.settings) > 0
    assert plain.scalar(MARKED) == 12
    compare(plain, cuts)


def test_lookback_has_none(new_database: Callable[..., Database]) -> None:
    """What changes unseen may change within an hour."""
    db = new_database(capture="lookback", lookback="3d")
    db.execute(EVENTS.replace("{source}", db.source))
    db.attach(hourly=True)
    db.refresh()
    assert db.scalar("select count(*) from usage.six_hours") > 0
    assert db.scalar(MARKED) == 0


def test_many_keys_or_events(plain: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nearly every event is another key's, marks would take more room than the events; and none is too long a transaction."""
    cuts = windows(plain, 10)
    rows = plain.scalar("select count(*) from usage.mark_fact")
    for per_row, fewer in ((2, True), (1000, False)):
        monkeypatch.setattr(marks, "PER_ROW", per_row)
        plain.execute("update usage.six_hours set marks = null, halves = null, has_totals = null")
        plain.refresh()
        assert plain.scalar(MARKED) == 12
        assert (plain.scalar("select count(*) from usage.six_hours where marks = '{}'") < 12) is fewer
        assert (0 < plain.scalar("select count(*) from usage.mark_fact") < rows) is fewer
        compare(plain, cuts)
        assert any(by_marks(plain, window) for window in cuts) is fewer
    assert plain.verify().differences == 0

    most = plain.scalar("select max(event_count) from usage.six_hours")
    monkeypatch.setattr(marks, "MOST", 1)
    plain.execute("update usage.six_hours set marks = null, halves = null, has_totals = null")
    assert marks.make(plain.own, plain.settings.model_copy(update={"step_events": most - 1})) < 12
    assert plain.execute("select min(event_count) from usage.six_hours where marks is null") == [(most,)]
    compare(plain, cuts)
