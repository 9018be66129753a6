"""The roles of deploy/roles.sql: what each may, and may not, do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from aggregator import (
    capture,
    matviews,
    metrics,
    migrations,
    nightly,
    purge,
    rebuild,
    refresh,
    seal,
    status,
    usage_overview,
    verify,
)
from aggregator.db import Connection, connect
from aggregator.settings import Settings
from tests.harness import COLLECTIONS, SCHEMA, Database, compare, snapshot

ROLES = (Path(__file__).parents[2] / "deploy" / "roles.sql").read_text(encoding="utf-8")


@pytest.fixture
def with_roles(db: Database) -> Iterator[Database]:
    """A database with a few events, refreshed, and the roles; taken away again, for roles belong to the server."""
    for n in range(1, 9):
        db.insert(f"2026-0{n}-11 10:00+00", "ai", n % 3, '{"tokens_in": 1.5, "job_type": "a"}')
    db.refresh()
    db.insert("2026-03-01 00:00+00")
    db.execute(ROLES.replace(":source", db.source))
    db.execute(ROLES.replace(":source", db.source))  # it may be run again
    yield db
    db.execute("drop owned by usage_owner, usage_reader, usage_refresher")


def test_reader_reads_answers_and_no_raw_rows(with_roles: Database) -> None:
    """A reader gets every answer, equal to the raw query, and sees neither the source nor copies of its rows."""
    db = with_roles
    with snapshot(db.connection):
        expected = usage_overview(db.connection)
        db.connection.execute(b"set local role usage_reader")
        assert usage_overview(db.connection).as_contract() == expected.as_contract()
        for view in (
            "daily_live",
            "monthly_live",
            "freshness",
            "daily",
            "monthly_collection",
            "quarterly_collection",
            "metric_definition",
        ):
            db.connection.execute(f"select count(*) from usage.{view}".encode())
        db.connection.execute(b"select trusted from usage.freshness")
        db.connection.execute(b"select d.unit, m.unit from usage.daily_live d, usage.monthly_live m")
        db.connection.execute(b"reset role")
        compare(db.connection, db.zone)
    for hidden in (
        "select * from public.resource_usage_log",
        "select * from usage.event()",
        "select * from usage.pending",
        "select * from usage.rejected_event",
        "select * from usage.late_change",
        "select * from usage.pending_event()",
        "delete from usage.daily_fact",
        "update usage.state set frontier = now()",
        "select setval('usage.frontier_seq', 1)",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), db.connection.transaction():
            db.connection.execute(b"set local role usage_reader")
            db.connection.execute(hidden.encode())


def test_refresher_refreshes_and_verifies(with_roles: Database) -> None:
    """A refresher that owns nothing refreshes, verifies and repairs."""
    db = with_roles
    settings = db.settings.model_copy(update={})
    with connect(settings) as connection:
        connection.execute("set role usage_refresher")
        assert refresh.refresh(connection, settings).status == "done"
        db.compare()
        db.execute("update usage.daily_fact set total_value = total_value + 1 where day = '2026-05-11'")
        assert verify.verify(connection, settings).differences == 1
        assert verify.verify(connection, settings, repair=True).differences == 1
        db.compare()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("update public.resource_usage_log set note = ''")


def test_refresher_does_the_nightly_run(with_roles: Database) -> None:
    """A scheduler's role refreshes materialized views that it does not own, and analyzes; purging raw rows it may not."""
    db = with_roles
    with connect(db.settings) as connection:
        connection.execute("set role usage_refresher")
        result = nightly.run(connection, db.settings)
        assert result.errors == []
        assert result.views == ("trailing", "monthly_ranking")
        db.insert("2026-03-01 00:00+00")
        refresh.refresh(connection, db.settings)
        assert matviews.refresh_views(connection) == ("trailing", "monthly_ranking")
        assert matviews.refresh_views(connection) == ()
        status.save_limits(connection, db.settings)
        assert status.read_status(connection, db.settings).source == db.source
        refused = nightly.run(connection, db.settings.model_copy(update={"keep": "30d"}))
        assert [error.startswith("purge: the role lacks a privilege") for error in refused.errors] == [True]
    db.compare()


