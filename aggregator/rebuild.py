"""Rebuild: make the rollups what the raw events say, step by step, readers exact throughout; put back a wrong frontier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from psycopg import sql

from aggregator import fold, frontier, verify
from aggregator import sql as sql_files
from aggregator.db import Connection, transaction
from aggregator.errors import AggregatorError, never
from aggregator.settings import Settings

SQL = sql_files.load("rebuild")

_TRIES = 20
"""Of putting the frontier back, against refreshes that still aim at the old one."""

_CHANGED = "the frontier was reset while partitions, or the starts of days, had changed: run aggregator verify --repair"

_READERS = 0.5
"""Seconds for which one try to lock out readers waits, with new ones behind it."""


@dataclass(frozen=True)
class FrontierReset:
    """The frontier before and after, ISO text; ``events`` were taken out of the rollups, and are read raw again."""

    before: str
    after: str
    events: int


def rebuild(
    connection: Connection,
    settings: Settings,
    *,
    since: str | None = None,
    until: str | None = None,
    progress: Callable[[verify.VerifyProgress], None] = lambda _progress: None,
    check: Callable[[], None] = never,
) -> verify.VerifyResult:
    """Repair the days [since, until), by default all that are not sealed; go on where an interrupted one stopped."""
    return verify.verify(
        connection, settings, repair=True, since=since, until=until, resume=True, progress=progress, check=check
    )


def reset_frontier(connection: Connection) -> FrontierReset:
    """Put a frontier that lies in the future (a clock once was wrong) back to now; commits.

    The row first, then the sequence: in between every write below the old frontier still logs itself, and those at or
    above the row are tail, which is read raw. The other way round a write in between would be in neither. So nobody has
    to be waited for: whatever lies below the row was captured, or is in the snapshot that lowered it. A refresh that
    still aims at the old frontier is refused by its own step, which looks at the sequence while it holds the row.
    Killed in between, it is as before: the next refresh moves the row up again.
    """
    attached = fold.attached(connection)
    events = 0
    for _ in range(_TRIES):
        events += fold.with_retries(lambda: _lower_row(connection, attached))
        if fold.with_retries(lambda: _lower_sequence(connection)):
            with transaction(connection, read_only=True):
                return FrontierReset(attached.frontier, fold.read_state(connection).frontier, events)
    raise AggregatorError("another refresh keeps moving the frontier: stop the scheduler, and try again")


def _lower_row(connection: Connection, attached: fold.State) -> int:
    with fold.snapshot(connection, attached, lock_state=True) as state:
        if state.truncated:
            raise AggregatorError("the source was truncated: run aggregator refresh first")
        # Not to be forgotten when the row is below the sequence again.
        frontier.note_behind(connection)
        row = connection.execute(SQL["unseen"]).fetchone()
        assert row is not None
        if row[0]:
            # What is taken out is then not what was put in, and the late changes that tell may go with it.
            fold.distrust(connection, _CHANGED)
        row = connection.execute(SQL["target"]).fetchone()
        assert row is not None
        target, beyond = row
        if not beyond:
            return 0
        connection.execute(fold.SQL["create_delta"])
        beyond_it = (target, state.frontier)
        measured = fold.measured(connection, beyond_it, sign=-1, late=beyond_it)
        connection.execute(sql.SQL(SQL["take_out"]).format(measured=measured, **state.hour), {"zone": state.time_zone})
        taken_out = -fold.apply_delta(connection, derive=True, hourly=state.hourly_since is not None)
        if fold.notice_new_partition(connection):  # it came since, and its events were not put in either
            fold.distrust(connection, _CHANGED)
        connection.execute(SQL["drop_tail_changes"], {"from": target})
        connection.execute(SQL["set_frontier"], {"frontier": target})
        return taken_out


def _lower_sequence(connection: Connection) -> bool:
    """Let writers see the lower frontier; return False if a refresh moved the row up again meanwhile.

    No reader may be under way: the sequence belongs to no snapshot. One from before the row was lowered would come to
    doubt the rollups half way through, when a live view has read them, and add the raw events to them.
    """
    with transaction(connection, lock_timeout=_READERS):
        connection.execute(frontier.SQL["mutex"])
        connection.execute(SQL["lock_out_readers"])
        row = connection.execute(SQL["is_beyond"]).fetchone()
        assert row is not None
        if not row[0]:
            connection.execute(SQL["lower_sequence"])
            connection.execute(SQL["stop_refreshes"])
        return not row[0]
