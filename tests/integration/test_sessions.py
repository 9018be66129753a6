"""The caller's session: whatever its settings, transactions and row factories, the answers are the same."""

# ruff: noqa: RUF001 -- letters of other scripts are the point

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import IsolationLevel
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row, namedtuple_row

from aggregator import UsageError, capture, migrations, refresh, usage_overview
from aggregator.db import connect
from aggregator.read import Overview
from aggregator.settings import Settings
from tests.harness import COLLECTIONS, SCHEMA, Database, compare, snapshot

SINCE = datetime(2011, 12, 1, tzinfo=timezone.utc)
UNTIL = datetime(2026, 1, 1, tzinfo=timezone.utc)

WINDOWS: list[tuple[str, str | None, str | None]] = [
    ("-infinity", None, None),
    ("2011-12-01 00:00:00+00", "2026-01-01 00:00:00+00", None),
    ("2024-05-01 10:30:00+00", "2024-05-02 13:30:00+00", COLLECTIONS[0]),
]

READS = [
    "select * from usage.by_collection(%s::pg_catalog.timestamptz, %s::pg_catalog.timestamptz)",
    "select * from usage.ai_drilldown(%s::pg_catalog.timestamptz, %s::pg_catalog.timestamptz)",
    (
        "select day, resource_type, event_count, total_value"
        " from usage.daily_series(%s::pg_catalog.timestamptz, %s::pg_catalog.timestamptz)"
    ),
    (
        "select exact, reasons, rollup_rows, raw_rows, pending_changes"
        " from usage.receipt(%s::pg_catalog.timestamptz, %s::pg_catalog.timestamptz)"
    ),
]
"""Read in binary, which no session setting changes on the wire."""

HOSTILE = """
create schema evil;
create function evil.wrong() returns text language plpgsql as $$ begin raise exception 'a shadow was called'; end $$;
create function evil.isfinite(date) returns boolean language sql as 'select evil.wrong() is null';
create function evil.isfinite(timestamptz) returns boolean language sql as 'select evil.wrong() is null';
create function evil.to_char(timestamptz, text) returns text language sql as 'select evil.wrong()';
create function evil.to_char(timestamp, text) returns text language sql as 'select evil.wrong()';
create function evil.now() returns timestamptz language sql as 'select evil.wrong()::timestamptz';
create function evil.round(numeric) returns numeric language sql as 'select evil.wrong()::numeric';
create function evil.length(text) returns integer language sql as 'select evil.wrong()::integer';
create function evil.md5(text) returns text language sql as 'select evil.wrong()';
create function evil.doubt() returns text language sql as 'select evil.wrong()';
create function evil.event() returns text language sql as 'select evil.wrong()';
create function evil.multiply(numeric, integer) returns numeric language sql as 'select evil.wrong()::numeric';
create operator evil.* (leftarg = numeric, rightarg = integer, function = evil.multiply);
create function evil.before(timestamptz, timestamptz) returns boolean language sql as 'select evil.wrong() is null';
create operator evil.>= (leftarg = timestamptz, rightarg = timestamptz, function = evil.before);
create operator evil.< (leftarg = timestamptz, rightarg = timestamptz, function = evil.before);
create function evil.equal(text, text) returns boolean language sql as 'select evil.wrong() is null';
create operator evil.= (leftarg = text, rightarg = text, function = evil.equal);
create function evil.member(jsonb, text) returns text language sql as 'select evil.wrong()';
create operator evil.->> (leftarg = jsonb, rightarg = text, function = evil.member);
create operator evil.-> (leftarg = jsonb, rightarg = text, function = evil.member);
create aggregate evil.sum(numeric) (sfunc = numeric_sub, stype = numeric, initcond = '0');
create aggregate evil.count(*) (sfunc = int8inc, stype = bigint, initcond = '100');
create table evil.state (time_zone text, source text);
create table evil.daily (day date);
create table evil.resource_usage_log (created_at timestamptz);
create domain evil.uuid as text check (value is null);
create domain evil.timestamptz as text check (value is null);
"""

