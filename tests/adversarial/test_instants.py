"""Frontiers and events around instants at which some number of bits or digits ends."""

from __future__ import annotations

from typing import Any

import pytest

from tests.harness import COLLECTIONS, Database

FRONTIERS = {
    "2 billion seconds": "2033-05-18 03:33:20.000001+00",
    "2^31 seconds": "2038-01-19 03:14:07.999999+00",
    "2^32 seconds": "2106-02-07 06:28:16.000001+00",
    "float8 loses the microsecond": "2130-06-07 08:09:10.123457+00",
    "and two": "2250-03-04 05:06:07.654321+00",
    "2^53 microseconds": "2255-06-05 23:47:34.740993+00",
    "the last microsecond that is a day": "9999-12-31 23:59:59.999999+00",
}


def _insert(db: Database, at: str, offsets: list[int]) -> None:
    """Insert an event for each offset in microseconds from an instant."""
    for n, offset in enumerate(offsets):
        db.execute(
            "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
            " values (%s, 'tts', %s::jsonb, %s::timestamptz + %s * interval '1 microsecond')",
            (COLLECTIONS[n % 3], f'{{"characters": {n + 1}}}', at, offset),
        )


@pytest.mark.parametrize("at", FRONTIERS.values(), ids=FRONTIERS)
def test_frontier_at(db: Database, at: str) -> None:
    """With the frontier there, to the microsecond, events below, at and above it are counted once, changed or not.

    Where float8, which writers compare with, no longer has every microsecond, it errs toward late: a late change from the
    frontier on does not count, and its event is read raw.
    """
    near = [-2_000_000, -3, -2, -1, 0, 1, 2, 3, 2_000_000]
    windows = [
        ("-infinity", None, None),
        ("now-30", None, None),
        ("-infinity", at, None),
        (at, None, None),
        (at, "infinity", COLLECTIONS[0]),
    ]
    _insert(db, at, near)
    db.insert("now")
    # A clock that was once set to then. Odd microseconds, so that rounding goes both ways.
    for offset in (0, 1, 2, 3):
        db.execute(
            "select setval('usage.frontier_seq', (extract(epoch from %s::timestamptz) * 1000000)::bigint + %s)",
            (at, offset),
        )
        assert db.refresh().status == "done"
        db.compare(windows)
        assert db.scalar("select usage.doubt()") is None, at
        # What is below the frontier of the rollups is below that of writers, so none of it goes unseen.
        assert db.scalar("select s.frontier <= usage.frontier_for_writers() from usage.state s")
        _insert(db, at, near)
        db.compare(windows)
        db.execute(
            "update public.resource_usage_log set created_at = created_at + interval '1 microsecond' where id % 3 = 0"
        )
        db.compare(windows)
        db.execute(
            "update public.resource_usage_log set created_at = created_at - interval '2 microseconds' where id % 4 = 0"
        )
        db.execute("delete from public.resource_usage_log where id % 7 = 0")
        db.compare(windows)
    assert db.refresh().status == "done"
    db.compare(windows)
    assert db.scalar("select usage.doubt()") is None
    assert db.verify().differences == 0


def test_events_at_every_end(new_database: Any) -> None:
    """Events at the ends of 32 and 64 bits, of the years 1 and 9999, and infinite: captured, folded and read exactly."""
    db: Database = new_database(zone="America/New_York")
    db.attach()
    ends = [*FRONTIERS.values(), "1901-12-13 20:45:52+00", "0001-01-01 04:56:01.999999+00", "10000-01-01 05:00:00+00",
            "294276-12-31 23:59:59.999999+00", "4713-11-24 12:00:00+00 BC", "-infinity", "infinity"]  # fmt: skip
    windows = [("-infinity", None, None), ("-infinity", "infinity", None), ("infinity", None, None),
               ("2038-01-19 03:14:07.999999+00", "2106-02-07 06:28:16.000001+00", None),
               ("2106-02-07 06:28:16+00", "9999-12-31 23:59:59.999999+00", None)]  # fmt: skip
    for end in ends:
        db.insert(end, "tts", 0, '{"characters": 1}')
    db.compare(windows)
    db.refresh()
    db.compare(windows)
    for frontier in ("2038-01-19 03:14:08+00", "2106-02-07 06:28:16+00", "9999-12-31 00:00+00"):
        db.execute(
            "select setval('usage.frontier_seq', (extract(epoch from %s::timestamptz) * 1000000)::bigint)", (frontier,)
        )
        db.refresh()
        db.compare(windows)
        for n, end in enumerate(ends):
            db.insert(end, "tts", n % 4, '{"characters": 2}')
        db.execute("update public.resource_usage_log set detail = '{\"characters\": 5}' where id % 5 = 0")
        db.execute("delete from public.resource_usage_log where id % 6 = 0")
        db.compare(windows)
    db.refresh()
    db.compare(windows)
    assert db.scalar("select usage.doubt()") is None
    assert db.verify().differences == 0
