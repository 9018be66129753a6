"""The scheduler's workers: beside each other, never piled up, woken whatever the clock does, and whatever is raised."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, tzinfo
from typing import Any

import pytest
from apscheduler.events import EVENT_JOB_MAX_INSTANCES

from aggregator import jobs, nightly, refresh, status
from aggregator.errors import Stopped
from aggregator.scheduler import JOBS, Scheduler
from tests.cli.test_cli import run
from tests.harness import Database
from tests.scheduler.test_scheduler import make_nightly_due, scheduler, until, wake

REFRESHES = "select count(*) from usage.refresh_run where status = 'done'"


def failed(db: Database) -> bool:
    """Whether the status names a run that failed."""
    return "failed" in [problem.code for problem in status.read_status(db.own, db.settings).problems]


@contextmanager
def running(one: Scheduler) -> Iterator[threading.Thread]:
    """Run a scheduler beside the test."""
    thread = threading.Thread(target=one.run)
    thread.start()
    try:
        yield thread
    finally:
        one.stop()
        thread.join(60)
        assert not thread.is_alive()


def test_refreshes_go_on_beside_the_nightly_run(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A nightly run that lasts keeps no refresh of its process waiting, and both end when it is stopped."""

    def last(_connection: Any, _settings: Any, *, check: Callable[[], None]) -> None:
        while True:
            check()
            threading.Event().wait(0.01)

    monkeypatch.setattr(nightly, "run", last)
    make_nightly_due(db)
    one, log = scheduler(db, refresh_every=1)
    with running(one):
        until(lambda: db.scalar("select holder is not null from usage.job where name = 'nightly'"))
        before = db.scalar(REFRESHES)
        until(lambda: db.scalar(REFRESHES) >= before + 2)
        assert db.scalar("select holder is not null from usage.job where name = 'nightly'")
        assert one._is_alive()
    assert ("nightly", "stopped") in log.runs()
    assert set(log.runs()) <= {("nightly", "stopped"), ("refresh", "done"), ("refresh", "stopped")}
    assert db.scalar("select count(*) from usage.job where holder is not null") == 0


