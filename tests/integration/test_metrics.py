"""Metrics as data: a new type or a changed key, readers exact throughout, sealed history as it was."""

from __future__ import annotations

from decimal import Decimal

import pytest

from aggregator import metrics, rebuild
from aggregator.errors import UsageError
from aggregator.metrics import Metric
from tests.harness import Database, Mismatch, snapshot

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
    metrics.set_metric(filled.own, Metric("export", "rows"))
    metrics.set_metric(filled.own, Metric("render", "frames"))  # of these two nothing is sealed
    metrics.remove_metric(filled.own, "ai")
    _, history = metrics.list_metrics(filled.own)
    assert {(old.metric.resource_type, old.metric.value_key) for old in history} == {
        ("tts", "characters"),
        ("export", None),
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


# Late events of sealed days --------------------------------------------------------------------------------------------

CUT = "2026-02-01 00:00+00"

BY_DEFINITION = """
select collection_id::text, count(*),
       coalesce(sum(oracle.number(detail, case when created_at < %(cut)s::timestamptz then 'characters' else 'seconds' end)), 0)::float8
  from public.resource_usage_log
 where resource_type = 'tts' and created_at >= %(since)s::timestamptz
   and (%(until)s::timestamptz is null or created_at < %(until)s::timestamptz)
 group by 1
 order by 1
"""
"""The oracle: characters below the cut, seconds from it on. All raw events are there still."""

READS = (
    "select collection_id::text, event_count, total_value from usage.by_collection(%(since)s, %(until)s)"
    " where resource_type = 'tts' order by 1",
    "select collection_id::text, sum(event_count)::bigint, sum(total_value)::float8 from usage.daily_live"
    " where resource_type = 'tts' and day >= (%(since)s::timestamptz at time zone 'UTC')::date"
    " and (%(until)s::timestamptz is null or day < (%(until)s::timestamptz at time zone 'UTC')::date) group by 1 order by 1",
)

WINDOWS = [
    ("-infinity", CUT),
    ("2026-01-11 00:00+00", "2026-01-12 00:00+00"),
    ("-infinity", None),
    ("2026-01-11 00:00+00", "2026-03-12 00:00+00"),
    (CUT, None),
    ("2026-02-11 00:00+00", "2026-03-12 00:00+00"),
]


def compare_by_definition(db: Database) -> None:
    """Raise Mismatch unless every window, before, across and after the cut, is as the oracle says, in one snapshot."""
    with snapshot(db.connection):
        for since, until in WINDOWS:
            parameters = {"since": since, "until": until, "cut": CUT}
            expected = db.execute(BY_DEFINITION, parameters)
            for read in READS:
                found = db.execute(read, parameters)
                if found != expected:
                    raise Mismatch(f"[{since}, {until}): {expected} expected, {found} found by {read}")


def late_events_after_a_change(db: Database) -> None:
    """Sealed, redefined, and then events come late on both sides of the cut: pending, folded, rebuilt, redefined again."""
    db.refresh()
    db.execute(f"update usage.state set sealed_until = '{CUT}'")
    metrics.set_metric(db.own, Metric("tts", "seconds", unit="seconds"))
    compare_by_definition(db)
    db.insert("2026-01-11 11:00+00", "tts", 1, '{"characters": 1000, "seconds": 3}')
    db.insert("2026-01-31 23:59:59.999999+00", "tts", 2, '{"characters": "x", "seconds": 3}')
    db.insert(CUT, "tts", 2, '{"characters": 1000, "seconds": 3}')
    compare_by_definition(db)
    rebuild.rebuild(db.own, db.settings)
    compare_by_definition(db)
    db.refresh()
    compare_by_definition(db)
    db.insert("2026-01-12 11:00+00", "tts", None, '{"characters": 500, "seconds": "many"}')
    db.insert("now", "tts", 1, '{"characters": 500, "seconds": 4}')
    compare_by_definition(db)
    db.refresh()
    compare_by_definition(db)


def test_late_events_of_sealed_days_add_by_the_definition_of_then(filled: Database) -> None:
    """Windows before, across and after the cut; verify, above the seal, finds nothing; values of then are rejected."""
    late_events_after_a_change(filled)
    assert filled.scalar("select usage.doubt() is null")
    assert filled.verify().differences == 0
    assert rebuild.rebuild(filled.own, filled.settings).differences == 0
    compare_by_definition(filled)
    assert filled.execute(
        "select created_at::date::text, rejected_keys from usage.rejected_event where resource_type = 'tts' order by 1"
    ) == [("2026-01-31", ["characters"]), ("2026-02-12", ["seconds"]), ("2026-03-12", ["seconds"])]
    assert filled.scalar("select sum(rejected_count) from usage.daily_live where resource_type = 'tts'") == 3


def test_the_definition_of_today_for_sealed_days_is_caught(filled: Database) -> None:
    """A mutation: metric_sql() knows today's definitions only."""
    text = filled.scalar("select pg_get_functiondef(oid) from pg_proc where proname = 'metric_sql'")
    today = "(select m.*, '-infinity'::timestamptz as valid_from, null::timestamptz as valid_to from usage.metric m) f"
    assert text.count("usage.metric_definition f") == 1
    filled.execute(text.replace("usage.metric_definition f", today))
    with pytest.raises(Mismatch):
        late_events_after_a_change(filled)


def receipt(db: Database, since: str, until: str | None = None) -> tuple[bool, list[str]]:
    exact, reasons = db.execute("select exact, reasons from usage.receipt(%s, %s)", (since, until))[0]
    return exact, reasons


def test_a_receipt_names_the_definitions_that_a_window_mixes(filled: Database) -> None:
    """Only where a window reaches days that were sealed with another definition than today's, and each of them."""
    filled.refresh()
    filled.execute(f"update usage.state set sealed_until = '{CUT}'")
    assert receipt(filled, "-infinity") == (True, [])
    metrics.set_metric(filled.own, Metric("tts", "seconds", unit="seconds"))
    rebuild.rebuild(filled.own, filled.settings)
    first = "tts before 2026-02-01 adds up characters (characters), as sealed; since then seconds (seconds)"
    for window in (
        ("-infinity", None),
        ("2026-01-31", None),
        ("2026-01-01", "2026-01-02"),
        ("2026-01-31", "2026-03-05"),
    ):
        assert receipt(filled, *window) == (False, [first])
    assert receipt(filled, CUT) == (True, [])
    assert receipt(filled, "now") == (True, [])
    filled.execute("update usage.state set sealed_until = '2026-03-01 00:00+00'")
    metrics.set_metric(filled.own, Metric("tts", "rows", "lines"), force=True)
    rebuild.rebuild(filled.own, filled.settings)
    second = "tts from 2026-02-01 to 2026-03-01 adds up seconds (seconds), as sealed; since then "
    assert receipt(filled, "-infinity") == (False, [first, f"{second}rows and lines"])
    assert receipt(filled, "-infinity", CUT) == (False, [first])
    assert receipt(filled, CUT) == (False, [f"{second}rows and lines"])
    metrics.remove_metric(filled.own, "tts")
    rebuild.rebuild(filled.own, filled.settings)
    assert receipt(filled, CUT) == (False, [f"{second}nothing"])
    metrics.set_metric(filled.own, Metric("tts", "characters", unit="characters"))
    rebuild.rebuild(filled.own, filled.settings)
    assert receipt(filled, "-infinity") == (False, [f"{second}characters (characters)"])
    assert receipt(filled, "-infinity", CUT) == (True, [])
    metrics.set_metric(filled.own, Metric("render", "frames"))
    rebuild.rebuild(filled.own, filled.settings)
    assert receipt(filled, "2026-03-01") == (True, []), "no render was sealed, so nothing is mixed"


def test_a_definition_that_comes_back_was_never_gone(filled: Database) -> None:
    """Changed and changed back under one seal: sealed days and today's are of one definition again."""
    filled.refresh()
    filled.execute(f"update usage.state set sealed_until = '{CUT}'")
    for key in ("seconds", "characters"):
        metrics.set_metric(filled.own, Metric("tts", key, unit=key))
    rebuild.rebuild(filled.own, filled.settings)
    assert metrics.list_metrics(filled.own)[1] == ()
    assert receipt(filled, "-infinity") == (True, [])
    filled.compare()


def test_units_are_those_that_held(filled: Database) -> None:
    """By day the definition of the day; by month none where it changed within the month."""
    filled.refresh()
    filled.execute("update usage.state set sealed_until = '2026-02-12 00:00+00'")
    metrics.set_metric(filled.own, Metric("tts", "seconds", unit="seconds"))
    rebuild.rebuild(filled.own, filled.settings)
    query = (
        "select distinct {0}::text, unit from usage.{1} where resource_type = 'tts' and {0} < '2026-04-01' order by 1"
    )
    assert filled.execute(query.format("day", "daily_live")) == [
        ("2026-01-11", "characters"), ("2026-01-12", "characters"), ("2026-02-11", "characters"),
        ("2026-02-12", "seconds"), ("2026-03-11", "seconds"), ("2026-03-12", "seconds"),
    ]  # fmt: skip
    assert filled.execute(query.format("month", "monthly_live")) == [
        ("2026-01-01", "characters"), ("2026-02-01", None), ("2026-03-01", "seconds"),
    ]  # fmt: skip
