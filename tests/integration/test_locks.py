"""The host's transactions are never refused, blocked for long or chosen as a deadlock's victim because of us."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from aggregator import fold, refresh, verify
from aggregator.errors import AggregatorError, Stopped
from tests.harness import COLLECTIONS, Database, compare, snapshot
from tests.integration.sources import Background, await_true, doubt, pending, run, settled

ROUNDS = int(os.environ.get("AGGREGATOR_STRESS_ROUNDS", "5"))
"""Of a host's DDL, and of refreshes beside it."""

INSERT = "insert into {source} (resource_type, detail, created_at) values ('ai', '{\"tokens_in\": 2}', %s)"


def _blocked(db: Database, pid: int) -> bool:
    return bool(db.scalar("select cardinality(pg_blocking_pids(%s)) > 0", (pid,)))


def _our_pids(db: Database) -> list[int]:
    rows = db.execute(
        "select pid from pg_stat_activity where datname = current_database() and application_name = 'aggregator'"
        " and cardinality(pg_blocking_pids(pid)) > 0"
    )
    return [pid for (pid,) in rows]


@pytest.mark.parametrize("command", ["refresh", "verify", "repair"])
def test_partitions_locked_in_the_opposite_order(partitioned: Database, command: str) -> None:
    """A host that locks a late partition first and an early one a while later gets both; we give way and end exact.

    Were we to wait for the late one while holding the early one, the host, which waits last, would be the victim.
    """
    if command == "repair":
        partitioned.execute("update usage.state set trusted = false, distrust_reason = 'a test says so'")
    host = partitioned.connect(autocommit=False)
    host.execute(b"lock table public.events_new in access exclusive mode")
    works: dict[str, Callable[[], object]] = {
        "refresh": lambda: partitioned.refresh(wait_timeout=60),
        "verify": partitioned.verify,
        "repair": lambda: partitioned.verify(repair=True),
    }
    ours = Background(works[command])
    # Past our own deadlock check, if we wait for a lock: from then on it is the host's that would find the deadlock.
    deadline = time.monotonic() + 1.5
    await_true(lambda: time.monotonic() > deadline or not ours.alive, "the deadlock timeout", 30)
    for partition in ("events_mid_1", "events_mid_0", "events_old", "events"):
        host.execute(f"lock table public.{partition} in access exclusive mode".encode())
    host.execute(b"delete from public.events where note like 'event 1%'")
    host.commit()
    ours.join()
    partitioned.compare()
    if command == "repair":
        assert doubt(partitioned) is None
    settled(partitioned)


def test_reads_beside_a_locked_partition(partitioned: Database) -> None:
    """While the host's DDL holds an old partition, reads answer that need no raw event of it, from the rollups."""
    everything = partitioned.execute("select * from usage.by_collection('-infinity')")
    host = partitioned.connect(autocommit=False)
    host.execute(b"lock table public.events_old, public.events_mid_0 in access exclusive mode")
    partitioned.execute("set lock_timeout = '2s'")
    with snapshot(partitioned.connection):
        windows = [("now-5", None, None), ("now-9", "now-2", None), ("now-5", None, COLLECTIONS[0])]
        compare(
            partitioned.connection, "UTC", windows, source=partitioned.source, titles=partitioned.titles, live=False
        )
        assert partitioned.execute("select * from usage.by_collection('-infinity')") == everything
    assert doubt(partitioned) is None
    assert partitioned.scalar("select healthy from usage.freshness")
    host.rollback()
    settled(partitioned)


def test_ddl_beside_refreshes(partitioned: Database) -> None:
    """A host that truncates partitions in the opposite order, alters and makes tables meets no error beside refreshes."""
    rounds = 0
    stop = threading.Event()
    with partitioned.connect() as connection:

        def host() -> None:
            nonlocal rounds
            while not stop.is_set():
                with connection.transaction():
                    connection.execute(b"truncate public.events_new")
                    connection.execute(b"select pg_sleep(0.02)")
                    connection.execute(b"truncate public.events_old")
                for statement in (
                    "alter table public.events add column extra float8 default random()",
                    "insert into public.events (resource_type, detail, created_at) select 'ai', '{\"tokens_in\": 1}',"
                    " now() - n * interval '13 hours' from generate_series(1, 40) n",
                    "alter table public.events drop column extra",
                    "select public.add_partition('events_next', -30, -40)",
                    "delete from public.events where id % 3 = 0",
                    "truncate public.events_mid",
                    "drop table public.events_next",
                ):
                    connection.execute(statement.encode())
                rounds += 1

        thread = Background(host)
        refreshes = 0
        deadline = time.monotonic() + 30 * ROUNDS
        try:
            while thread.alive and (rounds < ROUNDS or refreshes < ROUNDS) and time.monotonic() < deadline:
                partitioned.refresh(step_events=30)
                refreshes += 1
        finally:
            stop.set()
            thread.join()
        assert rounds >= ROUNDS
        assert refreshes >= ROUNDS
    partitioned.refresh()
    settled(partitioned, trusted=False)
    # A partition that came and went is the one thing to leave a doubt.
    if doubt(partitioned) is not None:
        assert "is gone" in str(doubt(partitioned))
        assert partitioned.verify(repair=True).trusted
    settled(partitioned)


