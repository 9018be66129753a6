"""Refresh: advance the frontier, wait for the writers that did not see it, fold what lies below it.

Advance. A short transaction under a transaction-scoped mutex moves ``usage.frontier_seq`` to now: from then on every
write below it logs itself. Wait. Transactions that wrote before the move are waited for, as CREATE INDEX CONCURRENTLY
does, without blocking anybody. Fold. Steps of bounded size, each one REPEATABLE READ transaction, add late changes and
the raw events between the rollups' frontier and the new one. A step that is killed has not happened; any step may be
repeated; two refreshers at once serialize on the state row. There is no separate backfill: the first refresh is the
same loop, from -infinity. A source without triggers: see lookback.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import psycopg
from psycopg import sql

from aggregator import capture, fold, frontier, hourly, lookback, marks, step, verify
from aggregator import sql as sql_files
from aggregator.db import Connection, one_line, transaction
from aggregator.errors import AggregatorError, Stopped, never
from aggregator.raw_days import Presumption, RawDays
from aggregator.settings import Settings
from aggregator.workers import Workers, hired

SQL = sql_files.load("refresh")

_REWRITTEN = "a new partition was truncated or rewritten: run aggregator refresh"
_MOVED = "the time zone data has changed, and days that are rolled up begin at other instants: run aggregator refresh"
_OURS = (frontier.BEHIND, _REWRITTEN, _MOVED)
"""Reasons for which trust is off until a refresh has repaired all days, be it the next one."""

MENDABLE = ": run aggregator refresh"
"""How a doubt ends that a refresh mends: of partitions that brought events along, lost some, or came and went; a TRUNCATE; a
sequence left behind."""

_FILL_SECONDS = 30.0
"""For which a refresh fills the past of the hourly rollup at most; the next one goes on."""

_MARK_SECONDS = 10.0
"""For which a refresh makes marks in dense hours at most, likewise."""

_MENDS = 20
"""Of new partitions in a row, between two steps."""


@dataclass(frozen=True)
class Progress:
    """How far a refresh is: ``events`` folded of about ``expected``; the frontier as ISO text, or ``-infinity``."""

    events: int
    expected: int
    late_changes: int
    frontier: str


@dataclass(frozen=True)
class RefreshResult:
    """What a refresh did.

    ``status`` is ``partial`` where a writer stayed open past the timeout, named in ``waited_for``: late changes were
    folded, the tail is left raw. ``notes`` are for the operator. The answers are exact in every case.
    """

    run_id: int
    status: Literal["done", "partial"]
    frontier: str
    steps: int
    events: int
    late_changes: int
    seconds: float
    waited_for: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Forecast:
    """What a refresh would fold now: raw events from the frontier on and late changes below it, counted."""

    frontier: str
    events: int
    late_changes: int
    doubt: str | None


@dataclass
class _Run:
    id: int
    steps: int = 0
    events: int = 0
    late_changes: int = 0
    frontier: str = "-infinity"
    waited_for: tuple[str, ...] = ()
    """The writers that it stopped waiting for: from then on it folds late changes only."""
    hourly_since: str | None = None
    """From where on there are hours, as the last step found it (``-infinity``: all); None: the hourly rollup is off."""
    presumption: Presumption = field(default_factory=Presumption)
    """How often events were well formed, as was presumed."""
    statistics: step.Statistics = field(default_factory=step.Statistics)


def forecast(connection: Connection) -> Forecast:
    """Count what a refresh would fold, in one snapshot, and fold nothing."""
    attached = fold.attached(connection)

    def count() -> Forecast:
        with fold.snapshot(connection, attached, lock_state=False) as state:
            instant = state.sealed_until if state.truncated else state.frontier
            events = _scalar(connection, "count_tail", **{"from": instant})
            late = _scalar(connection, "count_late", frontier=instant)
            return Forecast(instant, events, late, _doubts(connection)[1])

    return fold.with_retries(count)


def refresh(
    connection: Connection,
    settings: Settings,
    *,
    progress: Callable[[Progress], None] = lambda _progress: None,
    check: Callable[[], None] = never,
) -> RefreshResult:
    """Bring the rollups up to now, in steps that commit, and return what was done.

    ``progress`` is called after each step; ``check`` between steps and while waiting: it may raise Stopped. Raises
    AggregatorError or psycopg.Error; what was committed until then stays
    good, and a next run goes on from there.
    """
    started = time.monotonic()
    with transaction(connection):
        state = fold.read_state(connection)
        run = _Run(int(_scalar(connection, "begin_run")))
    try:
        fold.with_retries(lambda: _note_doubts(connection), check)
        if state.lookback_days is not None:
            target = lookback.advance(connection, settings)
            notes = lookback.repair(connection, settings, check)
            if fold.attached(connection).distrust_reason == _MOVED:
                notes.append(_note_of_days(verify.verify(connection, settings, repair=True, check=check)))
        else:
            target, run.waited_for = frontier.advance_and_wait(connection, settings.wait_timeout, check)
            notes = [] if run.waited_for else _mend(connection, settings, run, check)
        notes += _fold_up_to(connection, settings, run, state, target, progress, check)
        if run.hourly_since not in {None, "-infinity"}:  # for a while, so that the frontier does not wait for it
            hourly.fill(connection, settings, seconds=_FILL_SECONDS, check=check)
        if run.hourly_since is not None:
            marks.make(connection, settings, seconds=_MARK_SECONDS, check=check)
        doubt = fold.with_retries(lambda: _doubt(connection))
        if doubt is not None:
            notes.append(f"trust is off, so reads are slow: {doubt}")
    except (Stopped, KeyboardInterrupt):
        _finish(connection, run, "stopped")
        raise
    except BaseException as exc:
        _finish(connection, run, "failed", error=one_line(exc))
        raise
    status: Literal["done", "partial"] = "partial" if run.waited_for else "done"
    _finish(connection, run, status, waited_for="; ".join(run.waited_for) or None)
    return RefreshResult(
        run.id, status, run.frontier, run.steps, run.events, run.late_changes,
        time.monotonic() - started, run.waited_for, tuple(notes),
    )  # fmt: skip


def _note_doubts(connection: Connection) -> None:
    """Turn trust off if the frontier that writers see was left behind: the advance that follows would hide it.

    And if days begin elsewhere by this session's time zone data: what it folds would be believed by others, which have the old.
    """
    with transaction(connection):
        connection.execute(SQL["set_seal"])
        frontier.note_behind(connection)
        if _scalar(connection, "days_moved"):
            fold.distrust(connection, _MOVED)


def _doubts(connection: Connection) -> tuple[str | None, str | None]:
    """Return what the fingerprint says, and why readers do not use the rollups."""
    row = connection.execute(SQL["fingerprint_doubt"]).fetchone()
    assert row is not None
    return row[0], row[1]


def _doubt(connection: Connection) -> str | None:
    with fold.looking(connection):
        return _doubts(connection)[1]


@dataclass(frozen=True)
class _Partition:
    """A partition that the fingerprint does not know, by oid, with the entry that it is to have there."""

    oid: str
    entry: str
    holds_rows: bool
    rewritten: bool


def _look(connection: Connection) -> tuple[fold.State, str | None, list[_Partition]] | None:
    """Return the state, what the fingerprint says, and the new partitions; None: it was noted for the operator to repair."""
    with fold.looking(connection, read_only=False) as state:
        doubt, _ = _doubts(connection)
        rows = connection.execute(SQL["new_partitions"]).fetchall()
        partitions = [_Partition(*row[:4]) for row in rows]
        elsewhere = any(rewritten and gap for *_, rewritten, gap in rows)
        if doubt is not None and (not doubt.endswith(MENDABLE) or elsewhere):
            fold.distrust(connection, doubt)
            return None
        if doubt is None:
            connection.execute(SQL["note_storage"])
        return state, doubt, partitions


def _partition_span(connection: Connection, oid: str) -> tuple[str, str, str] | None:
    """Return a partition's name, and the days [from, to) of its events below the frontier; None: it has none, or is gone."""
    with fold.looking(connection):
        row = connection.execute(SQL["partition_name"], {"oid": oid}).fetchone()
        if row is None:
            return None
        name, rows = row
        row = connection.execute(sql.SQL(SQL["partition_span"]).format(partition=sql.SQL(rows))).fetchone()
        return None if row is None or row[0] is None else (name, row[0], row[1])


