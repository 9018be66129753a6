"""What PostgreSQL does and the proof of docs/correctness.md relies on, each without any code of ours.

A version that changes one of these would make numbers wrong that no other test need notice: they are told by races. The
names are those of the chapter's list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel

from tests.harness import Database, waits
from tests.integration.sources import await_true

Connect = Callable[..., psycopg.Connection[Any]]

HELD = (
    b"select on_table.mode from pg_locks on_table join pg_locks id using (virtualtransaction)"
    b" where on_table.locktype = 'relation' and on_table.relation = %s::regclass and on_table.granted"
    b" and id.locktype = 'transactionid' and id.mode = 'ExclusiveLock' and id.granted"
)
"""The locks on a table of transactions that have an id: how a refresh finds writers."""


@pytest.fixture
def db(new_database: Callable[..., Database]) -> Iterator[Database]:
    """A database with a table t and a sequence s of their own."""
    made = new_database()
    made.execute("create table public.t (n integer); insert into public.t values (1); create sequence public.s")
    yield made


@pytest.fixture
def connect(db: Database) -> Connect:
    """Open a connection whose transactions begin by themselves."""

    def opened(level: IsolationLevel = IsolationLevel.READ_COMMITTED) -> psycopg.Connection[Any]:
        connection = db.connect(autocommit=False)
        connection.isolation_level = level
        return connection

    return opened


def _listen(connection: psycopg.Connection[Any], said: list[str | None]) -> None:
    connection.add_notice_handler(lambda notice: said.append(notice.message_primary))


def _one(connection: psycopg.Connection[Any], query: bytes, *parameters: object) -> Any:
    row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize(
    "write", [b"insert into public.t values (2)", b"update public.t set n = 3", b"delete from public.t",
              b"merge into public.t using (values (1)) v (n) on t.n = v.n when matched then delete"],
    ids=["insert", "update", "delete", "merge"],
)  # fmt: skip
def test_a_writer_holds_its_lock_and_its_id_until_it_ends(db: Database, connect: Connect, write: bytes) -> None:
    """L1: also what it wrote in a savepoint that it released; and when it has ended, neither is left."""
    writer = connect()
    writer.execute(b"savepoint one")
    writer.execute(write)
    writer.execute(b"release one")
    writer.execute(b"select count(*) from pg_class")
    assert db.connection.execute(HELD, ("public.t",)).fetchall() == [("RowExclusiveLock",)]
    writer.commit()
    assert db.connection.execute(HELD, ("public.t",)).fetchall() == []


def test_copy_and_a_write_to_a_partition_hold_them_too(db: Database, connect: Connect) -> None:
    """L1: on the partition that was written to by its own name, not on its parent."""
    db.execute(
        "create table public.p (n integer) partition by range (n); create table public.p1 partition of public.p default"
    )
    writer = connect()
    with writer.cursor().copy(b"copy public.p1 from stdin") as copy:
        copy.write_row((1,))
    assert db.connection.execute(HELD, ("public.p1",)).fetchall() == [("RowExclusiveLock",)]
    assert ("RowExclusiveLock",) not in db.connection.execute(HELD, ("public.p",)).fetchall()
    writer.rollback()
    writer.execute(b"insert into public.p values (1)")
    assert db.connection.execute(HELD, ("public.p",)).fetchall() == [("RowExclusiveLock",)]
    writer.rollback()


def test_a_prepared_transaction_keeps_both(db: Database, connect: Connect) -> None:
    """L2: under another holder, but with the same transaction id."""
    writer = connect()
    writer.execute(b"insert into public.t values (2)")
    xid = _one(writer, b"select pg_current_xact_id()::xid::text")
    writer.execute(b"prepare transaction 'relied on'")
    writer.close()
    try:
        assert db.connection.execute(HELD, ("public.t",)).fetchall() == [("RowExclusiveLock",)]
        assert (
            _one(
                db.connection,
                b"select count(*) from pg_locks where transactionid::text = %s and mode = 'ExclusiveLock'",
                xid,
            )
            == 1
        )
    finally:
        db.connection.execute(b"rollback prepared 'relied on'")


def test_a_trigger_is_judged_when_the_transaction_has_its_id(db: Database, connect: Connect) -> None:
    """L3: the WHEN clause of a row trigger is evaluated after the row was written, so after the id was taken."""
    db.execute(
        "create function public.noted() returns boolean language plpgsql volatile as $$ begin"
        "  raise notice 'id %, locked %', pg_current_xact_id_if_assigned() is not null,"
        "    exists (select from pg_locks where relation = 'public.t'::regclass and mode = 'RowExclusiveLock' and pid = pg_backend_pid());"
        "  return false; end $$;"
        "create trigger t_new after insert on public.t for each row when (new.n > 0 and public.noted()) execute function suppress_redundant_updates_trigger();"
        "create trigger t_old after update or delete on public.t for each row when (public.noted()) execute function suppress_redundant_updates_trigger()"
    )
    for write in (
        b"insert into public.t values (2)",
        b"update public.t set n = 3",
        b"delete from public.t",
    ):
        writer = connect()
        said: list[str | None] = []
        _listen(writer, said)
        writer.execute(b"set client_min_messages = notice")
        writer.execute(write)
        assert said
        assert set(said) == {"id t, locked t"}
        writer.rollback()


def test_a_sequence_belongs_to_no_snapshot(db: Database, connect: Connect) -> None:
    """S1: pg_sequence_last_value() shows what another session set and has not committed, also in an old snapshot."""
    old, mover = connect(IsolationLevel.REPEATABLE_READ), connect()
    db.execute("select setval('public.s', 10)")
    old.execute(b"select count(*) from public.t")
    mover.execute(b"select setval('public.s', 20)")
    assert _one(old, b"select pg_sequence_last_value('public.s')") == 20
    mover.rollback()
    assert _one(old, b"select pg_sequence_last_value('public.s')") == 20
    assert _one(db.connection, b"select pg_sequence_last_value('public.s')") == 20


def test_moving_a_sequence_takes_an_id(connect: Connect) -> None:
    """S2: so its commit waits for the log, in which the move stands before whatever others do because of it."""
    mover = connect()
    assert _one(mover, b"select pg_current_xact_id_if_assigned() is null")
    mover.execute(b"select setval('public.s', 30)")
    assert _one(mover, b"select pg_current_xact_id_if_assigned() is not null")


def test_a_snapshot_lists_no_newest_writers(db: Database, connect: Connect) -> None:
    """Why writers are found by their locks: pg_snapshot_xip() leaves out those from the snapshot's xmax on."""
    writer = connect()
    writer.execute(b"insert into public.t values (2)")
    xid = _one(writer, b"select pg_current_xact_id()::text")
    listed = [str(row[0]) for row in db.connection.execute(b"select pg_snapshot_xip(pg_current_snapshot())").fetchall()]
    assert xid not in listed
    assert db.connection.execute(HELD, ("public.t",)).fetchall() == [("RowExclusiveLock",)]
    writer.rollback()


