"""A hundred thousand late changes that wait: reads are exact and read no more of them than the window has; folds claim them in steps."""

from __future__ import annotations

import itertools
from typing import Any

from aggregator import refresh, status
from tests.harness import COLLECTIONS, Database
from tests.plans.explain import Node, nodes_done

LATE = 100_000
STEP = 30_000
WINDOWS = [("-infinity", None, None), ("now-30", "now-3", None), ("now-8", None, COLLECTIONS[0])]


def _late_scans(db: Database, query: str) -> list[Node]:
    """Return the scans of late changes that were done in all that a query runs, with the rows that they gave."""
    return [node for node in nodes_done(db, query) if node.get("Relation Name") == "late_change"]


def test_a_hundred_thousand_late_changes(new_database: Any) -> None:
    """Exact before, between and after the steps; a narrow window reads the changes that it has, once, by their index."""
    db: Database = new_database(step_events=STEP)
    db.attach()
    insert = (
        "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
        " select ('00000000-0000-0000-0000-00000000000' || 1 + n %% 5)::uuid, (array['ai', 'tts'])[1 + n %% 2],"
        " jsonb_build_object('tokens_in', n * 0.25, 'characters', n, 'job_type', n %% 3),"
        " now() - n * interval '{every}' from generate_series(1, %s) n"
    )
    db.execute(insert.replace("{every}", "8 minutes"), (20_000,))
    db.refresh()
    # 60,000 inserts, and 20,000 updates that take one off and put one on.
    db.execute(insert.replace("{every}", "2 minutes 41 seconds"), (60_000,))
    db.execute("update public.resource_usage_log set detail = detail || '{\"tokens_in\": 1}' where id <= 20000")
    assert db.scalar("select count(*) from usage.late_change") == LATE
    db.compare(WINDOWS[1:], live=False)

    # A week of 112 days: a sixteenth of the changes.
    window = (
        "date_trunc('day', now(), 'UTC') - interval '37 days', date_trunc('day', now(), 'UTC') - interval '30 days'"
    )
    in_window = db.scalar(
        "select count(*) from usage.late_change l where l.created_at >= date_trunc('day', now(), 'UTC') - interval '37 days'"
        " and l.created_at < date_trunc('day', now(), 'UTC') - interval '30 days'"
    )
    assert 0 < in_window < LATE / 10
    assert db.execute(f"select pending_changes, raw_rows from usage.receipt({window})") == [(in_window, 0)]
    # As autovacuum would, by when the planner knows how many there are.
    db.execute("analyze usage.late_change")
    reads = ("by_collection", "ai_drilldown", "daily_series", "overview")
    for read, collection in itertools.product(reads, ("null", f"'{COLLECTIONS[0]}'")):
        scans = _late_scans(db, f"select * from usage.{read}({window}, {collection})")
        assert scans, read
        for node in scans:
            assert node["Node Type"] != "Seq Scan", read
        given = sum(node["Actual Rows"] * node["Actual Loops"] for node in scans)
        assert given <= in_window + len(scans), f"{read}: {given} changes read, {in_window} are in the window"

    found = status.read_status(db.own, db.settings)
    assert found.pending_changes == LATE
    assert "pending" not in {problem.code for problem in found.problems}
    assert db.verify().differences == 0

    steps: list[refresh.Progress] = []

    def step(done: refresh.Progress) -> None:
        steps.append(done)
        if len(steps) == 2:
            db.compare(WINDOWS[1:], live=False)

    result = refresh.refresh(db.own, db.settings, progress=step)
    assert (result.status, result.late_changes) == ("done", LATE)
    taken = [step.late_changes for step in steps]
    claimed = [after - before for before, after in zip([0, *taken], taken, strict=False)]
    # Those that share an instant go together.
    assert max(claimed) <= STEP + 3
    assert len(steps) >= LATE / STEP
    db.compare(WINDOWS, live=False)
    assert db.verify().differences == 0
