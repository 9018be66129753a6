"""Verify: compare the rollups with the raw events, in one snapshot, and repair exactly what differs.

A few days at a time (at most a month, and about ``step_events`` events), so memory and transactions stay small; each
is one snapshot. Sealed days are left alone: below the seal the rollups are the record. A difference that is found and not
repaired turns trust off: from then on the answers are right again, and slow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Literal

from psycopg import sql

from aggregator import fold, frontier, marks
from aggregator import sql as sql_files
from aggregator.db import Connection, transaction
from aggregator.errors import AggregatorError, UsageError, never
from aggregator.settings import Settings

SQL = sql_files.load("verify")

METRIC_CHANGED = "a metric was changed"
"""How the reason begins that usage.metric_changed() turns trust off with."""

SHOWN_DIFFERENCES = 1000
"""Differences that a verification names at most; all are counted."""


REPAIRING = "a repair is under way or was interrupted: run aggregator rebuild"
"""Why trust is off while all days are repaired, if there was no reason before."""


class TruncatedError(AggregatorError):
    """A TRUNCATE is not folded yet, so there is nothing to compare with."""

    def __init__(self) -> None:
        super().__init__("the source was truncated: run aggregator refresh first")


class SealMovedError(AggregatorError):
    """By new time zone data the seal cuts a day: what of that day is sealed, and what follows the raw events, cannot be told."""

    def __init__(self, seal: str) -> None:
        super().__init__(
            f"the time zone data has changed, and the seal, {seal}, is no day's first instant any more: give the server the data"
            " of before, or let go of sealed history (aggregator detach --discard-sealed)"
        )


class WritersOpenError(AggregatorError):
    """Writers that may have gone uncaptured are still open; ``writers`` describes them."""

    def __init__(self, writers: tuple[str, ...]) -> None:
        self.writers = writers
        super().__init__(
            f"writers that may have gone uncaptured are still open: {'; '.join(writers)};"
            " run verify --repair again when they have ended"
        )


def parse_day(text: str, option: str) -> str:
    """Return the ISO day that a text names; raise UsageError if it is none."""
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError as exc:
        raise UsageError(f"{option}: {text!r} is no day; write it like 2026-03-01") from exc


@dataclass(frozen=True)
class Difference:
    """What has to be added to one rollup row to make it right. ``bucket`` is an ISO day or ``±infinity``, or an instant: an hour's."""

    rollup: Literal[
        "daily",
        "monthly",
        "daily_collection",
        "monthly_collection",
        "quarterly_collection",
        "daily_total",
        "hourly",
        "hourly_collection",
        "hourly_total",
        "mark",
        "mark_total",
    ]
    bucket: str
    collection_id: str | None
    resource_type: str | None
    job_type: str | None
    model_level: str | None
    event_count: int
    total_value: Decimal
    secondary_value: Decimal
    rejected_count: int


@dataclass(frozen=True)
class VerifyResult:
    """``differences`` counts rollup rows; ``shown`` has the first of them. ``trusted`` is what readers go by afterwards."""

    chunks: int
    differences: int
    shown: tuple[Difference, ...]
    repaired: bool
    trusted: bool
    doubt: str | None
    resumed_from: str | None = None
    """The day from which on an interrupted rebuild was taken up again."""


@dataclass(frozen=True)
class VerifyProgress:
    """The days [day_from, day_to) that were just verified, as ISO days, and the differences found so far.

    Where ``day_to`` is ``infinity``, that bucket too.
    """

    day_from: str
    day_to: str
    differences: int


