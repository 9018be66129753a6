"""attach and detach: what they check, refuse and leave behind; sealed history."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from aggregator import capture, metrics, migrations
from aggregator.capture import SealedHistoryError, SourceError
from aggregator.db import connect, one_line
from aggregator.errors import AggregatorError
from aggregator.settings import Settings
from tests.harness import COLLECTIONS, SCHEMA, Database
from tests.integration.sources import NO_TITLES, PARTITIONED_DDL, Background, doubt, fill, pending, run, settled

NewDatabase = Callable[..., Database]
TABLE = (
    "create table public.usage_of_host (collection_id uuid, resource_type text, detail jsonb, created_at timestamptz)"
)
INDEX = "create index on public.usage_of_host (created_at)"
HOST = "public.usage_of_host"

REFUSED: dict[str, tuple[str, str, str]] = {
    "missing": ("select 1", HOST, "the source table public.usage_of_host does not exist: set AGGREGATOR_SOURCE_TABLE"),
    "unqualified": (TABLE, "usage_of_host", "must be qualified with its schema"),
    "no name": (TABLE, "public.", "is no SQL name"),
    "too qualified": (TABLE, "db.public.usage_of_host", "must be qualified with its schema and nothing else"),
    "view": (
        f"create view {HOST} as select * from public.resource_usage_log",
        HOST,
        "is a view, which can have no triggers: attach it with --capture lookback",
    ),
    "materialized view": (
        f"create materialized view {HOST} as select * from public.resource_usage_log",
        HOST,
        "is a materialized view",
    ),
    "unlogged": (TABLE.replace("create table", "create unlogged table") + ";" + INDEX, HOST, "SET LOGGED"),
    "partition": (PARTITIONED_DDL, "public.events_old", "is a partition: attach the partitioned table"),
    "inheritance child": (
        f"{TABLE};{INDEX};create table public.kid () inherits ({HOST})",
        HOST,
        "kid inherits from it",
    ),
    "missing column": (
        f"{TABLE};{INDEX};alter table {HOST} drop resource_type",
        HOST,
        "has no column resource_type; it needs",
    ),
    "naive instant": (
        f"{TABLE};{INDEX};alter table {HOST} alter created_at type timestamp",
        HOST,
        "TYPE timestamptz USING created_at AT",
    ),
    "json": (f"{TABLE};{INDEX};alter table {HOST} alter detail type json", HOST, "detail is json; it must be jsonb"),
    "integer collection": (
        f"{TABLE};{INDEX};alter table {HOST} drop collection_id;alter table {HOST} add collection_id integer",
        HOST,
        "collection_id is integer; it must be uuid",
    ),
    "no index": (TABLE, HOST, "CREATE INDEX CONCURRENTLY ON public.usage_of_host (created_at)"),
    "partial index": (f"{TABLE};{INDEX} where resource_type = 'ai'", HOST, "CREATE INDEX CONCURRENTLY ON"),
    "index on another column first": (
        f"{TABLE};create index on {HOST} (resource_type, created_at)",
        HOST,
        "CREATE INDEX",
    ),
    "hash index": (f"{TABLE};create index on {HOST} using hash (created_at)", HOST, "CREATE INDEX CONCURRENTLY ON"),
    "partitioned without index": (
        f"{TABLE} partition by range (created_at)",
        HOST,
        "CREATE INDEX ON public.usage_of_host (created_at)",
    ),
    "unlogged partition": (
        f"{TABLE} partition by list (resource_type);{INDEX};create unlogged table public.kid partition of {HOST} default",
        HOST,
        "kid is not logged",
    ),
}


def _with(new_database: NewDatabase, script: str, **settings: Any) -> Database:
    db = new_database(**settings)
    db.execute(script)
    return db


def _refused(db: Database, reason: str) -> None:
    with pytest.raises(SourceError) as raised:
        db.attach()
    assert reason in str(raised.value)
    assert db.scalar("select count(*) from pg_trigger where tgname ~ '^usage_'") == 0
    assert db.scalar("select source is null from usage.state")


@pytest.mark.parametrize("case", REFUSED)
def test_refused_sources(new_database: NewDatabase, case: str) -> None:
    """A source that cannot be captured is refused with a reason that says what to do, and nothing is left behind."""
    script, source, reason = REFUSED[case]
    _refused(_with(new_database, script, source_table=source), reason)


def test_index_statement_works(new_database: NewDatabase) -> None:
    """The statement that attach gives for a missing index is what it needs."""
    for script in (TABLE, f"{TABLE} partition by range (created_at)"):
        db = _with(new_database, script, source_table=HOST)
        with pytest.raises(SourceError) as raised:
            db.attach()
        db.execute(str(raised.value).rsplit(": ", 1)[1])
        assert db.attach().changed


def test_foreign_tables(new_database: NewDatabase) -> None:
    """A foreign table, also as a partition, is refused."""
    db = new_database(source_table=HOST)
    try:
        db.execute("create extension file_fdw; create server files foreign data wrapper file_fdw")
    except psycopg.Error as exc:
        pytest.skip(f"no file_fdw here: {exc}")
    db.execute(TABLE.replace("create table", "create foreign table") + " server files options (filename '/dev/null')")
    _refused(db, "is a foreign table")
    db.execute(
        f"drop foreign table {HOST}; {TABLE} partition by list (resource_type); {INDEX};"
        f"create foreign table public.kid partition of {HOST} default server files options (filename '/dev/null')"
    )
    _refused(db, "kid is a foreign table")


def test_row_level_security(make_role: Callable[..., str], new_database: NewDatabase) -> None:
    """A source whose policies would hide rows from our role is refused; a role that bypasses them may attach."""
    role = make_role()
    db = _with(new_database, f"{TABLE};{INDEX}", source_table=HOST)
    db.execute(
        f"alter table {HOST} owner to {role}; alter table {HOST} enable row level security;"
        f"alter table {HOST} force row level security; grant usage on schema usage to {role}"
    )
    mine = db.settings.model_copy(update={"database_url": Settings(database_url=f"{db.dsn} user={role}").database_url})  # type: ignore[arg-type]
    with connect(mine) as connection, pytest.raises(SourceError, match="row-level security would hide rows.*BYPASSRLS"):
        capture.attach(connection, mine)
    db.attach()
    fill_note = EVENTS_WITHOUT_NOTE.format(source=HOST)
    db.execute(fill_note)
    settled(db)


EVENTS_WITHOUT_NOTE = (
    "insert into {source} (collection_id, resource_type, detail, created_at)"
    " select null, 'ai', '{{\"tokens_in\": 3}}', clock_timestamp() - n * interval '9 hours' from generate_series(1, 50) n"
)


def test_not_the_owner(make_role: Callable[..., str], new_database: NewDatabase) -> None:
    """A role that does not own the source is told as whom to connect."""
    role = make_role()
    db = _with(new_database, f"{TABLE};{INDEX}; grant all on {HOST} to {role}", source_table=HOST)
    mine = db.settings.model_copy(update={"database_url": Settings(database_url=f"{db.dsn} user={role}").database_url})  # type: ignore[arg-type]
    with connect(mine) as connection, pytest.raises(SourceError, match=f"role {role} must own .* connect as postgres"):
        capture.attach(connection, mine)


def test_no_superuser_is_needed(make_role: Callable[..., str], new_database: NewDatabase) -> None:
    """A role that owns its database and the source can do everything: migrate, attach, refresh, verify, detach."""
    role = make_role("createdb")
    frame = new_database()
    name = f"{frame.name}_owned"
    frame.execute(f"create database {name} owner {role} template template0 encoding 'UTF8'")
    server = frame.dsn.split(" dbname=")[0]
    try:
        with psycopg.connect(f"{server} dbname={name}", autocommit=True) as admin:
            admin.execute(f"alter schema public owner to {role}".encode())
        with psycopg.connect(f"{server} dbname={name} user={role}", autocommit=True) as owner:
            owner.execute(SCHEMA.encode())
        migrations.upgrade(Settings(database_url=f"{server} dbname={name} user={role}"))  # type: ignore[arg-type]
        db = Database(f"{server} user={role}", name, "UTC", {})
        try:
            db.attach()
            fill(db)
            settled(db)
            run(db, "delete from {source} where note like 'event 1%'; alter table {source} disable trigger user")
            settled(db, trusted=False)
            db.attach()
            assert db.verify(repair=True).trusted
            settled(db)
            assert capture.detach(db.own, db.settings)
        finally:
            db.close()
    finally:
        frame.execute(f"drop database if exists {name} with (force)")


def test_nondeterministic_collation(new_database: NewDatabase) -> None:
    """A column whose collation calls different texts equal is refused: they would be one key in the raw query."""
    db = new_database(source_table=HOST)
    try:
        db.execute("create collation public.alike (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
    except psycopg.errors.FeatureNotSupported as exc:
        pytest.skip(f"no ICU here: {exc}")
    db.execute(f"{TABLE};{INDEX};alter table {HOST} alter resource_type type text collate public.alike")
    _refused(db, "nondeterministic collation")


TITLES: dict[str, tuple[str, str]] = {
    "not unique": (
        "create table public.titles (id uuid, title text)",
        "id is not unique, so a join would multiply rows",
    ),
    "unique with another": (
        "create table public.titles (id uuid, title text, n int, unique (id, n))",
        "id is not unique",
    ),
    "deferrable": ("create table public.titles (id uuid unique deferrable, title text)", "id is not unique"),
    "partially unique": (
        "create table public.titles (id uuid, title text); create unique index on public.titles (id) where title <> ''",
        "id is not unique",
    ),
    "no title": ("create table public.titles (id uuid primary key)", "needs the columns id uuid and title text"),
    "integer id": (
        "create table public.titles (id int primary key, title text)",
        "needs the columns id uuid and title text",
    ),
    "missing": ("select 1", "the title table public.titles does not exist: set AGGREGATOR_TITLE_TABLE"),
}


@pytest.mark.parametrize("case", TITLES)
def test_refused_title_tables(new_database: NewDatabase, case: str) -> None:
    """A title table that is asked for and cannot be joined is refused with a reason."""
    script, reason = TITLES[case]
    _refused(_with(new_database, script, title_table="public.titles"), reason)


@pytest.mark.parametrize("setting", [{"title_table": "none"}, {}])
def test_no_title_table(new_database: NewDatabase, setting: dict[str, str]) -> None:
    """Without a title table, by choice or by the default's absence, titles are null; the latter is warned of."""
    db = _with(new_database, "drop table public.nodes", **setting)
    attached = db.attach()
    assert attached.title_table is None
    assert len(attached.warnings) == (0 if setting else 1)
    db.titles = NO_TITLES
    fill(db)
    settled(db)


