"""refresh --jobs: sums that further connections add up in the folding connection's snapshot, and what may befall them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors

from aggregator import fold, hourly, metrics, raw_days, rebuild, refresh, workers
from aggregator.errors import AggregatorError
from aggregator.metrics import Metric
from tests.harness import Database, Mismatch, some, waits

DAYS = 40

FACTS = ("daily", "daily_collection", "monthly", "monthly_collection", "quarterly_collection", "daily_total")


NUMBERED_BY = {"as many keys as there are": None, "keys numbered by workers": 1, "by who folds": 10**9}
"""Where keys are numbered is decided by how many are known: what refresh is to take for it."""


@pytest.fixture(params=some(list(NUMBERED_BY)[1:], 2))
def filled(db: Database, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Database:
    """Some thousand events of forty days; steps of 150, or 1,200 with jobs, so that there are several of several days."""
    if (known := NUMBERED_BY[request.param]) is not None:
        monkeypatch.setattr(fold, "known_keys", lambda _connection: known)
    db.execute(
        "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
        " select case when n % 7 > 0 then ('00000000-0000-0000-0000-00000000000' || n % 7)::uuid end,"
        " (array['ai', 'whisper', 'tts', null])[n % 4 + 1],"
        " jsonb_build_object('tokens_in', n, 'tokens_out', n % 13, 'characters', n * 0.1, 'duration_seconds', n::text,"
        "                    'job_type', 'job ' || n % 5, 'model_level', (array['large', 'small'])[n % 3]),"
        f" now() - n * interval '1 minute' * {DAYS * 24 * 60 / 3000} from generate_series(1, 3000) n",
    )
    db.execute("analyze public.resource_usage_log")
    db.settings = db.settings.model_copy(update={"step_events": 150, "jobs": 3})
    return db


def rollups(db: Database) -> dict[str, list[Any]]:
    """Return all rows of the rollups, as text without zeros behind the point."""
    numbers = "event_count, trim_scale(total_value), trim_scale(secondary_value), rejected_count"
    return {
        name: sorted(
            db.execute(
                f"select to_jsonb(r) - '{{total_value,secondary_value}}'::text[] || jsonb_build_array({numbers}) from usage.{name} r"
            ),
            key=str,
        )
        for name in FACTS
    }


@pytest.mark.parametrize("filled", NUMBERED_BY, indirect=True)
def test_the_rollups_are_those_of_one_connection(filled: Database) -> None:
    """With any number of connections the same rows come out, counted the same, and again after a day of late changes."""
    for change in (
        "select 1",
        "update public.resource_usage_log set detail = '{\"tokens_in\": 5}' where id % 10 = 0",
        "truncate public.resource_usage_log",
    ):
        found = []
        filled.execute(change)
        for jobs in (1, 2, 5):
            if jobs > 1:
                filled.execute("insert into usage.truncate_marker (truncated) values ('to fold anew')")
            result = filled.refresh(jobs=jobs)
            found.append(rollups(filled))
            filled.compare()
            if change == "select 1":
                assert result.events == 3000
                assert result.steps in (range(16, 22) if jobs == 1 else range(2, 5))
        assert found[0] == found[1] == found[2]
    assert filled.scalar("select count(*) from pg_stat_activity where application_name = 'aggregator worker'"
                         " and datname = current_database()") == 0  # fmt: skip


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], list[int]]:
    """Return what makes something happen when workers are first set to work, after the snapshot they are to work in."""

    def install(happening: Callable[[], None]) -> list[int]:
        calls: list[int] = []
        add_up = workers.Workers.add_up

        def with_happening(self: workers.Workers, *arguments: Any) -> Iterator[int]:
            if not calls:
                happening()
            calls.append(1)
            yield from add_up(self, *arguments)

        monkeypatch.setattr(workers.Workers, "add_up", with_happening)
        return calls

    return install


@pytest.fixture
def workers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folding connection waits for its workers, and adds up no day itself."""
    monkeypatch.setattr(workers, "_add_one", lambda *_arguments: 0)


def _late(db: Database) -> None:
    db.execute(
        "insert into public.resource_usage_log (resource_type, detail, created_at)"
        " select 'ai', '{\"tokens_in\": 7}', now() - n * interval '1 day' from generate_series(1, 39) n"
    )


