"""The scheduler: what is due is done once, over hosts, zones, failures and stops."""

from __future__ import annotations

import functools
import itertools
import json
import operator
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from aggregator import jobs, matviews, nightly
from aggregator.db import transaction
from aggregator.errors import Stopped
from aggregator.scheduler import JOBS, Scheduler, run_once
from tests.cli.test_cli import ROOT, _environment, run
from tests.harness import COLLECTIONS, Database


class Log:
    """Collects what the scheduler logs."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def info(self, event: str, **facts: Any) -> None:
        self.lines.append({"event": event, **facts})

    error = info

    def runs(self) -> list[tuple[str, str]]:
        return [(line["job"], line["outcome"]) for line in self.lines if line["event"] == "run"]


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Await a condition, and return its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError("it did not come to pass")


def scheduler(db: Database, **changes: Any) -> tuple[Scheduler, Log]:
    log = Log()
    return Scheduler(db.settings.model_copy(update=changes), log), log


def wake(one: Scheduler) -> None:
    """Wake its workers, one after the other."""
    for job in JOBS:
        one.wake(job)


def make_nightly_due(db: Database) -> None:
    db.execute("update usage.state set attached_at = now() - interval '3 days'")


def test_a_wake_does_what_is_due_and_only_once(db: Database) -> None:
    """First a refresh; a second scheduler finds nothing to do; the next interval has one again."""
    db.insert("2026-03-01 00:00+00")
    first, log = scheduler(db)
    second, other = scheduler(db)
    wake(first)
    wake(second)
    wake(first)
    assert log.runs() == [("refresh", "done")]
    assert other.runs() == []
    db.execute("update usage.job set started_at = started_at - interval '5 minutes'")
    wake(second)
    wake(first)
    assert other.runs() == [("refresh", "done")]
    assert len(log.runs()) == 1
    db.compare()


def test_two_schedulers_at_the_same_moment(new_database: Any) -> None:
    """Many wakes at once: one of them does the work."""
    db = new_database()
    db.attach()
    db.insert("2026-03-01 00:00+00")
    pairs = [scheduler(db) for _ in range(5)]
    threads = [threading.Thread(target=wake, args=(one,)) for one, _ in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert functools.reduce(operator.iadd, (log.runs() for _, log in pairs), []) == [("refresh", "done")]
    assert db.scalar("select count(*) from usage.refresh_run") == 1


def test_the_nightly_run_does_all_parts(db: Database) -> None:
    """Refresh, views, verification of recent days and an older one, pruning, ANALYZE; then it is done for the night."""
    for days in (0, 1, 3, 100):
        db.execute(
            "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
            " values (%s, 'ai', '{\"tokens_in\": 5}', now() - make_interval(days => %s))",
            (COLLECTIONS[0], days),
        )
    make_nightly_due(db)
    db.execute(
        "insert into usage.refresh_run (started_at, finished_at, status) values (now() - interval '500 days', now(), 'done')"
    )
    one, log = scheduler(db)
    wake(one)
    assert log.runs() == [("nightly", "done")]
    line = log.lines[-1]
    assert line["events"] == 4
    assert line["views"] == "trailing,monthly_ranking"
    assert line["differences"] == 0
    assert len(line["verified"].split(",")) == 2
    assert line["pruned"] == 1
    assert db.scalar("select count(*) from usage.trailing") == 1
    assert db.scalar("select count(*) from usage.verification") >= 2
    wake(one)
    assert log.runs() == [("nightly", "done")]
    db.compare()


def test_the_nightly_run_purges_when_configured(db: Database) -> None:
    """Raw events that are older than what is kept go, and the history stays as it was."""
    db.execute(
        "insert into public.resource_usage_log (resource_type, detail, created_at)"
        " select 'ai', '{\"tokens_in\": 1}', now() - make_interval(days => n) from generate_series(1, 100) n"
    )
    db.refresh()
    before = db.execute("select * from usage.by_collection('-infinity')")
    make_nightly_due(db)
    one, log = scheduler(db, keep="60d")
    wake(one)
    assert log.runs() == [("nightly", "done")]
    assert log.lines[-1]["purged"] == 40
    assert db.scalar("select count(*) from public.resource_usage_log") == 60
    assert db.execute("select * from usage.by_collection('-infinity')") == before


def test_the_nightly_run_analyzes_what_changed(db: Database) -> None:
    """Statistics of rollups that changed are made anew; one that a VACUUM holds is left for the next time, and is no error."""
    for rollup in ("daily_fact", "daily_total"):
        db.execute(f"alter table usage.{rollup} set (autovacuum_enabled = false)")
    db.execute(
        "insert into public.resource_usage_log (resource_type, created_at)"
        " select 'ai', now() - make_interval(days => n) from generate_series(1, 100) n"
    )
    db.refresh()
    db.own.execute("select pg_stat_force_next_flush()")
    changed = "select min(n_mod_since_analyze) from pg_stat_user_tables where schemaname = 'usage' and relname in ('daily', 'daily_total')"
    until(lambda: db.scalar(changed) >= 100)
    vacuum = db.connect(autocommit=False)
    vacuum.execute(b"lock table usage.daily_fact in share update exclusive mode")
    held = nightly.run(db.own, db.settings)
    assert held.errors == []
    assert "usage.daily_total" in held.analyzed
    assert "usage.daily_fact" not in held.analyzed
    vacuum.rollback()
    assert db.scalar("select reltuples from pg_class where oid = 'usage.daily_fact'::regclass") < 100
    assert "usage.daily_fact" in nightly.run(db.own, db.settings).analyzed
    assert db.scalar("select reltuples from pg_class where oid = 'usage.daily_fact'::regclass") == 100


def test_pruning_of_histories(db: Database) -> None:
    """Runs, verifications and restatements that are too old go; the newest verification stays, however old."""
    for days in (500, 450, 10):
        db.execute(
            "insert into usage.restatement (restated_at, bucket, event_count, total_value, secondary_value, rejected_count, reason)"
            " values (now() - make_interval(days => %s), '2026-03-01', 1, 0, 0, 0, 'late')",
            (days,),
        )
    for days in (500, 450):
        db.execute(
            "insert into usage.verification (verified_at, day_from, day_to, differences, repaired)"
            " values (now() - make_interval(days => %s), '2026-03-01', '2026-03-02', 0, false)",
            (days,),
        )
    with transaction(db.own):
        assert db.own.execute(nightly.SQL["prune"], {"days": 400}).fetchone() == (3,)
    age = "select extract(day from now() - {}) from usage.{}"
    assert db.execute(age.format("restated_at", "restatement")) == [(10,)]
    assert db.execute(age.format("verified_at", "verification")) == [(450,)]


def test_a_missed_nightly_run_is_caught_up(db: Database) -> None:
    """A run that was due while nobody was there is done at the next wake, once, however many were missed."""
    make_nightly_due(db)
    one, log = scheduler(db)
    wake(one)
    db.execute("update usage.job set done_for = done_for - interval '5 days' where name = 'nightly'")
    wake(one)
    wake(one)
    assert log.runs() == [("nightly", "done"), ("nightly", "done")]


@pytest.mark.parametrize(
    ("zone", "day"),
    [
        ("Europe/Oslo", "2026-03-29"),
        ("Europe/Oslo", "2026-10-25"),
        ("America/Havana", "2026-03-08"),
        ("Pacific/Apia", "2011-12-31"),
    ],
)
def test_due_once_a_local_day(db: Database, zone: str, day: str) -> None:
    """Around a change of clocks every local day has one due instant, at the local time if that day has it."""
    for at in ("00:30", "02:30", "03:30"):
        middle = datetime.fromisoformat(f"{day}T12:00+00:00")
        found = [
            row[0]
            for row in db.execute(
                "select distinct usage.nightly_due(m, %s::time, %s) from generate_series(%s::timestamptz, %s::timestamptz, '10 min') m order by 1",
                (at, zone, middle - timedelta(days=4), middle + timedelta(days=4)),
            )
        ]
        days = [instant.astimezone(ZoneInfo(zone)).date() for instant in found]
        assert len(days) == len(set(days)), (at, found)
        gaps = {later - earlier for earlier, later in itertools.pairwise(found)}
        assert gaps <= {timedelta(hours=hours) for hours in (23, 24, 25)}, gaps
        for instant in found:
            local = instant.astimezone(ZoneInfo(zone))
            exists = datetime.fromisoformat(f"{local.date()}T{at}").replace(tzinfo=ZoneInfo(zone))
            if exists.astimezone(timezone.utc).astimezone(ZoneInfo(zone)) == exists:
                assert local.strftime("%H:%M") == at


def test_a_failure_is_recorded_and_tried_again(db: Database) -> None:
    """A run that fails is not repeated at once by anybody, but after a pause that grows; then all is well again."""
    db.execute("alter table public.resource_usage_log rename column detail to details")
    one, log = scheduler(db)
    wake(one)
    assert log.runs() == [("refresh", "failed")]
    assert log.lines[-1]["error"]
    wake(one)
    wake(scheduler(db)[0])
    assert log.runs() == [("refresh", "failed")]
    pauses = []
    for _ in range(3):
        db.execute("update usage.job set retry_at = now() where name = 'refresh'")
        wake(one)
        pauses.append(log.lines[-1]["retry_in"])
    assert pauses == sorted(pauses)
    assert pauses[-1] > pauses[0]
    assert db.scalar("select failures from usage.job where name = 'refresh'") == 4
    db.execute("alter table public.resource_usage_log rename column details to detail")
    db.execute("update usage.job set retry_at = now() where name = 'refresh'")
    wake(one)
    assert log.runs()[-1] == ("refresh", "done")
    assert db.execute("select failures, last_error from usage.job where name = 'refresh'") == [(0, None)]
    db.compare()


def test_a_difference_turns_trust_off_and_fails_the_run(db: Database) -> None:
    """The nightly verification finds a corrupted row: reads are right at once, and the run is a failure that says so."""
    db.execute(
        "insert into public.resource_usage_log (resource_type, created_at) values ('ai', now() - interval '2 days')"
    )
    db.refresh()
    db.execute("update usage.daily_fact set event_count = event_count + 1")
    make_nightly_due(db)
    one, log = scheduler(db)
    wake(one)
    assert log.runs() == [("nightly", "failed")]
    assert "differ" in log.lines[-1]["error"]
    db.compare()
    assert db.verify(repair=True).trusted
    db.execute("update usage.job set retry_at = now() where name = 'nightly'")
    wake(one)
    assert log.runs()[-1] == ("nightly", "done")
    db.compare()


def test_a_part_that_fails_does_not_keep_the_others_from_running(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Views cannot be refreshed: verification and pruning run, and the run says what failed."""

    def fail(*_arguments: Any, **_options: Any) -> None:
        raise psycopg.errors.DiskFull("no space left on device")

    monkeypatch.setattr(matviews, "refresh_views", fail)
    result = nightly.run(db.own, db.settings)
    assert result.errors == ["materialized views: no space left on device"]
    assert result.verified


