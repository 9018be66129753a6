"""Health: each problem is seen, has a code and a remedy, and is gone when it is mended; BI sees the same."""

from __future__ import annotations

from typing import Any

import pytest

from aggregator import capture, refresh, status
from aggregator.status import read_status
from tests.harness import Database

LONG_AGO = "now() - interval '10 days'"


def codes(db: Database, **changes: Any) -> list[str]:
    settings = db.settings.model_copy(update=changes)
    status.save_limits(db.own, settings)
    found = read_status(db.own, settings)
    problems = db.execute("select healthy, problems from usage.freshness")[0]
    assert problems == (found.healthy, [str(problem) for problem in found.problems]), "BI sees the same"
    assert all(problem.remedy and problem.text for problem in found.problems)
    return [problem.code for problem in found.problems]


@pytest.fixture
def healthy(db: Database) -> Database:
    db.insert("now", "tts", 0, '{"characters": 3}')
    db.refresh()
    assert codes(db) == []
    return db


def test_not_attached_and_never_refreshed(new_database: Any) -> None:
    """The first two states say what to run next."""
    db = new_database()
    assert codes(db) == ["not_attached"]
    db.attach()
    assert codes(db) == ["never_refreshed"]
    db.refresh()
    assert codes(db) == []


@pytest.mark.parametrize(
    ("code", "break_it", "limit", "mend"),
    [
        ("lag", f"update usage.state set frontier = {LONG_AGO}", {"max_lag": 864001.0}, None),
        ("unverified", f"update usage.state set attached_at = {LONG_AGO}", {"max_verification_age_days": 11.0}, "verify"),
        ("pending", "insert into public.resource_usage_log (created_at) select now() - interval '1 day' from generate_series(1, 11)",
         {"max_pending_changes": 11}, "refresh"),
        ("ahead", "update usage.state set frontier = now() + interval '1 hour';"
         "select setval('usage.frontier_seq', (extract(epoch from now() + interval '1 hour') * 1e6)::bigint)", {"max_frontier_ahead": 3601.0}, None),
        ("failed", "insert into usage.refresh_run (finished_at, status, error) values (now(), 'failed', 'no luck')", None, "refresh"),
        ("failed", "update usage.job set failures = 1, last_error = 'no luck' where name = 'nightly'", None, None),
        ("grants", "revoke select on sequence usage.frontier_seq from public", None, "attach"),
        ("seal", "update usage.state set sealed_until = date_trunc('day', now(), 'UTC') - interval '1 day'", None, "refresh"),
        ("source", "drop index public.resource_usage_log_created_at_idx", None, None),
        ("source", "alter table public.resource_usage_log rename detail to details", None, None),
        ("untrusted", "alter table public.resource_usage_log disable trigger usage_delete", None, None),
    ],
)  # fmt: skip
def test_each_problem(
    healthy: Database, code: str, break_it: str, limit: dict[str, Any] | None, mend: str | None
) -> None:
    """It is seen, by its code; another limit or its remedy makes it go away."""
    for statement in break_it.split(";"):
        healthy.execute(statement)
    defaults: dict[str, Any] = {"max_pending_changes": 10} if code == "pending" else {}
    assert codes(healthy, **defaults) == [code]
    if limit is not None:
        assert codes(healthy, **limit) == []
    if mend is not None:
        getattr(healthy, mend)()
        assert codes(healthy, **defaults) == []


def test_rejected_values(healthy: Database) -> None:
    """More than one in a hundred of the last 30 days' events; older ones do not count."""
    for _ in range(99):
        healthy.insert("now", "tts", 0, '{"characters": 3}')
    healthy.insert("2026-01-01 00:00+00", "tts", 0, '{"characters": "many"}')
    healthy.insert("now", "tts", 0, '{"characters": "many"}')
    healthy.refresh()
    assert codes(healthy) == []
    healthy.insert("now", "tts", 0, '{"characters": "many"}')
    healthy.refresh()
    assert codes(healthy) == ["rejected"]
    assert codes(healthy, max_rejected_share=0.02) == []


