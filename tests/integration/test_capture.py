"""What writers of the source may do: everything, and the answers equal the raw query's at all times."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import psycopg
import pytest
from psycopg import IsolationLevel

from aggregator import refresh
from tests.harness import COLLECTIONS, Database, compare, snapshot, some
from tests.integration.sources import Background, await_true, doubt, fill, pending, run, settled

NEW_ROWS = "{source} (collection_id, resource_type, detail, created_at)"
ONE = f"('{COLLECTIONS[0]}'::uuid, 'ai', '{{\"tokens_in\": 7, \"tokens_out\": 0.5}}'::jsonb"

WRITES: dict[str, tuple[str, int | None]] = {
    "insert at the tail": (f"insert into {NEW_ROWS} values {ONE}, clock_timestamp())", 0),
    "insert in the future": (f"insert into {NEW_ROWS} values {ONE}, clock_timestamp() + interval '3 days')", 0),
    "insert late": (f"insert into {NEW_ROWS} values {ONE}, clock_timestamp() - interval '3 days')", 1),
    "insert many": (
        f"insert into {NEW_ROWS} select '{COLLECTIONS[1]}', 'tts', '{{\"characters\": 3}}', clock_timestamp() - n * interval '1 hour'"
        " from generate_series(-20, 400) n",
        400,
    ),
    "update content": ("update {source} set detail = detail || '{\"tokens_in\": 100}' where note like 'event 1_'", 20),
    "update key": ("update {source} set collection_id = null, resource_type = 'ai' where note = 'event 21'", 2),
    "update text of a number": (
        "update {source} set detail = jsonb_set(detail, '{job_type}', '1.0') where note = 'event 20';"
        "update {source} set detail = jsonb_set(detail, '{job_type}', '1.00') where note = 'event 20'",
        4,
    ),
    "update to the tail": ("update {source} set created_at = clock_timestamp() where note = 'event 7'", 1),
    "update from the tail": (
        f"insert into {NEW_ROWS} values {ONE}, clock_timestamp());"
        "update {source} set created_at = created_at - interval '2 days' where note is null",
        1,
    ),
    "update within the tail": (
        f"insert into {NEW_ROWS} values {ONE}, clock_timestamp());"
        "update {source} set created_at = created_at + interval '1 day', detail = '{}' where note is null",
        0,
    ),
    "update of instants of all": ("update {source} set created_at = created_at - interval '10 days'", 120),
    "update of another column": ("update {source} set note = note || '!'", 0),
    "update to the same": ("update {source} set detail = detail, created_at = created_at", 0),
    "delete": ("delete from {source} where note like 'event 3%'", 11),
    "delete all": ("delete from {source}", 60),
    "delete and insert again": (
        "with gone as (delete from {source} where note like 'event 4%' returning *)"
        f" insert into {NEW_ROWS} select collection_id, resource_type, detail, created_at from gone",
        22,
    ),
    "savepoints": (
        f"insert into {NEW_ROWS} values {ONE}, clock_timestamp() - interval '3 days'); savepoint a;"
        "delete from {source} where note = 'event 8'; rollback to a; delete from {source} where note = 'event 9'; release a",
        2,
    ),
    "no rows": ("delete from {source} where false; update {source} set detail = null where false", 0),
    "merge": (
        "merge into {source} t using (select n, 'event ' || n as note from generate_series(50, 70) n) s on t.note = s.note"
        " when matched and s.n % 2 = 0 then delete"
        " when matched then update set detail = '{\"size_bytes\": 5, \"characters\": 6}', created_at = t.created_at - interval '5 days'"
        f" when not matched then insert (collection_id, resource_type, detail, created_at) values {ONE},"
        " clock_timestamp() - make_interval(days => s.n - 63))",
        None,
    ),
    "truncate": ("truncate {source}", None),
    "truncate and refill": (
        "truncate {source};"
        f"insert into {NEW_ROWS} select null, 'cas', '{{\"size_bytes\": 9}}', clock_timestamp() - n * interval '1 day'"
        " from generate_series(-2, 20) n",
        None,
    ),
    "late, truncate, late": (
        f"insert into {NEW_ROWS} values {ONE}, clock_timestamp() - interval '3 days'); truncate {{source}};"
        f"insert into {NEW_ROWS} values {ONE}, clock_timestamp() - interval '4 days')",
        None,
    ),
    "rewrite by alter": ("alter table {source} add column extra float8 default random()", 0),
    "rewrite by alter between writes": (
        f"insert into {NEW_ROWS} values {ONE}, clock_timestamp() - interval '3 days');"
        "commit; alter table {source} add column extra float8 default random(); delete from {source} where note = 'event 9'",
        2,
    ),
}


@pytest.mark.parametrize("write", WRITES)
def test_writes(filled: Database, write: str) -> None:
    """Whatever one transaction does, answers are exact before and after the refresh; only late changes are logged."""
    script, logged = WRITES[write]
    run(filled, f"begin; {script}; commit" if "commit" not in script else script)
    if logged is not None:
        assert pending(filled) == logged
    settled(filled)


@pytest.mark.parametrize("write", some(WRITES, 4))
def test_writes_rolled_back(filled: Database, write: str) -> None:
    """A transaction that is rolled back leaves nothing, neither a change nor a marker nor doubt."""
    script, _ = WRITES[write]
    run(filled, f"begin; {script.replace('commit;', '')}; rollback")
    assert pending(filled) == 0
    assert filled.scalar("select count(*) from usage.truncate_marker") == 0
    assert doubt(filled) is None
    settled(filled)


def test_truncate_marker_waits_for_the_refresh(filled: Database) -> None:
    """After a TRUNCATE readers read raw and say why, until the next refresh has started anew."""
    run(filled, "truncate {source}")
    assert doubt(filled) == "the source was truncated: run aggregator refresh"
    fill(filled)
    filled.compare()
    settled(filled)


def _instants(db: Database, hours: range) -> list[datetime]:
    now: datetime = db.scalar("select clock_timestamp()")
    return [now - timedelta(hours=hour) for hour in hours]


def test_copy(filled: Database) -> None:
    """COPY goes through the triggers, late rows and rows at the tail."""
    instants = _instants(filled, range(-5, 200))
    with filled.connection.cursor() as cursor:
        query = f"copy {filled.source} (resource_type, detail, created_at) from stdin"
        with cursor.copy(query.encode()) as copy:
            for instant in instants:
                copy.write_row(("livekit", '{"participant_minutes": 1.25}', instant))
    assert pending(filled) == 199
    settled(filled)


@pytest.mark.parametrize("freeze", [False, True])
def test_copy_after_truncate(filled: Database, freeze: bool) -> None:
    """COPY, also FREEZE, into a table that the same transaction truncated counts once."""
    target = filled.source if filled.source.endswith("log") else "public.events_new"
    instants = _instants(filled, range(-5, 100))
    with filled.connection.transaction(), filled.connection.cursor() as cursor:
        cursor.execute(f"truncate {target}".encode())
        options = "with (freeze)" if freeze else ""
        with cursor.copy(f"copy {target} (resource_type, detail, created_at) from stdin {options}".encode()) as copy:
            for instant in instants:
                copy.write_row(("livekit", '{"participant_minutes": 1.25}', instant))
    settled(filled)


def test_upsert(filled: Database) -> None:
    """INSERT … ON CONFLICT DO UPDATE logs what it did: an insert, an update, or nothing."""
    key = "(id)" if filled.source.endswith("log") else "(id, created_at)"
    query = (
        f"insert into {filled.source} (id, collection_id, resource_type, detail, created_at) overriding system value"
        f" select id + case when note = 'event 5' then 1000 else 0 end, null, 'tts', '{{\"characters\": 11}}', created_at"
        f" from {filled.source} where note in ('event 5', 'event 6', 'event 27')"
        f" on conflict {key} do update set detail = excluded.detail, resource_type = excluded.resource_type"
    )
    filled.execute(query)
    assert pending(filled) == 5
    filled.execute(
        query.replace("do update set detail = excluded.detail, resource_type = excluded.resource_type", "do nothing")
    )
    assert pending(filled) == 5
    settled(filled)


def test_row_movement(partitioned: Database) -> None:
    """An update that moves rows to another partition is one change off and one change on."""
    run(
        partitioned,
        "update {source} set created_at = created_at - interval '15 days' where note in ('event 1', 'event 2')",
    )
    assert pending(partitioned) == 4
    partitioned.compare()
    run(partitioned, "update {source} set created_at = clock_timestamp() where created_at < now() - interval '20 days'")
    settled(partitioned)


def test_direct_writes_to_partitions(partitioned: Database) -> None:
    """Writes that name a partition, at any level, are captured as those to the source."""
    for partition in ("events_old", "events_mid", "events_mid_0", "events_mid_1", "events_new"):
        rows = partitioned.scalar(f"select count(*) from public.{partition}")
        assert rows > 0
        before = pending(partitioned)
        partitioned.execute(f'update public.{partition} set detail = \'{{"tokens_in": 1, "job_type": "{partition}"}}\'')
        assert pending(partitioned) == before + 2 * rows
        partitioned.execute(f"delete from public.{partition} where note like '%3'")
        partitioned.execute(
            "insert into public.events_new (resource_type, created_at) values ('cas', clock_timestamp() - interval '1 hour')"
        )
        partitioned.compare()
    settled(partitioned)


@pytest.mark.parametrize("partition", ["events_old", "events_mid", "events_mid_1", "events_new"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_truncate_of_a_partition(partitioned: Database, partition: str, end: str) -> None:
    """TRUNCATE of one partition, at any level, is seen; rolled back, it has not happened."""
    run(partitioned, f"begin; delete from {{source}} where note = 'event 20'; truncate public.{partition}; {end}")
    assert (doubt(partitioned) is None) == (end == "rollback")
    settled(partitioned)


def test_truncate_of_a_later_partition(partitioned: Database) -> None:
    """A partition made after attach has no truncate trigger: its TRUNCATE is known by its file, and repaired on demand."""
    partitioned.execute("select public.add_partition('events_ancient', 400, 300)")
    assert doubt(partitioned) is None
    partitioned.execute(
        "insert into public.events (resource_type, detail, created_at)"
        " select 'cas', '{\"size_bytes\": 2}', now() - interval '350 days' from generate_series(1, 5)"
    )
    settled(partitioned)
    partitioned.execute("truncate public.events_ancient")
    reason = doubt(partitioned)
    assert reason is not None
    assert "events_ancient" in reason
    assert "attach" in reason
    settled(partitioned, trusted=False)
    assert doubt(partitioned) is not None
    partitioned.attach()
    result = partitioned.verify(repair=True)
    assert result.trusted
    assert result.differences > 0
    settled(partitioned)
    partitioned.execute("truncate public.events_ancient")
    settled(partitioned)


def test_truncate_of_a_partition_no_refresh_has_seen(partitioned: Database) -> None:
    """A partition that was made, filled late and truncated between two refreshes adds nothing."""
    partitioned.execute("select public.add_partition('events_ancient', 400, 300)")
    partitioned.execute(
        "insert into public.events (resource_type, detail, created_at) values ('cas', '{\"size_bytes\": 2}', now() - interval '350 days')"
    )
    partitioned.compare()
    partitioned.execute("truncate public.events_ancient")
    settled(partitioned)


@pytest.mark.parametrize("action", ["cascade", "set null"])
def test_foreign_key_actions(filled: Database, action: str) -> None:
    """Rows that a foreign key deletes, or whose collection it sets null, are captured."""
    run(
        filled,
        "insert into public.nodes select distinct collection_id, 'more' from {source}"
        " where collection_id is not null on conflict do nothing;"
        f"alter table {{source}} add foreign key (collection_id) references public.nodes (id) on delete {action};"
        f"delete from public.nodes where id in ('{COLLECTIONS[0]}', '{COLLECTIONS[2]}')",
    )
    assert pending(filled) == (20 if action == "cascade" else 40)
    settled(filled)


def test_prepared_transactions(filled: Database) -> None:
    """What a prepared transaction did counts from its commit on; rolled back, it never counts."""
    writer = filled.connect(autocommit=False)
    for gid, late, end in (("one", True, "commit"), ("two", True, "rollback"), ("three", False, "commit")):
        age = "2 days" if late else "0 s"
        writer.execute(
            f"insert into {filled.source} (resource_type, detail, created_at)"
            f" values ('ai', '{{\"tokens_in\": 5}}', clock_timestamp() - interval '{age}')".encode()
        )
        if late:
            writer.execute(f"delete from {filled.source} where note = 'event {len(gid)}'".encode())
        writer.execute(f"prepare transaction '{filled.name} {gid}'".encode())
        writer.rollback()
        filled.compare()
        assert filled.refresh(wait_timeout=0).status == "partial"
        filled.compare()
        filled.execute(f"{end} prepared '{filled.name} {gid}'")
        settled(filled)


def test_replicated_writes(filled: Database) -> None:
    """Writes of a replication worker (session_replication_role = replica) are captured: the triggers are ENABLE ALWAYS."""
    run(
        filled,
        "begin; set local session_replication_role = replica; delete from {source} where note like 'event 1%';"
        "update {source} set detail = '{}' where note like 'event 2%';"
        "insert into {source} (resource_type, created_at) values ('ai', now() - interval '2 days'); commit",
    )
    assert pending(filled) == 11 + 2 * 11 + 1
    settled(filled)
    run(filled, "begin; set local session_replication_role = replica; truncate {source}; commit")
    assert doubt(filled) is not None
    settled(filled)


@pytest.mark.parametrize(
    "isolation", [IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE]
)
def test_writers_that_began_before_the_frontier_moved(filled: Database, isolation: IsolationLevel) -> None:
    """A writer whose snapshot is older than the frontier still compares with the frontier of now."""
    writer = filled.connect(autocommit=False)
    writer.isolation_level = isolation
    writer.execute(f"select count(*) from {filled.source}".encode())
    assert filled.refresh().status == "done"
    writer.execute(f"insert into {filled.source} (resource_type, created_at) values ('ai', now())".encode())
    writer.execute(f"delete from {filled.source} where note = 'event 17'".encode())
    filled.compare()
    writer.commit()
    assert pending(filled) == 2
    settled(filled)


@pytest.mark.parametrize(
    "isolation", [IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE]
)
def test_writers_that_wrote_before_the_frontier_moved(filled: Database, isolation: IsolationLevel) -> None:
    """A refresh waits for a writer that compared with the old frontier, and counts each of its rows once."""
    writer = filled.connect(autocommit=False)
    writer.isolation_level = isolation
    insert = f"insert into {filled.source} (resource_type, created_at) values ('ai', clock_timestamp())".encode()
    writer.execute(insert)
    before = filled.scalar("select last_value from usage.frontier_seq")
    refresher = Background(filled.refresh)
    await_true(lambda: filled.scalar("select last_value from usage.frontier_seq") > before, "the advance")
    writer.execute(insert)
    filled.compare()
    assert refresher.alive
    writer.commit()
    assert refresher.join().status == "done"
    settled(filled)


@pytest.mark.parametrize("rewrite", ["vacuum full {source}", "cluster {source} using {index}"])
def test_rewrites_between(filled: Database, rewrite: str) -> None:
    """VACUUM FULL and CLUSTER change nothing: no doubt, and late changes from before and after count."""
    run(filled, "delete from {source} where note = 'event 12'")
    filled.execute(rewrite.format(source=filled.source, index=f"{filled.source.split('.')[1]}_created_at_idx"))
    run(filled, "delete from {source} where note = 'event 13'")
    assert doubt(filled) is None
    settled(filled)


def test_rewrites_between_the_steps_of_a_refresh(filled: Database) -> None:
    """A refresh whose source is rewritten, truncated or refilled between two steps ends exact."""
    run(filled, "truncate {source}")
    fill(filled)
    todo = iter(
        [
            f"vacuum full {filled.source}",
            f"alter table {filled.source} add column extra float8 default random()",
            f"truncate {filled.source}",
            f"insert into {filled.source} (resource_type, created_at)"
            " select 'ai', now() - n * interval '1 hour' from generate_series(1, 40) n",
            f"alter table {filled.source} drop column extra",
        ]
    )

    def between(_progress: refresh.Progress) -> None:
        statement = next(todo, None)
        if statement is not None:
            filled.execute(statement)
        filled.compare()

    refresh.refresh(filled.own, filled.settings.model_copy(update={"step_events": 7}), progress=between)
    assert next(todo, None) is None
    settled(filled)


@pytest.mark.parametrize("ddl", ["alter table {source} add column extra float8 default random()", "truncate {source}"])
def test_rewrites_during_a_refresh(filled: Database, ddl: str) -> None:
    """A refresh that meets DDL of an open transaction waits for it, and ends exact."""
    host = filled.connect(autocommit=False)
    run(filled, "delete from {source} where note = 'event 12'")
    host.execute(ddl.replace("{source}", filled.source).encode())
    host.execute(f"insert into {filled.source} (resource_type, created_at) values ('ai', now())".encode())
    before = filled.scalar("select last_value from usage.frontier_seq")
    refresher = Background(filled.refresh)
    await_true(lambda: filled.scalar("select last_value from usage.frontier_seq") > before, "the advance")
    assert refresher.alive
    host.commit()
    assert refresher.join().status == "done"
    settled(filled)


def test_reader_of_before_a_late_change(filled: Database) -> None:
    """A snapshot from before late changes and a refresh keeps its answers: rollups, late changes and raw rows move together."""
    reader = filled.connect()
    with snapshot(reader):
        compare(reader, "UTC", source=filled.source)
        run(filled, "delete from {source} where note like 'event 2%'")
        compare(reader, "UTC", source=filled.source)
        filled.refresh()
        compare(reader, "UTC", source=filled.source)
    settled(filled)


def test_nothing_is_known_of_the_frontier(filled: Database) -> None:
    """While the sequence has no value, each change is noted: it may be late."""
    filled.execute("alter sequence usage.frontier_seq restart")
    filled.execute(f"insert into {filled.source} (resource_type, created_at) values ('ai', now())")
    assert filled.scalar("select count(*) from usage.late_change") == 1
    filled.compare()
    filled.refresh()
    filled.compare()
    assert doubt(filled) is None


def test_nobody_forges_late_changes(make_role: Callable[..., str], filled: Database) -> None:
    """usage.capture() on a table of one's own does nothing, so nobody adds usage that is not there."""
    role = make_role()
    filled.execute(f"create schema private authorization {role}; grant usage on schema usage to {role}")
    with filled.connect(user=role) as forger:
        forger.execute(
            b"create table private.resource_usage_log (collection_id uuid, resource_type text, detail jsonb, created_at timestamptz);"
            b"create trigger forged after insert or update or delete on private.resource_usage_log"
            b" for each row execute function usage.capture();"
            b"create trigger forged_truncate after truncate on private.resource_usage_log"
            b" for each statement execute function usage.capture_truncate();"
            b"create trigger usage_insert after insert or update or delete on private.resource_usage_log"
            b" for each row execute function usage.capture();"
            b"create trigger usage_truncate after truncate on private.resource_usage_log"
            b" for each statement execute function usage.capture_truncate();"
            b"insert into private.resource_usage_log values (null, 'ai', '{\"tokens_in\": 1}', now() - interval '1 day');"
            b"update private.resource_usage_log set resource_type = 'cas';"
            b"set search_path = private;"
            b"delete from resource_usage_log; truncate resource_usage_log"
        )
        for statement in (
            "insert into usage.late_change values (1, now(), null, 'ai', null)",
            "select setval('usage.frontier_seq', 1)",
            "insert into usage.truncate_marker (truncated) values ('x')",
            "select * from usage.by_collection('-infinity')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                forger.execute(statement.encode())
    assert pending(filled) == 0
    assert doubt(filled) is None
    filled.compare()


def test_writers_need_no_right_on_schema_usage(make_role: Callable[..., str], filled: Database) -> None:
    """A role with rights on the source alone inserts, updates and deletes, at the tail and late."""
    role = make_role()
    inserter = make_role()
    filled.execute(
        f"grant insert, update, delete, select on {filled.source} to {role}; grant insert on {filled.source} to {inserter}"
    )
    if not filled.source.endswith("log"):
        filled.execute(f"grant usage on sequence public.events_id to {role}, {inserter}")
    for name in (role, inserter):
        with filled.connect(user=name) as writer:
            for age in ("0 s", "2 days"):
                writer.execute(
                    f"insert into {filled.source} (resource_type, created_at)"
                    f" values ('ai', clock_timestamp() - interval '{age}')".encode()
                )
            if name == role:
                writer.execute(f"update {filled.source} set resource_type = 'tts' where note = 'event 9'".encode())
                writer.execute(f"delete from {filled.source} where note = 'event 10'".encode())
    assert pending(filled) == 5
    settled(filled)


def test_host_role_creates_partitions(make_role: Callable[..., str], partitioned: Database) -> None:
    """The role that owns the source, with no right on schema usage, makes and drops partitions; they are captured."""
    role = make_role()
    partitioned.execute(
        f"alter table public.events owner to {role}; grant usage on sequence public.events_id to {role};"
        f"grant create on schema public to {role}"
    )
    with partitioned.connect(user=role) as host:
        host.execute(
            b"select public.add_partition('events_next', -30, -40), public.add_partition('events_ancient', 400, 300)"
        )
        host.execute(b"create table public.loose (like public.events including all)")
        host.execute(
            b"alter table public.events attach partition public.loose for values from ('1999-01-01 00:00+00') to ('2000-01-01 00:00+00')"
        )
        host.execute(
            b"insert into public.events (resource_type, created_at) values ('ai', now() - interval '350 days')"
        )
        host.execute(
            b"insert into public.events (resource_type, created_at) values ('ai', '1999-05-05'), ('ai', now() + interval '35 days')"
        )
    assert pending(partitioned) == 2
    settled(partitioned)
    with partitioned.connect(user=role) as host:
        host.execute(b"delete from public.events_ancient")
    settled(partitioned)