def test_runs_never_pile_up(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refresh that lasts longer than the interval is the only one, in its process and over all of them."""
    go_on = threading.Event()
    at_once: list[int] = [0]
    at_work = threading.Lock()
    real = refresh.refresh

    def last(*arguments: Any, **options: Any) -> Any:
        if not at_work.acquire(blocking=False):
            at_once.append(2)
            raise AssertionError("a second one at the same time")
        try:
            at_once.append(1)
            go_on.wait(60)
            return real(*arguments, **options)
        finally:
            at_work.release()

    monkeypatch.setattr(refresh, "refresh", last)
    one, log = scheduler(db, refresh_every=1)
    skipped: list[Any] = []
    one._clock.add_listener(skipped.append, EVENT_JOB_MAX_INSTANCES)
    with running(one):
        until(lambda: len([event for event in skipped if event.job_id.startswith("refresh")]) >= 2)
        other, its_log = scheduler(db, refresh_every=1)
        wake(other)
        assert (log.runs(), its_log.runs()) == ([], [])
        go_on.set()
        until(lambda: log.runs().count(("refresh", "done")) >= 2)
    assert max(at_once) == 1


def test_the_hosts_clock_steps_back(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wakings go on at the interval, not when the clock is again where it was."""
    shift = [timedelta(0)]

    class HostClock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + shift[0]

    monkeypatch.setattr("apscheduler.schedulers.base.datetime", HostClock)
    monkeypatch.setattr("aggregator.scheduler.datetime", HostClock)
    one, _ = scheduler(db, refresh_every=1)
    with running(one):
        until(lambda: db.scalar(REFRESHES) >= 2)
        shift[0] = timedelta(hours=-1)
        before = db.scalar(REFRESHES)
        until(lambda: db.scalar(REFRESHES) >= before + 3)


@pytest.mark.parametrize("job", JOBS)
def test_what_nobody_expects(db: Database, monkeypatch: pytest.MonkeyPatch, job: str) -> None:
    """Any exception is a failure: logged with type and traceback, counted, recorded, tried again after a pause."""

    def fail(*_arguments: Any, **_options: Any) -> None:
        raise ZeroDivisionError("division\nby zero")

    module = {"nightly": nightly, "refresh": refresh}[job]
    name = {"nightly": "run", "refresh": "refresh"}[job]
    with monkeypatch.context() as patch:
        patch.setattr(module, name, fail)
        if job == "nightly":
            make_nightly_due(db)
        one, log = scheduler(db)
        wake(one)
        line = next(line for line in log.lines if line["event"] == "run" and line["job"] == job)
        assert line["outcome"] == "failed"
        assert line["error"] == "ZeroDivisionError: division"
        assert "in fail" in line["traceback"]
        assert line["retry_in"] > 0
        assert one.monitor.registry.get_sample_value("aggregator_runs_total", {"job": job, "outcome": "failed"}) == 1
        assert db.execute("select failures, last_error from usage.job where name = %s", (job,)) == [(1, line["error"])]
        assert failed(db)
        seen = len(log.lines)
        wake(one)
        assert len(log.lines) == seen
    db.execute("update usage.job set retry_at = now() where name = %s", (job,))
    wake(one)
    assert (job, "done") in log.runs()
    assert not failed(db)
    db.compare()


def test_a_failing_nightly_run_starves_no_refresh(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again after pauses of its own; refreshes are done meanwhile."""

    def fail(*_arguments: Any, **_options: Any) -> None:
        raise RuntimeError("a test says so")

    monkeypatch.setattr(nightly, "run", fail)
    make_nightly_due(db)
    one, log = scheduler(db)
    for _ in range(3):
        db.execute("update usage.job set retry_at = now() where name = 'nightly'")
        db.execute("update usage.job set started_at = started_at - interval '1 day' where name = 'refresh'")
        wake(one)
    assert log.runs() == [("nightly", "failed"), ("refresh", "done")] * 3


@pytest.mark.parametrize("error", [Stopped, KeyboardInterrupt])
def test_stops_are_no_failures(db: Database, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    """Stopped is an outcome, and a KeyboardInterrupt goes on up; neither is recorded as a failure."""

    def stop(*_arguments: Any, **_options: Any) -> None:
        raise error

    monkeypatch.setattr(refresh, "refresh", stop)
    one, log = scheduler(db)
    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            one.wake("refresh")
        assert log.runs() == []
    else:
        one.wake("refresh")
        assert log.runs() == [("refresh", "stopped")]
    assert db.execute("select failures, holder from usage.job where name = 'refresh'") == [(0, None)]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_one_log_line_a_run(
    db: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    """Also of a failure that nobody expects, with its traceback as one field."""
    settings = db.settings.model_copy(update={"log_format": log_format})
    good = Scheduler(settings)
    good.wake("refresh")
    good_line = capsys.readouterr().err

    def fail(*_arguments: Any, **_options: Any) -> None:
        raise RuntimeError("a test\nsays so")

    monkeypatch.setattr(refresh, "refresh", fail)
    db.execute("update usage.job set started_at = null")
    Scheduler(settings).wake("refresh")
    bad_line = capsys.readouterr().err
    assert len(good_line.splitlines()) == len(bad_line.splitlines()) == 1
    if log_format == "json":
        assert json.loads(good_line)["outcome"] == "done"
        assert "RuntimeError: a test\nsays so" in json.loads(bad_line)["traceback"]
    else:
        assert "event=run job=refresh outcome=done" in good_line
        assert 'error="RuntimeError: a test"' in bad_line
        assert "Traceback" in bad_line


def test_the_databases_clock_stepped_back(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease and a pause that end far in the future are given up: the lease within its length, the pause at once."""
    monkeypatch.setattr(jobs, "LEASE", 0.5)
    db.execute(
        "update usage.job set failures = 1, retry_at = now() + interval '1 day' where name in ('nightly', 'refresh')"
    )
    db.execute("update usage.job set holder = 'gone', lease_until = now() + interval '1 day'")
    make_nightly_due(db)
    one, log = scheduler(db)

    def caught_up() -> bool:
        wake(one)
        return ("nightly", "done") in log.runs()

    until(caught_up)
    assert set(log.runs()) <= {("nightly", "done"), ("refresh", "done")}
    assert not failed(db)
    until(lambda: jobs.claim(db.own, db.settings, "claim", "a test", name="exclusive"))


def test_who_is_at_work_keeps_the_lease_when_the_clock_steps_back(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a holder that is gone is given up: one at work extends the lease that was shortened."""
    monkeypatch.setattr(jobs, "LEASE", 1.0)
    lease = "select lease_until from usage.job where name = 'exclusive'"
    with jobs.exclusive(db.own, db.settings, "purge"):
        db.execute("update usage.job set lease_until = now() + interval '1 day' where name = 'exclusive'")
        shortened = until(
            lambda: (
                jobs.claim(db.own, db.settings, "claim", "another", name="exclusive")
                or db.scalar("select lease_until from usage.job where name = 'exclusive' and lease_until < now() + interval '1 hour'")
            )
        )  # fmt: skip
        assert isinstance(shortened, datetime)
        until(lambda: db.scalar(lease) > shortened + timedelta(seconds=1.5))
        assert jobs.claim(db.own, db.settings, "claim", "another", name="exclusive") is None


def test_a_refresh_by_hand_mends_a_failure(db: Database) -> None:
    """What failed for the scheduler and went well by hand is no problem any more, and not due at once."""
    db.insert("2026-03-01 00:00+00")
    db.execute(
        "update usage.job set failures = 3, last_error = 'a test says so', retry_at = now() where name = 'refresh'"
    )
    assert run(db.dsn, "refresh").returncode == 0
    assert not failed(db)
    one, log = scheduler(db)
    wake(one)
    assert log.runs() == []
