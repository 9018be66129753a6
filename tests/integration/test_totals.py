"""The general question: any keys, any grain, beside the window before, equal to the raw query in one snapshot."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest

from aggregator import UsageError, metrics, rebuild, seal, usage_totals
from tests.harness import COLLECTIONS, ORACLE, TOTALS, Database, Mismatch, snapshot

KEYS = ("collection", "resource_type", "job_type", "model_level")
GRAINS = ("none", "day", "week", "month")
ALL_KEYS = [list(by) for n in range(len(KEYS) + 1) for by in itertools.combinations(KEYS, n)]

WINDOWS = [
    ("-infinity", None),
    ("2026-01-15 10:00+00", None),
    ("2026-01-01 00:00+01", "2026-03-01 00:00+01"),
    ("2026-02-10 06:30+01", "2026-04-11 17:45+02"),
    ("2026-03-28 12:00+01", "2026-03-29 12:00+02"),
    ("2026-05-05 00:00+02", "2026-05-05 00:30+02"),
]


@pytest.fixture
def usage(new_database: Any) -> Database:
    """Half a year of events in Oslo, refreshed up to the middle of April, with late changes and a tail."""
    db: Database = new_database(zone="Europe/Oslo")
    db.attach()
    db.execute(
        "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
        " select case when n % 7 > 0 then ('00000000-0000-0000-0000-00000000000' || n % 4 + 1)::uuid end,"
        "        (array['ai', 'tts', 'cas', 'bandwidth', 'odd', null, 'whisper'])[n % 7 + 1],"
        "        jsonb_build_object('tokens_in', n * 0.25, 'tokens_out', n, 'characters', n, 'size_bytes', n % 13,"
        "                           'duration_seconds', case when n % 5 > 0 then to_jsonb(n) else '\"none\"' end,"
        "                           'job_type', (array['chat', 'agent', null])[n % 3 + 1], 'model_level', n % 2),"
        "        timestamptz '2026-01-01 00:00+01' + n * interval '5 hours 17 minutes'"
        "   from generate_series(0, 480) n"
    )
    db.execute("delete from public.resource_usage_log where created_at >= '2026-04-15 00:00+02'")
    db.refresh()
    db.execute(
        "update public.resource_usage_log set collection_id = null where created_at >= '2026-02-01' and id % 11 = 0"
    )
    db.execute("delete from public.resource_usage_log where created_at >= '2026-03-01' and id % 13 = 0")
    for day in ("2026-02-28 23:30+01", "now", "2031-02-28 00:00+01"):
        db.insert(day, "ai", 1, '{"tokens_in": 5, "job_type": "chat"}')
    return db


def totals(db: Database, since: str, until: str | None, **options: Any) -> list[tuple[Any, ...]]:
    parameters = {
        "since": since,
        "until": until,
        "by": [],
        "grain": "none",
        "collection": None,
        "fill": False,
        **options,
    }
    columns = parameters.pop("columns", TOTALS)
    return db.execute(
        f"select {columns} from usage.totals(%(since)s, %(until)s, %(by)s, %(grain)s, %(fill)s, %(collection)s)",
        parameters,
    )


def oracle(db: Database, since: str, until: str | None, **options: Any) -> list[tuple[Any, ...]]:
    parameters = {
        "since": since,
        "until": until,
        "by": [],
        "grain": "none",
        "collection": None,
        "zone": db.zone,
        **options,
    }
    return db.execute(ORACLE["totals"].replace("{source}", db.source), parameters)


def check(db: Database, since: str, until: str | None, **options: Any) -> None:
    """Raise Mismatch unless the rows are the oracle's, whatever their order; the sum of nothing is a row of zeros."""
    with snapshot(db.connection):
        expected, found = oracle(db, since, until, **options), totals(db, since, until, **options)
    if not expected and not options.get("by") and options.get("grain", "none") == "none":
        expected = [(None, None, None, None, None, 0, 0.0, 0.0)]
    if sorted(map(repr, expected)) != sorted(map(repr, found)):
        missing, extra = set(expected) - set(found), set(found) - set(expected)
        raise Mismatch(f"{since} {until} {options}: missing {missing}; extra {extra}")


def test_any_keys_and_grain(usage: Database) -> None:
    """Every set of keys, every grain, every window, all collections and one: refreshed in part, in doubt, and anew."""
    for _ in range(3):
        for (since, until), by, grain in itertools.product(WINDOWS, ALL_KEYS, GRAINS):
            check(usage, since, until, by=by, grain=grain)
        for (since, until), grain in itertools.product(WINDOWS, GRAINS):
            check(usage, since, until, by=["resource_type"], grain=grain, collection=COLLECTIONS[1])
            check(usage, since, until, by=["job_type"], grain=grain, collection=COLLECTIONS[1])
        if usage.scalar("select trusted from usage.state"):
            usage.execute("update usage.state set trusted = false, distrust_reason = 'a test'")
        else:
            usage.execute("update usage.state set trusted = true, distrust_reason = null")
            usage.refresh()