HOSTILE_SESSION = """
create temporary table state (time_zone pg_catalog.text, source pg_catalog.text);
create temporary table late_change (sign pg_catalog.int2);
create temporary table resource_usage_log (created_at pg_catalog.timestamptz);
create temporary table nodes (id pg_catalog.uuid);
create temporary table delta (rollup pg_catalog.text);
create temporary table text (x pg_catalog.int4);
create temporary table date (x pg_catalog.int4);
create temporary table timestamptz (x pg_catalog.int4);
create temporary table numeric (x pg_catalog.int4);
create temporary table uuid (x pg_catalog.int4);
create temporary table pg_class (x pg_catalog.int4);
set search_path = pg_temp, evil, public, pg_catalog
"""

SETTINGS = [
    "set timezone = 'Pacific/Apia'",
    "set timezone = 'America/St_Johns'",
    "set timezone = '<-03:30>+03:30'",
    "set datestyle = 'German'",
    "set datestyle = 'SQL, DMY'",
    "set datestyle = 'Postgres, MDY'",
    "set intervalstyle = 'iso_8601'",
    "set intervalstyle = 'sql_standard'",
    "set standard_conforming_strings = off; set escape_string_warning = off",
    "set bytea_output = 'escape'",
    "set extra_float_digits = -15",
    "set extra_float_digits = 0",
    "set lc_messages = 'C.UTF-8'; set lc_numeric = 'C.UTF-8'; set lc_time = 'C.UTF-8'; set lc_monetary = 'C.UTF-8'",
    "set search_path = ''",
    "set search_path = evil, public, pg_catalog",
    HOSTILE_SESSION,
    "set array_nulls = off; set transform_null_equals = on; set xmloption = document",
    "set jit = on; set jit_above_cost = 0; set enable_hashagg = off; set enable_indexscan = off",
    "set plan_cache_mode = force_generic_plan; set from_collapse_limit = 1; set join_collapse_limit = 1",
    "set row_security = off; set default_transaction_read_only = on; set check_function_bodies = off",
]


def fill(database: Database) -> None:
    """Insert events of every kind of text and of odd days; refresh; then late changes and a tail."""
    texts = [
        *("a", "B", "b", "A", "é", "z", "å", "Z", "ab", "a b", "a-b", "1", "10", "2", "ß", "ss", "i", "ı"),
        "漢" * 130,
        None,
    ]
    for number, text in enumerate(texts):
        values = {"tokens_in": 0.1 + number // 4, "tokens_out": 1}
        detail = json.dumps({**values, "job_type": text, "model_level": text and text.upper()})
        for day in ("2024-05-01", "2024-05-02", "2011-12-30", "9999-12-31"):
            instant = f"{day} 12:00:00+00"
            database.insert(instant, "ai", number % 7, detail)
            database.insert(instant, text, number % 7, detail)
    odd = ("2010-11-07 02:30:30+00", "2023-10-29 00:30:00+00", "infinity", "-infinity", "4000-01-01 00:00:00+00 BC")
    for instant in odd:
        database.insert(instant, "cas", None, '{"size_bytes": "123456789012345678.123456789"}')
    database.refresh()
    database.insert("2024-05-01 13:00:00+00", "ai", 0, '{"tokens_in": " 5\\t", "job_type": "a"}')
    database.execute("delete from public.resource_usage_log where id = 3")
    database.execute("update public.resource_usage_log set created_at = created_at - interval '1 day' where id = 9")


@pytest.fixture
def filled(db: Database) -> Database:
    """A database with rollups, late changes and a tail, and hostile objects in it."""
    fill(db)
    db.execute(HOSTILE)
    db.compare(WINDOWS)
    return db


def read_all(connection: psycopg.Connection[Any]) -> list[Any]:
    """Return every answer of a window as this session sees it, without what moves with the clock."""
    overview = usage_overview(connection, since=SINCE, until=UNTIL)
    answers: list[Any] = [overview.by_collection, overview.ai_drilldown, overview.daily, overview.receipt.frontier]
    receipt = overview.receipt
    answers += [(receipt.exact, receipt.reasons, receipt.rollup_rows, receipt.raw_rows)]
    open_ended = usage_overview(connection, since=SINCE - timedelta(days=3650), collection_id=COLLECTIONS[0])
    answers += [open_ended.as_contract(), usage_overview(connection, days=9999).as_contract()]
    with connection.cursor(binary=True) as cursor:
        for query in READS:
            rows = cursor.execute(query.encode(), (SINCE, UNTIL)).fetchall()
            answers.append([tuple(row.values()) if isinstance(row, dict) else tuple(row) for row in rows])
        row = cursor.execute(
            b"select usage.overview(%s::pg_catalog.timestamptz, %s::pg_catalog.timestamptz)", (SINCE, UNTIL)
        ).fetchone()
        assert row is not None
        (text,) = row.values() if isinstance(row, dict) else row
        answers.append(text)
    return answers


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda text: "hostile" if text is HOSTILE_SESSION else text[4:40])
def test_settings(filled: Database, settings: str) -> None:
    """No setting of the session changes an answer, of SQL or Python; nor does any object that hides one of ours."""
    expected = read_all(filled.connection)
    odd = filled.connect()
    odd.execute(settings.encode())
    assert read_all(odd) == expected
    json_text = expected[-1]
    assert json_text == usage_overview(odd, since=SINCE, until=UNTIL).as_contract()