def test_quoted_identifiers(new_database: NewDatabase) -> None:
    """Names that need quotes work everywhere, whatever is in them."""
    source, titles = '"My Schema"."Usage ""Log"" {0} \'x\' $1"', '"My Schema"."Nödes; --"'
    db = new_database(source_table=source, title_table=titles)
    db.execute(
        f'create schema "My Schema"; create table {source} (like public.resource_usage_log including all);'
        f"create table {titles} (like public.nodes including all); insert into {titles} select * from public.nodes"
    )
    assert db.attach().source == source
    fill(db)
    settled(db)
    run(db, "delete from {source} where note like 'event 1%'")
    db.connection.execute(f"truncate {source}".encode())
    settled(db)
    assert capture.detach(db.own, db.settings)


def _triggers(db: Database) -> list[tuple[Any, ...]]:
    return db.execute(
        "select tgrelid::regclass::text, tgname::text, tgenabled::text, oid, xmin::text from pg_trigger where tgname ~ '^usage_' order by 1, 2"
    )


def test_attach_twice(filled: Database) -> None:
    """Attaching what is attached changes nothing, and takes no lock on the source."""
    before = _triggers(filled)
    assert len(before) == (4 if filled.source.endswith("log") else 24)
    writer = filled.connect(autocommit=False)
    writer.execute(f"delete from {filled.source} where note = 'event 5'".encode())
    assert not filled.attach().changed
    writer.commit()
    assert _triggers(filled) == before
    settled(filled)


