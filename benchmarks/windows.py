"""Windows a second: how many windowed reads one and several connections get, beside writers and a refresh every second.

Windows of all lengths, to the second, open and closed: first of all collections and of one, as an admin's pages ask, then of
one only, as each collection's own page does. Every k-th answer is asked again raw, in the same snapshot, and must be equal to
the last digit: else the run fails.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.table import Table

from aggregator import db, refresh
from benchmarks.bench import server
from benchmarks.data import SQL, Database, Sample, Server, make_sample
from benchmarks.measure import milliseconds, say, snapshot
from benchmarks.reads import READS

SECTIONS = ("by_collection", "by_collection", "daily", "ai_drilldown")
"""By collection is what is asked most."""

KINDS = {"of all and of one": (SECTIONS, 0.5), "of one collection": (SECTIONS[:2], 1.0)}
"""Of what the windows are: sections, and the share of those of one collection."""

REFRESH_SECONDS = 1.0
WRITE_SECONDS = 0.02


@dataclass
class Load:
    """What some connections found in their time."""

    kind: str
    connections: int
    took: list[float] = field(default_factory=list)
    """Milliseconds of each window."""
    seconds: float = 0.0
    compared: int = 0
    differences: list[str] = field(default_factory=list)
    refreshes: int = 0
    written: int = 0
    failures: list[BaseException] = field(default_factory=list)

    def percentile(self, percent: int) -> float:
        """Return the milliseconds that so many of a hundred windows took at most."""
        return statistics.quantiles(self.took, n=100, method="inclusive")[percent - 1] if len(self.took) > 1 else 0.0


class Run:
    """Readers, writers and a refresher on one database, for some seconds."""

    def __init__(self, sample: Sample, database: Database, options: argparse.Namespace) -> None:
        self._sample = sample
        self._database = database
        self._options = options
        self._stop = threading.Event()
        self._collections = [sample.collection(database, rank) for rank in (1, 5, 21) if rank <= options.collections]

    def measure(self, kind: str, connections: int) -> Load:
        """Let so many connections read windows of a kind, and return what they found; raises what failed."""
        load = Load(kind, connections)
        self._stop.clear()
        roles: list[Callable[[Load, random.Random], None]] = [*[self._read] * connections, self._write, self._refresh]
        threads = [
            threading.Thread(target=self._guard, args=(role, load, random.Random(f"{self._options.seed} {kind} {connections} {n}")))
            for n, role in enumerate(roles)
        ]  # fmt: skip
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        self._stop.wait(self._options.seconds)
        self._stop.set()
        load.seconds = time.perf_counter() - began
        for thread in threads:
            thread.join()
        if load.failures:
            raise load.failures[0]
        return load

    def _guard(self, role: Callable[[Load, random.Random], None], load: Load, rng: random.Random) -> None:
        try:
            role(load, rng)
        except BaseException as exc:  # noqa: BLE001 -- handed to the main thread
            load.failures.append(exc)
            self._stop.set()

    def _window(self, rng: random.Random, of_one: float) -> dict[str, object]:
        """Return a window of a day to all of history, to the second; most end now, this share is of one collection."""
        days = min(rng.choice([1, 7, 30, 30, 90, 365]), self._sample.days)
        until = None if rng.random() < 0.7 else self._sample.until - timedelta(seconds=rng.randrange(86400))
        since = self._sample.until - timedelta(days=days + 1, seconds=rng.randrange(86400))
        return {
            "since": since,
            "until": until,
            "collection": rng.choice(self._collections) if rng.random() < of_one else None,
        }

    def _read(self, load: Load, rng: random.Random) -> None:
        with db.connect(self._database.settings, name="aggregator bench reader") as connection:
            number = 0
            sections, of_one = KINDS[load.kind]
            while not self._stop.is_set():
                number += 1
                window, section = self._window(rng, of_one), rng.choice(sections)
                if number % self._options.check_every:
                    load.took.append(milliseconds(lambda: connection.execute(READS[section], window).fetchall()))  # noqa: B023
                else:
                    self._compare(load, connection, section, window)

    @staticmethod
    def _compare(load: Load, connection: db.Connection, section: str, window: dict[str, object]) -> None:
        found: list[Any] = []
        with snapshot(connection):
            load.took.append(milliseconds(lambda: found.extend(connection.execute(READS[section], window).fetchall())))
            expected = connection.execute(READS[f"raw_{section}"], window).fetchall()
        load.compared += 1
        if found != expected:
            load.differences.append(f"{section} of {window}")

    def _write(self, load: Load, rng: random.Random) -> None:
        """Some events at the tail, and now and then one of the past, as often as hosts write."""
        with db.connect(self._database.settings, name="bench writer") as connection:
            while not self._stop.wait(WRITE_SECONDS):
                age = 0 if rng.random() < 0.9 else rng.randrange(30 * 86400)
                connection.execute(
                    "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
                    " select collection_id, resource_type, detail, clock_timestamp() - make_interval(secs => %s)"
                    " from public.resource_usage_log where id = %s", (age, rng.randint(1, self._sample.events)),
                )  # fmt: skip
                load.written += 1

    def _refresh(self, load: Load, _rng: random.Random) -> None:
        with db.connect(self._database.settings, name="aggregator bench") as connection:
            while not self._stop.wait(REFRESH_SECONDS):
                refresh.refresh(connection, self._database.settings)
                load.refreshes += 1


def table(loads: list[Load], sample: Sample) -> Table:
    """Return what was found, a row for each kind and number of connections."""
    found = Table(title=f"{sample.events:,} events of {sample.days} days", title_justify="left")
    found.add_column("windows", no_wrap=True)
    for name in ("connections", "windows/s", "p50", "p99", "compared with raw", "differences", "refreshes", "events written"):  # fmt: skip
        found.add_column(name, justify="right")
    for load in loads:
        found.add_row(
            load.kind, str(load.connections), f"{len(load.took) / load.seconds:,.0f}", f"{load.percentile(50):.1f} ms",
            f"{load.percentile(99):.1f} ms", f"{load.compared:,}", str(len(load.differences)), str(load.refreshes),
            f"{load.written:,}",
        )  # fmt: skip
    return found


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--events", type=int, default=1_000_000)
    add("--days", type=int, default=365, help="of history")
    add("--collections", type=int, default=300)
    add("--seconds", type=float, default=15.0, help="for each number of connections")
    add("--connections", default="1,2,4,8", help="how many read at once")
    add("--check-every", type=int, default=100, help="compare each k-th answer with the raw query")
    add("--seed", type=int, default=1)
    add("--fsync", choices=("on", "off"), default="on", help="of the embedded server")
    add("--dsn", help="another server instead of the embedded one; its role must be a superuser")
    return parser.parse_args(arguments, argparse.Namespace(skew=1.0, types=7, late_share=0.001, growth=[]))


def main(arguments: list[str] | None = None) -> int:
    """Make the events, measure, print; return 1 if an answer differed."""
    options = parse(arguments)
    loads: list[Load] = []
    with server(options) as dsn:
        made = Server(dsn)
        try:
            sample = make_sample(options, options.events)
            database = made.create("windows")
            sample.make(database)
            database.connection.execute(SQL["index_of_one_collection"])
            database.attach()
            database.refresh()
            database.vacuum()
            run = Run(sample, database, options)
            for kind in KINDS:
                for connections in (int(text) for text in options.connections.split(",")):
                    say.print(f"{kind}, {connections} at once, {options.seconds:g} s …")
                    loads.append(run.measure(kind, connections))
        finally:
            made.drop_all()
    Console(highlight=False, width=max(120, Console().width)).print(table(loads, sample))
    differences = [text for load in loads for text in load.differences]
    for text in differences[:10]:
        say.print(f"DIFFERENT: {text}. This is a bug", style="bold red")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
