"""A source that Citus distributes over workers: sums are shipped and not rows, answers equal the raw query, a worker may be lost.

Runs whenever AGGREGATOR_TEST_CITUS_DSN names a database of a coordinator with two workers at least, as a superuser (no
password asked between the nodes). Each test has a database of its own on all of them. Where all servers are on this machine
a worker is really killed and started again, by way of its server's own programs.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import conninfo, sql
from pydantic import SecretStr

from aggregator import capture, migrations, nightly, purge, rebuild, refresh, status, step, verify
from aggregator.db import connect
from aggregator.errors import UsageError
from tests.harness import COLLECTIONS, SCHEMA, Database, Hooked, Mismatch, compare, snapshot

DSN = os.environ.get("AGGREGATOR_TEST_CITUS_DSN")
pytestmark = pytest.mark.skipif(DSN is None, reason="AGGREGATOR_TEST_CITUS_DSN does not name a Citus coordinator")

ROOT = Path(__file__).resolve().parents[2]
SHARDS = 8
LATE = "capture is lookback: a late change of the last 3 days appears at the next refresh, an older one at aggregator verify --repair"

AWKWARD = [
    '{"tokens_in": "12.5", "tokens_out": " 7 "}', '{"tokens_in": "n/a"}', '{"tokens_in": true, "job_type": "a"}', "[1]", "null",
    '{"tokens_in": 1e400}', '{"tokens_in": 0.1234567890123456789, "model_level": ""}', '{"job_type": "' + "x" * 300 + '"}',
    '{"tokens_in": null, "tokens_out": -3}',
]  # fmt: skip

_numbers = itertools.count()


def _on(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


class Cluster:
    """The coordinator and its workers, by the DSNs of one database."""

    def __init__(self) -> None:
        assert DSN is not None
        with psycopg.connect(DSN, autocommit=True) as connection:
            nodes = connection.execute(
                "select groupid = 0, nodename, nodeport from pg_dist_node where noderole = 'primary' order by 1 desc, 3"
            ).fetchall()
        self.coordinator = [(host, port) for is_coordinator, host, port in nodes if is_coordinator]
        self.workers = [(host, port) for is_coordinator, host, port in nodes if not is_coordinator]
        assert len(self.workers) > 1, "a coordinator (citus_set_coordinator_host) with two workers at least"

    def dsn(self, database: str, host: str | None = None, port: int | None = None) -> str:
        changes: dict[str, Any] = {"dbname": database} | ({"host": host, "port": port} if host else {})
        return conninfo.make_conninfo(DSN or "", **changes)

    def create(self, database: str) -> None:
        for node in [(None, None), *self.workers]:
            _on(self.dsn("postgres", *node), f"create database {database} template template0 encoding 'UTF8'")
            _on(self.dsn(database, *node), "create extension citus")
        host, port = self.coordinator[0]
        _on(
            self.dsn(database),
            f"select citus_set_coordinator_host('{host}', {port})",
            *(f"select citus_add_node('{host}', {port})" for host, port in self.workers),
        )

    def drop(self, database: str) -> None:
        for node in [*self.workers, (None, None)]:
            _on(self.dsn("postgres", *node), f"drop database if exists {database} with (force)")


class Worker:
    """One of the workers, to be killed and started again; on this machine only."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster = cluster
        self.dsn = cluster.dsn("postgres", *cluster.workers[number])
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            row = connection.execute(
                "select host(inet_server_addr()) in ('127.0.0.1', '::1'), current_setting('data_directory'),"
                " (select setting from pg_config() where name = 'BINDIR')"
            ).fetchone()
        assert row is not None
        local, self.data, self.programs = row
        if not local:
            pytest.skip("the workers are not on this machine: nobody may kill them")

    def kill(self) -> None:
        """As a crash: all its processes at once."""
        with contextlib.suppress(psycopg.Error):
            _on(self.dsn, "copy (select 1) to program 'kill -QUIT $(head -1 postmaster.pid)'")

    def start(self) -> None:
        """By the coordinator's server, which is the same user."""
        _on(
            self.cluster.dsn("postgres"),
            f"copy (select 1) to program 'while [ -e {self.data}/postmaster.pid ]; do sleep 0.05; done;"
            f" {self.programs}/pg_ctl -D {self.data} -l {self.data}.log -w start >/dev/null'",
        )


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def empty(cluster: Cluster) -> Iterator[Database]:
    """A migrated database whose source is distributed over the workers; not attached."""
    name = f"aggregator_citus_{os.getpid()}_{next(_numbers)}"
    cluster.create(name)
    _on(
        cluster.dsn(name),
        SCHEMA,
        f"select create_distributed_table('public.resource_usage_log', 'id', shard_count := {SHARDS})",
    )
    server = cluster.dsn(name).replace(f"dbname={name}", "")
    db = Database(server, name, "Europe/Oslo", {"capture": "lookback", "lookback_grace": 0})
    migrations.upgrade(db.settings)
    yield db
    db.close()
    cluster.drop(name)


