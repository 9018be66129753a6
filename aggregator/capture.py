"""Attach capture to the source table, and detach it.

All DDL on the host's tables happens here, each try under ``lock_timeout``: the triggers need a SHARE ROW EXCLUSIVE lock
on the source, which waits for open writers while later ones queue behind it, so it must not wait for long.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg import errors, sql

from aggregator import hourly
from aggregator import sql as sql_files
from aggregator.db import Connection, transaction
from aggregator.errors import AggregatorError, UsageError, never
from aggregator.settings import Settings, days_back

SQL = sql_files.load("capture")
CITUS = sql_files.load("citus")
TRIGGERS = ("usage_insert", "usage_update", "usage_delete", "usage_truncate")

_OF_RANGES = ("event_between", "next_event", "nth_event", "distributed_sums")
"""Functions that know how to reach a range of the source; others where Citus distributes it."""

_COLUMN_TYPES: dict[str, tuple[str, ...]] = {
    "created_at": ("timestamp with time zone",),
    "collection_id": ("uuid",),
    "resource_type": ("text", "character varying"),
    "detail": ("jsonb",),
}
_LOOKBACK_KINDS = {"r", "p", "v", "f"}
_KINDS = {"v": "a view", "m": "a materialized view", "f": "a foreign table", "S": "a sequence", "i": "an index"}

Result = TypeVar("Result")


class SourceError(UsageError):
    """The source or title table cannot be used as it is."""


class SealedHistoryError(UsageError):
    """There is sealed history that the command would discard."""


@dataclass(frozen=True)
class Attached:
    """What attach did: ``changed`` is False where everything was in place; ``warnings`` are for the operator."""

    source: str
    title_table: str | None
    time_zone: str
    changed: bool
    warnings: tuple[str, ...]
    lookback_days: int | None
    """Each refresh repairs so many days, for there are no triggers; None: there are."""


@dataclass(frozen=True)
class _Table:
    name: str
    """Qualified, and quoted by the server itself: safe to be part of a statement."""
    oid: int

    @property
    def identifier(self) -> sql.SQL:
        return sql.SQL(self.name)


def attach(connection: Connection, settings: Settings) -> Attached:
    """Start capture on the settings' source table, or put right what was changed; commits.

    Raises SourceError, naming what to do, when the source cannot be captured, another one is attached, or a lock on it
    was not to be had.
    """
    with transaction(connection, read_only=True):
        lookback_days = _lookback_days(connection, settings)
        source = _resolve(connection, settings.source_table, "source")
        warnings = _check_source(connection, source, lookback=lookback_days is not None)
        titles = _title_table(connection, settings, warnings)
        # This scan of two centuries of days takes a quarter of a second, so it is not done under a lock.
        valid_from = _scalar(connection, SQL["zone_valid_from"], zone=settings.time_zone)
        _check_zone(connection, source, settings, valid_from)

    def try_once() -> bool:
        with transaction(connection, lock_timeout=settings.lock_timeout):
            return _attach_once(connection, settings, source, titles, valid_from, warnings, lookback_days)

    changed = with_lock_retries(settings, try_once)
    return Attached(
        source.name, titles.name if titles else None, settings.time_zone, changed, tuple(warnings), lookback_days
    )


def _lookback_days(connection: Connection, settings: Settings) -> int | None:
    """Return how many days each refresh is to repair, or None for capture by triggers: as set, else as it is attached."""
    row = None
    with contextlib.suppress(errors.InsufficientPrivilege), connection.transaction():
        row = connection.execute(SQL["attached_how"]).fetchone()
    # A role that may not even read the state is told what it lacks when the source is looked at.
    source, by_lookback, days = row or (None, None, None)
    attached = None if source is None else "lookback" if by_lookback else "triggers"
    wanted = settings.capture or attached or "triggers"
    if attached not in {None, wanted}:
        raise SourceError(
            f"{source} is attached by {attached}: run aggregator detach first, then attach --capture {wanted}"
        )
    if wanted == "triggers":
        if "lookback" in settings.model_fields_set:
            raise UsageError(f"--lookback {settings.lookback} is for --capture lookback: set both or neither")
        return None
    return (
        int(days) if days is not None and "lookback" not in settings.model_fields_set else days_back(settings.lookback)
    )


def _attach_once(
    connection: Connection,
    settings: Settings,
    source: _Table,
    titles: _Table | None,
    valid_from: str,
    warnings: list[str],
    lookback_days: int | None,
) -> bool:
    # The state first, then the source: a fold holds the state for seconds, and writers must not wait behind that.
    row = connection.execute(SQL["lock_state"]).fetchone()
    assert row is not None
    old_source, old_oid, old_titles, old_zone, _frontier, _sealed, _trusted_now, _reason, doubt, unchanged, *how = row
    if old_source is not None and old_source != source.name:
        raise SourceError(f"{old_source} is attached: run aggregator detach first, then attach {source.name}")
    fresh = old_source is None
    rollups_left = bool(_scalar(connection, SQL["rollups_left"]))
    if old_zone != settings.time_zone and (not fresh or rollups_left):
        raise SourceError(
            f"the rollups are by days of {old_zone}: set AGGREGATOR_TIME_ZONE={old_zone},"
            f" or run aggregator detach and attach again to rebuild them in {settings.time_zone}"
        )
    distributed = lookback_days is not None and _is_distributed(connection, source)
    if lookback_days is not None:
        mode, tree = "lookback", []
        complete, unchanged = how == ["lookback", lookback_days, distributed], True
    else:
        mode = "origin" if _scalar(connection, SQL["subscribed"]) else "always"
        enabled = "O" if mode == "origin" else "A"
        tree = connection.execute(SQL["tree"], {"oid": source.oid, "enabled": enabled}).fetchall()
        complete = all(set(TRIGGERS) <= set(firing) for _, _, _, _, firing in tree)
    if (
        not fresh
        and complete
        and unchanged
        and old_oid == source.oid
        and old_titles == (titles.name if titles else None)
    ):
        renewed = _create_functions(connection, source.name, titles.name if titles else None, distributed=distributed)
        _restore(connection)
        return renewed

    if lookback_days is None:
        connection.execute(sql.SQL(SQL["lock_source"]).format(source=source.identifier))
    _create_functions(connection, source.name, titles.name if titles else None, distributed=distributed)
    _create_triggers(connection, source, tree, mode)
    connection.execute(
        SQL["set_attached"],
        {
            "source": source.name,
            "oid": source.oid,
            "titles": titles.name if titles else None,
            "zone": settings.time_zone,
            "mode": mode,
            "lookback_days": lookback_days,
            "distributed": distributed,
            "valid_from": valid_from,
            "fresh": fresh,
        },
    )
    connection.execute(SQL["set_seal"], {"fresh": fresh})
    connection.execute(SQL["set_fingerprint"])
    if not fresh and doubt is not None:
        # Capture had a gap. It is closed: the lock has waited for every writer that might have gone through it.
        connection.execute(SQL["distrust"], {})
        warnings.append(f"capture had a gap ({doubt}): run aggregator verify --repair")
    _restore(connection)
    return True


def _restore(connection: Connection) -> None:
    """Put back what a dump without privileges and a logical copy leave behind."""
    connection.execute(SQL["restore_grants"])
    connection.execute(SQL["set_numbers"])


def _create_functions(connection: Connection, source: str, titles: str | None, *, distributed: bool) -> bool:
    """Create the functions that know the host's tables, by their quoted names, as far as they are not there as they should be."""
    from_titles = "no_collection_body" if titles is None else "collection_body"
    sums = sql.SQL(CITUS["sums_query"]).format(source=sql.SQL(source)).as_string(connection)
    names = {
        "source": sql.SQL(source),
        "sums": sql.Literal(sums),
        "titles": sql.SQL(titles or ""),
        "name": sql.Literal(source),
    }
    blocks = {**SQL, **CITUS} if distributed else SQL
    bodies = {name: blocks[f"{name}_body"] for name in ("event", *_OF_RANGES)}
    bodies |= {
        "collection": SQL[from_titles], "capture": SQL["capture_body"], "capture_truncate": SQL["truncate_body"],
    }  # fmt: skip
    row = connection.execute(SQL["is_table"], {"name": source}).fetchone()
    changed = _replace_functions(
        connection,
        blocks,
        {name: sql.SQL(body).format(**names).as_string(connection) for name, body in bodies.items()},
        parallel="safe" if row == (True,) else "unsafe",
    )
    if distributed and changed:
        connection.execute(CITUS["distribute_functions"])
    return changed


