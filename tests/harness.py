"""What tests share: a database with the source in it, and the comparison with the oracle in one snapshot."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel

from aggregator import capture, hourly, marks, migrations, read, refresh, verify
from aggregator import sql as sql_files
from aggregator.db import Connection, connect
from aggregator.settings import Settings

_parts = sql_files._NAME.split((Path(__file__).parent / "oracle.sql").read_text(encoding="utf-8"))
ORACLE = {name: body.strip() for name, body in zip(_parts[1::2], _parts[2::2], strict=True)}

SCHEMA = ";\n".join(
    [
        "create schema oracle",
        *(ORACLE[name] for name in ("number", "key_text", "metric", "local_date")),
        "create table public.resource_usage_log (id bigint generated always as identity primary key,"
        " collection_id uuid, resource_type text, detail jsonb, created_at timestamptz, note text)",
        "create index on public.resource_usage_log (created_at)",
        # With it one collection is read by a statement of its own, and still by the other in the overview.
        "create index on public.resource_usage_log (collection_id, created_at)",
        "create table public.nodes (id uuid primary key, title text)",
        "insert into public.nodes select ('00000000-0000-0000-0000-00000000000' || n)::uuid, 'Collection ' || n"
        " from generate_series(1, 5) n",
    ]
)


LONG = os.environ.get("AGGREGATOR_TEST_LONG") == "1"
"""Whether this is make test-long, or the run of a mutant."""


def some(cases: Iterable[Any], every: int) -> list[Any]:
    """Return a test's cases, of which make test runs one of so many, and make test-long the others too."""
    return [
        case
        if number % every == 0
        else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.long)
        for number, case in enumerate(cases)
    ]


def waits(condition: str = "true") -> str:
    """Return a query for whether a session of this database waits for such a lock: other databases have tests of their own."""
    return (
        f"select exists (select from pg_locks where not granted and {condition}"
        " and pid in (select a.pid from pg_stat_activity a where a.datname = current_database()))"
    )


COLLECTIONS = [f"00000000-0000-0000-0000-00000000000{n}" for n in range(1, 8)]
"""The last two have no title."""


HOURLY = os.environ.get("AGGREGATOR_TEST_HOURLY", "") not in {"", "0"}
"""Whether every test that attaches a source turns the hourly rollup on."""

DENSE = {"WORTH": 3, "EVERY": 2, "EVERY_TOTAL": 2, "PER_ROW": 0, "REST": 0.0}
"""What aggregator.marks goes by where few events are to be dense."""

if HOURLY:
    vars(marks).update(DENSE)


def create_with_source(server: str, name: str, options: str = "", *, migrated: bool = True) -> None:
    """Make a database with the source and, if wanted, schema usage; ``server`` is a connection string of any database's."""
    with psycopg.connect(f"{server} dbname=postgres", autocommit=True) as connection:
        connection.execute(f"create database {name} template template0 encoding 'UTF8' {options}".encode())
    with psycopg.connect(f"{server} dbname={name}", autocommit=True) as connection:
        connection.execute(SCHEMA.encode())
    if migrated:
        migrations.upgrade(Settings(database_url=f"{server} dbname={name}"))  # type: ignore[arg-type]


class Mismatch(AssertionError):  # noqa: N818 -- it is what a comparison says
    """An answer differs from the raw query's in the same snapshot."""


