"""What a source row may contain: anything, and nothing of it makes a refresh or a read fail, or be wrong."""

# ruff: noqa: RUF001 -- letters of other scripts are the point

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from psycopg import sql

from aggregator import capture, read, usage_overview
from tests.harness import COLLECTIONS, LONG, ORACLE, Database, snapshot

NINES = "9" * 40

# fmt: off

ACCEPTED = [
    *("0", "-0", "1", "-1", "1.5", "0.1", "0.30", "1e3", "1E-3", "12345678901234567", "1e18", "-1e18"),
    "1000000000000000000.0000000000000000000000000000000000000000",
    f"999999999999999999.{NINES}",
    f"-0.{NINES}",
    "1e-40",
    *('"0"', '"7"', '"+7"', '"-7"', '"007"', '"7."', '".5"', '"-.5"', '"7.50"', '"1e3"', '"1E+3"', '"1e-3"', '"1e018"'),
    *(r'" \t\n\r\f7\u000b "', r'"7\n"', r'"\n7"', '"1e-40"', '"1e18"', '"-1e18"', '"0e999"'),
    '"' + "0" * 39 + '1"',
    f'"0.{NINES}"',
    '"' + "0" * 10_000 + '3"',
    '"-' + "0" * 200_000 + '4.25"',
    '"' + " " * 200_000 + '5"',
    '"' + "0" * 200_000 + '"',
    '"0.' + "0" * 1000 + '25e999"',
    "null",
]
"""Well-formed values, as JSON text."""

REJECTED = [
    *("true", "false", "[]", "[1]", "{}", '{"value": 1}', '""', '" "', '"NaN"', '"Infinity"', '"-inf"', '"abc"'),
    *("1e400", "-1e400", '"1e400"', "1e19", "1000000000000000001", '"1000000000000000000.1"', '"-1000000000000000001"'),
    f"1000000000000000000.{'0' * 39}1",
    f"0.{NINES}9",
    f"1.{'0' * 41}",
    *("1e-41", '"1e-41"', '"1e-999"', '"1e999"', '"1e-1000"', '"1e0000"', '"1e"', '"e5"', '"."', '"+"', '"-"', '"- 1"'),
    *('"0x1F"', '"0b1"', '"0o7"', '"1_000"', '"1,000"', '"1 000"', '"1.2.3"', '"--1"', '"+-1"', '"1f"'),
    *('"١٢"', '"１２"', '"Ⅻ"', '"½"'),
    *(r'"\u00a07"', r'"7\u2003"', r'"\ufeff7"', r'"7\u0001"', r'"1\n2"', r'"7\nabc"', r'"abc\n7"'),
    "9" * 10_000,
    '"' + "9" * 10_000 + '"',
    "0." + "1" * 10_000,
    '"' + "9" * 200_000 + '"',
    '"0.' + "1" * 200_000 + '"',
    '"' + "0" * 200_000 + "9" * 200_000 + '"',
    '"' + "x" * 200_000 + '"',
]
"""Malformed or out of bounds, as JSON text: each counts as rejected and adds 0."""

DETAILS: list[str | None] = [
    *(None, "null", "[]", '["tokens_in", 5]', "5", '"tokens_in"', "true", "{}", '{"": 1}', '[{"tokens_in": 5}]'),
    *('{"tokens_in": null}', '{"TOKENS_IN": 5}', '{"tokens_in ": 5}', '{"tokens_in": 1, "tokens_in": 2}'),
]

TEXTS = [
    *("", " ", "a", "a ", " a", "A", "null", "\\N", "\x01", "\x7f", "\ufeff", "\uffff", "\u202eabc", "%s", "{}", "'"),
    *('"', "\\", "é", "e\u0301", "ß", "ss", "i", "İ", "ı", "…", "z", "å", "🦆", "👩\u200d👩\u200d👧"),
    *("-1", "line\nbreak", "x" * 127),
    *(script * n for script in ("x", "é", "漢", "🦆", "e\u0301"[1]) for n in (96, 97, 127, 128, 129, 5000)),
    *("漢" * 96 + tail for tail in ("a" * 32, "a" * 33, "b" * 33, "a" * 32 + "b", "🦆" * 33)),
    "漢" * 96 + "…" + "0" * 32,
]