def _replace_functions(
    connection: Connection, blocks: dict[str, LiteralString], bodies: Mapping[str, str], *, parallel: str = "unsafe"
) -> bool:
    """Create the functions whose bodies are not there as given; return whether there were any.

    ``parallel``: whether workers may read the source. The planner asks before it looks into a view.
    """
    there: dict[str, str] = dict(connection.execute(SQL["function_bodies"], {"names": list(bodies)}).fetchall())
    changed = False
    for function, body in bodies.items():
        if there.get(function) != body:
            connection.execute(
                sql.SQL(blocks[f"{function}_function"]).format(body=sql.Literal(body), parallel=sql.SQL(parallel))
            )
            changed = True
    return changed


def renew_functions(connection: Connection) -> None:
    """Bring the functions that know the host's tables to this version, if something is attached, in the caller's transaction.

    No lock on the host's tables is needed: the triggers stay as they are.
    """
    row = connection.execute(SQL["lock_attached"]).fetchone()
    if row is not None:
        source, titles, distributed = row
        _create_functions(connection, source, titles, distributed=distributed)


def _create_triggers(connection: Connection, source: _Table, tree: list[tuple[Any, ...]], mode: str) -> None:
    late, unsealed = sql.SQL(SQL["late"]), sql.SQL(SQL["unsealed"])
    conditions = {
        "late_new": late.format(row=sql.SQL("new")),
        "late_old": late.format(row=sql.SQL("old")),
        "unsealed_old": unsealed.format(row=sql.SQL("old")),
    }
    enable = sql.SQL("always" if mode == "always" else "")
    for relid, name, _kind, present, firing in tree:
        relation = sql.SQL(name)
        # Row triggers are cloned from the source to its partitions, statement triggers are not.
        for trigger in TRIGGERS if relid == source.oid else ("usage_truncate",):
            if trigger not in present:
                block = SQL[trigger.removeprefix("usage_") + "_trigger"]
                connection.execute(sql.SQL(block).format(source=source.identifier, relation=relation, **conditions))
            if trigger not in firing:
                _enable(connection, relation, trigger, enable)
        if relid != source.oid:
            for trigger in TRIGGERS[:3]:
                if trigger in present and trigger not in firing:
                    _enable(connection, relation, trigger, enable)


