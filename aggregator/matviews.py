"""The materialized views: refreshed when the rollups changed or the local day turned, and never twice for nothing."""

from __future__ import annotations

from collections.abc import Callable

from aggregator import fold
from aggregator import sql as sql_files
from aggregator.db import Connection, transaction
from aggregator.errors import never

SQL = sql_files.load("matviews")


def refresh_views(
    connection: Connection, *, check: Callable[[], None] = never, report: Callable[[str], None] = lambda _view: None
) -> tuple[str, ...]:
    """Refresh what is stale, CONCURRENTLY, each in a transaction of its own; return the names of those refreshed.

    Readers are never blocked (before the first time there is nothing to read). A second caller at the same time waits,
    and finds nothing to do. ``report`` is called before each; ``check`` too, and may raise Stopped.
    """
    attached = fold.attached(connection)
    with transaction(connection, read_only=True):
        views = [str(name) for (name,) in connection.execute(SQL["views"]).fetchall()]
    done = []
    for view in views:
        check()
        report(view)
        if fold.with_retries(lambda view=view: _refresh(connection, attached, view)):  # type: ignore[misc]
            done.append(view)
    return tuple(done)


def _refresh(connection: Connection, attached: fold.State, view: str) -> bool:
    # One snapshot for what the view shows and for what is noted of it; after the lock, so that it sees the source truly.
    with fold.snapshot(connection, attached, lock_state=False):
        row = connection.execute(SQL["is_stale"], {"view": view}).fetchone()
        if row is None or not row[0]:
            return False
        connection.execute(SQL["refresh"], {"view": view})
        connection.execute(SQL["record"], {"view": view})
        return True