INSTANTS = [
    *("-infinity", "infinity", "4713-01-01 00:00:00+00 BC", "4713-11-24 00:00:00+00 BC"),
    *("4000-06-01 12:00:00+00 BC", "0001-01-01 00:00:00+00 BC", "0001-12-31 23:59:59.999999+00 BC"),
    "0001-01-01 00:00:00+00",
    *("0001-01-02 12:00:00+00", "0001-01-03 00:00:00+00", "0001-01-31 23:59:59+00", "0099-02-28 00:00:00+00"),
    "1582-10-10 00:00:00+00",
    *("1900-02-28 23:00+00", "1969-12-31 23:59:59.999999+00", "1970-01-01 00:00:00+00", "2000-02-29 12:00:00+00"),
    *("2106-02-07 06:28:15.000001+00", "9999-12-29 00:00:00+00", "9999-12-31 00:00:00+00"),
    "9999-12-31 23:59:59.999999+00",
    *("10000-01-01 00:00:00+00", "10000-01-02 12:00:00+00", "20000-01-01 00:00:00+00"),
    "294276-12-31 23:59:59.999999+00",
]

# fmt: on

Windows = list[tuple[str, str | None, str | None]]

WIDE: Windows = [
    ("-infinity", None, None),
    ("-infinity", None, COLLECTIONS[0]),
    ("2024-05-01 00:00:00+00", "2024-05-03 00:00:00+00", None),
    ("2024-05-01 10:30:00+00", "2024-05-02 13:30:00+00", None),
]

PAST = "timestamptz '2024-05-01 00:00:00+00'"


def detail_of(value: str, key: str = "tokens_in", other: str = "tokens_out") -> str:
    """Return a detail with a value under both keys of an AI event."""
    return f'{{"{key}": {value}, "{other}": {value}, "job_type": "chat"}}'


def insert_values(db: Database, values: list[str], minutes: int = 15) -> None:
    """Insert an AI event and one of size_bytes for each value, some minutes apart from 2024-05-01 on."""
    for number, value in enumerate(values):
        db.execute(
            "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
            f" select %s, t, d::jsonb, {PAST} + %s * interval '1 minute'"
            " from (values ('ai', %s), ('cas', %s)) v (t, d)",
            (COLLECTIONS[number % 3], number * minutes, detail_of(value), detail_of(value, "size_bytes", "other")),
        )


def rejected(db: Database) -> int:
    """Return how many events the oracle rejects."""
    return int(db.scalar(ORACLE["rejected"].replace("{source}", db.source)))


def check_rejected(db: Database, *, folded: bool) -> None:
    """Compare the rejected counts and the list of rejected events with the oracle."""
    expected = rejected(db)
    assert db.scalar("select coalesce(sum(rejected_count), 0) from usage.daily_live") == expected
    assert db.scalar("select coalesce(sum(rejected_count), 0) from usage.monthly_live") == expected
    assert db.scalar("select count(*) from usage.rejected_event") == expected
    if folded:
        for rollup in ("daily", "monthly", "daily_total"):
            assert db.scalar(f"select coalesce(sum(rejected_count), 0) from usage.{rollup}") == expected, rollup


def check_json(db: Database, windows: Windows | None = None) -> None:
    """Compare the Python overview with the SQL one, and write it as JSON."""
    for since, until, collection in windows or WIDE:
        with snapshot(db.connection):
            found = overview_of(db, since, until, collection).as_contract()
            expected = json.loads(
                db.scalar(
                    "select usage.overview(%s::timestamptz, %s::timestamptz, %s::uuid)::text",
                    (since, until, collection),
                )
            )
        assert found == expected
        assert list(found) == list(expected) == ["by_collection", "ai_drilldown", "daily"]
        for section, rows in found.items():
            assert [list(row) for row in rows] == [list(row) for row in expected[section]]
        assert json.loads(json.dumps(found)) == found


