"""The plans of the reads, as auto_explain sees them inside our functions: an EXPLAIN of the call shows only a Result."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import psycopg
import pytest

from aggregator import hourly, sample
from tests.harness import Database
from tests.plans.explain import Node, nodes_done, nodes_of, plans_of

READS = (
    "select * from usage.by_collection({window})",
    "select * from usage.ai_drilldown({window})",
    "select * from usage.daily_series({window})",
    "select usage.overview({window})",
)

TAIL = 500

_numbers = itertools.count()


class Window(NamedTuple):
    """[since, until) in SQL, and whether one collection is asked for."""

    since: str
    until: str | None = None
    one_collection: bool = False


WINDOWS = [
    Window(f"now() - interval '{days} days'", until, one_collection)
    for days in (30, 365)
    for until in (None, "now() - interval '75 hours'")
    for one_collection in (False, True)
]


@pytest.fixture(scope="module")
def filled(server: str, template: str) -> Iterator[str]:
    """A database with a year of events, refreshed, and then a tail: to be copied for each test."""
    name = f"aggregator_plans_{os.getpid()}"
    with psycopg.connect(f"{server} dbname=postgres", autocommit=True) as admin:
        admin.execute(f"create database {name} template {template}".encode())
        database = Database(server, name, "UTC", {})
        try:
            database.execute("drop table public.resource_usage_log, public.nodes")
            sample.create_sample(database.own, events=50_000, days=365, collections=50, until=None)
            database.attach()
            database.refresh()
            database.execute(
                "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
                " select collection_id, resource_type, detail, clock_timestamp()"
                f" from public.resource_usage_log order by id desc limit {TAIL}"
            )
            database.execute("vacuum analyze")
        finally:
            database.close()
        yield name
        admin.execute(f"drop database if exists {name} with (force)".encode())


@pytest.fixture
def history(server: str, filled: str) -> Iterator[Database]:
    """A copy of that database, for one test."""
    name = f"{filled}_{next(_numbers)}"
    with psycopg.connect(f"{server} dbname=postgres", autocommit=True) as admin:
        admin.execute(f"create database {name} template {filled}".encode())
        database = Database(server, name, "UTC", {})
        yield database
        database.close()
        admin.execute(f"drop database if exists {name} with (force)".encode())


def _collection(db: Database) -> str:
    """Return a collection of middling size."""
    return str(
        db.scalar(
            "select collection_id::text from usage.monthly_collection where collection_id is not null"
            " group by 1 order by sum(event_count) desc offset 10 limit 1"
        )
    )


def _check(db: Database, read: str, window: Window) -> None:
    """Assert that the source is reached through its index on created_at, within bounds, and by nothing else."""
    arguments = [window.since, window.until or "null", f"'{_collection(db)}'" if window.one_collection else "null"]
    plans = plans_of(db, read.format(window=", ".join(arguments)))
    nodes = [node for plan in plans for node in nodes_of(plan)]
    called = {node.get("Function Name", "several") for node in nodes if node["Node Type"] == "Function Scan"}
    planned_once = called & {"planned_by_collection", "planned_daily_series"} != set()
    assert planned_once or "window_rows" in called, f"{read}: no plans of the functions inside were seen: {called}"
    assert planned_once == (read in (READS[0], READS[2]) and not window.one_collection), f"{read}: {called}"
    assert not called & {"event", "event_between", "collection"}, f"{read}: not inlined: {called}"

    source_scans = [node for node in nodes if node.get("Relation Name") == "resource_usage_log"]
    assert source_scans, f"{read}: the tail must be read from the source"
    for node in source_scans:
        assert node["Node Type"] in {"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}, _text(node)
    conditions = [node.get("Index Cond", "") for node in nodes if "resource_usage_log" in node.get("Index Name", "")]
    assert len(conditions) == len(source_scans), "every scan of the source is one of its index"
    for condition in conditions:
        assert "created_at >= " in condition, condition
    open_ended = [condition for condition in conditions if "created_at < " not in condition]
    # A plan for all windows has an open tail for those that have one.
    most = 1 if window.until is None or planned_once else 0
    assert len(open_ended) <= most, f"{read}: scans without an upper bound: {open_ended}"

    if window.one_collection:
        for node in nodes:
            if node.get("Relation Name") in {"daily", "daily_collection"}:
                assert node["Node Type"] != "Seq Scan", _text(node)


def _text(node: Node) -> str:
    return json.dumps({key: value for key, value in node.items() if key != "Plans"})


def test_the_source_is_read_by_its_index_within_bounds(history: Database) -> None:
    """Whatever is asked, the source is read by ranges of created_at, and days of one collection by an index."""
    closed = [window for window in WINDOWS if window.until is not None]
    for read in READS:
        for window in WINDOWS:
            if window not in closed:
                _check(history, read, window)
    # A closed window has two raw edges and no tail.
    for read in READS:
        for window in closed:
            _check(history, read, window)


def test_at_most_half_a_day_at_each_end_and_the_tail_are_read_raw(history: Database) -> None:
    """The receipt's raw rows are no more than the shorter part of each cut day, and the tail."""
    edge = """
        (select count(*) from public.resource_usage_log e,
                (select {at} as at, date_trunc('day', {at}, 'UTC') as first_at) cut
          where e.created_at < (select frontier from usage.state)
            and case when cut.at - cut.first_at < interval '12 hours'
                     then e.created_at >= cut.first_at and e.created_at < cut.at
                     else e.created_at >= cut.at and e.created_at < cut.first_at + interval '1 day' end)"""
    for window in WINDOWS:
        if window.one_collection:
            continue
        allowed = edge.format(at=window.since)
        if window.until is None:
            allowed += "+ (select count(*) from public.resource_usage_log where created_at >= (select frontier from usage.state))"
        else:
            allowed += "+" + edge.format(at=window.until)
        most, raw, exact, rollup = history.execute(
            f"select {allowed}, r.raw_rows, r.exact, r.rollup_rows"
            f" from usage.receipt({window.since}, {window.until or 'null'}) r"
        )[0]
        assert exact
        assert rollup > 0
        assert raw <= most, f"{window}: {raw} raw rows, at most {most} expected"
        assert most < 2 * TAIL, "or this test says nothing"


