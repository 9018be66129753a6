"""Metrics as data: a new type or a changed key, readers exact throughout, sealed history as it was."""

from __future__ import annotations

from decimal import Decimal

import pytest

from aggregator import metrics, rebuild
from aggregator.errors import UsageError
from aggregator.metrics import Metric
from tests.harness import Database

AI = Metric("ai", "tokens_in", "tokens_out", "tokens", "tokens", "AI")
NEW = "when 'export' then oracle.number(detail, 'rows') when 'tts' then oracle.number(detail, 'seconds')"


@pytest.fixture
def filled(db: Database) -> Database:
    for month in ("2026-01", "2026-02", "2026-03"):
        db.insert(f"{month}-10 10:00+00", "export", 0, '{"rows": 3, "job_type": "a"}')
        db.insert(f"{month}-11 10:00+00", "tts", 1, '{"characters": 10, "seconds": 2.5}')
        db.insert(f"{month}-12 10:00+00", "tts", None, '{"characters": 10, "seconds": "many"}')
    db.refresh()
    db.insert("2026-02-11 11:00+00", "tts", 1, '{"characters": 1, "seconds": 0.5}')
    db.insert("now", "tts", 2, '{"characters": 1, "seconds": 0.5}')
    return db


def oracle_goes_along(db: Database) -> None:
    """The oracle has a definition of its own."""
    db.execute(
        "create or replace function oracle.value(resource_type text, detail jsonb) returns numeric language sql immutable as"
        f" $$ select case resource_type {NEW} end $$"
    )


def test_a_new_type_and_a_changed_key(filled: Database) -> None:
    """Exact before, right after (then read raw), while it is rebuilt, and after that from the rollups."""
    filled.compare()
    assert metrics.set_metric(filled.own, Metric("export", "rows", unit="rows"))
    assert metrics.set_metric(filled.own, Metric("tts", "seconds", unit="seconds"))
    oracle_goes_along(filled)
    assert "metric was changed" in filled.scalar("select usage.doubt()")
    filled.compare()
    result = rebuild.rebuild(filled.own, filled.settings, progress=lambda _: filled.compare())
    assert result.trusted
    filled.compare()
    assert filled.execute("select unit, sum(total_value)::float8 from usage.monthly_live where resource_type = 'tts' group by 1") == [
        ("seconds", 8.5)
    ]  # fmt: skip
    filled.refresh()
    filled.compare()


def test_nothing_changes_and_names_only(filled: Database) -> None:
    """The same again changes nothing; a unit or a label costs no rebuild."""
    assert not metrics.set_metric(filled.own, Metric("tts", "characters", unit="characters", label="Speech"))
    assert metrics.set_metric(filled.own, Metric("tts", "characters", unit="letters", label="Speech"))
    assert filled.scalar("select usage.doubt() is null")
    assert filled.scalar("select distinct unit from usage.daily_live where resource_type = 'tts'") == "letters"
    filled.compare()


def test_preview_says_what_would_change(filled: Database) -> None:
    """Month by month, exact, from the raw events; nothing is changed, and no lock is held on the state."""
    old = metrics.find(filled.own, "tts")
    found = metrics.preview(filled.own, old, Metric("tts", "seconds"))
    assert [(row.month, row.events, row.old_total, row.new_total, row.rejected) for row in found[:3]] == [
        ("2026-01-01", 2, Decimal(20), Decimal("2.5"), 1),
        ("2026-02-01", 3, Decimal(21), Decimal("3.0"), 1),
        ("2026-03-01", 2, Decimal(20), Decimal("2.5"), 1),
    ]
    assert all(row.changes for row in found)
    assert not any(row.changes for row in metrics.preview(filled.own, old, Metric("tts", "characters")))
    assert filled.scalar("select usage.doubt() is null")
    with filled.connect(autocommit=False) as other:
        other.execute(b"select from usage.state for update")
        assert metrics.preview(filled.own, old, Metric("tts", "seconds")) == found


def test_preview_ends_with_the_end_buckets(filled: Database) -> None:
    """Events before year 1 and after 9999 are months of their own, and the last one ends the preview."""
    for instant in ("-infinity", "20000-01-01 00:00+00", "infinity"):
        filled.insert(instant, "tts", 1, '{"characters": 1, "seconds": 0.5}')
    left = 20

    def check() -> None:
        nonlocal left
        left -= 1
        assert left, "it does not end"

    found = metrics.preview(filled.own, metrics.find(filled.own, "tts"), Metric("tts", "seconds"), check=check)
    assert [(row.month, row.events) for row in (found[0], found[-1])] == [("-infinity", 1), ("infinity", 2)]


