"""How far off the answers are: ours never; others' while late changes wait, and where a window cuts a day."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.data import SQL, Database, Sample
from benchmarks.measure import DifferentError, Recorder, snapshot
from benchmarks.peers import Peer
from benchmarks.reads import OVERVIEW, READS, read_both
from benchmarks.results import ROLLUPS, WHOLE_DAYS, Measurement

Answer = dict[tuple[Any, Any], tuple[Any, ...]]

_EPSILON = 1e-9
"""Sums in float8 differ in their last digits, which is not what is counted here."""


def late_changes(record: Recorder, sample: Sample, full: Database, peers: list[Peer]) -> None:
    """Change the past, and ask for 30 whole days before any refresh."""
    days = min(30, sample.days)
    window = sample.window(days, to_the_second=False)
    changes = 3 * max(10, min(1000, sample.events // 300))
    rows: dict[str, list[float]] = {}
    events: dict[str, list[float]] = {}
    _everything_is_exact(record, sample, full)
    for peer in peers:
        with record.attempt(f"before late changes, {peer.name}"):
            if peer.refreshes:
                peer.refresh()
            wrong, _ = _off(peer.database, peer, window)
            if wrong:
                record.size.notes.append(f"{peer.name}: {wrong:g} rows of the answer are wrong with nothing pending")
    asked: list[tuple[str, Database, Peer | None]] = [(ROLLUPS, full, None)]
    asked += [(peer.name, peer.database, peer) for peer in peers]
    for name, database, other in asked:
        with record.attempt(f"late changes, {name}"):
            database.connection.execute(SQL["change_the_past"], {"n": changes, **window})
            wrong, missed = _off(database, other, window)
            rows[name], events[name] = [wrong], [missed]
            if other is None and (wrong or missed):
                raise DifferentError("late changes are not in the answer")
    _everything_is_exact(record, sample, full)
    of = f"{changes:,} late changes before the next refresh"
    record.add(Measurement("late changes unseen", f"wrong rows in the answer of {days} whole days, {of}", "rows", rows))
    record.add(Measurement("late changes unseen", f"events counted wrongly, {of}", "events", events))


def cut_days(record: Recorder, sample: Sample, full: Database) -> None:
    """How many events whole days are off by, when the question is to the second."""
    days = min(30, sample.days)
    exact = sample.window(days, to_the_second=True)
    since = exact["since"]
    whole = {**exact, "since": sample.window(min(days, sample.days - 1), to_the_second=False)["since"]}
    with record.attempt("cut days"), snapshot(full.connection):
        difference = _count(_raw(full, whole)) - _count(_raw(full, exact))
        ours = _count(_answer(full.connection.execute(READS["by_collection"], exact).fetchall())) - _count(
            _raw(full, exact)
        )
        what = f"events too many in {days} days to the second (the first day is cut at {since:%H:%M:%S})"
        values = {ROLLUPS: [float(ours)], WHOLE_DAYS: [float(difference)]}
        record.add(Measurement("late changes unseen", what, "events", values))


def _everything_is_exact(record: Recorder, sample: Sample, full: Database) -> None:
    with record.attempt("everything equals the raw query"):
        read_both(full, OVERVIEW, sample.window(sample.days, to_the_second=True))
        read_both(full, OVERVIEW, {"since": "-infinity", "until": None, "collection": None})


def _off(database: Database, peer: Peer | None, window: dict[str, object]) -> tuple[float, float]:
    """Return how many rows of an answer are wrong, and how many events are counted too often or not at all."""
    with snapshot(database.connection):
        raw = _raw(database, window)
        found = _answer(
            database.connection.execute(READS["by_collection"], window).fetchall()
            if peer is None
            else peer.read(window)
        )
    nothing = (0, 0.0, 0.0)
    wrong = missed = 0
    for key in raw.keys() | found.keys():
        expected, got = raw.get(key, nothing), found.get(key, nothing)
        missed += abs(expected[0] - got[0])
        wrong += not all(math.isclose(a, b, rel_tol=_EPSILON) for a, b in zip(expected, got, strict=True))
    return float(wrong), float(missed)


def _raw(database: Database, window: dict[str, object]) -> Answer:
    return _answer(database.connection.execute(READS["raw_by_collection"], window).fetchall())


def _answer(rows: list[tuple[Any, ...]]) -> Answer:
    """Return event count and sums by collection and resource type."""
    return {(row[0], row[2]): tuple(row[3:6]) for row in rows}


def _count(answer: Answer) -> int:
    return sum(values[0] for values in answer.values())
