"""The list of SQL mutants is in order, and of some of them that the named test notices; all: ``make mutants``."""

from __future__ import annotations

import importlib

import pytest

from tests.harness import Database
from tests.mutations import sql_mutants
from tests.mutations.runner import try_out
from tests.mutations.sql_mutants import MUTANTS

IN_CI = [
    "values are replaced",
    "late changes add",
    "a change at the frontier stays",
    "a step begins after its first instant",
    "the first hour's first instant is in no hour",
    "a delete at the seal logs nothing",
]
"""Some of each kind, whose killers are quick."""


def test_names_are_unique() -> None:
    """A mutant is asked for by its name."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_every_one_applies(db: Database) -> None:
    """What a mutant changes is there, once, and a function that is changed is one still."""
    for mutant in MUTANTS:
        if "(" in mutant.place:
            with db.connection.transaction(force_rollback=True):
                sql_mutants.break_function(mutant, db.connection)
        else:
            module, block = mutant.place.split(".")
            mutant.mutated(importlib.import_module(f"aggregator.{module}").SQL[block])


@pytest.mark.long
@pytest.mark.parametrize("name", IN_CI)
def test_killed(name: str, server: str) -> None:
    """The test that is named notices it."""
    mutant = next(mutant for mutant in MUTANTS if mutant.name == name)
    outcome = try_out(server, [f"tests/{test}" for test in mutant.killer.split()], {sql_mutants.ENVIRONMENT: name})
    assert outcome.killer is not None, outcome.output
    assert "::" in outcome.killer, outcome.output