def test_attach_another_table(filled: Database) -> None:
    """While a table is attached another one is refused, and nothing changes."""
    filled.execute(f"{TABLE};{INDEX}")
    before = _triggers(filled)
    settings = filled.settings.model_copy(update={"source_table": HOST})
    with pytest.raises(
        SourceError, match=f"{filled.source} is attached: run aggregator detach first, then attach {HOST}"
    ):
        capture.attach(filled.own, settings)
    assert _triggers(filled) == before
    settled(filled)


def test_time_zone_change(filled: Database) -> None:
    """Another time zone is refused while there are rollups by days of the old one; after detach it is taken."""
    settings = filled.settings.model_copy(update={"time_zone": "Asia/Kolkata"})
    with pytest.raises(
        SourceError, match="the rollups are by days of UTC: set AGGREGATOR_TIME_ZONE=UTC, or run aggregator detach"
    ):
        capture.attach(filled.own, settings)
    capture.detach(filled.own, filled.settings)
    assert capture.attach(filled.own, settings).time_zone == "Asia/Kolkata"
    filled.zone = "Asia/Kolkata"
    settled(filled)


def test_publication_for_all_tables(new_database: NewDatabase) -> None:
    """A publication FOR ALL TABLES is warned of, and nothing of ours fails for want of a replica identity."""
    db = new_database()
    with db.connection.transaction():
        db.execute("set local client_min_messages = error; create publication everything for all tables")
    warnings = db.attach().warnings
    assert [w for w in warnings if "publication everything is FOR ALL TABLES" in w] == list(warnings) != []
    fill(db)
    settled(db)
    run(db, "delete from {source} where note like 'event 1%'")
    settled(db)
    run(db, "truncate {source}")
    settled(db)
    db.execute("update usage.metric set unit = 'tokens' where resource_type = 'ai'")
    assert db.verify(repair=True).trusted
    assert capture.detach(db.own, db.settings)


