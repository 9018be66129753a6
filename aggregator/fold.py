"""A transaction that changes the rollups: what a refresh's step and a repair have in common.

It is REPEATABLE READ. The source is locked (ACCESS SHARE) as its first statement, before there is a snapshot: a
snapshot older than a rewrite or TRUNCATE reads an empty table, and inside a function the lock would come too late.
Then the state row is locked, which serializes refreshers. Differences are collected in ``pg_temp.delta`` and added.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg import IsolationLevel, errors, sql

from aggregator import sql as sql_files
from aggregator.db import Connection, one_line, transaction
from aggregator.errors import AggregatorError, never

SQL = sql_files.load("fold")

_PATIENCE = 120.0
"""Seconds for which a transaction is tried again: against another refresher, and against DDL of the host."""

_LOCK_TIMEOUT = 1.0
"""Seconds of one try to lock the state: a fold's step may take longer, and then it is tried again."""

FACTS = {"daily": "day", "daily_collection": "day", "monthly": "month", "monthly_collection": "month"}
"""The rollups that are kept by key number, each with its column of buckets."""

QUARTERLY_FACTS = {"quarterly_collection": "quarter"}
"""Those that a trigger keeps, which adds what is added to their months: only repairs write to them."""

HOURLY_FACTS = {"hourly": "hour", "hourly_collection": "hour"}
"""Those that are kept only while usage.state.hourly_since is set."""

TOTALS = {"daily_total": "day"}
"""Those by resource type alone, each with its column of buckets."""

HOURLY_TOTALS = {"hourly_total": "hour"}
"""Of hours; a trigger adds what is added to these by collection: only repairs write to them."""

_MONTH: LiteralString = "usage.month_of(x.bucket)"

Range = tuple[str, str]
"""[start, end) as ISO text."""

Result = TypeVar("Result")


class PartitionsChangedError(Exception):
    """Events of a partition that the fingerprint does not know were read, or late changes of one gone: undone, not a user's error."""


class NotAttachedError(AggregatorError):
    """Nothing is attached."""

    def __init__(self) -> None:
        super().__init__("not attached: run aggregator attach")


@dataclass(frozen=True)
class State:
    """The row ``usage.state`` in some snapshot. Instants and days are ISO text, ``-infinity`` for none yet."""

    source: str
    frontier: str
    sealed_until: str
    trusted: bool
    distrust_reason: str | None
    time_zone: str
    zone_valid_from: str
    truncated: bool
    """A TRUNCATE of the source is not yet folded."""
    frontier_day: str
    sealed_day: str
    lookback_days: int | None
    """Each refresh repairs so many days, for there are no triggers; None: there are."""
    distributed: bool
    """The source is a table that Citus distributes."""
    lockable: bool
    """The source can be locked: all but a foreign table, which this server does not rewrite either."""
    hourly_since: str | None
    """From this hour on the hourly rollup is kept; None: it is off."""

    @property
    def hour(self) -> dict[str, sql.Composable]:
        """What ``{hour}`` and ``{by_hour}`` are in the statements that collect differences: the hour of an event ``e``."""
        if self.hourly_since is None:
            return {"hour": sql.SQL("null::timestamptz"), "by_hour": sql.SQL("")}
        hour = sql.SQL(SQL["hour"]).format(since=sql.Literal(self.hourly_since))
        return {"hour": hour, "by_hour": sql.SQL(", ") + hour}


def read_state(connection: Connection) -> State:
    """Return the state as the current transaction sees it; raise NotAttachedError if nothing is attached."""
    row = connection.execute(SQL["state"]).fetchone()
    assert row is not None
    if row[0] is None:
        raise NotAttachedError
    return State(*row)