def verify(
    connection: Connection,
    settings: Settings,
    *,
    repair: bool = False,
    since: str | None = None,
    until: str | None = None,
    resume: bool = False,
    reason: str | None = None,
    progress: Callable[[VerifyProgress], None] = lambda _progress: None,
    check: Callable[[], None] = never,
) -> VerifyResult:
    """Compare the days [since, until), ISO days, by default all that are not sealed; with ``repair`` fold the differences.

    A repair of all days turns trust on again, once capture is in order; with ``resume`` it goes on where an interrupted one
    stopped, if nothing happened since that it could not know. ``reason``: what restatements say of the differences. Commits
    chunk by chunk; ``check`` is called between them, and may raise Stopped. Raises UsageError for a range that is empty, sealed or in the future, and AggregatorError where
    trust could not be restored.
    """
    state, doubtful, resumable, run = fold.with_retries(lambda: _look(connection, since, until))
    restore_trust = repair and doubtful and since is None and until is None
    resumed_from = resumable if resume and restore_trust else None
    doubt: str | None = None
    if resumed_from is not None:
        doubt = state.distrust_reason
    elif restore_trust:
        doubt, run = _prepare_trust(connection, settings, check)
    chunks = differences = 0
    shown: list[Difference] = []
    day = resumed_from or since or state.sealed_day
    differ: list[str] = []
    before: str | None = None
    while True:
        check()
        chunk = fold.with_retries(
            lambda day=day: _next_chunk(connection, settings, day, until or "infinity"),  # type: ignore[misc]
            check,
        )
        if chunk is None:
            if chunks == 0:
                fold.with_retries(lambda day=day: _record_nothing(connection, day, until or "infinity", repair=repair))  # type: ignore[misc]
            break
        found, some = fold.with_retries(
            lambda chunk=chunk, before=before: _verify_chunk(  # type: ignore[misc]
                connection,
                state,
                *chunk,
                before=before,
                repair=repair,
                run=None if doubt is None else run,
                reason=reason,
            ),
            check,
        )
        chunks += 1
        differences += found
        differ += [chunk[0]] if found else []
        if found and not repair:
            _distrust(connection, differ[0], chunk[1])
        shown += some[: SHOWN_DIFFERENCES - len(shown)]
        before, day = chunk
        progress(VerifyProgress(*chunk, differences))
        if day == "infinity":
            break
    if doubt is not None:
        fold.with_retries(lambda: _believe(connection, doubt, run))
    found_doubt = read_doubt(connection)
    return VerifyResult(chunks, differences, tuple(shown), repair, found_doubt is None, found_doubt, resumed_from)


def _look(connection: Connection, since: str | None, until: str | None) -> tuple[fold.State, bool, str | None, int]:
    """Return the state, whether there is doubt, the day that an interrupted repair has to go on from, and its number.

    Raises UsageError for a range that cannot be verified.
    """
    with fold.looking(connection) as state:
        row = connection.execute(SQL["look"], {"since": since, "until": until}).fetchone()
    assert row is not None
    begins_by_now, in_order, unsealed, ends_sealed, doubtful, resumable, run, seal_moved = row
    if seal_moved:
        raise SealMovedError(state.sealed_until)
    if since is not None and not in_order:
        raise UsageError("--since must be before --until")
    if not begins_by_now:
        raise UsageError(f"--since: {since} is in the future: there is nothing to verify")
    if not unsealed or ends_sealed:
        raise UsageError(
            f"{'--until' if unsealed else '--since'}: days before {state.sealed_day} are sealed: their raw events may be gone,"
            " so they cannot be verified"
        )
    return state, doubtful, resumable, run


def _distrust(connection: Connection, day_from: str, day_to: str) -> None:
    with transaction(connection):
        reason = f"verification found differences in days [{day_from}, {day_to}): run aggregator verify --repair"
        connection.execute(SQL["distrust"], {"reason": reason, "from": day_from})


def _believe(connection: Connection, reason: str, run: int) -> None:
    with fold.looking(connection, read_only=False):
        connection.execute(SQL["forget_days"])
        connection.execute(SQL["believe"], {"reason": reason, "run": run})


def read_doubt(connection: Connection) -> str | None:
    """Return why readers do not use the rollups, or None."""

    def look() -> str | None:
        with fold.looking(connection):
            row = connection.execute("select usage.doubt()").fetchone()
            assert row is not None
            return None if row[0] is None else str(row[0])

    return fold.with_retries(look)


def _prepare_trust(connection: Connection, settings: Settings, check: Callable[[], None]) -> tuple[str, int]:
    """Make sure that nothing goes uncaptured from here on, so that what is verified stays right.

    Return the reason for which trust is off: if another one is there afterwards, it is not to be turned on; and
    the number of this repair.
    """

    def know() -> tuple[str, int]:
        with fold.looking(connection, read_only=False):
            frontier.note_behind(connection)
            known = connection.execute(SQL["know"], {"reason": REPAIRING}).fetchone()
            # Afterwards: a gap that came just before would be known, and never be a doubt.
            row = connection.execute(SQL["uncaptured"]).fetchone()
            assert row is not None
            assert known is not None
            if row[0] is not None:
                raise AggregatorError(f"{row[0]} is not captured: run aggregator attach first, then verify --repair")
            return str(known[0]), int(known[1])

    reason, run = fold.with_retries(know)
    _, writers = frontier.advance_and_wait(connection, settings.wait_timeout, check)
    if writers:
        raise WritersOpenError(writers)
    return reason, run