@pytest.mark.parametrize("source", ["public.resource_usage_log", "public.events"])
def test_attach_beside_an_open_writer(new_database: NewDatabase, source: str) -> None:
    """attach gives up after its tries, leaves no trigger, and never keeps other writers waiting for long."""
    db = _with(new_database, PARTITIONED_DDL, source_table=source, lock_timeout=0.05, lock_retries=2)
    insert = f"insert into {source} (resource_type, created_at) values ('ai', now())".encode()
    writer = db.connect(autocommit=False)
    writer.execute(insert)
    attaching = Background(db.attach)
    with db.connect() as other:
        other.execute(b"set lock_timeout = '5s'")
        while attaching.alive:
            other.execute(insert)
    with pytest.raises(AggregatorError, match=r"no lock on the source after 3 tries of 0.05 s: a long transaction"):
        attaching.join()
    assert _triggers(db) == []
    assert db.scalar("select source is null from usage.state")
    writer.commit()
    assert db.attach().changed
    settled(db)


def test_attach_waits_for_writers(new_database: NewDatabase) -> None:
    """attach tries again until an open writer has ended; what that one wrote counts."""
    db = new_database(lock_timeout=0.05, lock_retries=1000)
    fill(db)
    writer = db.connect(autocommit=False)
    writer.execute(f"delete from {db.source} where note like 'event 1%'".encode())
    attaching = Background(db.attach)
    db.execute(f"insert into {db.source} (resource_type, created_at) values ('ai', now() - interval '1 day')")
    writer.commit()
    assert attaching.join().changed
    settled(db)