@contextlib.contextmanager
def snapshot(connection: Connection, found: State, *, lock_state: bool) -> Iterator[State]:
    """Open the one snapshot in which raw rows and rollups are compared or folded; ``lock_state`` in order to change them.

    ``found`` is the state as ``attached`` returned it, and says which source to lock; yields that of the snapshot.

    Never waits for a lock on the source, so it can never be part of a deadlock with the host's DDL, and never for long for
    the state: raises ``LockNotAvailable`` instead, with a note of who holds them, for ``with_retries``.
    """
    try:
        with transaction(connection, isolation=IsolationLevel.REPEATABLE_READ, lock_timeout=_LOCK_TIMEOUT):
            lock_source(connection, found)
            if lock_state:
                connection.execute(SQL["lock_state"])
            # Small hash tables in memory: the planner's guess of the number of keys is far too high at times.
            connection.execute("set local work_mem = '64MB'")
            state = read_state(connection)
            if state.distributed:
                connection.execute(SQL["settings_of_workers"])
            yield state
    except errors.LockNotAvailable as exc:
        with transaction(connection, read_only=True):
            row = connection.execute(SQL["lock_holders"]).fetchone()
            if row is not None and row[0] is not None:
                exc.add_note(f"held by {row[0]}")
        raise


@contextlib.contextmanager
def looking(connection: Connection, *, read_only: bool = True) -> Iterator[State]:
    """Open a READ COMMITTED transaction that looks at the source or its partitions, be it at their catalog entries only.

    As ``snapshot`` it never waits for a lock on them, one while it holds another: ``LockNotAvailable``, for
    ``with_retries``.
    """
    found = attached(connection)
    with transaction(connection, read_only=read_only):
        lock_source(connection, found)
        yield read_state(connection)


def attached(connection: Connection) -> State:
    """Return the state as it is now, for what is to be locked before there is a snapshot; raise NotAttachedError."""
    with transaction(connection, read_only=True):
        return read_state(connection)


def lock_source(connection: Connection, found: State) -> None:
    """Lock the source in the caller's transaction, without waiting; raise ``LockNotAvailable``. A foreign table has no lock."""
    if found.lockable:
        connection.execute(sql.SQL(SQL["lock_source"]).format(source=sql.SQL(found.source)))


def with_retries(work: Callable[[], Result], check: Callable[[], None] = never) -> Result:
    """Run a transaction that may be repeated until it does not conflict with another session; ``check`` before each try."""
    deadline = time.monotonic() + _PATIENCE
    pause = 0.005
    while True:
        check()
        try:
            return work()
        except (errors.SerializationFailure, errors.DeadlockDetected, errors.LockNotAvailable) as exc:
            if time.monotonic() >= deadline:
                holders = "".join(f", {note}" for note in getattr(exc, "__notes__", ()))
                raise AggregatorError(
                    f"gave up after {_PATIENCE:g} s: another session keeps a lock on the source or usage.state{holders}"
                    f" ({one_line(exc)})"
                ) from exc
            time.sleep(pause)
            pause = min(pause * 1.2, 0.5)


def measured(
    connection: Connection,
    raw: Range | None = None,
    *,
    sign: int = 1,
    late: Range | None = None,
    late_sign: int | None = None,
    with_parameters: bool = True,
) -> sql.SQL:
    """Return what to write in FROM for the events of some ranges [start, end), in the caller's snapshot.

    It has the columns sign, late, created_at, the key's four, value, secondary, rejected. ``raw`` are raw events, with a
    sign; ``late`` late changes, of both signs or of one. ``with_parameters``: for a statement that is run with some, in
    which a percent sign begins one; without, nothing takes the second sign away again.
    """
    start, end = raw or (None, None)
    late_from, late_to = late or (None, None)
    row = connection.execute(
        SQL["measured"],
        {"signs": [sign], "starts": [start], "ends": [end],
         "late_from": late_from, "late_to": late_to, "late_sign": late_sign},
    ).fetchone()  # fmt: skip
    assert row is not None
    # Made by our own function, which quotes what is the user's.
    return sql.SQL(row[0].replace("%", "%%") if with_parameters else row[0])


def presumed(connection: Connection, raw: Range) -> sql.SQL:
    """Return what to write in FROM for raw events as if all were well formed; run without parameters."""
    row = connection.execute(SQL["presumed"], raw).fetchone()
    assert row is not None
    return sql.SQL(row[0])