@pytest.fixture
def db(empty: Database) -> Database:
    """Attached, filled with 20,000 events of the last 40 days and awkward ones, and refreshed."""
    fill(empty, 20_000)
    empty.attach()
    empty.compare()
    empty.refresh()
    return empty


def fill(db: Database, events: int, days: int = 40) -> None:
    db.execute(
        "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
        " select case when n %% 6 > 0 then ('00000000-0000-0000-0000-00000000000' || n %% 6)::uuid end,"
        "  (array['ai', 'whisper', 'tts', 'cas', 'other'])[1 + n %% 5],"
        "  jsonb_build_object('tokens_in', n * 1.1, 'tokens_out', n, 'duration_seconds', n * 0.37, 'characters', n,"
        "                     'size_bytes', n * 1000, 'job_type', 'job ' || n %% 3),"
        "  now() - n * interval '1 day' * %s / %s"
        " from generate_series(1, %s) n",
        (days, events, events),
    )
    for number, detail in enumerate(AWKWARD if days > 10 else ()):
        db.insert(_ago(db, 1.5 + number), "ai", number % 7, detail)


def _ago(db: Database, days: float) -> str:
    return str(db.scalar("select (now() - %s * interval '1 day')::text", (days,)))


def _change(db: Database, days: float) -> None:
    """Insert, update and delete events on many shards, from days ago on, within the hour."""
    where = f"created_at >= now() - interval '1 day' * {days} and created_at < now() - interval '1 day' * {days} + interval '1 hour'"
    db.execute(
        f'update public.resource_usage_log set detail = detail || \'{{"characters": 3.5, "tokens_in": 9}}\' where {where} and id % 3 = 0'
    )
    db.execute(f"delete from public.resource_usage_log where {where} and id % 3 = 1")
    db.insert(_ago(db, days - 0.01), "tts", 2, '{"characters": 11}')


def _compare_windows(db: Database, *windows: Any) -> None:
    with snapshot(db.connection):
        compare(db.connection, db.zone, list(windows), source=db.source, live=False)


def _sums_plan(db: Database) -> dict[str, Any]:
    """The plan of what a fold asks the workers, run."""
    query = sql.SQL(capture.CITUS["sums_query"]).format(source=sql.SQL(db.source)).as_string(db.connection)
    bounds = ("now() - interval '30 days'", "now()", f"'{db.zone}'")
    for number, value in enumerate(bounds, 1):
        query = query.replace(f"${number}", f"({value})")
    plan: dict[str, Any] = db.scalar(f"explain (analyze, format json) {query}")[0]["Plan"]
    return plan


def test_refused_with_triggers(empty: Database) -> None:
    """In one line that says what to do."""
    empty.settings.capture = "triggers"
    with pytest.raises(
        UsageError, match=r"is distributed by Citus, which can have no triggers: attach it with --capture lookback"
    ):
        empty.attach()


def test_sums_are_shipped_and_not_rows(db: Database) -> None:
    """EXPLAIN of a fold's query: every worker adds up its shards, by day and key; only that comes to the coordinator."""
    plan = _sums_plan(db)
    assert plan["Node Type"] == "Aggregate"
    shipped = plan["Plans"][0]
    assert (shipped["Node Type"], shipped["Custom Plan Provider"]) == ("Custom Scan", "Citus Adaptive")
    job = shipped["Distributed Query"]["Job"]
    assert job["Task Count"] == SHARDS
    remote = job["Tasks"][0]["Remote Plan"][0][0]["Plan"]
    assert remote["Node Type"] == "Aggregate"
    assert "resource_usage_log_created_at_idx" in json.dumps(remote), "by the index of its shard"
    events = db.scalar("select count(*) from public.resource_usage_log where created_at >= now() - interval '30 days'")
    groups = plan["Actual Rows"]
    assert shipped["Actual Rows"] <= groups * SHARDS
    assert shipped["Actual Rows"] < events / 2, (shipped["Actual Rows"], events)
    shards = db.scalar(
        "select count(distinct nodeport) from citus_shards where table_name = 'public.resource_usage_log'::regclass"
    )
    assert shards >= 2