def test_refresher_is_told_who_blocks(with_roles: Database) -> None:
    """Another role's transaction is named by pid and application, whatever its age; one's own only once it is old."""
    db = with_roles
    writer = db.connect(autocommit=False, application_name="the slow importer")
    writer.execute(b"insert into public.resource_usage_log (created_at) values (now())")
    patient = db.settings.model_copy(update={"wait_timeout": 3600.0})
    assert status.read_status(db.own, patient).blocked_by == ()
    with acting(db, "usage_refresher") as connection:
        assert status.read_status(connection, patient).blocked_by == (
            f"pid {writer.info.backend_pid} (the slow importer), open for a time that this role may not see",
        )
        writer.rollback()
        assert status.read_status(connection, patient).blocked_by == ()


@pytest.fixture
def owned(server: str, db: Database) -> Iterator[Callable[..., Database]]:
    """A function that makes a database that usage_owner, no superuser, has migrated; the source is its own too."""
    made: list[Database] = []

    def make(ddl: str = "", **settings: Any) -> Database:
        name = f"{db.name}_owned"
        db.execute(f"create database {name} template template0 encoding 'UTF8'")
        database = Database(server, name, "UTC", settings)
        made.append(database)
        roles = ROLES.replace(":source", database.source)
        for statement in (SCHEMA, ddl, roles, "grant select on public.nodes to usage_owner"):
            if statement:
                database.execute(statement)
        for (relation,) in database.execute(
            "select relid::text from pg_partition_tree(%s) union select %s", (database.source, database.source)
        ):
            database.execute(f"alter table {relation} owner to usage_owner")
        database.execute("create role migrator login in role usage_owner; alter role migrator set role = usage_owner")
        migrations.upgrade(as_migrator(database))
        database.execute(roles)
        return database

    yield make
    for database in made:
        database.own.execute("reset role")
        database.execute("drop owned by usage_owner, usage_reader, usage_refresher cascade")
        database.close()
        db.execute(f"drop database {database.name} with (force)")
        db.execute("drop role migrator")


def as_migrator(db: Database) -> Settings:
    """Settings that log in as one who acts as usage_owner."""
    return db.settings.model_copy(update={"database_url": SecretStr(db.dsn.replace("user=postgres", "user=migrator"))})


@contextmanager
def acting(db: Database, role: str) -> Iterator[Connection]:
    """A connection of our own that has no more rights than a role."""
    db.own.execute(f"set role {role}".encode())
    try:
        yield db.own
    finally:
        db.own.execute("reset role")


def test_owner_migrates_and_attaches(owned: Callable[..., Database]) -> None:
    """An owner that is no superuser does everything there is, and a refresher works on what it made; before and after."""
    db = owned()
    with connect(as_migrator(db)) as connection:
        capture.attach(connection, db.settings)
    db.insert("2026-03-01 00:00+00", "ai", 0, '{"tokens_in": 3}')
    with acting(db, "usage_refresher") as connection:
        assert nightly.run(connection, db.settings).errors == []
    assert db.scalar("select rolname::text from pg_class c join pg_roles r on r.oid = c.relowner"
                     " where c.oid = 'usage.daily'::regclass") == "usage_owner"  # fmt: skip
    db.compare()
    migrations.downgrade(as_migrator(db))
    assert db.scalar("select to_regnamespace('usage') is null")


# Partitions ----------------------------------------------------------------------------------------------------------

