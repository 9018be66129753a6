"""Marks of the hourly rollup: running sums within dense hours, for windows to the second.

Six hours of UTC that have many events get marks, instants a few thousand events apart, each with the sums of the six hours
up to it. A window's end is then one mark's rows and the events between. By resource type alone, for a series of days, a mark has
a few rows, so they are some hundred events apart, and at each quarter of an hour, where midnights of the world lie; each with
the sums of its hour up to it. All are made behind the frontier, newest first,
in transactions of their own, from the raw events in their snapshot less the late changes that are not folded: so they say what
the hours say. Triggers let go of them when hours are changed, days repaired, or trust is turned off; readers go by hours until
they are made anew, so that they may be missing at any time, and killed at any point.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from psycopg import sql

from aggregator import fold
from aggregator import sql as sql_files
from aggregator.db import Connection, transaction
from aggregator.errors import never
from aggregator.settings import Settings

SQL = sql_files.load("marks")

WORTH = 5_000
"""Events in six hours from which on marks pay, those by type: by hours a window to the second reads a twelfth of them raw."""

EVERY = 8_000
"""Events from one mark to the next, of which a window reads half at most: 2 ms."""

EVERY_TOTAL = 500
"""Events from one mark by type to the next, of which a window reads those up to the one that is nearer in time."""

PER_ROW = 4
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
        row = connection.execute(
            SQL["apart"], {**bounds, "every": EVERY, "every_total": EVERY_TOTAL, "per_row": PER_ROW}
        ).fetchone()
        assert row is not None
        every, every_total = row
        marks = halves = "{}"
        if every is not None:
            row = connection.execute(SQL["choose"], {**bounds, "every": every}).fetchone()
            assert row is not None
            marks, halves = row
        # First, for here another session's marks made meanwhile are noticed: it has had the state's row, and left it as it was.
        connection.execute(
            SQL["set_marks"], {**bounds, "marks": marks, "halves": halves, "has_totals": every_total is not None}
        )
        connection.execute(SQL["delete_old"], bounds)
        connection.execute(fold.SQL["settings"])
        if every is not None:
            connection.execute(sql.SQL(SQL["add"]).format(sums=_sums(connection, bounds, marks)))
        if every_total is not None:
            row = connection.execute(SQL["choose_totals"], {**bounds, "every": every_total}).fetchone()
            assert row is not None
            connection.execute(sql.SQL(SQL["add_totals"]).format(**_total_sums(connection, bounds, row[0])))
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
    return sql.SQL(SQL["sums"]).format(marks=sql.Literal(marks), measured=_measured(connection, bounds))


def _total_sums(connection: Connection, bounds: dict[str, str], marks: str) -> dict[str, sql.Composed]:
    """Return the query of what marks by type have to say, in two parts; ``marks``: and the whole hours among them."""
    names = {"bounds": sql.Literal(marks), "measured": _measured(connection, bounds)}
    return {"slots": sql.SQL(SQL["slots"]).format(**names), "sums": sql.SQL(SQL["total_sums"]).format(**names)}


def _measured(connection: Connection, bounds: dict[str, str]) -> sql.SQL:
    span = (bounds["from"], bounds["to"])
    return fold.measured(connection, span, late=span, with_parameters=False)


@dataclass(frozen=True)
class Difference:
    """What the row of a mark lacks. ``at`` is the mark's instant as ISO text, ``of_total``: it is one by type alone."""

    of_total: bool
    at: str
    collection_id: str | None
    resource_type: str | None
    event_count: int
    total_value: Decimal
    secondary_value: Decimal


def differences(connection: Connection, start: str, end: str) -> list[Difference]:
    """Return what the unsealed marks of six hours that reach into [start, end) lack, in the caller's snapshot."""
    found: list[Difference] = []
    for starts_at, ends_at, marks, totals in connection.execute(SQL["marked"], {"from": start, "to": end}).fetchall():
        bounds = {"from": starts_at, "to": ends_at}
        query = sql.SQL(SQL["differences"]).format(sums=_sums(connection, bounds, marks), marks=sql.Literal(marks))
        found += [Difference(False, *row) for row in connection.execute(query).fetchall()]
        if totals is not None:
            query = sql.SQL(SQL["total_differences"]).format(
                starts_at=sql.Literal(starts_at),
                ends_at=sql.Literal(ends_at),
                **_total_sums(connection, bounds, totals),
            )
            found += [Difference(True, at, None, *rest) for at, *rest in connection.execute(query).fetchall()]
    return found
