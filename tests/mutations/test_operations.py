"""Each rule of purge, seal, rebuild and metrics, broken on a fresh database: the comparison catches it, and not before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from aggregator import frontier, metrics, purge, rebuild, refresh, seal, verify
from aggregator.db import connect
from aggregator.errors import AggregatorError
from aggregator.metrics import Metric
from tests.faults.shadow import SHADOW, check, prepare
from tests.harness import Database, Mismatch

Break = Callable[[pytest.MonkeyPatch, Database], None]


@pytest.fixture
def prepared(new_database: Any) -> Database:
    db: Database = new_database(purge_batch=20)
    prepare(db, days=90, each=2)
    db.attach()
    db.refresh()
    return db


def caught(db: Database, monkeypatch: pytest.MonkeyPatch, scenario: Callable[[Database], None], broken: Break) -> None:
    """Run a scenario, broken: it must raise Mismatch. Unbroken it is run by its own test below."""
    broken(monkeypatch, db)
    with pytest.raises(Mismatch):
        scenario(db)


def purging(db: Database) -> None:
    purge.purge(db.own, db.settings, "30d")
    check(db)
    db.refresh()
    check(db)


def purging_what_differs(db: Database) -> None:
    """Somebody changed the rollups of an old day: refused, and after the repair right."""
    db.execute(
        "update usage.daily_fact set total_value = total_value + 1 where day = (select min(day) from usage.daily)"
    )
    db.execute(
        "update usage.monthly_fact set total_value = total_value + 1 where month = (select min(month) from usage.monthly)"
    )
    db.execute(
        "update usage.monthly_collection_fact set total_value = total_value + 1 where month = (select min(month) from usage.monthly)"
    )
    try:
        purge.purge(db.own, db.settings, "30d")
    except AggregatorError:
        verify.verify(db.own, db.settings, repair=True)
        purge.purge(db.own, db.settings, "30d")
    check(db)


def resetting_the_frontier(db: Database) -> None:
    """With a write between the two halves, and one that comes true later."""
    db.execute("select setval('usage.frontier_seq', (extract(epoch from timestamptz '2099-01-01') * 1e6)::bigint)")
    db.refresh()

    def write(at: str) -> None:
        db.execute(
            "with written as (insert into public.resource_usage_log (resource_type, detail, created_at)"
            f" values ('ai', '{{\"tokens_in\": 1}}', %s::timestamptz) returning *) insert into {SHADOW} select * from written",
            (at,),
        )

    write("2040-01-01 00:00+00")
    check(db)
    halves = rebuild._lower_row, rebuild._lower_sequence

    def then_write(connection: Any) -> bool:
        write("2041-01-01 00:00+00")
        return halves[1](connection)

    rebuild._lower_sequence = then_write
    try:
        rebuild.reset_frontier(db.own)
    finally:
        rebuild._lower_sequence = halves[1]
    write("2042-01-01 00:00+00")
    check(db)
    db.refresh()
    check(db)


def a_refresh_that_was_overtaken(db: Database) -> None:
    """It aims at a frontier that is reset before it folds; then something is written below it."""
    db.execute("select setval('usage.frontier_seq', (extract(epoch from timestamptz '2099-01-01') * 1e6)::bigint)")
    db.refresh()
    real = frontier.advance_and_wait

    def overtaken(*arguments: Any) -> Any:
        found = real(*arguments)
        with connect(db.settings) as other:
            rebuild.reset_frontier(other)
        return found

    frontier.advance_and_wait = overtaken  # type: ignore[assignment]
    try:
        db.refresh()
    except AggregatorError:
        pass
    finally:
        frontier.advance_and_wait = real
    # What readers see of the sequence would save them here: let it catch up, as the next advance does.
    with connect(db.settings) as other:
        db.execute(
            "with written as (insert into public.resource_usage_log (resource_type, detail, created_at)"
            f" values ('ai', '{{\"tokens_in\": 1}}', '2042-01-01') returning *) insert into {SHADOW} select * from written"
        )
        frontier.advance(other)
    check(db)


def a_changed_metric(db: Database) -> None:
    metrics.set_metric(db.own, Metric("tts", "tokens_in", None, "characters", None, "Speech"))
    db.execute(
        "create or replace function oracle.value(resource_type text, detail jsonb) returns numeric language sql immutable as"
        " $$ select case resource_type when 'ai' then oracle.number(detail, 'tokens_in') when 'tts' then oracle.number(detail, 'tokens_in')"
        " when 'cas' then oracle.number(detail, 'size_bytes') end $$"
    )
    check(db)


def sealing_with_changes_pending(db: Database) -> None:
    """Late changes below the seal are folded with it: a delete that was logged counts, though its raw row is gone."""
    db.execute(
        "with gone as (delete from public.resource_usage_log where created_at < now() - interval '60 days' returning id)"
        f" delete from {SHADOW} s using gone where gone.id = s.id"
    )
    day = db.scalar("select (usage.local_day(now(), time_zone) - 30)::text from usage.state")
    seal.seal(db.own, db.settings, day)
    db.execute("truncate public.resource_usage_log")
    db.execute(f"delete from {SHADOW} where created_at >= (select sealed_until from usage.state)")
    db.refresh()
    check(db)


SCENARIOS = [
    purging, purging_what_differs, resetting_the_frontier, a_refresh_that_was_overtaken, a_changed_metric, sealing_with_changes_pending,
]  # fmt: skip


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_unbroken(prepared: Database, scenario: Callable[[Database], None]) -> None:
    """Every scenario is right as the program is."""
    scenario(prepared)


def no_seal_for_writers(patch: pytest.MonkeyPatch, _db: Database) -> None:
    """Purge deletes while writers do not know the seal: its deletes count."""
    patch.setattr(seal, "set_sequence", lambda _connection: None)
    patch.setattr(purge, "_require_order", lambda _connection: None)


def no_verification(patch: pytest.MonkeyPatch, _db: Database) -> None:
    """Purge believes the rollups."""
    patch.setattr(verify, "verify", lambda *_, **__: verify.VerifyResult(0, 0, (), False, True, None))


def sequence_before_row(patch: pytest.MonkeyPatch, db: Database) -> None:
    """The frontier that writers see is put back first, then the program is killed: a write meanwhile is in neither.

    Readers doubt a sequence that is behind; the next advance raises it again, and would hide what happened.
    """

    def killed(connection: Any) -> None:
        connection.execute("select setval('usage.frontier_seq', (extract(epoch from clock_timestamp()) * 1e6)::bigint)")
        db.execute(
            "with written as (insert into public.resource_usage_log (resource_type, detail, created_at)"
            f" values ('ai', '{{\"tokens_in\": 1}}', '2043-01-01') returning *) insert into {SHADOW} select * from written"
        )
        frontier.advance(connection)

    patch.setattr(rebuild, "reset_frontier", killed)


def target_not_looked_at(patch: pytest.MonkeyPatch, _db: Database) -> None:
    """A fold does not ask whether its target still holds, nor does the reset end the refreshes that have one."""
    patch.setitem(refresh.SQL, "is_reached", "select true or %(target)s::timestamptz is null")
    patch.setitem(rebuild.SQL, "stop_refreshes", "select")


def trust_stays_on(_patch: pytest.MonkeyPatch, db: Database) -> None:
    """A changed metric turns nothing off."""
    db.execute("drop trigger metric_redefined on usage.metric")


def pending_changes_forgotten(patch: pytest.MonkeyPatch, _db: Database) -> None:
    """Seal drops the late changes below it without adding them."""
    patch.setitem(seal.SQL, "add_late", "select %(zone)s::text")


@pytest.mark.parametrize(
    ("scenario", "broken"),
    [
        (purging, no_seal_for_writers),
        (purging_what_differs, no_verification),
        (resetting_the_frontier, sequence_before_row),
        (a_refresh_that_was_overtaken, target_not_looked_at),
        (a_changed_metric, trust_stays_on),
        (sealing_with_changes_pending, pending_changes_forgotten),
    ],
    ids=lambda value: value.__name__,
)
def test_broken(
    prepared: Database, monkeypatch: pytest.MonkeyPatch, scenario: Callable[[Database], None], broken: Break
) -> None:
    """Each mutation is caught by the comparison."""
    caught(prepared, monkeypatch, scenario, broken)
