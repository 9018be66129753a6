"""Explore every scenario, and say how many states there were: ``python -m tests.model``. Minutes; exit code 1 if any is wrong."""

from __future__ import annotations

import sys
import time

from tests.model.protocol import FLAWS, explore
from tests.model.scenarios import QUICK, THOROUGH


def main() -> int:
    """Print each scenario with its states, and each flaw with the scenario that finds it out."""
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
        finders = [(found, scenario) for scenario in QUICK if (found := explore(scenario, frozenset({flaw}))).wrong]
        failed = failed or not finders
        if not finders:
            print(f"NOT FOUND   {flaw}: {what}")
        for found, scenario in finders[:1]:
            print(f"found out   {flaw}, after {len(found.path)} steps of \"{scenario.name}\": {found.wrong}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
