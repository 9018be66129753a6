"""What goes wrong around us: cut connections, server settings, full disks, clocks, upgrades. After each the identity holds."""

from __future__ import annotations

import functools
import operator
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import pytest

from aggregator import db as db_module
from aggregator import matviews, migrations, nightly, purge, rebuild, refresh, status
from aggregator.db import connect
from aggregator.errors import AggregatorError
from aggregator.settings import Settings
from tests.faults.shadow import SHADOW, check, prepare
from tests.harness import LONG, Database
from tests.scheduler.test_scheduler import Log, scheduler, wake


@pytest.fixture
def prepared(new_database: Any) -> Database:
    db: Database = new_database(step_events=100, purge_batch=20, wait_timeout=5)
    prepare(db)
    db.attach()
    return db


def more_events(db: Database) -> None:
    """Tail events and late ones, in both tables."""
    for age in ("0 s", "1 s", "3 days", "40 days"):
        db.execute(
            "with written as (insert into public.resource_usage_log (resource_type, detail, created_at)"
            " values ('tts', '{\"characters\": 3}', now() - %s::interval) returning *) insert into "
            f"{SHADOW} select * from written",
            (age,),
        )


WORK: dict[str, Callable[[Any, Settings], object]] = {
    "refresh": refresh.refresh,
    "views": lambda connection, _settings: matviews.refresh_views(connection),
    "rebuild": rebuild.rebuild,
    "purge": lambda connection, settings: purge.purge(connection, settings, "60d"),
}


