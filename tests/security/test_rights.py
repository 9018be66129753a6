"""What readers, refreshers, writers and owners of the host's tables may not get: raw rows, the frontier, our rights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from aggregator import capture, metrics, migrations, rebuild, seal, status, verify
from aggregator.capture import SourceError
from aggregator.db import connect, one_line
from aggregator.settings import Settings
from tests.harness import COLLECTIONS, SCHEMA, Database

MakeRole = Callable[..., str]
NewDatabase = Callable[..., Database]

ROLES = (Path(__file__).parents[2] / "deploy" / "roles.sql").read_text(encoding="utf-8")
READER = re.search(r"grant select on\n(.*?)to usage_reader;\n(.*?)to usage_reader;", ROLES, re.DOTALL)

MARKER = "known-to-nobody"
"""In the details of events: whoever sees it has seen a raw row."""


@pytest.fixture
def with_roles(db: Database) -> Iterator[Database]:
    """A database with events of which some are pending, late and malformed, and the roles of deploy/roles.sql."""
    for n in range(1, 9):
        db.insert(
            f"2026-0{n}-11 10:00+00", "ai", n % 3, f'{{"tokens_in": "{MARKER}", "job_type": "a", "note": "{MARKER}"}}'
        )
    db.refresh()
    db.insert("2026-03-01 00:00+00", "ai", 0, f'{{"tokens_in": 2, "note": "{MARKER}"}}')
    db.insert("now", "ai", 0, f'{{"tokens_in": 2, "note": "{MARKER}"}}')
    db.execute(ROLES.replace(":source", db.source))
    db.execute("refresh materialized view usage.trailing; refresh materialized view usage.monthly_ranking")
    yield db
    db.execute("drop owned by usage_owner, usage_reader, usage_refresher")


@contextmanager
def session(db: Database, role: str) -> Iterator[psycopg.Connection[Any]]:
    """A session with the rights of a role."""
    with db.connect() as connection:
        connection.execute(f"set session authorization {role}".encode())
        yield connection


def refused(connection: psycopg.Connection[Any], *statements: str) -> None:
    """Run statements that each have to fail for want of a privilege."""
    for statement in statements:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement.encode())


# Readers ---------------------------------------------------------------------------------------------------------------

ARGUMENTS = {
    "timestamp with time zone": "timestamptz '2026-01-01'",
    "numeric": "30",
    "uuid": f"uuid '{COLLECTIONS[0]}'",
    "text": "'day'",
    "text[]": "'{collection}'::text[]",
    "boolean": "true",
    "date": "date '2026-03-01'",
    "interval": "interval '1 day'",
    "bigint": "1",
}


def test_nothing_that_a_reader_may_ask_shows_a_raw_row(with_roles: Database) -> None:
    """Every relation and every function that usage_reader reaches, read whole: what is in ``detail`` is in none of them."""
    db = with_roles
    relations = db.execute(
        "select c.oid::regclass::text from pg_class c where c.relnamespace = 'usage'::regnamespace and c.relkind in ('r', 'v', 'm')"
        " and has_table_privilege('usage_reader', c.oid, 'select')"
    )
    functions = db.execute(
        "select p.proname::text, array(select format_type(t, null) from unnest(p.proargtypes::oid[]) t) from pg_proc p"
        " where p.pronamespace = 'usage'::regnamespace and has_function_privilege('usage_reader', p.oid, 'execute')"
        " and p.prorettype <> 'trigger'::regtype"
    )
    assert len(relations) > 15
    assert len(functions) > 15
    with session(db, "usage_reader") as reader:
        seen = [reader.execute(f"select r::text from {relation} r".encode()).fetchall() for (relation,) in relations]
        for name, types in functions:
            arguments = ["'UTC'" if name in {"local_day", "window_start"} and of == "text" else
                         "'Asia/Kolkata'" if name == "daily_series" and of == "text" else ARGUMENTS[of] for of in types]  # fmt: skip
            if types[:2] == ["timestamp with time zone"] * 2:
                arguments[1] = "null"
            seen.append(
                reader.execute(f"select f::text from usage.{name}({', '.join(arguments)}) f".encode()).fetchall()
            )
    assert sum(map(len, seen)) > 60
    assert MARKER not in repr(seen)
    assert MARKER in repr(db.execute("select * from usage.pending"))


def test_reader_writes_nothing_and_calls_no_internals(with_roles: Database) -> None:
    """A reader changes, creates, locks and comments nothing, and of our functions calls those that roles.sql names."""
    db = with_roles
    assert READER is not None
    named = set(re.findall(r"usage\.(\w+)\(", READER[2]))
    may = db.execute(
        "select p.proname::text, p.oid::regprocedure::text from pg_proc p where p.pronamespace = 'usage'::regnamespace"
        " and has_function_privilege('usage_reader', p.oid, 'execute') and p.prorettype <> 'trigger'::regtype"
    )
    assert {name for name, _ in may} == named
    with session(db, "usage_reader") as reader:
        relations = db.execute(
            "select oid::regclass::text from pg_class where relnamespace = 'usage'::regnamespace and relkind = 'r'"
        )
        for (relation,) in relations:
            refused(
                reader,
                f"delete from {relation}", f"truncate {relation}", f"alter table {relation} add column x int", f"comment on table {relation} is ''",
                f"create trigger t before insert on {relation} for each row execute function usage.capture()",
                f"alter table {relation} owner to usage_reader",
            )  # fmt: skip
        refused(
            reader,
            "select nextval('usage.frontier_seq')", "select setval('usage.seal_seq', 1)", "select setval('usage.doubt_seq', 1)",
            "create table usage.mine ()", "create function usage.local_day(date, text) returns date language sql as 'select $1'",
            "refresh materialized view usage.trailing", "grant usage_reader to usage_refresher", "drop schema usage cascade",
            "alter schema usage owner to usage_reader", "select * from public.resource_usage_log",
        )  # fmt: skip
        for routine in ("source_tree()", "fingerprint()", "pending_event()", "event_between(null, null)", "analyze_changed()",
                        "measured_sql('{1}', '{-infinity}', '{null}', null, null, null, null)", "refresh_view('trailing')",
                        "effective_frontier()", "restore_grants()", "partition_rows(1)"):  # fmt: skip
            refused(reader, f"select usage.{routine}")
    db.compare()


# Refreshers -------------------------------------------------------------------------------------------------------------

SPRING = """
create function {schema}.spring() returns timestamptz language plpgsql as $$
begin raise exception 'a trap was sprung as %', current_user; end $$;
create view {schema}.mine as select {schema}.spring() as created_at, null::uuid as collection_id, 'ai'::text as resource_type,
                                    '{{}}'::jsonb as detail;