def _next_chunk(connection: Connection, settings: Settings, day: str, until: str) -> tuple[str, str] | None:
    """Return the next days to compare, at most to the end of a month, skipping days with neither rows nor events."""
    with fold.looking(connection):
        row = connection.execute(SQL["next_bucket"], {"day": day}).fetchone()
        if row is None or row[0] is None:
            return None
        first = row[0]
        row = connection.execute(SQL["chunk_end"], {"day": first, "until": until, "n": settings.step_events}).fetchone()
        assert row is not None
        return (first, row[0]) if row[1] else None


def _record_nothing(connection: Connection, day_from: str, day_to: str, *, repair: bool) -> None:
    """Record that days without events have no rollup rows either."""
    with fold.looking(connection, read_only=False):
        connection.execute(SQL["record"], {"from": day_from, "to": day_to, "differences": 0, "repaired": repair})


def _restatement_reason(state: fold.State) -> str:
    redefined = state.distrust_reason is not None and state.distrust_reason.startswith(METRIC_CHANGED)
    return "redefined" if redefined else "repaired"


def _verify_chunk(
    connection: Connection,
    attached: fold.State,
    day_from: str,
    day_to: str,
    *,
    before: str | None,
    repair: bool,
    run: int | None,
    reason: str | None,
) -> tuple[int, list[Difference]]:
    with fold.snapshot(connection, attached, lock_state=repair) as state:
        if state.truncated:
            raise TruncatedError
        days = {"from": day_from, "to": day_to}
        row = connection.execute(SQL["bounds"], {**days, "before": before}).fetchone()
        assert row is not None
        connection.execute(fold.SQL["create_delta"])
        quarter, start, end, hour_from, hour_to, *whole_hours = row
        if state.distributed:
            expected: sql.Composable = sql.SQL(SQL["expected_distributed"])
        else:
            compared = (whole_hours[0], whole_hours[1])
            measured = fold.measured(connection, compared, late=compared)
            expected = sql.SQL(SQL["expected"]).format(measured=measured, hour=state.hour["hour"])
        differences = sql.SQL(SQL["differences"]).format(
            hours=sql.SQL("" if hour_from is None else SQL["hour_differences"])
        )
        connection.execute(
            sql.SQL("insert into pg_temp.delta with expected as materialized ({}){}").format(expected, differences),
            {
                **days,
                "quarter": quarter,
                "start": start,
                "end": end,
                "hour_from": hour_from,
                "hour_to": hour_to,
                "reason": reason or _restatement_reason(state),
            },
        )
        count_row = connection.execute(SQL["count_differences"]).fetchone()
        assert count_row is not None
        count = int(count_row[0])
        some: list[Difference] = []
        if count:
            some = [
                Difference(*fields)
                for fields in connection.execute(SQL["some_differences"], {"limit": SHOWN_DIFFERENCES}).fetchall()
            ]
            if repair:
                connection.execute(fold.SQL["restate"], {"run": None, "below": None})
                fold.apply_delta(connection, derive=False, hourly=state.hourly_since is not None)
        if hour_from is not None:  # to repair days lets go of their marks
            wrong = marks.differences(connection, start, end)
            count += len(wrong)
            some += [
                Difference(
                    "mark_total" if one.of_total else "mark",
                    one.at,
                    one.collection_id,
                    one.resource_type,
                    None,
                    None,
                    one.event_count,
                    one.total_value,
                    one.secondary_value,
                    0,
                )
                for one in wrong
            ]
        if repair:
            connection.execute(SQL["forget_leaves"], {"start": start, "end": end})
            connection.execute(SQL["note_days"], days)
            fold.notice_new_partition(connection)
        if run is not None:
            connection.execute(SQL["repaired_until"], {"to": day_to, "run": run})
        connection.execute(SQL["record"], {**days, "differences": count, "repaired": repair})
        return count, some