PARTITIONED = """
create table public.events (collection_id uuid, resource_type text, detail jsonb, created_at timestamptz, note text)
    partition by range (created_at);
create index on public.events (created_at);
create function public.month(ago integer) returns timestamptz language sql as
$$ select date_trunc('month', now(), 'UTC') - make_interval(months => ago) $$;
create function public.bounds(ago integer) returns text language sql as
$$ select format('for values from (%L) to (%L)', public.month(ago), public.month(ago - 1)) $$;
do $$ begin for ago in 0..3 loop execute format('create table public.events_%s partition of public.events %s', ago, public.bounds(ago)); end loop; end $$
"""


@pytest.fixture
def by_months(owned: Callable[..., Database]) -> Database:
    """A source of months that usage_owner attached, filled and refreshed. What is made later belongs to somebody else."""
    db = owned(PARTITIONED, source_table="public.events", lock_timeout=0.2, purge_batch=3)
    with acting(db, "usage_owner") as connection:
        capture.attach(connection, db.settings)
    for ago in range(4):
        fill_month(db, db.source, ago)
    with acting(db, "usage_refresher") as connection:
        refresh.refresh(connection, db.settings)
    return db


def fill_month(db: Database, table: str, ago: int) -> None:
    db.execute(
        f"insert into {table} (collection_id, resource_type, detail, created_at)"
        " select %s, 'ai', jsonb_build_object('tokens_in', n + 0.25), public.month(%s) + n * interval '5 hours' from generate_series(0, 4) n",
        (COLLECTIONS[ago % 3], ago),
    )


def attach_filled(db: Database, ago: int, bounds: str | None = None) -> str:
    """Make a partition that brings its events along, of which usage_refresher and usage_owner know nothing."""
    name = f"public.events_{ago}"
    db.execute(f"create table {name} (like public.events including indexes)")
    fill_month(db, name, ago)
    db.execute(
        f"alter table public.events attach partition {name} {bounds or db.scalar('select public.bounds(%s)', (ago,))}"
    )
    return name


def test_refresher_needs_no_grant_on_partitions(by_months: Database) -> None:
    """Partitions that came after roles.sql, empty, filled, nested, by default: read at once, and mended by a refresh."""
    db = by_months
    db.execute(f"create table public.events_4 partition of public.events {db.scalar('select public.bounds(4)')}")
    fill_month(db, db.source, 4)
    nested = f"create table public.events_5 partition of public.events {db.scalar('select public.bounds(5)')} partition by hash (note)"
    db.execute(nested)
    db.execute("create table public.events_5_0 partition of public.events_5 for values with (modulus 1, remainder 0)")
    with acting(db, "usage_refresher") as connection:
        refresh.refresh(connection, db.settings)
        assert verify.read_doubt(connection) is None
    db.compare()
    for ago, bounds in ((6, None), (7, "default")):
        name = attach_filled(db, ago, bounds)
        assert f"partition {name} of the source is new" in db.scalar("select usage.doubt()")
        db.compare()
        with acting(db, "usage_reader") as connection:
            connection.execute("select count(*) from usage.by_collection('-infinity')")
        with acting(db, "usage_refresher") as connection:
            assert [name in note for note in refresh.refresh(connection, db.settings).notes] == [True]
            assert verify.read_doubt(connection) is None
        db.compare()
    with acting(db, "usage_refresher") as connection:
        assert nightly.run(connection, db.settings).errors == []
        assert verify.verify(connection, db.settings).differences == 0


def test_a_partition_is_read_and_no_other(by_months: Database) -> None:
    """Through the source, by its bounds, where the role may not read it by name, in whatever style it prints dates."""
    db = by_months
    attach_filled(db, 4)
    with acting(db, "usage_refresher") as connection, connection.transaction():
        connection.execute("set local datestyle = 'SQL, DMY'; set local timezone = 'Asia/Kolkata'")
        row = connection.execute("select usage.partition_rows('public.events_4'::regclass)").fetchone()
        assert row is not None
        rows = sql.SQL(row[0])
        plan = connection.execute(sql.SQL("explain (format json) select from {} p").format(rows)).fetchone()
        assert plan is not None
        assert set(re.findall(r"'Relation Name': '(\w+)'", str(plan[0]))) == {"events_4"}
        assert connection.execute(sql.SQL("select count(*) from {} p").format(rows)).fetchone() == (5,)


