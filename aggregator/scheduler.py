"""The scheduler: a refresh every few minutes and the nightly run, in the foreground, for years.

APScheduler wakes it up, and where the host's clock stepped back a watch does; what is due, and who does it, the database
says (``usage.job``): so several schedulers on several hosts do the work once, a nightly run that was missed is caught up at
the next waking, and clocks of hosts do not matter. Each job has a worker, so that a long nightly run keeps no refresh
waiting. A run that fails is tried again after a pause that doubles, and never ends the scheduler. One log line for each run.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Literal, get_args
from zoneinfo import ZoneInfo

import psycopg
import structlog
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from aggregator import fold, jobs, migrations, nightly, refresh, status
from aggregator.db import Connection, connect, one_line
from aggregator.errors import AggregatorError, Stopped
from aggregator.monitoring import Monitor
from aggregator.settings import Settings

JobName = Literal["nightly", "refresh"]
JOBS: tuple[JobName, ...] = get_args(JobName)

_FIRST_PAUSE = 5.0
"""Seconds after a first failure; then twice as long each time, up to the interval of refreshes (nightly: an hour)."""

_LONGEST_NIGHTLY_PAUSE = 3600.0
_MISSED = 1.5
"""Intervals after which a worker that nobody woke is woken by the watch."""

_STALLED = 3
"""Wake-ups that may be missed before the scheduler says that it is not alive, while no run is under way."""


def make_logger(log_format: Literal["text", "json"]) -> structlog.stdlib.BoundLogger:
    """Return a logger of one line an event on stderr, with an instant in UTC."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer()
            if log_format == "json"
            else structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], sort_keys=False),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    # APScheduler's own complaints: a run that was missed because the last one is not over is no news.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    logger: structlog.stdlib.BoundLogger = structlog.get_logger()
    return logger


@dataclass
class _Worker:
    """One job's thread: written by it alone, read by the watch and the health endpoint."""

    woke_at: float
    """By time.monotonic(), when it last ended; at the start, when it was made."""
    at_work: bool = False
    failures: int = 0
    """In a row, of attempts to get at the database."""


