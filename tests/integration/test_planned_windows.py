"""Windows of all collections, by collection or by day: read by a statement that is planned once, where the source lets them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from aggregator import hourly, metrics, seal
from tests.harness import HOURLY, Database
from tests.integration.test_one_collection import ENDS, WINDOWS, Window, fill, used

ALL: list[Window] = [(since, until, None) for since, until, _ in WINDOWS]

FEW: list[Window] = ALL[:: len(ENDS)]

INDEX = "resource_usage_log_created_at_idx"


def _is_planned_once(db: Database, window: Window) -> bool:
    found = used(db, window)
    assert found.pop("ai_drilldown") == {"window_rows"}
    planned = {"by_collection": {"planned_by_collection"}, "daily_series": {"planned_daily_series"}}
    assert found in (planned, {key: {"window_rows"} for key in planned})
    return found == planned


@pytest.mark.parametrize("malformed", [False, True])
@pytest.mark.parametrize(("zone", "hours"), [("UTC", False), ("America/New_York", True), ("Asia/Kathmandu", True)])
def test_every_cut_of_a_window(new_database: Callable[..., Database], zone: str, hours: bool, malformed: bool) -> None:
    """Of quarters, months, days and hours, from either side, with late changes in all of them, and numbers that are none."""
    db = new_database(zone=zone)
    db.attach()
    fill(db)
    if malformed:
        db.execute(
            "update public.resource_usage_log set detail = jsonb_set(detail, '{tokens_in}',"
            " case when id % 2 = 0 then '\"many\"' else '1e19' end::jsonb) where id % 29 = 0"
        )
    if hours:
        hourly.turn_on(db.own)
        assert hourly.fill(db.own, db.settings).done
    elif HOURLY:
        db.days_only()
    assert db.scalar("select count(*) from usage.late_change") > 100
    db.compare(ALL, live=False)
    assert all(_is_planned_once(db, window) for window in FEW)
    db.refresh()
    db.compare(ALL, live=False)


def test_what_is_taken_off_leaves_nothing_behind(db: Database) -> None:
    """Of a month less its first days, or half a day less its first hours, a type that has events in those alone."""
    db.attach(hourly=False)
    for at, resource_type in (("02 10:00", "cas"), ("03 04:00", "whisper"), ("14 10:00", "tts")):
        db.insert(f"2024-05-{at}+00", resource_type)
    db.refresh()
    for since, until in (
        ("05-03 00:00", "06-10 00:00"),
        ("05-03 05:00", "06-10 00:00"),
        ("05-04 00:00", "05-14 09:00"),
    ):
        window = (f"2024-{since}+00", f"2024-{until}+00", None)
        db.compare([window], live=False)
        assert _is_planned_once(db, window)


def test_a_plan_that_is_kept_sees_what_changes(db: Database) -> None:
    """In one session, whose statement is planned by then: new events, a refresh, new keys and titles, another snapshot."""
    windows = [("now-30", None, None), ("now-30", "now-3", None), ("-infinity", None, None)]
    for number in range(8):
        for days in (0, 5, 10):
            db.execute(
                "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
                " select md5(n::text)::uuid, 'type ' || n %% 3, '{}', now() - make_interval(days => %s)"
                " from generate_series(1, %s) n",
                (days, number + 1),
            )
            db.compare(windows, live=False)
        db.execute("insert into public.nodes (id, title) values (md5(%s)::uuid, 'of ' || %s)", (str(number), number))
        db.compare(windows, live=False)
        db.refresh()
        db.compare(windows, live=False)


def test_where_it_would_not_do(db: Database) -> None:
    """Without the index, over several machines, or with metrics of two definitions, each window is planned by itself."""
    fill(db)
    db.refresh()
    assert all(_is_planned_once(db, window) for window in FEW)
    db.execute(f"drop index public.{INDEX}")
    assert not any(_is_planned_once(db, window) for window in FEW)
    db.compare(FEW, live=False)
    for definition in (
        "(resource_type, created_at)", "(created_at) where resource_type = 'ai'", "using brin (created_at)",
        "(date(created_at at time zone 'UTC'))",
    ):  # fmt: skip
        db.execute(f"create index another on public.resource_usage_log {definition}")
        assert not _is_planned_once(db, FEW[0]), definition
        db.execute("drop index public.another")
    db.execute("create index another on public.resource_usage_log (created_at, id)")
    assert _is_planned_once(db, FEW[0])

    # As Citus's tables are, which the functions of this one reach as well.
    db.execute("update usage.state set distributed = true")
    assert not _is_planned_once(db, FEW[0])
    db.execute("update usage.state set distributed = false")

    seal.seal(db.own, db.settings, "2024-03-01")
    assert _is_planned_once(db, FEW[0])
    metrics.set_metric(db.own, metrics.Metric("ai", value_key="tokens_out"))
    assert not _is_planned_once(db, FEW[0])


def _expected(db: Database, since: str, until: str | None = None) -> float:
    bound = "null" if until is None else f"'{until}'"
    return float(db.scalar(f"select usage.expected_events(usage.window_parts('{since}', {bound}))"))


def test_many_raw_events_are_worth_a_plan_of_their_own(db: Database) -> None:
    """Workers may share them: counted as if each day had as many as the week, for as long as what is read raw is."""
    if HOURLY:
        db.days_only()
    assert math.isinf(_expected(db, "-infinity"))
    assert not _is_planned_once(db, ("-infinity", None, None))  # never refreshed: all there is is raw
    midnight = "(date_trunc('day', now(), 'UTC') - interval '1 hour' * {})"
    db.execute(
        "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
        f" select null, 'ai', '{{}}', {midnight.format('6 * n')} from generate_series(1, 60) n"
    )
    db.refresh()
    week, before, noon, last, tomorrow = (
        str(db.scalar(f"select {midnight.format(hours)}::text")) for hours in (168, 60, 36, 24, -24)
    )
    assert _expected(db, week, last) == 0
    assert _expected(db, tomorrow) == 0
    assert 12 <= _expected(db, noon) < 12.1  # half a day, and what the refresh has left
    assert _expected(db, noon, "infinity") == pytest.approx(_expected(db, noon), abs=0.1)
    assert _expected(db, before, noon) == 24
    for factor, planned in ((40_000, True), (50_000, False)):  # 480,000, and 600,000
        db.execute(f"update usage.daily_total set event_count = 4 * {factor}")
        assert _is_planned_once(db, (noon, None, None)) == planned
    assert _is_planned_once(db, (week, last, None))
