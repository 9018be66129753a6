"""From the schema of every earlier release, with data and under writers; and code that is behind or ahead of the schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aggregator import migrations
from aggregator.cli import app
from tests.cli.test_cli import one_line, run
from tests.faults.shadow import SHADOW, Writer, check
from tests.harness import Database, some
from tests.migrations.test_migrations import catalog

FROZEN = Path(__file__).parents[1] / "migrations"

# What a release's own commands would have done, where its triggers do not do it.
SEALED = (
    "update usage.state set sealed_until = '2024-05-01 00:00+02';"
    "select setval('usage.seal_seq', (select (extract(epoch from sealed_until) * 1000000)::bigint from usage.state));"
    "delete from public.resource_usage_log where created_at < '2024-05-01 00:00+02'"
)
TRUNCATED = (
    f"truncate public.resource_usage_log, {SHADOW};"
    "with written as (insert into public.resource_usage_log (resource_type, detail, created_at)"
    " values ('tts', '{\"characters\": 3}', '2024-07-01 12:00+02'), ('tts', '{\"characters\": 4}', now()) returning *)"
    f" insert into {SHADOW} select * from written"
)
LOOKBACK = (
    "drop trigger usage_insert on public.resource_usage_log; drop trigger usage_update on public.resource_usage_log;"
    "drop trigger usage_delete on public.resource_usage_log; drop trigger usage_truncate on public.resource_usage_log;"
    "update usage.state set capture_mode = 'lookback', lookback_days = 3;"
    "update usage.state set fingerprint = usage.fingerprint(), storage = usage.storage()"
)
STATES = {
    "late changes": "select 1",
    "sealed": SEALED,
    "truncated": TRUNCATED,
    "lookback": LOOKBACK,
}


@pytest.mark.parametrize(
    ("release", "state"),
    some([("0001", "late changes"), ("0001", "truncated"), ("0002", "sealed"), ("0003", "truncated"), ("0003", "sealed"),
     ("0004", "sealed"), ("0004", "truncated"), ("0004", "lookback"), ("0005", "sealed"), ("0005", "late changes"), ("0006", "truncated"), ("0006", "lookback"),
     ("0007", "late changes"), ("0007", "sealed"), ("0008", "truncated"), ("0008", "late changes"), ("0009", "sealed"), ("0009", "late changes"),
     ("0010", "truncated"), ("0010", "sealed"), ("0011", "late changes"), ("0011", "sealed"), ("0012", "late changes"), ("0012", "sealed"),
     ("0013", "late changes"), ("0013", "sealed")], 2),
)  # fmt: skip
def test_an_upgrade_under_writers(empty: Database, release: str, state: str) -> None:
    """What a release attached (0004 on: with hours) and left pending is exact before, while and after it is migrated, and trusted."""
    db = empty
    migrations.upgrade_to(release, db.settings)
    db.connection.execute((FROZEN / f"attached_{release}.sql").read_bytes())
    db.zone = "Europe/Oslo"
    db.settings = db.settings.model_copy(update={"time_zone": db.zone, "lookback_grace": 0.0})
    db.execute(f"create table {SHADOW} (like public.resource_usage_log); create index on {SHADOW} (created_at)")
    db.execute(f"insert into {SHADOW} select * from public.resource_usage_log")
    db.execute(STATES[state])
    check(db)
    with Writer(db, 1) as writer:
        while writer.transactions < 10:
            check(db)
        assert migrations.upgrade(db.settings) == (release, migrations.head())
        upgraded_at = writer.transactions
        while writer.transactions < upgraded_at + 10:
            check(db)
        if state != "lookback":  # whose late changes come with the next refresh
            assert db.refresh().status == "done"
            check(db)
    check(db)
    assert not db.attach(hourly=False).changed
    assert db.refresh().status == "done"
    check(db)
    assert db.scalar("select usage.doubt()") is None
    assert db.verify().differences == 0


COMMANDS = [
    ["attach"], ["detach"], ["refresh"], ["refresh", "--dry-run"], ["refresh", "--views"], ["schedule", "--once"], ["show"],
    ["totals"], ["export"], ["status"], ["verify"], ["verify", "--repair"], ["rebuild"], ["rebuild", "--reset-frontier"],
    ["purge", "--keep", "30d"], ["seal", "--until", "2026-01-01"], ["metric", "list"], ["metric", "remove", "tts"],
    ["metric", "set", "x", "--value-key", "y"], ["serve"], ["history", "refreshes"],
]  # fmt: skip

TABLES = (
    "select relname::text from pg_class where relnamespace = 'usage'::regnamespace and relkind in ('r', 'S') order by 1"
)


def contents(db: Database) -> list[Any]:
    """All rows of schema usage, and where its sequences are."""
    return [db.execute(f"select row(x.*)::text from usage.{name} x order by 1") for (name,) in db.execute(TABLES)]


@pytest.mark.parametrize(
    ("revision", "advice"),
    [("0005", "behind this version (HEAD): run aggregator migrate"), ("0099", "ahead of this version (HEAD): upgrade aggregator")],
)  # fmt: skip
def test_code_of_another_version_is_refused(db: Database, monkeypatch: Any, revision: str, advice: str) -> None:
    """Every command says in one line which side is behind, exits with 2, and has written nothing."""
    db.insert("2026-03-01 00:00+00")
    db.refresh()
    db.insert("2026-03-01 00:00+00")
    if revision == "0005":
        migrations.downgrade_to(revision, db.settings)
    else:
        db.execute("update usage.alembic_version set version_num = %s", (revision,))
    advice = advice.replace("HEAD", migrations.head())
    before = catalog(db.dsn), contents(db)
    monkeypatch.setenv("AGGREGATOR_DATABASE_URL", db.dsn)
    monkeypatch.setenv("AGGREGATOR_HTTP_JWT_SECRET", "x" * 40)
    for command in COMMANDS + ([["migrate"], ["migrate", "--down"]] if revision == "0099" else []):
        result = CliRunner().invoke(app, command)
        assert isinstance(result.exception, migrations.SchemaError), (command, result.exception, result.output)
        assert f"the database is at revision {revision}, {advice}" in str(result.exception), command
        assert result.exception.exit_code == 2
        assert result.stdout == ""
    one_line(run(db.dsn, "refresh"), 2, advice)
    assert (catalog(db.dsn), contents(db)) == before
    if revision == "0005":
        db.compare()
