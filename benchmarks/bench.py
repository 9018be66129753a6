"""The benchmark: rollups beside the raw query and beside a table without capture, interleaved in one run, as ratios.

Each pair of reads is one snapshot, and their answers must be equal to the last digit: else the run fails. A target that
is missed does not fail it, but is said.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, LiteralString, cast

import psycopg
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from aggregator import capture, db, embedded, migrations, refresh, sample
from aggregator import sql as sql_files
from aggregator.settings import Settings

HERE = Path(__file__).parent
_parts = sql_files._NAME.split((HERE / "queries.sql").read_text(encoding="utf-8"))  # noqa: SLF001
SQL = {name: cast(LiteralString, body.strip()) for name, body in zip(_parts[1::2], _parts[2::2], strict=True)}

SERVER_SETTINGS = {"shared_buffers": "'1GB'", "max_wal_size": "'8GB'"}

DATABASES = ("aggregator_bench_full", "aggregator_bench_tenth")

EVERYTHING = {"since": "-infinity", "until": None, "collection": None}

say = Console(stderr=True, highlight=False)


@dataclass
class Line:
    """One line of the report.

    ``ratio`` is base / ours for reads (more is better), ours / base for costs (less is) and for rates (more is).
    """

    what: str
    base: list[float]
    ours: list[float]
    faster: bool = True
    target: float | None = None
    unit: str = "ms"
    rate: bool = False

    @property
    def ratio(self) -> float:
        """How many times as fast, or as costly."""
        base, ours = statistics.median(self.base), statistics.median(self.ours)
        return base / ours if self.faster and not self.rate else ours / base

    @property
    def missed_by(self) -> float | None:
        """By what part of the target it is missed; 0 if it is met, None without a target."""
        if self.target is None:
            return None
        return max(0.0, 1 - self.ratio / self.target if self.faster else self.ratio / self.target - 1)

    def cells(self) -> list[str]:
        """Return the cells of the printed table."""
        target = "" if self.target is None else f"{'≥' if self.faster else '≤'} {self.target:g}"
        met = {None: "", 0.0: "yes"}.get(self.missed_by, f"no, by {100 * (self.missed_by or 0):.0f} %")
        return [self.what, self._figures(self.base), self._figures(self.ours), f"{self.ratio:.3g}", target, met]

    def as_json(self) -> dict[str, Any]:
        """Return the line with every single measurement."""
        return {"what": self.what, "unit": self.unit, "base": self.base, "ours": self.ours, "ratio": self.ratio,
                "better": "more" if self.faster else "less",
                "target": self.target, "missed_by": self.missed_by}  # fmt: skip

    def _figures(self, values: list[float]) -> str:
        median = f"{statistics.median(values):,.{0 if statistics.median(values) >= 1000 else 1}f} {self.unit}"
        return f"{median} ({min(values):,.0f} to {max(values):,.0f})" if len(values) > 1 else median


@dataclass
class Bench:
    """A run: its options, two databases (the whole history and a tenth of it), and the lines so far."""

    options: argparse.Namespace
    full: db.Connection
    tenth: db.Connection
    settings: dict[str, Settings]
    lines: list[Line] = field(default_factory=list)

    def add(self, what: str, base: list[float], ours: list[float], **more: Any) -> Line:
        """Add a line, and say it at once."""
        line = Line(what, base, ours, **more)
        self.lines.append(line)
        say.print("  " + " | ".join(cell for cell in line.cells() if cell))
        return line


def milliseconds(work: Callable[[], object]) -> float:
    """Return how long some work takes, in milliseconds."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def build(bench: Bench) -> Line:
    """First build of all rollups, beside one pass of the raw query over the same rows."""

    def one_pass() -> float:
        return milliseconds(lambda: bench.full.execute(SQL["raw_by_collection"], EVERYTHING).fetchall())

    one_pass()
    passes = [one_pass()]
    took = milliseconds(lambda: refresh.refresh(bench.full, bench.settings["full"]))
    refresh.refresh(bench.tenth, bench.settings["tenth"])
    passes += [one_pass(), one_pass()]
    for connection in (bench.full, bench.tenth):
        connection.execute("vacuum analyze")
    return bench.add("first build of all rollups, against one raw pass", passes, [took], faster=False, target=6)