def test_a_fold_asks_for_sums_only(db: Database) -> None:
    """What the workers are asked during a first build: never for rows of events."""
    db.execute("alter system set citus.log_remote_commands = off")
    asked: list[str] = []
    own = connect(db.settings)
    own.add_notice_handler(lambda notice: asked.append(notice.message_primary or ""))
    capture.detach(own, db.settings)
    capture.attach(own, db.settings)
    own.execute("set citus.log_remote_commands = on")
    refresh.refresh(own, db.settings.model_copy(update={"step_events": 5000}))
    own.close()
    reads = [text for text in asked if "resource_usage_log_" in text and "SELECT" in text.upper()]
    assert len(reads) >= SHARDS
    for text in reads:
        assert "GROUP BY" in text or "min(" in text, text
    db.compare()


def test_the_promise(db: Database) -> None:
    """Late changes within the lookback: unseen, and said so; seen from the next refresh on. Older ones at verify --repair."""
    db.compare()
    _change(db, 1.5)
    with pytest.raises(Mismatch):
        db.compare()
    assert db.execute("select exact, reasons from usage.receipt('-infinity')") == [(False, [LATE])]
    db.refresh()
    db.compare()
    _change(db, 12)
    db.refresh()
    with pytest.raises(Mismatch):
        db.compare()
    _compare_windows(db, ("now-3", None, None), ("now-1", None, None))
    assert db.verify(repair=True).differences > 0
    db.compare()
    assert db.verify().differences == 0
    db.insert("now", "tts", 2, '{"characters": 11}')
    db.compare()
    tail = db.scalar("select frontier::text from usage.state")
    assert db.execute("select exact, reasons from usage.receipt(%s::timestamptz)", (tail,)) == [(True, [])]


def test_commands(db: Database) -> None:
    """status, nightly, rebuild of a changed metric; purge says what to do instead."""
    found = status.read_status(db.own, db.settings)
    assert (found.capture, found.lookback_days, found.problems) == ("lookback", 3, ())
    _change(db, 5)
    run = nightly.run(db.own, db.settings)
    assert run.errors == []
    assert run.differences > 0
    db.compare()
    db.execute("update usage.metric set value_key = 'tokens_out' where resource_type = 'tts'")
    assert "a metric was changed" in db.scalar("select usage.doubt()")
    rebuild.rebuild(db.own, db.settings)
    db.execute("update usage.metric set value_key = 'characters' where resource_type = 'tts'")
    rebuild.rebuild(db.own, db.settings)
    db.compare()
    with pytest.raises(UsageError, match="events cannot be deleted from public.resource_usage_log: delete them where"):
        purge.purge(db.own, db.settings, "10d")
    assert not db.attach().changed
    assert db.scalar("select count(*) from usage.rejected_event") > 0


def test_roles(db: Database) -> None:
    """The schema is a superuser's; a refresher that is none, and may log in on the workers, refreshes; a reader reads."""
    script = (ROOT / "deploy" / "roles.sql").read_text(encoding="utf-8").replace(":source", db.source)
    logins = {f"citus_{role}_{os.getpid()}": role for role in ("usage_refresher", "usage_reader")}
    db.execute(script)
    try:
        for login, role in logins.items():
            db.execute(f"create role {login} login in role {role}")
        refresher, reader = (
            db.settings.model_copy(update={"database_url": SecretStr(conninfo.make_conninfo(db.dsn, user=login))})
            for login in logins
        )
        fill(db, 500, 1)
        with connect(refresher) as own:
            refresh.refresh(own, refresher)
            assert verify.verify(own, refresher).differences == 0
        db.compare()
        with connect(reader) as own:
            since = _ago(db, 10.3)
            read = "select * from usage.by_collection(%s::timestamptz, '2100-01-01')"
            assert own.execute(read.encode(), (since,)).fetchall() == db.execute(read, (since,))
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                own.execute("select from public.resource_usage_log")
    finally:
        for login in logins:
            db.execute(f"drop role if exists {login}")


def test_schema_from_before_citus(empty: Database) -> None:
    """Citus hands on what is created while it is there; attach makes known to the workers what is older."""
    migrations.downgrade(empty.settings)
    with connect(empty.settings) as own:
        own.execute("set citus.enable_ddl_propagation = off")
    empty.execute(f"alter database {empty.name} set citus.enable_ddl_propagation = off")
    migrations.upgrade(empty.settings)
    empty.execute(f"alter database {empty.name} reset citus.enable_ddl_propagation")
    fill(empty, 500)
    empty.attach()
    empty.refresh()
    empty.compare()


