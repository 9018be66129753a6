"""The command line as a user runs it: a subprocess."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.harness import COLLECTIONS, Database

ROOT = Path(__file__).parents[2]


def run(dsn: str | None, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command with an environment of its own, and return what it printed."""
    return subprocess.run(
        [sys.executable, "-m", "aggregator", *arguments],
        env=_environment(dsn, environment),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _environment(dsn: str | None, extra: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "AGGREGATOR_"))}
    return {**kept, **({"AGGREGATOR_DATABASE_URL": dsn} if dsn else {}), "COLUMNS": "120", **extra}


def one_line(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Assert a user's mistake: an exit code, one line that has some words, nothing on stdout, no traceback."""
    assert result.returncode == code, result
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr


@pytest.fixture
def filled(db: Database) -> Database:
    """Attached, with events that are awkward to print; not refreshed."""
    db.execute("update public.nodes set title = E'[bold]Quo\"ted,\\nline' where id = %s", (COLLECTIONS[1],))
    for n in range(12):
        db.execute(
            "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at) values"
            " (%s, %s, %s, now() - make_interval(hours => %s))",
            (
                COLLECTIONS[n % 3],
                ["ai", "cas"][n % 2],
                '{"tokens_in": 1500, "tokens_out": 0.5, "size_bytes": 2048.5, "job_type": "[red]"}',
                n * 9,
            ),
        )
    db.insert("infinity", None, None, None)
    db.insert("-infinity", "tts", 6, '{"characters": true}')
    return db


def test_the_main_job(new_database: Any) -> None:
    """Migrate, attach, refresh, show, verify, detach, migrate --down: data on stdout, everything else on stderr."""
    db = new_database()
    db.insert("2026-03-01 00:00+00", "ai", 0, '{"tokens_in": 1}')
    for arguments in (
        ["migrate"],
        ["attach"],
        ["attach"],
        ["refresh", "--dry-run"],
        ["refresh"],
        ["detach"],
        ["attach"],
    ):
        result = run(db.dsn, *arguments)
        assert (result.returncode, result.stdout) == (0, ""), result
        assert result.stderr
    assert run(db.dsn, "status").returncode == 1  # attached anew, never refreshed
    assert run(db.dsn, "refresh").returncode == 0
    status = run(db.dsn, "status")
    assert status.returncode == 0, status
    assert "healthy" in status.stdout
    state = json.loads(run(db.dsn, "status", "--json").stdout)
    assert state["healthy"] is True
    assert state["source"] == "public.resource_usage_log"
    assert run(db.dsn, "verify").returncode == 0
    assert run(db.dsn, "migrate", "--down").returncode == 0
    assert db.scalar("select to_regnamespace('usage') is null")
    assert db.scalar("select count(*) from pg_trigger where tgname like 'usage%%'", ()) == 0
    one_line(run(db.dsn, "show"), 2, "run aggregator migrate")


def test_show_prints_the_contract(filled: Database) -> None:
    """JSON is the contract's, equal to the SQL function's; the same twice; CSV has every row."""
    since, until = "-infinity", "2030-01-01T00:00:00Z"
    window = ["--since", "2020-01-01T00:00:00+00:00", "--until", until]
    first, second = (run(filled.dsn, "show", "--format", "json", *window) for _ in range(2))
    assert first.stdout == second.stdout
    expected = filled.scalar("select usage.overview('2020-01-01Z'::timestamptz, %s::timestamptz)", (until,))
    assert json.loads(first.stdout) == expected
    assert list(json.loads(first.stdout)) == ["by_collection", "ai_drilldown", "daily"]
    rows = list(csv.DictReader(io.StringIO(run(filled.dsn, "show", "--format", "csv", *window).stdout)))
    assert len(rows) == sum(map(len, expected.values()))
    assert '[bold]Quo"ted,\nline' in {row["collection_title"] for row in rows}
    assert since


def test_show_prints_tables(filled: Database) -> None:
    """Tables have readable units, titles as they are, and a note of what is dated outside years 1-9999."""
    result = run(filled.dsn, "show", "--days", "9999")
    assert result.returncode == 0, result
    for text in ("[bold]Quo", "[red]", "KiB", "k tokens", "dated infinity", "exact", "█"):
        assert text in result.stdout, text


@pytest.mark.parametrize("days", ["0", "-5", "9999", "1" + "0" * 30])
def test_days_are_clamped(filled: Database, days: str) -> None:
    """Any integer is clamped into 1-365."""
    assert run(filled.dsn, "show", "--days", days).returncode == 0


def test_an_unknown_collection_is_an_empty_overview(filled: Database) -> None:
    """An unknown collection is no error."""
    result = run(filled.dsn, "show", "--collection", "99999999-0000-0000-0000-000000000000")
    assert result.returncode == 0
    assert "No usage in this window" in result.stdout


def test_corruption_is_named_and_mended(filled: Database) -> None:
    """verify names a corrupted rollup row and exits 1; --repair mends it."""
    assert run(filled.dsn, "refresh").returncode == 0
    filled.execute(
        "update usage.daily_fact set event_count = event_count + 41 where ctid = (select min(ctid) from usage.daily_fact)"
    )
    found = run(filled.dsn, "verify")
    assert found.returncode == 1
    assert "-41" in found.stdout
    assert run(filled.dsn, "verify", "--repair").returncode == 0
    assert run(filled.dsn, "verify").returncode == 0
    filled.compare()


BAD_ARGUMENTS = [
    (["show", "--since", "2026-01-01"], "no time zone"),
    (["show", "--since", "yesterday"], "no instant"),
    (["show", "--since", "2026-01-02T00:00Z", "--until", "2026-01-02T00:00Z"], "before"),
    (["show", "--collection", "x"], "no UUID"),
    (["attach", "--time-zone", "Mars/Olympus"], "no IANA time zone"),
    (["attach", "--source-table", "public.nothing"], "does not exist"),
    (["attach", "--source-table", "nothing"], "qualified"),
    (["attach", "--source-table", "public.nodes"], "attached"),
    (["verify", "--since", "2026-13-01"], "no day"),
    (["verify", "--since", "2999-01-01"], "future"),
    (["refresh", "--step-events", "0"], "STEP_EVENTS"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD_ARGUMENTS, ids=[" ".join(a) for a, _ in BAD_ARGUMENTS])
def test_bad_arguments(filled: Database, arguments: list[str], words: str) -> None:
    """A wrong argument gets one line that says what is wrong, and exit code 2."""
    if "public.nodes" in arguments:
        filled.execute("alter table public.nodes add created_at timestamptz, add collection_id uuid,"
                       " add resource_type text, add detail jsonb; create index on public.nodes (created_at)")  # fmt: skip
    one_line(run(filled.dsn, *arguments), 2, words)


@pytest.mark.parametrize("arguments", [["show", "--days", "x"], ["show", "--format", "xml"], ["nonsense"], []])
def test_the_option_parser_exits_with_2(arguments: list[str]) -> None:
    """What the option parser refuses has exit code 2 and no traceback."""
    result = run(None, *arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_wrong_databases(filled: Database) -> None:
    """No, unreachable, unknown or unmigrated database: one line, and never a password."""
    one_line(run(None, "refresh"), 2, "AGGREGATOR_DATABASE_URL")
    for url in (
        "postgresql://user:s3cret@127.0.0.1:1/x",
        "host=127.0.0.1 port=1 password=s3cret dbname=x",
        "postgresql://user:s3cret@[/x",
        "password=s3cret nonsense",
    ):
        result = run(url, "show")
        assert result.returncode in {1, 2}
        assert "s3cret" not in result.stdout + result.stderr
        one_line(result, result.returncode)
    one_line(run(filled.dsn.replace(filled.name, "no_such_database"), "show"), 1, "cannot connect", "no_such_database")
    one_line(run(filled.dsn.replace(filled.name, "postgres"), "show"), 2, "run aggregator migrate")


def test_not_attached(new_database: Any) -> None:
    """Before attach every command says so in one line."""
    db = new_database()
    for command in ("show", "refresh", "verify"):
        one_line(run(db.dsn, command), 1, "not attached: run aggregator attach")
    assert run(db.dsn, "status").returncode == 1


def test_a_schema_behind_or_ahead(filled: Database) -> None:
    """A database at another revision is refused with what to run."""
    filled.execute("update usage.alembic_version set version_num = '9999'")
    one_line(run(filled.dsn, "refresh"), 2, "ahead", "upgrade aggregator")
    one_line(run(filled.dsn, "migrate"), 2, "ahead")


def test_a_foreign_schema_is_refused(server: str, filled: Database) -> None:
    """A schema named usage that is not ours is left alone."""
    filled.execute("create database foreign_usage")
    dsn = filled.dsn.replace(filled.name, "foreign_usage")
    try:
        import psycopg

        with psycopg.connect(dsn) as connection:
            connection.execute("create schema usage")
            connection.execute("create table usage.theirs ()")
        one_line(run(dsn, "migrate"), 2, "not aggregator's")
        one_line(run(dsn, "migrate", "--down"), 2, "not aggregator's")
    finally:
        filled.execute("drop database foreign_usage with (force)")


def test_a_role_without_privileges(filled: Database) -> None:
    """A role that may do nothing gets one line."""
    filled.execute(
        "do $$ begin if to_regrole('nobody_at_all') is null then create role nobody_at_all login; end if; end $$"
    )
    dsn = filled.dsn.replace("user=postgres", "user=nobody_at_all")
    for command in ("show", "refresh", "attach"):
        result = run(dsn, command)
        assert result.returncode in {1, 2}
        one_line(result, result.returncode)


def test_a_read_only_server(filled: Database) -> None:
    """On a server that allows no writes a refresh fails in one line, and reads go on."""
    import psycopg

    from aggregator import db as module

    error = psycopg.errors.ReadOnlySqlTransaction("cannot execute INSERT in a read-only transaction")
    assert "read-only" in module.one_line(error)
    assert "primary" in module.one_line(error)
    filled.execute(f"alter database {filled.name} set default_transaction_read_only = on")
    assert run(filled.dsn, "show").returncode == 0


def test_a_killed_refresh_loses_nothing(filled: Database) -> None:
    """SIGKILL in the middle of a build: exact at once, and the next refresh completes."""
    filled.execute(
        "insert into public.resource_usage_log (resource_type, detail, created_at)"
        " select 'ai', '{\"tokens_in\": 2}', now() - n * interval '1 min' from generate_series(1, 20000) n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "aggregator", "refresh", "--step-events", "50"],
        env=_environment(filled.dsn, {}), cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for _ in range(3):
        process.stderr.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert filled.scalar("select isfinite(frontier) and frontier < now() - interval '1 hour' from usage.state")
    filled.compare()
    assert run(filled.dsn, "refresh").returncode == 0
    filled.compare()
    assert filled.verify().differences == 0
