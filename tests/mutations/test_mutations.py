"""Break each guarantee on purpose: the comparison must catch it. Each scenario also runs unbroken, and then must pass.

Interleavings are made by hand: ``Hooked`` runs something in another session right before a named statement of ours.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel

from aggregator import db as db_module
from aggregator import fold, frontier, refresh
from tests.harness import Database, Hooked, Mismatch, waits

Scenario = Callable[[Database], None]


def _refresh(db: Database, before: dict[str, Callable[[], None]]) -> refresh.RefreshResult:
    result = refresh.refresh(Hooked(db.own, before), db.settings)  # type: ignore[arg-type]
    assert not before, "the interleaving did not happen"
    return result


def _insert(connection: psycopg.Connection[Any], age: str = "0 s") -> None:
    connection.execute(
        b"insert into public.resource_usage_log (resource_type, detail, created_at)"
        b" values ('ai', '{\"tokens_in\": 7}', clock_timestamp() - %s::interval)",
        (age,),
    )


def _filled(db: Database) -> None:
    for day in range(1, 6):
        for _ in range(3):
            _insert(db.connection, f"{day} days")
    db.refresh()


def _refresh_beside(db: Database, writer: psycopg.Connection[Any], before: dict[str, Callable[[], None]]) -> None:
    """Commit the writer when the refresh waits for somebody, or has ended without."""
    hooks = {**before, frontier.SQL["still_open"]: writer.commit}
    refresh.refresh(Hooked(db.own, hooks), db.settings.model_copy(update={"wait_timeout": 20}))  # type: ignore[arg-type]
    assert not hooks.keys() & before.keys(), "the interleaving did not happen"
    writer.commit()
    db.compare()


def open_writer(db: Database) -> None:
    """A writer that wrote before the frontier moved commits only after the fold would have read."""
    _filled(db)
    writer = db.connect(autocommit=False)
    _insert(writer)
    _refresh_beside(db, writer, {})


def newest_writer(db: Database) -> None:
    """The newest writer of all, with an id above the refresher's, saw the old frontier."""
    _filled(db)
    writer = db.connect(autocommit=False)

    def write_after_the_refresher_has_its_id() -> None:
        db.own.execute("select pg_current_xact_id()")
        _insert(writer)

    _refresh_beside(db, writer, {frontier.SQL["advance"]: write_after_the_refresher_has_its_id})


def late_change_during_claim(db: Database) -> None:
    """A late change commits between the claim's sum and its delete."""
    _filled(db)
    _insert(db.connection, "2 days")
    _refresh(db, {refresh.SQL["drop_claimed"]: lambda: _insert(db.connection, "3 days")})
    db.compare()
    db.refresh()
    db.compare()


def late_change_of_the_range_just_read(db: Database) -> None:
    """An event above the rollups' frontier is changed after the writers' frontier moved: read raw, and logged too."""
    _filled(db)
    _insert(db.connection, "0 s")
    # Right after the advance, so below the new frontier and above the old one.
    _refresh(db, {frontier.SQL["writers"]: lambda: _insert(db.connection, "10 ms")})
    db.compare()
    db.refresh()
    db.compare()


def rewrite_before_the_read(db: Database) -> None:
    """The host rewrites the table after the fold began."""
    _filled(db)
    _insert(db.connection)
    host = db.connect()
    rewrite = b"alter table public.resource_usage_log add column filler double precision default random()"

    def host_rewrites() -> None:
        host.execute(b"set lock_timeout = '200ms'")
        try:
            host.execute(rewrite)
        except psycopg.errors.LockNotAvailable:
            host.execute(b"reset lock_timeout")

    _refresh(db, {fold.SQL["lock_state"]: host_rewrites})
    db.compare()


