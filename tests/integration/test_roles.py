"""The roles of deploy/roles.sql: what each may, and may not, do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr

from aggregator import capture, matviews, migrations, nightly, refresh, status, usage_overview, verify
from aggregator.db import connect
from tests.harness import SCHEMA, Database, compare, snapshot

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
        for view in ("daily_live", "monthly_live", "freshness", "daily", "monthly_collection", "metric_definition"):
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
        "delete from usage.daily",
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
        db.execute("update usage.daily set total_value = total_value + 1 where day = '2026-05-11'")
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


def test_owner_migrates_and_attaches(server: str, with_roles: Database) -> None:
    """An owner that is no superuser does everything there is, and a refresher works on what it made; before and after."""
    db = with_roles
    name = f"{db.name}_owned"
    db.execute(f"create database {name} template template0 encoding 'UTF8'")
    owned = Database(server, name, "UTC", {})
    try:
        owned.execute(SCHEMA)
        owned.execute(ROLES.replace(":source", owned.source))
        owned.execute(
            "alter table public.resource_usage_log owner to usage_owner; grant select on public.nodes to usage_owner"
        )
        owned.execute("create role migrator login in role usage_owner; alter role migrator set role = usage_owner")
        settings = owned.settings.model_copy(
            update={"database_url": SecretStr(owned.dsn.replace("user=postgres", "user=migrator"))}
        )
        migrations.upgrade(settings)
        owned.execute(ROLES.replace(":source", owned.source))
        with connect(settings) as connection:
            capture.attach(connection, settings)
            owned.insert("2026-03-01 00:00+00", "ai", 0, '{"tokens_in": 3}')
        owned.own.execute("set role usage_refresher")
        assert nightly.run(owned.own, settings).errors == []
        owned.own.execute("reset role")
        assert owned.scalar("select rolname::text from pg_class c join pg_roles r on r.oid = c.relowner"
                            " where c.oid = 'usage.daily'::regclass") == "usage_owner"  # fmt: skip
        owned.compare()
        migrations.downgrade(settings)
        assert owned.scalar("select to_regnamespace('usage') is null")
    finally:
        owned.execute("drop owned by usage_owner, usage_reader, usage_refresher")
        owned.close()
        db.execute(f"drop database {name} with (force)")
        db.execute("drop role migrator")
