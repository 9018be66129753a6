"""A transaction that changes the rollups: what a refresh's step and a repair have in common.

It is REPEATABLE READ. The source is locked (ACCESS SHARE) as its first statement, before there is a snapshot: a
snapshot older than a rewrite or TRUNCATE reads an empty table, and inside a function the lock would come too late.
Then the state row is locked, which serializes refreshers. Differences are collected in ``pg_temp.delta`` and added.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from psycopg import IsolationLevel, errors, sql

from aggregator import sql as sql_files
from aggregator.db import Connection, one_line, transaction
from aggregator.errors import AggregatorError, never

SQL = sql_files.load("fold")

_PATIENCE = 120.0
"""Seconds for which a transaction is tried again: against another refresher, and against DDL of the host."""

_LOCK_TIMEOUT = 1.0
"""Seconds of one try to lock the state: a fold's step may take longer, and then it is tried again."""

ROLLUPS = ("daily", "daily_collection", "monthly", "monthly_collection", "daily_total")

Result = TypeVar("Result")


class NotAttachedError(AggregatorError):
    """Nothing is attached."""

    def __init__(self) -> None:
        super().__init__("not attached: run aggregator attach")


@dataclass(frozen=True)
class State:
    """The row ``usage.state`` in some snapshot. Instants and days are ISO text, ``-infinity`` for none yet."""

    source: str
    frontier: str
    sealed_until: str
    trusted: bool
    distrust_reason: str | None
    time_zone: str
    zone_valid_from: str
    truncated: bool
    """A TRUNCATE of the source is not yet folded."""
    frontier_day: str
    sealed_day: str
    lookback_days: int | None
    """Each refresh repairs so many days, for there are no triggers; None: there are."""
    distributed: bool
    """The source is a table that Citus distributes."""


def read_state(connection: Connection) -> State:
    """Return the state as the current transaction sees it; raise NotAttachedError if nothing is attached."""
    row = connection.execute(SQL["state"]).fetchone()
    assert row is not None
    if row[0] is None:
        raise NotAttachedError
    return State(*row)


@contextlib.contextmanager
def snapshot(connection: Connection, source: str, *, lock_state: bool) -> Iterator[State]:
    """Open the one snapshot in which raw rows and rollups are compared or folded; ``lock_state`` in order to change them.

    Never waits for a lock on the source, so it can never be part of a deadlock with the host's DDL, and never for long for
    the state: raises ``LockNotAvailable`` instead, with a note of who holds them, for ``with_retries``.
    """
    lockable = _lockable(connection, source)
    try:
        with transaction(connection, isolation=IsolationLevel.REPEATABLE_READ, lock_timeout=_LOCK_TIMEOUT):
            if lockable:
                connection.execute(sql.SQL(SQL["lock_source"]).format(source=sql.SQL(source)))
            if lock_state:
                connection.execute(SQL["lock_state"])
            # Small hash tables in memory: the planner's guess of the number of keys is far too high at times.
            connection.execute("set local work_mem = '64MB'")
            state = read_state(connection)
            if state.distributed:
                connection.execute(SQL["settings_of_workers"])
            yield state
    except errors.LockNotAvailable as exc:
        with transaction(connection, read_only=True):
            row = connection.execute(SQL["lock_holders"]).fetchone()
            if row is not None and row[0] is not None:
                exc.add_note(f"held by {row[0]}")
        raise


@contextlib.contextmanager
def looking(connection: Connection, *, read_only: bool = True) -> Iterator[State]:
    """Open a READ COMMITTED transaction that looks at the source or its partitions, be it at their catalog entries only.

    As ``snapshot`` it never waits for a lock on them, one while it holds another: ``LockNotAvailable``, for
    ``with_retries``.
    """
    source = source_name(connection)
    lockable = _lockable(connection, source)
    with transaction(connection, read_only=read_only):
        if lockable:
            connection.execute(sql.SQL(SQL["lock_source"]).format(source=sql.SQL(source)))
        yield read_state(connection)


def _lockable(connection: Connection, source: str) -> bool:
    with transaction(connection, read_only=True):
        row = connection.execute(SQL["lockable"], {"source": source}).fetchone()
    assert row is not None
    return bool(row[0])


def source_name(connection: Connection) -> str:
    """Return the attached source's quoted name; raise NotAttachedError if there is none."""
    with transaction(connection, read_only=True):
        return read_state(connection).source


def with_retries(work: Callable[[], Result], check: Callable[[], None] = never) -> Result:
    """Run a transaction that may be repeated until it does not conflict with another session; ``check`` before each try."""
    deadline = time.monotonic() + _PATIENCE
    pause = 0.005
    while True:
        check()
        try:
            return work()
        except (errors.SerializationFailure, errors.DeadlockDetected, errors.LockNotAvailable) as exc:
            if time.monotonic() >= deadline:
                holders = "".join(f", {note}" for note in getattr(exc, "__notes__", ()))
                raise AggregatorError(
                    f"gave up after {_PATIENCE:g} s: another session keeps a lock on the source or usage.state{holders}"
                    f" ({one_line(exc)})"
                ) from exc
            time.sleep(pause)
            pause = min(pause * 1.2, 0.5)


def apply_delta(connection: Connection, *, derive: bool) -> None:
    """Add ``pg_temp.delta`` to the rollups; ``derive``: work out months and totals from its days first."""
    if derive:
        connection.execute(SQL["derive"])
        connection.execute(SQL["derive_coarser"])
    reasons = [reason for (reason,) in connection.execute(SQL["daily_reasons"]).fetchall()]
    row = connection.execute(SQL["new_days"]).fetchone()
    assert row is not None
    new_days, new_days_of_collections = row
    for reason in reasons:
        # A row may appear once only, so a day is appended with its first reason, and merged with the next ones.
        connection.execute(SQL["append_daily"], {"reason": reason, "days": new_days})
        connection.execute(SQL["fold_daily"], {"reason": reason, "days": new_days})
        new_days = []
    connection.execute(SQL["append_daily_collection"], {"days": new_days_of_collections})
    connection.execute(SQL["fold_daily_collection"], {"days": new_days_of_collections})
    for rollup in ("monthly", "monthly_collection", "daily_total"):
        connection.execute(SQL[f"fold_{rollup}"])
    if not derive or any(reason is not None for reason in reasons):
        for rollup in ROLLUPS:
            connection.execute(SQL[f"sweep_{rollup}"])
    connection.execute(SQL["count_version"])


def distrust(connection: Connection, reason: str) -> None:
    """Turn trust off, in the caller's transaction; an earlier reason stays."""
    connection.execute(SQL["distrust"], {"reason": reason})
