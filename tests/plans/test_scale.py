"""Plans where there is much: hundreds of partitions, thousands of keys, thousands of tables beside the source."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest

from aggregator import marks, refresh
from tests.harness import Database
from tests.plans.explain import Node, nodes_of, plans_of, record
from tests.plans.test_plans import READS

PAST, FUTURE = 396, 4
"""Daily partitions: 400 in all."""

PARTITIONS = f"""
drop table public.resource_usage_log;
create table public.resource_usage_log (
    id bigint generated always as identity, collection_id uuid, resource_type text, detail jsonb, created_at timestamptz not null
) partition by range (created_at);
do $$ begin
    for n in -{PAST} .. {FUTURE - 1} loop
        execute format('create table public.log_%s partition of public.resource_usage_log for values from (%L) to (%L)',
                       to_char(date_trunc('day', now(), 'UTC') + make_interval(days => n), 'YYYYMMDD'),
                       date_trunc('day', now(), 'UTC') + make_interval(days => n),
                       date_trunc('day', now(), 'UTC') + make_interval(days => n + 1));
    end loop;
end $$;
create index on public.resource_usage_log (created_at);
insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)
select ('00000000-0000-0000-0000-00000000000' || n % 6)::uuid, (array['ai', 'whisper', 'tts', 'cas'])[1 + n % 4],
       jsonb_build_object('tokens_in', n, 'characters', n, 'job_type', 'job ' || n % 3), now() - n * interval '28 minutes'
  from generate_series(1, 20000) n;
"""


@pytest.fixture(scope="module")
def partitions(server: str, template: str) -> Iterator[Database]:
    """A source of 400 partitions, refreshed, and a few events since."""
    name = f"aggregator_partitions_{os.getpid()}"
    with psycopg.connect(f"{server} dbname=postgres", autocommit=True) as admin:
        admin.execute(f"create database {name} template {template}".encode())
        db = Database(server, name, "UTC", {})
        try:
            db.execute("set timezone = 'UTC'")
            for statement in PARTITIONS.split(";\n"):
                if statement.strip().startswith("do $$"):
                    break
                db.execute(statement)
            start = PARTITIONS.index("do $$")
            end = PARTITIONS.index("end $$;") + len("end $$;")
            db.execute(PARTITIONS[start:end])
            db.execute(PARTITIONS[end:])
            db.attach()
            db.refresh()
            db.execute(
                "insert into public.resource_usage_log (resource_type, created_at) values ('ai', clock_timestamp())"
            )
            db.execute("analyze")
            yield db
        finally:
            db.close()
            admin.execute(f"drop database if exists {name} with (force)".encode())


def _day(ago: int) -> str:
    return f"log_{datetime.now(timezone.utc) - timedelta(days=ago):%Y%m%d}"


@pytest.mark.parametrize(("since", "until"), [(30, None), (365, None), (100, 41)])
def test_reads_plan_the_partitions_of_their_edges_only(partitions: Database, since: int, until: int | None) -> None:
    """Bounds are in the statement's text, so the others of 400 partitions are not planned, let alone read."""
    edges = {_day(since), _day(since + 1)} | ({_day(until), _day(until + 1)} if until is not None else set())
    if until is None:  # the tail, at midnight too
        edges |= {_day(ago) for ago in range(1, -FUTURE, -1)}
    for read in READS:
        upper = f"now() - interval '{until} days'" if until is not None else "null"
        plans = plans_of(partitions, read.format(window=f"now() - interval '{since} days', {upper}"))
        nodes = [node for plan in plans for node in nodes_of(plan)]
        assert "window_rows" in {node.get("Function Name") for node in nodes}
        read_from = {node["Relation Name"] for node in nodes if node.get("Relation Name", "").startswith("log_")}
        assert read_from, "the edges are read raw"
        assert read_from <= edges, f"{read}: partitions beside the edges: {sorted(read_from - edges)}"
        assert not [node for node in nodes if node.get("Subplans Removed")], "pruned when run: all of them were planned"
    partitions.compare([(f"now-{since}", None if until is None else f"now-{until}", None)])


def test_a_step_of_a_refresh_plans_its_own_partitions_only(partitions: Database) -> None:
    """So it is with a refresh."""
    plans: list[tuple[str, Node]] = []
    end = record(partitions.own, plans)
    try:
        refresh.refresh(partitions.own, partitions.settings)
    finally:
        end()
    folded = [plan for query, plan in plans if 'create temporary table "daily_delta"' in query]
    assert folded
    names = {node["Relation Name"] for plan in folded for node in nodes_of(plan) if "Relation Name" in node}
    assert names
    assert names - {"key"} <= {_day(ago) for ago in range(1, -FUTURE, -1)}


