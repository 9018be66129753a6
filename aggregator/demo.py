"""The demo: everything once, on an embedded PostgreSQL in a temporary folder, with sample data."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from psycopg import IsolationLevel
from pydantic import SecretStr
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from aggregator import capture, db, embedded, migrations, read, refresh, render, sample, terminal
from aggregator import sql as sql_files
from aggregator.settings import Settings

SQL = sql_files.load("demo")

WINDOWS = (30, 365)

_MALFORMED = 30
"""Sample events that hold no number; fewer of a few."""

Result = TypeVar("Result")


def run(*, events: int, days: int, seed: int) -> bool:
    """Make sample data, migrate, attach, refresh, show, compare; return whether rollups and raw query are equal."""
    with _own_environment(), _ended_by_sigterm():
        return _run(events=events, days=days, seed=seed)


@contextmanager
def _own_environment() -> Iterator[None]:
    """Hide what the user's environment says of another database, from libpq too."""
    hidden = {name: value for name, value in os.environ.items() if name.startswith(("AGGREGATOR_", "PG"))}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C, so that the server and its folder are removed."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(*, events: int, days: int, seed: int) -> bool:
    console, say = terminal.console(), terminal.console(stderr=True)
    say.print("starting an embedded PostgreSQL in a temporary folder …")
    with embedded.temporary_server(settings={"shared_buffers": "'512MB'", "max_wal_size": "'4GB'"}) as server:
        settings = Settings(database_url=SecretStr(server.dsn()), time_zone="UTC")
        with db.connect(settings, name="aggregator demo") as connection:
            _with_bar(
                say, f"making {events:,} events", events,
                lambda report: sample.create_sample(
                    connection, events=events, days=days, seed=seed, malformed=min(_MALFORMED, events // 100),
                    progress=report,
                ),
            )  # fmt: skip
        migrations.upgrade(settings)
        with db.connect(settings, name="aggregator demo") as connection:
            attached = capture.attach(connection, settings)
            say.print(f"migrated, and attached {attached.source}: from here on every answer is exact", soft_wrap=True)
            first = _time(connection, "before the first refresh")
            result = _with_bar(
                say, "folding", events,
                lambda report: refresh.refresh(
                    connection, settings, progress=lambda step: report(step.events)
                ),
            )  # fmt: skip
            say.print(f"folded {result.events:,} events in {result.seconds:.1f} s")
            changed = _late_changes(connection, events)
            timings = [first, *(_time(connection, f"last {window} days", window) for window in WINDOWS)]
            with db.transaction(connection, read_only=True):
                overview = read.usage_overview(connection, days=30)
                units = {row[0]: (row[2], row[3]) for row in connection.execute(read.SQL["metrics"]).fetchall()}
    render.show_tables(console, overview, units, 10)
    return _report(console, timings, changed)


def _late_changes(connection: db.Connection, events: int) -> int:
    """Change the past below the rollups' frontier, so that not only untouched rollups are compared; return how many events."""
    with connection.transaction():
        return sum(
            connection.execute(SQL[block], {"limit": min(500, -(-events // 1000))}).rowcount
            for block in ("correct", "delete")
        )


def _time(connection: db.Connection, label: str, days: int = 30) -> tuple[str, float, float, bool]:
    """Return the raw query's and the rollups' seconds (best of three), and whether they agree, in one snapshot."""
    parameters = {"days": days}
    with db.transaction(connection, isolation=IsolationLevel.REPEATABLE_READ, read_only=True):
        found: dict[str, list[tuple[Any, ...]]] = {}
        seconds: dict[str, float] = {"raw": float("inf"), "rollups": float("inf")}
        for _ in range(3):
            for name in ("raw", "rollups"):
                began = time.perf_counter()
                found[name] = connection.execute(SQL[name], parameters).fetchall()
                seconds[name] = min(seconds[name], time.perf_counter() - began)
    return label, seconds["raw"], seconds["rollups"], found["raw"] == found["rollups"]


def _report(console: Console, timings: list[tuple[str, float, float, bool]], changed: int) -> bool:
    console.print(
        f"\nBy collection, to the second; {changed:,} events of the past were changed since the refresh:",
        soft_wrap=True,
    )
    for label, raw, rollups, equal in timings:
        console.print(
            f"  {label:26} raw {raw * 1000:8.1f} ms   rollups {rollups * 1000:8.1f} ms"
            f"   {raw / rollups:6.1f} times as fast   {'equal' if equal else 'DIFFERENT'}",
            soft_wrap=True,
        )
    all_equal = all(equal for *_, equal in timings)
    console.print(
        "equal, to the last digit" if all_equal else "DIFFERENT: this is a bug", style="green" if all_equal else "red"
    )
    return all_equal


def _with_bar(console: Console, label: str, total: int, work: Callable[[Callable[[int], None]], Result]) -> Result:
    """Run work with a progress bar on a terminal; ``work`` is handed a function that takes the number done."""
    if not console.is_terminal:
        console.print(f"{label} …")
        return work(lambda _done: None)
    with Progress(
        TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(), console=console,
    ) as bar:  # fmt: skip
        task = bar.add_task(label, total=total)
        return work(lambda done: bar.update(task, completed=done))
