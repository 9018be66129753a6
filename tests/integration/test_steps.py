"""Where the steps of a refresh end: after about as many events as they are to have, whatever the planner's statistics say."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from aggregator import fold, refresh, step
from aggregator.db import transaction
from tests.harness import Database, some

STEP = 1200
"""Events of a step: eight times 150."""

EVENTS = (
    "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
    " select ('00000000-0000-0000-0000-00000000000' || 1 + n % 7)::uuid, (array['ai', 'tts'])[1 + n % 2],"
    "        jsonb_build_object('tokens_in', n, 'characters', n), timestamptz '2024-03-01 00:00+00' + n * interval '{apart} minutes'"
    "   from generate_series(0, {n} - 1) n"
)

SPREAD = EVENTS.format(n=3000, apart=19.2)
"""75 a day, for forty days, of which some begin an hour sooner than the one before in New York."""


@pytest.fixture
def by_statistics(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """What ends were looked for by statistics; None: they did not say."""
    found: list[str | None] = []
    real = step._end_by_statistics

    def recorded(*arguments: Any) -> str | None:
        found.append(real(*arguments))
        return found[-1]

    monkeypatch.setattr(step, "_end_by_statistics", recorded)
    return found


def sizes(db: Database) -> list[int]:
    """Refresh on several connections; return how many events each step had."""
    done = [0]
    settings = db.settings.model_copy(update={"step_events": STEP // 8, "jobs": 3})
    result = refresh.refresh(db.own, settings, progress=lambda progress: done.append(progress.events))
    assert result.events == done[-1]
    return [after - before for before, after in itertools.pairwise(done) if after > before]


@pytest.mark.parametrize("zone", some(["America/New_York", "UTC", "Asia/Kathmandu"], 2))
def test_by_statistics(new_database: Callable[..., Database], by_statistics: list[str | None], zone: str) -> None:
    """The index is read for the first step, which is short, and for the last one, of which they say that it is not too long."""
    db = new_database(zone=zone)
    db.execute(SPREAD)
    db.execute("analyze public.resource_usage_log")
    db.attach()
    first, *between, last = sizes(db)
    assert first <= STEP // 8 / 5 + 1
    assert between
    assert all(STEP * 0.7 < size < STEP * 1.3 for size in between)
    assert last < STEP * 1.3
    *ends, end = by_statistics
    assert len(ends) == len(between)
    assert end is None
    for end in ends:
        assert end is not None
        assert db.scalar("select usage.day_start(usage.local_day(%s, %s), %s)::text", (end, zone, zone)) == end
    db.compare()
    assert db.verify().differences == 0


@pytest.fixture
def of_other_times(db: Database) -> Database:
    """A table that was analyzed when there were later events only: statistics say of the others that there are none."""
    db.execute(SPREAD)
    db.execute("update public.resource_usage_log set created_at = created_at + interval '1 year'")
    db.execute("analyze public.resource_usage_log")
    db.execute(SPREAD)
    db.execute("delete from public.resource_usage_log where created_at > '2025-03-02'")
    db.attach()
    return db


def test_statistics_of_other_times(of_other_times: Database, by_statistics: list[str | None]) -> None:
    found = sizes(of_other_times)
    assert by_statistics == []
    assert max(found) <= STEP
    of_other_times.compare()


def test_statistics_that_are_not_checked_are_caught(of_other_times: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutation: believed whatever they say, they make one step of all events; the answers are right even so."""
    monkeypatch.setattr(step, "_OFF", 1e9)
    assert max(sizes(of_other_times)) > 2 * STEP
    of_other_times.compare()


def test_without_statistics(db: Database, by_statistics: list[str | None]) -> None:
    """The planner says the same of any range: it is not believed."""
    db.execute(SPREAD)
    db.attach()
    found = sizes(db)
    assert by_statistics in ([], [None] * len(by_statistics))
    assert max(found) <= STEP
    db.compare()


def test_many_events_in_one_day(db: Database, by_statistics: list[str | None]) -> None:
    """A day that has more than a step's is taken apart, wherever it lies."""
    db.execute(SPREAD)
    db.execute(EVENTS.format(n=4000, apart=0.2).replace("2024-03-01", "2024-03-30"))
    db.execute("analyze public.resource_usage_log")
    db.attach()
    found = sizes(db)
    assert any(by_statistics)
    assert None in by_statistics[:-1]
    assert max(found) <= STEP * 1.3
    db.compare()


def test_events_that_have_no_day(db: Database, by_statistics: list[str | None]) -> None:
    """Infinity is nothing to look from, as after a TRUNCATE; what lies behind it is found by statistics all the same."""
    db.execute(SPREAD)
    db.execute(
        "insert into public.resource_usage_log (resource_type, detail, created_at)"
        " select 'ai', '{\"tokens_in\": 1}', case when n % 2 = 0 then '-infinity' else timestamptz '0044-03-15 12:00+00 BC' end"
        "   from generate_series(1, 60) n"
    )
    db.execute("analyze public.resource_usage_log")
    db.attach()
    with transaction(db.own):
        assert step._end_by_statistics(db.own, fold.read_state(db.own), "2024-04-01", 100) is None
    by_statistics.clear()
    assert max(sizes(db)) <= STEP * 1.3
    assert any(by_statistics)
    db.compare()
