"""A database that is dumped without schema usage, and one that is replicated as a whole, in both directions."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from aggregator import embedded, frontier, migrations
from aggregator.status import read_status
from tests.harness import Database, compare, snapshot
from tests.integration.sources import program
from tests.upgrades.conftest import SETTINGS, app_of, change, create_app, fill, server_bin, settled


def tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one of the server's programs as a client."""
    return subprocess.run(
        [program(arguments[0]), *arguments[1:]], capture_output=True, text=True, timeout=120, check=False
    )


def test_dump_of_the_hosts_schema_alone(server: str, db: Database, tmp_path: Path) -> None:
    """pg_restore reports the triggers and nothing else; the table works without them, and is attached as a new one."""
    fill(db)
    db.refresh()
    change(db)
    name, file = f"{db.name}_public", str(tmp_path / "dump")
    assert tool("pg_dump", "-Fc", "-n", "public", "-f", file, "-d", db.dsn).returncode == 0
    db.execute(f"create database {name} template template0 encoding 'UTF8'")
    copy = Database(server, name, "UTC", {})
    try:
        copy.execute("drop schema public")
        restored = tool("pg_restore", "-d", copy.dsn, file)
        # 15 and 16 try the triggers' mode too: four more of the same.
        errors = [line for line in restored.stderr.splitlines() if "ERROR" in line]
        assert restored.returncode == 1
        assert errors
        assert all('"usage' in line or "usage_" in line for line in errors), errors
        assert copy.scalar("select count(*) from pg_trigger where not tgisinternal") == 0
        count = "select count(*) from public.resource_usage_log"
        assert copy.scalar(count) == db.scalar(count)
        change(copy)  # writers do not miss what is not there
        copy.execute("create schema oracle")
        dumped = tool("pg_dump", "-n", "oracle", "-d", db.dsn).stdout
        assert (
            subprocess.run(
                [program("psql"), "-d", copy.dsn], input=dumped, capture_output=True, text=True, check=False
            ).returncode
            == 0
        )
        migrations.upgrade(copy.settings)
        copy.attach()
        copy.compare()
        settled(copy)
        change(copy)
        settled(copy)
    finally:
        copy.close()
        db.execute(f"drop database if exists {name} with (force)")


@pytest.fixture
def pair() -> Iterator[tuple[Database, Database]]:
    """Two servers: one with an attached and refreshed database, one without anything."""
    settings = {**SETTINGS, "wal_level": "logical", "max_logical_replication_workers": "8", "max_sync_workers_per_subscription": "4",
                "wal_retrieve_retry_interval": "'100ms'"}  # fmt: skip
    with (
        embedded.temporary_server(server_bin(), settings) as one,
        embedded.temporary_server(server_bin(), settings) as two,
    ):
        first = create_app(one)
        fill(first, days=30)
        with psycopg.connect(two.dsn(), autocommit=True) as connection:
            connection.execute("create database app template template0 encoding 'UTF8'")
        second = app_of(two.dsn())
        yield first, second
        for db in (first, second):
            db.close()


def publish(db: Database, what: str = "for all tables") -> None:
    db.execute(f"create publication everything {what}")


def subscribe(db: Database, to: Database, options: str = "copy_data = true") -> None:
    """Subscribe to all that another server publishes, and await the copy."""
    db.execute(f"create subscription everything connection '{to.dsn}' publication everything with ({options})")
    deadline = time.monotonic() + 60
    while db.scalar("select count(*) from pg_subscription_rel where srsubstate <> 'r'"):
        assert time.monotonic() < deadline, db.execute(
            "select srrelid::regclass::text, srsubstate from pg_subscription_rel"
        )
        time.sleep(0.05)


def exact(db: Database) -> None:
    """Compare while somebody else truncates: no snapshot may be older than that, or it does not see the table truly."""
    with snapshot(db.connection):
        db.execute(f"lock table {db.source} in access share mode")
        compare(db.connection, db.zone)


def caught_up(db: Database, source: Database) -> None:
    """Await that a subscriber has applied all; what it says meanwhile is never wrong."""
    at = source.scalar("select pg_current_wal_lsn()::text")
    deadline = time.monotonic() + 60
    while source.scalar(
        "select coalesce(bool_and(confirmed_flush_lsn < %s::pg_lsn), true) from pg_replication_slots", (at,)
    ):
        assert time.monotonic() < deadline, "the subscriber does not catch up"
        exact(db)
        time.sleep(0.02)
    exact(db)


def copy_schema(of: Database, to: Database) -> None:
    dumped = tool("pg_dump", "-s", "--no-publications", "--no-subscriptions", "-d", of.dsn)
    assert dumped.returncode == 0, dumped.stderr
    result = subprocess.run([program("psql"), "-q", "-v", "ON_ERROR_STOP=1", "-d", to.dsn], input=dumped.stdout,
                            capture_output=True, text=True, check=False)  # fmt: skip
    assert result.returncode == 0, result.stderr


