"""The materialized views: as of a day, equal to the read functions, never for nothing, never in a reader's way."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from aggregator import matviews
from aggregator.db import connect
from tests.harness import COLLECTIONS, Database

VIEWS = ("trailing", "monthly_ranking")


@pytest.fixture(params=["UTC", "Asia/Kathmandu"])
def filled(new_database: Any, request: pytest.FixtureRequest) -> Database:
    db: Database = new_database(zone=request.param)
    db.attach()
    for days in (0, 1, 2, 6, 7, 8, 29, 30, 31, 59, 60, 61, 90, 91, 364, 365, 366):
        for collection in (COLLECTIONS[0], COLLECTIONS[1], None):
            db.execute(
                "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at) values"
                " (%s, 'ai', jsonb_build_object('tokens_in', %s + 0.5, 'tokens_out', 2), now() - make_interval(days => %s))",
                (collection, days, days),
            )
    db.refresh()
    return db


def test_trailing_equals_the_read_functions(filled: Database) -> None:
    """For the same whole days, by collection and resource type, in the reporting zone, with what is pending."""
    filled.insert("2026-11-01 00:00+00", "ai", 0, '{"tokens_in": 7}')  # pending
    assert matviews.refresh_views(filled.own) == VIEWS
    today = filled.scalar("select usage.local_day(now(), time_zone) from usage.state")
    assert filled.execute("select as_of_day from usage.trailing union select as_of_day from usage.monthly_ranking") == [
        (today,)
    ]
    for name, first, last in (
        ("1d", 1, 0),
        ("7d", 7, 0),
        ("30d", 30, 0),
        ("90d", 90, 0),
        ("365d", 365, 0),
        ("previous_30d", 60, 30),
    ):
        expected = filled.execute(
            "select r.collection_id, r.resource_type, r.event_count, r.total_value, r.secondary_value from usage.state s,"
            " usage.by_collection(usage.day_start(usage.local_day(now(), s.time_zone) - %s, s.time_zone),"
            " usage.day_start(usage.local_day(now(), s.time_zone) - %s, s.time_zone)) r order by 1, 2",
            (first, last),
        )
        found = filled.execute(
            f"select collection_id, resource_type, sum(event_count_{name})::bigint, sum(total_value_{name})::float8, sum(secondary_value_{name})::float8"
            f" from usage.trailing group by 1, 2 having sum(event_count_{name}) > 0 order by 1, 2"
        )
        assert found == expected, name


def test_ranking_equals_the_read_functions(filled: Database) -> None:
    """Months add up to by_collection's, and nothing is lost."""
    matviews.refresh_views(filled.own)
    assert filled.execute(
        "select collection_id, resource_type, sum(event_count)::bigint, sum(total_value)::float8 from usage.monthly_ranking group by 1, 2 order by 1, 2"
    ) == filled.execute(
        "select collection_id, resource_type, event_count, total_value from usage.by_collection('-infinity') order by 1, 2"
    )


def test_never_for_nothing(filled: Database) -> None:
    """Again only when the rollups changed, or the local day turned."""
    assert matviews.refresh_views(filled.own) == VIEWS
    assert matviews.refresh_views(filled.own) == ()
    filled.refresh()
    assert matviews.refresh_views(filled.own) == ()
    filled.insert("2026-03-01 00:00+00")
    filled.refresh()
    assert matviews.refresh_views(filled.own) == VIEWS
    filled.execute("update usage.view_refresh set as_of_day = as_of_day - 1 where view_name = 'trailing'")
    assert matviews.refresh_views(filled.own) == ("trailing",)
    filled.execute("update usage.daily_fact set total_value = total_value + 1")
    filled.verify(repair=True)
    assert matviews.refresh_views(filled.own) == VIEWS
    filled.execute("truncate public.resource_usage_log")
    filled.refresh()
    assert matviews.refresh_views(filled.own) == VIEWS
    assert filled.scalar("select count(*) from usage.trailing") == 0


def test_readers_are_never_blocked(filled: Database) -> None:
    """A reader in an open transaction holds up no refresh, and reads on while one is not committed yet."""
    matviews.refresh_views(filled.own)
    filled.insert("2026-03-01 00:00+00")
    filled.refresh()
    reader = filled.connect(autocommit=False)
    reader.execute(b"set lock_timeout = '1s'")
    reader.execute(b"select count(*) from usage.trailing")
    with filled.connect(autocommit=False) as refresher:
        refresher.execute(b"set lock_timeout = '1s'")
        refresher.execute(b"select usage.refresh_view('trailing'), usage.refresh_view('monthly_ranking')")
        with filled.connect() as another:
            another.execute(b"set lock_timeout = '1s'")
            another.execute(b"select count(*) from usage.trailing")
            another.execute(b"select count(*) from usage.monthly_ranking")
        refresher.commit()
    reader.rollback()


def test_two_at_once_do_it_once(filled: Database) -> None:
    """Whoever comes second leaves it to the first."""
    done: list[str] = []

    def work() -> None:
        with connect(filled.settings) as connection:
            done.extend(matviews.refresh_views(connection))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == sorted(VIEWS)


def test_only_ours(filled: Database) -> None:
    """The function that runs with its owner's rights refreshes nothing else."""
    with pytest.raises(Exception, match="no materialized view of aggregator"):
        filled.execute("select usage.refresh_view('daily')")
