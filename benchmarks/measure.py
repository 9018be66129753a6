"""Measuring: interleaved rounds, each contender within its share of time, and failures that lose nothing else."""

from __future__ import annotations

import argparse
import contextlib
import random
import time
import traceback
from collections.abc import Callable, Iterator

import psycopg
from rich.console import Console

from benchmarks.results import Measurement, Size

say = Console(stderr=True, highlight=False, soft_wrap=True)


class DifferentError(Exception):
    """An answer is not the raw query's: a bug, never noise."""


def milliseconds(work: Callable[[], object]) -> float:
    """Return how long some work takes, in milliseconds."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


class Recorder:
    """Collects what is found at one size, and says it at once."""

    def __init__(self, options: argparse.Namespace, size: Size) -> None:
        self.options = options
        self.size = size

    def add(self, measurement: Measurement) -> Measurement:
        """Keep a measurement."""
        self.size.measurements.append(measurement)
        figures = [
            f"{name} {measurement.median(name):,.4g} {measurement.unit}"
            for name, taken in measurement.values.items()
            if taken
        ]
        say.print(f"  {measurement.what}: {'; '.join(figures)}")
        return measurement

    def skip(self, what: str) -> None:
        """Note what is not measured, and why."""
        self.size.skipped.append(what)
        say.print(f"  skipped: {what}")

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Keep a failure of the block, so that it loses nothing but itself."""
        try:
            yield
        except psycopg.errors.QueryCanceled:
            self.skip(f"{what}: given up, it took too long")
        except DifferentError as exc:
            self.size.different.append(f"{what}: {exc}")
            say.print(f"  DIFFERENT: {what}: {exc}. This is a bug", style="bold red")
        except Exception as exc:  # noqa: BLE001 -- whatever it is: the rest is still worth measuring
            where = traceback.extract_tb(exc.__traceback__)[-1]
            first = (str(exc).strip() or type(exc).__name__).splitlines()[0]
            self.size.failures.append(f"{what}: {type(exc).__name__}: {first} ({where.name}, line {where.lineno})")
            say.print(f"  FAILED: {self.size.failures[-1]}", style="red")

    def interleave(
        self, what: str, works: dict[str, Callable[[], float]], *, repeat: int | None = None, warm_up: bool = True
    ) -> dict[str, list[float]]:
        """Return the figures of each contender, taken in turns, in an order that changes.

        The first round warms up. A contender that has had its seconds (``--budget``) rests from then on; if the warm-up
        alone took them, it counts. One that fails is noted and left out.
        """
        found: dict[str, list[float]] = {name: [] for name in works}
        spent = dict.fromkeys(works, 0.0)
        order = random.Random(1)  # no contender is to profit from who goes before it
        rounds = (self.options.repeat if repeat is None else repeat) + warm_up
        for number in range(rounds):
            for name in order.sample(list(works), len(works)):
                if name not in found or (number and spent[name] > self.options.budget):
                    continue
                began = time.monotonic()
                failed = True
                with self.attempt(f"{what}, {name}"):
                    figure = works[name]()
                    failed = False
                spent[name] += time.monotonic() - began
                if failed:
                    del found[name]
                elif number or not warm_up or rounds == 1 or spent[name] > self.options.budget:
                    found[name].append(figure)
        return found


@contextlib.contextmanager
def snapshot(connection: psycopg.Connection[tuple[object, ...]]) -> Iterator[None]:
    """Open a read-only transaction that sees one snapshot, in UTC."""
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read, read only")
        connection.execute("set local timezone = 'UTC'")
        yield
