"""Rebuild: resumable, exact throughout; and a frontier that lies in the future."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from aggregator import fold, frontier, rebuild, refresh, status, verify
from aggregator.db import connect
from aggregator.errors import AggregatorError, Stopped
from tests.harness import Database

MONTHS = ["2026-01-10", "2026-02-11", "2026-03-12", "2026-04-13"]


@pytest.fixture
def filled(db: Database) -> Database:
    for n, month in enumerate(MONTHS):
        db.insert(f"{month} 10:00+00", "ai", n % 3, '{"tokens_in": 5, "job_type": "a"}')
        db.insert(f"{month} 12:00+00", "tts", n % 3, '{"characters": 7.25}')
    db.refresh()
    return db


def stop_after(db: Database, chunks: int) -> Callable[[], None]:
    """A check that stops once so many more chunks are repaired."""
    repaired = "select count(*) from usage.verification where repaired"
    enough = db.scalar(repaired) + chunks

    def check() -> None:
        if db.scalar(repaired) >= enough:
            raise Stopped

    return check


def interrupted(db: Database, chunks: int = 2) -> None:
    """A rebuild of corrupted rollups that are known to be, stopped after some chunks."""
    db.execute("update usage.daily_fact set total_value = total_value + 1")
    db.execute("update usage.state set trusted = false, distrust_reason = 'a test says so: run aggregator rebuild'")
    db.compare()
    with pytest.raises(Stopped):
        rebuild.rebuild(db.own, db.settings, check=stop_after(db, chunks), progress=lambda _: db.compare())
    db.compare()


def test_goes_on_where_it_was_interrupted(filled: Database) -> None:
    """Two months done, stopped, taken up at the third; then trust is on, and all is as the raw events say."""
    interrupted(filled)
    result = rebuild.rebuild(filled.own, filled.settings, progress=lambda _: filled.compare())
    assert result.resumed_from == "2026-03-01"
    assert result.chunks == 2
    assert result.trusted
    filled.compare()
    assert filled.verify().differences == 0


def test_an_interrupted_repair_is_taken_up_by_the_command_that_status_names(filled: Database) -> None:
    """verify --repair that was stopped: rebuild, which is what there is to run, does the rest."""
    filled.execute("update usage.daily_fact set total_value = total_value + 1")
    filled.execute(
        "alter table public.resource_usage_log disable trigger usage_insert;"
        "alter table public.resource_usage_log enable always trigger usage_insert"
    )
    with pytest.raises(Stopped):
        filled.verify(repair=True, check=stop_after(filled, 2))
    assert [problem.remedy for problem in status.read_status(filled.own, filled.settings).problems] == [
        "run aggregator rebuild"
    ]
    filled.compare()
    result = rebuild.rebuild(filled.own, filled.settings)
    assert (result.resumed_from, result.chunks, result.trusted) == ("2026-03-01", 2, True)
    filled.compare()


def test_memory_is_bounded(new_database: Any) -> None:
    """A chunk has about step_events events and the rest of a month at most, or one day; all are gone through once."""
    db: Database = new_database(step_events=50)
    db.attach()
    db.execute(
        "insert into public.resource_usage_log (resource_type, created_at)"
        " select 'ai', timestamptz '2025-11-03 00:00+00' + n * interval '1 day' from generate_series(0, 120) n, generate_series(1, 7)"
        " union all select 'ai', timestamptz '2026-01-20 12:00+00' from generate_series(1, 200)"
    )
    db.refresh()
    chunks: list[tuple[str, str]] = []
    db.verify(progress=lambda step: chunks.append((step.day_from, step.day_to)))
    counts = [
        db.execute(
            "select count(*), %s::date - %s::date, date_trunc('month', %s::date) = date_trunc('month', %s::date - 1)"
            " from public.resource_usage_log where created_at >= %s::date and created_at < %s::date",
            (end, start, start, end, start, end),
        )[0]
        for start, end in chunks
    ]
    assert sum(events for events, _, _ in counts) == 121 * 7 + 200
    assert all(events <= 50 or days == 1 for events, days, _ in counts)
    assert all(one_month for _, _, one_month in counts)
    assert [events for events, _, _ in counts if events > 50] == [207]
    assert len(chunks) < 30, "a chunk is not a day"


def test_a_range_is_rebuilt_and_no_other_day(filled: Database) -> None:
    """Of [since, until) the days are mended, the rest stays as it is, and trust with it; stopped, it begins anew."""
    filled.execute("update usage.daily_fact set total_value = total_value + 1")
    since, until = "2026-02-11", "2026-04-01"
    with pytest.raises(Stopped):
        rebuild.rebuild(filled.own, filled.settings, check=stop_after(filled, 1), since=since, until=until)
    result = rebuild.rebuild(filled.own, filled.settings, since=since, until=until)
    assert (result.resumed_from, result.chunks) == (None, 2)
    wrong = "select day::text from usage.daily d where not exists (select from usage.daily_total t where (t.day, t.resource_type, t.total_value) = (d.day, d.resource_type, d.total_value)) group by 1 order by 1"
    assert filled.execute(wrong) == [("2026-01-10",), ("2026-04-13",)]
    assert filled.scalar("select usage.doubt()") is None
    assert rebuild.rebuild(filled.own, filled.settings).resumed_from is None
    assert filled.verify().differences == 0
    filled.compare()


@pytest.mark.parametrize(
    "event",
    [
        "update usage.metric set value_key = 'tokens_out' where resource_type = 'ai'; update usage.metric set value_key = 'tokens_in' where resource_type = 'ai'",
        "alter table public.resource_usage_log disable trigger usage_insert; alter table public.resource_usage_log enable always trigger usage_insert",
        "select setval('usage.frontier_seq', 1)",
    ],
    ids=["metric", "trigger", "sequence"],
)
def test_begins_anew_if_something_happened(filled: Database, event: str) -> None:
    """What is known of the months that were done is not believed after something that capture cannot know."""
    interrupted(filled)
    for statement in event.split("; "):
        filled.execute(statement)
    if "setval" in event:
        filled.insert("2026-01-10 11:00+00", "ai", 0, '{"tokens_in": 2}')  # unseen
        filled.refresh()
    filled.compare()
    result = rebuild.rebuild(filled.own, filled.settings)
    assert result.resumed_from is None
    assert result.trusted, result.doubt
    filled.compare()
    assert filled.verify().differences == 0


def test_nothing_is_believed_that_happened_during_a_rebuild(filled: Database) -> None:
    """The frontier sequence falls behind, for the same reason as before, while a rebuild runs: trust stays off."""
    filled.execute("select setval('usage.frontier_seq', 1)")
    filled.execute(
        "update usage.state set trusted = false, distrust_reason ="
        " 'the frontier sequence was behind the rollups (a restore?): run aggregator refresh'"
    )
    seen = False

    def happen(_: object) -> None:
        nonlocal seen
        if not seen:
            seen = True
            with connect(filled.settings) as other:
                other.execute("select setval('usage.frontier_seq', 1)")
                filled.insert("2026-01-10 11:00+00", "ai", 0, '{"tokens_in": 2}')
                refresh._note_doubts(other)  # a refresh that is killed after its first steps
                frontier.advance(other)

    assert not rebuild.rebuild(filled.own, filled.settings, progress=happen).trusted
    filled.compare()
    rebuild.rebuild(filled.own, filled.settings)
    filled.compare()
    assert filled.verify().differences == 0


def test_restatements_say_why(filled: Database) -> None:
    """redefined after a changed metric, repaired otherwise."""
    filled.execute("update usage.daily_fact set total_value = total_value + 1 where day = '2026-02-11'")
    filled.execute("update usage.state set trusted = false, distrust_reason = 'a test says so'")
    rebuild.rebuild(filled.own, filled.settings)
    assert filled.execute("select distinct reason from usage.restatement") == [("repaired",)]
    filled.execute("delete from usage.restatement")
    filled.execute("update usage.metric set value_key = 'tokens_out' where resource_type = 'ai'")
    rebuild.rebuild(filled.own, filled.settings)
    assert filled.execute("select distinct reason from usage.restatement") == [("redefined",)]


# A frontier in the future --------------------------------------------------------------------------------------------


def into_the_future(db: Database) -> None:
    """As a clock that was once set to 2099 leaves it: everything is late, future events are in the rollups."""
    db.insert("2050-05-05 00:00+00", "ai", 1, '{"tokens_in": 9}')
    db.execute("select setval('usage.frontier_seq', (extract(epoch from timestamptz '2099-01-01') * 1e6)::bigint)")
    db.refresh()
    assert db.scalar("select frontier > now() + interval '50 years' from usage.state")
    db.insert("now", "tts", 2, '{"characters": 1}')
    db.insert("2051-05-05 00:00+00", "ai", 1, '{"tokens_in": 9}')
    db.execute("delete from public.resource_usage_log where created_at >= '2050-05-05' and created_at < '2050-05-06'")
    db.compare()


def test_reset_frontier(filled: Database) -> None:
    """The frontier is now again, late changes become ordinary ones, and everything stays exact."""
    into_the_future(filled)
    moved = rebuild.reset_frontier(filled.own)
    assert moved.before.startswith("2099")
    assert moved.events == 1
    assert filled.scalar("select frontier between now() - interval '1 minute' and now() from usage.state")
    filled.compare()
    assert filled.scalar("select usage.doubt() is null")
    before = filled.scalar("select count(*) from usage.late_change")
    filled.insert("tomorrow", "ai", 1, '{"tokens_in": 9}')
    assert filled.scalar("select count(*) from usage.late_change") == before
    filled.compare()
    filled.refresh()
    filled.compare()
    assert filled.verify().differences == 0
    again = rebuild.reset_frontier(filled.own)
    assert again.events == 0
    filled.compare()


def test_killed_between_row_and_sequence(filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the row was lowered: exact, and writers log more than they need; the next reset ends it."""
    into_the_future(filled)

    def die(*_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(rebuild, "_lower_sequence", die)
        rebuild.reset_frontier(filled.own)
    filled.insert("now", "tts", 2, '{"characters": 1}')
    filled.insert("2030-05-05 00:00+00", "ai", 1, '{"tokens_in": 9}')
    filled.compare()
    rebuild.reset_frontier(filled.own)
    filled.insert("2030-05-05 00:00+00", "ai", 1, '{"tokens_in": 9}')
    filled.compare()
    filled.refresh()
    filled.compare()
    assert filled.verify().differences == 0


def test_a_refresh_that_aims_at_the_old_frontier_is_refused(filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """It worked out its target before the reset, and folds after it."""
    into_the_future(filled)
    real = frontier.advance_and_wait

    def advance_and_wait(*arguments: object) -> object:
        found = real(*arguments)  # type: ignore[arg-type]
        with connect(filled.settings) as other:
            rebuild.reset_frontier(other)
        return found

    with monkeypatch.context() as patch, pytest.raises(AggregatorError, match="was reset"):
        patch.setattr(frontier, "advance_and_wait", advance_and_wait)
        filled.refresh()
    filled.compare()
    filled.insert("2030-05-05 00:00+00", "ai", 1, '{"tokens_in": 9}')
    filled.compare()
    filled.refresh()
    filled.compare()


@pytest.mark.parametrize("opened", ["before", "between"])
def test_writers_open_across_the_reset(filled: Database, monkeypatch: pytest.MonkeyPatch, opened: str) -> None:
    """A writer that saw the old frontier, of either kind of row, commits after the reset, before and after a refresh."""
    into_the_future(filled)
    writer = filled.connect(autocommit=False)

    def write() -> None:
        for at in ("2026-02-11 10:30+00", "now", "2040-01-01 00:00+00"):
            writer.execute(
                b"insert into public.resource_usage_log (resource_type, detail, created_at) values ('ai', '{\"tokens_in\": 1}', %s::timestamptz)",
                (at,),
            )

    real = rebuild._lower_sequence

    def lower(connection: object) -> bool:
        if opened == "between":
            write()
        return real(connection)  # type: ignore[arg-type]

    monkeypatch.setattr(rebuild, "_lower_sequence", lower)
    if opened == "before":
        write()
    rebuild.reset_frontier(filled.own)
    filled.compare()
    assert filled.refresh(wait_timeout=0.2).status == "partial"
    filled.compare()
    writer.commit()
    filled.compare()
    filled.refresh()
    filled.compare()
    assert filled.verify().differences == 0


@pytest.mark.parametrize("row", ["past", "future"])
def test_a_sequence_that_is_behind_is_not_forgotten(filled: Database, row: str) -> None:
    """After a restore changes went unseen: a reset must not be what makes readers believe the rollups again."""
    if row == "future":
        into_the_future(filled)
    filled.execute("select setval('usage.frontier_seq', (extract(epoch from now() + interval '1 hour') * 1e6)::bigint)")
    if row == "past":
        filled.execute("select setval('usage.frontier_seq', 1)")
    filled.insert("2026-01-10 11:00+00", "ai", 0, '{"tokens_in": 2}')
    filled.insert("2040-01-10 11:00+00", "ai", 0, '{"tokens_in": 2}')
    filled.compare()
    rebuild.reset_frontier(filled.own)
    filled.compare()
    filled.insert("2026-01-10 11:00+00", "ai", 0, '{"tokens_in": 2}')
    filled.compare()
    assert rebuild.rebuild(filled.own, filled.settings).trusted
    filled.compare()
    filled.refresh()
    filled.compare()
    assert filled.verify().differences == 0


def test_a_reader_under_way_sees_one_frontier(filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sequence is not lowered under a reader who may have found it in order; given up, all is as before the reset."""
    into_the_future(filled)
    with filled.connect(autocommit=False) as reader:
        reader.execute(b"set transaction isolation level repeatable read")
        believed = reader.execute(b"select usage.rolled_until()::text").fetchone()
        with monkeypatch.context() as patch, pytest.raises(AggregatorError, match="gave up"):
            patch.setattr(fold, "_PATIENCE", 0.05)
            patch.setattr(rebuild, "_READERS", 0.05)
            rebuild.reset_frontier(filled.own)
        assert reader.execute(b"select usage.rolled_until()::text").fetchone() == believed == ("infinity",)
    filled.compare()
    rebuild.reset_frontier(filled.own)
    filled.compare()
    assert filled.scalar("select usage.frontier_for_writers() <= clock_timestamp()")


def test_a_repair_that_began_later_is_not_spoken_for(filled: Database) -> None:
    """A gap in days that a rebuild is through with, then another repair that is killed: the first one restores no trust."""
    filled.execute("update usage.state set trusted = false, distrust_reason = 'a test says so'")
    done: list[str] = []

    def happen(progress: verify.VerifyProgress) -> None:
        done.append(progress.day_from)
        if len(done) == 2:
            filled.execute("alter table public.resource_usage_log disable trigger usage_insert")
            filled.insert("2026-02-11 11:00+00", "ai", 0, '{"tokens_in": 2}')
            filled.execute("alter table public.resource_usage_log enable always trigger usage_insert")
            with connect(filled.settings) as other, pytest.raises(Stopped):
                verify.verify(other, filled.settings, repair=True, check=stop_after(filled, 1))

    assert not rebuild.rebuild(filled.own, filled.settings, progress=happen).trusted
    filled.compare()
    assert rebuild.rebuild(filled.own, filled.settings).trusted
    filled.compare()


@pytest.mark.parametrize(("day", "resumes"), [("2026-04-13", True), ("2026-01-10", False)])
def test_a_verification_in_between(filled: Database, day: str, resumes: bool) -> None:
    """That days differ which a rebuild has not come to is no news; that others do is."""
    interrupted(filled)
    if not resumes:
        filled.execute("update usage.daily_fact set total_value = total_value + 1 where day = %s::date", (day,))
    filled.verify(since=day)
    result = rebuild.rebuild(filled.own, filled.settings)
    assert (result.resumed_from is not None) == resumes
    assert result.trusted
    filled.compare()


def test_a_refresh_that_aims_at_a_frontier_that_came_true(filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reset, written below the old frontier by one who did not see it, and the frontier of the next refresh is past it."""
    filled.execute(
        "select setval('usage.frontier_seq', (extract(epoch from clock_timestamp() + interval '1 hour') * 1e6)::bigint)"
    )
    real = frontier.advance_and_wait
    writer = filled.connect(autocommit=False)

    def advance_and_wait(*arguments: object) -> object:
        found = real(*arguments)  # type: ignore[arg-type]
        with connect(filled.settings) as other:
            rebuild.reset_frontier(other)
            writer.execute(
                b"insert into public.resource_usage_log (resource_type, detail, created_at)"
                b" values ('ai', '{\"tokens_in\": 1}', clock_timestamp() + interval '1 minute')"
            )
            other.execute(
                "select setval('usage.frontier_seq', (extract(epoch from clock_timestamp() + interval '2 hours') * 1e6)::bigint)"
            )
        return found

    with monkeypatch.context() as patch, pytest.raises(AggregatorError, match="was reset"):
        patch.setattr(frontier, "advance_and_wait", advance_and_wait)
        filled.refresh()
    writer.commit()
    filled.compare()
    filled.refresh()
    filled.compare()
