"""Further connections of a refresh: they add up raw events in the snapshot of the connection that folds, some days at a time.

That one exports its snapshot, they import it, so all see the same rows (https://www.postgresql.org/docs/current/
functions-admin.html#FUNCTIONS-SNAPSHOT-SYNCHRONIZATION). Sums cross the client, by COPY from one to the other, and no
events. What no worker has begun when there is nothing to fold is added up by the connection that folds: none waits for the
other while there is work. Workers change nothing, so a kill leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence

from psycopg import IsolationLevel, errors, sql
from psycopg.pq import ExecStatus

from aggregator import fold
from aggregator import sql as sql_files
from aggregator.db import Connection, connect, transaction
from aggregator.settings import Settings

SQL = sql_files.load("workers")

_LOCK_TIMEOUT = 1.0
"""Seconds: a worker behind the host's DDL, which waits for the folding connection, would wait forever."""

_AHEAD = 8
"""Parts that each worker may be ahead of the folding connection."""

_AT_ONCE = 2
"""Parts that are folded at a time, at least; a third of what is left, for each fold updates months."""

_LOOK = 0.1
"""Seconds between looks at whether to go on."""

Sums = bytearray
"""The rows of one part, as COPY sends them."""


class Workers:
    """Open connections, each with one part of the work at a time. Not for several threads."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._connections = connections

    def add_up(
        self, connection: Connection, state: fold.State, parts: Sequence[sql.Composable], table: str
    ) -> Iterator[int]:
        """Put the rows of each part's query into ``pg_temp.<table>``, some parts at a time; yield how many were.

        ``connection`` is in the transaction that folds. Its caller folds the table and makes it anew before it goes on.
        Raises what a worker failed with.
        """
        row = connection.execute("select pg_export_snapshot()").fetchone()
        assert row is not None
        waiting = deque(parts)
        ready: queue.Queue[Sums] = queue.Queue(maxsize=_AHEAD * len(self._connections))
        stop = threading.Event()
        failures: list[BaseException] = []
        threads = [
            threading.Thread(target=_work, args=(worker, state, row[0], waiting, ready, stop, failures), daemon=True)
            for worker in self._connections
        ]
        for thread in threads:
            thread.start()
        try:
            left = len(parts)
            while left:
                copied, some = 0, min(left, max(_AT_ONCE, left // 3))
                while copied < some:
                    copied += _copy_in(connection, table, ready, failures, wait=not waiting) or _add_one(
                        connection, table, waiting
                    )
                left -= copied
                yield copied
            # A child that only workers have read could leave when they have ended, before it is looked for.
            fold.lock_source(connection, state)
        finally:
            stop.set()
            for worker, thread in zip(self._connections, threads, strict=True):
                if thread.is_alive() and left:
                    worker.cancel_safe(timeout=5)
                thread.join()


@contextlib.contextmanager
def hired(settings: Settings, number: int) -> Iterator[Workers | None]:
    """Open so many further connections for a refresh, and close them; None for none."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(settings, name="aggregator worker")) for _ in range(number)]
        yield Workers(connections) if connections else None


def _add_one(connection: Connection, table: str, waiting: deque[sql.Composable]) -> int:
    """Add up the next part here, where workers have none ready; return 0 if there is no next one."""
    try:
        part = waiting.popleft()
    except IndexError:
        return 0
    with fold.reading_all_keys(connection):
        fold.add_rows(connection, table, part)
    return 1


def _copy_out(connection: Connection, part: sql.Composable) -> Sums:
    """Return the sums of one part.

    Those rows that have arrived are taken from libpq, for ``read`` takes four times as long as that, and a build has millions.
    """
    sums = bytearray()
    with connection.cursor().copy(sql.SQL(SQL["copy_out"]).format(part=part)) as copy:
        while row := copy.read():
            sums += row
            while (arrived := connection.pgconn.get_copy_data(1))[0] > 0:
                sums += arrived[1]
            if arrived[0] < 0:
                break
    for result in list(iter(connection.pgconn.get_result, None)):  # all, or the connection stays busy
        if result.status != ExecStatus.COMMAND_OK:
            raise errors.error_from_result(result)
    return sums


def _copy_in(
    connection: Connection, table: str, ready: queue.Queue[Sums], failures: list[BaseException], *, wait: bool
) -> int:
    """Copy the sums of one part in; return 0 if there is none yet."""
    if failures:
        raise failures[0]
    try:
        sums = ready.get(timeout=_LOOK) if wait else ready.get_nowait()
    except queue.Empty:
        return 0
    with connection.cursor().copy(sql.SQL(SQL["copy_in"]).format(table=sql.Identifier(table))) as copy:
        copy.write(sums)
    return 1


def _work(
    connection: Connection,
    state: fold.State,
    exported: str,
    waiting: deque[sql.Composable],
    ready: queue.Queue[Sums],
    stop: threading.Event,
    failures: list[BaseException],
) -> None:
    """Add up parts until there are no more, in the exported snapshot."""
    try:
        with transaction(
            connection, isolation=IsolationLevel.REPEATABLE_READ, read_only=True, lock_timeout=_LOCK_TIMEOUT
        ):
            connection.execute(sql.SQL(SQL["import_snapshot"]).format(snapshot=sql.Literal(exported)))
            # It is there already, held by the connection that folds; whoever waits for it is not to be waited for.
            fold.lock_source(connection, state)
            for block in (SQL["settle"], fold.SQL["settings"], fold.SQL["read_all_keys"]):
                connection.execute(block)
            while not stop.is_set():
                try:
                    part = waiting.popleft()
                except IndexError:
                    stop.wait()  # with the locks on what was read
                    return
                sums = _copy_out(connection, part)
                while not stop.is_set():
                    with contextlib.suppress(queue.Full):
                        ready.put(sums, timeout=_LOOK)
                        break
    except BaseException as exc:  # noqa: BLE001 -- told to the thread that folds, which raises it
        failures.append(exc)
