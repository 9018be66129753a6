"""Migrations: up, down, offline, and what they leave."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.script import ScriptDirectory
from psycopg.rows import dict_row

from aggregator import capture, jobs, migrations, nightly, status, verify
from aggregator.settings import Settings
from tests.harness import COLLECTIONS, Database, compare, snapshot

CATALOG = """
select 'relation', c.relname::text, c.relkind::text, coalesce(obj_description(c.oid, 'pg_class'), ''), '' from pg_class c
 where c.relnamespace = 'usage'::regnamespace and c.relname not like 'alembic_version%'
union all
select 'column', c.relname || '.' || a.attname, format_type(a.atttypid, a.atttypmod) || ' ' || a.attnotnull,
       coalesce(col_description(c.oid, a.attnum), ''), coalesce(pg_get_expr(d.adbin, d.adrelid), '')
  from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
  left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
 where c.relnamespace = 'usage'::regnamespace and c.relname not like 'alembic_version%'
union all
select 'function', p.oid::regprocedure::text, pg_get_functiondef(p.oid), coalesce(obj_description(p.oid, 'pg_proc'), ''),
       coalesce(p.proacl::text, '')
  from pg_proc p where p.pronamespace = 'usage'::regnamespace
union all
select 'constraint', c.conname::text, pg_get_constraintdef(c.oid), '', '' from pg_constraint c
 where c.connamespace = 'usage'::regnamespace and c.conname not like 'alembic_version%'
union all
select 'index', i.indexname::text, i.indexdef, '', '' from pg_indexes i
 where i.schemaname = 'usage' and i.indexname not like 'alembic_version%'
union all
select 'view', v.viewname::text, v.definition, '', '' from pg_views v where v.schemaname = 'usage'
union all
select 'materialized view', v.matviewname::text, v.definition, '', '' from pg_matviews v where v.schemaname = 'usage'
order by 1, 2, 3
"""


def catalog(dsn: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(CATALOG.encode()).fetchall()


def left_behind(db: Database) -> list[tuple[Any, ...]]:
    return db.execute(
        "select 'schema' from pg_namespace where nspname = 'usage'"
        " union all select tgname::text from pg_trigger where tgname like 'usage%'"
        " union all select proname::text from pg_proc where prosrc like '%usage.%' and pronamespace <> 'pg_catalog'::regnamespace"
        " union all select relname::text from pg_class where relname like 'alembic%'"
    )


def test_up_down_and_up_again(empty: Database) -> None:
    """Down to base leaves nothing behind, also from a database that is attached and filled; up again works."""
    for _ in range(2):
        assert migrations.upgrade(empty.settings) == (None, migrations.head())
        assert migrations.upgrade(empty.settings) == (migrations.head(), migrations.head())
        empty.attach()
        empty.insert("2026-03-01 00:00+00")
        empty.refresh()
        empty.compare()
        assert migrations.downgrade(empty.settings) == migrations.head()
        assert left_behind(empty) == []
        assert migrations.downgrade(empty.settings) is None


def test_every_version_up_and_down_with_data(empty: Database) -> None:
    """Down a revision and up again: answers stay exact, sessions with cached plans go on, the schema is a fresh one's."""
    migrations.upgrade(empty.settings)
    fresh = catalog(empty.dsn)
    empty.attach()
    for n in range(1, 5):
        empty.insert(f"2026-0{n}-01 00:00+00", "ai", n, '{"tokens_in": 1.25, "job_type": "a"}')
    empty.refresh()
    attached = catalog(empty.dsn)
    with empty.connect() as session:
        for _ in range(7):
            session.execute(b"select * from usage.by_collection('-infinity')", prepare=True)
        migrations.downgrade_to("0001", empty.settings)
        empty.insert("2026-02-02 00:00+00", "tts", 1, '{"characters": 3}')
        empty.insert("now", "tts", 1, '{"characters": 3}')
        with snapshot(session):
            compare(session, "UTC")
        with pytest.raises(migrations.SchemaError, match="run aggregator migrate"):
            migrations.require_current(empty.own)
        assert migrations.upgrade(empty.settings) == ("0001", migrations.head())
        with snapshot(session):
            compare(session, "UTC")
        session.execute(b"select * from usage.by_collection('-infinity')", prepare=True)
    assert catalog(empty.dsn) == attached
    empty.refresh()
    empty.compare()
    assert empty.verify().differences == 0
    capture.detach(empty.own, empty.settings)
    bare = {row[1] for row in fresh} - {row[1] for row in catalog(empty.dsn)}
    assert bare == set()