class Failing:
    """A connection whose N-th statement fails, as with a full disk."""

    def __init__(self, connection: Any, at: int, error: type[psycopg.Error]) -> None:
        self._connection = connection
        self._left = at
        self._error = error

    def execute(self, *arguments: Any, **options: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            raise self._error("a test says so")
        return self._connection.execute(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    @property
    def failed(self) -> bool:
        return self._left <= 0


@pytest.mark.parametrize("work", WORK)
def test_an_error_at_every_statement(prepared: Database, work: str) -> None:
    """No space left, at each statement in turn: nothing is half done, and the next run completes."""
    db = prepared
    if work != "refresh":
        db.refresh()
    at = 0
    while True:
        at += 1 if LONG or at < 10 else 7
        more_events(db)
        if work == "rebuild":
            db.execute("update usage.state set trusted = false, distrust_reason = 'a test says so', repair_day = null")
        with connect(db.settings) as connection:
            failing = Failing(connection, at, psycopg.errors.DiskFull)
            with suppress(psycopg.errors.DiskFull):
                WORK[work](failing, db.settings)
        check(db)
        if not failing.failed:
            break
    WORK[work](db.own, db.settings)
    check(db)
    assert db.scalar("select usage.doubt() is null")


@contextmanager
def cutting(db: Database) -> Iterator[None]:
    """Terminate the sessions of what is at work, again and again."""
    over = threading.Event()

    def cut() -> None:
        with psycopg.connect(db.dsn, autocommit=True) as connection:
            while not over.wait(0.03):
                connection.execute(
                    b"select pg_terminate_backend(pid) from pg_stat_activity"
                    b" where application_name = 'aggregator victim' and datname = current_database()"
                )

    thread = threading.Thread(target=cut)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("work", WORK)
def test_a_connection_that_is_cut(prepared: Database, work: str) -> None:
    """In mid-step: an error, nothing lost, and the next run on another connection completes."""
    db = prepared
    if work != "refresh":
        db.refresh()
    for _ in range(6):
        more_events(db)
        with cutting(db), pytest.raises((psycopg.Error, AggregatorError)):
            while True:
                with connect(db.settings, name="aggregator victim") as connection:
                    WORK[work](connection, db.settings.model_copy(update={"step_events": 5, "purge_batch": 2}))
                    more_events(db)
        check(db)
    WORK[work](db.own, db.settings)
    check(db)


def test_settings_of_the_server(new_database: Any) -> None:
    """Whatever a DBA set as defaults for the database, our sessions set their own; everything completes."""
    db: Database = new_database(step_events=50, purge_batch=20)
    prepare(db)
    db.attach()
    for name, value in {
        "statement_timeout": "100ms",
        "lock_timeout": "1ms",
        "idle_in_transaction_session_timeout": "200ms",
        "default_transaction_isolation": "serializable",
        "default_transaction_read_only": "on",
        "timezone": "Asia/Kathmandu",
        "datestyle": "German",
        "intervalstyle": "sql_standard",
        "search_path": "nowhere",
        "standard_conforming_strings": "off",
        "work_mem": "64kB",
    }.items():
        db.execute(f"alter database {db.name} set {name} = '{value}'")
    if db.connection.info.server_version >= 170000:
        db.execute(f"alter database {db.name} set transaction_timeout = '500ms'")
    with connect(db.settings) as connection:
        with db_module.transaction(connection):
            connection.execute("select pg_sleep(0.7)")  # longer than what the server would allow
        assert refresh.refresh(connection, db.settings).status == "done"
        assert nightly.run(connection, db.settings.model_copy(update={"keep": "60d"})).errors == []
        assert rebuild.rebuild(connection, db.settings).differences == 0
        assert status.read_status(connection, db.settings).healthy
    check(db)


def test_a_full_tablespace(new_database: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The rollups' disk is full: the refresh fails, answers stay right, and with space again it completes."""
    db: Database = new_database(step_events=1_000_000)
    prepare(db, days=30, each=1)
    db.attach()
    db.refresh()
    with connect(db.settings) as connection:
        # As ENOSPC shows: an error of class 53 from any statement that extends a relation.
        db.execute(
            "create function public.no_space() returns trigger language plpgsql as $$ begin raise disk_full using message = 'No space left on device'; end $$;"
            "create trigger no_space before insert on usage.daily_total for each row execute function public.no_space()"
        )
        more_events(db)
        with pytest.raises(psycopg.errors.DiskFull):
            refresh.refresh(connection, db.settings)
        check(db)
        found = status.read_status(connection, db.settings)
        assert any(problem.code == "failed" and "No space left" in problem.text for problem in found.problems)
        db.execute("drop function public.no_space() cascade")
        assert refresh.refresh(connection, db.settings).status == "done"
    check(db)


def test_the_clock_stepped_back(prepared: Database) -> None:
    """It was an hour ahead: refreshes go on from where they were, jobs are due by the clock that is, nothing is lost."""
    db = prepared
    db.execute("select setval('usage.frontier_seq', (extract(epoch from now() + interval '1 hour') * 1e6)::bigint)")
    db.refresh()
    more_events(db)
    check(db)
    db.refresh()
    more_events(db)
    check(db)
    problems = status.read_status(db.own, db.settings).problems
    assert [problem.code for problem in problems] == ["ahead"]
    assert "--reset-frontier" in problems[0].remedy
    db.execute("update usage.job set started_at = now() + interval '1 hour', done_for = now() + interval '1 day'")
    one, log = scheduler(db)
    wake(one)
    assert len(log.runs()) == 1
    rebuild.reset_frontier(db.own)
    check(db)
    assert status.read_status(db.own, db.settings).healthy


def test_an_upgrade_while_a_scheduler_runs(prepared: Database) -> None:
    """A schema that is behind or ahead: the scheduler does nothing, says what to run, and goes on by itself afterwards."""
    db = prepared
    one, log = scheduler(db)
    version = db.scalar("select version_num from usage.alembic_version")
    for other, words in (("0001", "run aggregator migrate"), ("9999", "upgrade aggregator")):
        db.execute("update usage.alembic_version set version_num = %s", (other,))
        wake(one)
        assert log.lines[-1]["event"] == "cannot work"
        assert words in log.lines[-1]["error"]
        assert log.runs() == []
    db.execute("update usage.alembic_version set version_num = %s", (version,))
    wake(one)
    assert log.runs() == [("refresh", "done")]
    check(db)


def test_two_schedulers_and_a_refresh_by_hand(prepared: Database) -> None:
    """All at once, each with its own connection: the work is done, nothing counts twice."""
    db = prepared
    logs: list[Log] = []
    threads = []
    for _ in range(2):
        one, log = scheduler(db)
        logs.append(log)
        threads.append(threading.Thread(target=wake, args=(one,)))

    def by_hand() -> None:
        with db_module.connect(db.settings) as connection:
            refresh.refresh(connection, db.settings)

    threads.append(threading.Thread(target=by_hand))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert functools.reduce(operator.iadd, (log.runs() for log in logs), []) == [("refresh", "done")]
    check(db)


def test_migrate_waits_for_nobody_for_long(prepared: Database) -> None:
    """A reader holds what a migration changes: migrate gives up in time and changes nothing; without him it is done."""
    db = prepared
    settings = db.settings.model_copy(update={"lock_timeout": 0.1, "lock_retries": 1})
    migrations.downgrade_to("0001", settings)
    reader = db.connect(autocommit=False)
    reader.execute(b"select * from usage.state")
    with pytest.raises(AggregatorError, match="no lock on schema usage"):
        migrations.upgrade(settings)
    assert db.scalar("select version_num from usage.alembic_version") == "0001"
    reader.rollback()
    assert migrations.upgrade(settings) == ("0001", migrations.head())
    db.refresh()
    check(db)
