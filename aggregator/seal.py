"""Seal: make the rollups the record of what lies below a day, because its raw events are gone, or are to go.

The row first, then the sequence that writers compare with: a delete in between counts, as one of before the seal would.
Killed in between, every refresh puts the sequence right, and so does purge before it deletes anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from aggregator import fold, hourly, refresh, verify
from aggregator import sql as sql_files
from aggregator.db import Connection, transaction
from aggregator.errors import AggregatorError, UsageError
from aggregator.settings import Settings

SQL = sql_files.load("seal")


@dataclass(frozen=True)
class Sealed:
    """What a seal keeps: ``events`` on ``days`` local days before ``day``, from ``first_day`` on (ISO days)."""

    day: str
    events: int
    days: int
    first_day: str | None
    notes: tuple[str, ...]


def seal(connection: Connection, settings: Settings, day: str, *, dry_run: bool = False) -> Sealed:
    """Keep the history before an ISO day whatever becomes of its raw events; commits.

    For history whose raw events somebody dropped or truncated: it is sealed as the rollups have it. What is not sealed
    follows the raw events: trust is restored by a repair, or by a refresh after a TRUNCATE. Raises UsageError where the
    rollups do not cover the days, or may not be believed for another reason.
    """
    attached = fold.attached(connection)

    def once() -> tuple[Sealed, bool, bool]:
        with fold.snapshot(connection, attached, lock_state=not dry_run) as state:
            gone = _require_sealable(connection, day)
            sealed = _kept(connection, day)
            if not dry_run:
                seal_in_snapshot(connection, state, day)
            return sealed, gone, state.truncated

    sealed, gone, truncated = fold.with_retries(once)
    if dry_run:
        return sealed
    set_sequence(connection)
    notes = []
    if truncated:
        refresh.refresh(connection, settings)
        notes.append("the source was truncated: what is not sealed was folded anew")
    elif gone:
        found = verify.verify(connection, settings, repair=True)
        notes.append(f"what is not sealed follows the raw events: {found.differences} differences repaired")
        if found.doubt is not None:
            notes.append(f"trust is off: {found.doubt}")
    return Sealed(sealed.day, sealed.events, sealed.days, sealed.first_day, tuple(notes))


def seal_in_snapshot(connection: Connection, state: fold.State, day: str) -> None:
    """Fold what is pending below a day and move the seal there, in the caller's snapshot, which holds the state."""
    row = connection.execute(SQL["plan"], {"day": day}).fetchone()
    assert row is not None
    instant = row[0]
    connection.execute(fold.SQL["create_delta"])
    measured = fold.measured(connection, late=("-infinity", instant))
    connection.execute(sql.SQL(SQL["add_late"]).format(measured=measured, **state.hour), {"zone": state.time_zone})
    connection.execute(fold.SQL["restate"], {"run": None, "below": None})
    fold.apply_delta(connection, derive=True, hourly=state.hourly_since is not None)
    connection.execute(SQL["drop_late"], {"seal": instant})
    row = connection.execute(SQL["set_sealed"], {"seal": instant}).fetchone()
    assert row is not None
    if row[0] != state.hourly_since:
        hourly.delete_below(connection, row[0])


def set_sequence(connection: Connection) -> None:
    """Let writers see the seal, so that deletes below it are no longer logged; commits. May be repeated."""
    with transaction(connection):
        connection.execute(refresh.SQL["set_seal"])


def _kept(connection: Connection, day: str) -> Sealed:
    row = connection.execute(SQL["kept"], {"day": day}).fetchone()
    assert row is not None
    events, days, first_day = row
    return Sealed(day, events, days, first_day, ())


def _require_sealable(connection: Connection, day: str) -> bool:
    """Return whether a partition is gone; raise UsageError where history may not be sealed as the rollups have it."""
    row = connection.execute(SQL["plan"], {"day": day}).fetchone()
    assert row is not None
    _, above, folded, doubt, gone = row
    if not above:
        raise UsageError(f"history before {day} is sealed already")
    if not folded:
        raise UsageError(f"{day} is not over, or not folded: the rollups do not cover it; run aggregator refresh first")
    truncated = doubt is not None and doubt.startswith("the source was truncated")
    if doubt is not None and not (truncated or gone):
        raise UsageError(f"the rollups may not be believed, so they cannot be the record: {doubt}")
    return bool(gone)


def require_trust(connection: Connection) -> None:
    """Raise AggregatorError, in the caller's transaction, if there is any doubt: then nothing may be sealed or deleted."""
    row = connection.execute("select usage.doubt()").fetchone()
    assert row is not None
    if row[0] is not None:
        raise AggregatorError(f"nothing was deleted, for the rollups may not be believed: {row[0]}")
