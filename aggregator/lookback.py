"""Lookback: capture for sources that can have no triggers (views, foreign tables, distributed tables).

No change is noticed. Instead each refresh compares the last days with the raw events and repairs them before it folds the
tail. What that promises: an event that is inserted, changed or deleted at most N days after its ``created_at`` counts from
the next refresh on; a later change at ``verify --repair``; in the tail, from the frontier on, reads are raw and live as ever.

The days to repair are counted back from the frontier of the refresh before and not from today, or a change made after that
refresh, of a day that is too old by the time of this one, would be lost. For the same reason the new frontier is chosen
before the repair: whatever is committed after the repair's snapshot is later than the frontier from which the next refresh
counts.
"""

from __future__ import annotations

from collections.abc import Callable

from aggregator import frontier, verify
from aggregator import sql as sql_files
from aggregator.db import Connection, transaction
from aggregator.errors import UsageError, never
from aggregator.settings import Settings

SQL = sql_files.load("lookback")


def advance(connection: Connection, settings: Settings) -> str:
    """Return how far this refresh folds: up to some seconds ago, so that most writers have committed; commits.

    The sequence moves too, to now: readers and steps compare with it.
    """
    frontier.advance(connection)
    with transaction(connection, read_only=True):
        row = connection.execute(SQL["target"], {"grace": settings.lookback_grace}).fetchone()
    assert row is not None
    return str(row[0])


def repair(connection: Connection, settings: Settings, check: Callable[[], None] = never) -> list[str]:
    """Repair the days that may have changed since the last refresh; commits day by day. Return notes for the operator."""
    with transaction(connection, read_only=True):
        row = connection.execute(SQL["first_day"]).fetchone()
    if row is None:
        return []
    day = str(row[0])
    found = verify.verify(connection, settings, repair=True, since=day, reason="late", check=check)
    return [f"late changes since {day}: {found.differences} rollup rows were corrected"] if found.differences else []


def require_purgeable(connection: Connection, keep_days: int) -> None:
    """Raise UsageError where events of the source cannot be deleted, or late changes of those deleted are still awaited."""
    with transaction(connection, read_only=True):
        row = connection.execute(SQL["purgeable"]).fetchone()
    assert row is not None
    source, days, deletable = row
    if days is None:
        return
    if not deletable:
        raise UsageError(
            f"events cannot be deleted from {source}: delete them where they are kept, after aggregator seal --until DAY"
        )
    if keep_days <= days:
        raise UsageError(
            f"--keep {keep_days}d: each refresh looks back {days} days for late changes, so keep more than that"
        )
