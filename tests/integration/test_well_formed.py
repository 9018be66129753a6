"""Raw events of a window's edges whose days hold nothing malformed: read without bounds, and as the raw query says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from aggregator import hourly, metrics, rebuild
from aggregator.metrics import Metric
from tests.harness import COLLECTIONS, HOURLY, Database, compare, snapshot

Window = tuple[str, str | None, str | None]

# Every 11 minutes of four weeks in May 2024, in turns of three collections and seven types: numbers, strings and nothing.
EVENTS = """
insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)
select (array['{}', '{}', null]::uuid[])[1 + n %% 3],
       (array['ai', 'whisper', 'ai', 'tts', 'cas', 'other', null])[1 + n / 3 %% 7],
       case n %% 13 when 0 then null when 1 then '{{}}' when 2 then '{{"tokens_in": null, "tokens_out": "7"}}'
       else jsonb_build_object('tokens_in', n * 1.1, 'tokens_out', -n, 'duration_seconds', (n * 0.37)::text, 'characters', n,
                               'size_bytes', ' 1e3 ', 'job_type', repeat('j', 100 + n / 7 %% 40), 'model_level', 'm' || n / 7 %% 2) end,
       timestamptz '2024-05-28 23:00+00' - n * interval '11 minutes'
  from generate_series(%s, 3600, %s) n
""".format(*COLLECTIONS[:2])

# Cut at one end or at both, in the longer or the shorter part of a day: added, or the other part taken away.
EDGES: list[Window] = [
    ("2024-05-10 04:00:01+00", "2024-05-20 12:30+00", None),
    ("2024-05-10 18:30+00", "2024-05-20 05:00+00", None),
    ("2024-05-10 18:30+00", "2024-05-20 21:45+00", None),
    ("2024-05-10 16:20+00", "2024-05-10 19:40+00", None),
    ("2024-05-10 00:10+00", None, None),
    ("2024-05-10 20:00+00", None, COLLECTIONS[0]),
]

HEAD, FOOT = ("2024-05-10 18:30+00", "2024-05-11 00:00+00"), ("2024-05-20 00:00+00", "2024-05-20 05:00+00")


def _add(db: Database, at: str, resource_type: str, detail: str) -> None:
    db.execute(
        "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at) values (%s, %s, %s::jsonb, %s::timestamptz)",
        (COLLECTIONS[0], resource_type, detail, at),
    )


def _known(db: Database, *ranges: tuple[str, str]) -> bool:
    """Return whether all events of these ranges are known to be well formed."""
    starts, ends = zip(*ranges, strict=True)
    found = db.scalar("select usage.are_well_formed(%s::timestamptz[], %s::timestamptz[])", (list(starts), list(ends)))
    assert isinstance(found, bool)
    return found


def _arms(db: Database, window: Window) -> list[bool]:
    """Return of each statement that reads a window's events whether it is one for well formed events."""
    arms = db.scalar(
        "select usage.window_events(usage.window_parts(%s::timestamptz, %s::timestamptz), %s::uuid, null)", window
    )
    return ["usage.in_bounds(n.value_number)" not in arm for arm in arms or []]


def _compare(db: Database) -> None:
    with snapshot(db.connection):
        compare(db.connection, db.zone, EDGES, live=False)
        for since, until, collection in EDGES:  # and sums by other keys, which add up to the same
            window = (since, until, collection)
            assert db.execute(
                "select w.resource_type, w.event_count, w.total_value::float8"
                " from usage.window_sums(%s, %s, %s, false, false, false, 'none') w order by 1",
                window,
            ) == db.execute(
                "select w.resource_type, sum(w.event_count), sum(w.total_value)::float8"
                " from usage.window_rows(%s, %s, %s, true, false, false, false) w group by 1 order by 1",
                window,
            )


@pytest.fixture
def filled(db: Database) -> Database:
    """Three quarters of the events, folded, without hours."""
    if HOURLY:
        db.days_only()
    for first in (1, 2, 3):
        db.execute(EVENTS, (first, 4))
    db.refresh()
    return db