def _enable(connection: Connection, relation: sql.SQL, trigger: str, mode: sql.SQL) -> None:
    connection.execute(
        sql.SQL(SQL["enable_trigger"]).format(relation=relation, mode=mode, trigger=sql.Identifier(trigger))
    )


def detach(connection: Connection, settings: Settings, *, discard_sealed: bool = False) -> bool:
    """Stop capture: drop the triggers and the rollups that are not sealed; commits. Return False if nothing was attached.

    Raises SealedHistoryError while there is sealed history, unless ``discard_sealed``.
    """

    def try_once() -> bool:
        with transaction(connection, lock_timeout=settings.lock_timeout):
            row = connection.execute(SQL["lock_state"]).fetchone()
            assert row is not None
            source, _, _, _, _, sealed_until, *_ = row
            if sealed_until != "-infinity" and not discard_sealed:
                raise SealedHistoryError(
                    f"history up to {sealed_until} is sealed: its raw rows may be gone, and only the rollups have it;"
                    " to throw it away, add --discard-sealed"
                )
            if source is None and sealed_until == "-infinity":
                return False
            # Also on what bears another name by now, or was detached from the source.
            for relation, triggers in connection.execute(SQL["captured_relations"]).fetchall():
                for trigger in triggers:
                    connection.execute(
                        sql.SQL(SQL["drop_trigger"]).format(trigger=sql.Identifier(trigger), relation=sql.SQL(relation))
                    )
            connection.execute(SQL["set_detached"], {"discard": discard_sealed})
            delete_unsealed(connection)
            hourly.delete_below(connection, None)
            connection.execute(SQL["delete_captured"])
            connection.execute(SQL["stub_functions"])
            _replace_functions(connection, SQL, {name: SQL[f"{name}_body"] for name in _OF_RANGES})
            return True

    return with_lock_retries(settings, try_once)