def test_at_most_half_an_hour_at_each_end_and_the_tail_are_read_raw_with_hours(history: Database) -> None:
    """So with the hourly rollup: the shorter part of each cut hour; and by the index still."""
    hourly.turn_on(history.own)
    assert hourly.fill(history.own, history.settings).done
    history.execute("vacuum analyze")
    edge = """
        (select count(*) from public.resource_usage_log e,
                (select {at} as at, date_trunc('hour', {at}, 'UTC') as first_at) cut
          where e.created_at < (select frontier from usage.state)
            and case when cut.at - cut.first_at < interval '30 minutes'
                     then e.created_at >= cut.first_at and e.created_at < cut.at
                     else e.created_at >= cut.at and e.created_at < cut.first_at + interval '1 hour' end)"""
    for minutes in (3, 17, 29, 45, 59):
        for days, until_days in ((30, None), (365, None), (30, 3), (3, 2.8), (0.3, 0.2)):
            at = f"date_trunc('hour', now(), 'UTC') - interval '{days * 24} hours {minutes} minutes'"
            until = None if until_days is None else f"now() - interval '{until_days * 24} hours'"
            allowed = edge.format(at=at)
            if until is None:
                allowed += "+ (select count(*) from public.resource_usage_log where created_at >= (select frontier from usage.state))"
            else:
                allowed += "+" + edge.format(at=until)
            most, raw, exact = history.execute(
                f"select {allowed}, r.raw_rows, r.exact from usage.receipt({at}, {until or 'null'}) r"
            )[0]
            assert exact
            assert raw <= most, f"{at} {until}: {raw} raw rows, at most {most} expected"
    for read in READS:
        for window in WINDOWS[:2]:
            _check(history, read, window)
    plans = plans_of(
        history, "select * from usage.daily_series(now() - interval '100 days', null, null, 'Asia/Kolkata')"
    )
    nodes = [node for plan in plans for node in nodes_of(plan)]
    assert not [
        node for node in nodes if node.get("Relation Name") == "resource_usage_log" and node["Node Type"] == "Seq Scan"
    ]


def _times_grouped(db: Database, read: str) -> int:
    """Return how many aggregates, one after the other, the raw events of a read pass through."""
    depths: list[int] = []

    def visit(node: Node, aggregates: int) -> None:
        aggregates += node["Node Type"] == "Aggregate"
        if node.get("Relation Name") == "resource_usage_log":
            depths.append(aggregates)
        for child in node.get("Plans", []):
            visit(child, aggregates)

    for plan in plans_of(db, read):
        visit(plan, 0)
    assert depths, f"{read}: no raw events are read"
    return max(depths)


