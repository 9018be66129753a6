"""``python -m tests.soak --minutes 60``: the soak, and its report as a table; 1 if any answer differed, or anything failed."""

from __future__ import annotations

import argparse
import logging
import random
import sys

from rich.console import Console
from rich.table import Table

from tests.soak.soak import Probe, Report, Soak

_COUNTED = (
    "transactions", "events written", "refreshes", "events folded", "late changes folded", "snapshots compared",
    "comparisons with hours", "comparisons with marks", "marks made", "ddl", "repairs", "turned on", "turned off",
)  # fmt: skip
_FAULTS = ("sessions terminated", "backends killed", "immediate stops", "sessions lost")


def table(report: Report) -> Table:
    """Return the report as people read it."""
    found = Table(title=f"soak, seed {report.seed}", title_justify="left")
    found.add_column("what")
    found.add_column("how much", justify="right")
    found.add_row("seconds", f"{report.seconds:,.0f}")
    found.add_row("rounds", f"{report.rounds:,}")
    for name in _COUNTED:
        found.add_row({"ddl": "DDL of the host", "turned on": "hours turned on", "turned off": "hours turned off"}.get(name, name),
                      f"{report.counts[name]:,}")  # fmt: skip
    found.add_section()
    found.add_row("kill -9 of commands at work", f"{report.killed.total():,}")
    for command, times in sorted(report.killed.items()):
        found.add_row(f"  {command}", f"{times:,}")
    for name in _FAULTS:
        found.add_row({"backends killed": "kill -9 of a backend", "immediate stops": "crashes (immediate stop)"}.get(name, name),
                      f"{report.counts[name]:,}")  # fmt: skip
    found.add_section()
    found.add_row("single inserts measured", f"{report.probes:,}")
    for who in (Probe.BEHIND_NOBODY, Probe.BEHIND_HOST, Probe.BEHIND_DDL, Probe.BEHIND_ATTACH, Probe.BEHIND_US):
        waited = report.waited.get(who)
        found.add_row(f"  slowest {who}", "none" if waited is None else f"{waited:,.1f} ms")
    found.add_section()
    found.add_row("differences and failures", f"{len(report.failures):,}")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--round-seconds", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--first-round", type=int, default=0, help="to begin with the round that failed")
    options = parser.parse_args(arguments)
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # sessions are lost all the time
    said = Console(stderr=True, highlight=False, soft_wrap=True)
    said.print(f"seed {options.seed}")
    report = Soak(
        options.minutes * 60, options.seed, round_seconds=options.round_seconds, first_round=options.first_round,
        say=said.print,
    ).run()  # fmt: skip
    Console(highlight=False).print(table(report))
    for failure in report.failures:
        said.print(failure, style="red", markup=False)
    if report.failures:
        first = options.first_round + report.rounds
        said.print(f"the same again: python -m tests.soak --seed {report.seed} --first-round {first}")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