def _gone_span(connection: Connection) -> tuple[str, str] | None:
    """Return the days [from, to) of late changes whose partition is gone."""
    with fold.looking(connection):
        return connection.execute(SQL["gone_span"]).fetchone()


def _distrust(connection: Connection, reason: str) -> None:
    with transaction(connection):
        fold.distrust(connection, reason)


def _accept(connection: Connection, partitions: list[_Partition]) -> None:
    with fold.looking(connection, read_only=False):
        connection.execute(
            SQL["accept_partitions"], {"found": json.dumps({found.oid: found.entry for found in partitions})}
        )


def _mend(connection: Connection, settings: Settings, run: _Run, check: Callable[[], None]) -> list[str]:
    """Repair by itself what can be: a sequence that was left behind, and partitions that came, with events or without.

    Runs after the wait, so no writer of before is open; one that came since and stays open is noted in the run. What it
    cannot mend stays distrusted, for the operator.
    """
    looked = fold.with_retries(lambda: _look(connection))
    if looked is None:
        return []
    state, doubt, partitions = looked
    try:
        if not state.truncated:
            return _repair(connection, settings, state, doubt, partitions, check)
    except verify.WritersOpenError as exc:
        # The reason stays, so that the next refresh tries again.
        run.waited_for = exc.writers
        return []
    except verify.SealMovedError as exc:
        return [str(exc)]
    except verify.TruncatedError:
        pass
    # All that is not sealed is folded anew.
    fold.with_retries(lambda: _accept(connection, partitions))
    return []


