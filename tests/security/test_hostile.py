"""Objects that others put in the way: shadows of names, operators, types and casts; schemas made before ours; better matches."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from aggregator import (
    capture,
    export,
    history,
    hourly,
    matviews,
    metrics,
    migrations,
    nightly,
    purge,
    rebuild,
    refresh,
    seal,
    status,
    usage_daily,
    usage_overview,
    usage_totals,
    verify,
)
from aggregator.db import Connection, connect, transaction
from aggregator.settings import Settings
from aggregator.web.pool import Reader
from tests.harness import Database

MakeRole = Callable[..., str]
NewDatabase = Callable[..., Database]


def read_everything(connection: Connection, settings: Settings) -> None:
    """Ask for all there is to read, in all the ways there are."""
    since = datetime.now(timezone.utc) - timedelta(days=20)
    assert usage_overview(connection, days=365).by_collection
    assert usage_totals(connection, by=["collection", "job_type"], grain="day", fill=True, since=since).rows
    assert usage_daily(connection, time_zone="Asia/Kolkata", since=since)
    for output_format in ("csv", "ndjson", "parquet"):
        export.export_usage(connection, io.BytesIO(), output_format=output_format, since=since)
    assert status.read_status(connection, settings).source
    for kind in history.Kind:
        history.read_history(connection, kind, 10)
    assert metrics.list_metrics(connection)
    refresh.forecast(connection)


def write_events(session: psycopg.Connection[Any], source: str, n: int = 0) -> None:
    """Insert at the tail and late, update and delete: as an application does, whatever its session's search path."""
    for age in ("0 s", "3 days", "40 days"):
        session.execute(
            f"insert into {source} (collection_id, resource_type, detail, created_at) values"
            ' (%s::pg_catalog.uuid, \'ai\', \'{"tokens_in": 1.5, "job_type": "a"}\','
            " pg_catalog.clock_timestamp() operator(pg_catalog.-) %s::pg_catalog.interval)".encode(),
            (f"00000000-0000-0000-0000-00000000000{1 + n % 5}", age),
        )
    session.execute(f"update {source} set resource_type = 'tts' where id operator(pg_catalog.=) 2".encode())
    session.execute(f"delete from {source} where id operator(pg_catalog.=) 3".encode())


def sprung(db: Database) -> bool:
    return bool(db.scalar("select is_called from evil.sprung"))


def do_everything(db: Database, own: Connection, settings: Settings) -> None:
    """Every command once, with comparisons between."""
    assert capture.attach(own, settings).changed
    writer = db.connect()
    for n in range(4):
        write_events(writer, db.source, n)
    db.compare()
    assert refresh.refresh(own, settings.model_copy(update={"step_events": 3, "jobs": 3})).status == "done"
    db.compare()
    write_events(writer, db.source)
    db.compare()
    hourly.turn_on(own)
    refresh.refresh(own, settings)
    db.compare()
    read_everything(own, settings)
    db.execute(
        "update usage.daily_fact set total_value = total_value + 1 where day = (select max(day) from usage.daily)"
    )
    assert verify.verify(own, settings).differences > 0
    assert verify.verify(own, settings, repair=True).differences > 0
    assert metrics.set_metric(own, metrics.Metric("tts", "letters"), force=True)
    assert rebuild.rebuild(own, settings).trusted
    assert metrics.set_metric(own, metrics.Metric("tts", "characters", unit="characters"), force=True)
    assert rebuild.rebuild(own, settings).trusted
    db.compare()
    db.execute("select setval('usage.frontier_seq', 1)")  # as a restore leaves it
    assert refresh.refresh(own, settings).status == "done"
    db.compare()
    status.save_limits(own, settings)
    assert nightly.run(own, settings).errors == []
    matviews.refresh_views(own)
    rebuild.reset_frontier(own)
    write_events(writer, db.source)
    db.execute(f"truncate {db.source}")
    db.compare()
    write_events(writer, db.source)
    refresh.refresh(own, settings)
    db.compare()
    purge.purge(own, settings, "30d", dry_run=True)
    seal.seal(own, settings, str((datetime.now(timezone.utc) - timedelta(days=35)).date()))
    purge.purge(own, settings, "30d")
    db.compare([("now-20", None, None), ("now-2", None, None)], live=False)
    assert capture.detach(own, settings, discard_sealed=True)


def test_every_command_under_traps(trapped: Database) -> None:
    """Migrate, attach and everything after, by sessions whose search path finds hostile objects first: none is reached.

    Tables of the names that ours have lie in pg_temp as well, where they hide all that is not qualified.
    """
    db = trapped
    migrations.downgrade(db.settings)
    migrations.upgrade(db.settings)
    with connect(db.settings) as own:
        assert own.execute("show search_path").fetchone() == ('evil, "$user", public, pg_catalog',)
        with transaction(own):
            own.execute("create temporary table state (source text)")
            for name in (
                "late_change",
                "key",
                "metric",
                "job",
                "daily_fact",
                "resource_usage_log",
                "pg_class",
                "date",
                "text",
            ):
                own.execute(f"create temporary table {name} (x int)".encode())
        do_everything(db, own, db.settings)
    assert not sprung(db)


