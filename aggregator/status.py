"""Status: freshness, trust and health in one look. What is a problem is said by one place, ``usage.problems()``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from psycopg import IsolationLevel

from aggregator import frontier
from aggregator import sql as sql_files
from aggregator.db import Connection, transaction
from aggregator.settings import Settings

SQL = sql_files.load("status")

COUNTED_TAIL = 100_000
"""Tail events that are counted at most: after that it is "more than"."""

_SPARSE_ROWS = 10_000
"""Daily rows of the last 30 days from which on it is worth a note that they hold hardly more than an event each."""

_SPARSE_SHARE = 0.5
"""Rollup rows for each event, from which on it is."""

_NEWEST_KEYS = 20_000
"""Keys that are looked at to tell which column makes them many."""

_SAMPLED_HOURS, _SAMPLED_EVENTS = 3, 15_000
"""Hours of the last 30 days that are looked at, and events of each at most."""

_DENSE_DAY, _COMPRESSION = 100_000, 3.0
"""From where on an hourly rollup pays: events of a day, and events that become one row of it."""

_LOCK_TIMEOUT = 2.0
"""Seconds: partitions are looked up under the host's locks on them."""


@dataclass(frozen=True)
class Problem:
    """Something that needs somebody: a stable ``code``, what is wrong, and the ``remedy``."""

    code: str
    text: str
    remedy: str

    def __str__(self) -> str:
        """Return it in one line."""
        return f"{self.text}: {self.remedy}"


@dataclass(frozen=True)
class Status:
    """What the rollups cover, and what is wrong. Instants are ISO text in UTC; None: never, or not known."""

    source: str | None
    capture: Literal["triggers", "lookback"] | None
    lookback_days: int | None
    """Capture by lookback: each refresh repairs so many days."""
    title_table: str | None
    time_zone: str
    frontier: str | None
    lag: str | None
    lag_seconds: float | None
    tail_events: int | None
    """At most COUNTED_TAIL + 1."""
    pending_changes: int
    sealed_until: str | None
    last_refreshed: str | None
    last_refreshed_seconds: float | None
    """Since the epoch."""
    last_run: str | None
    last_nightly: str | None
    last_error: str | None
    last_verified: str | None
    last_verified_seconds: float | None
    """Since the epoch."""
    at_work: tuple[str, ...]
    """Jobs and commands that are running now, with their hosts and processes."""
    blocked_by: tuple[str, ...]
    """Writers of the source that have been open for longer than a refresh waits."""
    views_refreshed: str | None
    daily_rows: int
    rejected_values: int
    rejected_share: float
    """Of the events of the last 30 days."""
    rollup_size: str
    hourly_since: str | None
    """The hourly rollup is complete from this hour on (``-infinity``: all); None: it is off."""
    events_per_day: int | None
    """Of the last 30 days; None: the hourly rollup is on, or there were none."""
    hour_compression: float | None
    """Events that would be one row of an hourly rollup, in a sample; None likewise."""
    hour_compression_is_minimum: bool
    """More, if the sample had been larger."""
    doubt: str | None
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    """What is worth knowing, and no problem."""

    @property
    def healthy(self) -> bool:
        """Whether nothing needs anybody."""
        return not self.problems

    @property
    def hourly_would_pay(self) -> bool:
        """Whether the source is so dense that an hourly rollup would make windows to the second faster."""
        dense = self.events_per_day is not None and self.events_per_day >= _DENSE_DAY
        return dense and self.hour_compression is not None and self.hour_compression >= _COMPRESSION

    def _hourly(self) -> str:
        if self.hourly_since is not None:
            return "on" if self.hourly_since == "-infinity" else f"on, from {self.hourly_since} on"
        if self.events_per_day is None or self.hour_compression is None:
            return "off"
        least = "at least " if self.hour_compression_is_minimum else ""
        found = f"off; {self.events_per_day:,} events a day, {least}{self.hour_compression:.1f} to a row of an hour"
        return f"{found}: aggregator attach --hourly would pay" if self.hourly_would_pay else found

    def lines(self) -> list[tuple[str, str]]:
        """Return labels and values for people."""
        tail = "unknown" if self.tail_events is None else f"{self.tail_events:,}"
        if self.tail_events is not None and self.tail_events > COUNTED_TAIL:
            tail = f"more than {COUNTED_TAIL:,}"
        return [
            ("source", self.source or "not attached"),
            ("capture", self._how()),
            ("titles", self.title_table or "none"),
            ("time zone", self.time_zone),
            ("frontier", f"{self.frontier} ({self.lag} ago)" if self.frontier else "never refreshed"),
            ("tail events", tail),
            ("trust", "on: reads use the rollups" if self.doubt is None else "off: reads are raw, slow and right"),
            ("pending changes", f"{self.pending_changes:,}"),
            ("sealed until", self.sealed_until or "nothing is sealed"),
            ("last refreshed", self.last_refreshed or "never"),
            ("last run", self.last_run or "none"),
            ("last nightly run", self.last_nightly or "none"),
            ("last error", self.last_error or "none"),
            ("last verified", self.last_verified or "never"),
            ("views refreshed", self.views_refreshed or "never"),
            ("at work", "; ".join(self.at_work) or "nobody"),
            ("blocked by", "; ".join(self.blocked_by) or "nobody"),
            ("rollups", f"{self.daily_rows:,} daily rows, {self.rollup_size} in all"),
            ("hourly rollup", self._hourly()),
            ("rejected values", f"{self.rejected_values:,} ({self.rejected_share:.2%} of the last 30 days)"),
        ]

    def _how(self) -> str:
        if self.lookback_days is not None:
            return f"lookback: each refresh repairs the last {self.lookback_days} days; nothing else is watched"
        return self.capture or "none"

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {"healthy": self.healthy, **asdict(self)}


