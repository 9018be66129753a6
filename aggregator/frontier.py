"""The frontier that writers see: move it up, and wait for those who wrote before the move."""

from __future__ import annotations

import time

from aggregator import sql as sql_files
from aggregator.db import Connection, transaction

SQL = sql_files.load("frontier")


def advance(connection: Connection) -> str:
    """Move ``usage.frontier_seq`` to now, never downwards, and return the instant; commits.

    From here on every write below it logs itself.
    """
    with transaction(connection):
        connection.execute(SQL["mutex"])
        row = connection.execute(SQL["advance"]).fetchone()
        assert row is not None
        return str(row[1])


def wait(connection: Connection, timeout: float) -> tuple[str, ...]:
    """Wait until every transaction that holds a write lock on the source and has an id now has ended.

    As CREATE INDEX CONCURRENTLY waits; prepared transactions included; nobody is blocked. Return descriptions of those
    still open after ``timeout`` seconds; none means that all have ended.
    """
    deadline = time.monotonic() + timeout
    pause = 0.002
    with transaction(connection, read_only=True):
        ids = [row[0] for row in connection.execute(SQL["writers"]).fetchall()]
    while ids:
        with transaction(connection, read_only=True):
            ids = [row[0] for row in connection.execute(SQL["still_open"], {"ids": ids}).fetchall()]
            if ids and time.monotonic() >= deadline:
                return tuple(row[0] for row in connection.execute(SQL["describe_writers"], {"ids": ids}).fetchall())
        if ids:
            time.sleep(pause)
            pause = min(pause * 1.5, 0.25)
    return ()


def advance_and_wait(connection: Connection, timeout: float) -> tuple[str, tuple[str, ...]]:
    """Advance, then wait: return the new frontier, and descriptions of the writers that stayed open."""
    target = advance(connection)
    return target, wait(connection, timeout)