def refreshes(bench: Bench, new: int, built: Line) -> None:
    """Refresh after some new events, at the whole history and at a tenth of it."""
    found: dict[str, list[float]] = {"full": [], "tenth": []}
    for repeat in range(bench.options.repeat + 1):
        for name, connection in (("tenth", bench.tenth), ("full", bench.full)):
            connection.execute(SQL["add_tail"], {"n": new})
            took = milliseconds(lambda: refresh.refresh(connection, bench.settings[name]))  # noqa: B023
            if repeat:  # the first is for warming up
                found[name].append(took)
    what = f"refresh after {new:,} events, against a tenth of the history"
    bench.add(what, found["tenth"], found["full"], faster=False, target=1.3)
    bench.add("the same, against the first build", built.ours, found["full"], faster=False, target=0.05)


def reads(bench: Bench, tail: int) -> None:
    """Every read beside its raw query, in one snapshot each, and compared; with a tail only those that read it."""
    row = bench.full.execute(SQL["instants"]).fetchone()
    collection = bench.full.execute(SQL["middling_collection"]).fetchone()
    assert row is not None
    assert collection is not None
    _, midnight, to_the_second, whole = row
    window = {"since": to_the_second[0], "until": None, "collection": None}
    year = {**window, "since": to_the_second[1]}
    by_collection = ("by_collection",)
    overview = ("by_collection", "ai_drilldown", "daily")
    cases: dict[str, tuple[tuple[str, ...], dict[str, Any], float | None]] = {
        "by collection, 30 days to the second": (by_collection, window, 10),
        "by collection, 30 whole days": (by_collection, {**window, "since": whole[0], "until": midnight}, 10),
        "by collection, 365 days to the second": (by_collection, year, 100),
        "by collection, 365 whole days": (by_collection, {**year, "since": whole[1], "until": midnight}, 100),
        "by collection, 30 days, one collection": (by_collection, {**window, "collection": collection[0]}, None),
        "overview, 30 days to the second": (overview, window, None),
    }
    if tail:
        cases = {f"{what}, {tail:,} events not refreshed": cases[what] for what in (
            "by collection, 30 days to the second", "by collection, 365 days to the second",
            "overview, 30 days to the second")}  # fmt: skip
    found: dict[str, tuple[list[float], list[float]]] = {what: ([], []) for what in cases}
    for repeat in range(bench.options.repeat + 1):
        for what, (sections, parameters, _) in cases.items():
            raw, ours = read_both(bench.full, sections, parameters)
            if repeat:
                found[what][0].append(raw)
                found[what][1].append(ours)
    for what, (_, _, target) in cases.items():
        bench.add(what, *found[what], target=target)
    for days in () if tail else (30, 365):
        second = found[f"by collection, {days} days to the second"][1]
        whole_days = found[f"by collection, {days} whole days"][1]
        bench.add(f"ours, {days} whole days, against to the second", second, whole_days, target=1)


def read_both(connection: db.Connection, sections: tuple[str, ...], parameters: dict[str, Any]) -> tuple[float, float]:
    """Return the milliseconds of the raw queries and of ours, in one snapshot; exit unless the answers are equal."""
    answers: dict[str, list[Any]] = {}

    def ask(name: str) -> float:
        def work() -> None:
            answers[name] = connection.execute(SQL[name], parameters).fetchall()

        return milliseconds(work)

    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read, read only")
        connection.execute("set local timezone = 'UTC'")
        raw = sum([ask(f"raw_{section}") for section in sections])
        ours = ask(sections[0] if len(sections) == 1 else "overview")
        for section in sections[1:] and sections:  # the overview is JSON: its parts are compared through the functions
            ask(section)
        for section in sections:
            if answers[f"raw_{section}"] != answers[section]:
                sys.exit(f"DIFFERENT: {section} of {parameters} is not what the raw query says. This is a bug.")
    return raw, ours


