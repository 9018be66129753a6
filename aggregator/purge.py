"""Purge: keep raw events short and history long.

Fold, verify, seal, then delete: never a raw event whose day was not found equal. Whole partitions are dropped, the rest is
deleted in batches; each is a transaction of its own that looks once more whether all is in order. Killed anywhere, the next
purge goes on: what lies below the seal is in the rollups, and its raw events do not count any more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from psycopg import errors, sql

from aggregator import capture, fold, lookback, refresh, seal, verify
from aggregator.db import Connection, transaction
from aggregator.errors import AggregatorError, UsageError, never
from aggregator.settings import Settings, days_to_keep

SQL = seal.SQL


@dataclass(frozen=True)
class Partition:
    """A whole partition below the seal: its quoted name, oid and bytes."""

    name: str
    oid: int
    size: int
    events: int
    droppable: bool
    """Whether the role owns it, and its parent."""


@dataclass(frozen=True)
class Purged:
    """What was purged, or (``dry_run``) would be: raw events before ``day``, and how many of them in whole partitions.

    ``size`` is in bytes, an estimate for events that are deleted one by one: their space is reused, not given back.
    ``oldest``: the oldest event of before.
    """

    day: str
    events: int
    partitions: tuple[str, ...]
    size: int
    oldest: str | None
    dry_run: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PurgeProgress:
    """Raw events deleted so far of about ``expected``."""

    events: int
    expected: int


@dataclass(frozen=True)
class _Cut:
    day: str
    instant: str
    any_below: bool
    oldest: str | None
    sealed: bool
    folded: bool


def purge(
    connection: Connection,
    settings: Settings,
    keep: str,
    *,
    dry_run: bool = False,
    progress: Callable[[PurgeProgress], None] = lambda _progress: None,
    check: Callable[[], None] = never,
) -> Purged:
    """Delete the raw events of before the last N local days (``keep``, like 400d; today is not counted); commits often.

    The rollups keep their history. ``check`` is called between transactions, and may raise Stopped. Raises UsageError for
    a ``keep`` that is none, AggregatorError where the days could not be folded or do not equal the raw events.
    """
    try:
        days = days_to_keep(keep)
    except ValueError as exc:
        raise UsageError(f"--keep: {exc}") from exc
    lookback.require_purgeable(connection, days)
    cut = fold.with_retries(lambda: _cut(connection, days))
    if not cut.any_below:
        return Purged(cut.day, 0, (), 0, cut.oldest, dry_run, ("nothing to purge: no event is that old",))
    expected, size, partitions = fold.with_retries(lambda: _measure(connection, cut.instant))
    if dry_run:
        refusal = _refusal(connection, cut)
        return Purged(cut.day, expected, tuple(p.name for p in partitions), size, cut.oldest, True, refusal)
    if not cut.sealed:
        _seal(connection, settings, days, check)
    seal.set_sequence(connection)
    dropped, notes = _drop_partitions(connection, settings, partitions, cut.instant, check)
    events = sum(partition.events for partition in dropped)
    progress(PurgeProgress(events, max(expected, events)))
    while True:
        deleted = capture.with_lock_retries(
            settings, lambda: _delete_batch(connection, settings, cut.instant), check=check
        )
        if deleted is None:
            break
        events += deleted
        progress(PurgeProgress(events, max(expected, events)))
    return Purged(cut.day, events, tuple(p.name for p in dropped), size, cut.oldest, False, tuple(notes))


def _cut(connection: Connection, days: int) -> _Cut:
    with fold.looking(connection):
        row = connection.execute(SQL["cut"], {"days": days}).fetchone()
        assert row is not None
        return _Cut(*row)


def _refusal(connection: Connection, cut: _Cut) -> tuple[str, ...]:
    """Say that a purge would be refused now, and why, if it would."""
    doubt = verify.read_doubt(connection)
    # What a refresh mends is mended by the one that a purge begins with, unless it goes on below a seal.
    if doubt is None or (not cut.sealed and doubt.endswith(refresh.MENDABLE)):
        return ()
    return (f"purge would be refused, for the rollups may not be believed: {doubt}",)


def _measure(connection: Connection, instant: str) -> tuple[int, int, list[Partition]]:
    """Return how many events lie below an instant, in how many bytes, and which whole partitions."""
    with fold.looking(connection):
        events = _scalar(connection, "count_below", seal=instant)
        rows = connection.execute(SQL["whole_partitions"], {"seal": instant}).fetchall()
        partitions = []
        for name, oid, total, droppable, events_of_it in rows:
            row = connection.execute(sql.SQL(SQL["count_partition"]).format(partition=sql.SQL(events_of_it))).fetchone()
            assert row is not None
            partitions.append(Partition(name, oid, total, row[0], droppable))
        rest = events - sum(partition.events for partition in partitions)
        size = sum(partition.size for partition in partitions) + int(rest * _scalar(connection, "average_bytes"))
        return events, size, partitions


def _seal(connection: Connection, settings: Settings, days: int, check: Callable[[], None]) -> None:
    """Fold and verify everything below the cut, and seal it."""
    run = refresh.refresh(connection, settings, check=check)
    cut = fold.with_retries(lambda: _cut(connection, days))
    if not cut.folded:
        waited = f" ({'; '.join(run.waited_for)})" if run.waited_for else ""
        raise AggregatorError(f"the days before {cut.day} are not folded yet{waited}: run aggregator purge again later")
    with fold.looking(connection):
        seal.require_trust(connection)
    found = verify.verify(connection, settings, until=cut.day, check=check)
    if found.differences:
        raise AggregatorError(
            f"{found.differences} rollup rows of the days before {cut.day} differ from the raw events, so none was deleted:"
            " run aggregator verify --repair"
        )
    attached = fold.attached(connection)

    def once() -> None:
        with fold.snapshot(connection, attached, lock_state=True) as state:
            # What changed since it was verified was captured, or there is doubt.
            seal.require_trust(connection)
            seal.seal_in_snapshot(connection, state, cut.day)

    fold.with_retries(once)


def _require_order(connection: Connection) -> None:
    """Raise AggregatorError unless what is about to be deleted is in the rollups, and its deletion is not captured."""
    row = connection.execute(SQL["in_order"]).fetchone()
    assert row is not None
    doubt, visible = row
    if doubt is not None:
        raise AggregatorError(f"stopped deleting, for the rollups may not be believed: {doubt}")
    if not visible:
        raise AggregatorError("the seal that writers see is not there: run aggregator refresh, then purge again")


def _drop_partitions(
    connection: Connection, settings: Settings, partitions: list[Partition], instant: str, check: Callable[[], None]
) -> tuple[list[Partition], list[str]]:
    """Drop the partitions that lie below an instant, as far as this role may; return those dropped, and notes."""
    dropped: list[Partition] = []
    notes: list[str] = []
    for partition in partitions:
        check()
        reason: str | None = "this role does not own it"
        try:
            if partition.droppable:
                reason = None
                if _drop(connection, settings, partition, instant, check):
                    dropped.append(partition)
        except (errors.InsufficientPrivilege, errors.DependentObjectsStillExist) as exc:
            reason = exc.diag.message_primary
        if reason is not None:
            notes.append(f"partition {partition.name} is emptied and not dropped: {reason}")
    return dropped, notes


def _drop(
    connection: Connection, settings: Settings, partition: Partition, instant: str, check: Callable[[], None]
) -> bool:
    """Drop a partition all of whose bounds lie below an instant, itself sealed; return whether it was still there.

    The lock on the parent keeps writers out for the moment that the catalog change takes, and for ``lock_timeout`` at
    most while it is waited for.
    """

    def once() -> bool:
        with transaction(connection, lock_timeout=settings.lock_timeout):
            connection.execute(fold.SQL["lock_state"])
            state = fold.read_state(connection)
            connection.execute(sql.SQL(SQL["lock_parent"]).format(source=sql.SQL(state.source)))
            _require_order(connection)
            whole = connection.execute(SQL["whole_partitions"], {"seal": instant}).fetchall()
            if (partition.name, partition.oid) not in [(name, oid) for name, oid, *_ in whole]:
                return False
            connection.execute(sql.SQL(SQL["drop_partition"]).format(partition=sql.SQL(partition.name)))
            connection.execute(SQL["forget_partition"], {"oid": partition.oid})
            return True

    return capture.with_lock_retries(settings, once, check=check)


def _delete_batch(connection: Connection, settings: Settings, below: str) -> int | None:
    """Delete the oldest events below an instant and the seal; return how many, or None if there is none."""
    with transaction(connection, lock_timeout=settings.lock_timeout):
        connection.execute(fold.SQL["lock_state"])
        state = fold.read_state(connection)
        _require_order(connection)
        instant = _scalar(connection, "nth_below", seal=below, n=settings.purge_batch)
        if instant is None:
            return None
        statement = sql.SQL(SQL["delete_until"]).format(source=sql.SQL(state.source))
        return connection.execute(statement, {"instant": instant}).rowcount


def _scalar(connection: Connection, block: str, **parameters: object) -> int:
    row = connection.execute(SQL[block], parameters).fetchone()
    assert row is not None
    return row[0]  # type: ignore[no-any-return]
