"""The hourly rollup, opt-in: turn it on, fill it with the past, turn it off. Nothing is stopped for any of it.

``usage.state.hourly_since`` says from which hour on it is complete, as of the frontier. Turned on, it begins with the
first whole hour that no fold has touched; from then on folds keep it. The past is filled backwards, newest first, in
transactions of their own, each of which makes some hours from the raw events in its snapshot and moves
``hourly_since`` down. Folds and fills serialize on the state row, so an event is in the hours once: a fold leaves hours
below ``hourly_since`` alone, because the fill will read them raw. Killed at any point, it goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from psycopg import sql

from aggregator import fold
from aggregator import sql as sql_files
from aggregator.db import Connection, transaction
from aggregator.errors import UsageError, never
from aggregator.settings import Settings

SQL = sql_files.load("hourly")


@dataclass(frozen=True)
class Filled:
    """How far a fill is: ``events`` read; hours are complete from ``since`` on (ISO text; ``-infinity``: all)."""

    events: int
    since: str | None
    """None: it is off, or was turned off meanwhile."""
    done: bool
    """No hour is missing."""


def turn_on(connection: Connection) -> bool:
    """Let folds keep hours from now on; commits. Return False if it was on already. Raises NotAttachedError, UsageError."""

    def once() -> bool:
        with transaction(connection):
            connection.execute(fold.SQL["lock_state"])
            state = fold.read_state(connection)
            if state.hourly_since is not None:
                return False
            if state.distributed:
                raise UsageError(
                    "--hourly: of a table that Citus distributes days are added up on its workers, and no hours"
                )
            delete_below(connection, None)
            connection.execute(SQL["turn_on"])
            return True

    return fold.with_retries(once)


def turn_off(connection: Connection) -> bool:
    """Forget all hours; commits. Return False if it was off. By DELETE, so that readers' snapshots stay whole."""

    def once() -> bool:
        with transaction(connection):
            connection.execute(fold.SQL["lock_state"])
            if not connection.execute(SQL["turn_off"]).rowcount:
                return False
            delete_below(connection, None)
            return True

    return fold.with_retries(once)


def fill(
    connection: Connection,
    settings: Settings,
    *,
    seconds: float = float("inf"),
    progress: Callable[[Filled], None] = lambda _filled: None,
    check: Callable[[], None] = never,
) -> Filled:
    """Fill hours backwards, down to the seal or the first event, for so many seconds at most; commits often.

    Does nothing while trust is off: it might read events raw that a repair has yet to learn of, and nobody would read
    the hours. ``check`` is called between transactions, and may raise Stopped.
    """
    attached = fold.attached(connection)
    deadline = time.monotonic() + seconds
    events = 0
    filled = Filled(0, attached.hourly_since, False)
    while True:
        check()
        try:
            step, more = fold.with_retries(lambda: _fill_some(connection, settings, attached), check)
        except fold.PartitionsChangedError:  # a refresh has to look at it first, be it empty
            return filled
        events += step.events
        filled = Filled(events, step.since, step.done)
        if not more or time.monotonic() >= deadline:
            return filled
        progress(filled)


def analyze(connection: Connection) -> None:
    """Let the planner know what a fill has added, rather than when autovacuum comes round."""
    with transaction(connection):
        connection.execute(SQL["analyze"])


def _fill_some(connection: Connection, settings: Settings, attached: fold.State) -> tuple[Filled, bool]:
    """Fill the newest hours that are missing, of about ``step_events`` events; return how far it is, and whether to go on."""
    with fold.snapshot(connection, attached, lock_state=True) as state:
        if state.hourly_since is None:
            return Filled(0, None, True), False
        row = connection.execute(SQL["missing"]).fetchone()
        if row is None or row[0]:
            return Filled(0, state.hourly_since, row is None), False
        _, lowest, first, end = row
        row = connection.execute(SQL["newest"], {"from": first, "to": end, "n": settings.step_events}).fetchone()
        start = None if row is None else row[0]
        more = start not in {None, first}
        since = start if more else lowest
        events = 0
        if start is not None:
            connection.execute(SQL["delete_range"], {"from": start, "to": state.hourly_since})
            measured = fold.measured(connection, (start, end), late=(start, end), with_parameters=False)
            fold.create_numbered(
                connection,
                "hourly",
                fold.numbered(sql.SQL(SQL["collect"]).format(measured=measured)),
                read_all_keys=fold.known_keys(connection) <= settings.step_events,
            )
            fold.number_new_keys(connection, "hourly")
            fold.derive_fact(connection, "hourly_delta", "hourly_collection", "x.bucket", "x.collection_key")
            for rollup in fold.HOURLY_FACTS:
                fold.add_fact(connection, rollup, subtracted=True)
            counted = connection.execute(SQL["counted"]).fetchone()
            assert counted is not None
            events = int(counted[0])
            if fold.notice_new_partition(connection):
                raise fold.PartitionsChangedError
        connection.execute(SQL["set_since"], {"since": since})
        return Filled(events, since, not more), more


def delete_below(connection: Connection, hour: str | None) -> None:
    """Delete the hours below one (None: all), in the caller's transaction."""
    for rollup in fold.HOURLY_FACTS:
        connection.execute(sql.SQL(SQL["delete_below"]).format(fact=sql.Identifier(f"{rollup}_fact")), {"hour": hour})


def start_anew(connection: Connection) -> None:
    """Forget the hours from the seal on, whose days are folded anew from there; in the caller's transaction.

    From then on it is complete from the seal on, if it is on at all.
    """
    row = connection.execute(SQL["start_anew"]).fetchone()
    if row is not None:
        for rollup in fold.HOURLY_FACTS:
            connection.execute(sql.SQL(SQL["delete_unsealed"]).format(fact=sql.Identifier(f"{rollup}_fact")))
