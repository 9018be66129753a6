"""Quarters: kept with their months by a trigger, and read where a window has whole ones."""

from __future__ import annotations

from datetime import date

import pytest

from aggregator import fold
from tests.harness import COLLECTIONS, Database, some

MONTHS = [date(2024 + n // 12, n % 12 + 1, 1) for n in range(26)]


@pytest.fixture
def monthly(db: Database) -> Database:
    """Events of 26 months, on their first and last days too, and at the ends of time."""
    db.attach(hourly=False)
    for n, month in enumerate(MONTHS):
        for day in ("01 00:00", "01 10:00", "14 12:00", "27 23:59:59.999999"):
            db.insert(f"{month:%Y-%m}-{day}+00", ("ai", "tts")[n % 2], n % 5, '{"tokens_in": 1.5, "characters": 7}')
    for end in ("-infinity", "infinity", "0300-02-03 BC", "9999-12-31 23:00+00"):
        db.insert(end)
    db.refresh()
    return db


def quarters_differ(db: Database) -> int:
    """Count the rows of quarters that are not the sums of their months."""
    sums = "sum({0}.event_count), sum({0}.total_value), sum({0}.secondary_value), sum({0}.rejected_count)"
    return int(
        db.scalar(
            f"select count(*) from (select usage.quarter_of(m.month) as quarter, m.key_id, {sums.format('m')}"
            "  from usage.monthly_collection_fact m group by 1, 2) m full join (select q.quarter, q.key_id,"
            f" {sums.format('q')} from usage.quarterly_collection_fact q group by 1, 2) q"
            " using (quarter, key_id) where m is null or q is null or m::text <> q::text"
        )
    )


@pytest.mark.parametrize("start", some(range(24), 11))
def test_windows_of_months(monthly: Database, start: int) -> None:
    """From and to each month, and from and to a day of it: the same as the raw query, trusted, in doubt and sealed in part."""
    since = MONTHS[start]
    windows: list[tuple[str, str | None, str | None]] = [
        (f"{since} 00:00+00", None, None),
        (f"{since} 00:00+00", None, COLLECTIONS[0]),
    ]
    windows += [
        (f"{since:%Y-%m}-{first}+00", f"{until:%Y-%m}-{last}+00", None)
        for first, last in (("01 00:00", "01 00:00"), ("02 09:00", "03 10:00"), ("20 00:00", "25 00:00"))
        for until in MONTHS[start + 1 :]
    ]
    windows += [("-infinity", f"{since} 00:00+00", None)]
    monthly.compare(windows)
    fold.with_retries(lambda: monthly.execute("update usage.state set trusted = false, distrust_reason = 'a test'"))
    monthly.compare(windows[::5])


def test_what_a_snapshot_from_before_has(monthly: Database) -> None:
    """No quarters, and a state that says so: months are read."""
    monthly.execute("delete from usage.quarterly_collection_fact; update usage.state set has_quarters = false")
    monthly.compare([("2024-01-01 00:00+00", "2025-01-01 00:00+00", None), ("-infinity", None, None)])


def test_whatever_changes_months_changes_their_quarters(monthly: Database) -> None:
    """Folds, repairs and whoever writes to months by hand."""
    assert monthly.scalar("select count(*) from usage.quarterly_collection") > 9
    assert quarters_differ(monthly) == 0
    monthly.execute("delete from public.resource_usage_log where created_at between '2024-02-01' and '2024-12-15'")
    monthly.insert("2024-05-05 10:00+00", "new", 3, "{}")
    monthly.refresh()
    assert quarters_differ(monthly) == 0
    assert monthly.scalar("select count(*) from usage.quarterly_collection where quarter = '2024-07-01'") == 0
    monthly.compare([("2024-01-01 00:00+00", "2025-01-01 00:00+00", None)])
    for change in (
        "update usage.monthly_collection_fact set event_count = event_count + 3, total_value = total_value - 1.25 where isfinite(month)",
        "delete from usage.monthly_collection_fact where extract(month from month) = 5 or not isfinite(month)",
        "insert into usage.monthly_collection_fact select '2031-05-01', key_id, 1, 2, 3, 4 from usage.monthly_collection_fact"
        " group by key_id",
        "truncate usage.monthly_collection_fact",
    ):
        monthly.execute(change)
        assert quarters_differ(monthly) == 0, change
    assert monthly.scalar("select count(*) from usage.quarterly_collection") == 0
    assert monthly.verify(repair=True).trusted
    assert quarters_differ(monthly) == 0
    monthly.compare()


def test_both_a_month_and_its_quarter_are_wrong(monthly: Database) -> None:
    """A repair adds to the quarter what it adds to the month, and what it was off by besides."""
    monthly.execute("update usage.monthly_collection_fact set total_value = total_value + 5 where month = '2024-05-01'")
    monthly.execute(
        "update usage.quarterly_collection_fact set total_value = total_value + 7 where quarter = '2024-04-01'"
    )
    found = monthly.verify()
    assert {difference.rollup for difference in found.shown} == {"monthly_collection", "quarterly_collection"}
    assert monthly.verify(repair=True).trusted
    assert monthly.verify().differences == 0
    assert monthly.verify(since="2024-06-10").differences == 0  # a quarter is compared with all of its months
    assert quarters_differ(monthly) == 0
    monthly.compare([("2024-01-01 00:00+00", "2025-01-01 00:00+00", None)])
    assert monthly.scalar("select count(*) from usage.restatement where rollup = 'quarterly_collection'") > 0