def test_a_read_of_one_section_groups_raw_events_once(history: Database) -> None:
    """Together with what it takes from the rollups, not before too."""
    window = WINDOWS[0].since
    for read in READS[:3]:
        assert _times_grouped(history, read.format(window=f"{window}, null")) == 1, read
    definition = str(
        history.scalar(
            "select pg_get_functiondef('usage.window_rows(timestamptz, timestamptz, uuid, boolean, boolean, boolean, boolean)'::regprocedure)"
        )
    )
    assert "once     constant boolean := not receipt and" in definition
    history.execute(definition.replace("boolean := not receipt and", "boolean := false and"))
    assert _times_grouped(history, READS[1].format(window=f"{window}, null")) == 2


def _sorted_groups(db: Database, read: str) -> int:
    """Return how many aggregates of a read sort what they group, where the planner thinks that hash tables do not fit."""
    plans = [list(nodes_of(plan)) for plan in plans_of(db, f"set work_mem = '64kB'; {read}")]
    plans = [nodes for nodes in plans if any(node.get("Relation Name") == "resource_usage_log" for node in nodes)]
    assert plans, f"{read}: no raw events are read"
    return sum(node.get("Strategy") == "Sorted" for nodes in plans for node in nodes)


def test_keys_are_hashed_and_never_sorted(history: Database) -> None:
    """Comparing them costs more than all else: half again as much for the edge of a dense day, wherever the planner prefers it."""
    reads = [read.format(window=f"{WINDOWS[0].since}, null") for read in READS]
    assert [_sorted_groups(history, read) for read in reads] == [0] * len(READS)
    history.execute(
        "alter function usage.window_rows(timestamptz, timestamptz, uuid, boolean, boolean, boolean, boolean) reset enable_sort"
    )
    assert any(_sorted_groups(history, read) for read in reads)


def test_a_year_is_read_from_quarters(history: Database) -> None:
    """And from the two months at most before the first one, so from far fewer rows than twelve months have."""
    read = "select * from usage.by_collection(now() - interval '365 days')"

    def rows(relation: str) -> int:
        return sum(node["Actual Rows"] for node in nodes_done(history, read) if node.get("Relation Name") == relation)

    quarters, months = rows("quarterly_collection_fact"), rows("monthly_collection_fact")
    assert quarters > 0
    history.execute("update usage.state set has_quarters = false")
    assert rows("quarterly_collection_fact") == 0
    assert rows("monthly_collection_fact") > 1.4 * (quarters + months)


def test_a_read_works_out_its_window_without_reading_events(history: Database) -> None:
    """Finding the parts of a window touches usage.state, catalogs, metrics and the late changes of partitions that are gone."""
    plans = plans_of(history, "select usage.window_parts(now() - interval '30 days', null)")
    relations = {node["Relation Name"] for plan in plans for node in nodes_of(plan) if "Relation Name" in node}
    assert relations
    assert relations <= {"state", "truncate_marker", "frontier_seq", "late_change", "metric", "metric_history"} | {
        name for name in relations if name.startswith("pg_")
    }


PER_ROW = {
    "usage.local_day(e.created_at, 'Europe/Oslo')",
    "usage.month_of(e.created_at::date)",
    "usage.key_text(e.resource_type)",
    "usage.parsed_number(e.detail)",
    "usage.in_bounds(e.id::numeric)",
    "usage.is_rejected(e.detail, e.id::numeric)",
    "usage.signed(e.id::integer, e.id::numeric)",
    "usage.hour_of(e.created_at)",
}
"""The SQL functions that are called for each row; a call costs 2 µs, and nothing once the planner has inlined it."""


def _is_inlined(db: Database, call: str) -> bool:
    plan = db.execute(f"explain (verbose, format json) select {call} from public.resource_usage_log e")
    return call.partition("(")[0] not in json.dumps(plan)


@pytest.mark.parametrize("call", sorted(PER_ROW))
def test_what_is_called_for_each_row_is_inlined(history: Database, call: str) -> None:
    """None of them holds an expression that is less immutable than it says; the check sees one that does."""
    assert _is_inlined(history, call)
    name = call.partition("(")[0]
    definition = history.scalar("select pg_get_functiondef(%s::regproc)", (name,))
    history.execute(definition.replace("IMMUTABLE", "VOLATILE STRICT"))
    assert not _is_inlined(history, call)