def _looks_through_catalogs(db: Database) -> list[str]:
    """Return the scans of usage.doubt() that go through all of the database's relations or triggers."""
    nodes = [node for plan in plans_of(db, "select usage.doubt()") for node in nodes_of(plan)]
    scans = [node for node in nodes if node.get("Relation Name") in {"pg_class", "pg_trigger", "pg_attribute"}]
    assert {node["Relation Name"] for node in scans} >= {"pg_class"}
    conditions = [
        (node["Relation Name"], node.get("Index Cond") or node.get("Recheck Cond") or node["Node Type"])
        for node in scans
    ]
    return [f"{name}: {condition}" for name, condition in conditions if "=" not in condition]


def test_doubt_looks_up_the_source_alone(partitions: Database) -> None:
    """What every read asks first is found by indexes, however many relations the database has."""
    assert partitions.scalar("select usage.doubt()") is None
    assert _looks_through_catalogs(partitions) == []


def test_reads_where_there_is_no_room_for_so_many_locks(partitions: Database) -> None:
    """Another session has taken nearly all locks that the server has: 400 partitions are looked at without locking them."""
    hoarder = partitions.connect()
    with pytest.raises(psycopg.errors.OutOfMemory):
        hoarder.execute(b"select count(pg_advisory_lock(n)) from generate_series(1, 10000000) n")
    hoarder.execute(b"select count(pg_advisory_unlock(n)) from generate_series(1, 150) n")
    try:
        with pytest.raises(psycopg.errors.OutOfMemory):
            partitions.execute("select count(*) from pg_partition_tree('public.resource_usage_log')")
        assert partitions.scalar("select usage.doubt()") is None
        assert partitions.scalar("select sum(event_count) from usage.by_collection(now() - interval '30 days')") > 1000
    finally:
        hoarder.close()
    partitions.compare([("now-30", None, None)])


def test_doubt_in_a_database_of_many_tables(db: Database) -> None:
    """A plain source among 2,000 tables."""
    db.execute(
        "do $$ begin for n in 1 .. 2000 loop execute format('create table public.other_%s (id integer unique deferrable)', n); end loop; end $$"
    )
    db.execute("analyze pg_class, pg_trigger")
    assert db.scalar("select usage.doubt()") is None
    assert _looks_through_catalogs(db) == []


KEYS = """
insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)
select ('00000000-0000-0000-0000-' || lpad((n %% 300)::text, 12, '0'))::uuid, 'ai',
       jsonb_build_object('tokens_in', n, 'job_type', 'job ' || n / 300), {at}
  from generate_series(0, %(events)s - 1) n
"""


def _refresh_scans(db: Database) -> list[str]:
    """Refresh after 50 more events and some late ones; return the scans of all keys."""
    db.execute(KEYS.format(at="clock_timestamp()"), {"events": 50})
    db.execute(
        "delete from public.resource_usage_log where id in (select id from public.resource_usage_log order by id limit 20)"
    )
    plans: list[tuple[str, Node]] = []
    end = record(db.own, plans)
    try:
        assert db.refresh().events == 50
    finally:
        end()
    nodes = [node for _, plan in plans for node in nodes_of(plan)]
    scans = [node["Node Type"] for node in nodes if node.get("Relation Name") == "key" and "Scan" in node["Node Type"]]
    assert scans
    return [scan for scan in scans if scan == "Seq Scan"]


def test_a_refresh_looks_up_the_keys_that_it_needs(db: Database) -> None:
    """Of 30,000 keys, a refresh of 50 events and 20 deletions reads some; without the index it reads all."""
    events: dict[str, Any] = {"events": 30_000}
    db.execute(KEYS.format(at="now() - interval '1 minute' - n * interval '1 minute'"), events)
    db.refresh()
    marks.make(db.own, db.settings)  # which read all keys, if hours are kept
    assert db.scalar("select count(*) from usage.key where job_type is not null") == 30_000
    db.execute("analyze")
    assert _refresh_scans(db) == []
    db.compare([("now-30", None, None)])
    db.execute("alter table usage.key drop constraint key_columns_key")
    assert _refresh_scans(db)
