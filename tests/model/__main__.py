"""Explore every scenario, and say how many states there were: ``python -m tests.model``. Minutes; exit code 1 if any is wrong.

``--document`` writes the table of docs/correctness.md instead.
"""

from __future__ import annotations

import sys
import time

from tests.model import document
from tests.model.protocol import FLAWS, explore
from tests.model.scenarios import QUICK, THOROUGH


def main() -> int:
    """Print each scenario with its states, and each flaw with the scenario that finds it out."""
    if sys.argv[1:] == ["--document"]:
        document.PAGE.write_text(document.filled(), encoding="utf-8")
        return 0
    began, total, failed = time.monotonic(), 0, False
    for scenario in [*QUICK, *THOROUGH]:
        found = explore(scenario)
        total += found.states
        failed = failed or bool(found.wrong)
        print(f"{found.states:>10,}  {scenario.name}{'' if not found.wrong else ': WRONG, ' + found.wrong}", flush=True)
        for step in found.path:
            print(f"            {step}")
    print(f"{total:>10,}  states of {len(QUICK) + len(THOROUGH)} scenarios in {time.monotonic() - began:.0f} s")
    for flaw, what in FLAWS.items():
        finder = document.found_out(flaw)
        failed = failed or finder is None
        by = f"{len(finder[1].path)} steps of {finder[0].name}: {finder[1].wrong}" if finder else "NOT FOUND OUT"
        print(f"broken: {what}: {by}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
