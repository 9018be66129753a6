"""Print what a release leaves in a database that it attached and refreshed: with that release's code, once, when it is out.

    git worktree add /tmp/release <commit>
    PYTHONPATH=/tmp/release python tests/migrations/freeze.py > tests/migrations/attached_0005.sql

The file goes on top of the release's own migration: functions, triggers, events, rollups, state. It is never made anew.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

from aggregator import capture, embedded, migrations, refresh
from aggregator.db import connect
from aggregator.settings import Settings
from tests.harness import SCHEMA

ZONE = "Europe/Oslo"
FRONTIER = "2024-09-01 06:00+00"
EVENTS = """
insert into public.resource_usage_log (collection_id, resource_type, detail, created_at) values
    ('00000000-0000-0000-0000-000000000002', 'ai', '{"tokens_in": 1.25, "tokens_out": "1", "job_type": "chat", "model_level": "m1"}', '2024-01-28 23:30+01'),
    ('00000000-0000-0000-0000-000000000003', 'ai', '{"tokens_in": 2.25, "tokens_out": "2", "job_type": "chat", "model_level": "m0"}', '2024-02-28 23:30+01'),
    ('00000000-0000-0000-0000-000000000001', 'ai', '{"tokens_in": 3.25, "job_type": "chat"}', '2024-04-28 23:30+01'),
    (null, 'tts', '{"characters": 30}', '2024-05-01 00:00+00'),
    (null, 'odd', '{}', '2024-05-05 12:00+02'),
    ('00000000-0000-0000-0000-000000000007', 'cas', '{"size_bytes": "many"}', '2024-06-05 12:00+02'),
    ('00000000-0000-0000-0000-000000000001', 'whisper', '{"duration_seconds": 0.5}', '2024-08-29 00:30+02');
"""
# Triggers on months fill the quarters, on hours what is to be marked.
NOT_KEPT = {
    "alembic_version", "state", "metric", "job", "health_limit", "view_refresh", "refresh_run", "verification", "quarterly_collection_fact", "six_hours", "hourly_total",
}  # fmt: skip
FUNCTIONS = "select p.oid::regprocedure::text, pg_get_functiondef(p.oid) from pg_proc p where p.pronamespace = 'usage'::regnamespace and p.prokind = 'f' order by 1"


def main() -> None:
    """Attach and refresh with the code at hand, and print the difference."""
    with embedded.temporary_server() as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("create database app template template0 encoding 'UTF8'")
        with psycopg.connect(server.dsn("app"), autocommit=True) as connection:
            connection.execute(SCHEMA.encode())
            settings = Settings(database_url=server.dsn("app"), time_zone=ZONE)  # type: ignore[arg-type]
            migrations.upgrade(settings)
            before: dict[str, str] = dict(connection.execute(FUNCTIONS.encode()).fetchall())
            state = connection.execute("select to_jsonb(s) from usage.state s").fetchone()
            with connect(settings) as own:
                capture.attach(own, settings)
                if migrations.head() >= "0004":
                    from aggregator import hourly

                    hourly.turn_on(own)
                connection.execute(EVENTS.encode())
                refresh.refresh(own, settings)
            connection.execute(f"update usage.state set frontier = '{FRONTIER}', attached_at = '{FRONTIER}'".encode())
            for line in difference(connection, before, state[0] if state else {}):
                print(line)


def difference(connection: psycopg.Connection[Any], functions: dict[str, str], state: dict[str, Any]) -> list[str]:
    """Return the statements that make an attached database of one that is only migrated."""
    head = migrations.head()
    lines = [
        f"-- What release {head} left in a database that was attached and refreshed in the zone {ZONE}, besides its migration:",
        "-- functions, triggers, events, rollups and state, dumped from it. Frozen, as the release is.",
    ]
    lines += [
        f"{definition.strip()};"
        for name, definition in connection.execute(FUNCTIONS.encode()).fetchall()
        if functions.get(name) != definition
    ]
    for name, definition in connection.execute(
        "select tgname::text, pg_get_triggerdef(oid) from pg_trigger where tgrelid = 'public.resource_usage_log'::regclass"
        " and not tgisinternal order by 1"
    ).fetchall():
        lines += [f"{definition};", f"alter table public.resource_usage_log enable always trigger {name};"]
    lines.append(EVENTS.strip())  # the frontier that the triggers know is not set yet, so nothing of it is late
    for (table,) in connection.execute(
        "select relname::text from pg_class where relnamespace = 'usage'::regnamespace and relkind = 'r' order by relname = 'key' desc, 1"
    ).fetchall():
        if table not in NOT_KEPT:
            lines += _rows(connection, table)
    found = connection.execute("select to_jsonb(s) from usage.state s").fetchone()
    assert found is not None
    changed = [
        f"{column} = {sql.quote(value) if not isinstance(value, bool) and value is not None else str(value or 'null').lower()}"
        for column, value in found[0].items()
        if state.get(column) != value and column not in {"source_oid", "fingerprint", "storage"}
    ]
    lines.append(f"update usage.state set source_oid = 'public.resource_usage_log'::regclass, {', '.join(changed)};")
    storage = ", storage = usage.storage()" if "storage" in found[0] else ""
    lines.append(f"update usage.state set fingerprint = usage.fingerprint(){storage};")
    lines.append(
        f"select setval('usage.frontier_seq', (extract(epoch from timestamptz '{FRONTIER}') * 1000000)::bigint);"
    )
    return lines


def _rows(connection: psycopg.Connection[Any], table: str) -> list[str]:
    cursor = connection.execute(f"select x::text from usage.{table} x".encode())
    rows = [row[0].replace("'", "''") for row in cursor.fetchall()]
    return [f"insert into usage.{table} select ('{row}'::usage.{table}).*;" for row in rows]


if __name__ == "__main__":
    main()
