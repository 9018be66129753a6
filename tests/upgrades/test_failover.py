"""A primary that is lost: a promoted standby without the last transactions, and recovery to a moment inside a refresh."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from aggregator import embedded, fold, refresh
from aggregator import frontier as frontier_module
from tests.faults.shadow import SHADOW, Writer, check, prepare
from tests.faults.test_standby import Standby
from tests.harness import Database, Hooked, some
from tests.upgrades.conftest import SETTINGS, app_of, create_app, server_bin, settled


def ended(db: Database) -> None:
    """What the survivor says is exact at once, after writes, and after a refresh; and verify finds nothing."""
    check(db)
    db.insert("2026-02-04 13:00+00", "tts", 1, '{"characters": 7}')
    db.execute(f"insert into {SHADOW} select * from public.resource_usage_log order by id desc limit 1")
    with Writer(db, 2) as writer:
        while writer.transactions < 5:
            check(db)
        assert db.refresh().status == "done"
        check(db)
    assert db.refresh().status == "done"
    check(db)
    settled(db)


class Refresher:
    """Refreshes in small steps, one after the other, until the server is gone."""

    def __init__(self, db: Database) -> None:
        self.runs = 0
        self._settings = db.settings.model_copy(update={"step_events": 7})
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        from aggregator.db import connect
        from aggregator.errors import AggregatorError

        try:
            with connect(self._settings) as connection:
                while True:
                    refresh.refresh(connection, self._settings)
                    self.runs += 1
        except (psycopg.Error, AggregatorError):
            return

    def join(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.mark.parametrize("seconds", [0.7, *(pytest.param(seconds, marks=pytest.mark.long) for seconds in (0.0, 1.6))])
def test_a_promoted_standby_that_lost_the_last_transactions(seconds: float) -> None:
    """Writers and refreshes run, the standby stops replaying, the primary is gone: what is there is exact, and goes on."""
    with embedded.temporary_server(server_bin(), SETTINGS) as server:
        db = create_app(server)
        prepare(db, days=60)
        db.attach(hourly=True)
        db.refresh()
        standby = Standby(server)
        copy = app_of(server.dsn().replace(" dbname", " port=5433 dbname"))
        try:
            refresher = Refresher(db)
            with Writer(db, 1) as writer:
                while writer.transactions < 20 or refresher.runs < 2:
                    check(copy)
                time.sleep(seconds / 4)  # another moment of the refresher's each time
                copy.execute("select pg_wal_replay_pause()")
                while copy.scalar("select pg_get_wal_replay_pause_state()") != "paused":
                    time.sleep(0.01)
                lost_from, runs = writer.transactions, refresher.runs
                while writer.transactions < lost_from + 20 or refresher.runs < runs + 1 + bool(seconds):
                    check(copy)
                server.stop("immediate")
                # Promoted while paused, a standby replays what it has received: without that it is really lost.
                lose_what_was_not_replayed(copy, standby)
                lost = writer.transactions
                copy.close()
                copy = app_of(standby.dsn("postgres"))
                writer.db = copy
                refresher.join()
                check(copy)
                while writer.transactions < lost + 5:
                    check(copy)
            ended(copy)
            print(f"{lost - lost_from} transactions were after the last one that was replayed")
        finally:
            copy.close()
            db.close()
            standby.stop()


def lose_what_was_not_replayed(copy: Database, standby: Standby) -> None:
    """Restart the standby without the log that it had received and not replayed, and promote it."""
    at = copy.scalar("select pg_last_wal_replay_lsn()::text")
    copy.close()
    standby.stop()
    with (standby.data / "postgresql.conf").open("a") as conf:
        conf.write(f"recovery_target_lsn = '{at}'\nrecovery_target_action = promote\nrecovery_target_inclusive = on\n"
                   "recovery_target_timeline = current\nprimary_conninfo = ''\n")  # fmt: skip
    standby._run("start")
    with psycopg.connect(standby.dsn("postgres"), autocommit=True) as connection:
        while connection.execute(b"select pg_is_in_recovery()").fetchone() == (True,):
            time.sleep(0.02)
        assert connection.execute(b"select pg_last_wal_replay_lsn() = %s::pg_lsn", (at,)).fetchone() is not None


MOMENTS: dict[str, str] = {
    "before the advance": frontier_module.SQL["advance"],
    "between advance and fold": fold.SQL["lock_state"],
    "within a step": refresh.SQL["set_frontier"],
    "after the sums of a step": refresh.SQL["record_step"],
    "at the end": refresh.SQL["finish_run"],
}


@pytest.fixture(scope="module")
def archive() -> Iterator[tuple[embedded.Server, dict[str, list[Any]]]]:
    """A server whose log is archived, a base backup of before a refresh in three steps, and restore points at moments of it."""
    with embedded.temporary_server(server_bin(), {**SETTINGS, "wal_level": "replica"}) as server:
        folder = server.folder / "archive"
        folder.mkdir()
        folder.chmod(0o777)
        with (server.data / "postgresql.conf").open("a") as conf:
            conf.write(f"archive_mode = on\narchive_command = 'cp %p {folder}/%f'\n")
        server.stop()
        server.start()
        db = create_app(server)
        prepare(db, days=30)
        db.attach(hourly=True)
        db.refresh()
        backup = server.folder / "backup"
        server.run("pg_basebackup", "-D", str(backup), "-c", "fast", "-h", str(server.folder), "-U", "postgres")
        points: dict[str, list[Any]] = {}

        def mark(name: str) -> Callable[[], None]:
            def make() -> None:
                # Somebody writes at that moment, so that there is something late, and something at the tail, after it too.
                write(db)
                db.execute("select pg_create_restore_point(%s)", (name,))
                points[name] = db.execute(f"select count(*) from {SHADOW}")[0:1]
                write(db)

            return make

        write(db)
        hooks = {statement: mark(name) for name, statement in MOMENTS.items()}
        refresh.refresh(Hooked(db.own, hooks), db.settings.model_copy(update={"step_events": 20}))  # type: ignore[arg-type]
        assert not hooks, list(hooks)
        assert set(points) == set(MOMENTS)
        between_steps(db, mark)
        write(db)
        check(db)
        db.execute("select pg_switch_wal()")  # and the stop waits until it is archived
        db.close()
        server.stop()
        yield server, points


def write(db: Database) -> None:
    """A late insert, a late delete and some events of now, to the source and its shadow."""
    db.execute(
        "with written as (insert into public.resource_usage_log (resource_type, detail, created_at)"
        " select 'tts', '{\"characters\": 3}', clock_timestamp() - make_interval(hours => n * 30 / 10) from generate_series(0, 9) n returning *)"
        f" insert into {SHADOW} select * from written;"
        "with gone as (delete from public.resource_usage_log where id in (select id from public.resource_usage_log"
        " where created_at < now() - interval '2 days' order by id limit 2) returning id)"
        f" delete from {SHADOW} s using gone where gone.id = s.id"
    )


def between_steps(db: Database, mark: Callable[[str], Callable[[], None]]) -> None:
    """One more refresh, with a restore point between its first step and its second."""
    for _ in range(5):
        write(db)
    steps: list[object] = []

    def progress(step: object) -> None:
        steps.append(step)
        if len(steps) == 1:
            mark("between two steps")()

    result = refresh.refresh(db.own, db.settings.model_copy(update={"step_events": 10}), progress=progress)
    assert result.steps > 1


@pytest.mark.parametrize("moment", some([*MOMENTS, "between two steps"], 3))
def test_recovery_to_a_moment_inside_a_refresh(
    archive: tuple[embedded.Server, dict[str, list[Any]]], moment: str
) -> None:
    """To a restore point that was made there: exact at once, after writes, and after the next refresh; nothing is missing."""
    server, points = archive
    data = server.folder / "recovered"
    shutil.copytree(server.folder / "backup", data)
    if server.user is not None:
        for path in [data, *data.rglob("*")]:
            shutil.chown(path, server.user)
    with (data / "postgresql.conf").open("a") as conf:
        conf.write(f"port = 5434\narchive_mode = off\nrestore_command = 'cp {server.folder}/archive/%f %p'\n"
                   f"recovery_target_name = '{moment}'\nrecovery_target_action = promote\n")  # fmt: skip
    (data / "recovery.signal").touch()
    log = str(server.folder / "recovered.log")
    server.run("pg_ctl", "-D", str(data), "-l", log, "-w", "start")
    try:
        db = app_of(server.dsn().replace(" dbname", " port=5434 dbname"))
        while db.scalar("select pg_is_in_recovery()"):
            time.sleep(0.02)
        assert db.execute(f"select count(*) from {SHADOW}") == points[moment]
        ended(db)
        db.close()
    finally:
        server.run("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
        shutil.rmtree(data)
