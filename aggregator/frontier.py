"""The frontier that writers see: move it up, and wait for those who wrote before the move."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from aggregator import fold
from aggregator import sql as sql_files
from aggregator.db import Connection, transaction
from aggregator.errors import never

SQL = sql_files.load("frontier")

NAMED = 10
"""Writers that are described at most, the oldest of those that are waited for: a thousand names help nobody."""

BEHIND = "the frontier sequence was behind the rollups (a restore?): run aggregator refresh"
"""Why trust is off once it was noticed, until all days are repaired."""


def note_behind(connection: Connection) -> bool:
    """Turn trust off, in the caller's transaction, if the frontier that writers see was left behind: return whether it was.

    To be done before an advance, which hides it; readers whose snapshot is older are told by a sequence of its own.
    """
    row = connection.execute(SQL["behind"]).fetchone()
    assert row is not None
    if not row[0]:
        return False
    connection.execute(SQL["count_doubt"])
    connection.execute(SQL["note_doubt"])
    fold.distrust(connection, BEHIND)
    return True


def advance(connection: Connection) -> str:
    """Move ``usage.frontier_seq`` to now, never downwards, and return the instant; commits.

    From here on every write below it logs itself.
    """
    with transaction(connection):
        connection.execute(SQL["mutex"])
        row = connection.execute(SQL["advance"]).fetchone()
        assert row is not None
        return str(row[1])


def wait(connection: Connection, timeout: float, check: Callable[[], None] = never) -> tuple[str, ...]:
    """Wait until every transaction that holds a write lock on the source and has an id now has ended.

    As CREATE INDEX CONCURRENTLY waits; prepared transactions included; nobody is blocked. Return descriptions of those
    still open after ``timeout`` seconds; none means that all have ended. ``check`` is called meanwhile, and may raise.
    """
    deadline = time.monotonic() + timeout
    pause = 0.002
    with transaction(connection, read_only=True):
        ids = [row[0] for row in connection.execute(SQL["writers"]).fetchall()]
    while ids:
        check()
        with transaction(connection, read_only=True):
            ids = [row[0] for row in connection.execute(SQL["still_open"], {"ids": ids}).fetchall()]
            if ids and time.monotonic() >= deadline:
                rows = connection.execute(SQL["describe_writers"], {"ids": ids[:NAMED]}).fetchall()
                return _described(rows, len(ids) - NAMED)
        if ids:
            time.sleep(pause)
            pause = min(pause * 1.5, 0.25)
    return ()


def open_writers(connection: Connection, seconds: float) -> tuple[str, ...]:
    """Describe those who write to the source and have been open for longer, in the caller's transaction."""
    ids = [row[0] for row in connection.execute(SQL["writers"]).fetchall()]
    rows = connection.execute(SQL["describe_old_writers"], {"ids": ids, "seconds": seconds}).fetchall()
    return _described(rows[:NAMED], len(rows) - NAMED)


def _described(rows: list[tuple[Any, ...]], more: int) -> tuple[str, ...]:
    """Return descriptions, and how many more there are."""
    return (*(str(row[0]) for row in rows), *([f"and {more:,} more"] if more > 0 else []))


def advance_and_wait(
    connection: Connection, timeout: float, check: Callable[[], None] = never
) -> tuple[str, tuple[str, ...]]:
    """Advance, then wait: return the new frontier, and descriptions of the writers that stayed open."""
    target = advance(connection)
    return target, wait(connection, timeout, check)