def apply_delta(
    connection: Connection, *, derive: bool, hourly: bool, subtracts: bool = True, numbered: bool = False
) -> int:
    """Add ``pg_temp.delta`` to the rollups, drop it, and return the events that were added, less those taken away.

    ``derive``: work out all others from its days first. ``hourly``: the hourly ones too; then its days are split by hours.
    Not ``subtracts``: it has raw events only, a day's once. ``numbered``: days are in ``pg_temp.daily_delta`` too, which
    ``create_numbered`` made; with ``subtracts``, in both.
    """
    rollups = FACTS | HOURLY_FACTS if hourly else FACTS
    totals = TOTALS
    if derive:
        if subtracts or not numbered:
            number_keys(connection, "daily", hours=hourly, more=numbered)
        else:
            number_new_keys(connection, "daily")
        if hourly:
            of_hours = " where x.hour is not null"
            derive_fact(connection, "daily_delta", "hourly", "x.hour", "x.key_id", of_hours)
            derive_fact(connection, "daily_delta", "hourly_collection", "x.hour", "x.collection_key", of_hours)
        if subtracts or hourly:  # there may be several reasons, or hours
            connection.execute(SQL["merge_daily"])
        derive_fact(connection, "daily_delta", "daily_collection", "x.bucket", "x.collection_key")
        derive_fact(connection, "daily_delta", "monthly", _MONTH, "x.key_id")
        derive_fact(connection, "daily_collection_delta", "monthly_collection", _MONTH, "x.key_id")
        _run(connection, "analyze", {"delta": "daily_collection_delta", "column": "key_id"})
        connection.execute(SQL["derive_total"])
    else:
        rollups = rollups | QUARTERLY_FACTS
        for rollup in rollups:
            number_keys(connection, rollup)
        totals = TOTALS | HOURLY_TOTALS if hourly else TOTALS
        for rollup, bucket in totals.items():
            connection.execute(
                sql.SQL(SQL["total_delta"]).format(
                    delta=sql.Identifier(f"{rollup}_delta"),
                    bucket_of=sql.Identifier("hour" if bucket == "hour" else "bucket"),
                    rollup=sql.Literal(rollup),
                )
            )
    for rollup in rollups:
        add_fact(connection, rollup, subtracted=subtracts, of_total=derive and rollup in FACTS)
    for total, bucket in totals.items():
        names = {"total": total, "bucket": bucket, "delta": f"{total}_delta", "key": f"{total}_key"}
        _run(connection, "add_total", names)
        if subtracts:
            _run(connection, "sweep_total", names)
    connection.execute(SQL["count_version"])
    connection.execute(SQL["note_days"])
    row = connection.execute(SQL["counted"]).fetchone()
    assert row is not None
    connection.execute(SQL["drop_delta"])
    return int(row[0])


def numbered(differences: sql.Composable, *, bucket: str = "bucket", hours: bool = False) -> sql.Composed:
    """Return a query of differences by the numbers of their keys; ``hours``: with the hour of each, too."""
    return sql.SQL(SQL["numbered"]).format(
        differences=differences, bucket=sql.Identifier(bucket), hour=sql.SQL(", x.hour" if hours else "")
    )


def create_numbered(connection: Connection, rollup: str, query: sql.Composable, *, read_all_keys: bool) -> None:
    """Make ``pg_temp.<rollup>_delta`` of a query that ``numbered`` returned.

    ``read_all_keys``: it has more rows than there are keys, or nearly.
    """
    connection.execute(SQL["settings"])
    with reading_all_keys(connection) if read_all_keys else contextlib.nullcontext():
        connection.execute(
            sql.SQL(SQL["create_numbered"]).format(delta=sql.Identifier(f"{rollup}_delta"), numbered=query)
        )


@contextlib.contextmanager
def reading_all_keys(connection: Connection) -> Iterator[None]:
    """Have keys read all at once by the statements within, not looked up for each row; in a transaction that ends if one fails."""
    connection.execute(SQL["read_all_keys"])
    yield
    connection.execute(SQL["look_keys_up"])


def add_rows(connection: Connection, table: str, rows: sql.Composable) -> None:
    """Add the rows of a query, without parameters, to a temporary table."""
    connection.execute(sql.SQL(SQL["add_rows"]).format(table=sql.Identifier(table), rows=rows))


def known_keys(connection: Connection) -> int:
    """Return how many keys have a number, as the caller's transaction sees them."""
    row = connection.execute(SQL["known_keys"]).fetchone()
    assert row is not None
    return int(row[0])


