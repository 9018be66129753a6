"""Writers, refreshers and readers at once. AGGREGATOR_STRESS_ROUNDS makes it long, for a run by hand.

A run in which one of them did nothing fails by itself.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.concurrency.stress import Stress
from tests.harness import Database, some
from tests.integration.sources import PARTITIONED, PARTITIONED_DDL

ROUNDS = int(os.environ.get("AGGREGATOR_STRESS_ROUNDS", "2"))
SECONDS = 4.0


def rounds(make: Callable[[], Database], run: dict[str, int], kind: Callable[[int], dict[str, bool]]) -> Counter[str]:
    """Run each seed in a database of its own; ``run`` says how many of each role, ``kind`` what else is done with a seed. Return what was done."""
    counts: Counter[str] = Counter()
    for seed in range(ROUNDS):
        db = make()
        db.attach()
        stress = Stress(db, seed, **kind(seed))
        stress.run(SECONDS, **run)
        counts += stress.counts
        db.close()
    print(dict(counts))
    return counts


@pytest.mark.parametrize("ddl", [False, True], ids=["writers", "writers and the host's DDL"])
def test_many_short_runs(new_database: Any, ddl: bool) -> None:
    """Every comparison in every snapshot is equal, nobody hangs, and the host's DDL is never a victim."""
    rounds(new_database, {}, lambda _seed: {"ddl": ddl})


@pytest.mark.parametrize("zone", some(["Asia/Kathmandu", "UTC"], 2))
def test_hours_are_turned_on_and_off(new_database: Any, zone: str) -> None:
    """So it is while the hourly rollup is turned on, filled by several at once, and turned off again."""
    run = {"writers": 3, "refreshers": 2, "readers": 1}
    rounds(lambda: new_database(zone=zone), run, lambda seed: {"ddl": seed % 2 == 1, "hours": True})


@pytest.mark.parametrize("zone", some(["Asia/Kathmandu", "UTC"], 2))
def test_marks_are_made_and_let_go_of(new_database: Any, zone: str) -> None:
    """So it is while marks are made, by refreshes and beside them, and late changes let go of them."""
    run = {"writers": 2, "refreshers": 2, "readers": 1}
    rounds(lambda: new_database(zone=zone), run, lambda seed: {"ddl": seed % 2 == 1, "marks": True})


@pytest.mark.parametrize("hours", some([True, False], 2), ids=["hours", "days"])
def test_partitions_come_and_go(new_database: Any, hours: bool) -> None:
    """So it is with a partitioned source whose partitions are made, truncated, detached, attached and dropped meanwhile."""

    def partitioned() -> Database:
        db: Database = new_database(source_table=PARTITIONED)
        db.execute(PARTITIONED_DDL)
        return db

    run = {"writers": 3, "refreshers": 2, "readers": 1}
    counts = rounds(partitioned, run, lambda _seed: {"ddl": True, "hours": hours})
    assert counts["repairs"] > 0
