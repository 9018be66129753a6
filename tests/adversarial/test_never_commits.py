"""A writer that never commits: nobody waits for it but refreshes, for a while; answers are exact, and the operator is told who it is."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cli.test_cli import run
from tests.harness import Database
from tests.integration.sources import settled

pytestmark = pytest.mark.long

WINDOWS = [("-infinity", None, None), ("now-30", "now-3", None)]


def test_a_writer_that_never_commits(new_database: Any) -> None:
    """Refresh after refresh is partial and folds late changes; the tail grows and is read raw; commands say who is in the way."""
    db: Database = new_database()
    db.attach()
    for days in range(40):
        db.insert("now", "tts", days % 5, '{"characters": 3}')
    db.execute("update public.resource_usage_log set created_at = created_at - id * interval '1 day'")
    db.refresh()
    frontier = db.scalar("select frontier from usage.state")
    writer = db.connect(autocommit=False, application_name="the importer")
    writer.execute(
        b"insert into public.resource_usage_log (resource_type, detail, created_at) values ('tts', '{\"characters\": 1000}', now())"
    )
    for n in range(1, 4):
        db.insert("now", "tts", 0, '{"characters": 5}')
        db.insert("yesterday", "tts", 1, '{"characters": 7}')
        db.compare(WINDOWS)
        result = db.refresh(wait_timeout=0.05)
        assert (result.status, result.events, result.late_changes) == ("partial", 0, 1)
        assert result.waited_for[0].startswith(f"pid {writer.info.backend_pid} (the importer), open for ")
        db.compare(WINDOWS)
        assert db.execute("select raw_rows, pending_changes, exact from usage.receipt('-infinity')") == [(n, 0, True)]
    assert db.scalar("select frontier from usage.state") == frontier
    assert db.verify().differences == 0

    told = run(db.dsn, "refresh", "--wait-timeout", "0.05")
    assert told.returncode == 0, told
    shown = " ".join((told.stdout + told.stderr).split())
    assert (
        f"left the tail raw, since a writer is open: pid {writer.info.backend_pid} (the importer), open for " in shown
    )
    told = run(db.dsn, "status", AGGREGATOR_WAIT_TIMEOUT="0.05", AGGREGATOR_MAX_LAG="0.001")
    assert told.returncode == 1, told
    shown = " ".join((told.stdout + told.stderr).split())
    assert f"pid {writer.info.backend_pid} (the importer)" in shown
    assert "left raw because of" in shown

    # It lives on through the refreshes, and counts from the moment it commits.
    writer.commit()
    db.compare(WINDOWS)
    assert db.refresh().status == "done"
    settled(db)
    assert db.scalar("select event_count from usage.daily_total order by day desc limit 1") >= 4