def test_down_restores_the_revision_before(empty: Database) -> None:
    """Up to head and down to 0001 is 0001: tables, views, functions, indexes and comments."""
    migrations.upgrade_to("0001", empty.settings)
    before = catalog(empty.dsn)
    migrations.upgrade(empty.settings)
    migrations.downgrade_to("0001", empty.settings)
    assert catalog(empty.dsn) == before


def test_an_upgrade_from_the_first_release(empty: Database) -> None:
    """A database that release 0001 attached and filled: exact before and after, and from then on as if attached now."""
    migrations.upgrade_to("0001", empty.settings)
    empty.connection.execute((Path(__file__).parent / "attached_0001.sql").read_bytes())
    zone = "Europe/Oslo"
    empty.settings = empty.settings.model_copy(update={"time_zone": zone})
    windows = [("-infinity", None, None), ("2024-03-28 12:00+01", "2024-06-29 12:00+02", None),
               ("2024-02-01 00:00+01", None, COLLECTIONS[0])]  # fmt: skip

    def exact() -> None:
        with snapshot(empty.connection):
            assert empty.connection.execute(b"select usage.doubt()").fetchone() == (None,)
            compare(empty.connection, zone, windows)

    exact()
    empty.insert("2024-05-05 12:00+02", "tts", 1, '{"characters": 7}')  # captured by the old function
    exact()
    assert migrations.upgrade(empty.settings) == ("0001", migrations.head())
    exact()
    empty.insert("2024-05-06 12:00+02", "tts", 1, '{"characters": 7}')
    empty.execute("delete from public.resource_usage_log where created_at < '2024-02-01 00:00+01'")
    exact()
    assert empty.execute("select leaf is null, count(*) from usage.late_change group by 1 order by 1") == [
        (False, 3),
        (True, 1),
    ]
    assert not empty.attach().changed
    exact()
    empty.refresh()
    exact()
    assert empty.verify().differences == 0
    after = catalog(empty.dsn)
    migrations.downgrade(empty.settings)
    migrations.upgrade(empty.settings)
    empty.attach()
    assert catalog(empty.dsn) == after


def test_a_snapshot_from_before_an_upgrade(empty: Database) -> None:
    """A reader that began before quarters were filled does not look for them, in functions that are new to it."""
    migrations.upgrade_to("0009", empty.settings)
    empty.connection.execute((Path(__file__).parent / "attached_0009.sql").read_bytes())
    windows = [("-infinity", None, None), ("2024-02-01 00:00+01", None, COLLECTIONS[0])]
    with empty.connect() as session, snapshot(session):
        session.execute(b"select from public.nodes")  # now there is one
        migrations.upgrade(empty.settings)
        assert empty.scalar("select count(*) from usage.quarterly_collection_fact") > 1
        assert session.execute(b"select count(*) from usage.quarterly_collection_fact").fetchone() == (0,)
        compare(session, "Europe/Oslo", windows)
    with snapshot(empty.connection):
        compare(empty.connection, "Europe/Oslo", windows)