def _statements(db: Database, read: str) -> int:
    """Return how many statements a read runs for the window that cuts most; those of functions in SQL are some, if they are not inlined."""
    return len(plans_of(db, read.format(window=f"{_NOON}, null")))


def test_no_function_is_called_for_each_event(history: Database) -> None:
    """As an argument that is an expression would make of one that uses it twice; the check sees one."""
    for read in READS[:3]:
        assert _statements(history, read) < 60, read
    definition = str(
        history.scalar("select pg_get_functiondef(oid) from pg_proc where proname = 'planned_daily_series'")
    )
    old = "e.sign::bigint, e.value"
    assert definition.count(old) == 8
    history.execute(definition.replace(old, "e.sign::bigint, usage.signed(e.sign, e.value)"))
    assert _statements(history, READS[2]) > 120


def _drop_index(db: Database) -> None:
    db.execute("drop index public.resource_usage_log_created_at")


_EVENT = (
    "create or replace function usage.event()"
    " returns table (created_at timestamptz, collection_id uuid, resource_type text, detail jsonb) "
)
_SELECT = "select e.created_at, e.collection_id, e.resource_type, e.detail from public.resource_usage_log e"


def _fence(db: Database) -> None:
    """No bound gets past an OFFSET 0."""
    db.execute(f"{_EVENT} language sql stable as $$ {_SELECT} offset 0 $$")


def _opaque(db: Database) -> None:
    """A plpgsql function is not inlined."""
    db.execute(f"{_EVENT} language plpgsql stable as $$ begin return query {_SELECT}; end $$")


def _not_inlinable(db: Database) -> None:
    """A SQL function with a SET clause is not inlined."""
    db.execute(f"{_EVENT} language sql stable set search_path = pg_catalog, pg_temp as $$ {_SELECT} $$")


@pytest.mark.parametrize("break_it", [_drop_index, _fence, _opaque, _not_inlinable])
def test_the_check_sees_a_broken_plan(history: Database, break_it: Callable[[Database], None]) -> None:
    """Mutations: without the index, or with the bounds hidden from the planner, the check fails for every read."""
    for read in READS:
        _check(history, read, Window("now() - interval '30 days'"))
    break_it(history)
    for read in READS:
        with pytest.raises(AssertionError):
            _check(history, read, Window("now() - interval '30 days'"))


_NOON = "date_trunc('day', now(), 'UTC') - interval '29 days 12 hours'"
"""When as much of a day is cut as can be, at whatever time a test runs."""


def _check_collection(db: Database) -> None:
    collection = _collection(db)
    for read in READS[2:]:  # those that are planned one by one
        plans = plans_of(db, read.format(window=f"{_NOON}, null, '{collection}'"))
        nodes = [node for plan in plans for node in nodes_of(plan)]
        scans = [node for node in nodes if node.get("Relation Name") == "resource_usage_log"]
        assert all(collection in json.dumps(scan) for scan in scans), f"{read}: {scans}"
        assert "of_collections" in {node.get("Index Name") for node in nodes}, f"{read}: {scans}"


def test_an_index_of_collections_serves_the_edges_of_one(history: Database) -> None:
    """Where the host has one, a read of one collection fetches the raw events of no other; the check sees it if not."""
    history.days_only()
    # Enough events in what the window cuts that the planner need not think twice.
    history.execute(
        "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
        " select collection_id, resource_type, detail, at from (select * from public.resource_usage_log order by id desc limit 20000) e,"
        f" (values ({_NOON} - interval '1 minute'), ({_NOON} + interval '1 minute')) side (at)"
    )
    history.refresh()
    history.execute("create index of_collections on public.resource_usage_log (collection_id, created_at)")
    history.execute("vacuum analyze public.resource_usage_log")
    _check_collection(history)
    text = history.scalar("select pg_get_functiondef(oid) from pg_proc where proname = 'signed_events_sql'")
    assert text.count("format(of_one, 'e')") == 1
    history.execute(text.replace("format(of_one, 'e')", "''"))
    with pytest.raises(AssertionError):
        _check_collection(history)