def number_keys(connection: Connection, rollup: str, *, hours: bool = False, more: bool = False) -> None:
    """Make ``pg_temp.<rollup>_delta`` of one rollup's differences, with the numbers of their keys; number new ones.

    ``hours``: with the hour of each, too. ``more``: the table is there, and they are added to it.
    """
    connection.execute(SQL["settings"])
    _run(connection, "analyze", {"delta": "delta", "column": "rollup"})
    query = numbered(
        sql.SQL(SQL["of_rollup"]).format(rollup=sql.Literal(rollup)),
        bucket="hour" if rollup in HOURLY_FACTS else "bucket",
        hours=hours,
    )
    if more:
        add_rows(connection, f"{rollup}_delta", query)
    else:
        create_numbered(connection, rollup, query, read_all_keys=False)
    number_new_keys(connection, rollup)


def number_new_keys(connection: Connection, rollup: str) -> None:
    """Number the keys of ``pg_temp.<rollup>_delta`` that have no number yet."""
    delta = f"{rollup}_delta"
    if _run(connection, "any_new_key", {"delta": delta}).fetchone() == (True,):
        _run(connection, "analyze", {"delta": delta, "column": "key_id"})
        for block in ("add_collection_keys", "add_keys", "number_new_keys"):
            _run(connection, block, {"delta": delta})


def add_fact(connection: Connection, rollup: str, *, subtracted: bool, of_total: bool = False) -> None:
    """Add ``pg_temp.<rollup>_delta`` to a rollup; ``subtracted``: remove the rows that became nothing.

    ``of_total``: ``pg_temp.daily_total_delta``, which is small, has all of its days.
    """
    delta = f"{rollup}_delta"
    hourly = rollup in HOURLY_FACTS
    bucket = (FACTS | QUARTERLY_FACTS | HOURLY_FACTS)[rollup]
    row = connection.execute(
        sql.SQL(SQL["new_buckets"]).format(
            fact=sql.Identifier(f"{rollup}_fact"),
            bucket=sql.Identifier(bucket),
            bucket_of=sql.SQL(_MONTH if of_total and bucket == "month" else "x.bucket"),
            differences=sql.Identifier("daily_total_delta" if of_total else delta),
        )
    ).fetchone()
    assert row is not None
    new, others = row
    names = {"fact": f"{rollup}_fact", "bucket": bucket, "delta": delta, "type": "timestamptz" if hourly else "date"}
    if new:
        _run(connection, "append", names, {"new": new})
    if others:
        _run(connection, "add", names, {"new": new})
        if subtracted:
            _run(connection, "sweep", names)


def derive_fact(
    connection: Connection,
    delta: str,
    rollup: str,
    bucket: LiteralString,
    key: LiteralString,
    where: LiteralString = "",
) -> None:
    """Make ``pg_temp.<rollup>_delta`` of another rollup's differences."""
    connection.execute(
        sql.SQL(SQL["derive"]).format(
            delta=sql.Identifier(delta),
            coarser=sql.Identifier(f"{rollup}_delta"),
            bucket=sql.SQL(bucket),
            key=sql.SQL(key),
            where=sql.SQL(where),
        )
    )


def _run(
    connection: Connection, block: str, names: dict[str, str], parameters: dict[str, object] | None = None
) -> psycopg.Cursor[tuple[Any, ...]]:
    """Run a block of fold.sql with the names of tables and columns filled in."""
    identifiers = {name: sql.Identifier(value) for name, value in names.items()}
    return connection.execute(sql.SQL(SQL[block]).format(**identifiers), parameters)


def notice_new_partition(connection: Connection) -> bool:
    """Return whether events of a partition that nobody knows may have been read; if so, a repair under way begins anew.

    To be asked after they were read: an ATTACH PARTITION does not wait for us. What was read stays until we commit.
    """
    row = connection.execute(SQL["any_new_partition"]).fetchone()
    assert row is not None
    found, table = row
    if found or (table is not None and _has_children(connection, table)):
        connection.execute(SQL["repair_anew"])
        return True
    return False


def _has_children(connection: Connection, table: str) -> bool:
    """Return whether the planner, who looks at once, reads tables that inherit from one that is not partitioned."""
    row = connection.execute(sql.SQL(SQL["explain"]).format(source=sql.SQL(table))).fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    while plan["Node Type"].startswith("Gather"):
        plan = plan["Plans"][0]
    return bool(plan["Node Type"].endswith("Append"))


def distrust(connection: Connection, reason: str) -> None:
    """Turn trust off, in the caller's transaction; an earlier reason stays."""
    connection.execute(SQL["distrust"], {"reason": reason})