def test_stopping_between_steps(db: Database) -> None:
    """Told to stop, a run ends between steps, is recorded as stopped, and the next one goes on."""
    for day in range(1, 6):
        db.insert(f"2026-03-0{day} 00:00+00")
    one, log = scheduler(db, step_events=1)
    steps = 0

    def check() -> None:
        nonlocal steps
        steps += 1
        if steps > 3:
            raise Stopped

    one._check = check  # type: ignore[method-assign]
    wake(one)
    assert log.runs() == [("refresh", "stopped")]
    assert db.scalar("select status from usage.refresh_run") == "stopped"
    assert db.scalar("select count(*) from usage.daily") in range(1, 5)
    db.compare()
    assert db.refresh().status == "done"
    db.compare()


def test_commands_that_exclude_each_other(db: Database) -> None:
    """Two at once: the second says who is at work, and changes nothing; a holder that is gone is given up."""
    with jobs.exclusive(db.own, db.settings, "purge"):
        with (
            pytest.raises(jobs.BusyError, match="purge on .* is at work since"),
            jobs.exclusive(db.own, db.settings, "rebuild"),
        ):
            raise AssertionError
        result = run(db.dsn, "rebuild")
        assert result.returncode == 1
        assert "nothing was changed" in result.stderr
    db.execute("update usage.job set holder = 'gone', lease_until = now() - interval '1 s' where name = 'exclusive'")
    with jobs.exclusive(db.own, db.settings, "rebuild"):
        assert str(db.scalar("select holder from usage.job where name = 'exclusive'")).startswith("rebuild on ")
    assert db.scalar("select holder is null and lease_until is null from usage.job where name = 'exclusive'")


