"""The general question: sums of a window by any keys and grain, beside the window before; exact in one snapshot."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from datetime import date, datetime
from typing import Any, Literal
from uuid import UUID

import psycopg
from psycopg.rows import tuple_row

from aggregator.errors import UsageError
from aggregator.read import SQL, Infinite, bound_parameters, local_day, read_instant

Key = Literal["collection", "resource_type", "job_type", "model_level"]
Grain = Literal["none", "day", "week", "month"]

KEYS: tuple[Key, ...] = ("collection", "resource_type", "job_type", "model_level")
GRAINS: tuple[Grain, ...] = ("none", "day", "week", "month")


@dataclass(frozen=True)
class Total:
    """Sums of one group; keys that were not asked for are None.

    ``bucket`` is the local day, the Monday of the ISO week, or the first of the month, ``starts_at`` its first label in UTC;
    both are None without a grain. Values are None where units differ within the group. ``…_before`` are of the same group
    in the window before, None where that is no whole number of buckets.
    """

    bucket: date | Infinite | None
    starts_at: str | None
    collection_id: UUID | None
    collection_title: str | None
    resource_type: str | None
    job_type: str | None
    model_level: str | None
    event_count: int
    total_value: float | None
    secondary_value: float | None
    unit: str | None
    secondary_unit: str | None
    event_count_before: int | None
    total_value_before: float | None
    secondary_value_before: float | None


COLUMNS = tuple(field.name for field in fields(Total))


@dataclass(frozen=True)
class Totals:
    """The rows in order of bucket, then the largest first; and how far they can be believed, as in ``Receipt``."""

    rows: tuple[Total, ...]
    as_of: datetime
    frontier: datetime | None
    exact: bool
    reasons: tuple[str, ...]

    def as_document(self) -> dict[str, Any]:
        """Return what JSON is made of: text for days and identifiers."""
        return {
            "totals": [
                {
                    **asdict(row),
                    "bucket": row.bucket and str(row.bucket),
                    "collection_id": row.collection_id and str(row.collection_id),
                }
                for row in self.rows
            ],
            "as_of": self.as_of.isoformat(),
            "frontier": self.frontier and self.frontier.isoformat(),
            "exact": self.exact,
            "reasons": list(self.reasons),
        }


def usage_totals(
    connection: psycopg.Connection[Any],
    *,
    by: Collection[str] = (),
    grain: str = "none",
    fill: bool = False,
    days: int = 30,
    since: datetime | None = None,
    until: datetime | None = None,
    collection_id: UUID | str | None = None,
) -> Totals:
    """Return the sums of [since, until), by default of the last ``days`` local days before ``until``, by keys and grain.

    One statement in one snapshot, in the caller's transaction. ``fill``: zeros for gaps, and for groups that only the window
    before has. Raises UsageError for an unknown key or grain, and for what ``usage_overview`` raises it.
    """
    for key in by:
        if key not in KEYS:
            raise UsageError(f"by: there is no key {key!r}; there are {', '.join(KEYS)}")
    if grain == "hour":
        raise UsageError(
            "grain: sums are by day, week, month or none; hours are in usage.hourly, if aggregator attach --hourly was run"
        )
    if grain not in GRAINS:
        raise UsageError(f"grain: there is no {grain!r}; there are day, week, month and none")
    parameters = {
        **bound_parameters(days=days, since=since, until=until, collection_id=collection_id),
        "by": list(by), "grain": grain, "fill": fill,
    }  # fmt: skip
    with connection.cursor(row_factory=tuple_row) as cursor:
        try:
            rows = cursor.execute(SQL["totals"], parameters).fetchall()
        except psycopg.errors.InvalidParameterValue as exc:  # fill: too many buckets
            raise UsageError(exc.diag.message_primary or str(exc)) from exc
    as_of, frontier, exact, reasons = rows[0][:4]
    return Totals(
        tuple(_total(row[4:]) for row in rows if row[4]),
        read_instant(as_of), None if frontier is None else read_instant(frontier), exact, tuple(reasons),
    )  # fmt: skip


def _total(row: tuple[Any, ...]) -> Total:
    _, bucket, starts_at, collection, *rest = row
    return Total(
        None if bucket is None else local_day(bucket),
        starts_at,
        None if collection is None else UUID(str(collection)),
        *rest,
    )