def test_the_snapshot_is_taken_after_a_lock(db: Database, connect: Connect) -> None:
    """F1: LOCK TABLE as the first statement takes no snapshot: what was committed before it was granted is seen."""
    folder, host = connect(IsolationLevel.REPEATABLE_READ), connect()
    host.execute(b"truncate public.t")
    host.execute(b"insert into public.t values (7), (8)")
    with pytest.raises(psycopg.errors.LockNotAvailable):
        folder.execute(b"lock table public.t in access share mode nowait")
    folder.rollback()
    host.commit()
    folder.execute(b"lock table public.t in access share mode nowait")
    db.execute("insert into public.t values (9)")
    assert _one(folder, b"select count(*) from public.t") == 3
    db.execute("insert into public.t values (10)")
    assert _one(folder, b"select count(*) from public.t") == 3
    host.execute(b"set lock_timeout = '50ms'")
    with pytest.raises(psycopg.errors.LockNotAvailable):
        host.execute(b"truncate public.t")
    host.rollback()


def test_a_snapshot_older_than_a_truncate_reads_nothing(db: Database, connect: Connect) -> None:
    """F2: the limit that is PostgreSQL's own, and why F1 matters. The same after a rewrite."""
    old = connect(IsolationLevel.REPEATABLE_READ)
    old.execute(b"select count(*) from pg_class")
    db.execute("truncate public.t; insert into public.t values (7)")
    assert _one(old, b"select count(*) from public.t") == 0
    old.commit()
    old.execute(b"select count(*) from pg_class")
    db.execute("alter table public.t add column filler double precision default random()")
    assert _one(old, b"select count(*) from public.t") == 0