def test_settings_of_writers(filled: Database) -> None:
    """A writer with odd settings and hostile objects writes late changes and tail events as any other."""
    for settings in SETTINGS:
        if "read_only" in settings or "pg_temp" in settings:
            continue
        odd = filled.connect()
        odd.execute(settings.encode())
        odd.execute(
            b"insert into public.resource_usage_log (resource_type, detail, created_at) values"
            b" ('ai', '{\"tokens_in\": 0.1}', pg_catalog.to_timestamp(1714560000)),"
            b" ('ai', '{\"tokens_in\": 1}', 'infinity')"
        )
        odd.execute(
            b"update public.resource_usage_log set detail = '{\"tokens_in\": 7.25}' where id operator(pg_catalog.=) 5"
        )
    filled.compare(WINDOWS)
    filled.refresh()
    filled.compare(WINDOWS)
    assert filled.verify().differences == 0


HOSTILE_DATABASE = {
    "timezone": "'Pacific/Apia'",
    "datestyle": "'German'",
    "intervalstyle": "'iso_8601'",
    "search_path": "evil, public, pg_catalog",
    "standard_conforming_strings": "off",
    "quote_all_identifiers": "on",
    "extra_float_digits": "-15",
    "default_transaction_isolation": "'serializable'",
    "default_transaction_read_only": "on",
    "lock_timeout": "1",
    "client_encoding": "'LATIN1'",
}


def test_settings_of_the_database(filled: Database) -> None:
    """Settings of the database that refresh, verify and migrate run under change nothing either."""
    for name, value in HOSTILE_DATABASE.items():
        filled.execute(f"alter database {filled.name} set {name} = {value}")
    connection = connect(filled.settings)
    try:
        refresh.refresh(connection, filled.settings)
        filled.compare(WINDOWS)
        migrations.upgrade(filled.settings)
        filled.compare(WINDOWS)
    finally:
        connection.close()


