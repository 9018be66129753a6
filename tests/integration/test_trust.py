"""What no trigger sees: recognised, answered exactly meanwhile, and repaired."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from aggregator import capture, fold, refresh, step, verify
from aggregator.db import connect
from aggregator.errors import AggregatorError, Stopped
from aggregator.status import read_status
from tests.harness import Database, Hooked, some
from tests.integration.sources import EVENTS, bound, doubt, fill, pending, run, settled

UNSEEN = (
    "delete from {source} where note like 'event 1%'; update {source} set resource_type = 'cas' where note like 'event 2%';"
    "insert into {source} (resource_type, detail, created_at) values ('tts', '{\"characters\": 8}', now() - interval '50 days')"
)


def _repair(db: Database, *, differences: bool = True) -> None:
    """Attach, repair everything, and check that trust is back."""
    db.compare()
    db.attach()
    db.compare()
    result = db.verify(repair=True)
    assert (result.trusted, result.doubt) == (True, None)
    assert (result.differences > 0) == differences
    settled(db)


@pytest.mark.parametrize("mode", ["", "always"])
@pytest.mark.parametrize("disabled", ["usage_insert", "usage_update", "usage_delete", "user"])
def test_disabled_and_enabled_again(filled: Database, disabled: str, mode: str) -> None:
    """Triggers disabled, rows changed, triggers enabled: trust is off though all looks as before; repaired on demand."""
    if disabled == "user":
        filled.execute(f"alter table {filled.source} disable trigger user")
    else:
        filled.execute(f"alter table {filled.source} disable trigger {disabled}")
    assert "changed (triggers or file)" in str(doubt(filled))
    run(filled, UNSEEN)
    filled.compare()
    filled.refresh()
    filled.compare()
    with pytest.raises(AggregatorError, match="is not captured: run aggregator attach first"):
        filled.verify(repair=True)
    for trigger in ("usage_insert", "usage_update", "usage_delete", "usage_truncate"):
        if disabled in {trigger, "user"}:
            filled.execute(f"alter table {filled.source} enable {mode} trigger {trigger}")
    assert "changed (triggers or file)" in str(doubt(filled))
    filled.refresh()
    assert doubt(filled) is not None
    _repair(filled)


def test_gap_between_two_looks(filled: Database) -> None:
    """A gap that opened and closed in one transaction is seen all the same."""
    run(
        filled,
        "begin; alter table {source} disable trigger user; "
        + UNSEEN
        + ";"
        + "".join(
            f"alter table {{source}} enable always trigger usage_{n};"
            for n in ("insert", "update", "delete", "truncate")
        )
        + "commit",
    )
    assert "changed (triggers or file)" in str(doubt(filled))
    settled(filled, trusted=False)
    _repair(filled)


def test_truncate_trigger_disabled(filled: Database) -> None:
    """A TRUNCATE while its trigger is disabled is recognised, also after a repair that left the trigger disabled."""
    filled.execute(f"alter table {filled.source} disable trigger usage_truncate")
    if filled.source == "public.events":
        for leaf in ("events_old", "events_mid", "events_mid_0", "events_mid_1", "events_new"):
            filled.execute(f"alter table public.{leaf} disable trigger usage_truncate")
    assert doubt(filled) is not None
    try:
        filled.verify(repair=True)
    except AggregatorError as exc:
        assert "attach" in str(exc)
    run(filled, "truncate {source}")
    settled(filled, trusted=False)
    assert doubt(filled) is not None
    _repair(filled)


def test_dropped_trigger(filled: Database) -> None:
    """A dropped capture trigger is recognised, and made anew by attach."""
    run(filled, "drop trigger usage_delete on {source}")
    assert doubt(filled) is not None
    run(filled, "delete from {source} where note like 'event 4%'")
    settled(filled, trusted=False)
    _repair(filled)


def _loose(db: Database, *, rows: int, before: str = "") -> None:
    db.execute(
        "create table public.loose (like public.events including all);"
        f"{before};"
        "insert into public.loose (resource_type, detail, created_at)"
        f" select 'cas', '{{\"size_bytes\": 4}}', now() - interval '350 days' - n * interval '7 hours' from generate_series(1, {rows}) n"
    )


ATTACH_LOOSE = (
    "do $$ begin execute format('alter table public.events attach partition public.loose for values from (%L) to (%L)',"
    " public.first_day() - interval '400 days', public.first_day() - interval '300 days'); end $$"
)


@pytest.mark.parametrize(
    "before", ["select 1", "insert into public.loose (created_at) values (now()); truncate public.loose", "vacuum"]
)
def test_filled_partition_attached(partitioned: Database, before: str) -> None:
    """A partition that brings events along counts at once; the next refresh repairs its days and trusts by itself."""
    if before == "vacuum":
        _loose(partitioned, rows=40)
        partitioned.execute("vacuum full public.loose")
    else:
        _loose(partitioned, rows=40, before=before)
    partitioned.execute(ATTACH_LOOSE)
    assert "loose" in str(doubt(partitioned))
    partitioned.compare()
    run(partitioned, "delete from public.loose where id % 3 = 0")
    partitioned.compare()
    result = partitioned.refresh()
    noted = "a new partition was truncated or rewritten" if before == "vacuum" else "partition public.loose is new"
    assert any(noted in note for note in result.notes)
    settled(partitioned)
    assert partitioned.scalar("select count(*) from usage.restatement where reason = 'repaired'") > 0


def _unknown_days(db: Database, why: str) -> None:
    """Make something that a refresh mends by a repair of all days."""
    if why == "rewritten":
        _loose(db, rows=40)
        db.execute("vacuum full public.loose")
        db.execute(ATTACH_LOOSE)
    else:
        db.execute("select setval('usage.frontier_seq', (extract(epoch from now() - interval '1 day') * 1e6)::bigint)")


@pytest.mark.parametrize("why", ["rewritten", "sequence"])
def test_truncate_while_a_refresh_repairs(partitioned: Database, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refresh that a TRUNCATE overtakes at a repair folds all anew, and trusts by itself."""
    _unknown_days(partitioned, why)
    real = verify._next_chunk
    todo = ["truncate public.events_old"]

    def patched(*arguments: Any) -> Any:
        chunk = real(*arguments)
        if todo:
            partitioned.execute(todo.pop())
        return chunk

    with monkeypatch.context() as patch:
        patch.setattr(verify, "_next_chunk", patched)
        assert partitioned.refresh().status == "done"
    assert not todo
    partitioned.compare()
    assert doubt(partitioned) is None
    settled(partitioned)


