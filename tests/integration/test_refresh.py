"""What a refresh does, says and leaves in the history."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from aggregator import fold, refresh
from tests.harness import COLLECTIONS, Database


def _history(db: Database) -> list[tuple[Any, ...]]:
    return db.execute("select status, steps, events, late_changes, frontier_to from usage.refresh_run order by id")


def test_steps_are_bounded_and_recorded(db: Database) -> None:
    """A refresh folds in steps of about the given size, tells progress after each, and records the run."""
    for day in range(1, 8):
        for _ in range(10):
            db.insert(f"2026-01-0{day} 10:00+00", "ai", 0, '{"tokens_in": 1}')
    seen: list[refresh.Progress] = []
    result = refresh.refresh(db.own, db.settings.model_copy(update={"step_events": 20}), progress=seen.append)
    assert result.status == "done"
    assert result.events == 70
    assert [step.events for step in seen] == [20, 40, 60, 70]
    assert seen[0].frontier == "2026-01-03 00:00:00+00"  # a step ends with a day where it can
    (status, steps, events, late, frontier) = _history(db)[0]
    assert (status, steps, events, late) == ("done", 4, 70, 0)
    assert frontier == db.scalar("select frontier from usage.state")
    db.compare()


def test_more_events_than_a_step_at_one_instant(db: Database) -> None:
    """Events that share an instant go together, however small the steps."""
    for _ in range(9):
        db.insert("2026-01-01 10:00+00")
    db.insert("2026-01-01 10:00:01+00")
    assert db.refresh(step_events=2).events == 10
    db.execute("delete from public.resource_usage_log where created_at = '2026-01-01 10:00+00'")
    assert db.refresh(step_events=2).late_changes == 9
    db.compare()


def test_a_second_refresh_folds_nothing(db: Database) -> None:
    """Refreshing again changes no rollup row."""
    db.insert("2026-01-01 10:00+00")
    db.refresh()
    before = db.execute("select xmin::text, ctid::text from usage.daily_fact")
    result = db.refresh()
    assert (result.events, result.late_changes) == (0, 0)
    assert db.execute("select xmin::text, ctid::text from usage.daily_fact") == before


def test_a_forecast_folds_nothing(db: Database) -> None:
    """A dry run counts what is at the tail and what is late, and changes nothing."""
    db.insert("2026-01-01 10:00+00")
    assert refresh.forecast(db.own).events == 1
    db.refresh()
    db.insert("2026-01-01 11:00+00")
    db.execute("insert into public.resource_usage_log (created_at) values (clock_timestamp())")
    found = refresh.forecast(db.own)
    assert (found.events, found.late_changes, found.doubt) == (1, 1, None)
    assert db.scalar("select count(*) from usage.late_change") == 1
    assert len(_history(db)) == 1


def test_restatements_tell_what_changed(db: Database) -> None:
    """Late and deleted events of past days appear with day, key, difference and reason; those of the running day do not."""
    db.insert("2026-01-01 10:00+00", "ai", 0, '{"tokens_in": 5, "tokens_out": 2, "job_type": "a", "model_level": "x"}')
    db.refresh()
    db.insert("2026-01-02 10:00+00", "ai", 1, '{"tokens_in": "no"}')
    db.insert("2026-01-02 11:00+00", "ai", 1, '{"tokens_in": 0.5}')
    db.execute(
        "update public.resource_usage_log set created_at = '2026-01-03 00:00+00' where detail ->> 'job_type' = 'a'"
    )
    db.execute(
        "insert into public.resource_usage_log (resource_type, created_at) select 'tts', frontier - interval '1 us' from usage.state"
    )
    run = db.refresh()
    key = "job_type, model_level, event_count, total_value, secondary_value, rejected_count, reason"
    rows = db.execute(
        f"select bucket::text, collection_id::text, resource_type, {key} from usage.restatement where rollup = 'daily'"
        " and run_id = %s order by bucket",
        (run.run_id,),
    )
    assert rows == [
        ("2026-01-01", COLLECTIONS[0], "ai", "a", "x", -1, Decimal(-5), Decimal(-2), 0, "deleted"),
        ("2026-01-02", COLLECTIONS[1], "ai", None, None, 2, Decimal("0.5"), Decimal(0), 1, "late"),
        ("2026-01-03", COLLECTIONS[0], "ai", "a", "x", 1, Decimal(5), Decimal(2), 0, "late"),
    ]
    assert db.scalar("select count(*) from usage.daily where day = '2026-01-01'") == 0, (
        "nothing is left of an empty row"
    )
    db.compare()


def test_a_failed_run_is_recorded(db: Database, monkeypatch: Any) -> None:
    """A refresh that fails says so in the history, keeps what was committed, and the next one goes on."""
    db.insert("2026-01-01 10:00+00")

    def fail(*_arguments: Any, **_options: Any) -> None:
        raise RuntimeError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(fold, "apply_delta", fail)
        try:
            db.refresh()
        except RuntimeError:
            pass
        else:
            raise AssertionError("it did not fail")
    assert db.execute("select status, error from usage.refresh_run") == [("failed", "the disk is full")]
    assert db.scalar("select last_error from usage.freshness") == "the disk is full"
    db.compare()
    assert db.refresh().status == "done"
    assert db.scalar("select last_error from usage.freshness") is None
    db.compare()


def test_a_clock_that_stepped_back(db: Database) -> None:
    """A frontier in the future stays where it is; what is written meanwhile is late, and counted."""
    db.insert("2026-01-01 10:00+00")
    db.refresh()
    db.execute(
        "select setval('usage.frontier_seq', (extract(epoch from clock_timestamp() + interval '1 hour') * 1e6)::bigint)"
    )
    db.refresh()
    assert db.scalar("select frontier > clock_timestamp() + interval '59 min' from usage.state")
    db.execute("insert into public.resource_usage_log (resource_type, created_at) values ('ai', clock_timestamp())")
    assert db.scalar("select count(*) from usage.late_change") == 1
    db.compare()
    before = db.scalar("select frontier from usage.state")
    assert db.refresh().late_changes == 1
    assert db.scalar("select frontier from usage.state") == before
    db.compare()
