"""Everything through PgBouncer in transaction mode: no session of ours outlives its transaction."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from aggregator import capture, metrics, migrations, nightly, purge, rebuild, refresh, seal, usage_overview, verify
from aggregator.db import connect
from aggregator.fold import NotAttachedError
from aggregator.scheduler import Scheduler
from aggregator.settings import Settings
from tests.harness import Database
from tests.scheduler.test_scheduler import Log

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@pytest.fixture
def pooled(server: str, new_database: Any) -> Iterator[tuple[Database, Settings]]:
    """An empty database with the source, and settings that reach it through a pooler with two server sessions."""
    if PGBOUNCER is None:
        pytest.skip("pgbouncer is not installed here, so nothing was tried through it")
    db: Database = new_database(lock_timeout=1.0, step_events=20, purge_batch=20)
    migrations.downgrade(db.settings)
    target = conninfo_to_dict(db.dsn)
    user = "postgres" if any(entry.pw_name == "postgres" for entry in pwd.getpwall()) else "nobody"
    folder = Path(tempfile.mkdtemp(prefix="aggregator-pgbouncer-"))
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n{db.name} = host={target['host']} user={target.get('user', 'postgres')}"
        + (f" port={target['port']}" if "port" in target else "")
        + f"\n[pgbouncer]\npool_mode = transaction\nauth_type = any\nlisten_addr =\nlisten_port = 6432\nunix_socket_dir = {folder}\n"
        "default_pool_size = 2\nserver_reset_query =\n"
    )
    if os.geteuid() == 0:
        shutil.chown(folder, user)
    process = subprocess.Popen(
        [PGBOUNCER, str(folder / "pgbouncer.ini")],
        user=user if os.geteuid() == 0 else None, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        dsn = f"host={folder} port=6432 dbname={db.name} user=postgres"
        deadline = time.monotonic() + 20
        while True:
            try:
                psycopg.connect(dsn).close()
                break
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, "pgbouncer does not answer"
                time.sleep(0.05)
        yield db, db.settings.model_copy(update={"database_url": SecretStr(dsn)})
    finally:
        process.terminate()
        process.wait(timeout=20)
        shutil.rmtree(folder, ignore_errors=True)


def leaks(settings: Settings) -> list[Any]:
    """What is left in the pooler's server sessions, each asked in a transaction of its own."""
    found = []
    clients = [psycopg.connect(settings.conninfo, prepare_threshold=None) for _ in range(2)]
    for client in clients:  # both at once, so that each has another server session
        row = client.execute(
            "select current_setting('lock_timeout'), current_setting('statement_timeout'), current_setting('search_path'),"
            " current_setting('row_security'), current_setting('jit') in ('on', 'off'), current_setting('default_transaction_isolation'),"
            " (select count(*) from pg_class where relpersistence = 't'), (select count(*) from pg_locks where locktype = 'advisory'),"
            " (select count(*) from pg_prepared_statements)"
        ).fetchone()
        found.append(row)
    for client in clients:
        client.close()
    return found


CLEAN = ("0", "0", '"$user", public', "on", True, "read committed", 0, 0, 0)


def test_everything_through_a_transaction_pooler(pooled: tuple[Database, Settings]) -> None:
    """Migrate to purge, several refreshers at once, the scheduler: right answers, and nothing left in any session."""
    db, settings = pooled
    migrations.upgrade(settings)
    with connect(settings) as connection:
        capture.attach(connection, settings)
    for days in (0, 1, 10, 40, 80, 120):
        db.execute(
            "insert into public.resource_usage_log (resource_type, detail, created_at) select 'ai', '{\"tokens_in\": 2}',"
            " now() - make_interval(days => %s, mins => n) from generate_series(1, 20) n",
            (days,),
        )
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with connect(settings) as mine:
                for _ in range(3):
                    refresh.refresh(mine, settings)
        except BaseException as exc:  # noqa: BLE001 -- handed to the main thread
            failures.append(exc)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    db.compare()
    with connect(settings) as connection:
        assert nightly.run(connection, settings).errors == []
        db.compare()
        assert rebuild.rebuild(connection, settings).differences == 0
        db.execute(
            "update usage.daily_fact set total_value = total_value + 1 where day = (select max(day) from usage.daily)"
        )
        assert verify.verify(connection, settings, repair=True).differences > 0
        db.compare()
        assert metrics.set_metric(connection, metrics.Metric("ai", "tokens_in", "tokens_in"))
        assert rebuild.rebuild(connection, settings).trusted
        assert metrics.set_metric(connection, metrics.Metric("ai", "tokens_in", "tokens_out"), force=True)
        assert rebuild.rebuild(connection, settings).trusted
        db.compare()
        before = db.execute("select * from usage.by_collection('-infinity')")
        assert purge.purge(connection, settings, "60d").events == 40
        assert db.execute("select * from usage.by_collection('-infinity')") == before
        seal.seal(connection, settings, db.scalar("select (now() at time zone 'UTC' - interval '30 days')::date::text"))
        assert db.execute("select * from usage.by_collection('-infinity')") == before
    log = Log()
    Scheduler(settings, log).wake("refresh")
    assert [line["event"] for line in log.lines if line["event"] != "run"] == []
    with psycopg.connect(settings.conninfo, prepare_threshold=None) as client:
        assert usage_overview(client, days=30).receipt.exact
    assert leaks(settings) == [CLEAN, CLEAN]
    assert migrations.downgrade(settings, discard_sealed=True)
    assert leaks(settings) == [CLEAN, CLEAN]


def test_an_error_leaves_nothing_either(pooled: tuple[Database, Settings]) -> None:
    """After commands that failed the pooler's sessions are as they were."""
    db, settings = pooled
    migrations.upgrade(settings)
    with connect(settings) as connection, pytest.raises(capture.SourceError):
        capture.attach(connection, settings.model_copy(update={"source_table": "public.nothing"}))
    with connect(settings) as connection, pytest.raises(NotAttachedError):
        refresh.refresh(connection, settings)
    assert db.scalar("select source is null from usage.state")
    assert leaks(settings) == [CLEAN, CLEAN]
