"""Random histories: after every step, every answer equals the oracle's in one snapshot."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aggregator import fold, hourly, refresh
from tests.harness import COLLECTIONS, LONG, Database, compare, compare_days, snapshot

EXAMPLES = int(os.environ.get("AGGREGATOR_HISTORIES", "0"))
"""How many random histories to try, by hand; 0: a few, the same ones each time."""

INSTANTS = st.one_of(
    st.integers(0, 40 * 24 * 60).map(lambda minutes: f"now() - interval '{minutes} min'"),
    st.integers(-5, 5).map(lambda minutes: f"now() + interval '{minutes} min'"),
    st.sampled_from(
        [
            "'-infinity'",
            "'infinity'",
            "'0001-01-01'",
            "'0001-01-01 BC'",
            "'9999-12-31 23:59:59+00'",
            "'2025-10-26 00:30+00'",
        ]
    ),
    st.just("null"),
)
DETAILS = st.sampled_from(
    [
        '{"tokens_in": 3, "tokens_out": 0.1, "job_type": "a", "model_level": "x"}',
        '{"tokens_in": "1e2", "job_type": "b"}',
        '{"tokens_in": "none", "job_type": "a"}',
        '{"characters": 12.5}',
        '{"size_bytes": 1e18}',
        "[]",
        None,
    ]
)
TYPES = st.sampled_from(["ai", "ai", "tts", "cas", "unknown", None])
PLACES = st.sampled_from([*COLLECTIONS[:2], COLLECTIONS[6], None])


class InterruptedError_(Exception):  # noqa: N818, N801
    """What an interrupted refresh raises in a test."""


def machine(db: Database) -> type[RuleBasedStateMachine]:
    """Return a state machine over one database, cleared before each history."""

    class Histories(RuleBasedStateMachine):
        rows = 0

        @initialize()
        def begin(self) -> None:
            db.execute("truncate public.resource_usage_log")
            db.execute("delete from usage.restatement")
            db.refresh()

        @rule(at=INSTANTS, detail=DETAILS, kind=TYPES, place=PLACES, times=st.integers(1, 3))
        def insert(self, at: str, detail: str | None, kind: str | None, place: str | None, times: int) -> None:
            self.rows += times
            db.execute(
                "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
                f" select %s, %s, %s::jsonb, ({at})::timestamptz from generate_series(1, %s)",
                (place, kind, detail, times),
            )

        @precondition(lambda self: self.rows > 0)
        @rule(at=INSTANTS, salt=st.integers(0, 99), kind=TYPES)
        def move(self, at: str, salt: int, kind: str | None) -> None:
            db.execute(
                f"update public.resource_usage_log set created_at = ({at})::timestamptz, resource_type = %s"
                " where id in (select id from public.resource_usage_log order by hashint8(id + %s) limit 2)",
                (kind, salt),
            )

        @precondition(lambda self: self.rows > 0)
        @rule(salt=st.integers(0, 99), limit=st.integers(1, 3))
        def delete(self, salt: int, limit: int) -> None:
            db.execute(
                "delete from public.resource_usage_log"
                " where id in (select id from public.resource_usage_log order by hashint8(id + %s) limit %s)",
                (salt, limit),
            )

        @precondition(lambda self: self.rows > 2)
        @rule()
        def truncate(self) -> None:
            db.execute("truncate public.resource_usage_log")

        @rule(step=st.sampled_from([1, 2, 5, 1000]))
        def refresh(self, step: int) -> None:
            db.refresh(step_events=step)

        @rule(steps=st.integers(0, 3), inside=st.booleans())
        def interrupted_refresh(self, steps: int, inside: bool) -> None:
            """Stop a refresh after some steps, or inside one, as a kill would."""
            left = steps

            def stop(*_arguments: Any, **_options: Any) -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    raise InterruptedError_

            with pytest.MonkeyPatch.context() as patch:
                if inside:
                    real = fold.apply_delta

                    def apply(*arguments: Any, **options: Any) -> int:
                        events = real(*arguments, **options)
                        stop()
                        return events

                    patch.setattr(fold, "apply_delta", apply)
                with contextlib.suppress(InterruptedError_):
                    refresh.refresh(
                        db.own,
                        db.settings.model_copy(update={"step_events": 1}),
                        progress=(lambda _step: None) if inside else stop,
                    )

        @rule(on=st.booleans())
        def hours(self, on: bool) -> None:
            """Turn the hourly rollup on or off; the refreshes fill it."""
            (hourly.turn_on if on else hourly.turn_off)(db.own)

        @rule(step=st.sampled_from([1, 3, 1000]))
        def fill_some_hours(self, step: int) -> None:
            hourly.fill(db.own, db.settings.model_copy(update={"step_events": step}), seconds=0)

        @rule()
        def verify(self) -> None:
            if db.scalar("select not exists (select from usage.truncate_marker)"):
                assert db.verify().differences == 0

        @rule(since=INSTANTS, until=INSTANTS, place=PLACES)
        def window(self, since: str, until: str, place: str | None) -> None:
            bounds = db.execute(
                f"select coalesce({since}, '-infinity')::timestamptz::text, ({until})::timestamptz::text"
            )[0]
            with snapshot(db.connection):
                compare(db.connection, db.zone, [(bounds[0], bounds[1], place)], live=False)
                compare_days(db.connection, "Asia/Kolkata", [(bounds[0], bounds[1], place)])

        @invariant()
        def equal(self) -> None:
            db.compare([("-infinity", None, None), ("now-7", None, None), ("now-20", "now-1", COLLECTIONS[0])])

    return Histories


@pytest.mark.parametrize("zone", ["UTC", "America/Havana", "Asia/Kathmandu"])
def test_random_histories(new_database: Any, zone: str) -> None:
    """Inserts, updates, deletes, truncates, refreshes whole and interrupted, hours on and off, in any order: always equal."""
    db = new_database(zone=zone)
    db.attach()
    run_state_machine_as_test(
        machine(db),
        settings=settings(
            max_examples=EXAMPLES or (15 if LONG else 6),
            stateful_step_count=25,
            deadline=None,
            derandomize=not EXAMPLES,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