@pytest.mark.usefixtures("workers_alone")
def test_workers_see_what_the_folding_connection_sees(filled: Database, once: Any) -> None:
    """An event that comes late while workers add up is in no sum of theirs: it waits as a late change."""
    assert once(lambda: _late(filled)) == []
    filled.refresh()
    filled.compare()
    assert filled.verify().differences == 0


@pytest.mark.usefixtures("workers_alone")
def test_workers_of_another_snapshot_are_caught(filled: Database, once: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutation: workers that see what is committed counts the late event twice."""
    monkeypatch.setitem(workers.SQL, "import_snapshot", "set local application_name = {snapshot}")
    once(lambda: _late(filled))
    filled.refresh()
    with pytest.raises(Mismatch):
        filled.compare()


@pytest.mark.usefixtures("workers_alone")
def test_a_worker_that_dies_undoes_the_step(filled: Database, once: Any) -> None:
    """Its refresh fails in one line; nothing is lost, and the next one goes on."""
    once(
        lambda: filled.scalar(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity"
            " where application_name = 'aggregator worker' and datname = current_database()"
        )
    )
    with pytest.raises((AggregatorError, psycopg.Error)):
        filled.refresh()
    filled.compare()
    assert filled.scalar("select status from usage.refresh_run order by id desc limit 1") == "failed"
    assert filled.refresh().status == "done"
    filled.compare()
    assert filled.verify().differences == 0


@pytest.mark.usefixtures("workers_alone")
@pytest.mark.parametrize("jobs", [1, 3])
def test_a_child_that_comes_and_goes_within_a_step(
    filled: Database, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    """No snapshot has it that looks for children: the planner is asked, and it cannot go before that."""
    filled.execute("create table public.kid (like public.resource_usage_log including all)")
    filled.execute("insert into public.kid overriding system value select * from public.resource_usage_log")
    session = filled.connect()
    session.execute(b"set lock_timeout = '100ms'")
    add_up, step = workers.Workers.add_up, refresh._step
    days = raw_days.RawDays._of_step
    came: list[object] = []
    went: list[object] = []

    def come(*arguments: Any) -> Any:
        found = days(*arguments)
        if not came:
            came.append(session.execute(b"alter table public.kid inherit public.resource_usage_log"))
        return found

    def go() -> None:
        if came and not went:
            with contextlib.suppress(errors.LockNotAvailable):
                went.append(session.execute(b"alter table public.kid no inherit public.resource_usage_log"))

    def go_when_workers_have_ended(*arguments: Any) -> Iterator[int]:
        yield from add_up(*arguments)
        go()

    def go_after_the_step(*arguments: Any) -> bool:
        try:
            return step(*arguments)
        finally:
            go()

    monkeypatch.setattr(raw_days.RawDays, "_of_step", come)
    monkeypatch.setattr(workers.Workers, "add_up", go_when_workers_have_ended)
    monkeypatch.setattr(refresh, "_step", go_after_the_step)
    filled.refresh(jobs=jobs)
    assert went
    filled.compare()
    assert filled.verify().differences == 0
    session.close()


@pytest.mark.usefixtures("workers_alone")
@pytest.mark.parametrize("rows", [0, 1, 5000], ids="after {} rows".format)
def test_a_worker_whose_query_fails_midway(filled: Database, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """What it has sent until then is no day's sums: the refresh fails with what the server said, and the next one goes on."""
    with monkeypatch.context() as patch:
        rows_that_fail = f"select d.* from ({{part}}) d, generate_series(0, {rows}) n where 1 / ({rows} - n) >= 0"
        patch.setitem(workers.SQL, "copy_out", f"copy ({rows_that_fail}) to stdout (format binary)")
        with pytest.raises(errors.DivisionByZero, match="division by zero"):
            filled.refresh()
    assert filled.scalar("select count(*) from usage.daily") == 0
    filled.compare()
    assert filled.refresh().events == 3000
    filled.compare()


@pytest.mark.usefixtures("workers_alone")
def test_a_day_without_rows(filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which a worker sends a header only."""
    monkeypatch.setitem(
        workers.SQL, "copy_out", "copy (select d.* from ({part}) d where false) to stdout (format binary)"
    )
    assert filled.refresh().events == 0


@pytest.mark.parametrize("slow", ["before", "after"])
def test_the_folding_connection_adds_up_what_nobody_has_begun(
    filled: Database, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    """Workers that are slow to begin leave it days, each of which is added up once; one that has taken a day is waited for."""
    work, add_one, added = workers._work, workers._add_one, []

    def slow_work(connection: Any, source: Any, exported: Any, waiting: Any, *others: Any) -> None:
        if slow == "before":
            time.sleep(0.05)
        work(connection, source, exported, waiting, *others)

    def counted(*arguments: Any) -> int:
        if slow == "after":
            time.sleep(0.02)
        added.append(add_one(*arguments))
        return added[-1]

    monkeypatch.setattr(workers, "_work", slow_work)
    monkeypatch.setattr(workers, "_add_one", counted)
    assert filled.refresh().events == 3000
    assert sum(added) > 0 if slow == "before" else sum(added) < DAYS
    filled.compare()
    assert filled.verify().differences == 0


def test_ddl_of_the_host_does_not_hang_it(filled: Database, once: Any) -> None:
    """DDL waits for the step, and a worker would wait for the DDL: it gives up at once, and the step is tried again."""
    done = threading.Event()

    def ddl() -> None:
        with filled.connect() as session:
            session.execute(b"alter table public.resource_usage_log add column other text")
        done.set()

    def begin() -> None:
        threading.Thread(target=ddl, daemon=True).start()
        while not filled.scalar(waits("mode = 'AccessExclusiveLock'")):
            time.sleep(0.01)

    calls = once(begin)
    assert filled.refresh().status == "done"
    assert len(calls) > 1
    assert done.wait(10)
    filled.compare()


def test_late_changes_and_writers_meanwhile(filled: Database) -> None:
    """Writers go on while several connections fold: exact all along."""
    stop = threading.Event()

    def write() -> None:
        with filled.connect() as session:
            while not stop.is_set():
                session.execute(
                    b"update public.resource_usage_log set created_at = created_at - interval '3 hours',"
                    b" detail = jsonb_set(detail, '{tokens_in}', '3') where id % 500 = floor(random() * 500)"
                )
                session.execute(
                    b"insert into public.resource_usage_log (resource_type, detail, created_at)"
                    b" values ('ai', '{\"tokens_in\": 1}', now() - random() * interval '40 days')"
                )
                stop.wait(0.05)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        for _ in range(3):
            filled.refresh()
            filled.compare()
            filled.execute("insert into usage.truncate_marker (truncated) values ('to fold anew')")
            filled.compare()
    finally:
        stop.set()
        writer.join()
    filled.refresh()
    filled.compare()
    assert filled.verify().differences == 0


def test_a_metric_whose_key_has_a_percent_sign(filled: Database) -> None:
    """It begins no parameter, and is not doubled: by this connection and by others, in hours that are filled, late or corrected."""
    tts = "from public.resource_usage_log where resource_type = 'tts'"
    filled.execute(
        "update public.resource_usage_log set detail = jsonb_build_object('100%', id) where resource_type = 'tts'"
    )
    metrics.set_metric(filled.own, Metric("tts", "100%", unit="percent"))
    rebuild.rebuild(filled.own, filled.settings)
    for jobs in (1, 3):
        hourly.turn_off(filled.own)
        filled.execute("insert into usage.truncate_marker (truncated) values ('to fold anew')")
        filled.refresh(jobs=jobs)
        hourly.turn_on(filled.own)
        assert hourly.fill(filled.own, filled.settings).done
        filled.execute(f"delete from public.resource_usage_log where id in (select min(id) {tts})")
        filled.refresh()
        for rollup in ("daily", "monthly", "daily_total", "hourly"):
            total = f"select sum(total_value) from usage.{rollup} where resource_type = 'tts'"
            assert filled.scalar(total) == filled.scalar(f"select sum((detail ->> '100%')::numeric) {tts}"), rollup
        assert filled.verify().differences == 0
    filled.execute("update usage.daily_fact set total_value = total_value + 1")
    assert filled.verify(repair=True).trusted
    assert filled.verify().differences == 0
