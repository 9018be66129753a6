"""History: what refreshes, verifications and restatements there were; pruned by the nightly run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from aggregator import sql as sql_files
from aggregator.db import Connection, transaction

SQL = sql_files.load("history")


class Kind(StrEnum):
    """What there is a history of."""

    refreshes = "refreshes"
    verifications = "verifications"
    restatements = "restatements"


@dataclass(frozen=True)
class History:
    """Rows, newest first, and the names of their columns."""

    names: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return a dictionary for each row."""
        return [dict(zip(self.names, row, strict=True)) for row in self.rows]


def read_history(connection: Connection, kind: Kind, limit: int) -> History:
    """Return the newest ``limit`` rows of a history."""
    with transaction(connection, read_only=True):
        cursor = connection.execute(SQL[kind.value], {"limit": limit})
        assert cursor.description is not None
        return History(tuple(column.name for column in cursor.description), tuple(cursor.fetchall()))