def test_under_writers(db: Database) -> None:
    """Writers on all shards beside refreshes: afterwards one refresh makes all of it right."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            with psycopg.connect(db.dsn, autocommit=True) as connection:
                for turn in itertools.count():
                    if stop.is_set():
                        return
                    connection.execute(
                        b"insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
                        b" select %s, 'tts', jsonb_build_object('characters', n), clock_timestamp() - n * interval '5 hours'"
                        b" from generate_series(0, 12) n",
                        (COLLECTIONS[number],),
                    )
                    connection.execute(
                        b"update public.resource_usage_log set detail = '{\"characters\": 5.5}'"
                        b" where id %% 97 = %s and created_at > now() - interval '2 days'",
                        (turn % 97,),
                    )
                    connection.execute(
                        b"delete from public.resource_usage_log where id %% 101 = %s and created_at > now() - interval '2 days'",
                        (turn % 101,),
                    )
        except BaseException as exc:  # noqa: BLE001 -- told by the test
            failures.append(exc)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(8):
        db.refresh()
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    db.refresh()
    db.compare()
    assert db.verify().differences == 0


@pytest.mark.parametrize("when", ["before the sums", "during the sums", "between repair and fold"])
def test_a_worker_lost_and_come_back(db: Database, cluster: Cluster, when: str) -> None:
    """The refresh fails in one line and nothing is lost or counted twice; once the worker is back the next one is right."""
    worker = Worker(cluster, 1)
    fill(db, 5000, 1)
    _change(db, 1.5)
    frontier = db.scalar("select frontier from usage.state")
    dying = threading.Timer(0.3 if when == "during the sums" else 0, worker.kill)
    block = {
        "during the sums": verify.SQL["bounds"],  # of the repair; before that none of ours takes time
        "between repair and fold": step.SQL["estimate"],
    }.get(when, capture.CITUS["add_raw"])

    def die() -> None:
        dying.start()
        if when != "during the sums":
            dying.join()

    if when == "during the sums":
        _slow_down(db)
    try:
        with pytest.raises(psycopg.Error):
            refresh.refresh(Hooked(db.own, {block: die}), db.settings)  # type: ignore[arg-type]
        assert db.scalar("select frontier from usage.state") == frontier
        # What is rolled up is answered without the worker.
        until = db.scalar("select (date_trunc('day', now(), %s) - interval '10 days')::text", (db.zone,))
        rolled = "select sum(event_count) from usage.by_collection('-infinity', %s::timestamptz)"
        assert db.scalar(rolled, (until,)) == db.scalar(
            "select sum(event_count) from usage.daily where day < usage.local_day(%s::timestamptz, 'Europe/Oslo')",
            (until,),
        )
        told = subprocess.run(
            [sys.executable, "-m", "aggregator", "refresh"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, "AGGREGATOR_DATABASE_URL": db.dsn},
        )  # fmt: skip
        assert (told.returncode, told.stdout) == (1, ""), told
        assert len(told.stderr.strip().splitlines()) == 1, told.stderr
        assert "Traceback" not in told.stderr
        problems = "select p.code from usage.problems('1 hour', '3 days', 1000000, 1, '1 minute') p"
        assert db.execute(problems) == [("failed",)]
    finally:
        dying.join()
        worker.start()
    db.refresh()
    db.compare()
    assert db.verify().differences == 0
    assert db.execute(problems) == []


def _slow_down(db: Database) -> None:
    """Let the workers take half a millisecond for each number, so that there is time to die in."""
    definition = db.scalar("select pg_get_functiondef('usage.parsed_number(jsonb)'::regprocedure)")
    db.execute(definition.replace("usage.parsed_number", "usage.parsed_number_at_once").replace("%", "%%"))
    db.execute(
        "create or replace function usage.parsed_number(v jsonb) returns numeric language plpgsql immutable parallel safe as"
        " 'begin perform pg_sleep(0.0005); return usage.parsed_number_at_once(v); end'"
    )


def test_mutation_rows_shipped(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold that reads events through usage.event_between() is right as well, and is caught for what it ships."""
    monkeypatch.setitem(
        capture.CITUS,
        "add_raw",
        "insert into pg_temp.delta"
        " select 'daily', usage.local_day(e.created_at, 'Europe/Oslo'), e.collection_id, usage.key_text(e.resource_type),"
        "        usage.key_text(e.detail ->> 'job_type'), usage.key_text(e.detail ->> 'model_level'), count(*),"
        "        coalesce(sum(usage.in_bounds(usage.parsed_number(e.detail -> m.value_key))), 0),"
        "        coalesce(sum(usage.in_bounds(usage.parsed_number(e.detail -> m.secondary_key))), 0), 0, null"
        "   from usage.event_between(%(from)s::timestamptz, %(to)s::timestamptz) e"
        '   left join usage.metric m on m.resource_type = e.resource_type collate "C"'
        "  group by 1, 2, 3, 4, 5, 6",
    )
    with pytest.raises(AssertionError):
        test_a_fold_asks_for_sums_only(db)