def overview_of(db: Database, since: str, until: str | None, collection: str | None) -> read.Overview:
    """Return the Python overview of a window whose bounds may be no Python datetimes."""
    parameters = {"days": 1, "since": since, "until": until, "collection": collection}
    return read._overview(db.connection.execute(read.SQL["overview"], parameters).fetchall())


def check(db: Database, windows: Any = None, *, folded: bool = False) -> None:
    """Compare everything there is with the oracle."""
    db.compare(windows or WIDE)
    check_rejected(db, folded=folded)
    check_json(db, windows)


def go_through(db: Database, windows: Any = None) -> None:
    """Check the rows before and after a refresh; as late updates, deletes and inserts; and after verify."""
    check(db, windows)
    db.refresh()
    check(db, windows, folded=True)
    db.execute("create table public.kept as select * from public.resource_usage_log")
    db.execute(
        "update public.resource_usage_log set detail = '{\"tokens_in\": 1}', collection_id = null where id % 3 = 0"
    )
    check(db, windows)
    db.execute("delete from public.resource_usage_log where id % 3 = 1")
    check(db, windows)
    db.refresh()
    check(db, windows, folded=True)
    db.execute("delete from public.resource_usage_log")
    db.execute(
        "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at, note)"
        " select collection_id, resource_type, detail, created_at, note from public.kept"
    )
    check(db, windows)
    db.execute("update public.resource_usage_log l set detail = k.detail from public.kept k where k.id = l.id + 1")
    check(db, windows)
    db.refresh(step_events=7)
    check(db, windows, folded=True)
    assert db.verify().differences == 0
    check(db, windows, folded=True)
    db.execute("refresh materialized view usage.trailing")
    db.execute("refresh materialized view usage.monthly_ranking")


def test_values(db: Database) -> None:
    """Values of every kind add what the grammar says, to the last digit, in tail, rollups and late changes alike."""
    insert_values(db, (ACCEPTED + REJECTED)[:: 1 if LONG else 3])
    go_through(db)


def test_accepted_and_rejected(db: Database) -> None:
    """Each well-formed value is taken and each malformed one rejected: the oracle is no copy of a mistake."""
    insert_values(db, ACCEPTED)
    assert rejected(db) == 0
    check(db)
    insert_values(db, REJECTED)
    assert rejected(db) == 2 * len(REJECTED)
    listed = db.execute("select resource_type, rejected_keys from usage.rejected_event group by 1, 2 order by 1")
    assert listed == [("ai", ["tokens_in", "tokens_out"]), ("cas", ["size_bytes"])]
    db.refresh()
    check(db, folded=True)


def test_one_rejected_of_two(db: Database) -> None:
    """An event with one malformed value of two is rejected once, and its other value still adds."""
    db.insert("2024-05-01 01:00:00+00", detail='{"tokens_in": "x", "tokens_out": 5}')
    db.insert("2024-05-01 01:00:00+00", detail='{"tokens_in": 3, "tokens_out": []}')
    db.insert("2024-05-01 01:00:00+00", detail='{"tokens_in": 1, "tokens_out": null}')
    for folded in (False, True):
        check(db, folded=folded)
        assert db.execute("select total_value, secondary_value, rejected_count from usage.daily_live") == [(4, 5, 2)]
        assert db.execute("select rejected_keys from usage.rejected_event order by 1") == [
            (["tokens_in"],),
            (["tokens_out"],),
        ]
        db.refresh()


def test_sums_are_exact(db: Database) -> None:
    """Sums of decimals are exact to the last digit, where floats are not: by rollup, late change and tail together."""
    for value in ("999999999999999999", f"0.{NINES}", "1e-40", "1e18", '"0.1"', '"0.2"'):
        db.insert("2024-05-01 01:00:00+00", detail=detail_of(value))
    db.refresh()
    expected = "2000000000000000000.3" + "0" * 39
    assert str(db.scalar("select total_value from usage.daily")) == expected
    db.insert("2024-05-01 02:00:00+00", detail=detail_of("-1e18"))
    db.insert("2024-05-01 02:00:00+00", detail=detail_of("-1e18"))
    check(db)
    assert db.execute("select total_value from usage.by_collection('2024-05-01')") == [(0.3,)]
    db.refresh()
    check(db, folded=True)
    assert str(db.scalar("select total_value from usage.daily")) == "0.3" + "0" * 39


