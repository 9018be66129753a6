"""What writers pay: the same statements without capture, with ours, and with others', in short turns."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.data import Database, Sample
from benchmarks.measure import Recorder, milliseconds
from benchmarks.results import NO_CAPTURE, ROLLUPS, Measurement
from benchmarks.sql import load

SQL = load("writes")

OURS = (NO_CAPTURE, ROLLUPS)

TAIL, LATE = "0", "2 days"
BLOCK = 100
"""Single-row inserts of one turn: short turns, as what else the machine does comes and goes."""

MANY = 100
"""Rows of a multi-row insert."""

WRITERS = 4

PATIENCE = 4
"""Times the budget, after which a COPY of others is given up: updates of one row in one transaction may grow quadratic."""


class Writes:
    """The cases of one size: ``databases`` by contender."""

    def __init__(self, record: Recorder, sample: Sample, databases: dict[str, Database]) -> None:
        self.record = record
        self.databases = databases
        self.collection = sample.middling_collection(databases[NO_CAPTURE])
        self.patience = max(1, round(PATIENCE * 1000 * record.options.budget))
        self.turns = 4 + 20 * (record.options.repeat - 1)

    def all_cases(self, events: int) -> None:
        """Measure everything."""
        self._single("single-row inserts at the tail, synchronous_commit on", TAIL, commit="on")
        self._single("single-row inserts at the tail, synchronous_commit off", TAIL, commit="off")
        self._single(
            "single-row inserts at the tail, synchronous_commit off, client and server on one CPU",
            TAIL, commit="off", together=True,
        )  # fmt: skip
        self._single("late single-row inserts, synchronous_commit on", LATE, commit="on")
        self._single("late single-row inserts, synchronous_commit off", LATE, commit="off")
        self._multi_row(f"inserts of {MANY} rows at the tail, synchronous_commit off", TAIL)
        self._multi_row(f"late inserts of {MANY} rows, synchronous_commit off", LATE)
        self._several_writers()
        for rows in sorted({max(1000, min(most, events // 20)) for most in (20_000, 500_000)}):
            self._copies(f"COPY of {rows:,} events at the tail", rows, "copy_out_tail")
            self._copies(f"COPY of {rows:,} late events", rows, "copy_out_late")

    def _rates(self, what: str, rows: int, work: Callable[[psycopg.Connection[Any]], None], *, commit: str) -> None:
        def turn(database: Database) -> float:
            return rows / milliseconds(lambda: work(database.connection)) * 1000

        try:
            for database in self.databases.values():
                database.connection.execute("select set_config('synchronous_commit', %s, false)", (commit,))
            values = self.record.interleave(
                f"writes, {what}",
                {name: partial(turn, database) for name, database in self.databases.items()},
                repeat=self.turns,
            )
        finally:
            for database in self.databases.values():
                database.connection.execute("reset synchronous_commit")
        self.record.add(Measurement("writes", what, "/s", values))

    def _single(self, what: str, age: str, *, commit: str, together: bool = False) -> None:
        """Each row its own transaction."""
        parameters = {"collection": self.collection, "age": age}

        def work(connection: psycopg.Connection[Any]) -> None:
            for _ in range(BLOCK):
                connection.execute(SQL["insert_one"], parameters, prepare=True)

        connections = [database.connection for database in self.databases.values()]
        with self.record.attempt(f"writes, {what}"), placed(connections, together=together) as done:
            if not done:
                self.record.size.notes.append(
                    f"writes, {what}: on whatever CPUs the processes came to be, so the ratios may be chance"
                )
            self._rates(what, BLOCK, work, commit=commit)

    def _multi_row(self, what: str, age: str) -> None:
        parameters = {"collection": self.collection, "age": age, "tokens": list(range(MANY))}

        def work(connection: psycopg.Connection[Any]) -> None:
            for _ in range(10):
                connection.execute(SQL["insert_many"], parameters, prepare=True)

        with self.record.attempt(f"writes, {what}"):
            self._rates(what, 10 * MANY, work, commit="off")

    def _several_writers(self) -> None:
        """Writers of one collection, type and day at once: do they wait for each other?"""
        what = f"single-row inserts by {WRITERS} writers at once, synchronous_commit on"
        parameters = {"collection": self.collection, "age": TAIL}

        def turn(connections: list[psycopg.Connection[Any]]) -> float:
            failures: list[Exception] = []

            def write(connection: psycopg.Connection[Any]) -> None:
                try:
                    for _ in range(BLOCK):
                        connection.execute(SQL["insert_one"], parameters, prepare=True)
                except Exception as exc:  # noqa: BLE001 -- raised below, in the thread that records it
                    failures.append(exc)

            threads = [threading.Thread(target=write, args=(connection,)) for connection in connections]

            def work() -> None:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()

            took = milliseconds(work)
            if failures:
                raise failures[0]
            return WRITERS * (BLOCK) / took * 1000

        with self.record.attempt(f"writes, {what}"), contextlib.ExitStack() as stack:
            works: dict[str, Callable[[], float]] = {}
            for name, database in self.databases.items():
                connections = [
                    stack.enter_context(psycopg.connect(database.settings.conninfo, autocommit=True))
                    for _ in range(WRITERS)
                ]
                works[name] = partial(turn, connections)
            values = self.record.interleave(f"writes, {what}", works)
            self.record.add(Measurement("writes", what, "/s", values))

    def _copies(self, what: str, rows: int, block: str) -> None:
        """COPY of the same rows into each; rolled back, so that all find the table as it was."""
        with self.record.attempt(f"writes, {what}"):
            with self.databases[NO_CAPTURE].connection.cursor().copy(SQL[block], {"n": rows}) as out:
                data = b"".join(bytes(part) for part in out)
            works: dict[str, Callable[[], float]] = {
                name: partial(_copy_and_roll_back, database, data, None if name in OURS else self.patience)
                for name, database in self.databases.items()
            }
            self.record.add(Measurement("writes", what, "ms", self.record.interleave(f"writes, {what}", works)))


@contextlib.contextmanager
def placed(connections: Iterable[psycopg.Connection[Any]], *, together: bool) -> Iterator[bool]:
    """Keep this thread on one CPU, and the server's processes on another, or on the same; give whether that could be done.

    A round trip takes half as long if client and server share a CPU (no other has to be woken) and the scheduler leaves a pair
    where it happens to be for minutes: without this, what is compared is where the processes are.
    """
    were: dict[int, set[int]] = {}

    def restore() -> None:
        for pid, cpus in were.items():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(pid, cpus)
        were.clear()

    try:
        cpus = sorted(os.sched_getaffinity(0))
        for pid in (0, *(_local_process(connection) for connection in connections)):
            if pid is None or len(cpus) < 2:
                raise OSError("nowhere to go")
            were[pid] = os.sched_getaffinity(pid)
            os.sched_setaffinity(pid, {cpus[1 if together or pid == 0 else 0]})
    except (AttributeError, OSError):  # not Linux; a process of another machine, or of another user
        restore()
        yield False
        return
    try:
        yield True
    finally:
        restore()


def _local_process(connection: psycopg.Connection[Any]) -> int | None:
    """Return the server's process of a connection, if it is one of this machine."""
    pid = connection.info.backend_pid
    with contextlib.suppress(OSError):
        if connection.info.host.startswith("/") and Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"postgres: "):
            return pid
    return None


def _copy_and_roll_back(database: Database, data: bytes, patience: int | None) -> float:
    """Return the milliseconds of one COPY; ``patience``, in milliseconds too, is how long it may take."""
    connection = database.connection

    def work() -> None:
        with connection.cursor().copy(SQL["copy_in"]) as copy:
            for start in range(0, len(data), 1 << 18):
                copy.write(data[start : start + (1 << 18)])

    connection.execute("checkpoint")
    with connection.transaction(force_rollback=True):
        connection.execute("select set_config('statement_timeout', %s, true)", (str(patience or 0),))
        took = milliseconds(work)
    connection.execute("vacuum")
    return took
