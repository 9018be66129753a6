"""Hours by resource type: kept with those by collection by a trigger, and read where collections are not asked for."""

from __future__ import annotations

import pytest

from aggregator import hourly
from tests.harness import Database, compare_days, compare_others, snapshot

WINDOWS: list[tuple[str, str | None, str | None]] = [
    ("2024-05-01 07:30+00", None, None),
    ("2024-05-01 22:10+00", "2024-05-03 05:20+00", None),
    ("-infinity", "2024-05-02 13:00+00", None),
]


@pytest.fixture
def hours(db: Database) -> Database:
    """Events of some days, refreshed, with hours."""
    db.execute(
        "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
        " select case when n % 4 > 0 then ('00000000-0000-0000-0000-00000000000' || n % 4)::uuid end, (array['ai', 'tts', null, 'cas'])[1 + n % 4],"
        "        jsonb_build_object('tokens_in', n * 0.25, 'characters', n, 'size_bytes', 'x'), '2024-05-01 00:10+00'::timestamptz + n * interval '11 minutes'"
        "   from generate_series(1, 400) n"
    )
    db.attach(hourly=True)
    db.refresh()
    return db


def totals_differ(db: Database) -> int:
    """Count the hours by type that are not the sums of those by collection."""
    sums = "sum({0}.event_count), sum({0}.total_value), sum({0}.secondary_value), sum({0}.rejected_count)"
    return int(
        db.scalar(
            f"select count(*) from (select h.hour, h.resource_type, {sums.format('h')} from usage.hourly_collection h group by 1, 2) h"
            f" full join (select t.hour, t.resource_type, {sums.format('t')} from usage.hourly_total t group by 1, 2) t"
            " on t.hour = h.hour and t.resource_type is not distinct from h.resource_type"
            " where h is null or t is null or h::text <> t::text".replace("full join", "left join")
        )
    ) + int(
        db.scalar(
            "select count(*) from usage.hourly_total t where not exists (select from usage.hourly_collection h"
            " where h.hour = t.hour and h.resource_type is not distinct from t.resource_type)"
        )
    )


def compare(db: Database) -> None:
    """Compare all that is read by hours of all collections."""
    db.compare(WINDOWS)
    with snapshot(db.connection):
        compare_others(db.connection, db.zone, WINDOWS)
        for zone in ("America/New_York", "Asia/Kolkata"):
            compare_days(db.connection, zone, WINDOWS)


def test_whatever_changes_hours_changes_those_by_type(hours: Database) -> None:
    """Folds, repairs, whoever writes to hours by hand; off and on."""
    assert hours.scalar("select count(distinct hour) from usage.hourly_total") > 60
    assert totals_differ(hours) == 0
    compare(hours)
    hours.execute(
        "delete from public.resource_usage_log where created_at between '2024-05-01 05:00+00' and '2024-05-01 08:30+00'"
    )
    hours.execute(
        "update public.resource_usage_log set created_at = created_at + interval '50 minutes' where id % 3 = 0"
    )
    hours.insert("2024-05-02 10:00+00", "new", 3, "{}")
    compare(hours)
    hours.refresh()
    assert totals_differ(hours) == 0
    assert hours.scalar("select count(*) from usage.hourly_total where hour = '2024-05-01 06:00+00'") == 0
    compare(hours)
    for change in (
        "update usage.hourly_collection_fact set event_count = event_count + 3, total_value = total_value - 1.25",
        "delete from usage.hourly_collection_fact where extract(hour from hour) = 5",
        "insert into usage.hourly_collection_fact select '2031-05-01 00:00+00', key_id, 1, 2, 3, 4 from usage.hourly_collection_fact group by key_id",
        "truncate usage.hourly_collection_fact",
    ):
        hours.execute(change)
        assert totals_differ(hours) == 0, change
    assert hours.scalar("select count(*) from usage.hourly_total") == 0
    assert hours.verify(repair=True).trusted
    assert hours.scalar("select count(*) from usage.hourly_total") > 60
    assert totals_differ(hours) == 0
    compare(hours)
    hourly.turn_off(hours.own)
    assert hours.scalar("select count(*) from usage.hourly_total") == 0
    compare(hours)
    hourly.turn_on(hours.own)
    hours.refresh()
    assert hours.scalar("select count(*) from usage.hourly_total") > 60
    assert totals_differ(hours) == 0
    compare(hours)


def test_what_a_snapshot_from_before_has(hours: Database) -> None:
    """None, and a state that says so: hours by collection are read."""
    hours.execute("delete from usage.hourly_total; update usage.state set has_hourly_total = false")
    compare(hours)


def test_both_an_hour_and_its_totals_are_wrong(hours: Database) -> None:
    """A repair adds to the totals what it adds to the hour, and what they were off by besides."""
    hours.execute(
        "update usage.hourly_collection_fact set total_value = total_value + 5 where hour = '2024-05-02 09:00+00'"
    )
    hours.execute("update usage.hourly_total set total_value = total_value + 7 where hour = '2024-05-02 09:00+00'")
    hours.execute("insert into usage.hourly_total values ('2024-05-07 11:00+00', 'stray', 1, 2, 3, 4)")
    found = hours.verify()
    assert {difference.rollup for difference in found.shown} == {"hourly_collection", "hourly_total"}
    assert {one.bucket[:13] for one in found.shown if one.rollup == "hourly_total"} == {
        "2024-05-02 09",
        "2024-05-07 11",
    }
    compare(hours)
    assert hours.verify(repair=True).trusted
    assert hours.verify().differences == 0
    assert totals_differ(hours) == 0
    compare(hours)
    assert hours.scalar("select count(*) from usage.restatement where rollup = 'hourly_total'") > 0