def test_details(db: Database) -> None:
    """A detail that is null, an array or a scalar has no values and no keys, and its event counts."""
    for number, detail in enumerate(DETAILS):
        for resource_type in ("ai", "whisper", "tts", "cas", "bandwidth", "livekit", "unknown", None):
            db.insert(f"2024-05-0{1 + number % 3} 12:00:00+00", resource_type, number % 3, detail)
    go_through(db)


def test_key_text(db: Database) -> None:
    """Key text of any script and length stays distinct; over 128 characters it is abridged everywhere alike."""
    for number, text in enumerate(TEXTS):
        detail = json.dumps({"tokens_in": number, "job_type": text, "model_level": text[::-1]})
        db.insert(f"2024-05-01 {number % 24:02}:00:00+00", "ai", number % 2, detail)
        db.insert(f"2024-05-02 {number % 24:02}:00:00+00", text, number % 2, detail)
        db.insert("2024-05-02 01:00:00+00", text, None, "{}")
    kinds = "select count(distinct {0}) from public.resource_usage_log where resource_type = 'ai'"
    assert db.scalar(kinds.format("detail ->> 'job_type'")) == len(set(TEXTS))
    go_through(db)
    assert db.scalar("select max(length(resource_type)) from usage.daily") == 129


def test_key_text_is_distinct(db: Database) -> None:
    """Distinct texts stay distinct keys, unless one is written like the abridgement of another."""
    for text in TEXTS:
        db.insert("2024-05-01 01:00:00+00", "ai", 0, json.dumps({"job_type": text}))
    for _ in range(2):
        rows = db.execute("select job_type from usage.ai_drilldown('2024-05-01')")
        assert len(rows) == len(set(TEXTS))
        db.refresh()


@pytest.mark.parametrize("broken", [False, True])
def test_workers_of_citus_add_up_the_same(db: Database, broken: bool) -> None:
    """The one statement that is written twice, as workers must be able to run it: by it, too, days are what they are."""
    insert_values(db, ACCEPTED + REJECTED)
    for number, text in enumerate(TEXTS):
        db.insert(f"2024-05-0{1 + number % 3} 12:00:00+00", text, None, json.dumps({"job_type": text}))
        db.insert(
            f"2024-05-0{1 + number % 3} 12:00:00+00", "ai", 1, json.dumps({"job_type": text, "model_level": text[::-1]})
        )
    for number, detail in enumerate(DETAILS):
        for resource_type in ("ai", "whisper", "tts", "cas", "bandwidth", "livekit", "unknown", None):
            db.insert(f"2024-05-0{1 + number % 3} 12:00:00+00", resource_type, number % 3, detail)
    for instant in INSTANTS[4:]:  # the first are days that the rollups call -infinity, which no table of Citus has
        db.insert(instant)
    db.refresh()
    query = sql.SQL(capture.CITUS["sums_query"]).format(source=sql.SQL(db.source)).as_string(db.connection)
    if broken:
        query = query.replace("usage.in_bounds(n.secondary_number)), 0)", "n.secondary_number), 0)")
    columns = "day, collection_id, resource_type, job_type, model_level, event_count, total_value, secondary_value, rejected_count"
    differences = f"(table s except all select {columns} from usage.daily) union all (select {columns} from usage.daily except all table s)"
    with psycopg.RawCursor(db.connection) as cursor:  # up to now: what is dated later is not folded yet
        cursor.execute(
            f"with s as ({query}) select count(*) from ({differences}) d".encode(), ("-infinity", "now", "UTC")
        )
        assert (cursor.fetchall() != [(0,)]) == broken