def test_a_key_of_old_events_only(filled: Database) -> None:
    """Every month is looked at before a key is called unknown; a key of no object is none."""
    filled.insert("2025-03-01 00:00+00", "tts", 1, '{"minutes": null}')
    filled.insert("now", "tts", 1, '["hours"]')
    assert metrics.check_metric(filled.own, Metric("tts", "seconds", "minutes")) is None
    with pytest.raises(UsageError, match="'hours'"):
        metrics.check_metric(filled.own, Metric("tts", "hours"))


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (Metric(" ", "rows"), "resource type is empty"),
        (Metric("tts", ""), "key is empty"),
        (Metric("tts", "characters", " "), "key is empty"),
        (
            Metric("tts", "caracters"),
            r"no event of type tts has the key 'caracters' \(seen: characters, seconds\).*--force",
        ),
        (Metric("tts", "characters", "nothing"), "'nothing'"),
    ],
)
def test_what_cannot_be_meant(filled: Database, metric: Metric, message: str) -> None:
    """Empty and unknown keys are refused; nothing is changed."""
    before = metrics.list_metrics(filled.own)
    with pytest.raises(UsageError, match=message):
        metrics.set_metric(filled.own, metric)
    assert metrics.list_metrics(filled.own) == before
    assert filled.scalar("select usage.doubt() is null")
    if "--force" in message:
        assert metrics.set_metric(filled.own, metric, force=True)


def test_types_without_events_are_fine(filled: Database) -> None:
    """A metric may come before its first event."""
    metric = Metric("render", "frames", unit="frames")
    assert "no events" in str(metrics.check_metric(filled.own, metric))
    assert metrics.set_metric(filled.own, metric)


def test_removing(filled: Database) -> None:
    """Events of a removed type count on, with value 0; an unknown type is named, with those there are."""
    with pytest.raises(UsageError, match="there is no metric 'speech'; there are ai, "):
        metrics.remove_metric(filled.own, "speech")
    metrics.remove_metric(filled.own, "tts")
    filled.execute(
        "create or replace function oracle.value(resource_type text, detail jsonb) returns numeric language sql immutable as $$ select null::numeric $$"
    )
    filled.compare()
    rebuild.rebuild(filled.own, filled.settings)
    filled.compare()


def test_sealed_history_keeps_its_definition_and_says_so(filled: Database) -> None:
    """Days below the seal stay as they were added up; the list of metrics says by what."""
    filled.refresh()
    filled.execute("update usage.state set sealed_until = '2026-02-01 00:00+00'")
    assert metrics.set_metric(filled.own, Metric("tts", "seconds", unit="seconds"))
    rebuild.rebuild(filled.own, filled.settings)
    assert filled.execute("select month::text, total_value::float8 from usage.monthly_live where resource_type = 'tts' and collection_id is not null"
                          " and month < '2026-03-02' order by 1") == [
        ("2026-01-01", 10.0), ("2026-02-01", 3.0), ("2026-03-01", 2.5),
    ]  # fmt: skip
    _, history = metrics.list_metrics(filled.own)
    assert [(old.metric.resource_type, old.metric.value_key, old.valid_below) for old in history] == [
        ("tts", "characters", "2026-02-01")
    ]
    metrics.set_metric(filled.own, Metric("tts", "seconds", unit="s"))
    metrics.set_metric(filled.own, Metric("render", "frames"))
    metrics.remove_metric(filled.own, "ai")
    _, history = metrics.list_metrics(filled.own)
    assert {(old.metric.resource_type, old.metric.value_key) for old in history} == {
        ("tts", "characters"),
        ("render", None),
        ("ai", "tokens_in"),
    }


def test_sealed_history_names_no_definition_it_never_had(filled: Database) -> None:
    """Changed twice under one seal: the first definition only; after the seal was moved, the one of in between too."""
    filled.execute("update usage.state set sealed_until = '2026-02-01 00:00+00'")
    for key in ("seconds", "rows", "seconds"):
        metrics.set_metric(filled.own, Metric("tts", key), force=True)
    rebuild.rebuild(filled.own, filled.settings)
    filled.execute("update usage.state set sealed_until = '2026-03-01 00:00+00'")
    metrics.remove_metric(filled.own, "tts")
    _, history = metrics.list_metrics(filled.own)
    assert [(old.metric.value_key, old.valid_below) for old in history] == [
        ("characters", "2026-02-01"),
        ("seconds", "2026-03-01"),
    ]