class Scheduler:
    """Does what is due, until it is stopped."""

    def __init__(self, settings: Settings, logger: Any = None) -> None:
        self._settings = settings
        self._log = logger or make_logger(settings.log_format)
        self._stop = threading.Event()
        self._workers: dict[JobName, _Worker] = {job: _Worker(time.monotonic()) for job in JOBS}
        self._limits_saved = False
        self.monitor = Monitor(settings, self._is_alive)
        self._clock = BackgroundScheduler(
            executors={job: ThreadPoolExecutor(max_workers=1) for job in JOBS},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            timezone=timezone.utc,
        )

    def run(self) -> None:
        """Run until SIGTERM or SIGINT (main thread only) or ``stop``; end after the current step.

        Raises AggregatorError at the start for what no retry mends: a wrong setting, a port that is taken.
        """
        settings = self._settings
        _ = settings.conninfo  # raises without a database
        self.stop_at(signal.SIGTERM, signal.SIGINT)
        port = self.monitor.start()
        self._log.info(
            "scheduler started", pid=os.getpid(), refresh_every=settings.refresh_every, nightly_at=settings.nightly_at,
            **({} if port is None else {"metrics": f"{settings.metrics_host}:{port}"}),
        )  # fmt: skip
        for job in JOBS:
            self._wake_from_now_on(job)
            # A scheduler that was killed on this host may have left a lease behind.
            self._wake_in(jobs.LEASE + 1, job)
        self._clock.start()
        try:
            while not self._stop.wait(settings.refresh_every / 2):
                self._wake_missed()
        finally:
            self._clock.shutdown(wait=True)  # for the current step of each worker
            self.monitor.stop()
            self._log.info("scheduler stopped", pid=os.getpid())

    def stop(self) -> None:
        """End ``run`` after the current step; from any thread."""
        self._stop.set()

    def stop_at(self, *signals: signal.Signals) -> None:
        """Let signals stop it, if this is the main thread."""
        if threading.current_thread() is threading.main_thread():
            for number in signals:
                # By a thread: the one that is interrupted may hold the lock of the event it waits for.
                signal.signal(number, lambda *_: threading.Thread(target=self.stop).start())

    @property
    def stopping(self) -> bool:
        """Whether ``stop`` was called."""
        return self._stop.is_set()

    def wake(self, job: JobName) -> None:
        """Do a job if it is due: the nightly run, which refreshes too, or a refresh."""
        if self._stop.is_set():
            return
        worker = self._workers[job]
        worker.at_work = True
        try:
            with connect(self._settings, name="aggregator schedule") as connection:
                migrations.require_current(connection)
                self._prepare(connection)
                self._run_if_due(connection, job)
            worker.failures = 0
        except Exception as exc:  # noqa: BLE001 -- nothing may end the scheduler
            # The database is away, not migrated, not attached: nothing could be recorded there.
            worker.failures += 1
            pause = min(_FIRST_PAUSE * 2 ** min(worker.failures - 1, 20), self._settings.refresh_every)
            self._log.error("cannot work", job=job, **_what_failed(exc), retry_in=round(pause, 1))
            self._wake_in(pause, job)
        finally:
            worker.woke_at = time.monotonic()
            worker.at_work = False

    def _prepare(self, connection: Connection) -> None:
        """Once connected: let the database know our limits, and wake at the nightly hour of its zone."""
        if self._limits_saved:
            return
        status.save_limits(connection, self._settings)
        with fold.looking(connection) as state:
            zone = state.time_zone
        hour, minute = self._settings.nightly_at.split(":")
        # Only to be woken near the due instant. What is due is the database's to say: see claim_nightly in jobs.sql.
        trigger = CronTrigger(hour=int(hour), minute=int(minute), second=1, timezone=ZoneInfo(zone))
        self._add_waking("nightly", "at its hour", trigger=trigger)
        self._limits_saved = True

    def _add_waking(self, job: JobName, when: str, **options: Any) -> None:
        self._clock.add_job(self.wake, args=[job], id=f"{job} {when}", executor=job, replace_existing=True, **options)

    def _wake_from_now_on(self, job: JobName) -> None:
        every = IntervalTrigger(seconds=self._settings.refresh_every)
        self._add_waking(job, "regularly", trigger=every, next_run_time=datetime.now(timezone.utc))

    def _wake_in(self, seconds: float, job: JobName) -> None:
        if not self._stop.is_set():
            at = datetime.now(timezone.utc) + timedelta(seconds=seconds)
            self._add_waking(job, "again", trigger=DateTrigger(at))

    def _wake_missed(self) -> None:
        """Wake who should have been: APScheduler goes by the host's clock, and sleeps on where that stepped back."""
        for job, worker in self._workers.items():
            if not worker.at_work and time.monotonic() - worker.woke_at > _MISSED * self._settings.refresh_every:
                self._wake_from_now_on(job)

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped

    def _is_alive(self) -> bool:
        patience = _STALLED * self._settings.refresh_every + 30
        return all(worker.at_work or time.monotonic() - worker.woke_at < patience for worker in self._workers.values())

    def _longest_pause(self, job: JobName) -> float:
        return _LONGEST_NIGHTLY_PAUSE if job == "nightly" else self._settings.refresh_every

    def _run_if_due(self, connection: Connection, job: JobName) -> None:
        """Claim a job if it is due, run it, and record how it went."""
        when: dict[str, object] = (
            {"at": self._settings.nightly_at} if job == "nightly" else {"every": self._settings.refresh_every}
        )
        claimed = jobs.claim(
            connection, self._settings, f"claim_{job}", "scheduler", longest=self._longest_pause(job), **when
        )
        if claimed is not None:
            holder, due = claimed
            with jobs.held(connection, self._settings, job, holder):
                self.run_job(connection, job, due)

    def run_job(self, connection: Connection, job: JobName, due: str | None = None, *, again: bool = True) -> bool:
        """Run a job whose lease is held, count and log it, and record it; return whether it went well.

        ``again``: wake for another try if it fails.
        """
        began = time.monotonic()
        work: Callable[[Connection], tuple[str, dict[str, Any], str | None]] = (
            self._nightly if job == "nightly" else self._refresh
        )
        error: str | None
        failure: dict[str, str] = {}
        try:
            outcome, facts, error = work(connection)
        except Stopped:
            outcome, facts, error = "stopped", {}, None
        except Exception as exc:  # noqa: BLE001 -- whatever it is: recorded, counted, tried again later
            failure = _what_failed(exc)
            outcome, facts, error = "failed", {}, failure["error"]
        seconds = time.monotonic() - began
        self.monitor.runs.labels(job, outcome).inc()
        self.monitor.seconds.labels(job).observe(seconds)
        facts = {"job": job, "outcome": outcome, "seconds": round(seconds, 3), **facts}
        if error is not None:
            pause = self._record_failure(connection, job, error)
            facts = {**facts, "error": error, **failure}
            if again:
                self._wake_in(pause, job)
                facts["retry_in"] = round(pause, 1)
            self._log.error("run", **facts)
            return False
        if outcome != "stopped":
            jobs.record_done(connection, job, due)
        self._log.info("run", **facts)
        return True

    def _record_failure(self, connection: Connection, job: JobName, error: str) -> float:
        """Record a failure and return the pause until it is tried again; the database may be what failed."""
        pauses = {"first": _FIRST_PAUSE, "longest": self._longest_pause(job)}
        for attempt in range(2):
            try:
                if attempt == 0:
                    return jobs.record_failed(connection, job, error, **pauses)
                with connect(self._settings, name="aggregator schedule") as fresh:
                    return jobs.record_failed(fresh, job, error, **pauses)
            except (psycopg.Error, AggregatorError):
                continue
        return _FIRST_PAUSE

    def _refresh(self, connection: Connection) -> tuple[str, dict[str, Any], str | None]:
        found = refresh.refresh(connection, self._settings, check=self._check)
        self.monitor.events.inc(found.events)
        self.monitor.late_changes.inc(found.late_changes)
        facts: dict[str, Any] = {
            "steps": found.steps, "events": found.events, "late_changes": found.late_changes, "frontier": found.frontier,
        }  # fmt: skip
        if found.waited_for:
            facts["waited_for"] = "; ".join(found.waited_for)
        if found.notes:
            facts["notes"] = "; ".join(found.notes)
        return found.status, facts, None

    def _nightly(self, connection: Connection) -> tuple[str, dict[str, Any], str | None]:
        found = nightly.run(connection, self._settings, check=self._check)
        self.monitor.events.inc(found.events)
        self.monitor.late_changes.inc(found.late_changes)
        self.monitor.differences.inc(found.differences)
        self.monitor.purged.inc(found.purged or 0)
        facts: dict[str, Any] = {
            "events": found.events, "late_changes": found.late_changes, "views": ",".join(found.views),
            "verified": ",".join(found.verified), "differences": found.differences, "purged": found.purged,
            "pruned": found.pruned, "analyzed": ",".join(found.analyzed),
        }  # fmt: skip
        if found.notes:
            facts["notes"] = "; ".join(found.notes)
        if found.errors:
            return "failed", facts, "; ".join(found.errors)
        return "partial" if found.partial else "done", facts, None


