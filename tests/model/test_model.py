"""The protocol holds in every interleaving of the model; and each rule is needed: without it some interleaving is wrong."""

from __future__ import annotations

import os

import pytest

from tests.model.protocol import FLAWS, Scenario, explore
from tests.model.scenarios import QUICK, THOROUGH

EVERYTHING = [*QUICK, *THOROUGH] if os.environ.get("AGGREGATOR_MODEL") == "thorough" else [*QUICK, *THOROUGH[:3]]


@pytest.mark.parametrize("scenario", EVERYTHING, ids=lambda scenario: scenario.name)
def test_no_interleaving_is_wrong(scenario: Scenario) -> None:
    """Every state that can be reached is visited, and a reader of each gets the right answer."""
    found = explore(scenario)
    assert not found.wrong, "\n".join([found.wrong, *found.path])
    assert found.states > 100


@pytest.mark.parametrize("flaw", FLAWS)
def test_each_rule_is_needed(flaw: str) -> None:
    """Some scenario finds out what is broken: so the search can find something, and the rule is no superstition."""
    assert any(explore(scenario, frozenset({flaw})).wrong for scenario in QUICK)
