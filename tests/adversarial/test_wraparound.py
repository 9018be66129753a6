"""Transaction ids near and across 2^31 and 2^32, another epoch, and a server that gives none any more."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import psycopg
import pytest

from aggregator import embedded
from tests.adversarial.conftest import NewServer
from tests.cli.test_cli import one_line, run
from tests.faults.test_kill import database, new_database_of
from tests.harness import Database

pytestmark = pytest.mark.long

SEGMENT = 32 * 4 * 8192
"""Transactions in a file of pg_xact, each of which is so many pages of 8 kB."""
WINDOWS = [("-infinity", None, None), ("now-30", "now-3", None)]


@pytest.fixture
def server(new_server: NewServer) -> embedded.Server:
    """A server all of whose databases can be vacuumed."""
    server = new_server(max_prepared_transactions="5", autovacuum="off")
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("update pg_database set datallowconn = true")
    return server


def _freeze(server: embedded.Server) -> None:
    """Let no row of any database have an id that the next ones would take for the future."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        names = [row[0] for row in connection.execute("select datname from pg_database").fetchall()]
    for name in names:
        with psycopg.connect(server.dsn(name), autocommit=True) as connection:
            connection.execute("vacuum (freeze, truncate false)")  # to truncate takes an id


def _go_to(server: embedded.Server, xid: int, *options: str) -> None:
    """Let the next transaction have an id, as if all before it had been used."""
    server.stop()
    segment = server.data / "pg_xact" / f"{xid // SEGMENT:04X}"
    if not segment.exists():
        segment.write_bytes(bytes(SEGMENT // 4))
        segment.chmod(0o600)
        if server.user is not None:
            shutil.chown(segment, server.user)
    server.run("pg_resetwal", "-D", str(server.data), "-x", str(xid), *options)
    server.start()


def _next_id(db: Database) -> int:
    """The 64 bits of a new transaction's id."""
    return int(db.scalar("select pg_current_xact_id()::text"))


def _write(db: Database) -> None:
    """An event at the tail, a late one, a correction, and one that ceases to be."""
    for age in ("0 s", "1 hour", "9 days", "40 days"):
        db.execute(
            "insert into public.resource_usage_log (resource_type, detail, created_at)"
            " values ('tts', '{\"characters\": 3}', now() - %s::interval)", (age,)
        )  # fmt: skip
    db.execute(
        "update public.resource_usage_log set detail = '{\"characters\": 4}' where id = (select max(id) from public.resource_usage_log)"
    )
    db.execute("delete from public.resource_usage_log where id = (select min(id) from public.resource_usage_log)")


def _settled(db: Database) -> None:
    db.compare(WINDOWS)
    assert db.refresh().status == "done"
    db.compare(WINDOWS)
    assert db.scalar("select usage.doubt()") is None
    assert db.verify().differences == 0


def _cross(db: Database, boundary: int) -> None:
    """Writers with ids on both sides of a boundary: those of before are waited for, and named, after it too."""
    connections: list[psycopg.Connection[object]] = [
        db.connect(autocommit=False, application_name=f"writer {n}") for n in range(2)
    ]
    insert = b"insert into public.resource_usage_log (resource_type, detail, created_at) values ('tts', '{\"characters\": 9}', now())"
    for n, connection in enumerate(connections):
        connection.execute(insert)
        if n == 0:
            connection.execute(b"prepare transaction 'of before'")
            connection.rollback()
    assert _next_id(db) < boundary
    while _next_id(db) < boundary + 20:
        pass
    later = db.connect(autocommit=False, application_name="writer of after")
    later.execute(insert)
    result = db.refresh(wait_timeout=0.05)
    assert result.status == "partial"
    assert [text.partition(", ")[0] for text in result.waited_for] == [
        *sorted([f"pid {connections[1].info.backend_pid} (writer 1)", f"pid {later.info.backend_pid} (writer of after)"]),
        "prepared transaction 'of before'",
    ]  # fmt: skip
    db.compare(WINDOWS)
    waits: list[Callable[[], object]] = [
        connections[1].commit,
        later.commit,
        lambda: db.execute("commit prepared 'of before'"),
    ]
    for left, end in zip((2, 1, 0), waits, strict=True):
        end()
        db.compare(WINDOWS)
        result = db.refresh(wait_timeout=0.05)
        assert len(result.waited_for) == left
    _write(db)
    _settled(db)


def test_ids_across_wraparound(server: embedded.Server) -> None:
    """Across 2^31, across 2^32 into the next epoch, and in an epoch far from there: capture, waits, folds and reads hold."""
    db = new_database_of(server)
    db.attach()
    _write(db)
    _settled(db)
    for step, boundary in ((2**30, None), (2**31 - 60, 2**31), (3 * 2**30, None), (2**32 - 60, 2**32)):
        db.close()
        _freeze(server)
        _go_to(server, step)
        db = database(server)
        assert db.scalar("select usage.doubt()") is None
        db.compare(WINDOWS)
        _write(db)
        if boundary is not None:
            _cross(db, boundary)
        _settled(db)
    assert _next_id(db) > 2**32
    db.close()
    _freeze(server)
    _go_to(server, 3000, "-e", "7")
    db = database(server)
    assert 7 * 2**32 < _next_id(db) < 7 * 2**32 + 2**31
    db.compare(WINDOWS)
    _write(db)
    _settled(db)
    db.close()


def test_a_server_that_gives_no_ids(new_server: NewServer) -> None:
    """Reads are exact, for they take none; a refresh ends in one line that says what to do; nothing is lost afterwards."""
    # The server would mend itself, which is to take longer than the test.
    server = new_server(
        autovacuum="off", autovacuum_vacuum_cost_delay="'100ms'", autovacuum_vacuum_cost_limit="1",
        vacuum_failsafe_age="2100000000", autovacuum_max_workers="1",
    )  # fmt: skip
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("update pg_database set datallowconn = true")
    db = new_database_of(server)
    db.attach()
    _write(db)
    _settled(db)
    _write(db)
    db.close()
    _freeze(server)
    _go_to(server, 2**31 - 1_000_000)
    db = database(server)
    db.compare(WINDOWS)
    with pytest.raises(psycopg.errors.ProgramLimitExceeded):
        _write(db)
    one_line(run(db.dsn, "refresh"), 1, "not accepting commands that assign new")
    db.compare(WINDOWS)
    db.close()
    _freeze(server)
    db = database(server)
    db.compare(WINDOWS)
    _write(db)
    _settled(db)
    db.close()
