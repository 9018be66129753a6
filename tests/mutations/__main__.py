"""Which of the mutants of the fold, capture and read code the tests notice: ``python -m tests.mutations``.

All of the SQL's, and a sample of the Python's: ``--sample 0`` for none, ``--seed`` for others. Half an hour on two cores;
names of SQL mutants as arguments try only these. Exit code 1 if a mutant of the SQL survives: its killer is listed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from aggregator import embedded
from aggregator.terminal import console
from tests.conftest import SERVER_SETTINGS
from tests.mutations import python_mutants, sql_mutants
from tests.mutations.runner import ROOT, Outcome, try_out

_NOT_COPIED = shutil.ignore_patterns(".*", "results", "__pycache__", "*.egg-info", "node_modules")


def _sql(dsn: str, mutants: Iterable[sql_mutants.Mutant]) -> list[tuple[str, Callable[[], Outcome]]]:
    """Return what to do for each mutant of the SQL."""
    return [
        (
            f"{mutant.place.split('(')[0]}: {mutant.name}",
            lambda mutant=mutant: try_out(  # type: ignore[misc]
                dsn,
                [f"tests/{test}" for test in mutant.killer.split()],
                {sql_mutants.ENVIRONMENT: mutant.name, "AGGREGATOR_TEST_LONG": "1"},
            ),
        )
        for mutant in mutants
    ]


def _python(dsn: str, size: int, seed: int, copies: SimpleQueue[Path]) -> list[tuple[str, Callable[[], Outcome]]]:
    """Return what to do for each mutant of the sample, in one of the copies of the checkout."""

    def in_a_copy(mutant: python_mutants.Mutant) -> Outcome:
        folder = copies.get()
        path = folder / python_mutants.source(mutant.module)
        whole = path.read_text(encoding="utf-8")
        try:
            path.write_text(mutant.text, encoding="utf-8")
            return try_out(dsn, python_mutants.KILLERS[mutant.module], {}, folder)
        finally:
            path.write_text(whole, encoding="utf-8")
            copies.put(folder)

    return [
        (mutant.name, lambda mutant=mutant: in_a_copy(mutant))  # type: ignore[misc]
        for mutant in (python_mutants.sample(size, seed) if size else [])
    ]


def main() -> int:
    """Try them all, print each with its killer, and the scores."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations")
    parser.add_argument("--sample", type=int, default=60, help="mutants of the Python")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--no-sql", action="store_true")
    parser.add_argument("names", nargs="*", help="mutants of the SQL, and nothing else")
    asked = parser.parse_args()
    unknown = set(asked.names) - {mutant.name for mutant in sql_mutants.MUTANTS}
    if unknown:
        parser.error(f"no mutant of the SQL: {', '.join(sorted(unknown))}")
    out = console()
    mutants = [] if asked.no_sql else [m for m in sql_mutants.MUTANTS if not asked.names or m.name in asked.names]
    equivalent = [mutant for mutant in mutants if mutant.equivalent is not None]
    survivors: dict[str, list[str]] = {"SQL": [], "Python": []}
    with (
        embedded.temporary_server(None, {**SERVER_SETTINGS, "max_connections": "100"}) as server,
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(asked.jobs) as pool,
    ):
        dsn = server.dsn().replace(" dbname=postgres", "")
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(asked.jobs):
            copies.put(Path(shutil.copytree(ROOT, Path(folder) / str(number), ignore=_NOT_COPIED)))
        work = {
            "SQL": _sql(dsn, [mutant for mutant in mutants if mutant.equivalent is None]),
            "Python": [] if asked.names else _python(dsn, asked.sample, asked.seed, copies),
        }
        for kind, trials in work.items():
            outcomes = pool.map(lambda trial: trial[1](), trials)
            for (name, _), outcome in zip(trials, outcomes, strict=True):
                if outcome.killer is None:
                    survivors[kind].append(name)
                out.print(f"{outcome.seconds:5.1f} s  {name}: {outcome.killer or 'SURVIVED'}", soft_wrap=True)
    for mutant in equivalent:
        out.print(f"equivalent {mutant.name}: {mutant.equivalent}", soft_wrap=True)
    for kind, trials in work.items():
        for name in survivors[kind]:
            out.print(f"SURVIVED {kind} {name}", soft_wrap=True)
        if trials:
            killed = len(trials) - len(survivors[kind])
            out.print(f"{kind}: {killed} of {len(trials)} mutants killed, {killed / len(trials):.0%}")
    return int(bool(survivors["SQL"]))


if __name__ == "__main__":
    sys.exit(main())