def limits(settings: Settings) -> dict[str, object]:
    """Return from where on something is a problem, as ``usage.problems()`` takes it."""
    return {
        "max_lag": settings.lag_limit,
        "max_verification_age": settings.max_verification_age_days,
        "max_pending_changes": settings.max_pending_changes,
        "max_rejected_share": settings.max_rejected_share,
        "max_frontier_ahead": settings.max_frontier_ahead,
    }


def read_status(connection: Connection, settings: Settings) -> Status:
    """Return the state in one snapshot, read-only."""
    with transaction(connection, isolation=IsolationLevel.REPEATABLE_READ, read_only=True, lock_timeout=_LOCK_TIMEOUT):
        row = connection.execute(SQL["status"], {"tail": COUNTED_TAIL + 1}).fetchone()
        problems = connection.execute(SQL["problems"], limits(settings)).fetchall()
        at_work = connection.execute(SQL["at_work"]).fetchall()
        writers = frontier.open_writers(connection, settings.wait_timeout)
        sparse = _sparse(connection)
        sample = connection.execute(SQL["hourly"], {"hours": _SAMPLED_HOURS, "events": _SAMPLED_EVENTS}).fetchone()
    assert row is not None
    assert sample is not None
    hourly_since, events_per_day, sampled, hour_rows, whole = sample
    (source, mode, lookback_days, titles, zone, frontier_at, sealed, lag, lag_seconds, doubt, tail, pending, refreshed, refreshed_seconds, verified,
     verified_seconds, last_run, nightly, error, views, daily_rows, rejected, share, size) = row  # fmt: skip
    return Status(
        source=source,
        capture=None if source is None else "lookback" if mode == "lookback" else "triggers",
        lookback_days=lookback_days,
        title_table=titles,
        time_zone=zone,
        frontier=None if frontier_at == "-infinity" else frontier_at,
        lag=lag,
        lag_seconds=lag_seconds,
        tail_events=tail,
        pending_changes=pending,
        sealed_until=None if sealed == "-infinity" else sealed,
        last_refreshed=refreshed,
        last_refreshed_seconds=refreshed_seconds,
        last_run=last_run,
        last_nightly=nightly,
        last_error=error,
        last_verified=verified,
        last_verified_seconds=verified_seconds,
        at_work=tuple(str(line) for (line,) in at_work),
        blocked_by=writers,
        views_refreshed=views,
        daily_rows=daily_rows,
        rejected_values=rejected or 0,
        rejected_share=share,
        rollup_size=size,
        hourly_since=hourly_since,
        events_per_day=events_per_day,
        hour_compression=sampled / hour_rows if hour_rows else None,
        hour_compression_is_minimum=whole is False,
        doubt=doubt,
        problems=tuple(Problem(*problem) for problem in problems),
        notes=() if sparse is None else (sparse,),
    )


def _sparse(connection: Connection) -> str | None:
    """Say that the rollups hardly hold fewer rows than there are events, and which column of the keys does it."""
    row = connection.execute(SQL["recent_events"]).fetchone()
    if row is None or row[2] < _SPARSE_ROWS:
        return None
    since, until, events = row
    plan = connection.execute(SQL["recent_rows"], {"from": since, "to": until}).fetchone()
    assert plan is not None
    rows = int(plan[0][0]["Plan"]["Plan Rows"])
    if rows < max(_SPARSE_ROWS, events * _SPARSE_SHARE):
        return None
    said = (
        f"the rollups save little: about {rows:,} daily rows hold the {events:,} events of the last 30 days, so reads of them"
        " cost almost what reading the events would"
    )
    row = connection.execute(SQL["newest_keys"], {"keys": _NEWEST_KEYS}).fetchone()
    if row is None:
        return said
    resource_type, keys, collections, job_types, model_levels = row
    distinct, column = max(
        (job_types, "job_type"),
        (model_levels, "model_level"),
        (collections, "collection_id"),
        key=lambda found: found[0],
    )
    of_type = "events without a type" if resource_type is None else f"type {resource_type}"
    if distinct * 2 < keys:
        return f"{said}. No column does it alone: {of_type} has that many combinations of collection, job type and model level"
    if column == "collection_id":
        return (
            f"{said}. {of_type} has {distinct:,} collections among its newest {keys:,} keys, with few events a day each:"
            " nothing is wrong, if they are collections"
        )
    return (
        f"{said}. {column} of {of_type} has {distinct:,} values among its newest {keys:,} keys: is it an id? Write the kind of"
        " job there, and the id under another name in detail; days that are over stay as they are"
    )


def save_limits(connection: Connection, settings: Settings) -> None:
    """Let ``usage.freshness`` go by these settings' limits; commits."""
    with transaction(connection):
        connection.execute(SQL["save_limits"], limits(settings))
