"""The commands of operations, as a user runs them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.cli.test_cli import one_line, run
from tests.harness import COLLECTIONS, Database


@pytest.fixture
def filled(db: Database) -> Database:
    for days in (0, 3, 40, 100):
        db.execute(
            "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at) values"
            " (%s, 'export', '{\"rows\": 5}', now() - make_interval(days => %s))",
            (COLLECTIONS[0], days),
        )
    db.refresh()
    return db


def test_metrics(filled: Database) -> None:
    """Shown first, changed, rebuilt; the list has it."""
    dry = run(filled.dsn, "metric", "set", "export", "--value-key", "rows", "--unit", "rows", "--dry-run")
    assert dry.returncode == 0
    assert "Totals that change" in dry.stdout
    assert filled.scalar("select count(*) from usage.metric where resource_type = 'export'") == 0
    done = run(filled.dsn, "metric", "set", "export", "--value-key", "rows", "--unit", "rows")
    assert done.returncode == 0, done
    assert "rebuilt" in done.stderr
    assert filled.scalar("select total_value from usage.by_collection('-infinity')") == 20
    assert "export" in run(filled.dsn, "metric", "list").stdout
    assert json.loads(run(filled.dsn, "metric", "list", "--json").stdout)["metrics"][3]["value_key"] == "rows"
    one_line(run(filled.dsn, "metric", "set", "export", "--value-key", "rowz"), 2, "seen: rows", "--force")
    one_line(run(filled.dsn, "metric", "set", "export", "--value-key", ""), 2, "a key is empty")
    one_line(run(filled.dsn, "metric", "remove", "nothing"), 2, "there is no metric 'nothing'")
    assert run(filled.dsn, "metric", "remove", "export").returncode == 0


def test_purge_and_seal(filled: Database) -> None:
    """Counted first, deleted, history kept; what cannot be meant is refused in one line."""
    one_line(run(filled.dsn, "purge"), 2, "--keep")
    one_line(run(filled.dsn, "purge", "--keep", "6h"), 2, "at least 1d")
    longer = run(filled.dsn, "purge", "--keep", "999d")
    assert longer.returncode == 0
    assert "nothing to purge" in longer.stderr
    dry = run(filled.dsn, "purge", "--keep", "30d", "--dry-run")
    assert "would delete 2 events" in dry.stderr
    assert filled.scalar("select count(*) from public.resource_usage_log") == 4
    done = run(filled.dsn, "purge", "--keep", "30d")
    assert done.returncode == 0, done
    assert "deleted 2 events" in done.stderr
    assert filled.scalar("select event_count from usage.by_collection('-infinity')") == 4
    one_line(run(filled.dsn, "verify", "--since", "2026-01-01"), 2, "sealed")
    one_line(run(filled.dsn, "seal", "--until", "2026-01-01"), 2, "sealed already")
    one_line(run(filled.dsn, "seal", "--until", "2999-01-01"), 2, "not over")
    one_line(run(filled.dsn, "detach"), 2, "--discard-sealed")
    one_line(run(filled.dsn, "migrate", "--down"), 2, "--discard-sealed")


def test_verify_rebuild_and_history(filled: Database) -> None:
    """JSON names the differences by key and day; trust is off until a rebuild; the histories have it all."""
    filled.execute(
        "update usage.daily_fact set event_count = event_count + 1 where day = (select min(day) from usage.daily)"
    )
    found = run(filled.dsn, "verify", "--json")
    assert found.returncode == 1
    differences = json.loads(found.stdout)
    assert differences["differences"] == 1
    assert {"rollup", "bucket", "collection_id", "resource_type", "event_count"} <= differences["shown"][0].keys()
    status = run(filled.dsn, "status")
    assert status.returncode == 1
    assert "verify --repair" in status.stdout
    filled.compare()
    assert run(filled.dsn, "rebuild").returncode == 0
    assert run(filled.dsn, "rebuild", "--reset-frontier").returncode == 0
    assert run(filled.dsn, "status").returncode == 0
    for of, word in (("refreshes", "done"), ("verifications", "yes"), ("restatements", "repaired")):
        assert word in run(filled.dsn, "history", of).stdout
        assert json.loads(run(filled.dsn, "history", of, "--json").stdout)
    one_line(run(filled.dsn, "verify", "--since", "2999-01-01"), 2, "future")
    one_line(run(filled.dsn, "verify", "--since", "2026-02-01", "--until", "2026-01-01"), 2, "before")


def test_views_and_the_nightly_run_by_hand(filled: Database) -> None:
    """``refresh --views`` and ``schedule --once``, for cron."""
    assert "refreshed trailing, monthly_ranking" in run(filled.dsn, "refresh", "--views").stderr
    assert "nothing has changed" in run(filled.dsn, "refresh", "--views").stderr
    once = run(filled.dsn, "schedule", "--once", "--log-format", "json")
    assert once.returncode == 0
    assert json.loads(once.stderr)["job"] == "nightly"
    filled.execute(
        "update usage.daily_fact set event_count = event_count + 1 where day = (select max(day) from usage.daily)"
    )
    assert run(filled.dsn, "schedule", "--once").returncode == 1
    one_line(run(None, "schedule"), 2, "AGGREGATOR_DATABASE_URL")
    one_line(run(filled.dsn, "schedule", "--nightly-at", "25:00"), 2, "03:30")


def test_totals(filled: Database) -> None:
    """Sums by any keys as a table, JSON and CSV; wrong keys and grains are told in one line."""
    result = run(filled.dsn, "totals", "--by", "resource_type", "--grain", "month", "--since", "2020-01-01T00:00Z")
    assert result.returncode == 0, result.stderr
    rows = filled.execute(
        "select bucket::text, event_count from usage.totals('2020-01-01 00:00+00', null, '{resource_type}', 'month')"
    )
    for month, count in rows:
        assert re.search(rf"{month}.* {count} ", result.stdout)
    result = run(
        filled.dsn, "totals", "--by", "collection, job_type", "--since", "2020-01-01T00:00Z", "--format", "json"
    )
    found = json.loads(result.stdout)
    assert found["exact"] is True
    assert sum(row["event_count"] for row in found["totals"]) == sum(count for _, count in rows)
    result = run(filled.dsn, "totals", "--since", "2020-01-01T00:00Z", "--format", "csv")
    assert result.stdout.startswith("bucket,starts_at,collection_id,")
    for arguments, words in {
        ("--by", "colour"): "there is no key 'colour'", ("--grain", "year"): "there is no 'year'",
        ("--grain", "hour"): "hours are in usage.hourly", ("--since", "2026-01-01"): "zone",
    }.items():  # fmt: skip
        result = run(filled.dsn, "totals", *arguments)
        assert (result.returncode, "Traceback" in result.stderr) == (2, False)
        assert words in result.stderr


def test_attach_by_lookback(new_database: Any) -> None:
    """A view: refused with what to do, attached, shown with the reason; nonsense is exit 2, in one line."""
    db = new_database()
    db.execute("create view public.looked as select * from public.resource_usage_log")
    source = ["--source-table", "public.looked"]
    one_line(run(db.dsn, "attach", *source), 2, "is a view, which can have no triggers", "--capture lookback")
    for wrong in ("0d", "-1d", "3", "6h", "soon", "999999d"):
        text = run(db.dsn, "attach", *source, "--capture", "lookback", "--lookback", wrong)
        one_line(text, 2, "AGGREGATOR_LOOKBACK (--lookback)", "is no time to look back", "like 3d")
    one_line(run(db.dsn, "attach", *source, "--capture", "guessing"), 2, "AGGREGATOR_CAPTURE (--capture)")
    one_line(run(db.dsn, "attach", *source, "--lookback", "3d"), 2, "is for --capture lookback")
    twins = {"AGGREGATOR_CAPTURE": "lookback", "AGGREGATOR_LOOKBACK": "2d", "AGGREGATOR_SOURCE_TABLE": "public.looked"}
    assert "looking back 2 days, without triggers" in run(db.dsn, "attach", **twins).stderr
    db.insert("2026-03-01 00:00+00", "ai", 0, '{"tokens_in": 1}')
    assert run(db.dsn, "refresh").returncode == 0
    shown = run(db.dsn, "show", "--since", "2026-01-01T00:00Z", "--format", "json")
    assert "a late change of the last 2 days appears at the next refresh" in shown.stdout + shown.stderr
    told = run(db.dsn, "status")
    assert "each refresh repairs the last 2 days" in told.stdout
    assert json.loads(run(db.dsn, "status", "--json").stdout)["capture"] == "lookback"
    refused = run(db.dsn, "attach", *source, "--capture", "triggers")
    one_line(refused, 2, "is attached by lookback: run aggregator detach first")
    assert run(db.dsn, "detach").returncode == 0
    one_line(run(db.dsn, "attach", *source, "--capture", "triggers"), 2, "--capture lookback")
