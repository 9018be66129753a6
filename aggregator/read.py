"""The read function: the usage overview of a window, exact in one snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Literal
from uuid import UUID

import psycopg
from psycopg.rows import tuple_row

from aggregator import sql as sql_files
from aggregator.errors import UsageError

SQL = sql_files.load("read")

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

Infinite = Literal["-infinity", "infinity"]


@dataclass(frozen=True)
class CollectionUsage:
    """Usage of one collection (None: events without one) and resource type, in the metric's unit."""

    collection_id: UUID | None
    collection_title: str | None
    resource_type: str | None
    event_count: int
    total_value: float
    secondary_value: float


@dataclass(frozen=True)
class AiUsage:
    """AI usage of one collection, job type and model level; tokens are exact sums, rounded half away from zero."""

    collection_id: UUID | None
    collection_title: str | None
    job_type: str | None
    model_level: str | None
    tokens_in: int
    tokens_out: int
    event_count: int


@dataclass(frozen=True)
class DailyUsage:
    """Usage of one local day and resource type; a day that the window cuts counts the part inside.

    ``starts_at`` is the contract's label, ISO 8601 in UTC. Days outside years 1-9999 are text in both.
    """

    day: date | Infinite
    starts_at: str
    resource_type: str | None
    event_count: int
    total_value: float

    def as_contract(self) -> dict[str, object]:
        """Return the row as the contract's JSON has it."""
        return {
            "day": self.starts_at,
            "resource_type": self.resource_type,
            "event_count": self.event_count,
            "total_value": self.total_value,
        }


@dataclass(frozen=True)
class Receipt:
    """What the statement read, and how far it can be believed.

    ``frontier`` and ``lag`` are None before the first refresh. ``exact`` is False only where a window cuts a sealed day, or
    reaches days that were sealed with another definition of a metric, or takes days from the rollups of a source without
    triggers; ``reasons`` say why, and why a read was slow. Rows are those read for all sections; ``pending_changes`` are the
    late changes among them.
    """

    as_of: datetime
    frontier: datetime | None
    lag: timedelta | None
    exact: bool
    reasons: tuple[str, ...]
    rollup_rows: int
    raw_rows: int
    pending_changes: int


@dataclass(frozen=True)
class Overview:
    """The three sections, each in the contract's order, and the receipt of the read."""

    by_collection: tuple[CollectionUsage, ...]
    ai_drilldown: tuple[AiUsage, ...]
    daily: tuple[DailyUsage, ...]
    receipt: Receipt

    def as_contract(self) -> dict[str, list[dict[str, Any]]]:
        """Return the contract's JSON object: three lists, keys in the contract's order."""
        return {
            "by_collection": [
                {
                    "collection_id": str(row.collection_id) if row.collection_id else None,
                    "collection_title": row.collection_title,
                    "resource_type": row.resource_type,
                    "event_count": row.event_count,
                    "total_value": row.total_value,
                    "secondary_value": row.secondary_value,
                }
                for row in self.by_collection
            ],
            "ai_drilldown": [
                {
                    "collection_id": str(row.collection_id) if row.collection_id else None,
                    "collection_title": row.collection_title,
                    "job_type": row.job_type,
                    "model_level": row.model_level,
                    "tokens_in": row.tokens_in,
                    "tokens_out": row.tokens_out,
                    "event_count": row.event_count,
                }
                for row in self.ai_drilldown
            ],
            "daily": [row.as_contract() for row in self.daily],
        }


def usage_overview(
    connection: psycopg.Connection[Any],
    *,
    days: int = 30,
    since: datetime | None = None,
    until: datetime | None = None,
    collection_id: UUID | str | None = None,
) -> Overview:
    """Return the overview of [since, until), by default of the last ``days`` local days, up to and beyond now.

    One statement in one snapshot, in the caller's transaction, which is neither committed nor rolled back. ``days`` is
    clamped into 1-365, counted back from ``until`` if only that is given, and ignored if ``since`` is. Raises UsageError for a naive instant, ``since`` not before
    ``until``, or a collection_id that is no UUID, and psycopg.Error (not attached: ObjectNotInPrerequisiteState).
    """
    parameters = bound_parameters(days=days, since=since, until=until, collection_id=collection_id)
    with connection.cursor(row_factory=tuple_row) as cursor:
        rows = cursor.execute(SQL["overview"], parameters).fetchall()
    return _overview(rows)