def test_a_lease_is_extended_while_the_work_lasts(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder that works for longer than a lease keeps it."""
    monkeypatch.setattr(jobs, "LEASE", 0.4)
    with jobs.exclusive(db.own, db.settings, "long work"):
        began = db.scalar("select lease_until from usage.job where name = 'exclusive'")
        until(
            lambda: (
                db.scalar("select lease_until from usage.job where name = 'exclusive'") > began + timedelta(seconds=0.5)
            )
        )
        with pytest.raises(jobs.BusyError):
            jobs.exclusive(db.own, db.settings, "another").__enter__()


def test_once_is_the_nightly_run(db: Database) -> None:
    """``schedule --once`` does it whether it is due or not, and never beside another."""
    db.insert("2026-03-01 00:00+00")
    assert run_once(db.settings)
    assert db.scalar("select refreshed_at is not null from usage.view_refresh where view_name = 'trailing'")
    claimed = jobs.claim(db.own, db.settings, "claim", "another host", name="nightly")
    assert claimed
    with pytest.raises(jobs.BusyError, match="elsewhere"):
        run_once(db.settings)


def test_the_command_in_the_foreground(db: Database) -> None:
    """One JSON line a run; the database goes away and comes back; SIGTERM ends it with 0."""
    db.insert("2026-03-01 00:00+00")
    process = subprocess.Popen(
        [sys.executable, "-m", "aggregator", "schedule", "--refresh-every", "1", "--log-format", "json", "--metrics-port", "0"],
        env=_environment(db.dsn, {}), cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines: list[dict[str, Any]] = []
    assert process.stderr
    reader = threading.Thread(target=lambda: lines.extend(json.loads(line) for line in process.stderr or []))
    reader.start()
    try:
        done = "select count(*) from usage.refresh_run where status = 'done'"
        until(lambda: db.scalar(done) >= 2)
        # Cut all its sessions, and let none in for a while.
        with psycopg.connect(db.dsn.replace(f"dbname={db.name}", "dbname=postgres"), autocommit=True) as admin:
            admin.execute(f"alter database {db.name} allow_connections false".encode())
            admin.execute(
                b"select pg_terminate_backend(pid) from pg_stat_activity where datname = %s and application_name like 'aggregator %%'",
                (db.name,),
            )
            until(lambda: any(line["event"] == "cannot work" for line in lines))
            admin.execute(f"alter database {db.name} allow_connections true".encode())
        before = db.scalar(done)
        # A run that was cut could not give its lease back: it runs out.
        until(lambda: db.scalar(done) > before, seconds=jobs.LEASE + 30)
        db.compare()
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=30)
        reader.join()
        for stream in (process.stderr, process.stdout):
            if stream:
                stream.close()
    assert code == 0
    assert next(line["event"] for line in lines) == "scheduler started"
    assert lines[-1]["event"] == "scheduler stopped"
    assert {"job", "outcome", "seconds", "events", "timestamp", "level"} <= next(
        line for line in lines if line["event"] == "run"
    ).keys()
    assert os.environ.get("PGPASSWORD", "no password at all") not in json.dumps(lines)