def test_keys_that_are_no_text(db: Database) -> None:
    """A job type or model level that is a number, a boolean, an object or JSON null is its text, as ->> gives it."""
    long = '{"a": "' + "x" * 5000 + '"}'
    for value in ("1.0", "1.00", "1e2", "true", "null", '"null"', '{"b": 1, "a": [2]}', "[]", long):
        db.insert("2024-05-01 01:00:00+00", "ai", 0, f'{{"tokens_in": 1, "job_type": {value}, "model_level": {value}}}')
    go_through(db)


def test_equal_jsonb_with_another_text(db: Database) -> None:
    """An update below the frontier from 1.0 to 1.00, equal as jsonb, changes the key and is not lost."""
    db.insert("2024-05-01 01:00:00+00", detail='{"job_type": 1.0, "tokens_in": 1}')
    db.refresh()
    db.execute('update public.resource_usage_log set detail = \'{"job_type": 1.00, "tokens_in": 1}\'')
    check(db)
    assert [row[0] for row in db.execute("select job_type from usage.ai_drilldown('2024-05-01')")] == ["1.00"]
    db.refresh()
    check(db, folded=True)
    assert db.execute("select job_type from usage.daily") == [("1.00",)]


def test_null_keys_and_duplicates(db: Database) -> None:
    """Null collection and type are keys like others; rows that are equal in all columns count each."""
    for _ in range(3):
        for collection in (None, 0, 6):
            for resource_type in (None, "ai", "AI", "unknown", ""):
                db.insert("2024-05-01 01:00:00+00", resource_type, collection, '{"tokens_in": 2, "size_bytes": 3}')
    go_through(db)
    assert db.scalar("select sum(event_count) from usage.daily") == 45


def test_instants(db: Database) -> None:
    """Instants before year 1, after 9999 and infinite count in end buckets; a window may begin or end inside one."""
    for number, instant in enumerate(INSTANTS):
        db.insert(instant, ("ai", "cas")[number % 2], number % 2, '{"tokens_in": 1, "size_bytes": "1.5"}')
    windows: Windows = [("-infinity", until, None) for until in (None, *INSTANTS)]
    windows += [(since, None, None) for since in INSTANTS]
    windows += [
        ("3000-01-01 00:00:00+00 BC", "0001-01-02 00:00:00+00", None),
        ("9999-12-31 12:00:00+00", "infinity", None),
    ]
    windows += [("4712-01-01 00:00:00+00 BC", "3000-01-01 00:00:00+00 BC", None)]
    db.compare(windows)
    check_json(db, windows)
    db.refresh(step_events=3)
    db.compare(windows)
    check_json(db, windows)
    assert db.verify().differences == 0
    db.execute("insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
               " select collection_id, resource_type, detail, created_at from public.resource_usage_log")  # fmt: skip
    db.compare(windows)
    db.refresh(step_events=3)
    db.compare(windows)
    db.execute("update public.resource_usage_log set created_at = '-infinity' where id % 4 = 1 and created_at < now()")
    db.execute("update public.resource_usage_log set created_at = 'infinity' where id % 4 = 2 and created_at < now()")
    db.execute("update public.resource_usage_log set created_at = '4713-01-01 00:00:00+00 BC' where id % 4 = 3")
    db.compare(windows)
    check_json(db, windows)
    db.refresh()
    db.compare(windows)
    assert db.verify().differences == 0
    db.execute("delete from public.resource_usage_log where created_at = '-infinity'")
    db.compare(windows)
    db.refresh()
    db.compare(windows)
    check_json(db, windows)
    db.execute("refresh materialized view usage.trailing")
    db.execute("refresh materialized view usage.monthly_ranking")