def test_equal_to_the_other_read_functions(usage: Database) -> None:
    """By collection and resource type, and by day and resource type: what by_collection and daily_series say."""
    window = ("2026-02-10 06:30+01", "2026-04-11 17:45+02")
    rows = totals(usage, *window, by=["collection", "resource_type"],
                  columns="collection_id, collection_title, resource_type, event_count, total_value, secondary_value")  # fmt: skip
    assert rows == usage.execute("select * from usage.by_collection(%s, %s)", window)
    rows = totals(usage, *window, by=["resource_type"], grain="day",
                  columns="bucket, starts_at, resource_type, event_count, total_value")  # fmt: skip
    assert sorted(rows, key=repr) == sorted(usage.execute("select * from usage.daily_series(%s, %s)", window), key=repr)


@pytest.mark.parametrize(
    ("since", "until", "grain", "before"),
    [
        ("2026-03-10 12:00+01", "2026-03-20 12:00+01", "none", "2026-02-28 12:00+01"),
        ("2026-03-10 12:00+01", "2026-03-20 12:00+01", "day", "2026-02-28 12:00+01"),
        ("2026-03-25 12:00+01", "2026-04-01 12:00+02", "week", "2026-03-18 12:00+01"),  # over the change of clocks
        ("2026-03-01 00:00+01", "2026-04-01 00:00+02", "month", "2026-02-01 00:00+01"),
        ("2026-03-10 12:00+01", "2026-03-11 18:30+01", "none", "2026-03-09 05:30+01"),
        ("2026-03-10 12:00+01", "2026-03-11 18:30+01", "day", None),
        ("2026-03-10 12:00+01", "2026-03-20 12:00+01", "week", None),
        ("2026-03-10 12:00+01", "2026-03-20 12:00+01", "month", None),
        ("-infinity", "2026-03-20 12:00+01", "none", None),
    ],
)
def test_the_window_before(usage: Database, since: str, until: str, grain: str, before: str | None) -> None:
    """Filled, each key of either window is beside its counterpart in the window before; null where there is none."""
    keys = "collection_id, resource_type"
    for by in (["collection", "resource_type"], ["resource_type"]):
        rows = totals(usage, since, until, by=by, grain=grain, fill=True,
                      columns=f"bucket, {keys}, event_count_before, total_value_before, secondary_value_before")  # fmt: skip
        assert rows
        found = {row[:3]: row[3:] for row in rows if row[3]}
        if before is None:
            assert all(row[3:] == (None, None, None) for row in rows)
            continue
        own = totals(
            usage,
            before,
            since,
            by=by,
            grain=grain,
            columns=f"bucket, {keys}, event_count, total_value, secondary_value",
        )
        shift = {"none": 0, "day": 10, "week": 7, "month": 28}[grain]
        expected = {(None if row[0] is None else _later(row[0], shift), *row[1:3]): row[3:] for row in own}
        assert found == expected


def _later(day: Any, days: int) -> Any:
    return day + timedelta(days=days)


def test_gaps_are_filled(usage: Database) -> None:
    """With fill each key has each bucket of the window once, zeros where there was nothing; nothing else changes."""
    window = ("2026-02-10 06:30+01", "2026-04-11 17:45+02")
    for grain, by in itertools.product(("day", "week", "month"), ([], ["resource_type"], ["collection", "job_type"])):
        plain = totals(usage, *window, by=by, grain=grain)
        filled = totals(usage, *window, by=by, grain=grain, fill=True)
        assert [row for row in filled if row[5]] == plain
        keys = {row[1:5] for row in plain}
        buckets = {row[0] for row in filled}
        assert len(buckets) == {"day": 61, "week": 9, "month": 3}[grain]
        assert sorted((row[0], repr(row[1:5])) for row in filled) == sorted((b, repr(k)) for b in buckets for k in keys)
        assert all(row[5:] == (0, 0.0, 0.0) for row in filled if not row[5])
    empty = ("2025-01-01 00:00+01", "2025-01-03 00:00+01")
    assert [row[0] for row in totals(usage, *empty, grain="day", fill=True)] == ["2025-01-01", "2025-01-02"]
    assert totals(usage, *empty, grain="day", by=["job_type"], fill=True) == []
    assert totals(usage, "-infinity", None, grain="day", fill=True)[0][0] == "2026-01-01"


def test_units_are_not_mixed(usage: Database) -> None:
    """Values of different units are null together, and have their unit where there is but one."""
    columns = "resource_type, total_value is null, unit, secondary_unit"
    assert totals(usage, "-infinity", None, columns=columns) == [(None, True, None, "tokens")]
    by_type = {row[0]: row[1:] for row in totals(usage, "-infinity", None, by=["resource_type"], columns=columns)}
    assert by_type["ai"] == (False, "tokens", "tokens")
    assert by_type["cas"] == (False, "bytes", None)
    assert by_type["odd"] == by_type[None] == (False, None, None)


