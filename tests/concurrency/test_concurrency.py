"""Writers, refreshers and readers at once. AGGREGATOR_STRESS_ROUNDS makes it long, for a run by hand."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest

from tests.concurrency.stress import Stress

ROUNDS = int(os.environ.get("AGGREGATOR_STRESS_ROUNDS", "2"))
SECONDS = 4.0


@pytest.mark.parametrize("ddl", [False, True], ids=["writers", "writers and the host's DDL"])
def test_many_short_runs(new_database: Any, ddl: bool) -> None:
    """Every comparison in every snapshot is equal, nobody hangs, and the host's DDL is never a victim."""
    counts: Counter[str] = Counter()
    for seed in range(ROUNDS):
        db = new_database()
        db.attach()
        stress = Stress(db, seed, ddl=ddl)
        stress.run(SECONDS)
        counts += stress.counts
        db.close()
    print(dict(counts))
    assert counts["comparisons"] > 0
    assert counts["refreshes"] > 0
    assert counts["transactions"] > 0
