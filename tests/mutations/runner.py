"""Run tests with something broken on purpose, and say whether they noticed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

ROOT = Path(__file__).parents[2]
LONGEST = 600.0
"""Seconds, after which a mutant counts as noticed: it hangs."""


@dataclass(frozen=True)
class Outcome:
    """``killer``: the first test that failed, or what else told it; None: no test did."""

    killer: str | None
    seconds: float
    output: str = ""


def try_out(dsn: str, tests: Sequence[str], environment: Mapping[str, str], folder: Path = ROOT) -> Outcome:
    """Run tests of a checkout on a server that others use too, until the first one fails."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "--tb=line", "-p", "no:cacheprovider", *tests],
        cwd=folder, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
        # No bytecode: a change within a second that keeps the size would not be seen.
        env={**os.environ, "AGGREGATOR_TEST_DSN": dsn, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1",
             "COLUMNS": "300", **environment},
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=LONGEST)
        killer = _killer(process.returncode, output)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        killer = f"more than {LONGEST:g} s"
    _drop_databases(dsn, process.pid)
    return Outcome(killer, time.monotonic() - began, output)


def _killer(code: int, output: str) -> str | None:
    if code == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (\S+(?:\[.*?\])?)", output, re.MULTILINE)
    return found[1] if found else f"pytest's exit code {code}"


def _drop_databases(dsn: str, pid: int) -> None:
    """Drop the databases of a run: their names have its process id."""
    with psycopg.connect(f"{dsn} dbname=postgres", autocommit=True) as connection:
        rows = connection.execute("select datname from pg_database where datname ~ %s", (f"^aggregator_.*_{pid}(_|$)",))
        for (name,) in rows.fetchall():
            connection.execute(f'drop database if exists "{name}" with (force)'.encode())
