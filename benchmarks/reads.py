"""Reads: each beside its raw query in one snapshot, and compared; and beside those of others, who are timed.

Timed until all rows are at the client: what Python then makes of them is nobody's read, and takes 1.5 ms for 2,000 rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import mean
from typing import Any

import psycopg

from benchmarks.data import EVERYTHING, SQL, Database, Sample
from benchmarks.measure import DifferentError, Recorder, milliseconds, snapshot
from benchmarks.peers import Peer
from benchmarks.results import AT_SIX, HOURLY, HOURLY_WHOLE, RAW, ROLLUPS, Measurement
from benchmarks.sql import load

READS = load("reads")

BY_COLLECTION = ("by_collection",)
OVERVIEW = ("by_collection", "ai_drilldown", "daily")
DAILY = ("daily",)
DAILY_OF_ZONE = ("daily_of_zone",)

WINDOWS = (1, 7, 30, 90, 180, 365)
"""Days, for the plot; those in MAIN in every way."""

MAIN = (30, 90, 365)


def _middle(work: Callable[[], object]) -> float:
    """Return the milliseconds of a read: if less than 100, it is asked three times, as a hiccup of the machine is as long as it."""
    first = milliseconds(work)
    return first if first >= 100 else sorted([first, milliseconds(work), milliseconds(work)])[1]


def read_both(database: Database, sections: Sequence[str], parameters: dict[str, object]) -> tuple[float, float]:
    """Return the milliseconds of the raw queries and of ours, in one snapshot; raise DifferentError unless equal.

    Ours goes first, as for whoever asks it: behind a query of several processes, in its transaction, it takes 20 ms more.
    """
    answers: dict[str, list[Any]] = {}
    connection = database.connection

    def ask(name: str) -> float:
        cursors: list[psycopg.Cursor[Any]] = []
        took = _middle(lambda: cursors.append(connection.execute(READS[name], parameters)))
        answers[name] = cursors[-1].fetchall()
        return took

    with snapshot(connection):
        took_ours = ask(sections[0] if len(sections) == 1 else "overview")
        took_raw = sum([ask(f"raw_{section}") for section in sections])
        for section in sections if len(sections) > 1 else ():  # the overview is JSON: compared through its functions
            ask(section)
        for section in sections:
            if answers[f"raw_{section}"] != answers[section]:
                raise DifferentError(f"{section} of {parameters} is not what the raw query says")
    return took_raw, took_ours


def _ours_alone(database: Database, parameters: dict[str, object], sections: Sequence[str] = BY_COLLECTION) -> float:
    return read_both(database, sections, parameters)[1]


def _theirs(peer: Peer, parameters: dict[str, object]) -> float:
    return _middle(lambda: peer.ask(parameters))


class Reads:
    """The cases of one size."""

    def __init__(
        self, record: Recorder, sample: Sample, full: Database, peers: list[Peer], hourly: Database | None
    ) -> None:
        self.record = record
        self.sample = sample
        self.full = full
        self.peers = peers
        self.hourly = hourly

    def all_cases(self, five_minutes: int, tail: int) -> None:
        """Measure everything: as the scheduler leaves it, one collection, and with a long tail."""
        for database in (self.full, self.hourly):
            if database is not None:
                database.add_tail(five_minutes)
        fitting = [days for days in WINDOWS if days <= self.sample.days]
        for days in fitting:
            self._case(
                f"by collection, {days} {'days' if days > 1 else 'day'} to the second",
                self._window(days),
                days=days,
                series="to the second",
            )
        for days in (days for days in (30, 365) if days in fitting):
            self._case(f"by collection, {days} days to the second{AT_SIX}", self._window(days, minutes=-360))
        for days in (days for days in MAIN if days in fitting):
            self._case(
                f"by collection, {days} whole days", self._whole(days), days=days, series="whole days", peers=True
            )
        self._case("by collection, all of history", EVERYTHING)
        if 30 in fitting:
            self._case("the whole overview, 30 days to the second", self._window(30), sections=OVERVIEW)
        self._hourly([days for days in MAIN if days in fitting])
        self._one_collection([days for days in MAIN if days in fitting])
        self.full.add_tail(tail)
        for days in (days for days in (30, 365) if days in fitting):
            self._case(f"by collection, {days} days to the second, {tail:,} events not refreshed", self._window(days))

    def _one_collection(self, fitting: list[int]) -> None:
        """Measure one collection, with the index that is best for its raw query; it is there for ours too."""
        collection = self.sample.middling_collection(self.full)
        largest = self.sample.collection(self.full, 1)
        with self.record.attempt("reads of one collection"):
            self.full.connection.execute(SQL["index_of_one_collection"])
            try:
                self.full.connection.execute("analyze public.resource_usage_log")
                for days in fitting:
                    self._case(
                        f"one collection, {days} days to the second", self._window(days, collection),
                        days=days, series="one collection",
                    )  # fmt: skip
                for days in fitting:
                    self._case(f"the largest collection, {days} days to the second", self._window(days, largest))
                for days in fitting:
                    self._case(f"one collection, {days} whole days", self._whole(days, collection), peers=True)
            finally:
                self.full.connection.execute(SQL["drop_index_of_one_collection"])

    def _hourly(self, fitting: list[int]) -> None:
        if self.hourly is None:
            self.record.skip("hourly rollups: --no-hourly")
            return
        ours = partial(_ours_alone, self.hourly)
        for days in fitting:
            whole = partial(ours, self._whole(days))
            for what, window in (
                ("from noon", self._window(days)),
                ("from half past twelve, where an hour is cut most", self._window(days, minutes=30)),
                ("cut so at both ends", self._window(days, minutes=30, ended=True)),
            ):
                self._case(
                    f"{days} days to the second, {what}", window, subject="hourly",
                    more={HOURLY: partial(ours, window), HOURLY_WHOLE: whole},
                )  # fmt: skip
        if 30 in fitting:
            self._average(30)
            for what, sections in (
                ("the daily series from half past twelve", DAILY),
                ("days of Asia/Kolkata from half past twelve", DAILY_OF_ZONE),
            ):
                window = self._window(30, minutes=30)
                self._case(
                    f"30 days to the second, {what}", window, subject="hourly", sections=sections,
                    more={
                        HOURLY: partial(ours, window, sections=sections),
                        HOURLY_WHOLE: partial(ours, self._whole(30), sections=sections),
                    },
                )  # fmt: skip

    def _average(self, days: int) -> None:
        """Measure windows that begin at any time of the day, one in every three hours, at another part of the hour each."""
        assert self.hourly is not None
        windows = [self._window(days, minutes=(n - 4) * 180 + n * 60 // 8 + 4) for n in range(8)]
        what = f"{days} days to the second, from eight times of the day on, the average"
        values = self.record.interleave(
            f"hourly, {what}",
            {
                **{
                    name: partial(lambda database: mean(_ours_alone(database, window) for window in windows), database)
                    for name, database in ((ROLLUPS, self.full), (HOURLY, self.hourly))
                },
                HOURLY_WHOLE: partial(_ours_alone, self.hourly, self._whole(days)),
            },
        )
        self.record.add(Measurement("hourly", what, "ms", values))

    def _window(
        self, days: int, collection: str | None = None, *, minutes: int = 0, ended: bool = False
    ) -> dict[str, object]:
        return self.sample.window(days, to_the_second=True, collection=collection, minutes=minutes, ended=ended)

    def _whole(self, days: int, collection: str | None = None) -> dict[str, object]:
        return self.sample.window(days, to_the_second=False, collection=collection)

    def _case(
        self,
        what: str,
        parameters: dict[str, object],
        *,
        sections: Sequence[str] = BY_COLLECTION,
        peers: bool = False,
        more: dict[str, Callable[[], float]] | None = None,
        days: int | None = None,
        series: str | None = None,
        subject: str = "reads",
    ) -> None:
        """Measure one case: raw and ours as a pair, then each peer and what else there is."""
        pairs: list[tuple[float, float]] = []

        def pair() -> float:
            pairs.append(read_both(self.full, sections, parameters))
            return float(len(pairs) - 1)

        works: dict[str, Callable[[], float]] = {ROLLUPS: pair, **(more or {})}
        for peer in self.peers if peers else ():
            works[peer.name] = partial(_theirs, peer, parameters)
        found = self.record.interleave(f"{subject}, {what}", works)
        counted = [pairs[int(number)] for number in found.pop(ROLLUPS, [])]
        values = {RAW: [raw for raw, _ in counted], ROLLUPS: [ours for _, ours in counted], **found}
        self.record.add(Measurement(subject, what, "ms", values, days=days, series=series))
