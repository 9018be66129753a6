"""The demo: everything once, on an embedded PostgreSQL in a temporary folder, with sample data."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from psycopg import IsolationLevel
from pydantic import SecretStr
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from aggregator import capture, db, embedded, migrations, read, refresh, render, sample
from aggregator import sql as sql_files
from aggregator.settings import Settings

SQL = sql_files.load("demo")

WINDOWS = (30, 365)

Result = TypeVar("Result")


def run(*, events: int, days: int, seed: int) -> bool:
    """Make sample data, migrate, attach, refresh, show, compare; return whether rollups and raw query are equal."""
    console = Console(highlight=False)
    say = Console(stderr=True, highlight=False)
    say.print("starting an embedded PostgreSQL in a temporary folder …")
    with embedded.temporary_server(settings={"shared_buffers": "'512MB'", "max_wal_size": "'4GB'"}) as server:
        settings = Settings(database_url=SecretStr(server.dsn()), time_zone="UTC")
        with db.connect(settings, name="aggregator demo") as connection:
            _with_bar(
                say, f"making {events:,} events", events,
                lambda report: sample.create_sample(connection, events=events, days=days, seed=seed, progress=report),
            )  # fmt: skip
        migrations.upgrade(settings)
        with db.connect(settings, name="aggregator demo") as connection:
            attached = capture.attach(connection, settings)
            say.print(f"migrated, and attached {attached.source}: from here on every answer is exact")
            first = _time(connection, "before the first refresh")
            result = _with_bar(
                say, "folding", events,
                lambda report: refresh.refresh(
                    connection, settings, progress=lambda step: report(step.events)
                ),
            )  # fmt: skip
            say.print(f"folded {result.events:,} events in {result.seconds:.1f} s")
            _late_changes(connection)
            timings = [first, *(_time(connection, f"last {window} days", window) for window in WINDOWS)]
            with db.transaction(connection, read_only=True):
                overview = read.usage_overview(connection, days=30)
                units = {row[0]: (row[2], row[3]) for row in connection.execute(read.SQL["metrics"]).fetchall()}
    render.show_tables(console, overview, units, 10)
    return _report(console, timings)


def _late_changes(connection: db.Connection) -> None:
    """Change the past below the rollups' frontier, so that the comparison is not of untouched rollups only."""
    with connection.transaction():
        connection.execute(
            "update public.resource_usage_log set collection_id = null where id in"
            " (select id from public.resource_usage_log where created_at > now() - interval '40 days' order by id limit 500)"
        )
        connection.execute(
            "delete from public.resource_usage_log where id in"
            " (select id from public.resource_usage_log where created_at > now() - interval '20 days' order by id limit 500)"
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


def _report(console: Console, timings: list[tuple[str, float, float, bool]]) -> bool:
    console.print("\nBy collection, to the second; 1,000 events of the past were changed since the refresh:")
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
