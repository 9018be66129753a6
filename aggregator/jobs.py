"""Jobs: a lease in the database on what is to be done once at a time, over all hosts.

A lease is a row with an end, extended by a thread of its own while the work lasts: no session-level lock, which a pooler
would leak, and nothing to clean up after a kill. The answers do not depend on it, nor does what is in the rollups: two
refreshes at once are safe, and do the work twice.
"""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, LiteralString

import psycopg

from aggregator import sql as sql_files
from aggregator.db import Connection, connect, transaction
from aggregator.errors import AggregatorError
from aggregator.settings import Settings

SQL = sql_files.load("jobs")

LEASE = 60.0
"""Seconds after which a holder that was killed is given up."""


class BusyError(AggregatorError):
    """Another command is at work that must not run at the same time."""


def claim(
    connection: Connection, settings: Settings, block: LiteralString, what: str, **parameters: object
) -> tuple[str, Any] | None:
    """Take a lease by a statement of jobs.sql; return its holder's name and what the statement returned, or None."""
    holder = f"{what} on {socket.gethostname()}, process {os.getpid()} ({uuid.uuid4().hex[:8]})"
    with transaction(connection, lock_timeout=settings.lock_timeout):
        connection.execute(SQL["shorten"], {"lease": LEASE})
        row = connection.execute(SQL[block], {"holder": holder, "lease": LEASE, **parameters}).fetchone()
    return None if row is None else (holder, row[0])


@contextmanager
def held(connection: Connection, settings: Settings, name: str, holder: str) -> Iterator[None]:
    """Keep a lease that was claimed while the block runs, and give it back."""
    over = threading.Event()
    beat = threading.Thread(target=_keep, args=(settings, name, holder, over), name=f"lease-{name}", daemon=True)
    beat.start()
    try:
        yield
    finally:
        over.set()
        beat.join(timeout=5)
        _release(connection, settings, name, holder)


def _release(connection: Connection, settings: Settings, name: str, holder: str) -> None:
    """Give a lease back, through another connection if that one is broken; if none works the lease runs out."""
    with suppress(psycopg.Error, AggregatorError):
        if not connection.closed:
            with transaction(connection, lock_timeout=5):
                connection.execute(SQL["release"], {"name": name, "holder": holder})
                return
    with suppress(psycopg.Error, AggregatorError), connect(settings, name="aggregator lease") as fresh:
        fresh.execute(SQL["release"], {"name": name, "holder": holder})


def _keep(settings: Settings, name: str, holder: str, over: threading.Event) -> None:
    while not over.wait(LEASE / 4):
        # The database may be away for a while: the next beat tries again.
        with (
            suppress(psycopg.Error, AggregatorError),
            connect(settings, name="aggregator lease") as connection,
            transaction(connection, lock_timeout=5),
        ):
            connection.execute(SQL["extend"], {"name": name, "holder": holder, "lease": LEASE})


@contextmanager
def exclusive(connection: Connection, settings: Settings, what: str) -> Iterator[None]:
    """Run a command that changes what the others rely on, one at a time; raise BusyError, naming the other one."""
    claimed = claim(connection, settings, "claim", what, name="exclusive")
    if claimed is None:
        raise BusyError(f"{what} cannot start: {_holder(connection)}; try again when it has ended; nothing was changed")
    with held(connection, settings, "exclusive", claimed[0]):
        yield


def require_free(connection: Connection, what: str) -> None:
    """Raise BusyError if an exclusive command is at work."""
    holder = _holder(connection)
    if holder is not None:
        raise BusyError(f"{what} cannot start: {holder}; try again when it has ended; nothing was changed")


def _holder(connection: Connection) -> str | None:
    with transaction(connection, read_only=True):
        row = connection.execute(SQL["holder"], {"name": "exclusive"}).fetchone()
    return None if row is None else f"{row[0]} is at work since {row[1]}"


def record_done(connection: Connection, name: str, done_for: str | None = None) -> None:
    """Note that a job went well."""
    with transaction(connection):
        connection.execute(SQL["done"], {"name": name, "done_for": done_for})


def record_refreshed(connection: Connection) -> None:
    """Note that somebody else than a scheduler's refresh has refreshed: it is not due for an interval, and no failure any more."""
    with transaction(connection):
        connection.execute(SQL["refreshed"])


def record_failed(connection: Connection, name: str, error: str, *, first: float, longest: float) -> float:
    """Note that a job failed; return the seconds until it may be tried again."""
    with transaction(connection):
        row = connection.execute(
            SQL["failed"], {"name": name, "error": error, "first": first, "longest": longest}
        ).fetchone()
    assert row is not None
    return float(row[0])