def old_snapshot_writer(db: Database) -> None:
    """A repeatable-read writer, whose snapshot is older than the frontier's move, writes below the frontier."""
    _filled(db)
    writer = db.connect(autocommit=False)
    writer.isolation_level = IsolationLevel.REPEATABLE_READ
    writer.execute(b"select count(*) from public.resource_usage_log")
    row = db.execute("select clock_timestamp()::text")
    db.refresh()
    writer.execute(
        b"insert into public.resource_usage_log (resource_type, detail, created_at) values ('ai', '{}', %s::timestamptz)",
        (row[0][0],),
    )
    writer.commit()
    db.compare()


def advance_race(db: Database) -> None:
    """A refresher that was about to advance is overtaken by another, and a third follows."""
    _filled(db)

    def other_refreshes() -> None:
        with db_module.connect(db.settings) as other:
            refresh.refresh(other, db.settings)

    overtaking = threading.Thread(target=other_refreshes)

    def overtake() -> None:
        # It gets past us, or it waits for the mutex that we hold.
        overtaking.start()
        while overtaking.is_alive() and not db.scalar(waits("locktype = 'advisory'")):
            overtaking.join(0.01)

    def write_below_the_frontier() -> None:
        # While the one that was overtaken has set the frontier, and a third refresher has not moved it on yet.
        overtaking.join()
        db.execute(
            "insert into public.resource_usage_log (resource_type, detail, created_at)"
            " select 'ai', '{}', frontier - interval '1 microsecond' from usage.state"
        )

    with db_module.connect(db.settings) as third:

        def third_is_under_way() -> None:
            frontier.advance(Hooked(db.own, {frontier.SQL["advance"]: overtake}))  # type: ignore[arg-type]
            write_below_the_frontier()

        refresh.refresh(Hooked(third, {frontier.SQL["mutex"]: third_is_under_way}), db.settings)  # type: ignore[arg-type]
    db.compare()


def cut_days(db: Database) -> None:
    """Windows that begin and end inside days."""
    for hour in range(0, 96, 2):
        _insert(db.connection, f"{hour + 1} hours")
    db.refresh()
    for hours in range(3, 60, 7):
        since, until = (
            str(db.scalar("select (now() - %s::interval)::text", (f"{h} hours 5 min",))) for h in (hours + 30, hours)
        )
        db.compare([(since, None, None), (since, until, None)])


def two_midnights(db: Database) -> None:
    """A night in the Azores on which midnight happens twice."""
    db.execute(
        "insert into public.resource_usage_log (resource_type, detail, created_at)"
        " select 'ai', '{\"tokens_in\": 1}', t from generate_series('2025-10-24'::timestamptz, '2025-10-29', '10 min') t"
    )
    db.refresh()
    db.compare([(f"2025-10-26 {hour:02d}:05+00", None, None) for hour in range(4)])
    db.compare([("2025-10-25 12:00+00", f"2025-10-26 {hour:02d}:05+00", None) for hour in range(4)])