def delete_unsealed(connection: Connection) -> None:
    """Delete the rollups of days from the seal on, in the caller's transaction."""
    for rollup in ("daily", "daily_collection", "daily_total", "monthly", "monthly_collection", "rolled_day"):
        connection.execute(SQL[f"delete_{rollup}"])
    for rollup in ("monthly", "monthly_collection"):
        connection.execute(SQL[f"restore_{rollup}"])


def with_lock_retries(
    settings: Settings, work: Callable[[], Result], what: str = "the source", check: Callable[[], None] = never
) -> Result:
    """Run DDL that takes its locks under ``lock_timeout``, again and again as the settings say, until it gets them.

    ``check`` is called before each try, and may raise.
    """
    for attempt in range(settings.lock_retries + 1):
        check()
        try:
            return work()
        except (errors.LockNotAvailable, errors.DeadlockDetected) as exc:
            if attempt == settings.lock_retries:
                raise AggregatorError(
                    f"no lock on {what} after {attempt + 1} tries of {settings.lock_timeout:g} s:"
                    " a long transaction holds it; try again when it has ended (pg_stat_activity shows it)"
                ) from exc
            time.sleep(min(0.1 * 2**attempt, 5.0))
    raise AssertionError("unreachable")


def _scalar(connection: Connection, query: LiteralString, **parameters: object) -> Any:
    row = connection.execute(query, parameters).fetchone()
    return row[0] if row is not None else None


def _resolve(connection: Connection, name: str, role: str) -> _Table:
    option = f"AGGREGATOR_{role.upper()}_TABLE"
    try:
        with connection.transaction():
            row = connection.execute(SQL["resolve"], {"name": name}).fetchone()
    except psycopg.errors.InvalidParameterValue as exc:
        raise SourceError(
            f'{option}: {name!r} is no SQL name; write it like public.events or "My Schema"."Events"'
        ) from exc
    assert row is not None
    parts, quoted, oid = row
    if parts != 2:  # noqa: PLR2004 -- schema and table
        raise SourceError(f"{option}: {name!r} must be qualified with its schema and nothing else, like public.events")
    if oid is None:
        raise SourceError(f"the {role} table {quoted} does not exist: set {option} to its qualified name")
    return _Table(quoted, int(oid))


def _check_source(connection: Connection, source: _Table, *, lookback: bool) -> list[str]:
    """Raise SourceError if the source cannot be captured, by triggers or by lookback; return warnings."""
    row = connection.execute(SQL["relation"], {"oid": source.oid}).fetchone()
    assert row is not None
    kind, persistence, is_partition, filtered, owns, owner, user, may_select = row
    if kind not in _LOOKBACK_KINDS:
        raise SourceError(
            f"{source.name} is {_KINDS.get(kind, 'no table')}: only a table or partitioned table can be captured,"
            " a view or foreign table with --capture lookback"
        )
    what = _without_triggers(connection, source, kind)
    if what is not None and not lookback:
        raise SourceError(
            f"{source.name} is {what}: attach it with --capture lookback, whose answers show late changes from the next"
            " refresh on"
        )
    if persistence != "p":
        raise SourceError(
            f"{source.name} is unlogged or temporary: a crash would empty it unseen; ALTER TABLE … SET LOGGED"
        )
    if is_partition and not lookback:
        raise SourceError(f"{source.name} is a partition: attach the partitioned table that it belongs to")
    if lookback and not may_select:
        raise SourceError(f"role {user} may not read {source.name}: GRANT SELECT ON {source.name} TO {user}")
    if not lookback and not (owns and may_select):
        raise SourceError(
            f"role {user} must own {source.name} to add triggers to it: connect as {owner}, or a member of it"
        )
    if filtered:
        raise SourceError(
            f"row-level security would hide rows of {source.name} from role {user}: ALTER ROLE {user} BYPASSRLS, or attach"
            " as a role that has it"
        )
    _check_columns(connection, source, lookback=lookback)
    child = None if lookback else connection.execute(SQL["unsupported_relation"], {"oid": source.oid}).fetchone()
    if child is not None:
        raise SourceError(f"{child[0]} {child[1]}: {source.name} cannot be captured with it")
    if kind in {"r", "p"} and not _scalar(connection, SQL["has_index"], oid=source.oid, column="created_at"):
        concurrently = "" if kind == "p" else "CONCURRENTLY "
        raise SourceError(
            f"{source.name} has no index that leads with created_at: CREATE INDEX {concurrently}ON {source.name} (created_at)"
        )
    return [
        f"publication {name} is FOR ALL TABLES: it carries schema usage to its subscribers too"
        for (name,) in connection.execute(SQL["publications"]).fetchall()
    ]


