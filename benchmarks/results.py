"""What a run found: measurements of several contenders, failures, and what was skipped; to JSON and back."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RAW = "raw"
RAW_ONE = "raw, one process"
ROLLUPS = "rollups"
TWO_JOBS = "rollups, 2 jobs"
HOURLY = "rollups, hourly"
HOURLY_WHOLE = "rollups, hourly: the same in whole days"
TENTH = "rollups, a tenth of the history"
NO_CAPTURE = "no capture"
RAW_TABLE = "raw table"
WHOLE_DAYS = "any rollup by whole days"


FASTER = ("reads", "hourly", "refresh")
"""Subjects whose ratios say how many times as fast ours is."""


@dataclass
class Measurement:
    """One thing, measured for several contenders, interleaved: ``values`` has every single figure of each.

    ``unit`` is ms, MB, rows or events (less is better), or /s (more is). ``days`` is the length of a window, and
    ``series`` groups what belongs into one plot.
    """

    subject: str
    what: str
    unit: str
    values: dict[str, list[float]]
    days: int | None = None
    series: str | None = None

    def median(self, contender: str) -> float | None:
        """Return a contender's median, or None if it was not measured."""
        return statistics.median(self.values[contender]) if self.values.get(contender) else None

    def ratio(self, contender: str) -> float | None:
        """Return, of reads and refreshes, how many times as fast ours is; of anything else, how many times that ours is."""
        theirs, mine = self.median(contender), self.median(ROLLUPS)
        if not theirs or not mine:
            return None
        return theirs / mine if self.subject in FASTER else mine / theirs


@dataclass
class Size:
    """All that was found at one size of the history."""

    events: int
    days: int
    measurements: list[Measurement] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def find(self, subject: str, what: str) -> Measurement | None:
        """Return a measurement by its names."""
        return next((found for found in self.measurements if (found.subject, found.what) == (subject, what)), None)


@dataclass
class Results:
    """A whole run: what a reader must know to compare it with another, and what was found at each size."""

    facts: dict[str, Any]
    sizes: list[Size] = field(default_factory=list)

    @property
    def main(self) -> Size:
        """The size that the tables show: that of the targets if it was measured, else the largest."""
        return min(self.sizes, key=lambda size: (size.events != TARGET_EVENTS, -size.events))

    @property
    def failed(self) -> bool:
        """Whether any answer was wrong or any case did not run."""
        return any(size.failures or size.different for size in self.sizes)

    def write(self, path: Path) -> None:
        """Write everything as JSON, with the targets as they came out."""
        path.parent.mkdir(parents=True, exist_ok=True)
        found = {**asdict(self), "targets": [outcome.as_json() for outcome in self.targets()]}
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def targets(self) -> list[Outcome]:
        """Return how each target came out, at the size the tables show."""
        return [target.outcome(self.main) for target in TARGETS] if self.sizes else []


def read(paths: Iterable[Path]) -> Results:
    """Return the results of one or several JSON files; of a size that is in several, the first."""
    merged: Results | None = None
    for path in paths:
        found = json.loads(path.read_text(encoding="utf-8"))
        merged = merged or Results(found["facts"])
        known = {size.events for size in merged.sizes}
        for size in found["sizes"]:
            if size["events"] not in known:
                measurements = [Measurement(**one) for one in size.pop("measurements")]
                merged.sizes.append(Size(**size, measurements=measurements))
    if merged is None or not merged.sizes:
        raise ValueError("no results in these files")
    merged.sizes.sort(key=lambda size: size.events)
    return merged


TARGET_EVENTS = 10_000_000
"""The history that the targets are for."""


