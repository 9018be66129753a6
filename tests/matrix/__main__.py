"""The tests on what people have: ``python -m tests.matrix``. Exit code 1 if any failed; what is not there is listed.

Every server with this Python, and every Python with the lowest and with the newest dependencies on the newest server:
servers know nothing of the client's libraries, so not each with each. ``--full`` runs all tests in each cell, hours.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

from rich.table import Table

from aggregator.terminal import console
from tests.matrix.environments import HERE, PYTHONS, RESOLUTIONS, ROOT, python_of
from tests.matrix.servers import CACHE, SERVERS, NotThereError, programs_of

NEWEST = max(SERVERS)
SMOKE = [f"tests/{name}" for name in (
    "integration/test_refresh.py", "integration/test_capture.py", "integration/test_contents.py",
    "integration/test_totals.py", "integration/test_trust.py", "migrations", "postgres",
)]  # fmt: skip
"""Refresh, capture, reads, doubt, migrations, and what is relied on: within a minute."""
QUICK = ["tests/unit", "tests/integration", "tests/migrations", "tests/postgres", "tests/plans/test_plans.py",
         "tests/concurrency", "-k", "not test_zones and not test_histories and not killed_at_any and not constant_memory"]  # fmt: skip
"""What depends on the server's version or a library's, without what takes long."""
FULL = ["tests"]


@dataclass
class Cell:
    """One combination, and what came of it."""

    postgres: str
    python: str
    dependencies: str
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0
    failed: list[str] = field(default_factory=list)
    not_there: str | None = None

    @property
    def name(self) -> str:
        return f"{self.postgres}-{self.python}-{self.dependencies}"

    def run(self, selection: list[str], workers: int) -> None:
        """Run tests in it."""
        began = time.monotonic()
        report = CACHE / "logs" / f"{self.name}.xml"
        report.parent.mkdir(parents=True, exist_ok=True)
        try:
            programs, self.postgres = programs_of(self.postgres)
            python = python_of(self.python, self.dependencies)
        except NotThereError as exc:
            self.not_there = str(exc)
            return
        report.unlink(missing_ok=True)
        with report.with_suffix(".log").open("w") as log:
            subprocess.run(
                [python, "-m", "pytest", "-q", "-n", str(workers), "--dist", "worksteal", "-p", "no:cacheprovider",
                 f"--junitxml={report}", *selection],
                cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False,
                env={**os.environ, "AGGREGATOR_TEST_BIN": str(programs), "PATH": f"{python.parent}:{os.environ['PATH']}"},
            )  # fmt: skip
        self.seconds = time.monotonic() - began
        self._read(report)

    def _read(self, report: Path) -> None:
        """Read the counts and the failures of a run."""
        if not report.exists():
            self.failed = [f"no test ran: see {report.with_suffix('.log')}"]
            return
        suite = ET.parse(report).getroot()[0]  # noqa: S314 -- pytest wrote it
        bad = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
        skipped = int(suite.attrib["skipped"])
        self.counts = {"passed": int(suite.attrib["tests"]) - bad - skipped, "failed": bad, "skipped": skipped}
        self.failed = [
            f"{case.attrib['classname']}::{case.attrib['name']}: {bad.attrib.get('message', '').splitlines()[0]}"
            for case in suite.iter("testcase")
            for bad in [*case.iter("failure"), *case.iter("error")]
        ]
        if not self.counts["passed"]:
            self.failed.append(f"nothing passed: see {report.with_suffix('.log')}")


def cells(postgres: list[str], pythons: list[str], dependencies: list[str]) -> list[Cell]:
    """Return the cells that are asked for: each server once, each Python with each set of dependencies once."""
    servers = [Cell(version, HERE, "newest") for version in SERVERS]
    clients = [Cell(NEWEST, *of) for of in itertools.product(PYTHONS, sorted(RESOLUTIONS)) if of != (HERE, "newest")]
    return [
        cell
        for cell in servers + clients
        if cell.postgres in postgres and cell.python in pythons and cell.dependencies in dependencies
    ]


def main() -> int:
    """Run what is asked for, and print a table of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix")
    parser.add_argument("--postgres", action="append", choices=SERVERS)
    parser.add_argument("--python", action="append", choices=sorted({*PYTHONS, HERE}))
    parser.add_argument("--dependencies", action="append", choices=sorted(RESOLUTIONS))
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--smoke", action="store_const", dest="selection", const=SMOKE, default=QUICK)
    parser.add_argument("--full", action="store_const", dest="selection", const=FULL)
    parser.add_argument("tests", nargs="*", help="tests to run instead")
    asked = parser.parse_args()
    chosen = cells(
        asked.postgres or list(SERVERS), asked.python or [*PYTHONS, HERE], asked.dependencies or list(RESOLUTIONS)
    )
    out = console()
    table = Table("PostgreSQL", "Python", "dependencies", *(("passed", "failed", "skipped", "seconds")))
    for cell in chosen:
        cell.run(asked.tests or asked.selection, asked.workers)
        numbers = [str(cell.counts.get(what, "")) for what in ("passed", "failed", "skipped")]
        if cell.not_there is not None:
            numbers = ["not there", "", ""]
        table.add_row(cell.postgres, cell.python, cell.dependencies, *numbers, f"{cell.seconds:.0f}")
        out.print(f"{cell.name}: {' '.join(numbers)}", style="dim")
    out.print(table)
    for cell in chosen:
        for line in cell.failed:
            out.print(f"FAILED {cell.name}: {line}", soft_wrap=True)
        if cell.not_there is not None:
            out.print(f"not there: {cell.name}: {cell.not_there}", soft_wrap=True)
    return int(any(cell.failed for cell in chosen))


if __name__ == "__main__":
    sys.exit(main())
