"""kill -9 of the refresher, the scheduler and the server at random moments; AGGREGATOR_FAULT_KILLS sets how many."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from aggregator import embedded, migrations, purge, rebuild
from aggregator.settings import Settings
from tests.cli.test_cli import ROOT, _environment
from tests.faults.shadow import Writer, check, prepare
from tests.harness import SCHEMA, Database

KILLS = int(os.environ.get("AGGREGATOR_FAULT_KILLS", "8"))
COMMANDS: list[list[str]] = [
    ["refresh", "--step-events", "20"],
    ["refresh", "--views"],
    ["schedule", "--refresh-every", "1"],
    ["schedule", "--once"],
    ["verify", "--repair"],
    ["rebuild"],
    ["purge", "--keep", "60d"],
]


def start(db: Database, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "aggregator", *arguments],
        env=_environment(db.dsn, {"AGGREGATOR_PURGE_BATCH": "7", "AGGREGATOR_STEP_EVENTS": "50"}),
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def make_work(db: Database, rng: random.Random) -> None:
    """Something to do for whatever comes next; leases of the killed run out."""
    db.execute("update usage.job set holder = null, lease_until = null, retry_at = null")
    if rng.random() < 0.4:
        db.execute(
            "update usage.daily set total_value = total_value + 1 where day >= (select greatest(usage.local_day(sealed_until, time_zone), '2000-01-01') from usage.state)"
        )
        db.execute(
            "update usage.state set trusted = false, distrust_reason = 'a test says so: run aggregator rebuild', repair_day = null"
        )
    if rng.random() < 0.4:
        db.execute("update usage.job set done_for = null, started_at = null")
        db.execute("update usage.state set attached_at = now() - interval '3 days'")


def settle(db: Database) -> None:
    """A next run of everything completes, and all is well."""
    db.execute("update usage.job set holder = null, lease_until = null")
    assert db.refresh().status == "done"
    purge.purge(db.own, db.settings, "60d") if db.scalar("select usage.doubt() is null") else None
    assert rebuild.rebuild(db.own, db.settings).trusted
    check(db)


@pytest.fixture
def prepared(new_database: Any) -> Database:
    db: Database = new_database()
    prepare(db)
    db.attach()
    return db


def test_clients_killed_at_random_moments(prepared: Database) -> None:
    """After each kill every answer is right in one snapshot, under a writer; now and then a next run completes."""
    db = prepared
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    killed: Counter[str] = Counter()
    print(f"seed {seed}")
    with Writer(db, seed) as writer:
        for number in range(KILLS):
            make_work(db, rng)
            command = rng.choice(COMMANDS) if len(COMMANDS) * 2 < KILLS else COMMANDS[number % len(COMMANDS)]
            process = start(db, *command)
            try:
                process.wait(0.5 + rng.random() * 1.5)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                killed[command[0]] += 1
            process.wait()
            check(db)
            if number % 10 == 9:
                db.execute("update usage.job set holder = null, lease_until = null")
                assert db.refresh().status == "done"
                check(db)
    settle(db)
    print(
        f"{sum(killed.values())} of {KILLS} killed at work: {dict(killed)}; {writer.transactions} transactions beside them"
    )


@pytest.fixture
def own_server() -> Iterator[embedded.Server]:
    bin_dir = os.environ.get("AGGREGATOR_TEST_BIN")
    with embedded.temporary_server(
        Path(bin_dir) if bin_dir else None,
        {"fsync": "off", "shared_buffers": "'32MB'", "max_wal_senders": "0", "wal_level": "minimal"},
    ) as server:
        yield server


def database(server: embedded.Server) -> Database:
    return Database(server.dsn().replace(" dbname=postgres", ""), "app", "UTC", {})


def new_database_of(server: embedded.Server) -> Database:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("create database app template template0 encoding 'UTF8'")
    with psycopg.connect(server.dsn("app"), autocommit=True) as connection:
        connection.execute(SCHEMA.encode())
    migrations.upgrade(Settings(database_url=server.dsn("app")))  # type: ignore[arg-type]
    return database(server)


@pytest.mark.parametrize("seen", [True, False])
def test_crash_while_the_source_is_unlogged(own_server: embedded.Server, seen: bool) -> None:
    """A source that a crash emptied is not answered from rollups, not even if it was set logged again before anybody looked."""
    db = new_database_of(own_server)
    prepare(db, days=20)
    db.attach()
    db.refresh()
    db.execute("alter table public.resource_usage_log set unlogged")
    if seen:
        db.refresh()
    db.close()
    own_server.stop("immediate")
    own_server.start()
    db = database(own_server)
    assert db.scalar("select count(*) from public.resource_usage_log") == 0
    assert "is not logged" in str(db.scalar("select usage.fingerprint_doubt()"))
    db.compare()
    db.execute("alter table public.resource_usage_log set logged")
    db.compare()
    db.refresh()
    db.compare()
    assert db.verify(repair=True).trusted
    db.compare()
    # A rewrite without a crash is the host's good right, and so is a shutdown.
    db.execute("vacuum full public.resource_usage_log")
    db.close()
    own_server.stop("fast")
    own_server.start()
    db = database(own_server)
    assert db.scalar("select usage.doubt()") is None
    db.close()


def test_server_crashes_at_random_moments(own_server: embedded.Server) -> None:
    """The server stops as in a crash, during capture, folds, views, verification, repair and purge; after recovery all is right."""
    db = new_database_of(own_server)
    prepare(db)
    db.attach()
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    crashes = max(3, KILLS // 3)
    print(f"seed {seed}")
    with Writer(db, seed) as writer:
        for number in range(crashes):
            make_work(db, rng)
            processes = [start(db, *rng.choice(COMMANDS)) for _ in range(2)]
            db.close()
            time.sleep(0.5 + rng.random() * 1.2)
            own_server.stop("immediate")
            for process in processes:
                process.kill()
                process.wait()
            own_server.start()
            db = database(own_server)
            writer.db = db
            check(db)
            if number % 3 == 2:
                db.execute("update usage.job set holder = null, lease_until = null")
                assert db.refresh().status == "done"
                check(db)
    settle(db)
    db.close()
    print(f"{crashes} crashes; {writer.transactions} transactions beside them")