def copies(bench: Bench, rows: int) -> None:
    """COPY into the captured table beside a table without capture: same rows, same indexes; each is rolled back."""
    connection = bench.tenth
    connection.execute(SQL["create_plain"])
    connection.execute(SQL["fill_plain"])
    connection.execute("vacuum analyze public.plain")
    tables = ("public.plain", "public.resource_usage_log")
    for kind, target in (("tail", 1.1), ("late", 2.0)):
        with connection.cursor().copy(SQL[f"{kind}_events"].replace("{n}", str(rows)).encode()) as out:
            data = b"".join(bytes(block) for block in out)
        found: dict[str, list[float]] = {table: [] for table in tables}
        for repeat in range(bench.options.repeat + 1):
            for table in tables if repeat % 2 else reversed(tables):
                connection.execute("checkpoint")
                took = copy_and_roll_back(connection, table, data)
                connection.execute(f"vacuum {table}".encode())
                connection.execute("vacuum usage.late_change")
                if repeat:
                    found[table].append(took)
        bench.add(f"COPY of {rows:,} {kind} events, against no capture", *found.values(), faster=False, target=target)


def copy_and_roll_back(connection: db.Connection, table: str, data: bytes) -> float:
    """Return the milliseconds of one COPY."""

    def work() -> None:
        with connection.cursor().copy(
            f"copy {table} (collection_id, resource_type, detail, created_at) from stdin".encode()
        ) as copy:
            for start in range(0, len(data), 1 << 18):
                copy.write(data[start : start + (1 << 18)])

    with connection.transaction(force_rollback=True):
        return milliseconds(work)


def single_inserts(bench: Bench, rows: int) -> None:
    """Single-row inserts, each its own transaction, without and with capture."""
    found: dict[str, list[float]] = {"public.plain": [], "public.resource_usage_log": []}
    connection = bench.tenth
    connection.execute("set synchronous_commit = off")
    for repeat in range(bench.options.repeat + 1):
        for table, rates in found.items():
            statement = SQL["insert_one"].replace("{table}", table).replace("{{", "{").replace("}}", "}").encode()

            def work(statement: bytes = statement) -> None:
                for _ in range(rows):
                    connection.execute(statement, (None,), prepare=True)

            took = milliseconds(work)
            if repeat:
                rates.append(rows / took * 1000)
    connection.execute("reset synchronous_commit")
    bench.add("single-row inserts, asynchronous commit, against no capture", *found.values(), rate=True, unit="/s")


def sizes(bench: Bench) -> None:
    """Size of all rollups, indexes included, beside the raw table's."""
    row = bench.full.execute(SQL["sizes"]).fetchone()
    assert row is not None
    bench.add("size of the rollups, against the raw table", [row[0] / 1e6], [row[1] / 1e6], faster=False, unit="MB")