def test_who_blocks_and_who_works(healthy: Database) -> None:
    """A writer that stays open is named, and so is who is at work."""
    writer = healthy.connect(autocommit=False, application_name="the slow importer")
    writer.execute(b"insert into public.resource_usage_log (created_at) values (now())")
    healthy.own.execute("select pg_sleep(0.2)")
    found = read_status(healthy.own, healthy.settings.model_copy(update={"wait_timeout": 0.1}))
    assert any("the slow importer" in line for line in found.blocked_by)
    assert refresh.refresh(healthy.own, healthy.settings.model_copy(update={"wait_timeout": 0.1})).status == "partial"
    assert "the slow importer" in str(read_status(healthy.own, healthy.settings).last_run)
    assert read_status(healthy.own, healthy.settings).blocked_by == ()


def test_verifying_a_source_without_events_counts(db: Database) -> None:
    """There is nothing to compare, so nothing differs: that is recorded, and status is content."""
    db.refresh()
    db.execute(f"update usage.state set attached_at = {LONG_AGO}")
    assert codes(db) == ["unverified"]
    assert db.verify().differences == 0
    assert codes(db) == []
    db.verify(since="2026-03-01", until="2026-03-08")
    assert db.execute(
        "select day_from::text, day_to::text, differences, repaired from usage.verification order by id"
    ) == [("-infinity", "infinity", 0, False), ("2026-03-01", "2026-03-08", 0, False)]


def test_the_tail_is_counted_up_to_a_limit(healthy: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long tail costs a bounded count."""
    monkeypatch.setattr(status, "COUNTED_TAIL", 5)
    healthy.execute("insert into public.resource_usage_log (created_at) select now() from generate_series(1, 20)")
    found = read_status(healthy.own, healthy.settings)
    assert found.tail_events == 6
    assert ("tail events", "more than 5") in found.lines()


def test_a_source_that_is_gone(healthy: Database) -> None:
    """Status still answers, and says so."""
    healthy.execute("drop table public.resource_usage_log")
    assert codes(healthy) == ["untrusted"]
    assert "is gone" in read_status(healthy.own, healthy.settings).problems[0].text
    capture.detach(healthy.own, healthy.settings)
    assert codes(healthy) == ["not_attached"]


MANY = """
insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)
select {collection}, 'ai', jsonb_build_object('job_type', {job_type}, 'model_level', {model_level}),
       date_trunc('day', now(), 'UTC') - interval '1 second' - n % 3 * interval '1 day'
  from generate_series(1, 12000) n
"""
UUID = "('00000000-0000-0000-0000-' || lpad(({})::text, 12, '0'))::uuid"


@pytest.mark.parametrize(
    ("collection", "job_type", "model_level", "said"),
    [
        ("null", "'import ' || n", "'m'", "job_type of type ai has 12,000 values among its newest 12,000 keys: is it an id?"),
        (UUID.format("n % 60"), "'job ' || n % 8", "n", "model_level of type ai has 12,000 values"),
        (UUID.format("n % 11000"), "'job'", "'m'", "type ai has 11,000 collections among its newest"),
        (UUID.format("n % 240"), "'job ' || n / 240", "n % 3", "has that many combinations of collection, job type and model level"),
        (UUID.format("n % 60"), "'job ' || n % 8", "'m'", None),
    ],
)  # fmt: skip
def test_keys_that_hardly_repeat(
    healthy: Database, collection: str, job_type: str, model_level: str, said: str | None
) -> None:
    """Where rollups have almost a row for each event, status says so, and why; it is no problem."""
    healthy.execute(MANY.format(collection=collection, job_type=job_type, model_level=model_level))
    healthy.refresh()
    healthy.execute("analyze usage.daily_fact")
    assert codes(healthy) == []
    notes = read_status(healthy.own, healthy.settings).notes
    if said is None:
        assert notes == ()
    else:
        assert len(notes) == 1
        assert notes[0].startswith("the rollups save little: about 1")
        assert said in notes[0]