@pytest.mark.parametrize(("zone", "hours"), [("UTC", False), ("America/New_York", False), ("Asia/Kathmandu", True)])
def test_edges_of_all_kinds(new_database: Callable[..., Database], zone: str, hours: bool) -> None:
    """With late changes in whole days and with a tail, of which nothing is known; and where late ones wait in the edges."""
    db = new_database(zone=zone)
    db.attach()
    for first in (1, 2, 3):
        db.execute(EVENTS, (first, 4))
    db.refresh()
    if hours:
        hourly.turn_on(db.own)
        assert hourly.fill(db.own, db.settings).done
    elif HOURLY:
        db.days_only()
    _compare(db)
    assert [set(_arms(db, window)) for window in EDGES] == [{True}] * 4 + [{True, False}, {False}]
    _add(db, "2024-05-15 12:00+00", "ai", '{"tokens_in": "many"}')  # late, in a whole day
    _add(db, "2024-05-16 12:00+00", "ai", '{"tokens_in": 0.5}')
    _add(db, str(db.scalar("select now() + interval '1 hour'")), "cas", '{"size_bytes": 1e20}')
    assert _known(db, HEAD, FOOT)
    assert set(_arms(db, EDGES[2])) == {True, False}
    _compare(db)
    db.execute(EVENTS, (4, 4))  # late, everywhere
    assert not _known(db, HEAD)
    _compare(db)
    db.refresh()
    assert set(_arms(db, EDGES[2])) == {True}
    _compare(db)


NOT_WELL_FORMED = {
    "a word": ("ai", '{"tokens_in": "many"}'),
    "a second value": ("ai", '{"tokens_in": 1, "tokens_out": [2]}'),
    "a number too large": ("ai", '{"tokens_in": 1e19}'),
    "a number too small": ("cas", '{"size_bytes": -1000000000000000001}'),
    "too many decimals": ("tts", '{"characters": 1e-41}'),
    "a long type": ("x" * 129, "{}"),
}


@pytest.mark.parametrize("what", NOT_WELL_FORMED)
def test_what_a_day_holds(filled: Database, what: str) -> None:
    """Waiting in the edge, waiting or folded elsewhere in the day, and gone again."""
    db = filled
    resource_type, detail = NOT_WELL_FORMED[what]
    _add(db, "2024-05-10 17:00+00", resource_type, detail)
    assert _known(db, HEAD, FOOT)
    _compare(db)
    db.refresh()
    assert not _known(db, HEAD)
    assert not _known(db, FOOT, HEAD)
    assert not _known(db, ("2024-05-08 12:00+00", "2024-05-12 12:00+00"))
    assert _known(db, FOOT)
    assert _arms(db, EDGES[1]) == [False]
    _compare(db)
    db.execute("delete from public.resource_usage_log where created_at = '2024-05-10 17:00+00'")
    _add(db, "2024-05-20 03:00+00", resource_type, detail)
    assert not _known(db, FOOT)
    _compare(db)
    db.refresh()
    assert _known(db, HEAD)
    assert not _known(db, FOOT)
    _compare(db)


def test_a_metric_redefined(filled: Database) -> None:
    """What it calls malformed from now on is known where it has been rebuilt; before, no edge is read by what is known."""
    db = filled
    metrics.set_metric(db.own, Metric("other", "job_type", unit="words"))
    assert [set(_arms(db, window)) for window in EDGES] == [{False}] * len(EDGES)
    _compare(db)
    rebuild.rebuild(db.own, db.settings)
    assert not _known(db, HEAD)
    _compare(db)


def test_a_source_without_triggers(new_database: Any) -> None:
    """Where late changes are not seen, nothing is known."""
    db = new_database(capture="lookback", lookback_grace=0)
    db.execute(EVENTS, (1, 1))
    db.attach(hourly=False)
    db.refresh()
    assert not _known(db, HEAD)
    _add(db, "2024-05-10 17:00+00", "ai", '{"tokens_in": 1e19}')
    db.compare([EDGES[3]], live=False)


def test_an_event_that_is_lost(filled: Database) -> None:
    """Malformed, and its late change taken away by hand: the day is taken for well formed, and no read fails for it."""
    db = filled
    for value in ("true", '"many"', '""', '"1e400"', '"NaN"', "[1]", '{"a": 1}', '"' + "9" * 200_000 + '"'):
        _add(db, "2024-05-10 17:00+00", "ai", f'{{"tokens_in": {value}, "tokens_out": {value}}}')
    db.execute("delete from usage.late_change")
    assert _arms(db, EDGES[3]) == [True]
    db.compare([EDGES[3]], live=False)