def run(dsn: str, options: argparse.Namespace) -> Bench:
    """Make the databases, measure everything, and drop them."""
    with psycopg.connect(dsn, autocommit=True) as admin, contextlib.ExitStack() as stack:
        settings: dict[str, Settings] = {}
        connections: dict[str, db.Connection] = {}
        for name, database, part in zip(("full", "tenth"), DATABASES, (1, 10), strict=True):
            admin.execute(f"drop database if exists {database} with (force)".encode())
            admin.execute(f"create database {database} template template0 encoding 'UTF8'".encode())
            stack.callback(admin.execute, f"drop database if exists {database} with (force)".encode())
            settings[name] = Settings(database_url=SecretStr(make_conninfo(dsn, dbname=database)), time_zone="UTC")
            connections[name] = connection = stack.enter_context(db.connect(settings[name], name="aggregator bench"))
            events, days = options.events // part, max(1, options.days // part)
            say.print(f"making {events:,} events of {days} days …")
            sample.create_sample(connection, events=events, days=days, collections=options.collections, malformed=0)
            connection.execute("vacuum analyze")
            migrations.upgrade(settings[name])
            capture.attach(connection, settings[name])
        bench = Bench(options, connections["full"], connections["tenth"], settings)
        new = min(20_000, max(100, options.events // 100))
        built = build(bench)
        refreshes(bench, new, built)
        # As the scheduler leaves it: what comes in 5 minutes. Then most of a day.
        bench.full.execute(SQL["add_tail"], {"n": max(1, options.events // options.days // 288)})
        reads(bench, 0)
        bench.full.execute(SQL["add_tail"], {"n": new})
        reads(bench, new)
        sizes(bench)
        copies(bench, max(1000, min(500_000, options.events // 20)))
        single_inserts(bench, min(5000, options.events // 100))
        bench.full.execute(SQL["change_the_past"])
        read_both(bench.full, ("by_collection", "ai_drilldown", "daily"), EVERYTHING)
        return bench


def facts(dsn: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a reader must know to compare this run with another."""
    with psycopg.connect(dsn) as connection:
        names = ("server_version", "shared_buffers", "work_mem", "fsync", "jit", "max_parallel_workers_per_gather")
        server = {name: connection.execute("select current_setting(%s)", (name,)).fetchone() for name in names}
    try:
        ours = version("usage-aggregator")
    except PackageNotFoundError:
        ours = "from a checkout"
    return {"postgresql": {name: row and row[0] for name, row in server.items()}, "aggregator": ours,
            "python": platform.python_version(), "cpus": os.cpu_count(), "events": options.events, "days": options.days,
            "collections": options.collections, "repeat": options.repeat, "load_average": os.getloadavg()[0],
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}  # fmt: skip


def report(bench: Bench, known: dict[str, Any]) -> None:
    """Print the table and what was missed, and write the JSON file."""
    server = known["postgresql"]
    table = Table(
        title=f"PostgreSQL {server['server_version']}, aggregator {known['aggregator']}, Python {known['python']}, "
        f"{known['cpus']} CPUs; {known['events']:,} events, {known['days']} days, {known['collections']} collections",
        caption="medians (least to most); every answer equalled the raw query's, to the last digit",
    )
    for name in ("what", "raw, or against", "ours", "ratio", "target", "met?"):
        table.add_column(name, justify="left" if name in {"what", "met?"} else "right")
    for line in bench.lines:
        table.add_row(*line.cells())
    # Not a terminal's width: a table in a log or a file is not to be cut.
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=160)
    console.print(table)
    missed = [line for line in bench.lines if line.missed_by]
    for line in missed:
        by = f"{100 * (line.missed_by or 0):.0f} %"
        console.print(f"missed by {by}: {line.what}: {line.ratio:.3g}, target {line.target:g}")
    if not missed:
        console.print("every target is met")
    bench.options.json.parent.mkdir(parents=True, exist_ok=True)
    result = {**known, "lines": [line.as_json() for line in bench.lines]}
    bench.options.json.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    say.print(f"written: {bench.options.json}")


@contextlib.contextmanager
def server(options: argparse.Namespace) -> Iterator[str]:
    """Yield a server's connection string: the one given, or that of an embedded one."""
    if options.dsn:
        yield options.dsn
        return
    say.print("starting an embedded PostgreSQL in a temporary folder …")
    with embedded.temporary_server(settings={**SERVER_SETTINGS, "fsync": options.fsync}) as running:
        yield running.dsn()


def main() -> None:
    """Read the options, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000_000, help="at least 20000")
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--collections", type=int, default=300)
    parser.add_argument("--repeat", type=int, default=5, help="of each measurement, after one to warm up")
    parser.add_argument("--fsync", choices=("on", "off"), default="on", help="of the embedded server")
    parser.add_argument("--dsn", help="another server: its role must be a superuser; makes and drops two databases")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "latest.json", help="where the results go")
    options = parser.parse_args()
    if options.events < 20_000 or min(options.days, options.collections, options.repeat) < 1:
        parser.error("too few events, days, collections or repeats")
    with server(options) as dsn:
        bench = run(dsn, options)
        known = facts(dsn, options)
    report(bench, known)


if __name__ == "__main__":
    main()