def test_truncate_leaves_other_doubts(partitioned: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where capture has a gap, folding all anew after a TRUNCATE does not turn trust on."""
    partitioned.execute(
        "update usage.state set trusted = false,"
        " distrust_reason = 'a repair is under way or was interrupted: run aggregator rebuild'"
    )
    partitioned.execute("alter table public.events_new disable trigger usage_delete; truncate public.events_old")
    partitioned.refresh()
    partitioned.compare()
    assert doubt(partitioned) is not None
    partitioned.execute("alter table public.events_new enable always trigger usage_delete")
    settled(partitioned, trusted=False)
    _repair(partitioned, differences=False)


def test_a_gap_just_before_a_repair(filled: Database) -> None:
    """Capture that ends between the repair's first look and its note of what it knows is not taken for what is in order."""
    filled.execute("update usage.state set trusted = false, distrust_reason = 'a test'")
    gap = f"alter table {filled.source} disable trigger usage_delete"
    hooked = Hooked(filled.own, {verify.SQL["know"]: lambda: run(filled, gap)})
    with pytest.raises(AggregatorError, match="is not captured: run aggregator attach first"):
        verify.verify(hooked, filled.settings, repair=True)  # type: ignore[arg-type]
    assert doubt(filled) is not None
    run(filled, "delete from {source} where note = 'event 7'")
    filled.compare()
    filled.attach()
    _repair(filled, differences=True)


@pytest.mark.parametrize("why", ["rewritten", "sequence"])
def test_writer_that_comes_before_a_repair(partitioned: Database, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refresh that has to repair, and meets a writer that came after its wait, is partial, names it; the next one mends."""
    _unknown_days(partitioned, why)
    run(partitioned, "delete from public.events where note = 'event 7'")
    writer = partitioned.connect(autocommit=False, application_name="the slow importer")
    real = refresh._look

    def patched(*arguments: Any) -> Any:
        writer.execute(
            b"insert into public.events (resource_type, created_at) values ('ai', now() - interval '2 days')"
        )
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(refresh, "_look", patched)
        result = partitioned.refresh(wait_timeout=0.3)
    assert result.status == "partial"
    assert f"pid {writer.info.backend_pid} (the slow importer)" in result.waited_for[0]
    assert result.late_changes > 0
    partitioned.compare()
    assert doubt(partitioned) is not None
    writer.commit()
    partitioned.compare()
    assert partitioned.refresh().status == "done"
    assert doubt(partitioned) is None
    settled(partitioned)


def test_filled_partition_attached_beside_another_gap(partitioned: Database) -> None:
    """A new partition's repair does not hide a gap elsewhere."""
    _loose(partitioned, rows=40)
    partitioned.execute(ATTACH_LOOSE)
    run(
        partitioned,
        "alter table public.events_old disable trigger user; delete from public.events_old where id % 2 = 0",
    )
    settled(partitioned, trusted=False)
    assert doubt(partitioned) is not None
    _repair(partitioned)


@pytest.mark.parametrize(
    "how", ["alter table public.events detach partition public.events_old", "drop table public.events_old"]
)
def test_partition_gone(partitioned: Database, how: str) -> None:
    """Rows that left with their partition no longer count; trust is off and says what to choose; repair follows."""
    partitioned.execute(how)
    reason = str(doubt(partitioned))
    assert "is gone: run aggregator verify --repair to follow, or seal" in reason
    settled(partitioned, trusted=False)
    assert any(reason in note for note in partitioned.refresh().notes)
    result = partitioned.verify(repair=True)
    assert result.trusted
    assert result.differences > 0
    settled(partitioned)


def test_partition_detached_and_attached_again(partitioned: Database) -> None:
    """A partition that was away while its rows changed is recognised when it is back."""
    back = f"alter table public.events attach partition public.events_old {bound(partitioned, 'public.events_old')}"
    partitioned.execute("alter table public.events detach partition public.events_old")
    partitioned.execute("delete from public.events_old where id % 2 = 0")
    partitioned.execute(back)
    assert doubt(partitioned) is not None
    settled(partitioned, trusted=False)
    _repair(partitioned)


def test_new_empty_partition(partitioned: Database) -> None:
    """A new empty partition raises no doubt, and what is written to it is captured."""
    partitioned.execute(
        "select public.add_partition('events_ancient', 400, 300), public.add_partition('events_next', -30, -60)"
    )
    assert doubt(partitioned) is None
    run(partitioned, "insert into {source} (resource_type, created_at) values ('ai', now() + interval '40 days')")
    assert doubt(partitioned) is None
    run(partitioned, "insert into {source} (resource_type, created_at) values ('ai', now() - interval '350 days')")
    assert pending(partitioned) == 1
    settled(partitioned)
    run(partitioned, "delete from {source} where note is null")
    settled(partitioned)


def test_partition_that_came_and_went(partitioned: Database) -> None:
    """Made, written to below the frontier and dropped between two refreshes: seen, and mended by the next refresh."""
    partitioned.execute("select public.add_partition('events_ancient', 400, 300)")
    run(partitioned, "insert into {source} (resource_type, created_at) values ('ai', now() - interval '350 days')")
    partitioned.execute("drop table public.events_ancient")
    assert "came and went" in str(doubt(partitioned))
    partitioned.compare()
    assert any("came and went" in note for note in partitioned.refresh().notes)
    settled(partitioned)


def test_partition_that_came_and_went_before_a_repair(partitioned: Database) -> None:
    """verify --repair finds it as well, and nothing is left to doubt."""
    partitioned.execute("select public.add_partition('events_ancient', 400, 300)")
    run(partitioned, "insert into {source} (resource_type, created_at) values ('ai', now() - interval '350 days')")
    partitioned.execute("alter table public.events detach partition public.events_ancient")
    partitioned.compare()
    assert partitioned.verify(repair=True).trusted
    partitioned.compare()
    settled(partitioned)
    partitioned.execute("drop table public.events_ancient")
    settled(partitioned)


MADE = (
    "select public.add_partition('events_ancient', 400, 300);"
    " insert into public.events (resource_type, created_at) values ('ai', now() - interval '350 days')"
)
ATTACHED = (
    "create table public.events_ancient (like public.events including all);"
    " insert into public.events_ancient (id, resource_type, created_at) values (-1, 'ai', now() - interval '350 days'),"
    " (-2, 'ai', now() - interval '350 days');"
    " alter table public.events attach partition public.events_ancient for values from ('{from}') to ('{to}')"
)
DROPPED = "drop table public.events_ancient"


@pytest.mark.parametrize(
    ("what", "when"),
    [(what, when) for what in ("made", "attached", "came and went") for when in ("_estimate", "_accept")]
    # A step's lock on the source keeps the others waiting.
    + [("attached", "nth_event")],
)
def test_partition_while_a_refresh_runs(
    partitioned: Database, what: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever a partition comes, what it brings is counted, and is no more when it is dropped before the next refresh."""
    bounds = partitioned.execute("select public.first_day()::date - 400, public.first_day()::date - 300")[0]
    what_happens = {
        "made": MADE,
        "attached": ATTACHED.replace("{from}", str(bounds[0])).replace("{to}", str(bounds[1])),
        "came and went": MADE,
    }[what]
    partitioned.execute("set lock_timeout = '10s'")
    left = [when]

    def happen() -> None:
        left.clear()
        partitioned.execute(what_happens)
        if what == "came and went":
            partitioned.execute(DROPPED)

    if when == "_accept":
        partitioned.execute("select public.add_partition('events_next', -30, -40)")
    run(partitioned, "insert into {source} (resource_type, created_at) values ('ai', now() - interval '2 days')")
    before = {}
    if when == "nth_event":
        before[step.SQL[when]] = happen
    else:
        real = getattr(refresh, when)

        def patched(*arguments: Any) -> Any:
            if left:
                happen()
            return real(*arguments)

        monkeypatch.setattr(refresh, when, patched)
    refresh.refresh(Hooked(partitioned.own, before), partitioned.settings)  # type: ignore[arg-type]
    assert not left
    partitioned.compare()
    if what != "came and went":
        partitioned.execute(DROPPED)
    partitioned.compare()
    partitioned.refresh()
    partitioned.compare()
    assert partitioned.verify(repair=True).trusted
    settled(partitioned)


def test_partition_gone_before_it_was_looked_at(partitioned: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new partition that is dropped between two looks of one refresh is no error."""
    partitioned.execute(MADE)
    real = fold.looking
    looks = 0

    def looking(*arguments: Any, **options: Any) -> Any:
        nonlocal looks
        looks += 1
        if looks == 2:
            partitioned.execute(DROPPED)
        return real(*arguments, **options)

    monkeypatch.setattr(fold, "looking", looking)
    refresh.refresh(partitioned.own, partitioned.settings)
    settled(partitioned)


@pytest.mark.parametrize("how", ["created", "attached"])
def test_child_that_is_no_partition(plain: Database, how: str) -> None:
    """What inherits from the source counts in the raw query and is not captured: read raw until it is gone, then repaired."""
    if how == "created":
        plain.execute(
            "create table public.kid () inherits (public.resource_usage_log); alter table public.kid alter id set default 0"
        )
    else:
        plain.execute("create table public.kid (like public.resource_usage_log including all)")
    plain.execute(EVENTS.replace("{source}", "public.kid"))
    plain.refresh()
    if how == "attached":
        assert doubt(plain) is None
        plain.execute("alter table public.kid inherit public.resource_usage_log")
    assert str(doubt(plain)).startswith("public.kid inherits from the source without being a partition")
    plain.compare()
    with pytest.raises(capture.SourceError, match="public.kid inherits from it without being a partition"):
        plain.attach()
    settled(plain, trusted=False)
    assert not plain.verify(repair=True).trusted
    plain.compare()
    plain.execute("alter table public.kid no inherit public.resource_usage_log")
    settled(plain, trusted=False)
    _repair(plain)


def test_child_while_a_refresh_runs(plain: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that comes after the refresh has looked, and goes before the next one does, leaves no wrong number."""
    real = refresh._estimate

    def patched(*arguments: Any) -> Any:
        plain.execute("create table public.kid () inherits (public.resource_usage_log)")
        plain.execute(
            "insert into public.kid (id, resource_type, created_at)"
            " select -1, 'ai', frontier + interval '1 microsecond' from usage.state"
        )
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(refresh, "_estimate", patched)
        plain.refresh()
    plain.compare()
    plain.execute("drop table public.kid")
    plain.compare()
    _repair(plain)


def test_source_set_unlogged(filled: Database) -> None:
    """A source, or a leaf of it, that a crash would empty is in doubt as long as it is not logged."""
    table = "public.events_old" if filled.source == "public.events" else filled.source
    filled.execute(f"alter table {table} set unlogged")
    assert str(doubt(filled)).startswith(f"{table} is not logged, so a crash empties it unseen: run ALTER TABLE")
    filled.compare()
    with pytest.raises(capture.SourceError, match="is unlogged or temporary|is not logged"):
        filled.attach()
    settled(filled, trusted=False)
    filled.execute(f"alter table {table} set logged")
    filled.compare()
    _repair(filled, differences=False)


def test_another_table_in_the_sources_place(filled: Database) -> None:
    """A table renamed into the source's place is what counts from then on; attach and verify --repair follow it."""
    name = filled.source.split(".")[1]
    run(
        filled,
        f"create table public.copied (like {{source}} including all); insert into public.copied overriding system value select * from {{source}}"
        " where note like 'event 2%';"
        f"alter table {{source}} rename to old_source; alter table public.copied rename to {name}",
    )
    assert f"another table bears the name {filled.source}" in str(doubt(filled))
    run(
        filled,
        "insert into {source} (id, resource_type, created_at) overriding system value values (999, 'ai', now() - interval '1 day')",
    )
    filled.execute("insert into public.old_source (resource_type, created_at) values ('ai', now() - interval '1 day')")
    settled(filled, trusted=False)
    _repair(filled)
    run(filled, "delete from {source} where note = 'event 20'")
    assert pending(filled) == 1
    settled(filled)


def test_source_dropped(filled: Database) -> None:
    """Without its source nothing can be exact: status says so, reads fail, and detach cleans up for another attach."""
    filled.execute(f"drop table {filled.source} cascade")
    assert f"the source table {filled.source} is gone" in str(doubt(filled))
    assert any("is gone" in str(problem) for problem in read_status(filled.own, filled.settings).problems)
    with pytest.raises(psycopg.errors.UndefinedTable):
        filled.execute("select * from usage.by_collection('-infinity')")
    with pytest.raises((psycopg.Error, AggregatorError)):
        filled.refresh()
    assert capture.detach(filled.own, filled.settings)
    assert filled.scalar("select count(*) from usage.daily") == 0
    filled.execute(
        f"create table {filled.source} (id bigserial primary key, collection_id uuid, resource_type text, detail jsonb,"
        f" created_at timestamptz, note text); create index on {filled.source} (created_at)"
    )
    filled.attach()
    fill(filled)
    settled(filled)


ROLLUPS = ("daily", "monthly", "daily_collection", "monthly_collection", "daily_total", "quarterly_collection")


def bucket_of(rollup: str) -> str:
    """Return the name of a rollup's bucket."""
    return (fold.FACTS | fold.QUARTERLY_FACTS).get(rollup, "day")


def table_of(rollup: str) -> str:
    """Return the table that holds a rollup: all but daily_total are kept by the numbers of their keys."""
    return "usage.daily_total" if rollup == "daily_total" else f"usage.{rollup}_fact"


@pytest.mark.parametrize("rollup", some(ROLLUPS, 2))
@pytest.mark.parametrize("damage", ["changed", "deleted", "invented", "emptied"])
def test_corrupted_rollup(plain: Database, rollup: str, damage: str) -> None:
    """verify names a rollup row that is wrong, missing or invented; --repair mends exactly that and records it."""
    bucket = bucket_of(rollup)
    table, key, of_key = table_of(rollup), "key_id", "(select min(id) from usage.key where resource_type = 'invented')"
    if rollup == "daily_total":
        key, of_key = "resource_type", "'invented'"
    plain.execute(
        "insert into usage.key (id, resource_type, collection_key) select max(id) + 1, 'invented', max(id) + 1 from usage.key"
    )
    plain.execute(
        {
            "changed": f"update {table} set total_value = total_value + 0.001, event_count = event_count + 2"
            f" where ctid = (select min(ctid) from {table})",
            "deleted": f"delete from {table} where ctid = (select max(ctid) from {table})",
            "invented": f"insert into {table} ({bucket}, {key}, event_count, total_value, secondary_value, rejected_count)"
            f" values ('2020-01-01', {of_key}, 1, 2, 3, 4)",
            "emptied": f"delete from {table}",
        }[damage]
    )
    found = plain.verify()
    assert found.differences > 0
    # A month is compared with its days: a wrong day is not also a wrong month.
    assert {difference.rollup for difference in found.shown} == {rollup}
    assert found.differences == len(found.shown)
    if damage == "changed":
        assert [(d.event_count, str(d.total_value)) for d in found.shown] == [(-2, "-0.001")]
    if damage == "invented":
        assert [(d.bucket, d.resource_type, d.event_count, d.rejected_count) for d in found.shown] == [
            ("2020-01-01", "invented", -1, -4)
        ]
    repaired = plain.verify(repair=True)
    assert repaired.differences == found.differences
    rows = plain.execute("select rollup, count(*) from usage.restatement where reason = 'repaired' group by 1")
    assert rows == [(rollup, found.differences)]
    settled(plain)


@pytest.mark.parametrize("rollup", some(ROLLUPS, 2))
@pytest.mark.parametrize("to", ["elsewhere", "infinity", "-infinity"])
def test_row_in_another_bucket(plain: Database, rollup: str, to: str) -> None:
    """A rollup row that was moved is found where it is and where it ought to be, and counts once after the repair."""
    bucket, table = bucket_of(rollup), table_of(rollup)
    if bucket != "day":
        with pytest.raises(psycopg.errors.CheckViolation):
            plain.execute(f"update {table} set {bucket} = {bucket} + 9")
        plain.execute(f"alter table {table} drop constraint {rollup}_fact_{bucket}")
    # A row of the first bucket, to where there is none like it.
    target = f"{bucket} {'-' if bucket == 'day' else '+'} 9" if to == "elsewhere" else f"'{to}'"
    plain.execute(
        f"update {table} set {bucket} = {target} where ctid = (select ctid from {table} order by {bucket} limit 1)"
    )
    found = plain.verify()
    assert {difference.rollup for difference in found.shown} == {rollup}
    plain.compare()
    assert plain.verify(repair=True).trusted
    settled(plain)
    assert plain.scalar(f"select count(*) from usage.{rollup} where not isfinite({bucket})") == 0


def test_repair_of_some_days_leaves_the_rest(plain: Database) -> None:
    """A repair of a range of days mends those only, and does not turn trust on."""
    plain.execute(
        "update usage.daily_fact set total_value = total_value + 1; update usage.state set trusted = false, distrust_reason = 'test'"
    )
    day = plain.scalar("select max(day)::text from usage.daily where day < current_date - 3")
    upper = plain.scalar("select (%s::date + 1)::text", (day,))
    plain.verify(repair=True, since=day, until=upper)
    left = plain.verify()
    assert left.differences > 0
    assert day not in {d.bucket for d in left.shown if d.rollup == "daily"}
    assert not left.trusted
    plain.compare()
    assert plain.verify(repair=True).trusted
    settled(plain)


def _redefine(db: Database, key: str) -> None:
    db.execute("update usage.metric set value_key = %s where resource_type = 'tts'", (key,))


def _tts(db: Database, key: str) -> tuple[Any, Any]:
    """Return the sum of tts by the read function, and raw, in one snapshot."""
    return db.execute(
        "select (select sum(total_value) from usage.by_collection('-infinity') where resource_type = 'tts'),"
        f" (select sum((detail ->> %s)::numeric)::float8 from {db.source} where resource_type = 'tts')",
        (key,),
    )[0]


def test_redefined_metric(filled: Database) -> None:
    """A changed metric turns trust off; answers go by the new definition at once; repair makes the rollups follow."""
    _redefine(filled, "size_bytes")
    assert "a metric was changed" in str(doubt(filled))
    ours, raw = _tts(filled, "size_bytes")
    assert ours == raw
    filled.refresh()
    ours, raw = _tts(filled, "size_bytes")
    assert ours == raw
    assert filled.verify(repair=True).trusted
    ours, raw = _tts(filled, "size_bytes")
    assert ours == raw
    _redefine(filled, "characters")
    assert doubt(filled) is not None
    filled.compare()
    assert filled.verify(repair=True).trusted
    settled(filled)


def _interrupt(db: Database, statement: str) -> verify.VerifyResult:
    """Repair everything, and run a statement when the first month is done."""
    todo = [statement]

    def between(_progress: verify.VerifyProgress) -> None:
        if todo:
            run(db, todo.pop())

    result = db.verify(repair=True, progress=between)
    assert not todo
    return result


def test_metric_redefined_during_a_repair(plain: Database) -> None:
    """A repair that a new definition overtakes does not turn trust on for the months it did by the old one."""
    for first in (False, True):
        if first:
            _redefine(plain, "characters")
        key = "size_bytes" if not first else "tokens_in"
        result = _interrupt(plain, f"update usage.metric set value_key = '{key}' where resource_type = 'tts'")
        assert not result.trusted
        ours, raw = _tts(plain, key)
        assert ours == raw
    assert plain.verify(repair=True).trusted
    ours, raw = _tts(plain, "tokens_in")
    assert ours == raw


def test_gap_during_a_repair(filled: Database) -> None:
    """A repair during which capture had a gap, closed by attach, does not turn trust on."""
    filled.execute("update usage.state set trusted = false, distrust_reason = 'a test says so'")

    todo = [True]

    def between(_progress: verify.VerifyProgress) -> None:
        if todo:
            todo.pop()
            run(filled, "alter table {source} disable trigger user; " + UNSEEN)
            with connect(filled.settings) as other:
                capture.attach(other, filled.settings)

    result = filled.verify(repair=True, progress=between)
    assert not todo
    assert not result.trusted
    settled(filled, trusted=False)
    _repair(filled)


def test_truncate_during_a_repair(filled: Database) -> None:
    """A repair that a TRUNCATE overtakes stops and says what to do; trust is not on until it was run again."""
    filled.execute("update usage.state set trusted = false, distrust_reason = 'a test says so'")
    with pytest.raises(AggregatorError, match="run aggregator refresh first"):
        _interrupt(filled, "truncate {source}")
    filled.compare()
    filled.refresh()
    filled.compare()
    assert doubt(filled) is not None
    assert filled.verify(repair=True).trusted
    settled(filled)


def test_a_stop_is_heard_while_a_refresh_repairs(filled: Database) -> None:
    """A repair of all days inside a refresh ends between two chunks; the next refresh finishes it."""
    filled.refresh()
    filled.execute("select setval('usage.frontier_seq', 1)")
    chunks = filled.verify().chunks
    assert chunks > 1
    done = "select count(*) from usage.verification where repaired"

    def check() -> None:
        if filled.scalar(done):
            raise Stopped

    with pytest.raises(Stopped):
        refresh.refresh(filled.own, filled.settings, check=check)
    assert filled.scalar(done) == 1
    filled.compare()
    filled.refresh()
    assert filled.scalar("select usage.doubt()") is None
    filled.compare()