def _repair(
    connection: Connection,
    settings: Settings,
    state: fold.State,
    doubt: str | None,
    partitions: list[_Partition],
    check: Callable[[], None],
) -> list[str]:
    """Repair what was found, or what an earlier refresh could not finish; return notes for the operator."""
    rewritten = any(partition.rewritten for partition in partitions)
    if rewritten:
        # Of which days the events were that went with it, nobody knows.
        fold.with_retries(lambda: _distrust(connection, _REWRITTEN))
    elif doubt is not None or state.distrust_reason not in _OURS:
        return _repair_partitions(connection, settings, doubt, partitions, check)
    found = verify.verify(connection, settings, repair=True, check=check)
    if state.distrust_reason == frontier.BEHIND and not rewritten:
        return [f"the frontier sequence was behind the rollups: put right, {found.differences} differences repaired"]
    if state.distrust_reason == _MOVED and not rewritten:
        return [_note_of_days(found)]
    return [f"a new partition was truncated or rewritten: {found.differences} differences of all days were repaired"]


def _note_of_days(found: verify.VerifyResult) -> str:
    return f"the time zone data has changed, and days began elsewhere: {found.differences} differences were repaired"


def _repair_partitions(
    connection: Connection,
    settings: Settings,
    doubt: str | None,
    partitions: list[_Partition],
    check: Callable[[], None],
) -> list[str]:
    """Repair the days of partitions that came with events, and of those that came and went."""
    notes: list[str] = []
    for partition in partitions:
        if not partition.holds_rows:
            continue
        new = fold.with_retries(lambda oid=partition.oid: _partition_span(connection, oid))  # type: ignore[misc]
        if new is not None:
            name, since, until = new
            found = verify.verify(connection, settings, repair=True, since=since, until=until, check=check)
            notes.append(f"partition {name} is new: {found.differences} differences in its days were repaired")
    gone = fold.with_retries(lambda: _gone_span(connection)) if doubt is not None else None
    if gone is not None:
        found = verify.verify(connection, settings, repair=True, since=gone[0], until=gone[1], check=check)
        notes.append(f"a partition came and went: {found.differences} differences in its days were repaired")
    if partitions:
        fold.with_retries(lambda: _accept(connection, partitions))
    return notes


