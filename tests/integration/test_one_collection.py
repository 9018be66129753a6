"""Windows of one collection, which are read by a statement of their own where the source has an index for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from aggregator import hourly, metrics, seal
from tests.harness import COLLECTIONS, HOURLY, Database, compare, snapshot
from tests.plans.explain import nodes_done

Window = tuple[str, str | None, str | None]

INDEX = "resource_usage_log_collection_id_created_at_idx"

# Every 7 hours 13 minutes of five months up to the end of May 2024, in turns of three collections and six types.
EVENTS = """
insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)
select (array['{}', '{}', null]::uuid[])[1 + n %% 3],
       (array['ai', 'whisper', 'ai', 'tts', 'other', null])[1 + n / 3 %% 6],
       jsonb_build_object('tokens_in', n * 1.1, 'tokens_out', n, 'duration_seconds', (n * 0.37)::text, 'characters', n,
                          'job_type', 'job ' || n %% 3, 'model_level', 'm' || n / 7 %% 2),
       timestamptz '2024-05-31 23:00+00' - n * interval '7 hours 13 minutes'
  from generate_series(%s, 520, %s) n
""".format(*COLLECTIONS[:2])

BEGINNINGS = (
    "2024-01-20 05:00+00", "2024-02-01 00:00+00", "2024-02-27 19:20:30+00", "2024-03-10 12:00:00.000001+00",
    "2024-04-28 23:30+00", "2024-05-20 03:10+00", "2024-05-20 21:00+00", "2024-05-30 00:00+00", "2024-06-02 00:00+00",
)  # fmt: skip
ENDS = (
    "2024-03-01 00:00+00", "2024-05-20 09:45+00", "2024-05-20 22:30+00", "2024-05-27 18:00+00", "2024-05-31 10:59:59.999999+00",
    "2024-07-01 00:00+00", None,
)  # fmt: skip
WINDOWS: list[Window] = [
    (since, until, COLLECTIONS[0])
    for since, until in itertools.product(BEGINNINGS, ENDS)
    if until is None or until > since
]


# Around each of these instants: what an hour that is cut has on either side.
AROUND = f"""
insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)
select '{COLLECTIONS[0]}', 'ai', jsonb_build_object('tokens_in', %(tokens)s + n, 'job_type', 'job 1'),
       at::timestamptz + (array['-130 min', '-40 min', '-20 min', '-5 min', '0', '5 min', '20 min', '40 min', '130 min']::interval[])[n]
  from unnest(%(instants)s::text[]) at, generate_series(1, 9) n
