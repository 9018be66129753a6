"""Writers, refreshers and readers at once, on one database, for some seconds; every comparison in one snapshot.

A race is only excluded by many short runs from an empty start, not by one long one: the tests call this often.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel, errors

from aggregator import capture, hourly, marks, refresh, verify
from aggregator import db as db_module
from aggregator.errors import AggregatorError, Stopped
from tests.harness import COLLECTIONS, DENSE, Database, compare, compare_days, compare_others, snapshot
from tests.integration.sources import PARTITIONED

_EXPECTED = (errors.SerializationFailure, errors.DeadlockDetected, errors.LockNotAvailable, errors.CheckViolation)
"""In writers. The last one: a partition is away just now."""
_WINDOWS = [
    ("-infinity", None, None),
    ("now-1", None, None),
    ("now-9", "now-2", None),
    ("now-30", None, COLLECTIONS[0]),
]
_ENDED = (errors.UndefinedObject, errors.ObjectNotInPrerequisiteState)
"""Somebody else ends a prepared transaction, or did."""
_OTHER_ZONES = ("Asia/Kolkata", "America/Havana")

PATIENCE = 60.0
"""Seconds that a run is given beyond its time until each of its roles has done something."""

OPERATOR = "aggregator operator"
"""The session that attaches again, and repairs."""
DDL = "the host's DDL"


def lost(error: BaseException) -> bool:
    """Whether the session, or the server, went away."""
    if isinstance(
        error, (errors.AdminShutdown, errors.CrashShutdown, errors.CannotConnectNow, db_module.DatabaseError)
    ):
        return True
    return isinstance(error, psycopg.OperationalError) and error.sqlstate is None


@contextmanager
def dense() -> Iterator[None]:
    """Let few events get marks, a few at each refresh."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in DENSE.items():
            patch.setattr(marks, name, value)
        patch.setattr(refresh, "_MARK_SECONDS", 0.05)
        yield


