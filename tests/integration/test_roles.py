"""The roles of deploy/roles.sql: what each may, and may not, do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from aggregator import refresh, usage_overview, verify
from aggregator.db import connect
from tests.harness import Database, compare, snapshot

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
    db.execute("drop owned by usage_reader, usage_refresher")


def test_reader_reads_answers_and_no_raw_rows(with_roles: Database) -> None:
    """A reader gets every answer, equal to the raw query, and sees neither the source nor copies of its rows."""
    db = with_roles
    with snapshot(db.connection):
        expected = usage_overview(db.connection)
        db.connection.execute(b"set local role usage_reader")
        assert usage_overview(db.connection).as_contract() == expected.as_contract()
        for view in ("daily_live", "monthly_live", "freshness", "daily", "monthly_collection"):
            db.connection.execute(f"select count(*) from usage.{view}".encode())
        db.connection.execute(b"select trusted from usage.freshness")
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