def test_migrated_under_settings_of_the_database(new_database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do they when the schema is made under them: functions are what they are elsewhere."""
    db: Database = new_database()
    migrations.downgrade(db.settings)
    for name, value in HOSTILE_DATABASE.items():
        db.execute(f"alter database {db.name} set {name} = {value}")
    for encoding in ("LATIN1", "SQL_ASCII"):
        monkeypatch.setenv("PGCLIENTENCODING", encoding)
        migrations.upgrade(db.settings)
        with connect(db.settings) as connection:
            capture.attach(connection, db.settings)
        db.insert("2026-03-01 00:00+00", "ai", 0, '{"tokens_in": "1x5", "tokens_out": " 2.5 "}')
        with connect(db.settings) as connection:
            refresh.refresh(connection, db.settings)
        db.compare([("-infinity", None, None)])
        migrations.downgrade(db.settings)


COLLATIONS = [
    ("libc C.UTF-8", "locale_provider libc locale 'C.UTF-8'"),
    ("libc en_US", "locale_provider libc locale 'en_US.UTF-8'"),
    ("icu und", "locale_provider icu icu_locale 'und' locale 'C'"),
    ("icu sv", "locale_provider icu icu_locale 'sv-SE-u-kn-true' locale 'C'"),
    ("icu tr", "locale_provider icu icu_locale 'tr-u-kf-upper-ka-shifted' locale 'C.UTF-8'"),
    ("builtin", "locale_provider builtin builtin_locale 'C.UTF-8' locale 'C'"),
    ("builtin unicode", "locale_provider builtin builtin_locale 'PG_UNICODE_FAST' locale 'C'"),
]


@pytest.fixture
def collated(server: str, request: pytest.FixtureRequest) -> Iterator[Database]:
    """An attached database whose default collation is the test's parameter; skips where the server has none such."""
    label, options = request.param
    name = f"aggregator_collated_{label.replace(' ', '_').replace('-', '_').replace('.', '_').lower()}"
    with psycopg.connect(f"{server} dbname=postgres", autocommit=True) as admin:
        admin.execute(f"drop database if exists {name} with (force)".encode())
        try:
            admin.execute(f"create database {name} template template0 encoding 'UTF8' {options}".encode())
        except psycopg.Error as exc:
            pytest.skip(f"no collation {label} on this server: {exc.diag.message_primary}")
    database: Database | None = None
    try:
        with psycopg.connect(f"{server} dbname={name}", autocommit=True) as connection:
            connection.execute(SCHEMA.encode())
        migrations.upgrade(Settings(database_url=f"{server} dbname={name}"))  # type: ignore[arg-type]
        database = Database(server, name, "UTC", {})
        database.attach()
        yield database
    finally:
        if database is not None:
            database.close()
        with psycopg.connect(f"{server} dbname=postgres", autocommit=True) as admin:
            admin.execute(f"drop database if exists {name} with (force)".encode())


@pytest.mark.parametrize("collated", COLLATIONS, ids=lambda pair: pair[0], indirect=True)
def test_default_collations(collated: Database, filled: Database) -> None:
    """Under any default collation the answers are those of C: the same keys, in bytewise order."""
    fill(collated)
    collated.compare(WINDOWS)
    ours, others = (usage_overview(d.connection, since=SINCE, until=UNTIL).as_contract() for d in (collated, filled))
    assert ours == others
    collated.refresh()
    collated.compare(WINDOWS)
    assert collated.verify().differences == 0
    collated.execute("refresh materialized view usage.trailing")
    collated.execute("refresh materialized view usage.monthly_ranking")


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("level", list(IsolationLevel))
def test_transactions_of_the_caller(filled: Database, level: IsolationLevel, read_only: bool) -> None:
    """In the caller's transaction of any level it sees the caller's own changes, and leaves the transaction open."""
    connection = filled.connect(autocommit=False)
    connection.isolation_level = level
    connection.read_only = read_only
    expected = usage_overview(filled.connection, since=SINCE).as_contract()
    with connection.transaction():
        if not read_only:
            connection.execute(
                "insert into public.resource_usage_log (resource_type, created_at)"
                " values ('mine', '2024-05-01'), ('mine', 'infinity')"
            )
        before = connection.info.transaction_status
        overview = usage_overview(connection, since=SINCE)
        assert before == TransactionStatus.INTRANS
        assert connection.info.transaction_status == before
        mine = [row.event_count for row in overview.by_collection if row.resource_type == "mine"]
        assert mine == ([] if read_only else [2])
        if level >= IsolationLevel.REPEATABLE_READ:
            compare(connection, "UTC", WINDOWS)
        raise psycopg.Rollback
    assert connection.info.transaction_status == TransactionStatus.IDLE
    assert usage_overview(connection, since=SINCE).as_contract() == expected


def test_autocommit_off(filled: Database) -> None:
    """Without autocommit it neither commits nor rolls back what the caller did before."""
    connection = filled.connect(autocommit=False)
    connection.execute(
        "insert into public.resource_usage_log (resource_type, created_at) values ('mine', '2024-05-01')"
    )
    usage_overview(connection, since=SINCE)
    assert connection.info.transaction_status == TransactionStatus.INTRANS
    assert filled.scalar("select count(*) from public.resource_usage_log where resource_type = 'mine'") == 0
    connection.rollback()
    assert filled.scalar("select count(*) from public.resource_usage_log where resource_type = 'mine'") == 0
    filled.compare(WINDOWS)


def test_autocommit_on(filled: Database) -> None:
    """With autocommit no transaction is left open."""
    usage_overview(filled.connection, since=SINCE)
    assert filled.connection.info.transaction_status == TransactionStatus.IDLE


def test_row_and_cursor_factories(filled: Database) -> None:
    """Row and cursor factories of the caller's connection, and binding on its side, change nothing."""
    expected = read_all(filled.connection)
    for factory in (dict_row, namedtuple_row):
        assert read_all(filled.connect(row_factory=factory))[:7] == expected[:7]
    by_client = filled.connect(cursor_factory=psycopg.ClientCursor)
    overview = usage_overview(by_client, since=SINCE, until=UNTIL)
    assert [overview.by_collection, overview.ai_drilldown, overview.daily] == expected[:3]
    assert read_all(filled.connect(prepare_threshold=0))[:7] == expected[:7]


class CountingCursor(psycopg.Cursor[Any]):
    """Keeps what was executed."""

    executed: list[Any] = []  # noqa: RUF012 -- shared on purpose

    def execute(self, query: Any, *arguments: Any, **options: Any) -> CountingCursor:
        """Run and keep a statement."""
        self.executed.append(query)
        super().execute(query, *arguments, **options)
        return self


def test_one_statement(filled: Database) -> None:
    """The overview is one statement, so one snapshot, whatever the caller's isolation."""
    connection = filled.connect(cursor_factory=CountingCursor)
    CountingCursor.executed.clear()
    usage_overview(connection, since=SINCE)
    assert len(CountingCursor.executed) == 1
    assert ";" not in CountingCursor.executed[0]
    CountingCursor.executed.clear()


def overview(db: Database, since: str, until: str | None = None, **options: Any) -> Overview:
    """Return the overview of a window given as ISO text."""
    return usage_overview(
        db.connection,
        since=datetime.fromisoformat(since),
        until=None if until is None else datetime.fromisoformat(until),
        **options,
    )


def test_receipt(db: Database) -> None:
    """The receipt counts the rollup rows, raw rows and late changes read, and names the frontier and its age."""
    db.days_only()
    for instant, resource_type, collection, job_type in (
        ("2024-03-10 02:00+00", "ai", 0, "a"),
        ("2024-03-10 20:00+00", "ai", 0, "a"),
        ("2024-03-10 21:00+00", "cas", 0, "a"),
        ("2024-03-11 02:00+00", "ai", 0, "a"),
        ("2024-03-11 03:00+00", "ai", 1, "b"),
    ):
        db.insert(instant, resource_type, collection, json.dumps({"job_type": job_type}))
    window = ("2024-03-10T00:00Z", "2024-03-12T00:00Z")

    receipt = overview(db, *window).receipt
    assert (receipt.frontier, receipt.lag, receipt.exact) == (None, None, True)
    assert receipt.reasons == ("never refreshed: run aggregator refresh",)
    assert (receipt.rollup_rows, receipt.raw_rows, receipt.pending_changes) == (0, 5, 0)

    db.refresh()
    receipt = overview(db, *window).receipt
    assert receipt.frontier is not None
    assert receipt.frontier == db.scalar("select frontier from usage.state")
    assert receipt.lag == receipt.as_of - receipt.frontier > timedelta(0)
    assert (receipt.reasons, receipt.exact) == ((), True)
    assert (receipt.raw_rows, receipt.pending_changes) == (0, 0)
    assert receipt.rollup_rows > 0

    receipt = overview(db, "2024-03-10T18:00Z", window[1]).receipt
    assert (receipt.raw_rows, receipt.pending_changes) == (2, 0), "the day is cut nearer its end: two events inside"
    receipt = overview(db, "2024-03-10T06:00Z", window[1]).receipt
    assert (receipt.raw_rows, receipt.pending_changes) == (1, 0), "the day is cut nearer its start: one event outside"

    db.insert("2024-03-10 05:00+00")
    db.execute("update public.resource_usage_log set detail = '{}' where resource_type = 'cas'")
    receipt = overview(db, *window).receipt
    assert (receipt.raw_rows, receipt.pending_changes) == (0, 3)
    receipt = overview(db, *window, collection_id=COLLECTIONS[1]).receipt
    assert (receipt.raw_rows, receipt.pending_changes) == (0, 0)

    db.insert("infinity")
    assert overview(db, *window).receipt.raw_rows == 0
    assert overview(db, window[0]).receipt.raw_rows == 1
    with snapshot(db.connection):
        expected = db.execute("select rollup_rows, raw_rows, pending_changes from usage.receipt('2024-03-10T00:00Z')")
        receipt = overview(db, window[0]).receipt
    assert expected == [(receipt.rollup_rows, receipt.raw_rows, receipt.pending_changes)]
    db.refresh()
    receipt = overview(db, *window).receipt
    assert (receipt.raw_rows, receipt.pending_changes) == (0, 0)


def test_receipt_of_doubt(db: Database) -> None:
    """While trust is off the receipt says why, nothing of the rollups is read, and the answer is exact."""
    db.insert("2024-03-10 02:00+00")
    db.refresh()
    db.execute("update usage.state set trusted = false, distrust_reason = 'a test says so'")
    receipt = overview(db, "2024-03-10T00:00Z").receipt
    assert (receipt.exact, receipt.reasons, receipt.rollup_rows, receipt.raw_rows) == (True, ("a test says so",), 0, 1)
    db.compare()


@pytest.mark.parametrize("datestyle", ["ISO, MDY", "German", "SQL, DMY"])
def test_reasons_do_not_depend_on_the_session(db: Database, datestyle: str) -> None:
    """A window that cuts a sealed day is not exact, and the receipt names the day in ISO format."""
    db.days_only()
    db.insert("2024-03-10 02:00+00")
    db.refresh()
    db.execute("update usage.state set sealed_until = '2024-03-12 00:00:00+00'")
    db.execute(f"set datestyle = '{datestyle}'")
    receipt = overview(db, "2024-03-10T06:00Z").receipt
    assert receipt.exact is False
    assert receipt.reasons == ("the window starts inside 2024-03-10, which is sealed: that day counts whole",)


class Unknown(tzinfo):
    """A time zone that does not know its offset, so its datetimes are naive."""

    def utcoffset(self, _: datetime | None) -> None:
        """Return that it is unknown."""
        return

    def dst(self, _: datetime | None) -> None:
        """Return that it is unknown."""
        return

    def tzname(self, _: datetime | None) -> str:
        """Return a name."""
        return "unknown"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"since": datetime(2024, 1, 1)}, "since must have a time zone"),  # noqa: DTZ001 -- it is the point
        ({"since": SINCE, "until": datetime(2024, 1, 1)}, "until must have a time zone"),  # noqa: DTZ001
        ({"since": datetime(2024, 1, 1, tzinfo=Unknown())}, "since must have a time zone"),
        ({"since": SINCE, "until": SINCE}, "since must be before until"),
        ({"since": UNTIL, "until": SINCE}, "since must be before until"),
        ({"collection_id": "nonsense"}, "is no UUID"),
        ({"collection_id": ""}, "is no UUID"),
    ],
)
def test_wrong_arguments(db: Database, options: dict[str, Any], message: str) -> None:
    """Naive instants, an empty window and a collection that is no UUID are errors of usage, before any statement."""
    connection = db.connect(cursor_factory=CountingCursor)
    CountingCursor.executed.clear()
    with pytest.raises(UsageError, match=message) as caught:
        usage_overview(connection, **options)
    assert caught.value.exit_code == 2
    assert CountingCursor.executed == []


def test_unknown_collection(filled: Database) -> None:
    """A collection that nobody has used has an empty overview."""
    empty = usage_overview(filled.connection, since=SINCE, collection_id=UUID(int=1234))
    assert empty.as_contract() == {"by_collection": [], "ai_drilldown": [], "daily": []}
    assert empty.receipt.exact


def test_not_attached(new_database: Any) -> None:
    """Before attach a read says what to run."""
    db: Database = new_database()
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="not attached: run aggregator attach"):
        usage_overview(db.connection)