def test_two_that_lock_one_row_do_not_both_go_on(db: Database, connect: Connect) -> None:
    """F3: at REPEATABLE READ the second one waits, and fails if the first one changed the row."""
    db.execute("create table public.one (n integer); insert into public.one values (1)")
    first, second = connect(IsolationLevel.REPEATABLE_READ), connect(IsolationLevel.REPEATABLE_READ)
    first.execute(b"select n from public.one for update")
    second.execute(b"select count(*) from public.one")
    second.execute(b"set local lock_timeout = '50ms'")
    with pytest.raises(psycopg.errors.LockNotAvailable):
        second.execute(b"select n from public.one for update")
    second.rollback()
    second.execute(b"select count(*) from public.one")
    first.execute(b"update public.one set n = 2")
    first.commit()
    with pytest.raises(psycopg.errors.SerializationFailure):
        second.execute(b"select n from public.one for update")


def test_a_stable_function_sees_its_statements_snapshot(db: Database, connect: Connect) -> None:
    """R1: all statements of a STABLE plpgsql function, dynamic ones too, see one snapshot, also at READ COMMITTED."""
    db.execute(
        "create function public.waited() returns bigint[] language plpgsql stable as $$ declare a bigint; b bigint; begin"
        "  select count(*) into a from public.t; perform pg_advisory_xact_lock_shared(77);"
        "  execute 'select count(*) from public.t' into b; return array[a, b]; end $$"
    )
    holder, reader = connect(), connect()
    holder.execute(b"select pg_advisory_xact_lock(77)")
    found: list[Any] = []
    thread = Thread(target=lambda: found.append(_one(reader, b"select public.waited()")))
    thread.start()
    await_true(
        lambda: db.scalar(waits("locktype = 'advisory'")),
        "it waits",
    )
    db.execute("insert into public.t values (2)")
    holder.commit()
    thread.join(30)
    assert found == [[1, 1]]


def test_row_triggers_are_cloned_to_partitions(db: Database) -> None:
    """P1: to those there are, created later and attached, with ALWAYS; statement triggers are not, so each gets its own."""
    db.execute(
        "create function public.f() returns trigger language plpgsql as 'begin return null; end';"
        "create table public.p (n integer) partition by range (n);"
        "create table public.p1 partition of public.p for values from (0) to (10);"
        "create trigger p_row after insert on public.p for each row when (new.n > 0) execute function public.f();"
        "create trigger p_truncate after truncate on public.p execute function public.f();"
        "alter table public.p enable always trigger p_row;"
        "create table public.p2 partition of public.p for values from (10) to (20);"
        "create table public.p3 (n integer); alter table public.p attach partition public.p3 for values from (20) to (30)"
    )
    assert db.execute(
        "select tgrelid::regclass::text, tgname, tgenabled::text from pg_trigger where tgname in ('p_row', 'p_truncate') order by 1, 2"
    ) == [("p", "p_row", "A"), ("p", "p_truncate", "O"), *((f"p{n}", "p_row", "A") for n in (1, 2, 3))]
    db.execute("alter table public.p detach partition public.p3")
    assert db.execute("select tgname from pg_trigger where tgrelid = 'public.p3'::regclass") == []