def _fold_up_to(
    connection: Connection,
    settings: Settings,
    run: _Run,
    attached: fold.State,
    target: str,
    progress: Callable[[Progress], None],
    check: Callable[[], None],
) -> list[str]:
    """Fold in steps until the frontier is at ``target`` (with writers open it stays) and no late change below it is left.

    Returns notes for the operator.
    """
    expected = 0 if run.waited_for else _estimate(connection, target)
    notes: list[str] = []
    finished, mends = False, 0
    # A step's worth of events is folded sooner than further connections are opened. After a TRUNCATE all that is not sealed is to come.
    many = expected > settings.step_events or attached.truncated
    with hired(settings, settings.jobs - 1 if many else 0) as workers:
        while not finished:
            check()
            try:
                finished = fold.with_retries(
                    lambda: _step(connection, settings, run, attached, None if run.waited_for else target, workers),
                    check,
                )
                mends = 0
            except fold.PartitionsChangedError as exc:
                if run.waited_for:
                    return [*notes, "a partition is new: late changes are folded when no writer is open for too long"]
                mends += 1
                if mends > _MENDS:
                    raise AggregatorError("partitions come faster than a refresh looks at them: run it again") from exc
                notes += _mend(connection, settings, run, check)
            progress(Progress(run.events, max(expected, run.events), run.late_changes, run.frontier))
    return notes


def _step(
    connection: Connection,
    settings: Settings,
    run: _Run,
    attached: fold.State,
    target: str | None,
    workers: Workers | None,
) -> bool:
    """Fold one step and commit; return whether nothing is left to do."""
    with fold.snapshot(connection, attached, lock_state=True) as state:
        connection.execute(SQL["do_not_wait"])
        if state.truncated:
            events, late, more = 0, _start_anew(connection), True
        else:
            events, late, more = _fold(connection, settings, run, state, target, workers)
            # Without trust as well: a repair may be under way.
            if fold.notice_new_partition(connection) and state.trusted:
                raise fold.PartitionsChangedError
        if not connection.execute(SQL["record_step"], {"run": run.id, "events": events, "late": late}).rowcount:
            # Also if the sequence is past the target again: who wrote in between did not see it, and was not waited for.
            raise AggregatorError("the frontier was reset while this refresh ran: run aggregator refresh again")
        reached = _scalar(connection, "frontier")
    # Counted after the commit: a step that fails has not happened.
    run.steps += 1
    run.events += events
    run.late_changes += late
    run.frontier = reached
    run.hourly_since = state.hourly_since
    return not more