def test_not_attached(new_database: NewDatabase) -> None:
    """Before attach every read says what to do."""
    db = new_database()
    for query in (
        "select * from usage.by_collection('-infinity')",
        "select * from usage.ai_drilldown('-infinity')",
        "select * from usage.daily_series('-infinity')",
        "select usage.overview(30)",
        "select * from usage.receipt('-infinity')",
        "select * from usage.daily_live",
        "select * from usage.pending",
    ):
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="not attached: run aggregator attach"):
            db.execute(query)
    for command in (db.refresh, db.verify):
        with pytest.raises(AggregatorError, match="not attached: run aggregator attach"):
            command()
    assert not capture.detach(db.own, db.settings)


def test_detach_and_attach_again(filled: Database) -> None:
    """detach removes triggers and rollups; attaching again, after writes that nobody saw, builds anew."""
    run(filled, "delete from {source} where note = 'event 4'")
    assert capture.detach(filled.own, filled.settings)
    assert _triggers(filled) == []
    for table in (
        "daily",
        "monthly",
        "daily_collection",
        "monthly_collection",
        "quarterly_collection",
        "daily_total",
        "late_change",
    ):
        assert filled.scalar(f"select count(*) from usage.{table}") == 0
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="not attached"):
        filled.execute("select * from usage.by_collection('-infinity')")
    run(filled, "delete from {source} where note like 'event 1%'; truncate {source}")
    fill(filled)
    assert not capture.detach(filled.own, filled.settings)
    assert filled.attach().changed
    filled.compare()
    settled(filled)
    run(filled, "delete from {source} where note like 'event 1%'")
    assert pending(filled) == 11
    settled(filled)


@pytest.mark.parametrize("renamed", [True, False])
def test_detach_leaves_no_trigger(filled: Database, renamed: bool) -> None:
    """Nothing of ours stays behind, on a source that bears another name by now, or on a partition that left it."""
    if filled.source == "public.events":
        filled.execute("alter table public.events detach partition public.events_old")
    if renamed:
        filled.execute(f"alter table {filled.source} rename to old_source")
    assert capture.detach(filled.own, filled.settings)
    assert filled.execute("select tgrelid::regclass::text, tgname from pg_trigger where tgname like 'usage%'") == []


def test_detach_beside_an_open_writer(filled: Database) -> None:
    """detach gives up after its tries too, and then everything is as it was."""
    writer = filled.connect(autocommit=False)
    writer.execute(f"delete from {filled.source} where note = 'event 5'".encode())
    settings = filled.settings.model_copy(update={"lock_timeout": 0.05, "lock_retries": 1})
    with pytest.raises(AggregatorError, match="no lock on the source after 2 tries"):
        capture.detach(filled.own, settings)
    writer.commit()
    settled(filled)


# Sealed history ------------------------------------------------------------------------------------------------


def _seal(db: Database, days: int = 15) -> None:
    """Seal what is older than some days, as purge does."""
    db.refresh()
    db.execute(
        f"update usage.state set sealed_until = usage.day_start(usage.local_day(now() - interval '{days} days', time_zone), time_zone);"
        "select setval('usage.seal_seq', (select (extract(epoch from sealed_until) * 1000000)::bigint from usage.state))"
    )


def _answers(db: Database) -> list[Any]:
    return [
        db.execute("select * from usage.by_collection('-infinity')"),
        db.execute("select * from usage.ai_drilldown('-infinity')"),
        db.execute("select * from usage.daily_series('-infinity')"),
        sorted(map(repr, db.execute("select * from usage.daily_live"))),
        sorted(map(repr, db.execute("select * from usage.monthly_live"))),
    ]