@pytest.mark.parametrize("zone", ["Asia/Kathmandu", "America/Anchorage", "Pacific/Kiritimati"])
def test_instants_at_the_ends_of_other_zones(new_database: Any, zone: str) -> None:
    """Years 1 and 9999 are those of local days: also in zones far from UTC both end buckets begin where they should."""
    db: Database = new_database(zone=zone)
    db.attach()
    db.execute(
        "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
        " select null, 'ai', '{\"tokens_in\": 1}', edge + hour * interval '1 hour'"
        " from unnest(array[timestamptz '0001-01-01 00:00:00+00', '9999-12-31 00:00:00+00']) edge,"
        " generate_series(-60, 60, 3) hour"
    )
    windows: Windows = [("-infinity", None, None), ("0001-01-01 00:00:00+00", "9999-12-31 12:00:00+00", None)]
    windows += [("0001-12-31 12:00:00+00 BC", None, None), ("-infinity", "0001-01-01 12:00:00+00", None)]
    db.compare(windows)
    check_json(db, windows)
    db.refresh(step_events=5)
    db.compare(windows)
    check_json(db, windows)
    assert db.verify().differences == 0


def test_future(db: Database) -> None:
    """Events dated in the future count in an open window, before and after a refresh, and when changed."""
    db.execute(
        "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
        " select null, 'tts', '{\"characters\": 10}', now() + n * interval '7 hours' from generate_series(-20, 20) n"
    )
    db.compare()
    db.refresh()
    db.compare()
    assert db.scalar("select sum(event_count) from usage.by_collection(now() - interval '30 days')") == 41
    db.execute('update public.resource_usage_log set detail = \'{"characters": "x"}\' where id % 2 = 0')
    db.execute("update public.resource_usage_log set created_at = created_at - interval '60 hours' where id % 5 = 0")
    db.execute("update public.resource_usage_log set created_at = created_at + interval '60 hours' where id % 7 = 0")
    db.execute("delete from public.resource_usage_log where id % 11 = 0")
    db.compare()
    db.refresh()
    db.compare()
    assert db.verify().differences == 0


def test_no_instant(db: Database) -> None:
    """An event without an instant never counts, and one that gets or loses its instant does from then on."""
    db.insert("2024-05-01 01:00:00+00", detail=detail_of("true"))
    for detail in (detail_of("5"), detail_of("true")):
        db.execute("insert into public.resource_usage_log (resource_type, detail) values ('ai', %s::jsonb)", (detail,))
    check(db)
    db.refresh()
    check(db, folded=True)
    db.execute("update public.resource_usage_log set created_at = '2024-05-01 02:00:00+00' where created_at is null")
    check(db)
    assert db.scalar("select sum(event_count) from usage.by_collection('2024-05-01')") == 3
    db.refresh()
    check(db, folded=True)
    db.execute("update public.resource_usage_log set created_at = null")
    check(db)
    assert db.execute("select * from usage.by_collection('-infinity')") == []
    db.execute("delete from public.resource_usage_log where id = 1")
    db.refresh()
    check(db, folded=True)
    assert db.scalar("select count(*) from usage.daily") == 0


def test_titles(db: Database) -> None:
    """A title is what it is now, also after a rename; equal titles do not merge, and a missing one is null."""
    for collection in range(7):
        db.insert("2024-05-01 01:00:00+00", "ai", collection, detail_of(str(collection)))
    db.refresh()
    check(db)
    db.execute("update public.nodes set title = case when right(id::text, 1) = '1' then null else 'same' end")
    check(db)
    db.execute("delete from public.nodes")
    check(db)


