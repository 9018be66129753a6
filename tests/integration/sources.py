"""Sources that these tests share: a plain and a partitioned one, filled with events of the last 32 days."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from aggregator.embedded import embedded_bin
from tests.harness import Database

Kind = Literal["plain", "partitioned"]

PARTITIONED = "public.events"

# Range partitions by age in days, when they were made: old [300, 20), mid [20, 10), itself partitioned, and new [10, -30).
PARTITIONED_DDL = """
create sequence public.events_id;
create table public.events (
    id bigint not null default nextval('public.events_id'), collection_id uuid, resource_type text, detail jsonb,
    created_at timestamptz not null, note text, primary key (id, created_at)
) partition by range (created_at);
create index on public.events (created_at);
do $$ begin
    -- Not of the day on which a test goes on: bounds would overlap.
    execute format('create function public.first_day() returns timestamptz language sql stable return %L::timestamptz',
                   date_trunc('day', now(), 'UTC'));
end $$;
create function public.add_partition(name text, older integer, younger integer, tail text default '') returns void
language plpgsql as $$ begin
    execute format('create table public.%I partition of public.events for values from (%L) to (%L) ' || tail, name,
                   public.first_day() - make_interval(days => older), public.first_day() - make_interval(days => younger));
end $$;
select public.add_partition('events_old', 300, 20);
select public.add_partition('events_mid', 20, 10, 'partition by hash (id)');
create table public.events_mid_0 partition of public.events_mid for values with (modulus 2, remainder 0);
create table public.events_mid_1 partition of public.events_mid for values with (modulus 2, remainder 1);
select public.add_partition('events_new', 10, -30);
"""

EVENTS = """
insert into {source} (collection_id, resource_type, detail, created_at, note)
select case when n % 6 > 0 then ('00000000-0000-0000-0000-00000000000' || n % 6)::uuid end,
       (array['ai', 'whisper', 'tts', 'cas', 'other'])[1 + n % 5],
       jsonb_build_object('tokens_in', n * 1.1, 'tokens_out', n, 'duration_seconds', n * 0.37, 'characters', n,
                          'size_bytes', n * 1000, 'job_type', 'job ' || n % 3, 'model_level', 'm' || n % 2),
       clock_timestamp() - n * interval '13 hours', 'event ' || n
  from generate_series(1, 60) n
"""

NO_TITLES = "(select null::uuid as id, null::text as title where false)"


def fill(db: Database) -> None:
    """Add 60 events of the last 32 days to the source."""
    db.execute(EVENTS.replace("{source}", db.source))


def run(db: Database, script: str) -> None:
    """Run statements, with {source} filled in, in one transaction."""
    db.execute(script.replace("{source}", db.source))


def bound(db: Database, partition: str) -> str:
    """Return the bounds of a partition, to attach it again with."""
    return str(db.scalar("select pg_get_expr(relpartbound, oid) from pg_class where oid = %s::regclass", (partition,)))


def pending(db: Database) -> int:
    """Return how many late changes wait."""
    return int(db.scalar("select count(*) from usage.late_change"))


def doubt(db: Database) -> str | None:
    """Return why trust is off."""
    text = db.scalar("select usage.doubt()")
    return None if text is None else str(text)


def settled(db: Database, *, trusted: bool = True) -> None:
    """Check that answers are exact before a refresh and after it, that it has left nothing, and that trust is on."""
    db.compare()
    assert db.refresh().status == "done"
    db.compare()
    assert pending(db) == 0
    if trusted:
        assert doubt(db) is None, doubt(db)
        assert db.verify().differences == 0


def await_true(condition: Callable[[], Any], what: str, seconds: float = 60) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: waited {seconds} s in vain"
        time.sleep(0.005)


class Background:
    """A function in a thread of its own; ``join`` hands on what it raised."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.result: Any = None
        self._error: BaseException | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._work()
        except BaseException as exc:  # noqa: BLE001 -- raised again in join()
            self._error = exc

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> Any:
        self._thread.join(120)
        assert not self._thread.is_alive(), "the thread does not end"
        if self._error is not None:
            raise self._error
        return self.result


def program(name: str) -> str:
    """Return the path of one of the test server's programs; of a server that lacks it, the embedded one's, which is newer."""
    folder = os.environ.get("AGGREGATOR_TEST_BIN")
    path = Path(folder or embedded_bin()) / name
    return str(path if path.exists() else embedded_bin() / name)
