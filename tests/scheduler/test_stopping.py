"""SIGTERM: the scheduler ends after its step, other commands at once; leases are given back and nothing is half done."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from aggregator import migrations
from tests.cli.test_cli import ROOT, _environment, run
from tests.harness import Database
from tests.scheduler.test_scheduler import until

DAYS = 20


@contextmanager
def command(db: Database, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command beside the test, in many steps."""
    process = subprocess.Popen(
        [sys.executable, "-m", "aggregator", *arguments],
        env=_environment(db.dsn, {"AGGREGATOR_STEP_EVENTS": "1", "AGGREGATOR_REFRESH_EVERY": "7"}),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.kill()


def await_blocked(db: Database, blocker: psycopg.Connection[Any]) -> None:
    """Wait until a session of ours waits for a lock of the test's, and not for one of another's of ours."""
    waiting = (
        "select count(*) from pg_stat_activity where datname = current_database()"
        " and application_name like 'aggregator %%' and %s = any (pg_blocking_pids(pid))"
    )
    until(lambda: db.scalar(waiting, (blocker.info.backend_pid,)))


def leases(db: Database) -> int:
    return int(db.scalar("select count(*) from usage.job where holder is not null or lease_until is not null"))


@pytest.fixture
def days(db: Database) -> Database:
    """A source with an event on each of the last days."""
    db.execute(
        "insert into public.resource_usage_log (resource_type, detail, created_at) select 'ai', '{\"tokens_in\": 1}',"
        " now() - make_interval(days => n) from generate_series(0, %s) n",
        (DAYS - 1,),
    )
    return db


@pytest.mark.parametrize(("arguments", "code"), [((), 0), (("--once",), 143)])
def test_the_scheduler_ends_after_the_step(days: Database, arguments: tuple[str, ...], code: int) -> None:
    """In the middle of a fold: that step is committed, no further one, the run is recorded as stopped."""
    db = days
    db.execute(
        "create function public.hold_up() returns trigger language plpgsql as"
        " $$ begin perform pg_advisory_xact_lock(42); return new; end $$;"
        "create trigger hold_up before insert on usage.daily_total for each row execute function public.hold_up()"
    )
    db.execute("select pg_advisory_lock(42)")
    with command(db, "schedule", *arguments) as process:
        await_blocked(db, db.connection)
        process.send_signal(signal.SIGTERM)
        assert leases(db) > 0
        assert process.poll() is None
        db.execute("select pg_advisory_unlock(42)")
        _, told = process.communicate(timeout=60)
    assert process.returncode == code
    assert "outcome=stopped" in told
    assert "Traceback" not in told
    assert leases(db) == 0
    assert db.scalar("select status from usage.refresh_run") == "stopped"
    assert 0 < db.scalar("select count(*) from usage.daily") < DAYS
    db.compare()
    if arguments:
        assert told.splitlines()[-1] == "aggregator: stopped by a signal; what was committed stays good"


@pytest.mark.parametrize(
    "arguments", [("refresh",), ("rebuild",), ("purge", "--keep", "10d"), ("verify",), ("verify", "--repair")]
)
def test_other_commands_end_at_once(days: Database, arguments: tuple[str, ...]) -> None:
    """In the middle of a statement: it is cancelled, the exit code is SIGTERM's, one line says so, a next run completes."""
    db = days
    db.refresh()
    blocker = db.connect(autocommit=False)
    blocker.execute(b"lock table usage.state in access exclusive mode")
    with command(db, *arguments) as process:
        await_blocked(db, blocker)
        process.send_signal(signal.SIGTERM)
        printed, told = process.communicate(timeout=60)
        assert (process.returncode, printed) == (143, "")
        assert told == "aggregator: interrupted; what was committed stays good\n"
    assert leases(db) == 0
    blocker.rollback()
    assert run(db.dsn, *arguments).returncode == 0


def test_migrate_ends_at_once(days: Database) -> None:
    """While it tries to get its locks: nothing is changed, and the next one completes."""
    db = days
    migrations.downgrade_to("0001", db.settings)
    reader = db.connect(autocommit=False)
    reader.execute(b"select * from usage.state")
    with command(db, "migrate") as process:
        await_blocked(db, reader)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=60)
        assert (process.returncode, told) == (143, "aggregator: interrupted; what was committed stays good\n")
    assert db.scalar("select version_num from usage.alembic_version") == "0001"
    reader.rollback()
    assert run(db.dsn, "migrate").returncode == 0
    db.refresh()
    db.compare()


def test_ctrl_c(days: Database) -> None:
    """SIGINT says the same, with its own exit code."""
    db = days
    blocker = db.connect(autocommit=False)
    blocker.execute(b"lock table usage.state in access exclusive mode")
    with command(db, "refresh") as process:
        await_blocked(db, blocker)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (130, "aggregator: interrupted; what was committed stays good\n")


def test_once_from_cron(days: Database) -> None:
    """It lets the database know its limits; a failure names no retry, since nobody is there to do it."""
    db = days
    assert run(db.dsn, "schedule", "--once", AGGREGATOR_REFRESH_EVERY="7").returncode == 0
    assert db.scalar("select max_lag = interval '21 seconds' from usage.health_limit")
    db.execute("alter table public.resource_usage_log rename column detail to details")
    failed = run(db.dsn, "schedule", "--once")
    assert failed.returncode == 1
    assert "outcome=failed" in failed.stderr
    assert "retry_in" not in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