def test_order(db: Database) -> None:
    """Rows come largest first; ties by collection, then type or job type and model level, bytewise, nulls last."""
    for collection in (None, 1, 0):
        for text in (None, "b", "B", "é", "a", "ab", "", "\uffff", "🦆"):
            db.insert("2024-05-01 01:00:00+00", text, collection, None)
            for level in (None, "z", "Z"):
                detail = json.dumps({"tokens_in": 1.4, "job_type": text, "model_level": level})
                db.insert("2024-05-02 01:00:00+00", "ai", collection, detail)
    db.insert("2024-05-02 01:00:00+00", "ai", None, '{"tokens_in": 5}')
    db.insert("2024-05-02 01:00:00+00", "cas", 2, '{"size_bytes": 1e17}')
    db.insert("2024-05-02 01:00:00+00", "cas", 1, '{"size_bytes": 100000000000000001}')
    for _ in range(2):
        check(db)
        overview = usage_overview(db.connection, since=datetime(2024, 5, 1, tzinfo=timezone.utc))
        assert [str(row.collection_id) for row in overview.by_collection[:2]] == [COLLECTIONS[1], COLLECTIONS[2]]
        zero = [row for row in overview.by_collection if row.total_value == 0]
        types = ["", "B", "a", "ab", "b", "é", "\uffff", "🦆", None]
        assert [row.resource_type for row in zero] == types * 3
        ids = [COLLECTIONS[0], COLLECTIONS[1], "None"]
        assert [str(row.collection_id) for row in zero] == [i for i in ids for _ in types]
        first = overview.ai_drilldown[0]
        assert (first.collection_id, first.job_type, first.tokens_in) == (None, None, 6)
        levels = [row.model_level for row in overview.ai_drilldown if str(row.collection_id) == COLLECTIONS[0]]
        assert levels == ["Z", "z", None] * len(types)
        assert [row.starts_at for row in overview.daily][:2] == ["2024-05-02T00:00:00Z"] * 2
        assert [row.resource_type for row in overview.daily if row.total_value == 0] == types
        db.refresh()


def test_tokens_are_rounded_half_away_from_zero(db: Database) -> None:
    """Tokens are exact sums rounded half away from zero, of any size."""
    for collection, value in enumerate(("0.5", "1.5", "-0.5", "-2.5", "0.49999999999999999999")):
        db.insert("2024-05-01 01:00:00+00", "ai", collection, detail_of(value))
    for _ in range(30):
        db.insert("2024-05-01 01:00:00+00", "ai", 5, detail_of("999999999999999999"))
    for _ in range(2):
        check(db)
        rows = usage_overview(db.connection, since=datetime(2024, 5, 1, tzinfo=timezone.utc)).ai_drilldown
        found = {str(row.collection_id): (row.tokens_in, row.tokens_out) for row in rows}
        assert [found[COLLECTIONS[n]][0] for n in range(6)] == [1, 2, -1, -3, 0, 29999999999999999970]
        assert all(tokens_in == tokens_out for tokens_in, tokens_out in found.values())
        db.refresh()


@pytest.mark.parametrize(
    ("days", "clamped"), [(0, 1), (-5, 1), (-(10**30), 1), (1, 1), (365, 365), (366, 365), (9999, 365), (10**30, 365)]
)
def test_days_are_clamped(db: Database, days: int, clamped: int) -> None:
    """Days of any size are clamped into 1-365, in SQL and Python alike, to the microsecond."""
    db.execute(
        "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
        " select null, 'tts', '{\"characters\": 10}', now() - make_interval(days => n) + m * interval '1 hour'"
        " from unnest(array[0, 1, 2, 30, 364, 365, 366]) n, unnest(array[-1, 1]) m"
    )
    for _ in range(2):
        with snapshot(db.connection):
            moment: datetime = db.scalar("select now()")
            edge = moment - timedelta(days=clamped)
            ours = usage_overview(db.connection, days=days)
            assert ours.as_contract() == json.loads(db.scalar("select usage.overview(%s::numeric)::text", (days,)))
            assert ours.as_contract() == usage_overview(db.connection, since=edge).as_contract()
            count = db.scalar("select count(*) from public.resource_usage_log where created_at >= %s", (edge,))
            assert sum(row.event_count for row in ours.by_collection) == count
            assert ours.receipt.as_of == moment
        db.refresh()


def test_days_default_to_30(db: Database) -> None:
    """Without arguments the window is the last 30 days; the very microsecond of its start is inside."""
    with snapshot(db.connection):
        db.execute(
            "insert into public.resource_usage_log (resource_type, created_at)"
            " values ('in', now() - interval '30 days'), ('out', now() - interval '30 days 0.000001 seconds')"
        )
        overview = usage_overview(db.connection)
        assert [row.resource_type for row in overview.by_collection] == ["in"]
        assert overview.as_contract() == json.loads(db.scalar("select usage.overview()::text"))
