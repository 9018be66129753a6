"""The protocol holds in every interleaving of the model; and each rule is needed: without it some interleaving is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.model import document
from tests.model.protocol import FLAWS, Scenario, explore
from tests.model.scenarios import QUICK, THOROUGH

RELIED_ON = Path(__file__).parents[1] / "postgres" / "test_relied_on.py"

EVERYTHING = [*QUICK, *(pytest.param(scenario, marks=pytest.mark.long) for scenario in THOROUGH)]


@pytest.mark.parametrize("scenario", EVERYTHING, ids=lambda scenario: scenario.name)
def test_no_interleaving_is_wrong(scenario: Scenario) -> None:
    """Every state that can be reached is visited, and a reader of each gets the right answer."""
    found = explore(scenario)
    assert not found.wrong, "\n".join([found.wrong, *found.path])
    assert found.states > 100


@pytest.mark.long
def test_each_rule_is_needed() -> None:
    """Some scenario finds out whatever is broken: so the search can find something, and no rule is a superstition.

    docs/correctness.md says which; ``python -m tests.model --document`` writes it there.
    """
    assert not [flaw for flaw in FLAWS if document.found_out(flaw) is None]
    assert document.filled() == document.PAGE.read_text(encoding="utf-8")


def test_the_chapter_lists_what_is_relied_on() -> None:
    """Each assumption of the chapter has a test, and each test of one is there."""
    named = set(re.findall(r"^\| ([A-Z][0-9]) \|", document.PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    tested = set(re.findall(r'^    """([A-Z][0-9]): ', RELIED_ON.read_text(encoding="utf-8"), re.MULTILINE))
    assert named == tested
