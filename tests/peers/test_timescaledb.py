"""A TimescaleDB hypertable as the source: refused with triggers, fine with lookback, dropped chunks included.

Runs whenever AGGREGATOR_TEST_TIMESCALEDB_DSN names a database of a server with the extension, as a superuser.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta

import psycopg
import pytest
from psycopg import conninfo

from aggregator import migrations, seal
from aggregator.errors import UsageError
from tests.harness import SCHEMA, Database, Mismatch, compare, snapshot

DSN = os.environ.get("AGGREGATOR_TEST_TIMESCALEDB_DSN")
pytestmark = pytest.mark.skipif(
    DSN is None, reason="AGGREGATOR_TEST_TIMESCALEDB_DSN does not name a TimescaleDB server"
)

NAME = f"aggregator_timescaledb_{os.getpid()}"


@pytest.fixture
def db() -> Iterator[Database]:
    """A migrated database whose source is a hypertable; not attached."""
    assert DSN is not None
    with psycopg.connect(DSN, autocommit=True) as connection:
        connection.execute(f"create database {NAME} template template0 encoding 'UTF8'".encode())
    own = conninfo.make_conninfo(DSN, dbname=NAME)
    with psycopg.connect(own, autocommit=True) as connection:
        connection.execute("create extension timescaledb")
        connection.execute(SCHEMA.encode())
        connection.execute(
            "alter table public.resource_usage_log drop constraint resource_usage_log_pkey;"
            "alter table public.resource_usage_log alter created_at set not null;"
            "select create_hypertable('public.resource_usage_log', 'created_at', chunk_time_interval => interval '7 days')"
        )
    db = Database(own.replace(f"dbname={NAME}", ""), NAME, "UTC", {"capture": "lookback", "lookback_grace": 0})
    migrations.upgrade(db.settings)
    yield db
    db.close()
    with psycopg.connect(DSN, autocommit=True) as connection:
        connection.execute(f"drop database {NAME} with (force)".encode())


def fill(db: Database) -> None:
    db.execute(
        "insert into public.resource_usage_log (resource_type, detail, created_at)"
        " select 'ai', jsonb_build_object('tokens_in', n), now() - n * interval '7 hours' from generate_series(1, 150) n"
    )


def test_refused_with_triggers(db: Database) -> None:
    """Without chunks as with them, and with no advice to take them apart."""
    db.settings.capture = "triggers"
    for _ in range(2):
        with pytest.raises(UsageError, match="is a TimescaleDB hypertable, .* attach it with --capture lookback"):
            db.attach()
        fill(db)


def test_lookback(db: Database) -> None:
    """The promise as of any table; history of dropped chunks can be sealed."""
    fill(db)
    db.attach()
    db.refresh()
    db.compare()
    db.execute(
        "update public.resource_usage_log set detail = '{\"tokens_in\": 0.5}' where created_at > now() - interval '2 days'"
    )
    db.insert(str(db.scalar("select (now() - interval '30 hours')::text")), "tts", 1, '{"characters": 3}')
    with pytest.raises(Mismatch):
        db.compare()
    db.refresh()
    db.compare()
    history = db.scalar("select sum(event_count) from usage.by_collection('-infinity')")
    db.execute("select drop_chunks('public.resource_usage_log', now() - interval '14 days')")
    db.refresh()
    with snapshot(db.connection):
        compare(db.connection, "UTC", [("now-3", None, None)], live=False)
    kept = db.scalar("select usage.local_day(min(created_at), 'UTC') from public.resource_usage_log")
    seal.seal(db.own, db.settings, str(kept + timedelta(days=1)))
    assert db.verify(repair=True).differences == 0
    assert db.scalar("select sum(event_count) from usage.by_collection('-infinity')") == history