def usage_daily(
    connection: psycopg.Connection[Any],
    *,
    time_zone: str | None,
    days: int = 30,
    since: datetime | None = None,
    until: datetime | None = None,
    collection_id: UUID | str | None = None,
) -> tuple[DailyUsage, ...]:
    """Return the usage of a window by days of any time zone (None: the reporting one) and resource type, newest first; exact.

    The window is that of ``usage_overview``. One statement in one snapshot, in the caller's transaction. Fast where the
    hourly rollup is on, else read from raw events. Raises UsageError as ``usage_overview``, for a time zone that the
    server does not know, and where sealed days would have to be read raw.
    """
    parameters = bound_parameters(days=days, since=since, until=until, collection_id=collection_id)
    with connection.cursor(row_factory=tuple_row) as cursor:
        try:
            rows = cursor.execute(SQL["daily"], {**parameters, "zone": time_zone}).fetchall()
        except psycopg.errors.InvalidParameterValue as exc:
            raise UsageError(exc.diag.message_primary or str(exc)) from exc
    return tuple(
        DailyUsage(local_day(day), starts_at, resource_type, event_count, float(total))
        for day, starts_at, resource_type, event_count, total in rows
    )


def bound_parameters(
    *, days: int, since: datetime | None, until: datetime | None, collection_id: UUID | str | None
) -> dict[str, object]:
    """Return what a window and a collection are to the statements of read.sql; raises UsageError as ``usage_overview``."""
    for name, instant in (("since", since), ("until", until)):
        if instant is not None and instant.utcoffset() is None:
            raise UsageError(f"{name} must have a time zone: {instant.isoformat()} has none")
    if since is not None and until is not None and since >= until:
        raise UsageError(f"since must be before until: {since.isoformat()} is not before {until.isoformat()}")
    return {
        "days": max(1, min(365, days)),
        "since": since,
        "until": until,
        "collection": None if collection_id is None else _uuid(collection_id),
    }


def _uuid(value: UUID | str) -> UUID:
    try:
        return value if isinstance(value, UUID) else UUID(value)
    except ValueError as exc:
        raise UsageError(f"collection: {value!r} is no UUID") from exc


def _overview(rows: list[tuple[Any, ...]]) -> Overview:
    by_collection: list[CollectionUsage] = []
    ai_drilldown: list[AiUsage] = []
    daily: list[DailyUsage] = []
    receipt: Receipt | None = None
    for row in rows:
        (section, day, starts_at, collection, title, resource_type, job_type, model_level, event_count,
         total, secondary, as_of, frontier, exact, reasons, rollup_rows, raw_rows, pending) = row  # fmt: skip
        collection_id = None if collection is None else UUID(str(collection))
        if section == "by_collection":
            by_collection.append(
                CollectionUsage(collection_id, title, resource_type, event_count, float(total), float(secondary))
            )
        elif section == "ai_drilldown":
            ai_drilldown.append(
                AiUsage(collection_id, title, job_type, model_level, _whole(total), _whole(secondary), event_count)
            )
        elif section == "daily":
            daily.append(DailyUsage(local_day(day), starts_at, resource_type, event_count, float(total)))
        else:
            at, reached = read_instant(as_of), None if frontier is None else read_instant(frontier)
            receipt = Receipt(
                at, reached, None if reached is None else at - reached, exact, tuple(reasons),
                rollup_rows, raw_rows, pending,
            )  # fmt: skip
    assert receipt is not None
    return Overview(tuple(by_collection), tuple(ai_drilldown), tuple(daily), receipt)


def local_day(text: str) -> date | Infinite:
    """Return the day that a statement of read.sql gave as text; those outside years 1-9999 stay text."""
    return text if text in {"-infinity", "infinity"} else date.fromisoformat(text)  # type: ignore[return-value]


def read_instant(microseconds: int) -> datetime:
    """Return the instant that a statement of read.sql gave as microseconds since the epoch."""
    return _EPOCH + timedelta(microseconds=microseconds)


def _whole(number: str) -> int:
    return int(Decimal(number).to_integral_value(rounding=ROUND_HALF_UP))