class Stress:
    """One run: start the threads, let them work, stop them, and tell what went wrong."""

    def __init__(
        self,
        db: Database,
        seed: int,
        *,
        ddl: bool = False,
        hours: bool = False,
        marks: bool = False,
        faults: bool = False,
    ) -> None:
        self.db = db
        self.partitioned = db.source == PARTITIONED
        self.seed = seed
        self.ddl = ddl
        self.hours = hours
        """Turn the hourly rollup on and off meanwhile, and compare days of other zones."""
        self.marks = marks
        """Keep the hourly rollup on, with marks in hours of a few events, which others make too."""
        self.faults = faults
        """Somebody ends sessions and the server meanwhile: a role whose session is lost begins anew."""
        self.stop = threading.Event()
        self.ddl_turn = threading.Lock()
        """attach is DDL as well: it waits for the source, holding partitions, and another DDL could be the victim."""
        self._bound = ""
        """Of the partition that comes and goes."""
        self.failures: list[BaseException] = []
        self.counts: Counter[str] = Counter()

    def run(self, seconds: float, writers: int = 4, refreshers: int = 3, readers: int = 2) -> None:
        """Work for some seconds; raise the first failure of any thread; compare once more at rest."""
        self.work(seconds, writers, refreshers, readers)
        self.settle()

    def work(self, seconds: float, writers: int = 4, refreshers: int = 3, readers: int = 2) -> None:
        """Work for some seconds, longer where a slow machine has not done everything once; raise the first failure of any thread."""
        roles: list[Callable[[random.Random], None]] = [
            *[self._write] * writers, *[self._refresh] * refreshers, *[self._read] * readers,
        ]  # fmt: skip
        if self.ddl:
            roles += [self._change_partitions if self.partitioned else self._change_table]
        # A crash of a server on which the source got a new file is a doubt as well.
        if self.ddl and (self.partitioned or self.faults):
            roles += [self._operate]
        if self.hours:
            roles += [self._turn_hours, self._fill_hours]
        if self.marks:
            hourly.turn_on(self.db.own)
            roles += [self._make_marks]
        if self.faults:
            roles += [self._end_prepared]
        threads = [
            threading.Thread(target=self._guard, args=(role, random.Random(f"{self.seed} {number}")), daemon=True)
            for number, role in enumerate(roles)
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + seconds + PATIENCE
        with dense() if self.marks else nullcontext():
            self.stop.wait(seconds)
            while self._not_done() and time.monotonic() < deadline and not self.stop.wait(0.1):
                pass
            self.stop.set()
            for thread in threads:
                thread.join(60)
                assert not thread.is_alive(), "a thread hangs: somebody blocks"
        if self.failures:
            raise self.failures[0]
        assert not self._not_done(), f"in {seconds + PATIENCE} s nobody did: {', '.join(self._not_done())}"

    def _not_done(self) -> list[str]:
        """Return what no role has done yet: a run without it would show nothing."""
        expected = ["transactions", "events written", "refreshes", "events folded", "comparisons"]
        if self.ddl:
            expected += ["ddl"]
        if self.hours:
            expected += ["turned on", "turned off", "comparisons with hours"]
        if self.marks:
            expected += ["comparisons with marks"]
        return [what for what in expected if not self.counts[what]]

    def settle(self) -> None:
        """Compare once more at rest, and after a refresh; put right what an operator would have to."""
        if self.faults:
            self.db.reconnect()
            self._end_all_prepared(self.db.connection, 0, "rollback")
        self.db.compare(_WINDOWS)
        self.db.refresh()
        self.db.compare(_WINDOWS)
        if self.partitioned or self.faults:
            if self.partitioned and self.faults:  # a session that was lost may have left it half detached
                with suppress(errors.ObjectNotInPrerequisiteState, errors.UndefinedTable):
                    self.db.execute("alter table public.events detach partition public.events_old finalize")
            self._mend(self.db.own)
            assert self.db.verify(repair=True).trusted
            self.db.compare(_WINDOWS)
        assert self.db.verify().differences == 0
        if self.hours:
            for on in (True, False):
                (hourly.turn_on if on else hourly.turn_off)(self.db.own)
                hourly.fill(self.db.own, self.db.settings)
                assert self.db.scalar("select hourly_since = '-infinity' from usage.state") is (True if on else None)
                assert self.db.verify().differences == 0
                self.db.compare(_WINDOWS)

    def _guard(self, role: Callable[[random.Random], None], rng: random.Random) -> None:
        try:
            while not self.stop.is_set():
                try:
                    role(rng)
                except Exception as exc:
                    if not (self.faults and lost(exc)):
                        raise
                    self.counts["sessions lost"] += 1
                    self.stop.wait(0.05)
        except BaseException as exc:  # noqa: BLE001 -- handed to the main thread
            self.failures.append(exc)
            self.stop.set()

    def _end_prepared(self, rng: random.Random) -> None:
        """End what a writer prepared before its session was lost."""
        with psycopg.connect(self.db.dsn, autocommit=True) as connection:
            while not self.stop.wait(0.5):
                self._end_all_prepared(connection, 2, rng.choice(["commit", "rollback"]))

    @staticmethod
    def _end_all_prepared(connection: psycopg.Connection[Any], seconds: int, verb: str) -> None:
        found = connection.execute(
            b"select gid from pg_prepared_xacts where database = current_database()"
            b" and prepared <= clock_timestamp() - make_interval(secs => %s)", (seconds,),
        ).fetchall()  # fmt: skip
        for (gid,) in found:
            with suppress(*_ENDED):
                connection.execute(f"{verb} prepared '{gid}'".encode())

    def _check(self) -> None:
        if self.stop.is_set():
            raise Stopped

    def _refresh(self, rng: random.Random) -> None:
        settings = self.db.settings.model_copy(update={"step_events": rng.choice([3, 20, 1000])})
        with db_module.connect(settings) as connection:
            while not self.stop.is_set():
                changed = settings.model_copy(update={"wait_timeout": rng.choice([0.0, 0.05, 5.0])})
                try:
                    done = refresh.refresh(connection, changed, check=self._check)
                except Stopped:  # in steps of three events it would go on for minutes
                    return
                self.counts["refreshes"] += 1
                self.counts["events folded"] += done.events
                self.counts["late changes folded"] += done.late_changes
                time.sleep(rng.random() * 0.02)

    def _read(self, rng: random.Random) -> None:
        with psycopg.connect(self.db.dsn, autocommit=True) as connection:
            while not self.stop.is_set():
                with snapshot(connection):
                    # Before the snapshot: one that is older than a TRUNCATE or rewrite sees neither side truly.
                    if self.partitioned and self.ddl:
                        # Nor is a partition attached for the planner's eyes only.
                        try:
                            connection.execute(
                                f"lock table only {self.db.source} in share update exclusive mode".encode()
                            )
                        except errors.DeadlockDetected:
                            # FINALIZE waits for whoever is in a transaction, us, with the lock in its hands: the test's own.
                            if not self.faults:
                                raise
                            raise psycopg.Rollback from None
                    connection.execute(f"lock table {self.db.source} in access share mode".encode())
                    compare(connection, self.db.zone, _WINDOWS, source=self.db.source)
                    compare_others(connection, self.db.zone, [rng.choice(_WINDOWS)], source=self.db.source)
                    if self.hours:
                        for zone in _OTHER_ZONES:
                            compare_days(connection, zone, _WINDOWS, source=self.db.source)
                        self.counts["comparisons with hours"] += self._any(connection, "usage.hourly_collection_fact")
                    if self.marks:
                        self.counts["comparisons with marks"] += self._any(
                            connection, "usage.six_hours where marks <> '{}'"
                        )
                    self.counts["comparisons"] += 1

    @staticmethod
    def _any(connection: psycopg.Connection[Any], rows: str) -> bool:
        row = connection.execute(f"select exists (select from {rows})".encode()).fetchone()
        assert row is not None
        return bool(row[0])

    def _turn_hours(self, rng: random.Random) -> None:
        with db_module.connect(self.db.settings) as connection:
            while not self.stop.is_set():
                self.counts["turned on"] += hourly.turn_on(connection)
                self.stop.wait(rng.random() * 1.5)
                self.counts["turned off"] += hourly.turn_off(connection)
                self.stop.wait(rng.random() * 0.2)

    def _fill_hours(self, rng: random.Random) -> None:
        """Beside the refreshes, which fill too."""
        with db_module.connect(self.db.settings) as connection:
            while not self.stop.is_set():
                settings = self.db.settings.model_copy(update={"step_events": rng.choice([1, 5, 50])})
                hourly.fill(connection, settings, seconds=rng.random() * 0.1)
                self.stop.wait(rng.random() * 0.1)

    def _make_marks(self, rng: random.Random) -> None:
        """Beside the refreshes, which make some too."""
        with db_module.connect(self.db.settings) as connection:
            while not self.stop.is_set():
                with suppress(Stopped):
                    made = marks.make(connection, self.db.settings, seconds=rng.random() * 0.1, check=self._check)
                    self.counts["marks made"] += made
                self.stop.wait(rng.random() * 0.1)

    def _change_table(self, rng: random.Random) -> None:
        with psycopg.connect(self.db.dsn, autocommit=True, application_name=DDL) as connection:
            while not self.stop.is_set():
                statement = rng.choice(
                    [
                        "truncate public.resource_usage_log",
                        "alter table public.resource_usage_log alter note type varchar using note",
                        "vacuum full public.resource_usage_log",
                        "alter table public.resource_usage_log add extra float default random(), add again int",
                        "alter table public.resource_usage_log drop if exists extra, drop if exists again",
                        "cluster public.resource_usage_log using resource_usage_log_created_at_idx",
                    ]
                )
                try:
                    connection.execute(statement.encode())
                except errors.DuplicateColumn:
                    continue
                # No deadlock or refusal is expected here: the host's DDL is never a victim of ours. Its own writers may be.
                self.counts["ddl"] += 1
                self.stop.wait(rng.random() * 0.3)

    def _change_partitions(self, rng: random.Random) -> None:
        with psycopg.connect(self.db.dsn, autocommit=True, application_name=DDL) as connection:
            if not self._bound:  # later it may be away
                row = connection.execute(
                    b"select pg_get_expr(relpartbound, oid) from pg_class where oid = 'public.events_old'::regclass"
                ).fetchone()
                assert row is not None
                self._bound = str(row[0])
            changes = [
                "truncate public.events_old",
                "truncate public.events_mid_0",
                "truncate public.events_new",
                "select public.add_partition('events_ancient', 400, 300)",
                "insert into public.events (resource_type, created_at) values ('ai', now() - interval '350 days')",
                "drop table if exists public.events_ancient",
                "begin; alter table public.events detach partition public.events_old;"
                " delete from public.events_old where id % 2 = 0;"
                f" alter table public.events attach partition public.events_old {self._bound}; commit",
                "alter table public.events detach partition public.events_old",
                "alter table public.events detach partition public.events_old concurrently",
                f"alter table public.events attach partition public.events_old {self._bound}",
            ]
            if self.faults:  # a session that was lost may have left it half detached
                changes.insert(0, "alter table public.events detach partition public.events_old finalize")
            while not self.stop.is_set():
                change = rng.choice(changes)
                try:
                    with self.ddl_turn:
                        connection.execute(change.encode())
                except errors.DeadlockDetected as exc:
                    # FINALIZE waits for older snapshots with the partition's lock in its hands: so any of the host's own writers.
                    if not change.endswith(" finalize") or self._is_ours(exc):
                        raise
                except (errors.DuplicateTable, errors.CheckViolation, errors.UndefinedTable, errors.WrongObjectType,
                        errors.ObjectNotInPrerequisiteState):  # fmt: skip
                    # It is there, or is not, or only half, already.
                    connection.execute(b"rollback")
                self.counts["ddl"] += 1
                self.stop.wait(rng.random() * 0.3)
            with suppress(errors.WrongObjectType):
                connection.execute(changes[-1].encode())

    def _is_ours(self, deadlock: errors.DeadlockDetected) -> bool:
        """Return whether a session of ours is one of those that waited for one another."""
        pids = [int(pid) for pid in re.findall(r"[Pp]rocess (\d+)", deadlock.diag.message_detail or "")]
        with psycopg.connect(self.db.dsn, autocommit=True) as connection:
            row = connection.execute(
                b"select exists (select from pg_stat_activity where pid = any (%s) and application_name like 'aggregator%%')",
                (pids,),
            ).fetchone()
        assert row is not None
        return bool(row[0])

    def _operate(self, rng: random.Random) -> None:
        """Do what the doubts say is to be done, or trust would be off from the first detached partition on."""
        with db_module.connect(self.db.settings, name=OPERATOR) as connection:
            while not self.stop.is_set():
                if verify.read_doubt(connection) is not None:
                    with suppress(AggregatorError):
                        self._mend(connection)
                self.stop.wait(rng.random() * 0.2)

    def _mend(self, connection: db_module.Connection) -> None:
        with self.ddl_turn:
            capture.attach(connection, self.db.settings)
        self.counts["repairs"] += verify.verify(connection, self.db.settings, repair=True).trusted

    def _write(self, rng: random.Random) -> None:
        with closing(psycopg.connect(self.db.dsn)) as connection:
            while not self.stop.is_set():
                connection.isolation_level = rng.choice(
                    [IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE]
                )
                try:
                    self._transaction(connection, rng)
                except _EXPECTED:
                    connection.rollback()
                self.counts["transactions"] += 1

    def _transaction(self, connection: psycopg.Connection[Any], rng: random.Random) -> None:
        if rng.random() < 0.1:
            connection.execute(b"set local lock_timeout = '5ms'")
        for _ in range(rng.randint(1, 4)):
            if rng.random() < 0.15:
                try:
                    with connection.transaction():
                        self._statement(connection, rng)
                        if rng.random() < 0.5:
                            raise psycopg.Rollback
                except psycopg.Rollback:
                    pass
            else:
                self._statement(connection, rng)
            if rng.random() < 0.3:
                time.sleep(rng.random() * 0.03)
        end = rng.random()
        if end < 0.15:
            connection.rollback()
        elif end < 0.3:
            name = f"stress {threading.get_ident()} {rng.random()}"
            connection.execute(b"prepare transaction '" + name.encode() + b"'")
            connection.rollback()
            time.sleep(rng.random() * 0.03)
            connection.autocommit = True
            verb = "commit" if rng.random() < 0.7 else "rollback"
            with suppress(*(_ENDED if self.faults else ())):
                connection.execute(f"{verb} prepared '{name}'".encode())
            connection.autocommit = False
        else:
            connection.commit()

    def _statement(self, connection: psycopg.Connection[Any], rng: random.Random) -> None:
        kind = rng.random()
        source = self.db.source.encode()
        pick = b"(select id from " + source + b" order by hashint8(id + %s) limit %s)"
        if kind < 0.5:
            age = rng.choice(["0 s", "0 s", "0 s", "1 s", "-1 s", "20 ms", "1 day", "8 days", "40 days", "-1 day"])
            cursor = connection.execute(
                b"insert into " + source + b" (collection_id, resource_type, detail, created_at)"
                b" select %s, %s, %s::jsonb, clock_timestamp() - %s::interval from generate_series(1, %s)",
                (*self._content(rng), age, rng.randint(1, 5)),
            )
        elif kind < 0.6:
            cursor = connection.cursor()
            columns = b" (collection_id, resource_type, detail, created_at)"
            with cursor.copy(b"copy " + source + columns + b" from stdin") as copy:
                for seconds in rng.choices(
                    [0.0, 0.01, 1.0, -1.0, 86400.0, 8.5 * 86400, 40 * 86400], k=rng.randint(1, 5)
                ):
                    copy.write_row((*self._content(rng), datetime.now(timezone.utc) - timedelta(seconds=seconds)))
        elif kind < 0.7:
            cursor = connection.execute(
                b"merge into " + source + b" e using (select id, random() as chance from " + source + b" where id in "
                + pick + b" union all select null, 1) s on e.id = s.id"
                b" when matched and s.chance < 0.3 then delete"
                b" when matched then update set detail = '{\"tokens_in\": 2.5}', created_at = e.created_at - interval '1 hour'"
                b" when not matched then insert (resource_type, detail, created_at)"
                b" values ('ai', '{\"tokens_in\": \"4\"}', clock_timestamp() - interval '2 days')",
                (rng.randint(0, 10**6), rng.randint(1, 3)),
            )  # fmt: skip
        elif kind < 0.85:
            cursor = connection.execute(
                b"update " + source + b" set created_at = clock_timestamp() - %s::interval, resource_type = 'ai'"
                b" where id in " + pick,
                (
                    rng.choice(["0 s", "50 ms", "3 days", "15 days", "25 days", "-2 s"]),
                    rng.randint(0, 10**6),
                    rng.randint(1, 3),
                ),
            )
        else:
            cursor = connection.execute(
                b"delete from " + source + b" where id in " + pick, (rng.randint(0, 10**6), rng.randint(1, 4))
            )
        self.counts["events written"] += max(cursor.rowcount, 0)

    @staticmethod
    def _content(rng: random.Random) -> tuple[str | None, str | None, str]:
        """Return a collection, a type and a detail."""
        return (
            rng.choice([*COLLECTIONS[:3], None]),
            rng.choice(["ai", "ai", "tts", None]),
            rng.choice(['{"tokens_in": 1.25, "job_type": "a"}', '{"tokens_in": "x"}', '{"characters": 3}', "{}"]),
        )
