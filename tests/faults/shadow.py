"""A writer that writes everything twice: into the source, and into a table that nobody purges, which is the oracle's."""

from __future__ import annotations

import random
import threading
from typing import Any, Self

import psycopg

from tests.harness import COLLECTIONS, Database, compare, snapshot

SHADOW = "public.shadow_log"

_INSERT = (
    "with written as (insert into {source} (collection_id, resource_type, detail, created_at)"
    " values (%(collection)s, %(type)s, %(detail)s::jsonb, now() - make_interval(secs => %(age)s)) returning *)"
    " insert into public.shadow_log (id, collection_id, resource_type, detail, created_at)"
    " select id, collection_id, resource_type, detail, created_at from written"
)
# Only of the last days: what was purged has no raw event to change, and what is sealed no longer follows.
_DELETE = (
    "with gone as (delete from {source} where id in (select id from {source} where created_at > now() - interval '5 days'"
    " order by random() limit 2) returning id) delete from public.shadow_log s using gone where gone.id = s.id"
)


def prepare(db: Database, days: int = 120, each: int = 3) -> None:
    """Make the shadow table, and some months of events in both."""
    db.execute(f"create table {SHADOW} (like public.resource_usage_log)")
    db.execute(f"create index on {SHADOW} (created_at)")
    db.execute(
        "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
        " select ('00000000-0000-0000-0000-00000000000' || 1 + n %% 5)::uuid, (array['ai', 'tts', 'cas'])[1 + n %% 3],"
        " jsonb_build_object('tokens_in', n * 0.25, 'tokens_out', 1, 'characters', n, 'size_bytes', n, 'job_type', 'a'),"
        " now() - make_interval(hours => n * 24 / %s) from generate_series(1, %s) n",
        (each, days * each),
    )
    db.execute(f"insert into {SHADOW} select * from public.resource_usage_log")


def check(db: Database, connection: psycopg.Connection[Any] | None = None) -> None:
    """Compare every answer with the shadow's raw query in one snapshot; windows begin where sealed history can be cut."""
    connection = connection or db.connection
    with snapshot(connection):
        row = connection.execute(b"select sealed_until::text from usage.state").fetchone()
        assert row is not None
        windows = [
            ("-infinity", None, None),
            (row[0], None, None),
            ("-infinity", None, COLLECTIONS[0]),
            ("now-3", None, None),
            ("now-4", "now-1", None),
        ]
        compare(connection, db.zone, windows, source=SHADOW)


class Writer:
    """Inserts (at the tail, late, in the future) and deletes, now and then rolled back, until it is stopped.

    A lock that it does not get within two seconds is a failure: nothing of ours blocks writers.
    """

    def __init__(self, db: Database, seed: int, pause: float = 0.02) -> None:
        self.db = db
        self.pause = pause
        """Seconds between two transactions, at most."""
        self.random = random.Random(seed)
        self.transactions = 0
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._guard, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        if self.failure is not None:
            raise self.failure

    def _guard(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    self._work()
                except psycopg.OperationalError as exc:
                    if isinstance(exc, psycopg.errors.LockNotAvailable):
                        raise
                    self._stop.wait(0.1)  # the server was killed
        except BaseException as exc:  # noqa: BLE001 -- handed to the main thread
            self.failure = exc

    def _work(self) -> None:
        source = self.db.source
        with psycopg.connect(self.db.dsn) as connection:
            connection.execute("set lock_timeout = '2s'")
            while not self._stop.is_set():
                for _ in range(self.random.randint(1, 4)):
                    if self.random.random() < 0.15:
                        connection.execute(_DELETE.format(source=source).encode())
                        continue
                    age = self.random.choice([0, 0, 0, 60, 86400 * self.random.random() * 4, 86400 * 90, -3600])
                    connection.execute(
                        _INSERT.format(source=source).encode(),
                        {
                            "collection": self.random.choice([*COLLECTIONS, None]),
                            "type": self.random.choice(["ai", "tts", "cas", None]),
                            "detail": '{"tokens_in": 1.5, "characters": "7", "size_bytes": 9, "job_type": "b"}',
                            "age": age,
                        },
                    )
                if self.random.random() < 0.2:
                    connection.rollback()
                else:
                    connection.commit()
                self.transactions += 1
                self._stop.wait(self.random.random() * self.pause)