def test_purge_below_the_seal(filled: Database) -> None:
    """Deletes and updates below the seal log nothing and change no answer, also while trust is off."""
    _seal(filled)
    answers = _answers(filled)
    run(
        filled,
        "update {source} set detail = '{}' where created_at < (select sealed_until from usage.state) and id % 2 = 0",
    )
    run(filled, "delete from {source} where created_at < (select sealed_until from usage.state)")
    assert pending(filled) == 0
    assert _answers(filled) == answers
    filled.refresh()
    assert _answers(filled) == answers
    assert filled.verify().differences == 0
    filled.execute("update usage.state set trusted = false, distrust_reason = 'a test says so'")
    assert _answers(filled) == answers
    assert filled.verify(repair=True).trusted
    assert _answers(filled) == answers
    events = sum(row[3] for row in answers[0])
    run(filled, "delete from {source} where note = 'event 3'")
    assert sum(row[3] for row in _answers(filled)[0]) == events - 1
    filled.refresh()
    assert sum(row[3] for row in _answers(filled)[0]) == events - 1


def test_inserts_below_the_seal(filled: Database) -> None:
    """An insert below the seal still adds, before and after the refresh, and so does an update that moves a row there."""
    _seal(filled)
    run(filled, "delete from {source} where created_at < (select sealed_until from usage.state)")
    events = sum(row[3] for row in _answers(filled)[0])
    at = "date_trunc('day', now(), 'UTC') - interval '250 days'"
    run(
        filled,
        f"insert into {{source}} (resource_type, detail, created_at) values ('cas', '{{\"size_bytes\": 77}}', {at})",
    )
    assert pending(filled) == 1
    day = filled.scalar(f"select ({at})::date")
    for _ in range(2):
        answers = _answers(filled)
        assert sum(row[3] for row in answers[0]) == events + 1
        assert [row[3:] for row in answers[2] if row[0] == day] == [(1, 77.0)]
        filled.refresh()
    run(filled, "update {source} set created_at = now() - interval '200 days' where note = 'event 3'")
    assert pending(filled) == 2
    for _ in range(2):
        assert sum(row[3] for row in _answers(filled)[0]) == events + 1
        filled.refresh()


def test_truncate_above_the_seal(filled: Database) -> None:
    """A TRUNCATE empties what is not sealed, and keeps what is."""
    _seal(filled)
    sealed = filled.execute(
        "select sum(event_count) from usage.daily where day < (select usage.local_day(sealed_until, 'UTC') from usage.state)"
    )
    for truncate in (True, False):
        if truncate:
            run(filled, "truncate {source}")
        answers = _answers(filled)
        assert sum(row[3] for row in answers[0]) == sum(row[3] for row in answers[2]) == sealed[0][0]
        filled.refresh()
    assert doubt(filled) is None


def test_changes_below_the_seal(filled: Database) -> None:
    """What is sealed is not taken out by a correction of its raw events; what is moved from there above the seal adds."""
    _seal(filled)
    sealed = "created_at < (select sealed_until from usage.state)"
    before = _answers(filled)
    run(filled, f"update {{source}} set resource_type = 'cas', detail = null where {sealed}")
    run(filled, f"delete from {{source}} where id = (select max(id) from {{source}} where {sealed})")
    assert pending(filled) == 0
    assert _answers(filled) == before
    run(
        filled,
        f"update {{source}} set created_at = now() - interval '2 days' where id = (select max(id) from {{source}} where {sealed})",
    )
    assert filled.execute("select sign::integer, resource_type from usage.late_change") == [(1, "cas")]
    for _ in range(2):
        assert sum(row[3] for row in _answers(filled)[0]) == sum(row[3] for row in before[0]) + 1
        filled.refresh()
    assert doubt(filled) is None