"""


def fill(db: Database) -> None:
    """Fold three quarters of the events; leave others late, some deleted, some corrected, and a few above the frontier."""
    instants = [*BEGINNINGS, *(end for end in ENDS if end)]
    for first in (1, 2, 3):
        db.execute(EVENTS, (first, 4))
    db.execute(AROUND, {"tokens": 100, "instants": instants})
    db.refresh()
    db.execute(EVENTS, (4, 4))
    db.execute(AROUND, {"tokens": 1000, "instants": instants})
    db.execute("delete from public.resource_usage_log where id % 17 = 0")
    db.execute(
        "update public.resource_usage_log set detail = jsonb_set(detail, '{tokens_in}', '0.001'),"
        " created_at = created_at + interval '90 minutes' where id % 23 = 0"
    )
    for collection in (0, 1):
        db.insert("2026-01-01 10:00+00", "ai", collection, '{"tokens_in": 5, "job_type": "job 1"}')
        db.execute(
            "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
            " values (%s, 'tts', '{\"characters\": 7}', now() + interval '1 day')",
            (COLLECTIONS[collection],),
        )


def used(db: Database, window: Window) -> dict[str, set[str]]:
    """Return by which function each section of a window is read."""
    arguments = ", ".join("null" if value is None else f"'{value}'" for value in window)
    return {
        section: {
            node["Function Name"]
            for node in nodes_done(db, f"select * from usage.{section}({arguments})")
            if node.get("Function Name")
            in {"planned_rows", "planned_by_collection", "planned_daily_series", "window_rows"}
        }
        for section in ("by_collection", "ai_drilldown", "daily_series")
    }


OWN = {"by_collection": {"planned_rows"}, "ai_drilldown": {"planned_rows"}, "daily_series": {"window_rows"}}
OTHER = {key: {"window_rows"} for key in OWN}


@pytest.mark.parametrize(("zone", "hours"), [("UTC", False), ("America/New_York", True), ("Asia/Kathmandu", True)])
def test_every_cut_of_a_window(new_database: Callable[..., Database], zone: str, hours: bool) -> None:
    """Of months, days and hours, from either side, with late changes in all of them: as the raw query says."""
    db = new_database(zone=zone)
    db.attach()
    fill(db)
    if hours:
        hourly.turn_on(db.own)
        assert hourly.fill(db.own, db.settings).done
    elif HOURLY:
        db.days_only()
    assert db.scalar("select count(*) from usage.late_change") > 100
    db.compare(WINDOWS, live=False)
    assert all(used(db, window) == OWN for window in WINDOWS[:: len(ENDS)])
    db.refresh()
    db.compare(WINDOWS, live=False)


def test_a_plan_that_is_kept_sees_what_changes(db: Database) -> None:
    """In one session, whose statement is planned by then: new events, a refresh, new keys, another snapshot."""
    window = [
        ("now-30", None, COLLECTIONS[0]),
        ("now-30", "now-3", COLLECTIONS[0]),
        ("-infinity", None, COLLECTIONS[1]),
    ]
    for number in range(8):
        for days in (0, 5, 10):
            db.execute(
                "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
                " select %s, 'ai', jsonb_build_object('tokens_in', n, 'job_type', 'job ' || n), now() - make_interval(days => %s)"
                " from generate_series(1, %s) n",
                (COLLECTIONS[number % 2], days, number + 1),
            )
            db.compare(window, live=False)
        db.refresh()
        db.compare(window, live=False)


def test_an_old_snapshot_reads_as_it_was(db: Database) -> None:
    """A statement that was planned before is run in a snapshot from before a refresh, and a later one, in turns."""
    windows = [("2024-01-20 05:00+00", None, COLLECTIONS[0]), ("2024-01-20 05:00+00", None, None)]
    fill(db)
    reader = db.connect()
    with snapshot(reader):
        compare(reader, db.zone, windows, live=False)
        db.refresh()
        db.execute("delete from public.resource_usage_log where id % 3 = 0")
        compare(reader, db.zone, windows, live=False)
        db.compare(windows, live=False)
        db.refresh()
        compare(reader, db.zone, windows, live=False)
        db.compare(windows, live=False)


OTHER_INDEXES = (
    "(created_at, collection_id)",
    "(collection_id, id, created_at)",
    "(resource_type, created_at)",
    "(collection_id, created_at) where resource_type = 'ai'",
    "using brin (collection_id, created_at)",
    "(collection_id, date(created_at at time zone 'UTC'))",
)


def test_where_it_would_not_do(db: Database) -> None:
    """Without such an index, over several machines, or of very many keys, each window is planned by itself."""
    fill(db)
    windows: list[Window] = [WINDOWS[0], ("2024-05-20 03:10+00", "2024-05-27 18:00+00", COLLECTIONS[0])]

    def planned_once() -> bool:
        found = [used(db, window) for window in windows]
        assert found in ([OWN] * 2, [OTHER] * 2)
        return found[0] == OWN

    assert planned_once()
    db.execute(f"drop index public.{INDEX}")
    assert not planned_once()
    db.compare(WINDOWS, live=False)
    for definition in OTHER_INDEXES:
        db.execute(f"create index another on public.resource_usage_log {definition}")
        assert not planned_once(), definition
        db.execute("drop index public.another")
    db.execute("create index another on public.resource_usage_log (collection_id, created_at, id)")
    assert planned_once()

    # As Citus's tables are, which the functions of this one reach as well.
    db.execute("update usage.state set distributed = true")
    assert not planned_once()
    db.execute("update usage.state set distributed = false")
    assert planned_once()

    db.execute(
        "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
        " select %s, 'ai', jsonb_build_object('job_type', n), '2024-05-21 12:00+00' from generate_series(1, 200) n", (COLLECTIONS[0],),
    )  # fmt: skip
    db.refresh()
    assert [used(db, window) for window in windows] == [OWN | {"ai_drilldown": {"window_rows"}}] * 2
    db.compare(WINDOWS[-5:], live=False)


def test_a_metric_of_two_definitions(db: Database) -> None:
    """Below the seal 'ai' adds up something else than above: then each window is planned by itself."""
    fill(db)
    assert used(db, WINDOWS[0]) == OWN
    seal.seal(db.own, db.settings, "2024-03-01")
    metrics.set_metric(db.own, metrics.Metric("ai", value_key="tokens_out"))
    assert used(db, WINDOWS[0]) == OTHER


def test_far_windows(db: Database) -> None:
    """From the year 1 on there are more months than are looked up one by one; from any instant the answer is the same."""
    fill(db)
    for since, until in (("-infinity", None), ("0001-01-01 BC", None), ("0001-02-01", "2024-05-20 09:45+00"), ("1024-01-01", None),
                         ("2024-01-20 05:00+00", "infinity"), ("9999-12-31", None), ("infinity", None)):  # fmt: skip
        db.compare([(since, until, COLLECTIONS[0]), (since, until, COLLECTIONS[6])], live=False)
    assert used(db, ("0001-02-01", None, COLLECTIONS[0])) == OTHER
    assert used(db, ("2004-02-01", None, COLLECTIONS[0])) == OWN
    for at in ("-infinity", "0001-01-01 BC", "9999-12-31 23:59:59+00", "infinity"):
        db.insert(at, "ai", 0, '{"tokens_in": 1}')
    for _ in range(2):
        for since in ("-infinity", "2024-01-20 05:00+00", "9999-12-31", "infinity"):
            db.compare([(since, None, COLLECTIONS[0]), (since, "infinity", COLLECTIONS[0])], live=False)
        db.refresh()


def test_a_partitioned_source(partitioned: Database) -> None:
    """Has its statements planned one by one: a plan for all windows would have all partitions."""
    partitioned.execute("create index on public.events (collection_id, created_at)")
    windows: list[Window] = [("2024-01-20 05:00+00", None, collection) for collection in (COLLECTIONS[0], None)]
    for window in windows:
        assert used(partitioned, window) == OTHER
    partitioned.compare([*windows, ("now-7", "now-3", COLLECTIONS[1]), ("now-7", "now-3", None)], live=False)