def test_refresher_purges_partitions(by_months: Database) -> None:
    """Allowed to delete, it empties the partitions that it may not drop, says so, and history stays."""
    db = by_months
    db.execute("grant delete on public.events to usage_refresher")
    attach_filled(db, 4)
    with acting(db, "usage_refresher") as connection:
        refresh.refresh(connection, db.settings)
    history = db.execute("select * from usage.by_collection('-infinity')")
    keep = f"{db.scalar('select now()::date - public.month(2)::date')}d"
    with acting(db, "usage_refresher") as connection:
        dry = purge.purge(connection, db.settings, keep, dry_run=True)
        done = purge.purge(connection, db.settings, keep)
    assert (dry.events, done.events, done.partitions) == (10, 10, ())
    assert done.notes == tuple(
        f"partition public.events_{ago} is emptied and not dropped: this role does not own it" for ago in (3, 4)
    )
    assert db.scalar("select count(*) from public.events") == 15
    assert db.execute("select * from usage.by_collection('-infinity')") == history
    seal = db.scalar("select sealed_until::text from usage.state")
    with snapshot(db.connection):
        compare(db.connection, db.zone, [(seal, None, None), ("now-1", None, None)], source=db.source, live=False)
    with acting(db, "usage_refresher") as connection:
        assert nightly.run(connection, db.settings.model_copy(update={"keep": keep})).errors == []
    assert db.scalar("select usage.doubt()") is None


# What each may ------------------------------------------------------------------------------------------------------


def test_owner_does_everything(by_months: Database) -> None:
    """Purge, seal, metrics, rebuild and detach by an owner that is no superuser; its own partitions are dropped."""
    db = by_months
    history = db.execute("select * from usage.by_collection('-infinity')")
    keep = f"{db.scalar('select now()::date - public.month(2)::date')}d"
    with acting(db, "usage_owner") as connection:
        assert purge.purge(connection, db.settings, keep).partitions == ("public.events_3",)
        assert db.execute("select * from usage.by_collection('-infinity')") == history
        seal.seal(connection, db.settings, db.scalar("select public.month(1)::date::text"))
        assert db.execute("select * from usage.by_collection('-infinity')") == history
        assert metrics.set_metric(connection, metrics.Metric("tts", "letters"), force=True)
        assert rebuild.rebuild(connection, db.settings).trusted
        db.execute(
            "update usage.daily_fact set total_value = total_value + 1 where day = (select max(day) from usage.daily)"
        )
        assert rebuild.rebuild(connection, db.settings).differences == 1
        assert db.execute("select * from usage.by_collection('-infinity')") == history
        assert status.read_status(connection, db.settings).sealed_until is not None
        assert capture.detach(connection, db.settings, discard_sealed=True)
        assert capture.attach(connection, db.settings).changed
        refresh.refresh(connection, db.settings)
    db.compare()


def test_refresher_seals(by_months: Database) -> None:
    """History whose partition somebody dropped is kept by the scheduler's role."""
    db = by_months
    history = db.execute("select * from usage.by_collection('-infinity')")
    db.execute("drop table public.events_3")
    with acting(db, "usage_refresher") as connection:
        seal.seal(connection, db.settings, db.scalar("select public.month(2)::date::text"))
        assert verify.read_doubt(connection) is None
    assert db.execute("select * from usage.by_collection('-infinity')") == history