class Database:
    """One test's database: ``connection`` is an autocommit session; helpers run the product and compare."""

    def __init__(self, server: str, name: str, zone: str, settings: dict[str, Any]) -> None:
        self.name = name
        self.dsn = f"{server} dbname={name}"
        self.zone = zone
        self.settings = Settings(database_url=self.dsn, time_zone=zone, **settings)  # type: ignore[arg-type]
        self.source = settings.get("source_table", "public.resource_usage_log")
        self.titles = settings.get("title_table", "public.nodes")
        self._opened: list[psycopg.Connection[Any]] = []
        self.reconnect()

    def reconnect(self) -> None:
        """Open the sessions anew, after a crash of the server."""
        self.close()
        self._opened.clear()
        self.connection = self.connect()
        self.own: Connection = connect(self.settings)
        self._opened.append(self.own)

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        """Open another session, autocommit; closed at the test's end."""
        connection = psycopg.connect(self.dsn, **{"autocommit": True, **options})
        self._opened.append(connection)
        return connection

    def close(self) -> None:
        for connection in self._opened:
            connection.close()

    def execute(self, query: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows, if any."""
        cursor = self.connection.execute(query.encode(), parameters)
        return cursor.fetchall() if cursor.description else []

    def scalar(self, query: str, parameters: Any = None) -> Any:
        return self.execute(query, parameters)[0][0]

    def attach(self, **options: Any) -> capture.Attached:
        attached = capture.attach(self.own, self.settings)
        if options.get("hourly", HOURLY):
            hourly.turn_on(self.own)
        return attached

    def days_only(self) -> None:
        """Turn the hourly rollup off, for a test of how days are cut without it."""
        hourly.turn_off(self.own)

    def refresh(self, **changes: Any) -> refresh.RefreshResult:
        return refresh.refresh(self.own, self.settings.model_copy(update=changes))

    def verify(self, **options: Any) -> verify.VerifyResult:
        return verify.verify(self.own, self.settings, **options)

    def insert(
        self, created_at: str, resource_type: str | None = "ai", collection: int | None = 0, detail: str | None = "{}"
    ) -> None:
        """Insert one event; ``collection`` is an index into COLLECTIONS."""
        self.execute(
            f"insert into {self.source} (collection_id, resource_type, detail, created_at) values (%s, %s, %s::jsonb, %s::timestamptz)",
            (None if collection is None else COLLECTIONS[collection], resource_type, detail, created_at),
        )

    def compare(self, windows: Any = None, *, live: bool = True) -> None:
        """Raise Mismatch unless every answer equals the oracle's, in one snapshot."""
        with snapshot(self.connection):
            compare(self.connection, self.zone, windows, source=self.source, titles=self.titles, live=live)


@contextmanager
def snapshot(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Open a REPEATABLE READ transaction, so that all that follows sees one snapshot."""
    assert connection.autocommit
    with connection.transaction():
        connection.execute(
            f"set transaction isolation level {IsolationLevel.REPEATABLE_READ.name.replace('_', ' ')}".encode()
        )
        yield


DEFAULT_WINDOWS: list[tuple[str, str | None, str | None]] = [
    ("-infinity", None, None),
    ("now-1", None, None),
    ("now-30", None, None),
    ("now-365", None, None),
    ("now-30", "now-3", None),
    ("now-400", "now-200", None),
    ("now-30", None, COLLECTIONS[0]),
]


_OF_OVERVIEW = {"by_collection": (4, "total_value"), "ai_drilldown": (6, "event_count"), "daily": (3, "total_value")}
"""Of each section what is compared in the JSON: the oracle's column, and the key."""


BY_ITSELF = {
    "by_collection": """
    select r.collection_id, o.title, r.resource_type, r.event_count, r.total_value::float8, r.secondary_value::float8
      from usage.window_rows(%(since)s, %(until)s, null, true, false, false, false) r
      left join usage.collection() o on o.id = r.collection_id
     order by r.total_value::float8 desc, r.collection_id nulls last, r.resource_type collate "C" nulls last""",
    "daily": """
    select r.day::text, r.resource_type, r.event_count, r.total_value::float8
      from usage.window_rows(%(since)s, %(until)s, null, false, false, true, false) r
     order by r.day desc, r.resource_type collate "C" nulls last""",
}
"""Sections of all collections that are read by a statement planned once, by one for this window alone."""


def compare(
    connection: psycopg.Connection[Any],
    zone: str,
    windows: Any = None,
    *,
    source: str = "public.resource_usage_log",
    titles: str = "public.nodes",
    live: bool = True,
) -> None:
    """Compare every read function with the oracle for each window, in the caller's snapshot.

    A window is (since, until or None, collection or None); ``now-N`` is N days before the transaction's now.
    """
    # What this release reads by a statement that is planned once it can read by one of its own, too.
    planned_once = connection.execute("select to_regproc('usage.planned_by_collection') is not null").fetchone()
    both_ways = planned_once == (True,)
    for since, until, collection in windows or DEFAULT_WINDOWS:
        parameters = {
            "since": _instant(connection, since),
            "until": until and _instant(connection, until),
            "collection": collection,
            "zone": zone,
        }

        def oracle(section: str, parameters: dict[str, Any] = parameters) -> list[tuple[Any, ...]]:
            query = ORACLE[section].replace("{source}", source).replace("{titles}", titles)
            return connection.execute(query.encode(), parameters).fetchall()

        def ours(query: str, parameters: dict[str, Any] = parameters) -> list[tuple[Any, ...]]:
            arguments = "(%(since)s::timestamptz, %(until)s::timestamptz, %(collection)s::uuid)"
            return connection.execute(query.replace("()", arguments).encode(), parameters).fetchall()

        overview = ours("select usage.overview()")[0][0]
        for section, query in {
            "by_collection": "select * from usage.by_collection()",
            "ai_drilldown": "select * from usage.ai_drilldown()",
            "daily": "select day::text, resource_type, event_count, total_value from usage.daily_series()",
        }.items():
            expected, found = oracle(section), ours(query)
            if expected != found:
                state = connection.execute("select s::text from usage.state s").fetchone()
                raise Mismatch(
                    f"{section} of {parameters}: {len(expected)} rows expected, {len(found)} found;"
                    f" missing {_some(expected, found)}; extra {_some(found, expected)}; state {state}"
                )
            if section in BY_ITSELF and collection is None and both_ways:
                found = connection.execute(BY_ITSELF[section].encode(), parameters).fetchall()
                if expected != found:
                    raise Mismatch(f"window_rows of {parameters}: {_some(found, expected)} is not what {section} says")
            position, key = _OF_OVERVIEW[section]
            expected, found = [row[position] for row in expected], [row[key] for row in overview[section]]
            if expected != found:
                raise Mismatch(f"overview, {key} of {section}, of {parameters}: {expected} expected, {found} found")
    if live:
        query = ORACLE["live"].replace("{source}", source)
        for view, bucket, expected_query in (
            ("daily_live", "day", query),
            ("monthly_live", "month", ORACLE["live_months"].replace("{live}", query)),
        ):
            expected = connection.execute(expected_query.encode(), {"zone": zone}).fetchall()
            found = connection.execute(
                f"select {bucket}::text, collection_id::text, resource_type, job_type, model_level,"
                f" event_count, total_value, secondary_value from usage.{view}".encode()
            ).fetchall()
            if sorted(map(repr, map(_plain, expected))) != sorted(map(repr, map(_plain, found))):
                raise Mismatch(f"{view}: missing {_some(expected, found)}; extra {_some(found, expected)}")


def compare_days(
    connection: psycopg.Connection[Any], zone: str, windows: Any, *, source: str = "public.resource_usage_log"
) -> None:
    """Compare the daily series by days of a time zone, whatever the reporting one is, in the caller's snapshot."""
    query = ORACLE["daily"].replace("{source}", source)
    for since, until, collection in windows:
        parameters = {"since": _instant(connection, since), "until": until and _instant(connection, until),
                      "collection": collection, "zone": zone}  # fmt: skip
        expected = connection.execute(query.encode(), parameters).fetchall()
        found = connection.execute(
            b"select day::text, resource_type, event_count, total_value from usage.daily_series("
            b"%(since)s::timestamptz, %(until)s::timestamptz, %(collection)s::uuid, %(zone)s::text)", parameters,
        ).fetchall()  # fmt: skip
        if expected != found:
            raise Mismatch(
                f"days of {zone}, {parameters}: missing {_some(expected, found)}; extra {_some(found, expected)}"
            )


TOTALS = "bucket::text, collection_id, resource_type, job_type, model_level, event_count, total_value, secondary_value"
"""The columns of usage.totals() that the oracle has."""

_ASKED: list[tuple[str, list[str]]] = [
    ("none", ["collection", "resource_type"]),
    ("day", ["resource_type"]),
    ("week", ["job_type", "model_level"]),
    ("month", ["collection"]),
]
"""Grains and keys that the totals are asked by."""


def compare_others(
    connection: psycopg.Connection[Any],
    zone: str,
    windows: Any = None,
    *,
    source: str = "public.resource_usage_log",
    titles: str = "public.nodes",
) -> None:
    """Compare what ``compare`` leaves out, in the caller's snapshot: totals, exports, and the overview as Python has it."""
    for since, until, collection in windows or DEFAULT_WINDOWS:
        parameters: dict[str, Any] = {"since": _instant(connection, since), "until": until and _instant(connection, until),
                                      "collection": collection, "zone": zone}  # fmt: skip
        window = "%(since)s::timestamptz, %(until)s::timestamptz"
        asked: list[tuple[str, str, str, dict[str, Any]]] = [
            ("totals", f"select {TOTALS} from usage.totals({window}, %(by)s, %(grain)s, false, %(collection)s::uuid)",
             f"totals by {by}, {grain}", {"by": by, "grain": grain})
            for grain, by in _ASKED
        ]  # fmt: skip
        asked += [
            ("export", "select bucket::text, collection_id::text, collection_title, resource_type, job_type, model_level, event_count,"
             f" total_value, secondary_value from usage.export_rows({window}, %(grain)s, %(collection)s::uuid)",
             f"export by {grain}", {"grain": grain})
            for grain in ("day", "month")
        ]  # fmt: skip
        for section, query, what, more in asked:
            raw = ORACLE[section].replace("{source}", source).replace("{titles}", titles)
            expected = connection.execute(raw.encode(), parameters | more).fetchall()
            found = connection.execute(query.encode(), parameters | more).fetchall()
            if sorted(map(repr, expected)) != sorted(map(repr, found)):
                raise Mismatch(
                    f"{what}, of {parameters}: missing {_some(expected, found)}; extra {_some(found, expected)}"
                )
        overview = read._overview(connection.execute(read.SQL["overview"], {"days": 1, **parameters}).fetchall())
        row = connection.execute(
            b"select usage.overview(%(since)s::timestamptz, %(until)s::timestamptz, %(collection)s::uuid)", parameters
        ).fetchone()
        if row is None or overview.as_contract() != row[0]:
            raise Mismatch(f"the overview in Python, of {parameters}: {overview.as_contract()}, in SQL {row}")


def _plain(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(format(value.normalize(), "f") if hasattr(value, "normalize") else value for value in row)


def _some(rows: list[Any], others: list[Any]) -> list[Any]:
    return [row for row in rows if row not in others][:3]


def _instant(connection: psycopg.Connection[Any], text: str) -> str:
    if not text.startswith("now-"):
        return text
    row = connection.execute(
        b"select extract(epoch from now() - make_interval(days => %s))::text", (int(text[4:]),)
    ).fetchone()
    assert row is not None
    value = connection.execute(b"select to_timestamp(%s::float8)::text", (row[0],)).fetchone()
    assert value is not None
    return str(value[0])


class Hooked:
    """A connection that calls ``before[statement]`` once, right before it first executes that statement."""

    def __init__(self, connection: Any, before: dict[str, Callable[[], None]]) -> None:
        self._connection = connection
        self._before = before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
        hook = self._before.pop(query, None) if isinstance(query, str) else None
        if hook is not None:
            hook()
        return self._connection.execute(query, *arguments, **options)
