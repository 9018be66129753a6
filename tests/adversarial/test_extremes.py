"""Sums of the largest and the least values, and counts of events beyond 32 bits, beyond what a float holds, and near 2^63."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest

from aggregator import export, matviews, seal, status, usage_overview, usage_totals
from tests.cli.test_cli import run
from tests.harness import COLLECTIONS, Database, compare_others, snapshot
from tests.integration.test_export import exported, read
from tests.web.conftest import EDGES, Client
from tests.web.conftest import new_client as new_client  # noqa: PLC0414 -- a fixture

MANY = 2**32 + 7
HUGE = 2**63 - 1 - 10**12
"""Of one key and day: all others and a late event fit beside it."""

VALUES = (
    "1e18",
    "-1e18",
    "1e-40",
    "-1e-40",
    "999999999999999999.9999999999999999999999999999999999999999",
    '"+.0000000001"',
    "-123456789012345678",
)


def test_sums_of_extreme_values(db: Database) -> None:
    """Hundreds of each, together: not a digit is lost in tail, rollups, late changes, totals or exports."""
    windows = [("-infinity", None, None), ("now-30", "now-3", None), ("now-300", None, COLLECTIONS[1])]
    array = "array[" + ", ".join(f"'{value}'" for value in VALUES) + "]"
    insert = (
        "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
        f" select ('00000000-0000-0000-0000-00000000000' || 1 + n %% 3)::uuid, (array['ai', 'cas'])[1 + n %% 2],"
        f' format(\'{{"tokens_in": %%s, "tokens_out": %%s, "size_bytes": %%s, "job_type": %%s}}\', v, v, v, n %% 2)::jsonb,'
        f" now() - n * interval '3 hours' from generate_series(1, %s) n, unnest({array}) v"
    )

    def check() -> None:
        db.compare(windows)
        with snapshot(db.connection):
            compare_others(db.connection, db.zone, windows)

    db.execute(insert, (300,))
    check()
    db.refresh(step_events=500)
    check()
    exact = db.scalar("select sum(total_value) from usage.daily where resource_type = 'cas'")
    # Fractions: a Decimal's sum would be rounded to 28 digits.
    of_one = sum(Fraction(value.strip('"')) for value in VALUES)
    assert Fraction(exact) == of_one * 150
    assert len(exact.as_tuple().digits) > 55
    db.execute(
        'update public.resource_usage_log set detail = detail || \'{"size_bytes": -1e18, "tokens_in": 1e-40}\' where id % 5 = 0'
    )
    db.execute("delete from public.resource_usage_log where id % 7 = 0")
    check()
    db.refresh()
    check()
    assert db.verify().differences == 0
    for output_format in export.FORMATS:
        rows = read(exported(db, output_format, grain="month", days=365), output_format, "month")
        found = sum(Fraction(row[7]) for row in rows if row[3] == "cas")
        whole = db.scalar(
            "select sum(total_value) from usage.export_rows(now() - interval '366 days', null, 'none') where resource_type = 'cas'"
        )
        assert found == Fraction(whole)


@pytest.fixture
def counted(db: Database) -> tuple[Database, dict[tuple[str, str, str | None, str | None], int]]:
    """Sealed days whose raw events are gone and whose rollups, the record of them, count far more events than can be inserted.

    Returned with the counts by day, collection, type and job type.
    """
    db.execute(EDGES)
    counts: dict[tuple[str, str, str | None, str | None], int] = {}
    for age in (12, 11, 10, 1):
        for n, collection in enumerate(COLLECTIONS[:3]):
            for resource_type, job in (("ai", "chat"), ("tts", None)):
                row = db.execute(
                    "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
                    " values (%s, %s, %s, date_trunc('day', now(), 'UTC') - %s * interval '1 day') returning (created_at at time zone 'UTC')::date::text",
                    (collection, resource_type, json.dumps({"tokens_in": 2, "characters": 3, "job_type": job}), age),
                )  # fmt: skip
                most = HUGE if (age, n, job) == (11, 0, "chat") else MANY
                counts[row[0][0], collection, resource_type, job] = 1 if age == 1 else most + n
    db.refresh()
    day = db.scalar("select (date_trunc('day', now(), 'UTC') at time zone 'UTC')::date - 5")
    seal.seal(db.own, db.settings, str(day))
    db.execute("delete from public.resource_usage_log where created_at < %s::date", (day,))
    assert db.scalar("select count(*) from usage.late_change") == 0
    for (of_day, of_collection, of_type, of_job), count in counts.items():
        db.execute(
            "update usage.daily_fact f set event_count = %s from usage.key k where k.id = f.key_id and f.day = %s::date"
            " and k.collection_id = %s::uuid and k.resource_type = %s and k.job_type is not distinct from %s::text",
            (count, of_day, of_collection, of_type, of_job),
        )
    of_days = "from usage.daily_fact d join usage.key k on k.id = d.key_id where"
    for statement in (
        f"update usage.daily_collection_fact f set event_count = (select sum(d.event_count) {of_days} d.day = f.day and k.collection_key = f.key_id)",
        f"update usage.monthly_fact f set event_count = (select sum(d.event_count) {of_days} usage.month_of(d.day) = f.month and k.id = f.key_id)",
        f"update usage.monthly_collection_fact f set event_count = (select sum(d.event_count) {of_days} usage.month_of(d.day) = f.month and k.collection_key = f.key_id)",
        f"update usage.daily_total f set event_count = (select sum(d.event_count) {of_days} d.day = f.day and k.resource_type = f.resource_type)",
        "update usage.state set version = version + 1",
    ):
        db.execute(statement)
    return db, counts


def _sums(counts: dict[Any, int], *positions: int) -> Counter[Any]:
    found: Counter[Any] = Counter()
    for key, count in counts.items():
        found[tuple(key[position] for position in positions)] += count
    return found


def test_counts_beyond_32_bits(counted: Any, new_client: Callable[..., Client]) -> None:
    """Read through every function, the live and materialized views, Python, HTTP, exports, commands and status; a late event adds one."""
    db, counts = counted
    for late in (False, True):
        if late:
            first = min(day for day, *_ in counts)
            db.insert(f"{first} 00:00+00", "ai", 1, '{"tokens_in": 2, "job_type": "chat"}')
            counts[first, COLLECTIONS[1], "ai", "chat"] += 1
        _check_sql(db, counts)
    _check_others(db, counts, new_client(db))
    assert db.refresh().late_changes == 1
    _check_sql(db, counts)
    assert db.verify().differences == 0
    matviews.refresh_views(db.own)
    found = db.execute("select collection_id::text, sum(event_count_30d)::bigint from usage.trailing group by 1")
    yesterday = max(day for day, *_ in counts)
    assert {(row[0],): row[1] for row in found} == _sums(counts, 1), yesterday
    found = db.execute("select resource_type, sum(event_count)::bigint from usage.monthly_ranking group by 1")
    assert {(row[0],): row[1] for row in found} == _sums(counts, 2)


def _check_sql(db: Database, counts: dict[Any, int]) -> None:
    def by(query: str, keys: int) -> dict[Any, int]:
        return {
            tuple(None if value is None else str(value) for value in row[:keys]): row[keys] for row in db.execute(query)
        }

    days, types = _sums(counts, 0, 2), _sums(counts, 1, 2)
    assert by("select collection_id, resource_type, event_count from usage.by_collection('-infinity')", 2) == types
    assert by("select day, resource_type, event_count from usage.daily_series('-infinity')", 2) == days
    assert by("select collection_id, job_type, event_count from usage.ai_drilldown('-infinity')", 2) == _sums(
        {key: count for key, count in counts.items() if key[2] == "ai"}, 1, 3
    )
    for view, bucket in (("daily_live", 0), ("monthly_live", None)):
        found = by(f"select collection_id, resource_type, sum(event_count) from usage.{view} group by 1, 2", 2)
        assert found == types, (view, bucket)
    assert (
        by(
            "select collection_id, resource_type, event_count from usage.totals('-infinity', null, '{collection,resource_type}')",
            2,
        )
        == types
    )
    assert by(
        "select resource_type, sum(event_count) from usage.totals('-infinity', null, '{resource_type}', 'week') group by 1",
        1,
    ) == _sums(counts, 2)
    assert db.scalar("select event_count from usage.totals('-infinity')") == sum(counts.values())
    overview = db.scalar("select usage.overview('-infinity'::timestamptz, null)")
    assert {
        (row["collection_id"], row["resource_type"]): row["event_count"] for row in overview["by_collection"]
    } == types
    # Beside the window before, which has them.
    edges = sorted({day for day, *_ in counts})[:3]
    window = f"'{edges[2]} 00:00+00', '{edges[2]} 00:00+00'::timestamptz + interval '1 day'"
    assert by(
        f"select resource_type, event_count_before from usage.totals({window}, '{{resource_type}}', 'day')", 1
    ) == _sums({key: count for key, count in counts.items() if key[0] == edges[1]}, 2)


def _check_others(db: Database, counts: dict[Any, int], client: Client) -> None:
    types, of_types = _sums(counts, 1, 2), _sums(counts, 2)
    overview = usage_overview(db.connection, days=30)
    assert {(str(row.collection_id), row.resource_type): row.event_count for row in overview.by_collection} == types
    totals = usage_totals(db.connection, by=["resource_type"], days=30)
    assert {(row.resource_type,): row.event_count for row in totals.rows} == of_types
    answer = client.get("/admin/usage?days=30")
    assert answer.status == 200
    assert {
        (row["collection_id"], row["resource_type"]): row["event_count"] for row in answer.json["by_collection"]
    } == types
    answer = client.get("/admin/usage/totals?days=30&by=resource_type")
    assert answer.status == 200, answer
    assert str(of_types["ai",]).encode() in answer.body
    for output_format in export.FORMATS:
        rows = read(exported(db, output_format, grain="day", days=30), output_format, "day")
        assert _sums({(row[1], row[3], number): row[6] for number, row in enumerate(rows)}, 0, 1) == types
    for arguments in (
        ["show", "--days", "30"],
        ["show", "--days", "30", "--format", "json"],
        ["totals", "--by", "resource_type", "--days", "30"],
    ):
        told = run(db.dsn, *arguments)
        assert told.returncode == 0, told
        assert str(types[COLLECTIONS[0], "ai"] if arguments[0] == "show" else of_types["ai",]) in told.stdout.replace(
            ",", ""
        ), told.stdout
    found = status.read_status(db.own, db.settings)
    assert found.daily_rows == len(counts)
    assert found.events_per_day is None or found.events_per_day > 2**31