def test_writers_do_not_wait(filled: Database) -> None:
    """While a refresh waits for an open writer, other writers and readers go on."""
    slow = filled.connect(autocommit=False)
    slow.execute(INSERT.replace("{source}", filled.source).encode(), ("now",))
    before = filled.scalar("select last_value from usage.frontier_seq")
    ours = Background(filled.refresh)
    await_true(lambda: filled.scalar("select last_value from usage.frontier_seq") > before, "the advance")
    filled.execute("set lock_timeout = '1ms'")
    for _ in range(20):
        run(filled, "delete from {source} where id = (select max(id) from {source})")
        filled.execute(INSERT.replace("{source}", filled.source), ("now",))
        filled.compare()
    assert ours.alive
    assert _our_pids(filled) == []
    slow.commit()
    assert ours.join().status == "done"
    settled(filled)


def test_writer_open_for_long(filled: Database) -> None:
    """A refresh that stops waiting is partial, names the writer, and folds late changes only; the next one is done."""
    writer = filled.connect(autocommit=False, application_name="the slow importer")
    writer.execute(INSERT.replace("{source}", filled.source).encode(), ("now",))
    run(filled, "delete from {source} where note like 'event 3%'")
    assert pending(filled) == 11
    frontier = filled.scalar("select frontier from usage.state")
    result = filled.refresh(wait_timeout=0.3)
    assert result.status == "partial"
    assert len(result.waited_for) == 1
    assert result.waited_for[0].startswith(f"pid {writer.info.backend_pid} (the slow importer), open for ")
    assert (result.late_changes, result.events) == (11, 0)
    assert pending(filled) == 0
    assert filled.scalar("select frontier from usage.state") == frontier
    assert doubt(filled) is None
    filled.compare()
    recorded = filled.execute("select status, waited_for from usage.refresh_run order by id desc limit 1")
    assert recorded == [("partial", result.waited_for[0])]
    writer.commit()
    filled.compare()
    result = filled.refresh()
    assert (result.status, result.waited_for) == ("done", ())
    settled(filled)


def test_prepared_transaction_open_for_long(filled: Database) -> None:
    """A prepared transaction is waited for as a session is, and named by its gid."""
    gid = f"{filled.name} it's"
    with filled.connect(autocommit=False) as writer:
        writer.execute(INSERT.replace("{source}", filled.source).encode(), ("now",))
        quoted = gid.replace("'", "''")
        writer.execute(f"prepare transaction '{quoted}'".encode())
        writer.rollback()
    result = filled.refresh(wait_timeout=0.3)
    assert result.status == "partial"
    assert len(result.waited_for) == 1
    assert result.waited_for[0].startswith(f"prepared transaction '{quoted}', since ")
    filled.compare()
    with pytest.raises(AggregatorError, match="prepared transaction"):
        filled.execute("update usage.state set trusted = false, distrust_reason = 'a test says so'")
        verify.verify(filled.own, filled.settings.model_copy(update={"wait_timeout": 0.1}), repair=True)
    filled.execute(f"commit prepared '{quoted}'")
    assert filled.verify(repair=True).trusted
    settled(filled)


def test_readers_and_idle_transactions_are_not_waited_for(filled: Database) -> None:
    """Transactions that only read the source, or wrote elsewhere, hold up no refresh."""
    reader: Any = filled.connect(autocommit=False)
    reader.execute(f"select count(*) from {filled.source}".encode())
    elsewhere = filled.connect(autocommit=False)
    elsewhere.execute(b"update public.nodes set title = 'x' where id is not null")
    elsewhere.execute(f"select count(*) from {filled.source}".encode())
    run(filled, "delete from {source} where note = 'event 3'")
    assert filled.refresh(wait_timeout=0).status == "done"
    filled.compare()
    elsewhere.commit()
    reader.commit()
    settled(filled)


def test_a_forgotten_lock_on_the_state(filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that keeps the state locked is named in the end, hangs nobody for good, and a stop is heard meanwhile."""
    tries: list[int] = []

    def check() -> None:
        tries.append(1)
        if len(tries) > 2:
            raise Stopped

    with filled.connect(autocommit=False, application_name="psql left open") as forgotten:
        forgotten.execute(b"select from usage.state for update")
        with pytest.raises(Stopped):
            refresh.refresh(filled.own, filled.settings, check=check)
        monkeypatch.setattr(fold, "_PATIENCE", 0.0)
        with pytest.raises(AggregatorError, match=rf"held by pid {forgotten.info.backend_pid} \(psql left open\)"):
            filled.refresh()
        filled.compare()
    filled.refresh()
    filled.compare()