def _check_lookups(db: Database, read: str, window: Window) -> None:
    """Assert that one collection's rows and events are looked up by index, whatever the statistics were when it was planned."""
    arguments = [window.since, window.until or "null", f"'{_collection(db)}'"]
    query = read.format(window=", ".join(arguments))
    called = {node.get("Function Name") for node in nodes_done(db, query) if node["Node Type"] == "Function Scan"}
    assert "planned_rows" in called and "window_rows" not in called, f"{read}: {called}"
    nodes = [node for plan in plans_of(db, query) for node in nodes_of(plan)]
    conditions: dict[str, list[str]] = {}
    for node in nodes:
        if node.get("Relation Name") in {"resource_usage_log", "key"}:
            assert node["Node Type"] != "Seq Scan", _text(node)
        if "Index Name" in node:
            conditions.setdefault(node["Index Name"], []).append(node["Index Cond"])
    # By which index is for the planner to say: one collection of a few may lie anywhere among those of a day.
    of_events = [text for index in ("of_collections", "resource_usage_log_created_at") for text in conditions.get(index, [])]  # fmt: skip
    assert len(of_events) == 2, conditions  # edges and a closed tail; an open one
    assert all("created_at >= " in text for text in of_events), conditions
    assert sum("created_at < " in text for text in of_events) == 1, conditions
    of_rollups = [text for index, texts in conditions.items() if "fact" in index for text in texts]
    assert len(of_rollups) == 3, conditions  # months, days and hours
    assert all(" = b" in text for text in of_rollups), conditions
    assert any("id = " in text and ".key_id" in text for text in conditions["key_pkey"]), conditions


def test_one_collection_is_looked_up_in_a_plan_for_all_windows(history: Database) -> None:
    """With the index for it, also where the host has others that look good; the check sees it if not."""
    history.execute("create index of_collections on public.resource_usage_log (collection_id, created_at)")
    history.execute("create index on public.resource_usage_log (collection_id)")
    history.execute("vacuum analyze public.resource_usage_log")
    windows = [window for window in WINDOWS if window.one_collection]
    for read in READS[:2]:
        for window in windows:
            _check_lookups(history, read, window)
    text = history.scalar("select pg_get_functiondef(oid) from pg_proc where proname = 'planned_rows'")
    for old, new in (
        (" and e.created_at >= c.from_at", " and e.created_at + interval '0' >= c.from_at"),
        ("x.day = b.day and", "x.day + 0 = b.day and"),
        ("x.id = y.key_id", "x.id + 0 = y.key_id"),
    ):
        assert old in text
        history.execute(text.replace(old, new))
        with pytest.raises(AssertionError):
            _check_lookups(history, READS[0], windows[0])


def test_a_daily_series_by_hours_reads_no_collections(history: Database) -> None:
    """Days, hours and marks by type, and some events, by their index; of another zone too. Without marks an hour is cut raw."""
    history.execute(
        "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
        f" select collection_id, resource_type, detail, {_NOON} + id % 3600 * interval '1 second'"
        "   from (select * from public.resource_usage_log order by id desc limit 20000) e"
    )
    hourly.turn_on(history.own)
    history.refresh()
    assert history.execute(f"select has_totals from usage.six_hours where starts_at = {_NOON}") == [(True,)]
    history.execute("vacuum analyze")
    window = f"{_NOON} + interval '31 minutes 7 seconds', now() - interval '1 day'"

    def rows(read: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for node in nodes_done(history, read):
            name = node.get("Relation Name", "")
            if name.startswith(("hourly", "mark")) or name == "resource_usage_log":
                # A plan may be made while there are few marks.
                assert name == "mark_total" or "Seq" not in node["Node Type"], _text(node)
                found[name] = found.get(name, 0) + node["Actual Rows"] * node.get("Actual Loops", 1)
        return found

    for read, most in (
        (f"select * from usage.daily_series({window})", 400),
        (f"select * from usage.window_rows({window}, null, false, false, true, false)", 400),
        (f"select * from usage.totals({window}, '{{resource_type}}')", 800),  # and the window before
        (f"select * from usage.daily_series({window}, null, 'Asia/Kolkata')", 400),
    ):
        found = rows(read)
        assert found.get("hourly_collection_fact", 0) <= 2, read  # the first and the last
        assert found["hourly_total"] > 0, read
        assert found["mark_total"] > 0, read
        assert found.get("resource_usage_log", 0) <= most, read
    history.execute("update usage.six_hours set has_totals = null")
    assert rows(f"select * from usage.daily_series({window})")["resource_usage_log"] > 5000