"""


def test_refresher_does_not_become_the_owner(with_roles: Database) -> None:
    """The names of the host's tables, which our functions and the owner's sessions put into statements, are not its to change."""
    db = with_roles
    db.execute("create schema authorization usage_refresher")
    try:
        with session(db, "usage_refresher") as refresher:
            refresher.execute(SPRING.format(schema="usage_refresher").encode())
            refused(
                refresher,
                "update usage.state set source = 'usage_refresher.mine'", "update usage.state set title_source = 'usage_refresher.mine'",
                "update usage.state set source = 'public.x in access share mode; drop schema usage cascade; lock table public.x'",
                "update usage.state set time_zone = 'Europe/Oslo'", "update usage.state set distributed = true",
                "update usage.state set capture_mode = 'lookback', lookback_days = 1", "insert into usage.state default values",
            )  # fmt: skip
            # With another table's oid and no fingerprint, what our functions read is still what bears the source's name.
            refresher.execute(
                b"update usage.state set source_oid = 'usage_refresher.mine'::regclass, fingerprint = '{}'"
            )
            assert "another table bears the name" in refresher.execute(b"select usage.doubt()").fetchone()[0]  # type: ignore[index]
            refresher.execute(b"update usage.state set source_oid = 'public.resource_usage_log'::regclass")
            refresher.execute(b"select usage.doubt()")
        db.compare()
    finally:
        db.execute("drop schema usage_refresher cascade")


# Writers ---------------------------------------------------------------------------------------------------------------


def test_writers_move_no_frontier_and_forge_nothing(make_role: MakeRole, with_roles: Database) -> None:
    """Whoever may write to the source, and create in public, changes nothing of ours but by writing events.

    See also test_nobody_forges_late_changes in tests/integration/test_capture.py.
    """
    db = with_roles
    role = make_role()
    db.execute(
        f"grant select, insert, update, delete, truncate on {db.source} to {role}; grant create, usage on schema public to {role};"
        f"grant usage on schema usage to {role}"
    )
    before = (
        db.execute("select frontier, trusted, fingerprint from usage.state"),
        db.scalar("select last_value from usage.frontier_seq"),
    )
    late = db.scalar("select count(*) from usage.late_change")
    with db.connect(user=role) as writer:
        refused(
            writer,
            "select nextval('usage.frontier_seq')", "select setval('usage.frontier_seq', 1)", "alter sequence usage.frontier_seq restart",
            "select setval('usage.seal_seq', 9223372036854775807)", "update usage.state set frontier = now()",
            "insert into usage.late_change (sign, created_at) values (1, now())", "select * from usage.late_change",
            f"alter table {db.source} disable trigger usage_insert", f"alter table {db.source} disable trigger all",
            f"drop trigger usage_insert on {db.source}", "set session_replication_role = replica",
            f"create trigger further after insert on {db.source} for each row execute function usage.capture()",
            f"create or replace trigger usage_insert after insert on {db.source} for each row execute function usage.capture()",
            f"create table public.child () inherits ({db.source})", f"alter table {db.source} owner to {role}",
            f"create rule r as on insert to {db.source} do instead nothing", f"alter table {db.source} enable row level security",
        )  # fmt: skip
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            writer.execute(b"select usage.capture()")
        # Tables of his own of whatever name, which the trigger function is told to be about.
        for table in ("pg_temp.resource_usage_log", "public.late_change", 'public."public.resource_usage_log"'):
            writer.execute(
                f"create table {table} (like {db.source});"
                f"create trigger usage_insert after insert on {table} for each row execute function usage.capture();"
                f"create trigger usage_truncate after truncate on {table} for each statement execute function usage.capture_truncate();"
                f"insert into {table} (id, resource_type, detail, created_at) values (1, 'ai', '{{\"tokens_in\": 5}}', '2026-01-01');"
                f"truncate {table}".encode()
            )
    after = (
        db.execute("select frontier, trusted, fingerprint from usage.state"),
        db.scalar("select last_value from usage.frontier_seq"),
    )
    assert after == before
    assert db.scalar("select count(*) from usage.late_change") == late
    db.compare()
    db.refresh()
    db.compare()
    assert db.verify().differences == 0


def test_a_further_trigger_adds_nothing(make_role: MakeRole, with_roles: Database) -> None:
    """With the right to create triggers one of any other name calls our function in vain; one in our name's place is noticed."""
    db = with_roles
    role = make_role()
    db.execute(f"grant insert, trigger on {db.source} to {role}; grant usage on schema usage to {role}")
    with db.connect(user=role) as writer:
        for when in ("before", "after"):
            writer.execute(
                f"create trigger {when}_too {when} insert on {db.source} for each row execute function usage.capture()".encode()
            )
        for trigger in ("before_too", "after_too"):
            db.execute(f"alter table {db.source} enable always trigger {trigger}")
        db.execute(f"drop trigger before_too on {db.source}")  # of any function that returns null: it swallows the row
        writer.execute(
            f"insert into {db.source} (resource_type, created_at) values ('ai', '2026-02-02'), ('ai', now())".encode()
        )
        assert db.scalar("select count(*) from usage.late_change where created_at = '2026-02-02'") == 1
        db.compare()
        db.refresh()
        db.compare()
        writer.execute(
            f"create or replace trigger usage_insert after insert on {db.source} for each row execute function usage.capture()".encode()
        )
    assert "capture on resource_usage_log was changed" in re.sub(r"public\.", "", db.scalar("select usage.doubt()"))
    db.compare()


