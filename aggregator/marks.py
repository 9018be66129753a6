"""Marks of the hourly rollup: running sums within dense hours, for windows to the second.

Six hours of UTC that have many events get marks, instants a few thousand events apart, each with the sums of the six hours
up to it. A window's end is then one mark's rows and the events between. They are made behind the frontier, newest first,
in transactions of their own, from the raw events in their snapshot less the late changes that are not folded: so they say what
the hours say. Triggers let go of them when hours are changed, days repaired, or trust is turned off; readers go by hours until
they are made anew, so that they may be missing at any time, and killed at any point.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from decimal import Decimal

from psycopg import sql

from aggregator import fold
from aggregator import sql as sql_files
from aggregator.db import Connection, transaction
from aggregator.errors import never
from aggregator.settings import Settings

SQL = sql_files.load("marks")

WORTH = 20_000
"""Events in six hours from which on marks pay: by hours a window to the second reads a twelfth of them raw, and thousands of rows."""

EVERY = 10_000
"""Events from one mark to the next, of which a window reads half at most: 2.6 ms."""

PER_ROW = 5
"""And for each row of a mark, which is one for each key of its six hours: marks are a tenth of the raw events' room, however many keys there are."""

MOST = 8
"""Times the events of a refresh's step that six hours may have: they are read in one transaction."""

REST = 3600.0
"""Seconds before marks that were let go of are made anew, so that late changes to a month of hours do not cost a month each time."""


def make(
    connection: Connection, settings: Settings, *, seconds: float = float("inf"), check: Callable[[], None] = never
) -> int:
    """Make the marks that are missing, newest first, for so many seconds at most; commits each six hours, and returns of how many.

    Makes none while trust is off, and where hours are not kept. ``check`` is called between transactions, and may raise Stopped.
    """
    attached = fold.attached(connection)
    deadline = time.monotonic() + seconds
    made = 0
    while True:
        check()
        # Nearly always there are none: to see that takes no lock on the state.
        with transaction(connection, read_only=True):
            if _unmarked(connection, settings) is None:
                return made
        try:
            if not fold.with_retries(lambda: _make_one(connection, settings, attached), check):
                return made
        except fold.PartitionsChangedError:  # a refresh has to look at it first
            return made
        made += 1
        if time.monotonic() >= deadline:
            return made


def _make_one(connection: Connection, settings: Settings, attached: fold.State) -> bool:
    """Make the marks of the newest six hours that are to have some, or note that they have too many keys; return False if there are none."""
    with fold.snapshot(connection, attached, lock_state=True):
        bounds = _unmarked(connection, settings)
        if bounds is None:
            return False
        row = connection.execute(SQL["apart"], {**bounds, "every": EVERY, "per_row": PER_ROW}).fetchone()
        assert row is not None
        marks = halves = "{}"
        if row[0] is not None:
            row = connection.execute(SQL["choose"], {**bounds, "every": row[0]}).fetchone()
            assert row is not None
            marks, halves = row
        # First, for here another session's marks made meanwhile are noticed: it has had the state's row, and left it as it was.
        connection.execute(SQL["set_marks"], {**bounds, "marks": marks, "halves": halves})
        connection.execute(SQL["delete_old"], bounds)
        if marks != "{}":
            connection.execute(fold.SQL["settings"])
            connection.execute(sql.SQL(SQL["add"]).format(sums=_sums(connection, bounds, marks)))
        if fold.notice_new_partition(connection):
            raise fold.PartitionsChangedError
    return True


def _unmarked(connection: Connection, settings: Settings) -> dict[str, str] | None:
    """Return from when to when the newest six hours are that are to have marks, or None."""
    row = connection.execute(
        SQL["unmarked"], {"worth": WORTH, "most": MOST * settings.step_events, "rest": REST}
    ).fetchone()
    return None if row is None else {"from": row[0], "to": row[1]}


def _sums(connection: Connection, bounds: dict[str, str], marks: str) -> sql.Composed:
    """Return the query of what the marks of six hours have to say in this snapshot; it is run without parameters."""
    span = (bounds["from"], bounds["to"])
    measured = fold.measured(connection, span, late=span, with_parameters=False)
    return sql.SQL(SQL["sums"]).format(marks=sql.Literal(marks), measured=measured)


def differences(
    connection: Connection, start: str, end: str
) -> list[tuple[str, str | None, str | None, int, Decimal, Decimal]]:
    """Return what the unsealed marks of six hours that reach into [start, end) lack, in the caller's snapshot: mark, collection, type, sums."""
    found = []
    for starts_at, ends_at, marks in connection.execute(SQL["marked"], {"from": start, "to": end}).fetchall():
        sums = _sums(connection, {"from": starts_at, "to": ends_at}, marks)
        query = sql.SQL(SQL["differences"]).format(sums=sums, marks=sql.Literal(marks))
        found += connection.execute(query).fetchall()
    return found