@pytest.mark.parametrize(
    ("statement", "mode"),
    [("truncate public.t", "AccessExclusiveLock"), ("alter table public.t disable trigger user", "ShareRowExclusiveLock"),
     ("alter table public.t add column filler double precision default random()", "AccessExclusiveLock"),
     ("cluster public.t using t_n", "AccessExclusiveLock")],
)  # fmt: skip
def test_what_captures_nothing_lets_no_writer_beside_it(
    db: Database, connect: Connect, statement: str, mode: str
) -> None:
    """C1: what empties, rewrites or stops capturing a table waits for its writers, and they for it."""
    db.execute("create index t_n on public.t (n)")
    host = connect()
    host.execute(statement.encode())
    held = db.connection.execute(
        b"select mode from pg_locks where relation = 'public.t'::regclass and granted"
    ).fetchall()
    assert (mode,) in held
    writer = connect()
    writer.execute(b"set lock_timeout = '50ms'")
    with pytest.raises(psycopg.errors.LockNotAvailable):
        writer.execute(b"insert into public.t values (2)")
    writer.rollback()
    host.rollback()


def test_a_wait_for_locks_blocks_nobody(db: Database, connect: Connect) -> None:
    """W1: looking into pg_locks takes no lock on the table: a writer, and DDL, go on."""
    looking, host = connect(), connect()
    looking.execute(HELD, ("public.t",))
    host.execute(b"set lock_timeout = '50ms'")
    host.execute(b"truncate public.t")
    host.rollback()
    looking.rollback()


@pytest.mark.parametrize("place", [0, 1, 500, 999])
@pytest.mark.parametrize(
    ("odd", "shows"),
    [("'NaN'", "sum(v) = 'NaN'"), ("1e-41", "scale(sum(v)) = 41"), ("round(0, 41)", "scale(sum(v)) = 41"),
     ("case n % 2 when 0 then 1e-1000 else -1e-1000 end", "scale(sum(v)) = 1000")],
)  # fmt: skip
def test_a_sum_shows_its_oddest_summand(db: Database, place: int, odd: str, shows: str) -> None:
    """N1: NaN, or the most decimals, wherever they are, also where they come to nothing; and else neither."""
    summands = (
        f"select case when n / 2 = {place} / 2 then {{}} else n * 0.25 end::numeric as v from generate_series(0, 999) n"
    )
    assert db.scalar(f"select {shows} from ({summands.format(odd)}) s") is True
    assert db.scalar(f"select sum(v) <> 'NaN' and scale(sum(v)) = 2 from ({summands.format('1')}) s") is True


def test_statement_triggers_of_an_upsert(db: Database) -> None:
    """Q1: rows that were added come to the trigger of INSERT, those that were changed to that of UPDATE, old and new."""
    db.execute(
        "create table public.u (k integer primary key, n integer); insert into public.u values (1, 10), (2, 20);"
        "create table public.seen (operation text, is_new boolean, k integer, n integer);"
        "create function public.note() returns trigger language plpgsql as $$ begin"
        " if tg_op <> 'DELETE' then insert into public.seen select tg_op, true, r.* from new_rows r; end if;"
        " if tg_op <> 'INSERT' then insert into public.seen select tg_op, false, r.* from old_rows r; end if;"
        " return null; end $$;"
        "create trigger i after insert on public.u referencing new table as new_rows for each statement"
        " execute function public.note();"
        "create trigger u after update on public.u referencing new table as new_rows old table as old_rows for each statement"
        " execute function public.note();"
        "create trigger d after delete on public.u referencing old table as old_rows for each statement"
        " execute function public.note();"
        "insert into public.u as u values (1, 5), (3, 7), (4, 9) on conflict (k) do update set n = u.n + excluded.n;"
        "delete from public.u where k > 2"
    )
    assert db.execute("select * from public.seen order by operation, is_new, k") == [
        ("DELETE", False, 3, 7), ("DELETE", False, 4, 9), ("INSERT", True, 3, 7), ("INSERT", True, 4, 9),
        ("UPDATE", False, 1, 10), ("UPDATE", True, 1, 15),
    ]  # fmt: skip