def test_several_at_once(empty: Database) -> None:
    """Three migrates at the same moment: one does the work, and none fails."""
    done: list[tuple[str | None, str]] = []
    threads = [threading.Thread(target=lambda: done.append(migrations.upgrade(empty.settings))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [new for _, new in done] == [migrations.head()] * 3


def test_all_or_nothing(empty: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migrate that fails, or is killed, before its end leaves nothing at all."""

    def fail(*_: Any) -> None:
        raise psycopg.OperationalError("the connection is gone")

    with monkeypatch.context() as patch, pytest.raises(psycopg.OperationalError):
        patch.setattr(capture, "renew_functions", fail)
        migrations.upgrade(empty.settings)
    assert left_behind(empty) == []
    assert migrations.upgrade(empty.settings)[0] is None


def test_a_migrate_waits_in_nobodys_way(db: Database) -> None:
    """While it waits for one table it holds no lock on another, so neither readers nor writers wait behind it."""
    db.insert("2026-03-01 00:00+00")
    db.refresh()
    migrations.downgrade_to("0001", db.settings)
    in_the_way = (
        "select count(*) from pg_locks held join pg_locks waited using (pid)"
        " where held.granted and held.mode = 'AccessExclusiveLock' and not waited.granted"
    )
    with db.connect(autocommit=False) as writer:
        writer.execute(
            b"insert into public.resource_usage_log (created_at) values ('2026-03-01')"
        )  # late: holds late_change
        thread = threading.Thread(target=migrations.upgrade, args=(db.settings,))
        thread.start()
        for _ in range(20):
            db.compare([("-infinity", None, None)])
            db.insert("2026-03-02 00:00+00")
            assert db.scalar(in_the_way) == 0
        assert migrations.current(db.own) == "0001"
    thread.join()
    assert migrations.current(db.own) == migrations.head()
    db.compare()


def test_a_command_at_work_is_not_pulled_the_schema_from_under(db: Database) -> None:
    """Neither up nor down while purge, seal, rebuild or metric are at work; nothing is changed."""
    with jobs.exclusive(db.own, db.settings, "purge"):
        for move in (migrations.upgrade, migrations.downgrade):
            with pytest.raises(jobs.BusyError, match=r"migrate cannot start: purge on .* nothing was changed"):
                move(db.settings)
    assert migrations.current(db.own) == migrations.head()


PRIVILEGES = """
select c.relname::text, a.grantee::regrole::text, a.privilege_type, a.is_grantable
  from pg_class c, aclexplode(c.relacl) a where c.relnamespace = 'usage'::regnamespace and a.grantee <> 0
union
select p.oid::regprocedure::text, a.grantee::regrole::text, a.privilege_type, a.is_grantable
  from pg_proc p, aclexplode(p.proacl) a where p.pronamespace = 'usage'::regnamespace and a.grantee <> 0
"""


@pytest.fixture
def with_old_roles(empty: Database) -> Iterator[Database]:
    """A database that release 0001 attached and filled, with that release's roles.sql, and a role that was granted more."""
    migrations.upgrade_to("0001", empty.settings)
    empty.connection.execute((Path(__file__).parent / "attached_0001.sql").read_bytes())
    empty.settings = empty.settings.model_copy(update={"time_zone": "Europe/Oslo"})
    roles = (Path(__file__).parent / "roles_0001.sql").read_text(encoding="utf-8")
    empty.execute(roles.replace(":source", "public.resource_usage_log"))
    empty.execute(
        'create role "The board"; grant usage on schema usage to "The board";'
        'grant execute on function usage.doubt() to "The board";'
        'grant select on usage.freshness, usage.monthly_ranking to "The board" with grant option'
    )
    yield empty
    empty.execute('drop owned by usage_owner, usage_reader, usage_refresher, "The board"')
    empty.execute('drop role "The board"')


def test_an_upgrade_takes_no_privilege_away(with_old_roles: Database) -> None:
    """Before roles.sql is run again everybody can do what he could, in the new version; and so after a way down and up."""
    db = with_old_roles
    before = set(db.execute(PRIVILEGES))
    migrations.upgrade(db.settings)
    # What could be written is a view since 0004, over a table of facts; parts of functions have other parts now.
    moved = {"daily", "daily_collection", "monthly", "monthly_collection"}
    there = {
        (f"{name}_fact" if name in moved and privilege != "SELECT" else name, role, privilege, grantable)
        for name, role, privilege, grantable in before
        if "(" not in name or db.scalar("select to_regprocedure(%s) is not null", (name,))
    }
    assert there - set(db.execute(PRIVILEGES)) == set()
    with snapshot(db.connection):
        expected = db.execute("select * from usage.by_collection('-infinity')")
        db.connection.execute(b"set local role usage_reader")
        assert db.execute("select * from usage.by_collection('-infinity')") == expected
        assert db.scalar("select trusted from usage.freshness")
        for live in ("daily_live", "monthly_live"):
            assert db.scalar(f"select sum(event_count) from usage.{live}") == sum(row[3] for row in expected)
        db.connection.execute(b'set local role "The board"')
        assert db.scalar("select trusted from usage.freshness")
    db.insert("2024-05-05 12:00+02", "tts", 1, '{"characters": 7}')
    db.own.execute("set role usage_refresher")
    assert nightly.run(db.own, db.settings).errors == []
    assert status.read_status(db.own, db.settings).problems == ()
    assert verify.verify(db.own, db.settings, repair=True).differences == 0
    db.own.execute("reset role")
    for role in ("usage_reader", '"The board"'):
        with db.connection.transaction():
            db.execute(f"set local role {role}")
            assert db.scalar("select count(*) from usage.monthly_ranking") > 0
    with snapshot(db.connection):
        compare(db.connection, "Europe/Oslo", [("-infinity", None, None)])
    after = set(db.execute(PRIVILEGES))
    migrations.downgrade_to("0001", db.settings)
    assert before - set(db.execute(PRIVILEGES)) == set()
    migrations.upgrade(db.settings)
    roles = (Path(__file__).parents[2] / "deploy" / "roles.sql").read_text(encoding="utf-8")
    db.execute(roles.replace(":source", "public.resource_usage_log"))
    assert {row for row in after if row[1] != '"The board"'} - set(db.execute(PRIVILEGES)) == set()


def test_attach_renews_functions(db: Database) -> None:
    """A schema that was upgraded by hand (migrate --sql) gets this version's functions from attach, without a lock."""
    body = db.scalar("select prosrc from pg_proc where oid = 'usage.capture()'::regprocedure")
    db.execute("create or replace function usage.capture() returns trigger language plpgsql security definer"
               " set search_path = pg_catalog, pg_temp as 'begin return null; end'")  # fmt: skip
    with db.connect(autocommit=False) as writer:
        writer.execute(b"insert into public.resource_usage_log (created_at) values (now())")
        assert db.attach().changed
    assert db.scalar("select prosrc from pg_proc where oid = 'usage.capture()'::regprocedure") == body
    assert not db.attach().changed


def test_sealed_history_is_not_thrown_away(empty: Database) -> None:
    """Down refuses while there is sealed history, unless told to discard it."""
    migrations.upgrade(empty.settings)
    empty.attach()
    empty.insert("2026-03-01 00:00+00")
    empty.refresh()
    empty.execute("update usage.state set sealed_until = '2026-02-01 00:00+00'")
    with pytest.raises(capture.SealedHistoryError, match="--discard-sealed"):
        migrations.downgrade(empty.settings)
    empty.compare()
    migrations.downgrade(empty.settings, discard_sealed=True)
    assert left_behind(empty) == []


def test_offline_sql_makes_the_same_schema(new_database: Any, empty: Database) -> None:
    """``migrate --sql`` prints what an online migration does, and ``--down --sql`` the way back."""
    online = new_database()
    empty.execute(migrations.offline_sql())
    assert catalog(empty.dsn) == catalog(online.dsn)
    assert migrations.current(empty.own) == migrations.head()
    empty.attach()
    empty.compare()
    capture.detach(empty.own, empty.settings)
    empty.execute(migrations.offline_sql(down=True))
    assert left_behind(empty) == []


def test_everything_is_commented(db: Database) -> None:
    """Every relation, function and type has a comment, and every column of the tables that people read."""
    lacking = [
        row[:2]
        for row in catalog(db.dsn)
        if row[0] in {"relation", "function"}
        and not row[3]
        and row[2] not in {"i", "c"}
        and not row[1].endswith("_id_seq")
    ]
    assert lacking == []
    assert db.execute(
        "select c.relname, a.attname from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0"
        " where c.relnamespace = 'usage'::regnamespace and c.relkind = 'r'"
        " and c.relname in ('state', 'daily', 'daily_collection', 'daily_total', 'monthly', 'monthly_collection', 'metric', 'late_change')"
        " and a.attname <> 'id' and col_description(c.oid, a.attnum) is null"
    ) == []  # fmt: skip
    assert db.scalar("select obj_description('usage'::regnamespace, 'pg_namespace') is not null")


def test_functions_are_closed_and_fixed(db: Database) -> None:
    """SECURITY DEFINER only with a fixed search_path; EXECUTE for PUBLIC only on the trigger functions."""
    assert db.execute(
        "select oid::regprocedure::text from pg_proc where pronamespace = 'usage'::regnamespace and prosecdef"
        " and not coalesce(proconfig::text like '%search_path=pg_catalog, pg_temp%', false)"
    ) == []  # fmt: skip
    assert db.execute(
        "select proname::text from pg_proc where pronamespace = 'usage'::regnamespace"
        " and has_function_privilege('public', oid, 'execute') order by 1"
    ) == [("capture",), ("capture_truncate",)]
    assert db.execute(
        "select c.relname from pg_class c where c.relnamespace = 'usage'::regnamespace and c.relkind in ('r', 'v', 'm')"
        " and has_table_privilege('public', c.oid, 'select')"
    ) == []  # fmt: skip


def test_what_is_refused(server: str, db: Database) -> None:
    """Another encoding than UTF8, and a role that may not create the schema: one line that says what to do."""
    name = f"{db.name}_other"
    db.execute(f"create database {name} template template0 encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C'")
    try:
        with pytest.raises(migrations.SchemaError, match="UTF8"):
            migrations.upgrade(Settings(database_url=f"{server} dbname={name}"))  # type: ignore[arg-type]
    finally:
        db.execute(f"drop database {name} with (force)")
    db.execute(f"create database {name} template template0 encoding 'UTF8'")
    try:
        db.execute("drop role if exists may_not_create")
        db.execute("create role may_not_create login")
        dsn = f"{server} dbname={name}".replace("user=postgres", "user=may_not_create")
        with pytest.raises(migrations.SchemaError, match="GRANT CREATE"):
            migrations.upgrade(Settings(database_url=dsn))  # type: ignore[arg-type]
    finally:
        db.execute(f"drop database {name} with (force)")
        db.execute("drop role may_not_create")


def test_materialized_views(db: Database) -> None:
    """trailing and monthly_ranking are right when refreshed by hand, concurrently too, with null keys."""
    for days in (0, 1, 2, 7, 8, 29, 31, 59, 60, 61, 89, 200, 364, 366):
        for collection, kind in ((0, "ai"), (1, "ai"), (None, "tts"), (2, None)):
            db.execute(
                "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
                " select case when %s::int is null then null else ('00000000-0000-0000-0000-00000000000' || %s + 1)::uuid end, %s,"
                " jsonb_build_object('tokens_in', %s, 'characters', 2.5), now() - make_interval(days => %s)",
                (collection, collection, kind, days + 1, days),
            )
    db.refresh()
    db.insert("2026-01-05 00:00+00", "ai", 0, '{"tokens_in": 5}')  # pending counts too
    for how in ("", "concurrently "):
        db.execute(f"refresh materialized view {how}usage.trailing")
        db.execute(f"refresh materialized view {how}usage.monthly_ranking")
    with db.connect(row_factory=dict_row) as connection:
        rows = connection.execute(b"select * from usage.trailing").fetchall()
        as_of = db.scalar("select (now() at time zone 'UTC')::date")
        for name, first, last in (
            ("1d", 1, 0),
            ("7d", 7, 0),
            ("30d", 30, 0),
            ("90d", 90, 0),
            ("365d", 365, 0),
            ("previous_30d", 60, 30),
        ):
            expected = connection.execute(
                b"select collection_id, resource_type, count(*) as n, coalesce(sum(case resource_type when 'ai' then (detail->>'tokens_in')::numeric"
                b" when 'tts' then (detail->>'characters')::numeric end), 0) as total from public.resource_usage_log"
                b" where created_at >= %s::timestamp at time zone 'UTC' and created_at < %s::timestamp at time zone 'UTC'"
                b" group by 1, 2",
                (as_of - timedelta(days=first), as_of - timedelta(days=last)),
            ).fetchall()
            found = {
                (r["collection_id"], r["resource_type"]): (r[f"event_count_{name}"], r[f"total_value_{name}"])
                for r in rows
            }
            for row in expected:
                got = found[row["collection_id"], row["resource_type"]]
                assert got == (row["n"], row["total"]), name
        assert {r["as_of_day"] for r in rows} == {as_of}
        ranking = connection.execute(b"select * from usage.monthly_ranking order by month").fetchall()
        for row in ranking:
            of_type = [r for r in ranking if (r["month"], r["resource_type"]) == (row["month"], row["resource_type"])]
            assert row["rank"] == 1 + sum(other["total_value"] > row["total_value"] for other in of_type)
            total = sum(other["total_value"] for other in of_type)
            assert row["share"] is None if total == 0 else abs(row["share"] - row["total_value"] / total) < 1e-9
            before = (row["month"] - timedelta(days=1)).replace(day=1)
            key = ("collection_id", "resource_type", "job_type", "model_level")
            previous = [r["total_value"] for r in ranking if r["month"] == before and all(r[k] == row[k] for k in key)]
            assert row["change"] == row["total_value"] - (previous[0] if previous else 0)


def test_revisions_are_named_as_their_files() -> None:
    """The revisions are known without Alembic, and are those that it finds, in one line up to the head."""
    script = ScriptDirectory.from_config(migrations._config())
    assert migrations.revisions() == [one.revision for one in script.walk_revisions()][::-1]
    assert migrations.head() == script.get_current_head()
