"""The nightly run: everything that keeps the rollups right, small and fast without anybody looking.

Its parts are: refresh, materialized views, verification of the last days and of one random older day, purge if it is
configured, pruning of histories, ANALYZE. Each part may be repeated; a part that fails does not keep the others from
running, and the run is tried again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg

from aggregator import fold, jobs, matviews, purge, refresh, verify
from aggregator import sql as sql_files
from aggregator.db import Connection, one_line, transaction
from aggregator.errors import AggregatorError, Stopped, never
from aggregator.settings import Settings

SQL = sql_files.load("nightly")


@dataclass
class NightlyResult:
    """What a nightly run did. ``errors`` are of parts that failed, one line each; none: all went well."""

    events: int = 0
    late_changes: int = 0
    partial: bool = False
    views: tuple[str, ...] = ()
    verified: list[str] = field(default_factory=list)
    """Ranges of days, as ``2026-03-01/2026-03-08``."""
    differences: int = 0
    purged: int | None = None
    """Raw events; None: not configured."""
    pruned: int = 0
    analyzed: tuple[str, ...] = ()
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def run(
    connection: Connection,
    settings: Settings,
    *,
    check: Callable[[], None] = never,
    report: Callable[[str], None] = lambda _part: None,
) -> NightlyResult:
    """Run all parts and return what they did; ``report`` is called before each, ``check`` within, and may raise Stopped.

    Raises only Stopped, and psycopg.OperationalError once the connection is gone.
    """
    began = time.monotonic()
    result = NightlyResult()

    @contextmanager
    def part(name: str) -> Iterator[None]:
        check()
        report(name)
        try:
            yield
        except Stopped:
            raise
        except (AggregatorError, psycopg.Error) as exc:
            if connection.closed:
                raise
            result.errors.append(f"{name}: {one_line(exc)}")

    with part("refresh"):
        _refresh(connection, settings, result, check)
    with part("materialized views"):
        result.views = matviews.refresh_views(connection, check=check)
    with part("verify"):
        _verify(connection, settings, result, check)
    if settings.keep is not None:
        with part("purge"), jobs.exclusive(connection, settings, "the nightly purge"):
            result.purged = purge.purge(connection, settings, settings.keep, check=check).events
    with part("prune"), transaction(connection):
        row = connection.execute(SQL["prune"], {"days": settings.keep_history_days}).fetchone()
        assert row is not None
        result.pruned = row[0]
    with part("analyze"), transaction(connection):
        result.analyzed = tuple(name for (name,) in connection.execute(SQL["analyze"]).fetchall())
    result.seconds = time.monotonic() - began
    return result


def _refresh(connection: Connection, settings: Settings, result: NightlyResult, check: Callable[[], None]) -> None:
    found = refresh.refresh(connection, settings, check=check)
    jobs.record_refreshed(connection)
    result.events, result.late_changes = found.events, found.late_changes
    result.partial = found.status == "partial"
    result.notes += [*found.notes, *(f"left the tail raw, since a writer is open: {name}" for name in found.waited_for)]


def _verify(connection: Connection, settings: Settings, result: NightlyResult, check: Callable[[], None]) -> None:
    with transaction(connection, read_only=True):
        lookback = fold.read_state(connection).lookback_days is not None
        row = connection.execute(SQL["recent_days"], {"days": settings.verify_days}).fetchone()
        assert row is not None
        ranges = [(row[0], row[1])]
        older = connection.execute(SQL["random_day"], {"before": row[0]}).fetchone()
        if older is not None:
            ranges.append((older[0], older[1]))
    differ = 0
    for since, until in ranges:
        # Without triggers a difference is what to expect of late changes, and no sign that something is wrong. Of an older
        # day it may be: somebody's retention must not empty the rollups unseen.
        recent = lookback and since == ranges[0][0]
        found = verify.verify(
            connection,
            settings,
            repair=recent,
            reason="late" if recent else None,
            since=since,
            until=until,
            check=check,
        )
        result.verified.append(f"{since}/{until}")
        result.differences += found.differences
        if recent and found.differences:
            result.notes.append(f"late changes: {found.differences} rollup rows of the last days were corrected")
        elif found.differences:
            differ += found.differences
    if differ:
        raise AggregatorError(
            f"{differ} rollup rows differ from the raw events; trust is off, so answers are right and slow:"
            " run aggregator verify --repair"
        )