def test_the_server_under_traps(trapped: Database) -> None:
    """What ``serve`` asks, the access query too."""
    db = trapped
    with connect(db.settings) as own:
        capture.attach(own, db.settings)
        write_events(db.connection, db.source)
    db.execute("create table public.edges (source_id uuid, edge_type text)")
    user = "aaaaaaaa-0000-0000-0000-000000000001"
    db.execute(f"insert into public.edges values ('{user}', 'owner')")
    reader = Reader(db.settings)
    reader.open()
    try:
        from uuid import UUID

        assert reader.ask(UUID(user), lambda connection: usage_overview(connection).by_collection)
        assert reader.ask(None, lambda connection: usage_totals(connection, by=["collection"]).rows)
    finally:
        reader.close()
    assert not sprung(db)


def test_traps_are_traps(trapped: Database) -> None:
    """An unqualified name, operator, type or table does reach them: else the tests above would say nothing."""
    session = trapped.connect()
    for statement in (
        "select now()",
        "select 'a'::pg_catalog.text || 'b'::pg_catalog.text",
        "select pg_catalog.now() >= pg_catalog.now()",
        "select '{}'::pg_catalog.jsonb ->> 'a'",
        "select sum(1::pg_catalog.numeric)",
    ):
        with pytest.raises(psycopg.DatabaseError, match="a trap was sprung as postgres"):
            session.execute(statement.encode())
    for statement in ("select 'now'::timestamptz", "select relname from pg_class", "select source from state"):
        with pytest.raises(psycopg.DatabaseError):
            session.execute(statement.encode())
    assert sprung(trapped)


BETTER = """
create function public.spring() returns boolean language plpgsql as $$
begin raise exception 'a trap was sprung as %', current_user; end $$;
create function public.has_database_privilege(name, text) returns boolean language sql as 'select public.spring()';
create function public.to_regclass(varchar) returns regclass language sql as 'select null::regclass where public.spring()';
create function public.is_type(oid, regtype) returns boolean language sql as 'select public.spring()';
create operator public.= (leftarg = oid, rightarg = regtype, function = public.is_type);
create function public.is_named(name, text) returns boolean language sql as 'select public.spring()';
create operator public.= (leftarg = name, rightarg = text, function = public.is_named);
create function public.is_named(name, varchar) returns boolean language sql as 'select public.spring()';
create operator public.= (leftarg = name, rightarg = varchar, function = public.is_named);
"""
"""In a schema that everybody may create in, under the default search path: better matches than pg_catalog has."""


def test_better_matches_in_public(make_role: MakeRole, new_database: NewDatabase) -> None:
    """A role that may create in public, as everybody could before PostgreSQL 15, gets nothing run by who migrates."""
    role = make_role()
    db = new_database()
    migrations.downgrade(db.settings)
    db.execute(f"grant create on schema public to {role}")
    db.connect(user=role).execute(BETTER.encode())
    assert migrations.upgrade(db.settings) == (None, migrations.head())
    with pytest.raises(psycopg.errors.RaiseException, match="a trap was sprung as postgres"):
        db.execute("select has_database_privilege(current_database(), 'CREATE')")
    with connect(db.settings) as own:
        do_everything(db, own, db.settings)


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("create schema usage authorization {role}", "schema usage belongs to {role}"),
        ("create schema usage; grant create on schema usage to {role}", "{role} may create in schema usage"),
        ("create schema usage; grant create on schema usage to public", "PUBLIC may create in schema usage"),
    ],
)
def test_a_schema_made_before_ours(make_role: MakeRole, new_database: NewDatabase, script: str, says: str) -> None:
    """Whoever owns schema usage, or may create in it, could put a function there that ours call: nothing is put into it."""
    role = make_role()
    db = new_database()
    migrations.downgrade(db.settings)
    db.execute(script.format(role=role))
    with pytest.raises(migrations.SchemaError, match=says.format(role=role)):
        migrations.upgrade(db.settings)
    assert db.scalar("select count(*) from pg_class where relnamespace = 'usage'::regnamespace") == 0
    db.execute("drop schema usage; create schema usage")
    assert migrations.upgrade(db.settings) == (None, migrations.head())


def test_a_schema_of_a_group_is_ours(make_role: MakeRole, new_database: NewDatabase) -> None:
    """A role that is no superuser may fill a schema that a group of its own owns, as a DBA may have prepared it."""
    group, member = make_role(), make_role()
    db = new_database()
    migrations.downgrade(db.settings)
    db.execute(
        f"create schema usage authorization {group}; grant {group} to {member}; grant create on database {db.name} to {member}"
    )
    migrations.upgrade(db.settings.model_copy(update={"database_url": SecretStr(f"{db.dsn} user={member}")}))
    assert db.scalar("select to_regclass('usage.state') is not null")


def test_a_table_of_the_name_of_our_differences(db: Database) -> None:
    """A session that has a table pg_temp.delta fails to fold, and says so; no answer comes from it, and it is left alone."""
    db.insert("2026-03-01 00:00+00", "ai", 0, '{"tokens_in": 3}')
    db.own.execute("create temporary table delta as select 'daily'::text as rollup, 1000 as total_value")
    with pytest.raises(psycopg.errors.DuplicateTable):
        db.refresh()
    db.compare()
    assert db.own.execute("select count(*) from pg_temp.delta").fetchone() == (1,)
    db.own.execute("drop table pg_temp.delta")
    assert db.refresh().status == "done"
    db.compare()