# Row-level security -----------------------------------------------------------------------------------------------------


@pytest.fixture
def owned(server: str, make_role: MakeRole, new_database: NewDatabase) -> Iterator[tuple[Database, str]]:
    """A database that a role that is no superuser has migrated; it owns the source, and somebody else the titles."""
    role = make_role()
    frame = new_database()
    name = f"{frame.name}_owned"
    frame.execute(f"create database {name} owner {role} template template0 encoding 'UTF8'")
    db = Database(server, name, "UTC", {})
    try:
        db.execute(SCHEMA)
        db.execute(f"alter table {db.source} owner to {role}; grant select on public.nodes to {role}")
        db.settings = Settings(database_url=f"{db.dsn} user={role}")  # type: ignore[arg-type]
        migrations.upgrade(db.settings)
        db.own.close()
        db.own = db._opened[-1] = connect(db.settings)
        yield db, role
    finally:
        db.close()
        frame.execute(f"drop database {name} with (force)")


POLICY = """
create function public.sees() returns boolean language plpgsql as $$
begin
    if current_user <> session_user then raise exception 'a trap was sprung as %', current_user; end if;
    return false;
end $$;
grant execute on function public.sees() to public;
create policy p on {table} using (public.sees());
alter table {table} enable row level security;
alter table {table} force row level security;
"""