def test_a_late_event_below_the_seal_before_a_truncate(filled: Database) -> None:
    """It is counted with what is sealed, though no refresh had seen it when the TRUNCATE came."""
    _seal(filled)
    sealed = "select sum(event_count) from usage.daily where day < (select usage.local_day(sealed_until, 'UTC') from usage.state)"
    before = filled.scalar(sealed)
    run(filled, "insert into {source} (resource_type, created_at) values ('ai', now() - interval '200 days')")
    assert pending(filled) == 1
    run(filled, "truncate {source}")
    assert sum(row[3] for row in _answers(filled)[0]) == before + 1
    filled.refresh()
    assert filled.scalar(sealed) == before + 1
    assert sum(row[3] for row in _answers(filled)[0]) == before + 1
    assert doubt(filled) is None


def test_detach_with_sealed_history(filled: Database) -> None:
    """detach refuses to throw sealed history away unless told to; time zone, rollups and definitions stay until then."""
    _seal(filled)
    metrics.set_metric(filled.own, metrics.Metric("render", "frames"))
    run(filled, "delete from {source} where created_at < (select sealed_until from usage.state)")
    answers = _answers(filled)
    with pytest.raises(SealedHistoryError, match="is sealed: .* add --discard-sealed"):
        capture.detach(filled.own, filled.settings)
    assert _answers(filled) == answers
    assert capture.detach(filled.own, filled.settings, discard_sealed=True)
    assert filled.scalar("select count(*) from usage.daily") == 0
    assert filled.scalar("select count(*) from usage.metric_history") == 0
    filled.attach()
    settled(filled)
    run(filled, "insert into {source} (resource_type, created_at) values ('ai', now() - interval '100 days')")
    run(filled, "delete from {source} where created_at < now() - interval '90 days'")
    settled(filled)


def test_window_that_cuts_a_sealed_day(filled: Database) -> None:
    """A window that begins or ends inside a sealed day counts it whole, and its receipt says that it is not exact."""
    filled.days_only()
    _seal(filled)
    run(filled, "delete from {source} where created_at < (select sealed_until from usage.state)")
    middle = "(date_trunc('day', now(), 'UTC') - interval '20 days' + interval '11 hours')"
    day = "date_trunc('day', now(), 'UTC') - interval '20 days'"
    for since, until, exact in (
        (middle, "null", False),
        ("'-infinity'", middle, False),
        (day, "null", True),
        ("'-infinity'", day, True),
        ("now() - interval '9 days 5 hours'", "null", True),
        (middle, "now() - interval '9 days 5 hours'", False),
    ):
        found, reasons = filled.execute(f"select exact, reasons from usage.receipt({since}, {until})")[0]
        assert found == exact
        assert any("which is sealed: that day counts whole" in reason for reason in reasons) == (not exact)
    whole = filled.execute(f"select * from usage.by_collection({day}, null)")
    assert filled.execute(f"select * from usage.by_collection({middle}, null)") == whole


@pytest.mark.parametrize(
    ("rename", "what"),
    [
        ("alter table public.nodes rename to items", "the title table public.nodes is gone or bears another name"),
        ("alter table public.nodes rename title to name", "public.nodes has no column title any more"),
    ],
)
def test_title_table_renamed(filled: Database, rename: str, what: str) -> None:
    """Reads that show titles fail, and say so; status names what to do, and attach does it."""
    filled.execute(rename)
    with pytest.raises((psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn)) as failed:
        filled.execute("select * from usage.by_collection('-infinity')")
    assert "aggregator status says what to do" in one_line(failed.value)
    problems = filled.execute("select problems from usage.freshness")[0][0]
    assert [problem for problem in problems if what in problem and "run aggregator attach" in problem] == problems
    capture.attach(filled.own, filled.settings.model_copy(update={"title_table": "none"}))
    filled.titles = NO_TITLES
    settled(filled)


def test_titles_follow(filled: Database) -> None:
    """Titles are joined when read: a renamed collection is right at once."""
    filled.execute("update public.nodes set title = 'New name' where id = %s", (COLLECTIONS[0],))
    filled.compare()
    filled.execute("delete from public.nodes")
    settled(filled)