def test_units_that_held(usage: Database) -> None:
    """A window that reaches into days sealed with another definition names both units, and is not exact."""
    seal.seal(usage.own, usage.settings, "2026-02-01")
    metrics.set_metric(usage.own, metrics.Metric("tts", "seconds", unit="seconds"), force=True)
    rebuild.rebuild(usage.own, usage.settings)

    def unit(since: str, until: str | None) -> Any:
        return dict(totals(usage, since, until, by=["resource_type"], columns="resource_type, unit"))["tts"]

    assert unit("2026-01-15 00:00+01", None) == "characters / seconds"
    assert unit("2026-04-01 00:00+02", "2026-04-11 00:00+02") == "seconds"
    for grain, start, end in (("day", 1, 28), ("month", 1, 1)):
        exported = usage.execute(
            "select bucket < '2026-02-01', unit, count(distinct bucket) from usage.export_rows('-infinity', '2026-03-01 00:00+01', %s)"
            " where resource_type = 'tts' group by 1, 2 order by 1", (grain,),
        )  # fmt: skip
        assert [row[:2] for row in exported] == [(False, "seconds"), (True, "characters")]
        assert start <= exported[0][2] <= end
    until = datetime(2026, 4, 1, tzinfo=timezone.utc)
    found = usage_totals(usage.connection, by=["resource_type"], since=until - timedelta(days=80), until=until)
    assert not found.exact
    assert any("tts before 2026-02-01" in reason for reason in found.reasons)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"by": ["colour"]},
            "by: there is no key 'colour'; there are collection, resource_type, job_type, model_level",
        ),
        ({"by": [None]}, "by: there is no key NULL"),
        ({"grain": "year"}, "grain: there is no 'year'; there are day, week, month and none"),
        ({"grain": None}, "grain: there is no NULL"),
        ({"grain": "hour"}, "hours are in usage.hourly"),
        ({"until": "2025-01-01"}, "since must be before until"),
        ({"since": None}, "since: must not be null"),
        ({"since": "1500-01-01", "grain": "day", "fill": True}, "ask for a shorter window"),
    ],
)
def test_wrong_arguments(usage: Database, options: dict[str, Any], message: str) -> None:
    """One line that says what is wrong, and what there is."""
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=message.replace("(", "\\(")):
        totals(usage, **{"since": "2026-01-01 00:00+01", "until": None, **options})


def test_from_python(usage: Database) -> None:
    """Typed, in the function's order, whatever the caller's session; a receipt also where there is no row."""
    since, until = datetime(2026, 2, 10, 6, 30, tzinfo=timezone.utc), datetime(2026, 4, 10, 6, 30, tzinfo=timezone.utc)
    with usage.connect(autocommit=False) as connection:
        connection.execute(b"set datestyle = 'German'; set timezone = 'Pacific/Apia'; set search_path = ''")
        found = usage_totals(
            connection, by=["collection", "job_type"], grain="week", fill=True, since=since, until=until
        )
    rows = totals(usage, str(since), str(until), by=["collection", "job_type"], grain="week", fill=True,
                  columns=f"{TOTALS}, event_count_before, total_value_before, unit")  # fmt: skip
    assert [(str(row.bucket), row.collection_id, row.resource_type, row.job_type, row.model_level, row.event_count,
             row.total_value, row.secondary_value, row.event_count_before, row.total_value_before, row.unit)
            for row in found.rows] == rows  # fmt: skip
    assert rows
    assert {row.starts_at for row in found.rows} >= {"2026-02-15T23:00:00Z", "2026-03-29T22:00:00Z"}
    assert (found.exact, found.reasons) == (True, ())
    nothing = usage_totals(usage.connection, by=["job_type"], since=datetime(2020, 1, 1, tzinfo=timezone.utc),
                           until=datetime(2020, 1, 2, tzinfo=timezone.utc))  # fmt: skip
    assert (nothing.rows, nothing.exact) == ((), True)
    usage.insert("infinity", "ai", 1)
    far = usage_totals(usage.connection, by=["resource_type"], grain="day", since=until)
    assert far.rows[-1].bucket == "infinity"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": ["colour"]}, "by: there is no key 'colour'"),
        ({"grain": "year"}, "grain: there is no 'year'"),
        ({"grain": "hour"}, "hours are in usage.hourly"),
        (
            {"grain": "day", "fill": True, "since": datetime(1500, 1, 1, tzinfo=timezone.utc)},
            "ask for a shorter window",
        ),
    ],
)
def test_wrong_arguments_in_python(usage: Database, options: dict[str, Any], message: str) -> None:
    """A UsageError in one line."""
    with pytest.raises(UsageError, match=message):
        usage_totals(usage.connection, **options)