def test_row_level_security_on_the_source(owned: tuple[Database, str]) -> None:
    """Turned on after attach: what would be filtered is an error in reads and refreshes, never a smaller sum; status says why."""
    db, role = owned
    db.attach()
    for n in range(1, 5):
        db.insert(f"2026-0{n}-11 10:00+00", "ai", n % 3, '{"tokens_in": 1.5}')
    db.refresh()
    db.insert("2026-03-01 00:00+00")
    db.execute(POLICY.format(table=db.source))
    for read in ("by_collection('-infinity')", "daily_series('-infinity')", "totals('-infinity')", "export_rows('-infinity')",
                 "daily_series('-infinity', null, null, 'Asia/Kolkata')"):  # fmt: skip
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            db.execute(f"select * from usage.{read}")
    for view in ("daily_live", "monthly_live", "pending"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            db.execute(f"select * from usage.{view}")
    for work in (db.refresh, db.verify):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security") as failed:
            work()
        assert "\n" not in one_line(failed.value)
    problems = [problem for problem in status.read_status(db.own, db.settings).problems if problem.code == "source"]
    assert [problem.text for problem in problems] == [
        f"row-level security would hide rows of {db.source} from role {role}, so reads fail"
    ]
    db.execute(f"alter table {db.source} no force row level security")  # the owner's own policies are not for him
    db.compare()
    assert db.refresh().status == "done"
    db.compare()
    db.execute(f"alter table {db.source} force row level security; alter role {role} bypassrls")
    db.compare()
    assert [
        problem.code for problem in status.read_status(db.own, db.settings).problems if problem.code == "source"
    ] == []


def test_row_level_security_on_titles(owned: tuple[Database, str]) -> None:
    """A policy of the title table's owner is never run with our rights: attach refuses, reads fail, and status says why."""
    db, role = owned
    db.attach()
    db.insert("2026-03-01 00:00+00", "ai", 0, '{"tokens_in": 3}')
    db.refresh()
    db.execute(POLICY.format(table="public.nodes"))
    with pytest.raises(
        SourceError, match=f"row-level security would hide rows of the title table public.nodes from role {role}"
    ):
        capture.attach(db.own, db.settings)
    for read in ("by_collection('-infinity')", "ai_drilldown('-infinity')", "overview('-infinity'::timestamptz)",
                 "totals('-infinity', null, '{collection}')", "export_rows('-infinity')"):  # fmt: skip
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            db.execute(f"select * from usage.{read}")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
        db.execute("select collection_title from usage.daily_live")
    problems = [problem for problem in status.read_status(db.own, db.settings).problems if problem.code == "titles"]
    assert [problem.text for problem in problems] == [
        f"row-level security would hide rows of public.nodes from role {role}, so reads fail"
    ]
    capture.attach(db.own, db.settings.model_copy(update={"title_table": "none"}))
    db.titles = "(select null::uuid as id, null::text as title where false)"
    db.compare()


PARTITIONS = """
create table public.events (id bigint, collection_id uuid, resource_type text, detail jsonb, created_at timestamptz not null, note text)
    partition by range (created_at);
create index on public.events (created_at);
create table public.events_2026 partition of public.events for values from ('2026-01-01') to ('2027-01-01');
"""


def test_row_level_security_on_a_partition(make_role: MakeRole, new_database: NewDatabase) -> None:
    """Policies of a partition count for reads by its name only: one that comes with events is not taken for an empty one."""
    role = make_role()
    db = new_database(source_table="public.events")
    db.execute(PARTITIONS)
    db.attach()
    db.insert("2026-03-01 00:00+00", "ai", 0, '{"tokens_in": 3}')
    db.refresh()
    db.execute(
        f"create table public.events_2025 (like public.events including all); grant select on public.events_2025 to {role};"
        "insert into public.events_2025 (resource_type, detail, created_at) values ('ai', '{\"tokens_in\": 7}', '2025-05-05');"
        "create policy p on public.events_2025 using (false); alter table public.events_2025 enable row level security;"
        f"grant select on public.events to {role};"
        # What reads the partition in a reader's name: its owner is subject to the policy.
        f"alter function usage.fingerprint_doubt() owner to {role}; grant usage on schema usage to {role};"
        f"grant select on all tables in schema usage to {role}; grant execute on all functions in schema usage to {role};"
        "alter table public.events attach partition public.events_2025 for values from ('2025-01-01') to ('2026-01-01')"
    )
    assert "events_2025 of the source is new and holds events below the frontier" in db.scalar("select usage.doubt()")
    db.compare()
    assert db.refresh().status == "done"
    db.compare()
    assert db.scalar("select usage.doubt()") is None


# Contents -----------------------------------------------------------------------------------------------------------------

INJECTIONS = [
    "'); drop schema usage cascade; --",
    "$query$ union all select 1 $query$",
    "$sql$; select 1; $sql$",
    "%s %I %L %1$s %(since)s %%",
    "{source} {measured} {0}",
    "\\'; select 1; --",
    "E'\\x27",
    "a' when true then r.detail -> 'x",
    '"; drop table usage.state; --',
    "$1 $user :source \\gexec",
    "/* */ -- \n;",
    "\u2028' or '1'='1",
]


def test_contents_that_look_like_sql(db: Database, tmp_path: Path) -> None:
    """In every column, as titles, and as names of metrics and of the keys that they add up: they are text, and counted."""
    import json

    from aggregator import usage_totals
    from aggregator.export import export_usage

    for n, text in enumerate(INJECTIONS):
        assert metrics.set_metric(db.own, metrics.Metric(text, text, text, unit=text), force=True)
        db.execute("update public.nodes set title = %s where id = %s", (text, COLLECTIONS[n % 5]))
    db.refresh()

    def insert(age: str) -> None:
        for n, text in enumerate(INJECTIONS):
            detail = json.dumps({text: 1.5, "tokens_in": text, "job_type": text, "model_level": text})
            for resource_type in (text, "ai"):
                db.execute(
                    f"insert into {db.source} (collection_id, resource_type, detail, created_at)"
                    " values (%s, %s, %s, clock_timestamp() - %s::interval)",
                    (COLLECTIONS[n % 7], resource_type, detail, age),
                )

    for age in ("40 days", "3 days", "0 s"):
        insert(age)
    expected = len(INJECTIONS) * 3
    for step in (
        lambda: None,
        db.refresh,
        lambda: rebuild.rebuild(db.own, db.settings),
        lambda: seal.seal(db.own, db.settings, "2020-01-01"),
    ):
        step()
        rows = db.execute(
            "select resource_type, event_count, total_value from usage.totals('-infinity', null, '{resource_type}')"
        )
        of_type = {name: (count, total) for name, count, total in rows}
        assert [of_type[text] for text in INJECTIONS] == [(3, 4.5)] * len(INJECTIONS)
        assert of_type["ai"] == (expected, 0)
        totals = usage_totals(
            db.own, by=["collection", "resource_type", "job_type", "model_level"], grain="day", days=365
        ).rows
        assert {row.job_type for row in totals} == set(INJECTIONS)
        export_usage(db.own, tmp_path / "out.csv", days=365)
    assert verify.verify(db.own, db.settings).differences == 0
    for text in INJECTIONS:  # a definition that was replaced is put into statements beside today's
        metrics.set_metric(db.own, metrics.Metric(text, f"{text}2"), force=True)
    rebuild.rebuild(db.own, db.settings)
    rows = db.execute(
        "select resource_type, event_count, total_value from usage.totals('-infinity', null, '{resource_type}')"
    )
    assert {(count, total) for name, count, total in rows if name in INJECTIONS} == {(3, 0)}
    assert db.verify().differences == 0
    plan = db.own.execute(sql.SQL("select usage.measured_sql('{{1}}', '{{-infinity}}', '{{null}}', null, null, null, {c})").format(c=sql.Literal(COLLECTIONS[0]))).fetchone()  # fmt: skip
    assert plan is not None
    db.own.execute(f"select count(*) from {plan[0]} e".encode())