@dataclass(frozen=True)
class Target:
    """A promise: of ``ours`` against a contender (a ratio), or against nobody (the figure itself)."""

    subject: str
    what: str
    limit: float
    against: str | None = RAW
    ours: str = ROLLUPS
    at_least: bool = True

    def outcome(self, size: Size) -> Outcome:
        """Return how it came out."""
        found = size.find(self.subject, self.what)
        mine = found.median(self.ours) if found else None
        if found is None or mine is None:
            return Outcome(self, None, "")
        if self.against is None:
            return Outcome(self, mine, found.unit)
        base = found.median(self.against)
        if not base:
            return Outcome(self, None, "")
        return Outcome(self, base / mine if self.at_least and found.unit != "/s" else mine / base, "")


@dataclass(frozen=True)
class Outcome:
    """How a target came out; ``value`` is None where it was not measured."""

    target: Target
    value: float | None
    unit: str

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None: it was not measured."""
        if self.value is None:
            return None
        return self.value >= self.target.limit if self.target.at_least else self.value <= self.target.limit

    def cells(self) -> list[str]:
        """Return the cells of a table: what, ours, against, target, found, met."""
        target = self.target
        sign, unit = "≥" if target.at_least else "≤", f" {self.unit}" if self.unit else ""
        found = "" if self.value is None else f"{self.value:.3g}{unit}"
        met = {True: "yes", False: "no", None: "not measured"}[self.met]
        against = target.against or ""
        return [f"{target.subject}: {target.what}", target.ours, against, f"{sign} {target.limit:g}{unit}", found, met]

    def as_json(self) -> dict[str, Any]:
        """Return it for the JSON file."""
        return {**asdict(self.target), "value": self.value, "met": self.met}


AT_SIX = ", from six o'clock"
"""Where 16 % of a day's events are cut off, as nights are quiet: from noon on it is half, over all times of day on the average 19 %."""

TARGETS = [
    Target("reads", "by collection, 30 days to the second", 20),
    Target("reads", "by collection, 365 days to the second", 200),
    Target("reads", f"by collection, 30 days to the second{AT_SIX}", 20),
    Target("reads", f"by collection, 365 days to the second{AT_SIX}", 200),
    Target("reads", "one collection, 30 days to the second", 20),
    Target("reads", "one collection, 365 days to the second", 20),
    *(
        Target("hourly", f"{days} days to the second, from {what}", limit, against=base, ours=HOURLY, at_least=at_least)
        for days, ratio in ((30, 20), (365, 200))
        for what in ("noon", "half past twelve, where an hour is cut most")
        for base, limit, at_least in ((RAW, ratio, True), (HOURLY_WHOLE, 2, False))
    ),
    Target(
        "hourly",
        "30 days to the second, from eight times of the day on, the average",
        2,
        against=HOURLY_WHOLE,
        ours=HOURLY,
        at_least=False,
    ),
    Target(
        "hourly",
        "30 days to the second, the daily series from half past twelve",
        2,
        against=HOURLY_WHOLE,
        ours=HOURLY,
        at_least=False,
    ),
    Target("reads", "by collection, 30 whole days", 1, against="TimescaleDB"),
    Target("reads", "by collection, 365 whole days", 5, against="TimescaleDB"),
    *(
        Target("first build", "all rollups, against one raw pass", limit, against=base, ours=ours, at_least=False)
        for ours, limit in ((ROLLUPS, 4), (TWO_JOBS, 2.5))
        for base in (RAW, RAW_ONE)
    ),
    Target("refresh", "after 20,000 new events", 140, against=None, at_least=False),
    Target("refresh", "after 20,000 new events", 1.3, against=TENTH, at_least=False),
    Target("writes", "single-row inserts at the tail, synchronous_commit on", 0.95, against=NO_CAPTURE),
    Target("writes", "single-row inserts at the tail, synchronous_commit off", 0.85, against=NO_CAPTURE),
    Target("writes", "COPY of 500,000 events at the tail", 1.1, against=NO_CAPTURE, at_least=False),
    Target("writes", "COPY of 500,000 late events", 2, against=NO_CAPTURE, at_least=False),
    Target("storage", "rollups with their indexes", 0.2, against=RAW_TABLE, at_least=False),
]
"""For 10 million events. Ratios of times are base / ours where at least, ours / base where at most; of rates ours / base."""