def _what_failed(exc: Exception) -> dict[str, str]:
    """Return what the log line says of an exception: one line, and the traceback of one that nobody expects."""
    if isinstance(exc, (AggregatorError, psycopg.Error)):
        return {"error": one_line(exc)}
    return {
        "error": f"{type(exc).__name__}: {one_line(exc)}",
        "traceback": "".join(traceback.format_exception(exc)),
    }


def run_once(settings: Settings) -> bool:
    """Run the nightly run now, whether it is due or not, for cron; return whether it went well.

    SIGTERM ends it after the current step (main thread only). Raises Stopped then, and BusyError where another host is at it.
    """
    scheduler = Scheduler(settings)
    scheduler.stop_at(signal.SIGTERM)
    with connect(settings, name="aggregator schedule") as connection:
        migrations.require_current(connection)
        status.save_limits(connection, settings)
        claimed = jobs.claim(connection, settings, "claim", "schedule --once", name="nightly")
        if claimed is None:
            raise jobs.BusyError(
                "the nightly run is under way elsewhere (aggregator status says where); nothing was done"
            )
        with jobs.held(connection, settings, "nightly", claimed[0]):
            good = scheduler.run_job(connection, "nightly", again=False)
    if good and scheduler.stopping:
        raise Stopped
    return good
