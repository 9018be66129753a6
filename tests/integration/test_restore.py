"""A database that was dumped and restored: exact at once, and trusted after a repair."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from aggregator import frontier, rebuild
from aggregator.status import read_status
from tests.harness import Database, compare, snapshot, some
from tests.integration.sources import Kind, doubt, fill, program, run, settled

SET_BACK = {
    "as dumped": "select 1",
    "to the minimum": "select setval('usage.frontier_seq', -210800000000000000)",
    "not called": "alter sequence usage.frontier_seq restart",
    "a day": "select setval('usage.frontier_seq', pg_sequence_last_value('usage.frontier_seq') - 86400000000)",
}


def _dump_restore(dsn_from: str, dsn_to: str, folder: Path, options: list[str]) -> None:
    file = folder / "dump"
    for command in (
        [program("pg_dump"), "-Fc", "-f", str(file), *options, "-d", dsn_from],
        [program("pg_restore"), *options, "-d", dsn_to, str(file)],
    ):
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        # What a newer program sets first, and an older server does not know: PostgreSQL 16 from npm has none of its own.
        errors = [
            line for line in result.stderr.splitlines() if "error: " in line and '"transaction_timeout"' not in line
        ]
        assert not errors, result.stderr
        assert result.returncode == 0 or "transaction_timeout" in result.stderr, result.stderr


@pytest.fixture
def restored(server: str, tmp_path: Path) -> Iterator[Callable[[Database, list[str]], Database]]:
    """A function that dumps a database and returns its copy, restored into a new one."""
    made: list[Database] = []

    def make(db: Database, options: list[str]) -> Database:
        name = f"{db.name}_restored"
        db.execute(f"create database {name} template template0 encoding 'UTF8'")
        target = f"{server} dbname={name}"
        _dump_restore(db.dsn, target, tmp_path, options)
        copy = Database(server, name, db.zone, {"source_table": db.source})
        made.append(copy)
        return copy

    yield make
    for copy in made:
        copy.close()
        with psycopg.connect(f"{server} dbname=postgres", autocommit=True) as connection:
            connection.execute(f"drop database if exists {copy.name} with (force)".encode())


def _open_to_public(db: Database) -> list[Any]:
    return db.execute(
        "select p.oid::regprocedure::text from pg_proc p where p.pronamespace = 'usage'::regnamespace"
        " and p.proname not in ('capture', 'capture_truncate') and has_function_privilege('public', p.oid, 'execute')"
    )


@pytest.mark.parametrize("set_back", some(SET_BACK, 2))
@pytest.mark.parametrize("options", [[], ["-x"]], ids=["all", "without privileges"])
@pytest.mark.parametrize("kind", ["plain", "partitioned"])
def test_restored(
    make_role: Callable[..., str],
    filled_database: Callable[[Kind], Database],
    restored: Callable[[Database, list[str]], Database],
    kind: Kind,
    options: list[str],
    set_back: str,
) -> None:
    """Reads of a copy are exact at once, writers work, a refresh goes on, and a repair brings trust back."""
    original = filled_database(kind)
    run(original, "delete from {source} where note like 'event 1%'")
    fill(original)
    copy = restored(original, options)
    copy.execute(SET_BACK[set_back])
    reason = doubt(copy)
    if set_back != "as dumped":
        assert reason is not None
    copy.compare()
    run(copy, "delete from {source} where note like 'event 2%'")
    fill(copy)
    copy.compare()
    settled(copy, trusted=False)
    run(copy, "update {source} set resource_type = 'cas' where note like 'event 3%'")
    settled(copy, trusted=False)
    reason = doubt(copy)
    if reason is not None:
        assert any(reason in str(problem) for problem in read_status(copy.own, copy.settings).problems)
    copy.attach()
    copy.compare()
    assert copy.verify(repair=True).trusted
    settled(copy)
    run(copy, "delete from {source} where note like 'event 4%'; truncate {source}")
    fill(copy)
    settled(copy)
    assert _open_to_public(copy) == []

    role = make_role()
    copy.execute(f"grant insert on {copy.source} to {role}")
    if kind == "partitioned":
        copy.execute(f"grant usage on sequence public.events_id to {role}")
    with copy.connect(user=role) as writer:
        writer.execute(f"insert into {copy.source} (resource_type, created_at) values ('ai', now())".encode())
        writer.execute(
            f"insert into {copy.source} (resource_type, created_at) values ('ai', now() - interval '1 day')".encode()
        )
    settled(copy)


def test_grants_are_missed(
    filled_database: Callable[[Kind], Database], restored: Callable[[Database, list[str]], Database]
) -> None:
    """status says that a dump without privileges lost what writers need, and attach restores it, though all else is as it was."""
    copy = restored(filled_database("plain"), ["-x"])
    assert _open_to_public(copy) != []
    assert any(
        "writers may not read the frontier sequences" in str(problem)
        for problem in read_status(copy.own, copy.settings).problems
    )
    copy.attach()
    assert _open_to_public(copy) == []
    assert not any("sequences" in str(problem) for problem in read_status(copy.own, copy.settings).problems)


def test_restored_seal(
    filled_database: Callable[[Kind], Database], restored: Callable[[Database, list[str]], Database]
) -> None:
    """In a copy whose seal sequence was set back, attach puts it right: a purge does not shrink history."""
    original = filled_database("plain")
    original.execute(
        "update usage.state set sealed_until = date_trunc('day', now(), 'UTC') - interval '15 days';"
        "select setval('usage.seal_seq', (select (extract(epoch from sealed_until) * 1000000)::bigint from usage.state))"
    )
    copy = restored(original, [])
    copy.execute("alter sequence usage.seal_seq restart")
    copy.attach()
    events = copy.scalar("select sum(event_count) from usage.by_collection('-infinity')")
    run(copy, "delete from {source} where created_at < (select sealed_until from usage.state)")
    copy.refresh()
    assert copy.scalar("select sum(event_count) from usage.by_collection('-infinity')") == events
    assert copy.verify(repair=True).trusted
    assert copy.scalar("select sum(event_count) from usage.by_collection('-infinity')") == events


@pytest.mark.parametrize("mended_by", ["refresh", "verify", "reset"])
def test_reader_of_before_a_sequence_was_put_right(filled_database: Callable[[Kind], Database], mended_by: str) -> None:
    """Who took a snapshot while the sequence was behind does not believe it when that is no longer to be seen."""
    db = filled_database("plain")
    db.refresh()
    db.execute(SET_BACK["a day"])
    fill(db)
    with db.connect() as reader, snapshot(reader):
        reader.execute(b"select count(*) from public.nodes")
        if mended_by == "refresh":
            db.refresh()
        elif mended_by == "verify":
            db.verify(repair=True)
        else:
            rebuild.reset_frontier(db.own)
            db.refresh()
        settled(db)
        compare(reader, db.zone, source=db.source, titles=db.titles)


def test_killed_while_a_sequence_is_noted(filled_database: Callable[[Kind], Database]) -> None:
    """A refresh that dies after it counted the doubt, and before it noted it, leaves a doubt, which the next one mends."""
    db = filled_database("plain")
    db.refresh()
    settled(db)
    with pytest.raises(ZeroDivisionError), db.own.transaction():
        db.execute(SET_BACK["a day"])
        assert frontier.note_behind(db.own)
        raise ZeroDivisionError
    db.execute("select setval('usage.frontier_seq', (extract(epoch from clock_timestamp()) * 1e6)::bigint)")
    assert "was behind" in str(doubt(db))
    db.compare()
    db.refresh()
    settled(db)


def test_sequence_behind_a_frontier_ahead_of_the_clock(filled_database: Callable[[Kind], Database]) -> None:
    """It is put up to the rollups' frontier, not to the clock, which has been set back: else writers would go unseen."""
    db = filled_database("plain")
    db.execute("update usage.state set frontier = now() + interval '1 hour'")
    assert "behind the rollups" in str(doubt(db))
    db.refresh()
    assert db.scalar("select usage.frontier_for_writers() >= frontier from usage.state")
    assert doubt(db) is None
    run(db, "insert into {source} (resource_type, created_at) values ('ai', now() + interval '30 minutes')")
    settled(db)


def test_a_sequence_in_order(filled_database: Callable[[Kind], Database]) -> None:
    """Where it stands at the rollups' frontier, as each refresh leaves it, nothing is in doubt and nothing is repaired."""
    db = filled_database("plain")
    for _ in range(2):
        assert db.refresh().notes == ()
        assert db.scalar(
            "select pg_sequence_last_value('usage.frontier_seq') = extract(epoch from frontier) * 1000000 from usage.state"
        )
    assert db.scalar("select doubts from usage.state") == 0
