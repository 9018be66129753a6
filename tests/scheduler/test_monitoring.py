"""Metrics and health: what a scrape and a probe see, in good days and bad."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import psycopg
import pytest

from aggregator.scheduler import JOBS, Scheduler
from tests.harness import Database
from tests.scheduler.test_scheduler import make_nightly_due, scheduler, wake


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode()


def scrape(one: Scheduler, port: int) -> dict[str, float]:
    """Return all samples as they are now."""
    one.monitor._read._read_at = float("-inf")
    code, text = get(port, "/metrics")
    assert code == 200
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


@pytest.fixture
def served(db: Database) -> Iterator[tuple[Scheduler, int]]:
    """A scheduler with its port open, not running."""
    one, _ = scheduler(db, metrics_port=0)
    port = one.monitor.start()
    assert port
    yield one, port
    one.monitor.stop()


def test_metrics_and_health(db: Database, served: tuple[Scheduler, int]) -> None:
    """Lag, runs, seconds, rows and problems in Prometheus' format; live and ready; nothing else is served."""
    one, port = served
    assert get(port, "/health/live") == (200, '{"alive": true}\n')
    code, text = get(port, "/health/ready")
    assert (code, json.loads(text)["healthy"]) == (503, False)
    assert "never refreshed" in text
    db.insert("2026-03-01 00:00+00")
    wake(one)
    values = scrape(one, port)
    assert get(port, "/health/ready") == (200, '{"healthy": true, "problems": []}\n')
    assert values["aggregator_up"] == values["aggregator_healthy"] == values["aggregator_trusted"] == 1
    assert values['aggregator_runs_total{job="refresh",outcome="done"}'] == 1
    assert values["aggregator_folded_events_total"] == 1
    assert 0 <= values["aggregator_lag_seconds"] < 60
    assert values['aggregator_run_seconds_count{job="refresh"}'] == 1
    assert values['aggregator_run_seconds_sum{job="refresh"}'] > 0
    assert values["aggregator_rejected_values"] == values["aggregator_rejected_share"] == 0
    assert values["aggregator_differences_found_total"] == 0
    assert get(port, "/")[0] == 404


def test_rejected_values_and_differences(db: Database, served: tuple[Scheduler, int]) -> None:
    """Values that are no numbers, and rows that somebody changed, are seen by the next scrape."""
    one, port = served
    for detail in ('{"tokens_in": "many"}', '{"tokens_in": true}', "{}", '{"tokens_in": 1}'):
        db.execute(
            "insert into public.resource_usage_log (resource_type, detail, created_at)"
            " values ('ai', %s, now() - interval '1 day')",
            (detail,),
        )
    db.refresh()
    db.execute("update usage.daily_fact set event_count = event_count + 1")
    make_nightly_due(db)
    wake(one)
    values = scrape(one, port)
    assert values["aggregator_rejected_values"] == 2
    assert values["aggregator_rejected_share"] == 0.5
    assert values['aggregator_problem{code="rejected"}'] == values['aggregator_problem{code="failed"}'] == 1
    assert values["aggregator_differences_found_total"] == 1
    assert values["aggregator_trusted"] == 0
    assert values['aggregator_runs_total{job="nightly",outcome="failed"}'] == 1


def test_a_scrape_while_the_database_is_away(db: Database, served: tuple[Scheduler, int]) -> None:
    """It is down, not ready, and alive; counters stay, and when it is back all is as before."""
    one, port = served
    wake(one)
    with psycopg.connect(db.dsn.replace(f"dbname={db.name}", "dbname=postgres"), autocommit=True) as admin:
        admin.execute(f"alter database {db.name} allow_connections false".encode())
        values = scrape(one, port)
        assert values["aggregator_up"] == 0
        assert "aggregator_lag_seconds" not in values
        assert values['aggregator_runs_total{job="refresh",outcome="done"}'] == 1
        code, text = get(port, "/health/ready")
        assert (code, json.loads(text)) == (503, {"healthy": False, "problems": ["the database cannot be read"]})
        assert get(port, "/health/live")[0] == 200
        admin.execute(f"alter database {db.name} allow_connections true".encode())
    assert scrape(one, port)["aggregator_up"] == 1


@pytest.mark.parametrize("job", JOBS)
def test_a_stalled_worker(db: Database, served: tuple[Scheduler, int], job: str) -> None:
    """Whichever has not been woken for some intervals: not alive; at work however long, it is."""
    one, port = served
    worker = {name: one._workers[name] for name in JOBS}[job]  # type: ignore[index]
    worker.woke_at -= 3 * db.settings.refresh_every + 31
    assert get(port, "/health/live") == (503, '{"alive": false}\n')
    worker.at_work = True
    assert get(port, "/health/live") == (200, '{"alive": true}\n')
    worker.at_work = False
    wake(one)
    assert get(port, "/health/live") == (200, '{"alive": true}\n')