@pytest.mark.parametrize(
    "statement",
    [
        "insert into public.resource_usage_log (created_at) values (now())",
        "delete from public.resource_usage_log",
        "truncate public.resource_usage_log",
        "drop table public.resource_usage_log",
        "alter table public.resource_usage_log disable trigger usage_insert",
        "drop trigger usage_insert on public.resource_usage_log",
        "insert into usage.state default values",
        "delete from usage.state",
        "update usage.metric set value_key = 'other'",
        "insert into usage.metric (resource_type) values ('other')",
        "delete from usage.metric_history",
        "insert into usage.job (name) values ('other')",
        "delete from usage.view_refresh",
        "update usage.alembic_version set version_num = '0001'",
        "truncate usage.daily_fact",
        "alter table usage.daily_fact add column other text",
        "drop table usage.late_change",
        "drop view usage.daily_live",
        "refresh materialized view usage.trailing",
        "create table usage.other ()",
        "create or replace function usage.event() returns table (created_at timestamptz, collection_id uuid, resource_type text, detail jsonb)"
        " language sql as 'select null::timestamptz, null::uuid, null::text, null::jsonb'",
        "alter function usage.capture() security invoker",
        "drop function usage.doubt()",
        "drop schema usage cascade",
    ],
)
def test_refresher_may_not(with_roles: Database, statement: str) -> None:
    """It changes rollups and state, and neither raw events, nor definitions, nor what is there."""
    with pytest.raises(psycopg.errors.InsufficientPrivilege), acting(with_roles, "usage_refresher") as connection:
        connection.execute(statement.encode())


def test_readers_see_raw_rows_through_nothing(with_roles: Database) -> None:
    """Of all that usage_reader may select from or call, nothing gives raw rows; the refresher may read the source itself."""
    db = with_roles
    raw = {"pending", "rejected_event", "late_change", "event", "pending_event", "measured", "partition_rows"}
    may = db.execute(
        "select c.relname::text from pg_class c where c.relnamespace = 'usage'::regnamespace and c.relkind in ('r', 'v', 'm', 'p')"
        " and has_table_privilege('usage_reader', c.oid, 'select')"
        " union select p.proname::text from pg_proc p where p.pronamespace = 'usage'::regnamespace"
        " and has_function_privilege('usage_reader', p.oid, 'execute')"
    )
    assert {name for (name,) in may} & raw == set()
    assert db.scalar("select has_table_privilege('usage_refresher', 'public.resource_usage_log', 'select')")
    assert db.execute("select privilege_type from information_schema.role_table_grants where grantee = 'usage_refresher'"
                      " and table_schema = 'public'") == [("SELECT",)]  # fmt: skip


@pytest.mark.parametrize("whose", ["database", "role"])
def test_defaults_of_the_server_hurt_no_migration(owned: Callable[..., Database], whose: str) -> None:
    """Timeouts that a DBA set for the database or the role, shorter than some statements take: migrate and attach complete."""
    db = owned()
    db.execute(
        "create schema slow; grant usage on schema slow to public;"
        "create function slow.down() returns event_trigger language plpgsql as 'begin perform pg_catalog.pg_sleep(0.6); end';"
        "create event trigger slow on ddl_command_end when tag in ('CREATE MATERIALIZED VIEW', 'CREATE TRIGGER') execute function slow.down()"
    )
    target = f"database {db.name}" if whose == "database" else "role migrator"
    for name, value in {
        "statement_timeout": "500ms",
        "lock_timeout": "1ms",
        "idle_in_transaction_session_timeout": "500ms",
        "default_transaction_isolation": "serializable",
    }.items():
        db.execute(f"alter {target} set {name} = '{value}'")
    settings = as_migrator(db)
    migrations.downgrade(settings)
    migrations.upgrade(settings)
    db.execute(f"alter {target} set default_transaction_read_only = 'on'")
    with connect(settings) as connection:
        assert capture.attach(connection, settings).changed
    db.execute(f"alter {target} reset default_transaction_read_only")
    db.insert("2026-03-01 00:00+00", "ai", 0, '{"tokens_in": 3}')
    db.compare()
