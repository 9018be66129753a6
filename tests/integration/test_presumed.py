"""Folds presume that events are well formed: what is not shows in the sums, and its day is added up again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from aggregator import fold, hourly, raw_days
from tests.harness import Database
from tests.integration.test_contents import ACCEPTED, REJECTED

LONG = ["x" * 129, "漢" * 129, "x" * 96 + "…" + "0" * 33]

CANCEL = ["1e19", "-1e19"]
"""Out of bounds, and their sum is not."""

TOO_LARGE = ["9" * 131_000, "9" * 131_072, "9" * 131_072]
"""Sums of these are no numeric any more."""


@pytest.fixture
def presumptions(monkeypatch: pytest.MonkeyPatch) -> list[raw_days.Presumption]:
    """The presumption of each run, as it is at its end."""
    found: list[raw_days.Presumption] = []
    init = raw_days.RawDays.__init__

    def noted(self: raw_days.RawDays, connection: Any, state: Any, upper: str, presumption: Any) -> None:
        if not any(presumption is other for other in found):
            found.append(presumption)
        init(self, connection, state, upper, presumption)

    monkeypatch.setattr(raw_days.RawDays, "__init__", noted)
    return found


def insert(db: Database, day: int, values: Sequence[str], key: str = "tokens_in", **texts: str) -> None:
    """Some events of one day and key: the values, as JSON text, among well formed ones."""
    for n, value in enumerate(["1.5", *values, "2.25"]):
        db.execute(
            f"insert into {db.source} (resource_type, detail, created_at) values (%s,"
            " jsonb_build_object(%s::text, %s::jsonb, 'job_type', %s::text, 'model_level', %s::text),"
            " timestamptz '2026-01-01 10:00+00' + %s * interval '1 day' + %s * interval '1 minute')",
            (texts.get("resource_type", "ai"), key, value, texts.get("job_type"), texts.get("model_level"), day, n),
        )


def settled(db: Database) -> None:
    """Rollups are right by key too, not only what windows show of them."""
    db.compare()
    assert db.verify().differences == 0
    assert db.scalar("select count(*) from usage.daily_fact f join usage.key k on k.id = f.key_id"
                     " where 'NaN' in (f.total_value, f.secondary_value)") == 0  # fmt: skip


KNOWN = {"one connection": (1, None), "numbered by workers": (3, 1), "by who folds": (3, 10**9)}


@pytest.mark.parametrize("connections", KNOWN)
@pytest.mark.parametrize("hours", [False, True], ids=["days", "hours"])
def test_a_day_with_anything_malformed_is_added_up_again(
    db: Database,
    presumptions: list[raw_days.Presumption],
    monkeypatch: pytest.MonkeyPatch,
    connections: str,
    hours: bool,
) -> None:
    """That day and no other one: by value, second value, and each of the texts."""
    jobs, known = KNOWN[connections]
    if known is not None:
        monkeypatch.setattr(fold, "known_keys", lambda _connection: known)
    if hours:
        hourly.turn_on(db.own)
    malformed: list[tuple[list[str], str, dict[str, str]]] = [
        *(([value], key, {}) for value in ["1e400", '"abc"', "1.00000000000000000000000000000000000000000", "true"]
          for key in ("tokens_in", "tokens_out")),
        (CANCEL, "tokens_in", {}),
        (CANCEL, "tokens_out", {}),
        (TOO_LARGE, "tokens_in", {}),
        (TOO_LARGE, "tokens_out", {}),
        *((["1"], "tokens_in", {column: text}) for text in LONG for column in ("resource_type", "job_type", "model_level")),
    ]  # fmt: skip
    well_formed = 40
    for day in range(well_formed):
        insert(db, day, ["7", '"8"', "null", "-3"])
    for n, (values, key, texts) in enumerate(malformed):
        insert(db, well_formed + n, values, key, **texts)
        insert(db, well_formed + n, [], "characters", resource_type="tts")  # of that day, and in order
    db.execute(f"analyze {db.source}")
    db.refresh(jobs=jobs, step_events=10 if jobs > 1 else 1000)
    (presumption,) = presumptions
    assert presumption.malformed == len(malformed) or jobs > 1
    assert 0 < presumption.malformed <= len(malformed)
    settled(db)


def test_whatever_is_accepted_is_presumed_rightly(db: Database, presumptions: list[raw_days.Presumption]) -> None:
    """Else a source of numbers as text, or of negative ones, would be added up twice."""
    for day, value in enumerate(ACCEPTED):
        insert(db, day, [value], "tokens_in" if day % 2 else "tokens_out")
    db.refresh()
    assert presumptions == [raw_days.Presumption(days=len(ACCEPTED), malformed=0)]
    settled(db)


def test_whatever_is_rejected_is_noticed(db: Database, presumptions: list[raw_days.Presumption]) -> None:
    """Each in a day of its own."""
    for day, value in enumerate(REJECTED):
        insert(db, day, [value], "tokens_in" if day % 2 else "tokens_out")
    db.refresh()
    assert presumptions == [raw_days.Presumption(days=len(REJECTED), malformed=len(REJECTED))]
    settled(db)
    assert db.scalar("select sum(rejected_count) from usage.daily_total") == len(REJECTED)


def test_a_run_presumes_no_more_where_it_is_wrong_too_often(
    db: Database, presumptions: list[raw_days.Presumption]
) -> None:
    """Nor does one that goes on in a day in which something was rejected."""
    for day in range(30):
        insert(db, day, ["true"] if day >= 10 else ["1"])
    assert db.refresh(step_events=10).steps > 5
    assert 10 < presumptions[0].days < 20
    assert presumptions[0].malformed * 4 > presumptions[0].days
    settled(db)
    db.execute(
        f"insert into {db.source} (resource_type, detail, created_at) values ('ai', '{{\"tokens_in\": true}}', now())"
    )
    db.refresh()
    db.execute(
        f"insert into {db.source} (resource_type, detail, created_at) values ('ai', '{{\"tokens_in\": 2}}', now())"
    )
    today = "select (now() at time zone 'UTC')::date"
    before = db.scalar(today)
    db.refresh()
    assert presumptions[1] == raw_days.Presumption(days=1, malformed=1)
    assert presumptions[2] == raw_days.Presumption(days=0, malformed=0) or db.scalar(today) != before
    settled(db)