def _no_wait(_db: Database, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(frontier, "wait", lambda *_arguments: ())


def _wait_by_snapshot(_db: Database, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(frontier.SQL, "writers", "select xid::text from pg_snapshot_xip(pg_current_snapshot()) xid")


def _claim_outside_the_snapshot(_db: Database, patch: pytest.MonkeyPatch) -> None:
    real = db_module.transaction

    def read_committed(connection: Any, **options: Any) -> AbstractContextManager[None]:
        return real(connection, **{**options, "isolation": IsolationLevel.READ_COMMITTED})

    patch.setattr(fold, "transaction", read_committed)


def _keep_covered(_db: Database, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(refresh.SQL, "drop_covered", "delete from usage.late_change where %(from)s = '' and %(to)s = ''")


def _source_not_locked(_db: Database, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(fold.SQL, "lock_source", "select from usage.state")


def _snapshot_frontier(db: Database, _patch: pytest.MonkeyPatch) -> None:
    db.execute(
        "create function usage.snapshot_frontier() returns timestamptz language sql stable security definer"
        " as 'select frontier from usage.state'; grant execute on function usage.snapshot_frontier() to public"
    )
    definition = db.scalar(
        "select pg_get_triggerdef(oid) from pg_trigger where tgname = 'usage_insert' and tgrelid = 'public.resource_usage_log'::regclass"
    )
    head, _, tail = definition.partition(" WHEN (")
    execute = tail[tail.index(" EXECUTE FUNCTION") :]
    db.execute("drop trigger usage_insert on public.resource_usage_log")
    db.execute(f"{head} WHEN (new.created_at < usage.snapshot_frontier()){execute}")
    db.execute("alter table public.resource_usage_log enable always trigger usage_insert")
    db.execute("update usage.state set fingerprint = usage.fingerprint()")


def _no_mutex(_db: Database, patch: pytest.MonkeyPatch) -> None:
    """Read, then set, with nothing that keeps others out in between."""

    def advance(connection: Any) -> str:
        value = connection.execute("select (extract(epoch from clock_timestamp()) * 1000000)::bigint").fetchone()[0]
        hook = getattr(connection, "_before", {}).pop(frontier.SQL["mutex"], None)
        if hook is not None:  # the third refresher's turn: what happens while it has not advanced yet
            hook()
            value = connection.execute("select (extract(epoch from clock_timestamp()) * 1000000)::bigint").fetchone()[0]
        overtaken = getattr(connection, "_before", {}).pop(frontier.SQL["advance"], None)
        if overtaken is not None:
            overtaken()
        row = connection.execute(
            "select setval('usage.frontier_seq', %(value)s), usage.frontier_for_writers()::text", {"value": value}
        ).fetchone()
        return str(row[1])

    patch.setattr(frontier, "advance", advance)


def _mutate_function(db: Database, signature: str, *replacements: tuple[str, str]) -> None:
    text = db.scalar("select pg_get_functiondef(%s::regprocedure)", (signature,))
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    db.execute(text)


def _edge_counted_whole(db: Database, _patch: pytest.MonkeyPatch) -> None:
    db.days_only()
    _mutate_function(
        db,
        "usage.cut_window(timestamptz, timestamptz)",
        ("p.head_to := since;", "p.head_to := first_at;"),
        ("p.head_from := since;", "p.head_from := first_at;"),
    )


def _label_for_first_instant(db: Database, _patch: pytest.MonkeyPatch) -> None:
    db.execute(
        "create or replace function usage.day_start(day date, zone text) returns timestamptz language sql immutable"
        " return usage.day_label(day, zone)"
    )


CASES: list[tuple[str, Scenario, Callable[[Database, pytest.MonkeyPatch], None], str]] = [
    ("no wait after the advance", open_writer, _no_wait, "UTC"),
    ("a wait by pg_snapshot_xip", newest_writer, _wait_by_snapshot, "UTC"),
    ("claim outside the snapshot", late_change_during_claim, _claim_outside_the_snapshot, "UTC"),
    ("late changes of the range just read kept", late_change_of_the_range_just_read, _keep_covered, "UTC"),
    ("source not locked before the snapshot", rewrite_before_the_read, _source_not_locked, "UTC"),
    ("WHEN compares with a snapshot's frontier", old_snapshot_writer, _snapshot_frontier, "UTC"),
    ("advance without a mutex", advance_race, _no_mutex, "UTC"),
    ("edge counted whole", cut_days, _edge_counted_whole, "UTC"),
    ("label taken for the first instant", two_midnights, _label_for_first_instant, "Atlantic/Azores"),
]
IDS = [name.replace(" ", "-") for name, *_ in CASES]


@pytest.mark.parametrize(("_name", "scenario", "_mutation", "zone"), CASES, ids=IDS)
def test_unbroken(_name: str, scenario: Scenario, _mutation: Any, zone: str, new_database: Any) -> None:
    """The scenario is exact as the product is."""
    db = new_database(zone=zone)
    db.attach()
    scenario(db)


@pytest.mark.parametrize(("_name", "scenario", "mutation", "zone"), CASES, ids=IDS)
def test_caught(
    _name: str, scenario: Scenario, mutation: Any, zone: str, new_database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison catches the mutation."""
    db = new_database(zone=zone)
    db.attach()
    mutation(db, monkeypatch)
    with pytest.raises(Mismatch):
        scenario(db)
