"""The benchmark: rollups beside the raw query and beside others' ways, interleaved in one run, as ratios.

Our answers and the raw query's are taken in one snapshot and must be equal to the last digit: else the run fails. So it
does if a case does not run; the others run nevertheless. A target that is missed does not fail it, but is said.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psycopg

from aggregator import embedded
from benchmarks import costs, plots, report, unseen
from benchmarks.data import Database, Server, make_sample
from benchmarks.measure import Recorder, say
from benchmarks.peers import Peer, set_up
from benchmarks.reads import Reads
from benchmarks.results import NO_CAPTURE, ROLLUPS, TARGET_EVENTS, Results, Size
from benchmarks.writes import Writes

HERE = Path(__file__).parent

SERVER_SETTINGS = {"shared_buffers": "'1GB'", "max_wal_size": "'8GB'"}

SUBJECTS = ("build", "storage", "reads", "verify", "refresh", "writes", "unseen")

PEERS = ("matview", "naive", "timescaledb", "pg_ivm")

LEAST_EVENTS = 2_000


def measure(
    results: Results, options: argparse.Namespace, events: int, server: Server, elsewhere: dict[str, Server]
) -> None:
    """Make the databases of one size, measure everything, and drop them."""
    sample = make_sample(options, events)
    size = Size(events, sample.days)
    results.sizes.append(size)
    record = Recorder(options, size)
    servers = [server, *elsewhere.values()]
    try:
        with record.attempt("databases"):
            source = server.create("source")
            sample.make(source)
            source.connection.close()
            peers = set_up(record, server, elsewhere, sample)
            hourly = server.create("hourly", copy_of="source") if options.hourly else None
            full = server.create("full", copy_of="source")
            tenth = server.create("tenth")
            sample.tenth().make(tenth)
            for database in (full, tenth):
                database.attach()
            if hourly is not None:
                hourly.attach(with_hours=True)
            results.facts["peers"] = {peer.name: peer.version() for peer in peers if peer.version()}
            _subjects(record, sample, full, tenth, hourly, peers, server)
    finally:
        for used in servers:
            used.drop_all()


def _subjects(
    record: Recorder, sample: Any, full: Database, tenth: Database, hourly: Database | None, peers: list[Peer], server: Server
) -> None:  # fmt: skip
    """Measure each subject that was asked for; the build always, as the others need it."""
    events, options = sample.events, record.options
    new = min(20_000, max(100, events // 10))

    def begin(subject: str) -> bool:
        if subject in options.subjects:
            say.print(f"{subject} ({events:,} events)", style="bold")
        return subject in options.subjects

    begin("build")
    with record.attempt("build"):
        costs.build(record, server, full, tenth, hourly, peers)
    if begin("storage"):
        with record.attempt("storage"):
            costs.storage(record, full, hourly, peers)
    if begin("reads"):
        with record.attempt("reads"):
            # As the scheduler leaves it: what comes in 5 minutes. Then most of a day.
            five_minutes = max(1, events // sample.days // 288)
            Reads(record, sample, full, peers, hourly).all_cases(five_minutes, new)
    if begin("verify"):
        with record.attempt("verify"):
            full.refresh()
            costs.verification(record, full)
    if begin("refresh"):
        with record.attempt("refresh"):
            costs.refreshes(record, full, tenth, hourly, peers, events)
    if begin("writes"):
        with record.attempt("writes"):
            plain = server.connect("source")
            capturing = {peer.name: peer.database for peer in peers if peer.captures}
            Writes(record, sample, {NO_CAPTURE: plain, ROLLUPS: full, **capturing}).all_cases(events)
    if begin("unseen"):
        with record.attempt("unseen"):
            unseen.cut_days(record, sample, full)
            unseen.late_changes(record, sample, full, peers)


def facts(dsn: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a reader must know to compare this run with another."""
    names = (
        "server_version", "shared_buffers", "work_mem", "max_wal_size", "fsync", "jit", "max_parallel_workers_per_gather",
    )  # fmt: skip
    with psycopg.connect(dsn) as connection:
        server = {name: connection.execute("select current_setting(%s)", (name,)).fetchone() for name in names}
    try:
        ours = version("usage-aggregator")
    except PackageNotFoundError:
        ours = "from a checkout"
    chosen = ("collections", "skew", "types", "late_share", "repeat", "budget")
    return {"postgresql": {name: row and row[0] for name, row in server.items()}, "aggregator": ours,
            "commit": _said("git", "-C", str(HERE), "describe", "--always", "--dirty"),
            "python": platform.python_version(), "cpus": os.cpu_count(), "cpu": _cpu(),
            **{name: getattr(options, name) for name in chosen},
            "load_average": os.getloadavg()[0], "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}  # fmt: skip


def _said(*command: str) -> str | None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    return None


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def server(options: argparse.Namespace) -> Iterator[str]:
    """Yield a server's connection string: the one given, or that of an embedded one."""
    if options.dsn:
        yield options.dsn
        return
    say.print("starting an embedded PostgreSQL in a temporary folder …")
    with embedded.temporary_server(settings={**SERVER_SETTINGS, "fsync": options.fsync}) as running:
        yield running.dsn()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--events", type=int, default=TARGET_EVENTS, help=f"at least {LEAST_EVENTS}")
    add("--days", type=int, default=365, help="of history")
    add("--growth", type=_millions, default=[], metavar="1,3,10,30",
        help="a series of histories instead, in millions of events; each has as many events a day as --events in --days")  # fmt: skip
    add("--collections", type=int, default=300)
    add("--skew", type=float, default=1.0, help="collections are drawn in proportion to 1 / rank ^ skew")
    add("--types", type=int, default=7, help="resource types, 1 to 7")
    add("--late-share", type=float, default=0.001, help="events of the sample dated 1 to 11 days early")
    add("--repeat", type=int, default=5, help="of each measurement, after one to warm up")
    add("--budget", type=float, default=30.0, help="seconds after which a contender of a case rests")
    add("--subjects", type=_names(SUBJECTS), default=list(SUBJECTS), help="what to measure; the build is always")
    add("--peers", type=_names(PEERS), default=list(PEERS), help="whom to measure beside")
    add("--no-hourly", dest="hourly", action="store_false", help="leave hourly rollups out")
    add("--timescaledb-dsn", default=os.environ.get("AGGREGATOR_BENCH_TIMESCALEDB_DSN"),
        help="a server with TimescaleDB preloaded")  # fmt: skip
    add("--pg-ivm-dsn", default=os.environ.get("AGGREGATOR_BENCH_PG_IVM_DSN"), help="a server with pg_ivm")
    add("--fsync", choices=("on", "off"), default="on", help="of the embedded server")
    add("--dsn", help="another server instead of the embedded one; its role, and those above, must be superusers")
    add("--json", type=Path, default=HERE / "results" / "latest.json", help="where the results go")
    add("--plots", type=Path, default=HERE / "results", help="folder of the plots")
    options = parser.parse_args(arguments)
    least = min([options.events, *options.growth])
    if least < LEAST_EVENTS or min(options.days, options.collections, options.repeat) < 1:
        parser.error("too few events, days, collections or repeats")
    return options


def _millions(text: str) -> list[int]:
    return sorted({round(float(part) * 1_000_000) for part in text.split(",")})


def _names(known: tuple[str, ...]) -> Any:
    def parse_names(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not among {', '.join(known)}")
        return names

    return parse_names


def main(arguments: list[str] | None = None) -> int:
    """Read the options, run, report; return the exit code."""
    options = parse(arguments)
    results: Results | None = None
    try:
        with server(options) as dsn:
            results = Results(facts(dsn, options))
            given = {"timescaledb-dsn": options.timescaledb_dsn, "pg-ivm-dsn": options.pg_ivm_dsn}
            for events in options.growth or [options.events]:
                elsewhere = {name: Server(where) for name, where in given.items() if where}
                measure(results, options, events, Server(dsn), elsewhere)
                results.write(options.json)
    finally:
        if results is not None and results.sizes:
            results.facts["load_average_at_the_end"] = os.getloadavg()[0]
            results.write(options.json)
            report.show(results)
            say.print(f"written: {options.json}")
    for path in plots.draw(results, options.plots):
        say.print(f"drawn: {path}")
    return 1 if results.failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that servers and databases are removed
    sys.exit(main())
