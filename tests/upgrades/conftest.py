"""Servers and databases of one's own, for what changes a server or moves a database."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from aggregator import embedded
from tests.harness import Database, create_with_source
from tests.mutations import sql_mutants

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
SETTINGS = {"fsync": "off", "shared_buffers": "'32MB'", "max_connections": "40"}


def server_bin() -> Path:
    """Return the programs of the server that is tested."""
    return Path(os.environ.get("AGGREGATOR_TEST_BIN") or embedded.embedded_bin())


def create_app(server: embedded.Server, zone: str = "UTC", *, options: str = "", **settings: Any) -> Database:
    """Make a database ``app`` with the source, migrated and not attached."""
    create_with_source(server.dsn(), "app", options)
    db = app_of(server.dsn(), zone, **settings)
    mutant = sql_mutants.chosen()
    if mutant is not None:
        sql_mutants.break_function(mutant, db.connection)
    return db


def app_of(dsn: str, zone: str = "UTC", **settings: Any) -> Database:
    """Open the database ``app`` of a server that has it."""
    return Database(dsn.replace("dbname=postgres", ""), "app", zone, settings)


def fill(db: Database, days: int = 60, each: int = 2) -> None:
    """Add events of the last days, some with awkward texts, that are not alike in any two days."""
    db.execute(
        "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
        " select ('00000000-0000-0000-0000-00000000000' || 1 + n %% 5)::uuid, (array['ai', 'tts', 'cas', 'Ärger', 'aerger', 'Z', 'z'])[1 + n %% 7],"
        " jsonb_build_object('tokens_in', n * 0.25, 'characters', n, 'size_bytes', n, 'job_type', (array['a', 'B', 'é', 'Zoë', 'ß'])[1 + n %% 5]),"
        " now() - make_interval(hours => n * 24 / %s) from generate_series(1, %s) n",
        (each, days * each),
    )


def change(db: Database) -> None:
    """Late inserts, a late update and delete, and the tail: what a refresh has not seen."""
    db.execute(
        "delete from public.resource_usage_log where id in (select id from public.resource_usage_log"
        " where created_at < now() - interval '3 days' order by id limit 3);"
        "update public.resource_usage_log set created_at = created_at - interval '2 days', resource_type = 'cas'"
        " where id in (select id from public.resource_usage_log where created_at > now() - interval '25 days' order by created_at limit 2);"
        "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
        " select '00000000-0000-0000-0000-000000000003', 'tts', '{\"characters\": 7}', now() - make_interval(days => n * 5)"
        " from generate_series(0, 3) n"
    )


def settled(db: Database) -> None:
    """Answers are exact, also after a refresh, which leaves no doubt, and verify finds nothing."""
    db.compare()
    assert db.refresh().status == "done"
    db.compare()
    assert db.scalar("select usage.doubt()") is None
    assert db.verify().differences == 0