def unsubscribe(db: Database) -> None:
    """Drop the subscription, and set the host's own sequence, as everybody must after a switch-over."""
    db.execute("alter subscription everything disable")
    db.execute("drop subscription everything")
    db.execute("select setval('public.resource_usage_log_id_seq', (select max(id) from public.resource_usage_log))")


def worked_on(db: Database, copy: Database) -> None:
    """Late changes, refreshes and a truncation on one server; on its copy answers are right all the time."""
    for _ in range(2):
        change(db)
        db.compare()
        caught_up(copy, db)
        db.refresh()
        caught_up(copy, db)
    change(db)
    caught_up(copy, db)
    db.execute("truncate public.resource_usage_log")
    fill(db, days=20)
    caught_up(copy, db)
    db.compare()
    db.refresh()
    change(db)
    caught_up(copy, db)


def switched_over(old: Database, new: Database) -> None:
    """The copy becomes the one that is written to, and the other its copy; both are exact at once.

    After attach and a repair it is as good as any.
    """
    unsubscribe(new)
    old.execute("drop publication everything")
    publish(new)
    subscribe(old, new, "copy_data = false")
    change(new)
    new.compare()
    caught_up(old, new)
    new.execute("truncate public.resource_usage_log")
    fill(new, days=20)
    new.compare()
    caught_up(old, new)
    assert new.attach(hourly=False).changed
    new.compare()
    new.refresh()
    new.compare()
    assert new.verify(repair=True).trusted
    settled(new)
    change(new)
    settled(new)
    caught_up(old, new)


def test_the_whole_database_is_replicated_there_and_back(pair: tuple[Database, Database]) -> None:
    """Readers of the copy are exact all the time; after switching over, attach and a repair, it is the other way round."""
    first, second = pair
    first.attach(hourly=True)
    first.refresh()
    change(first)
    publish(first)
    assert any("FOR ALL TABLES" in warning for warning in first.attach(hourly=False).warnings)
    copy_schema(first, second)
    subscribe(second, first)
    worked_on(first, second)
    assert second.scalar("select usage.doubt()") is not None
    assert read_status(second.own, second.settings).problems != ()
    switched_over(first, second)
    worked_on(second, first)
    switched_over(second, first)


def test_a_subscriber_with_rollups_of_its_own(pair: tuple[Database, Database]) -> None:
    """Where the host's tables alone are published, the subscriber's own capture sees what is applied: exact, and trusted."""
    first, second = pair
    first.attach()
    first.refresh()
    publish(first, "for tables in schema public")
    second.connection.execute(b"drop schema public")
    dumped = tool("pg_dump", "-s", "-n", "public", "-n", "oracle", "--no-publications", "-d", first.dsn).stdout
    subprocess.run([program("psql"), "-q", "-d", second.dsn], input=dumped, capture_output=True, text=True, check=False)
    migrations.upgrade(second.settings)
    second.attach()
    subscribe(second, first)
    settled(second)
    for _ in range(3):
        change(first)
        caught_up(second, first)
        settled(second)
    first.execute("truncate public.resource_usage_log")
    fill(first, days=10)
    caught_up(second, first)
    settled(second)
    unsubscribe(second)
    change(second)
    settled(second)


def test_a_subscriber_that_believes_what_it_is_told(pair: tuple[Database, Database]) -> None:
    """One with the publisher's own trust and sequences (as pg_createsubscriber makes it) does not count late changes twice."""
    first, second = pair
    first.attach()
    first.refresh()
    publish(first)
    copy_schema(first, second)
    subscribe(second, first)
    caught_up(second, first)
    # As if it were a physical copy, in which all oids are alike.
    second.execute(
        "update usage.state set source_oid = 'public.resource_usage_log'::regclass, fingerprint = null, storage = null;"
        "update usage.state set fingerprint = usage.fingerprint();"
        "select setval('usage.frontier_seq', (select (extract(epoch from frontier) * 1000000)::bigint from usage.state));"
        "delete from usage.late_change"
    )
    assert second.scalar("select usage.doubt()") is None
    second.compare()
    change(first)
    caught_up(second, first)
    assert second.scalar("select count(*) from usage.late_change") == first.scalar(
        "select count(*) from usage.late_change"
    )
    second.compare()
    assert second.scalar("select usage.doubt()") is None
    first.refresh()
    caught_up(second, first)
    assert second.scalar("select usage.doubt()") is not None
    assert second.scalar("select usage.doubt()") != frontier.BEHIND
