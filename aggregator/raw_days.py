"""The raw events of a fold's step, added up day by day: here, by the server's parallel workers, and on further connections.

Events are presumed to be well formed, which costs a fifth less: numbers within bounds, no long key texts. What is not shows in
the sums (``usage.presumed_sql``), and then that day is added up again, each event looked at. A run in which that happens often
presumes no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from aggregator import fold
from aggregator import sql as sql_files
from aggregator.db import Connection
from aggregator.settings import Settings
from aggregator.workers import Workers

SQL = sql_files.load("raw_days")

_FEW = 4
"""While not every fourth day was malformed, it is faster to presume that the next one is not."""

_TOGETHER = 4
"""Days that a worker adds up in one statement, at most: each reads all keys."""

_PARTS = 16
"""Statements that each connection has of a step, at least, so that all end at about the same time."""


@dataclass
class Presumption:
    """How often it was right in this run that the events of a day are well formed."""

    days: int = 0
    malformed: int = 0


@dataclass(frozen=True)
class Day:
    """A local day that has raw events, and the range [start, end) of it; ISO text."""

    name: str
    start: str
    end: str


class RawDays:
    """The days of one step, in the transaction that folds; ``presumed``: their events, to be well formed."""

    def __init__(self, connection: Connection, state: fold.State, upper: str, presumption: Presumption) -> None:
        self._connection, self._state, self._presumption = connection, state, presumption
        self.days = list(self._of_step(upper))
        few = presumption.malformed * _FEW <= presumption.days
        self._presumed = bool(self.days) and few and not self._any_rejected()
        if self._presumed:
            presumption.days += len(self.days)

    def _of_step(self, upper: str) -> list[Day]:
        days: list[Day] = []
        lower = self._state.frontier
        while lower != upper:
            row = self._connection.execute(
                SQL["next_day_of_events"], {"from": lower, "to": upper, "zone": self._state.time_zone}
            ).fetchone()
            if row is None:
                break
            day, end = row
            days.append(Day(day, lower, end))
            lower = end
        return days

    def _any_rejected(self) -> bool:
        """Return whether something malformed was in the day that the frontier is in: more may come."""
        row = self._connection.execute(SQL["any_rejected"], {"day": self._state.frontier_day}).fetchone()
        assert row is not None
        return bool(row[0])

    def add_up(self, *, read_all_keys: bool) -> None:
        """Make ``pg_temp.daily_delta`` of all days, in one statement, whose days the server's parallel workers share.

        ``read_all_keys`` as in ``fold.create_numbered``.
        """
        query = self._numbered(self._together(self.days, presumed=self._presumed))
        fold.create_numbered(self._connection, "daily", query, read_all_keys=read_all_keys)
        self._mend("daily_delta", numbered=True)

    def share(self, settings: Settings, workers: Workers, *, keys: int, step_events: int) -> int:
        """Add up all days on several connections and fold them, some at a time; return how many events they have.

        ``keys`` are known, and a step has about ``step_events``.
        """
        size = max(1, min(_TOGETHER, len(self.days) // (settings.jobs * _PARTS)))
        parts = [
            self._together(self.days[first : first + size], presumed=self._presumed)
            for first in range(0, len(self.days), size)
        ]
        # Each part reads all keys. Where that would take longer than its events, the connection that folds numbers the keys.
        numbered = keys * len(parts) <= step_events
        if numbered:
            parts = [self._numbered(part) for part in parts]
        table = "daily_delta" if numbered else "delta"

        def begin() -> None:
            self._connection.execute(fold.SQL["create_delta"])
            if numbered:
                none = sql.SQL("{} limit 0").format(parts[0])
                fold.create_numbered(self._connection, "daily", none, read_all_keys=False)

        begin()
        events = 0
        for _ in workers.add_up(self._connection, self._state, parts, table):
            self._mend(table, numbered=numbered)
            events += fold.apply_delta(
                self._connection,
                derive=True,
                hourly=self._state.hourly_since is not None,
                subtracts=False,
                numbered=numbered,
            )
            begin()
        return events

    def _mend(self, table: str, *, numbered: bool) -> None:
        """Add up again the days in ``pg_temp.<table>`` that were presumed to be well formed, and are not."""
        if not self._presumed:
            return
        name = sql.Identifier(table)
        row = self._connection.execute(sql.SQL(SQL["malformed_days"]).format(table=name)).fetchone()
        assert row is not None
        if malformed := row[0]:
            self._presumption.malformed += len(malformed)
            self._connection.execute(sql.SQL(SQL["take_back"]).format(table=name), {"days": malformed})
            sums = self._together([day for day in self.days if day.name in malformed], presumed=False)
            fold.add_rows(self._connection, table, self._numbered(sums) if numbered else sums)

    def _numbered(self, sums: sql.Composable) -> sql.Composed:
        return fold.numbered(sums, hours=self._state.hourly_since is not None)

    def _together(self, days: Sequence[Day], *, presumed: bool) -> sql.Composed:
        """Return one query, in parentheses, for the sums of some days. It is run without parameters: COPY has none."""
        queries = [sql.SQL("({})").format(self._sums(day, presumed=presumed)) for day in days]
        return sql.SQL("({})").format(sql.SQL(" union all ").join(queries))

    def _sums(self, day: Day, *, presumed: bool) -> sql.Composed:
        raw = (day.start, day.end)
        if presumed:
            block, events = "presumed_day", fold.presumed(self._connection, raw)
        else:
            block, events = "raw_day", fold.measured(self._connection, raw, with_parameters=False)
        return sql.SQL(SQL[block]).format(day=sql.Literal(day.name), events=events, **self._state.hour)