def _without_triggers(connection: Connection, source: _Table, kind: str) -> str | None:
    """Return what the source is, if triggers cannot capture it."""
    if _is_distributed(connection, source):
        return "distributed by Citus, which can have no triggers"
    if _scalar(connection, SQL["knows_timescaledb"]) and _scalar(connection, SQL["is_hypertable"], oid=source.oid):
        return "a TimescaleDB hypertable, whose chunks come and go without their triggers being told"
    return f"{_KINDS[kind]}, which can have no triggers" if kind in {"v", "f"} else None


def _is_distributed(connection: Connection, source: _Table) -> bool:
    return bool(_scalar(connection, SQL["knows_citus"]) and _scalar(connection, SQL["is_distributed"], oid=source.oid))


def _check_columns(connection: Connection, source: _Table, *, lookback: bool) -> None:
    found = {name: rest for name, *rest in connection.execute(SQL["columns"], {"oid": source.oid}).fetchall()}
    for column, types in _COLUMN_TYPES.items():
        if column not in found:
            raise SourceError(f"{source.name} has no column {column}; it needs {', '.join(_COLUMN_TYPES)}")
        type_name, generated, deterministic = found[column]
        if type_name == "timestamp without time zone":
            raise SourceError(
                f"{source.name}.{column} is timestamp without time zone, so nobody knows its instants:"
                f" ALTER TABLE {source.name} ALTER {column} TYPE timestamptz USING {column} AT TIME ZONE 'UTC'"
            )
        if type_name not in types:
            raise SourceError(f"{source.name}.{column} is {type_name}; it must be {' or '.join(types)}")
        if generated == "v" and not lookback:
            raise SourceError(f"{source.name}.{column} is a virtual generated column: triggers do not see its value")
        if deterministic is False:
            raise SourceError(
                f"{source.name}.{column} has a nondeterministic collation: texts that differ would be one key in the raw query"
            )


def _title_table(connection: Connection, settings: Settings, warnings: list[str]) -> _Table | None:
    name = settings.title_table_or_none
    if name is None:
        return None
    try:
        titles = _resolve(connection, name, "title")
    except SourceError as exc:
        if "title_table" in settings.model_fields_set:
            raise
        warnings.append(f"{exc}; collections are shown without titles")
        return None
    relation = connection.execute(SQL["relation"], {"oid": titles.oid}).fetchone()
    assert relation is not None
    _, _, _, filtered, _, _, user, _ = relation
    if filtered:
        raise SourceError(
            f"row-level security would hide rows of the title table {titles.name} from role {user}: ALTER ROLE {user} BYPASSRLS,"
            " or AGGREGATOR_TITLE_TABLE=none"
        )
    found = {column: rest[0] for column, *rest in connection.execute(SQL["columns"], {"oid": titles.oid}).fetchall()}
    if found.get("id") != "uuid" or found.get("title") not in {"text", "character varying"}:
        raise SourceError(
            f"the title table {titles.name} needs the columns id uuid and title text (or AGGREGATOR_TITLE_TABLE=none)"
        )
    if not _scalar(connection, SQL["has_unique_id"], oid=titles.oid):
        raise SourceError(
            f"{titles.name}.id is not unique, so a join would multiply rows: add a primary key or unique index on id"
        )
    return titles


def _check_zone(connection: Connection, source: _Table, settings: Settings, valid_from: str) -> None:
    if valid_from == "-infinity":
        return
    query = sql.SQL(SQL["oldest_event"]).format(source=source.identifier)
    row = connection.execute(query, {"instant": valid_from}).fetchone()
    if row == (True,):
        raise SourceError(
            f"local dates of {settings.time_zone} run backwards before {valid_from}, and {source.name} has events of that time:"
            " choose another AGGREGATOR_TIME_ZONE, such as UTC"
        )
