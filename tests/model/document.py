"""The part of docs/correctness.md that the model writes: each broken rule, and what finds it out."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from tests.model.protocol import FLAWS, Found, Scenario, explore
from tests.model.scenarios import QUICK

PAGE = Path(__file__).resolve().parents[2] / "docs" / "correctness.md"

_PART = re.compile(r"(<!-- flaws -->\n).*?(<!-- end -->)", re.DOTALL)


@cache
def found_out(flaw: str) -> tuple[Scenario, Found] | None:
    """Return the first scenario that a broken rule makes wrong, and how; None: no one notices."""
    for scenario in QUICK:
        found = explore(scenario, frozenset({flaw}))
        if found.wrong:
            return scenario, found
    return None


def filled() -> str:
    """Return the page with its table."""
    rows = ["| rule that is broken | found out by | steps |", "|---|---|---:|"]
    for flaw, what in FLAWS.items():
        finder = found_out(flaw)
        rows.append(f"| {what} | {finder[0].name} | {len(finder[1].path)} |" if finder else f"| {what} | NOTHING | |")
    return _PART.sub(
        lambda match: f"{match[1]}\n" + "\n".join(rows) + f"\n\n{match[2]}", PAGE.read_text(encoding="utf-8")
    )