def _fold(
    connection: Connection,
    settings: Settings,
    run: _Run,
    state: fold.State,
    target: str | None,
    workers: Workers | None,
) -> tuple[int, int, bool]:
    """Fold late changes and the raw events of one step; return how many of each, and whether there is more."""
    upper, more_raw = state.frontier, False
    with_hours = state.hourly_since is not None
    keys = fold.known_keys(connection)
    step_events = step.events_of(settings, several=workers is not None, keys=keys)
    if target is not None and _scalar(connection, "is_before", frontier=state.frontier, target=target):
        if not _scalar(connection, "is_reached", target=target):
            raise AggregatorError("the frontier was reset while this refresh ran: run aggregator refresh again")
        upper, more_raw = step.find_end(connection, state, target, step_events, run.statistics)
    raw = RawDays(connection, state, state.frontier if state.distributed else upper, run.presumption)
    # Workers see no keys that this transaction adds: the first step is for one connection.
    shared = workers is not None and len(raw.days) > 1 and keys > 0
    numbered = bool(raw.days) and not shared
    connection.execute(fold.SQL["create_delta"])
    if numbered:
        raw.add_up(read_all_keys=more_raw and keys <= step_events)
    if state.distributed and upper != state.frontier:
        connection.execute(capture.CITUS["add_raw"], {"from": state.frontier, "to": upper})
    claimed, more_late = _claim_late(connection, settings, state)
    late, of_late = claimed, 0
    if claimed:
        connection.execute(fold.SQL["restate"], {"run": run.id, "below": state.frontier_day})
        row = connection.execute(fold.SQL["late_counted"]).fetchone()
        assert row is not None
        of_late = row[0]
    if upper != state.frontier:
        late += connection.execute(SQL["drop_covered"], {"from": state.frontier, "to": upper}).rowcount
        connection.execute(SQL["set_frontier"], {"frontier": upper})
    events = fold.apply_delta(connection, derive=True, hourly=with_hours, subtracts=claimed > 0, numbered=numbered)
    events -= of_late
    if workers is not None and shared:
        events += raw.share(settings, workers, keys=keys, step_events=step_events)
    if workers is not None and more_raw and not state.distributed:
        run.statistics.check(connection, state.frontier, upper, events)
    return events, late, more_late or more_raw


def _start_anew(connection: Connection) -> int:
    """Clear the unsealed rollups and put the frontier at the seal: the source, or a part of it, was truncated."""
    capture.delete_unsealed(connection)
    hourly.start_anew(connection)
    dropped = connection.execute(SQL["drop_unsealed_late"]).rowcount
    connection.execute(SQL["drop_markers"])
    connection.execute(SQL["frontier_to_seal"])
    connection.execute(SQL["believe_anew"], {"reasons": [verify.REPAIRING, *_OURS]})
    return dropped


def _claim_late(connection: Connection, settings: Settings, state: fold.State) -> tuple[int, bool]:
    """Move the oldest late changes below the frontier into the delta; return how many, and whether more are left."""
    row = connection.execute(SQL["any_late"], {"frontier": state.frontier}).fetchone()
    assert row is not None
    any_late, without_days = row
    if not any_late:
        return 0, False
    if without_days:
        fold.distrust(
            connection,
            f"there are events from before {state.zone_valid_from}, when local dates of {state.time_zone} ran backwards:"
            " choose another time zone (aggregator detach, then attach)",
        )
    limit = _scalar(connection, "late_limit", frontier=state.frontier, n=settings.step_events)
    if state.trusted and _scalar(connection, "any_gone", limit=limit):
        raise fold.PartitionsChangedError
    for sign, reason in ((1, "late"), (-1, "deleted")):
        measured = fold.measured(connection, late=("-infinity", limit), late_sign=sign)
        connection.execute(
            sql.SQL(SQL["add_late"]).format(measured=measured, **state.hour),
            {"zone": state.time_zone, "reason": reason},
        )
    return connection.execute(SQL["drop_claimed"], {"limit": limit}).rowcount, limit != state.frontier


def _estimate(connection: Connection, target: str) -> int:
    """Return the planner's idea of how many events lie between the frontier and the target."""

    def explain() -> int:
        with fold.looking(connection) as state:
            return step.estimate(connection, state.frontier, target)

    return fold.with_retries(explain)


def _finish(
    connection: Connection, run: _Run, status: str, waited_for: str | None = None, error: str | None = None
) -> None:
    try:
        with transaction(connection):
            connection.execute(
                SQL["finish_run"], {"run": run.id, "status": status, "waited_for": waited_for, "error": error}
            )
    except psycopg.Error:
        # The connection may be what failed: then the run stays "running", and the first error is the one to tell.
        if status not in {"failed", "stopped"}:
            raise


def _scalar(connection: Connection, block: str, **parameters: object) -> Any:
    row = connection.execute(SQL[block], parameters).fetchone()
    assert row is not None
    return row[0]
