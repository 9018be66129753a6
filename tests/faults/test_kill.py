"""kill -9 of the refresher, the scheduler and the server at random moments of their work; AGGREGATOR_FAULT_KILLS: how many."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from aggregator import embedded, purge, rebuild, refresh
from tests.cli.test_cli import ROOT, _environment
from tests.faults.shadow import SHADOW, Writer, check, prepare
from tests.harness import Database, create_with_source

KILLS = int(os.environ.get("AGGREGATOR_FAULT_KILLS", "8"))
CRASHES = max(3, KILLS // 3)
_TRIES = 4
"""Starts for each kill at most: a command may end before its moment comes."""

AT_WORK = """
select exists (
    select from pg_stat_activity a
     where a.datname = current_database() and a.application_name like 'aggregator %%' and a.backend_start > %s
       and a.state in ('active', 'idle in transaction')
       and (a.backend_xid is not null
            or exists (select from pg_locks l
                        where l.pid = a.pid and l.granted and l.relation = 'public.resource_usage_log'::regclass)))
"""
"""Whether a session of ours, opened after an instant, is in a transaction that writes, or that reads the source."""
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


def strike(db: Database, processes: list[subprocess.Popen[bytes]], since: Any, rng: random.Random) -> bool:
    """Stop processes at a random moment at which one is seen at work; False: they ended before there was one.

    They are halted, so that what was seen is still so when they, or the server, are killed.
    """
    while any(process.poll() is None for process in processes):
        if not db.scalar(AT_WORK, (since,)):
            time.sleep(0.005)
            continue
        time.sleep(0.3 * rng.random() ** 2)
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        if db.scalar(AT_WORK, (since,)) and any(process.poll() is None for process in processes):
            return True
        for process in processes:
            process.send_signal(signal.SIGCONT)
    return False


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()
        process.wait()


def make_work(db: Database, rng: random.Random) -> None:
    """Something to do for whatever comes next; leases of the killed run out."""
    free_leases(db)
    db.execute(
        "with written as (insert into public.resource_usage_log (resource_type, detail, created_at)"
        " select 'tts', '{\"characters\": 3}', now() - make_interval(days => n / 4) from generate_series(1, 120) n returning *)"
        f" insert into {SHADOW} select * from written"
    )
    if rng.random() < 0.4:
        with db.connection.transaction():
            db.execute(
                "update usage.daily_fact set total_value = total_value + 1 where day >= (select greatest(usage.local_day(sealed_until, time_zone), '2000-01-01') from usage.state)"
            )
            db.execute(
                "update usage.state set trusted = false, distrust_reason = 'a test says so: run aggregator rebuild', repair_day = null"
            )
    if rng.random() < 0.4:
        db.execute("update usage.job set done_for = null, started_at = null")
        db.execute("update usage.state set attached_at = now() - interval '3 days'")


def free_leases(db: Database) -> None:
    db.execute("update usage.job set holder = null, lease_until = null, retry_at = null")


def recover(db: Database) -> None:
    """Every answer is right in one snapshot, a next run completes, and they still are."""
    check(db)
    free_leases(db)
    assert db.refresh().status == "done"
    check(db)


def settle(db: Database) -> None:
    """A next run of everything completes, and all is well."""
    free_leases(db)
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
    """After each kill of one at work every answer is right in one snapshot, under a writer, and a next run completes."""
    db = prepared
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    killed: Counter[str] = Counter()
    started = 0
    print(f"seed {seed}")
    with Writer(db, seed) as writer:
        while killed.total() < KILLS and started < KILLS * _TRIES:
            make_work(db, rng)
            command = COMMANDS[started % len(COMMANDS)]
            started += 1
            since = db.scalar("select clock_timestamp()")
            process = start(db, *command)
            if strike(db, [process], since, rng):
                killed[" ".join(command)] += 1
            end([process])
            recover(db)
    settle(db)
    print(
        f"{killed.total()} killed at work, of {started} started: {dict(killed)}; {writer.transactions} transactions beside them"
    )
    assert killed.total() >= KILLS


def server_of(settings: dict[str, str]) -> AbstractContextManager[embedded.Server]:
    bin_dir = os.environ.get("AGGREGATOR_TEST_BIN")
    return embedded.temporary_server(
        Path(bin_dir) if bin_dir else None, {"fsync": "off", "shared_buffers": "'32MB'", **settings}
    )


@pytest.fixture
def own_server() -> Iterator[embedded.Server]:
    with server_of({"max_wal_senders": "0", "wal_level": "minimal"}) as server:
        yield server


def database(server: embedded.Server) -> Database:
    return Database(server.dsn().replace(" dbname=postgres", ""), "app", "UTC", {})


def new_database_of(server: embedded.Server) -> Database:
    create_with_source(server.dsn(), "app")
    return database(server)


def test_a_crash_takes_back_what_a_step_has_done() -> None:
    """Steps do not wait for the disk: what is lost is raw, or a late change, again. The end of a run waits for all of it."""

    class CrashedError(Exception):
        pass

    with server_of({"wal_writer_delay": "'10s'"}) as server:
        db = new_database_of(server)
        prepare(db, days=60)
        db.attach()
        lost = 0
        for steps in (1, 3, 2, 4):
            reached: list[str] = []

            def crash(progress: refresh.Progress, steps: int = steps, reached: list[str] = reached) -> None:
                reached.append(progress.frontier)
                if len(reached) == steps:
                    server.stop("immediate")
                    raise CrashedError

            with pytest.raises(CrashedError):
                refresh.refresh(db.own, db.settings.model_copy(update={"step_events": 20}), progress=crash)
            db.close()
            server.start()
            db = database(server)
            lost += db.scalar("select frontier < %s::timestamptz from usage.state", (reached[-1],))
            check(db)
            db.execute("delete from public.resource_usage_log where id %% 7 = %s", (steps,))
            db.execute(f"delete from {SHADOW} where id %% 7 = %s", (steps,))
            check(db)
        assert lost == 4
        done = db.refresh(step_events=20)
        db.close()
        server.stop("immediate")
        server.start()
        db = database(server)
        assert db.scalar("select frontier = %s::timestamptz from usage.state", (done.frontier,))
        assert db.scalar("select count(*) from usage.late_change") == 0
        check(db)
        assert db.verify().differences == 0
        db.close()


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
    crashed = started = 0
    print(f"seed {seed}")
    with Writer(db, seed) as writer:
        while crashed < CRASHES and started < CRASHES * _TRIES:
            make_work(db, rng)
            started += 1
            since = db.scalar("select clock_timestamp()")
            processes = [start(db, *rng.choice(COMMANDS)) for _ in range(2)]
            if strike(db, processes, since, rng):
                crashed += 1
                db.close()
                own_server.stop("immediate")
                end(processes)
                own_server.start()
                db = database(own_server)
                writer.db = db
            end(processes)
            recover(db)
    settle(db)
    db.close()
    print(f"{crashed} crashes while at work, of {started} started; {writer.transactions} transactions beside them")
    assert crashed >= CRASHES
