"""Status: freshness and trust in one look."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from psycopg import IsolationLevel

from aggregator.db import Connection, transaction
from aggregator.read import SQL


@dataclass(frozen=True)
class Status:
    """What the rollups cover, and what is wrong. Instants are ISO text in UTC; None: never, or not known."""

    source: str | None
    title_table: str | None
    time_zone: str
    frontier: str | None
    lag: str | None
    pending_changes: int
    sealed_until: str | None
    last_refreshed: str | None
    last_run: str | None
    last_verified: str | None
    daily_rows: int
    rejected_values: int
    rollup_size: str
    doubt: str | None
    problems: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing needs anybody."""
        return not self.problems

    def lines(self) -> list[tuple[str, str]]:
        """Return labels and values for people."""
        return [
            ("source", self.source or "not attached"),
            ("titles", self.title_table or "none"),
            ("time zone", self.time_zone),
            ("frontier", f"{self.frontier} ({self.lag} ago)" if self.frontier else "never refreshed"),
            ("trust", "on: reads use the rollups" if self.doubt is None else "off: reads are raw, slow and right"),
            ("pending changes", f"{self.pending_changes:,}"),
            ("sealed until", self.sealed_until or "nothing is sealed"),
            ("last refreshed", self.last_refreshed or "never"),
            ("last run", self.last_run or "none"),
            ("last verified", self.last_verified or "never"),
            ("rollups", f"{self.daily_rows:,} daily rows, {self.rollup_size} in all"),
            ("rejected values", f"{self.rejected_values:,}"),
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {"healthy": self.healthy, **asdict(self), "problems": list(self.problems)}


def read_status(connection: Connection) -> Status:
    """Return the state in one snapshot, read-only."""
    with transaction(connection, isolation=IsolationLevel.REPEATABLE_READ, read_only=True):
        row = connection.execute(SQL["status"]).fetchone()
    assert row is not None
    (source, titles, zone, frontier, sealed, lag, doubt, pending, refreshed, verified, last_run, daily_rows, rejected,
     size, ahead, grants) = row  # fmt: skip
    problems: list[str] = []
    if source is None:
        problems.append("not attached: run aggregator attach")
    elif frontier == "-infinity":
        problems.append("never refreshed, so reads are slow: run aggregator refresh")
    if doubt is not None:
        problems.append(f"trust is off, so reads are slow: {doubt}")
    if ahead:
        problems.append(
            f"the frontier lies in the future ({frontier}): was the clock wrong? every new event is a late change"
        )
    if last_run is not None and last_run.startswith("failed"):
        problems.append(f"the last refresh {last_run}")
    if not grants:
        problems.append(
            "writers may not read the frontier sequences (a dump without privileges?): run aggregator attach"
        )
    return Status(
        source, titles, zone, None if frontier == "-infinity" else frontier, lag, pending,
        None if sealed == "-infinity" else sealed, refreshed, last_run, verified, daily_rows, rejected or 0, size,
        doubt, tuple(problems),
    )  # fmt: skip
