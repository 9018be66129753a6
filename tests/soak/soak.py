"""Everything at once, for as long as asked: all writers, faults, readers, and a probe that measures how long a writer waits.

Two databases on one server that is crashed now and then. In one the writers, refreshers, readers and the host's DDL of
tests/concurrency work, in rounds, each from an empty start: a race is only excluded by many short runs. In the other,
which lives longer, commands are killed as in tests/faults, purges among them, and answers are compared with a table that
nobody purges. Nothing is written here that these two have already.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import subprocess
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg import errors

from aggregator import embedded
from aggregator.db import DatabaseError
from tests.concurrency.stress import DDL, OPERATOR, Stress, lost
from tests.faults import shadow, test_kill
from tests.harness import Database, create_with_source
from tests.integration.sources import PARTITIONED, PARTITIONED_DDL

SETTINGS = {
    "fsync": "off",  # a crash is one of the server, not of the machine
    "full_page_writes": "off",
    "max_connections": "80",
    "max_prepared_transactions": "20",
    "shared_buffers": "'128MB'",
    "deadlock_timeout": "'500ms'",
    "autovacuum_naptime": "'5s'",
    "log_min_messages": "fatal",
}

ROUND_SECONDS = 30.0
CRASH_SECONDS = 15.0
"""Between two crashes, on average."""
TERMINATE_SECONDS = 1.5
"""Between two sessions that are terminated, on average."""
KEPT_ROUNDS = 20
"""For so many rounds a database of commands is kept: its raw query gets slow."""
PATIENCE = 60.0
"""Seconds for which the server may be away."""

SOAK = "soak"
"""How the sessions of this module are called, which nobody terminates."""


class Kind(NamedTuple):
    """What a round is like."""

    name: str
    partitioned: bool
    ddl: bool
    hours: bool
    synchronous_commit: bool
    marks: bool = False


KINDS = [
    Kind("partitions come and go, hours", partitioned=True, ddl=True, hours=True, synchronous_commit=True),
    Kind("a table is truncated and rewritten", partitioned=False, ddl=True, hours=False, synchronous_commit=False),
    Kind("partitions come and go", partitioned=True, ddl=True, hours=False, synchronous_commit=False),
    Kind("writers only, hours", partitioned=False, ddl=False, hours=True, synchronous_commit=True),
    Kind("writers only, marks", partitioned=False, ddl=False, hours=False, synchronous_commit=True, marks=True),
]


@dataclass
class Report:
    """What was done, and whether all was well: ``failures`` are texts, the first line of each says it all."""

    seed: int
    seconds: float = 0.0
    rounds: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    killed: Counter[str] = field(default_factory=Counter)
    """Commands that were killed at work, by name."""
    waited: dict[str, float] = field(default_factory=dict)
    """The longest time in milliseconds that one insert took, by who stood in its way."""
    probes: int = 0
    failures: list[str] = field(default_factory=list)


class Probe:
    """Inserts one event after the other at the tail, and measures the slowest; another session sees who blocks it."""

    BEHIND_NOBODY = "behind nobody (the machine)"
    BEHIND_DDL = "behind the host's DDL"
    BEHIND_HOST = "behind others of the host"
    BEHIND_ATTACH = "behind our attach, which says so"
    BEHIND_US = "behind a refresh, a repair or a read of ours"

    def __init__(self, db: Database, report: Report, stop: threading.Event) -> None:
        self._db = db
        self._report = report
        self._stop = stop
        self._number = 0
        self._pid: int | None = None
        self._seen: dict[int, set[str]] = {}
        self.failures: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._guard, args=(work,), daemon=True) for work in (self._insert, self._watch)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE)

    def _guard(self, work: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                work()
            except Exception as exc:  # noqa: BLE001 -- handed to the main thread
                if not lost(exc):
                    self.failures.append(exc)
                    self._stop.set()
                self._stop.wait(0.05)

    def _insert(self) -> None:
        statement = (
            f"insert into {self._db.source} (resource_type, created_at) values ('tts', clock_timestamp())".encode()
        )
        with psycopg.connect(self._db.dsn, autocommit=True, application_name=f"{SOAK} probe") as connection:
            self._pid = connection.info.backend_pid
            while not self._stop.wait(0.01):
                self._number += 1
                began = time.perf_counter()
                with suppress(errors.DeadlockDetected):  # the host's DDL and its writers; it still took its time
                    connection.execute(statement)
                took = (time.perf_counter() - began) * 1000
                who = self._who(self._seen.pop(self._number, set()))
                self._report.probes += 1
                self._report.waited[who] = max(self._report.waited.get(who, 0.0), took)

    def _watch(self) -> None:
        query = (
            b"select coalesce(a.application_name, '') from unnest(pg_blocking_pids(%s)) b (pid)"
            b" left join pg_stat_activity a on a.pid = b.pid"
        )
        with psycopg.connect(self._db.dsn, autocommit=True, application_name=f"{SOAK} watch") as connection:
            while not self._stop.wait(0.003):
                number = self._number
                names = {row[0] for row in connection.execute(query, (self._pid,)).fetchall()}
                if names and number == self._number:
                    self._seen.setdefault(number, set()).update(names)

    def _who(self, names: set[str]) -> str:
        # A lock that the host's DDL waits for is waited for by all behind it, whoever holds it.
        if DDL in names:
            return self.BEHIND_DDL
        ours = {name for name in names if name.startswith("aggregator")}
        if ours == {OPERATOR}:
            return self.BEHIND_ATTACH
        return self.BEHIND_US if ours else self.BEHIND_HOST if names else self.BEHIND_NOBODY


class Faults:
    """Terminates sessions, kills server processes with SIGKILL, and crashes the server, at random moments."""

    def __init__(self, server: embedded.Server, report: Report, rng: random.Random) -> None:
        self._server = server
        self._report = report
        self._rng = rng
        self._stop = threading.Event()
        self._calm = threading.Lock()
        self._active = False
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._guard, daemon=True)
        self._thread.start()

    def begin(self) -> None:
        with self._calm:
            self._active = True

    def end(self) -> None:
        """From here on there is none; the server is up."""
        with self._calm:
            self._active = False

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)

    def _guard(self) -> None:
        try:
            next_crash = time.monotonic() + self._rng.expovariate(1 / CRASH_SECONDS)
            while not self._stop.wait(self._rng.expovariate(1 / TERMINATE_SECONDS)):
                with self._calm:
                    if not self._active:
                        continue
                    if time.monotonic() < next_crash:
                        with suppress(psycopg.OperationalError):  # still recovering
                            self._terminate()
                        continue
                    self._crash()
                    next_crash = time.monotonic() + self._rng.expovariate(1 / CRASH_SECONDS)
        except BaseException as exc:  # noqa: BLE001 -- handed to the main thread
            self.failure = exc

    def _pids(self, connection: psycopg.Connection[Any]) -> list[int]:
        rows = connection.execute(
            "select pid from pg_stat_activity where backend_type = 'client backend' and application_name not like %s and pid <> pg_backend_pid()",
            (f"{SOAK}%",),
        ).fetchall()
        return [row[0] for row in rows]

    def _terminate(self) -> None:
        with psycopg.connect(self._server.dsn(), autocommit=True, application_name=SOAK) as connection:
            pids = self._pids(connection)
            if pids:
                connection.execute("select pg_terminate_backend(%s)", (self._rng.choice(pids),))
                self._report.counts["sessions terminated"] += 1

    def _crash(self) -> None:
        if self._rng.random() < 0.5:
            self._server.stop("immediate")
            self._server.start()
            self._report.counts["immediate stops"] += 1
            return
        with psycopg.connect(self._server.dsn(), autocommit=True, application_name=SOAK) as connection:
            pids = self._pids(connection)
            if pids:
                os.kill(self._rng.choice(pids), signal.SIGKILL)
                self._report.counts["backends killed"] += 1
        time.sleep(0.2)  # until the others are told
        wait_for(self._server.dsn())


class Kept:
    """Commands that are killed at work, purges among them, on a database whose answers a shadow table has."""

    def __init__(self, database: Database, report: Report, seed: int) -> None:
        self._db = database
        self._report = report
        self._rng = random.Random(seed)
        self._stop = threading.Event()
        self.failure: BaseException | None = None
        self._writer = shadow.Writer(database, seed, pause=0.3)
        self._thread = threading.Thread(target=self._guard, daemon=True)

    def start(self) -> None:
        self._writer.__enter__()
        self._thread.start()

    def end(self) -> None:
        """Stop, and compare at rest after a run of everything; to be called while there are no faults."""
        self._stop.set()
        self._thread.join(4 * PATIENCE)
        self._writer.__exit__()
        self._report.counts["transactions"] += self._writer.transactions
        if self.failure is not None:
            raise self.failure
        if self._thread.is_alive():
            raise AssertionError("a command hangs: somebody blocks")
        self._db.reconnect()
        test_kill.settle(self._db)
        self._report.counts["snapshots compared"] += 2
        self._db.close()

    def _guard(self) -> None:
        try:
            number = 0
            while not self._stop.is_set():
                command = test_kill.COMMANDS[number % len(test_kill.COMMANDS)]
                self._until_done(functools.partial(self._strike, command))
                self._until_done(lambda: test_kill.recover(self._db))
                self._report.counts["snapshots compared"] += 2
                number += 1
        except BaseException as exc:  # noqa: BLE001 -- handed to the main thread
            self.failure = exc

    def _until_done(self, work: Callable[[], None]) -> None:
        """Do it again while sessions are lost over it."""
        while True:
            try:
                work()
            except Exception as exc:
                if not lost(exc):
                    raise
                wait_for(self._db.dsn)
                with suppress(psycopg.OperationalError, DatabaseError):
                    self._db.reconnect()
            else:
                return

    def _strike(self, command: list[str]) -> None:
        test_kill.make_work(self._db, self._rng)
        since = self._db.scalar("select clock_timestamp()")
        processes: list[subprocess.Popen[bytes]] = [test_kill.start(self._db, *command)]
        try:
            if test_kill.strike(self._db, processes, since, self._rng):
                self._report.killed[command[0] + (" --repair" if "--repair" in command else "")] += 1
        finally:
            test_kill.end(processes)


class Soak:
    """One soak: ``run`` returns its report, whatever happens."""

    def __init__(
        self, seconds: float, seed: int, *, round_seconds: float = ROUND_SECONDS, first_round: int = 0,
        say: Callable[[str], None] = print,
    ) -> None:  # fmt: skip
        self._seconds = seconds
        self._round_seconds = round_seconds
        self._first_round = first_round
        self._say = say
        self._report = Report(seed)

    def run(self) -> Report:
        report = self._report
        began = time.monotonic()
        bin_dir = os.environ.get("AGGREGATOR_TEST_BIN")
        with embedded.temporary_server(Path(bin_dir) if bin_dir else None, SETTINGS) as server:
            create_with_source(server.dsn(), "soak_template")  # to be copied: everything else of a start takes longer
            faults = Faults(server, report, random.Random(f"{report.seed} faults"))
            kept: Kept | None = None
            number = self._first_round
            try:
                while not report.rounds or time.monotonic() - began < self._seconds:  # to start may take longer
                    if kept is None:
                        kept = Kept(self._new(server, f"kept_{number}", kept=True), report, report.seed + number)
                        kept.start()
                    self._round(server, faults, number)
                    report.rounds += 1
                    number += 1
                    for failure in (faults.failure, kept.failure):
                        if failure is not None:
                            raise failure
                    if report.rounds % KEPT_ROUNDS == 0:
                        kept.end()
                        kept = None
                if kept is not None:
                    kept.end()
            except BaseException as exc:  # noqa: BLE001 -- it is what the report says
                if isinstance(exc, KeyboardInterrupt):
                    self._say("stopped")
                else:
                    said = "".join(traceback.format_exception(exc))
                    report.failures.append(f"{type(exc).__name__} in round {number}: {exc}\n{said}")
            faults.stop()
        if Probe.BEHIND_US in report.waited:
            report.failures.append(f"a writer waited {report.waited[Probe.BEHIND_US]:.1f} ms {Probe.BEHIND_US}")
        report.seconds = time.monotonic() - began
        return report

    def _round(self, server: embedded.Server, faults: Faults, number: int) -> None:
        """One round of one kind; then everything once more at rest."""
        kind = KINDS[number % len(KINDS)]
        db = self._new(server, f"round_{number}", kind)
        stress = Stress(db, self._report.seed + number, ddl=kind.ddl, hours=kind.hours, marks=kind.marks, faults=True)
        probe = Probe(db, self._report, stress.stop)
        probe.start()
        faults.begin()
        try:
            stress.work(self._round_seconds, writers=3, refreshers=2, readers=1)
        finally:
            stress.stop.set()
            faults.end()
            probe.join()
        if probe.failures:
            raise probe.failures[0]
        stress.settle()
        counts = stress.counts
        counts["snapshots compared"] = counts.pop("comparisons", 0) + 3
        self._report.counts.update(counts)
        self._say(
            f"round {number}, {kind.name}: {counts['transactions']} transactions, {counts['refreshes']} refreshes,"
            f" {counts['snapshots compared']} snapshots compared, {counts['sessions lost']} sessions lost: equal"
        )
        db.close()
        with psycopg.connect(server.dsn(), autocommit=True, application_name=SOAK) as connection:
            connection.execute(f"drop database {db.name} with (force)".encode())

    @staticmethod
    def _new(server: embedded.Server, name: str, kind: Kind | None = None, *, kept: bool = False) -> Database:
        """Make a database of the template, attached."""
        with psycopg.connect(server.dsn(), autocommit=True, application_name=SOAK) as connection:
            connection.execute(f"create database {name} template soak_template".encode())
            if kind is not None and not kind.synchronous_commit:
                connection.execute(f"alter database {name} set synchronous_commit = off".encode())
        where = server.dsn().replace(" dbname=postgres", "")
        partitioned = kind is not None and kind.partitioned
        db = Database(where, name, "UTC", {"source_table": PARTITIONED} if partitioned else {})
        if partitioned:
            db.execute(PARTITIONED_DDL)
        if kept:
            shadow.prepare(db)
        db.attach()
        return db


def wait_for(dsn: str) -> None:
    """Wait until a server accepts connections."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            psycopg.connect(dsn, application_name=SOAK).close()
        except psycopg.OperationalError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.05)
        else:
            return
