"""A step of a refresh: about how many raw events it has, and where it ends.

A step ends at a day's first instant where it can, so that no day's keys are folded twice. To find it the index is read up to
the N-th event, which is a thirtieth of a build on two connections, and all but one rest meanwhile. So where there are several,
and the planner's statistics were found to be right about the step before, the end is looked for by what they say.
"""

from __future__ import annotations

from dataclasses import dataclass

from aggregator import fold
from aggregator import sql as sql_files
from aggregator.db import Connection
from aggregator.settings import Settings

SQL = sql_files.load("step")

_LONGER = 8
"""Times as many events in a step of several connections, at least: all but one rest while a step's last days are folded."""

_SHORTER = 5
"""Part of a step's events of which the first one of several connections is, for there only one has work."""

_OFF = 1.25
"""Times as many events, or as few, as the planner says, that are still believed. Where a table has grown so much since it was
analyzed, he is as wrong about its past; so no more than a fifth of it can be new, and be taken for nothing."""


@dataclass
class Statistics:
    """Whether the planner was right about the step before: without statistics it says anything."""

    right: bool = False

    def check(self, connection: Connection, start: str, end: str, events: int) -> None:
        """Compare what the planner says of [start, end) with the raw events that were found there."""
        said = estimate(connection, start, end)
        self.right = said <= events * _OFF and events <= said * _OFF


def events_of(settings: Settings, *, several: bool, keys: int) -> int:
    """Return about how many raw events are one step of one connection or ``several``; ``keys``: how many are known."""
    if not several:
        return settings.step_events
    # Workers number keys that are known: a few events show most of them.
    return settings.step_events * max(settings.jobs, _LONGER) if keys else max(1, settings.step_events // _SHORTER)


def find_end(
    connection: Connection, state: fold.State, target: str, events: int, statistics: Statistics
) -> tuple[str, bool]:
    """Return where a step of about so many raw events ends, and whether that is short of the target."""
    if statistics.right:
        end = _end_by_statistics(connection, state, target, events)
        if end is not None:
            return end, True
    bounds = {"from": state.frontier, "to": target}
    row = connection.execute(SQL["nth_event"], {**bounds, "zone": state.time_zone, "n": events}).fetchone()
    if row is None:
        return target, False
    instant, day_start, past, day_past = row
    if day_past:
        return day_start, True
    if past:
        return instant, True
    # More events than a step holds share one instant: they cannot be told apart, so they go together.
    row = connection.execute(SQL["next_instant"], {"from": instant, "to": target}).fetchone()
    return (row[0], True) if row is not None else (target, False)


def _end_by_statistics(connection: Connection, state: fold.State, target: str, events: int) -> str | None:
    """Return the first instant of a day up to which there are about so many events by the planner's statistics.

    None: it is in the first day, or the planner says of all until the target that they are fewer, as it may for want of statistics.
    """
    row = connection.execute(SQL["first_instant"], {"from": state.frontier, "to": target}).fetchone()
    assert row is not None
    first = row[0]
    if first is None or estimate(connection, first, target) <= events:
        return None
    low, high = first, target
    while True:
        row = connection.execute(SQL["midnight_between"], {"from": low, "to": high, "zone": state.time_zone}).fetchone()
        if row is None:
            return None if low == first else str(low)
        if estimate(connection, first, row[0]) <= events:
            low = row[0]
        else:
            high = row[0]


def estimate(connection: Connection, start: str, end: str) -> int:
    """Return how many raw events there are in [start, end) by the planner's statistics."""
    row = connection.execute(SQL["estimate"], {"from": start, "to": end}).fetchone()
    assert row is not None
    return int(row[0][0]["Plan"]["Plan Rows"])
