"""Sources without triggers: the weaker promise, as it is stated, on a view, a foreign table and a plain table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from psycopg import conninfo, sql

from aggregator import (
    capture,
    hourly,
    lookback,
    nightly,
    purge,
    rebuild,
    refresh,
    seal,
    status,
    step,
    usage_overview,
    verify,
)
from aggregator.errors import UsageError
from tests.harness import Database, Hooked, Mismatch, compare, snapshot, some
from tests.integration.sources import PARTITIONED_DDL, fill

LATE = "capture is lookback: a late change of the last 3 days appears at the next refresh, an older one at aggregator verify --repair"

KINDS = some(["view", "plain", "foreign", "partitioned"], 2)


def _view(db: Database) -> None:
    db.execute(
        "create table public.raw_a (like public.resource_usage_log);"
        "create table public.raw_b (like public.resource_usage_log); alter table public.raw_b alter id drop not null;"
        "create view public.looked as select * from public.raw_a where note is distinct from 'hidden'"
    )


def _foreign(db: Database) -> None:
    if not db.scalar("select count(*) from pg_available_extensions where name = 'postgres_fdw'"):
        pytest.skip("this server has no postgres_fdw")
    there = conninfo.conninfo_to_dict(db.dsn)
    options = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(name), sql.Literal(there[name]))
        for name in ("host", "port", "dbname")
        if name in there
    )
    who = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(name), sql.Literal(there[name]))
        for name in ("user", "password")
        if name in there
    )
    db.execute("create extension postgres_fdw")
    db.connection.execute(sql.SQL("create server loop foreign data wrapper postgres_fdw options ({})").format(options))
    db.connection.execute(sql.SQL("create user mapping for current_user server loop options ({})").format(who))
    db.execute(
        "create table public.far (like public.resource_usage_log);"
        "create index on public.far (created_at);"
        "create foreign table public.looked (id bigint, collection_id uuid, resource_type text, detail jsonb,"
        " created_at timestamptz, note text) server loop options (table_name 'far')"
    )


def _plain(db: Database) -> None:
    db.execute(
        "create table public.looked (like public.resource_usage_log); create index on public.looked (created_at)"
    )


def _partitioned(db: Database) -> None:
    db.execute(PARTITIONED_DDL + "; alter table public.events rename to looked")


MAKE: dict[str, Callable[[Database], None]] = {
    "view": _view,
    "foreign": _foreign,
    "plain": _plain,
    "partitioned": _partitioned,
}


def made(new_database: Any, kind: str, *, zone: str = "UTC", **settings: Any) -> Database:
    """A database with a source of a kind, filled with events of the last 32 days; not attached."""
    db: Database = new_database(
        zone=zone, **{"source_table": "public.looked", "capture": "lookback", "lookback_grace": 0, **settings}
    )
    MAKE[kind](db)
    if kind in {"view", "foreign"}:
        db.execute(f"alter table public.{'raw_a' if kind == 'view' else 'far'} alter id drop not null")
    if kind == "plain":
        db.execute("alter table public.looked alter id drop not null")
    fill(db)
    return db


@pytest.fixture(params=KINDS)
def looked(request: pytest.FixtureRequest, new_database: Any) -> Database:
    """A source of each kind, attached by lookback and refreshed."""
    db = made(new_database, request.param)
    db.attach()
    db.compare()
    db.refresh()
    return db


def _change(db: Database, day: str, how: str) -> None:
    """Change events of days ago in each way."""
    if how in {"insert", "all"}:
        db.insert(day, "tts", 2, '{"characters": 11}')
    if how in {"update", "all"}:
        db.execute(
            "update public.looked set detail = '{\"characters\": 4711.5}', resource_type = 'tts',"
            " created_at = created_at + interval '1 minute'"
            " where created_at = (select min(created_at) from public.looked where created_at > %s::timestamptz)",
            (day,),
        )
    if how in {"delete", "all"}:
        db.execute(
            "delete from public.looked where created_at = (select min(created_at) from public.looked where created_at >= %s::timestamptz)",
            (day,),
        )


def _ago(db: Database, days: float) -> str:
    return str(db.scalar("select (now() - %s * interval '1 day')::text", (days,)))


def _compare_windows(db: Database, *windows: Any) -> None:
    """Compare windows, and not the live views, which have no window."""
    with snapshot(db.connection):
        compare(db.connection, db.zone, list(windows), source=db.source, live=False)


def _receipt(db: Database, since: str, until: str | None = None) -> tuple[bool, list[str]]:
    row = db.execute("select exact, reasons from usage.receipt(%s::timestamptz, %s::timestamptz)", (since, until))[0]
    return row[0], row[1]


@pytest.mark.parametrize("kind", ["foreign", "view"])
def test_several_jobs(new_database: Any, kind: str) -> None:
    """Also where the source is a foreign table, which cannot be locked, or a view."""
    db = made(new_database, kind, step_events=5)
    db.attach()
    assert db.refresh(jobs=3).events == 60
    db.compare()


def test_the_promise(looked: Database) -> None:
    """Late changes within the lookback: unseen, and said so; seen from the next refresh on. Older ones at verify --repair."""
    db = looked
    db.compare()
    for how in ("insert", "update", "delete"):
        _change(db, _ago(db, 1.5), how)
        with pytest.raises(Mismatch):
            db.compare()
        assert _receipt(db, "-infinity") == (False, [LATE])
        db.refresh()
        db.compare()
        assert _receipt(db, "-infinity") == (False, [LATE])
    assert db.scalar("select array_agg(distinct reason) from usage.restatement") == ["late"]

    _change(db, _ago(db, 12), "all")
    db.refresh()
    with pytest.raises(Mismatch):
        db.compare()
    _compare_windows(db, ("now-3", None, None), ("now-1", None, None))
    assert db.verify(repair=True).differences > 0
    db.compare()
    assert db.verify().differences == 0


def test_the_tail_is_live_and_exact(looked: Database) -> None:
    """A window from the frontier on misses nothing; nor does one that is read raw, within one day."""
    db = looked
    frontier = db.scalar("select frontier::text from usage.state")
    db.insert("now", "tts", 2, '{"characters": 11}')
    db.insert(_ago(db, -2), "tts", 2, '{"characters": 13}')
    _change(db, _ago(db, 1.5), "insert")
    _compare_windows(db, (frontier, None, None))
    assert _receipt(db, frontier) == (True, [])
    noon = db.scalar("select (date_trunc('day', now()) - interval '36 hours')::text")
    later = db.scalar("select (date_trunc('day', now()) - interval '35 hours')::text")
    db.insert(noon, "tts", 2, '{"characters": 17}')
    db.days_only()
    assert _receipt(db, noon, later) == (True, [])
    _compare_windows(db, (noon, later, None))
    # By hours it would miss the change, and says so.
    hourly.turn_on(db.own)
    hourly.fill(db.own, db.settings)
    db.insert(noon, "tts", 2, '{"characters": 19}')
    exact, reasons = _receipt(db, noon, later)
    assert not exact
    assert [reason.partition(":")[0] for reason in reasons] == ["capture is lookback"]
    db.refresh()
    _compare_windows(db, (noon, later, None))


def test_in_one_snapshot(new_database: Any) -> None:
    """Whatever commits between the repair and the fold is seen by the next refresh, on whichever side of midnight it is."""
    db = made(new_database, "plain")
    db.attach()
    db.refresh()
    change = _ago(db, 3)  # the oldest instant that the promise is about, at any time of day
    hooks = {step.SQL["nth_event"]: lambda: _change(db, change, "insert")}
    refresh.refresh(Hooked(db.own, hooks), db.settings)  # type: ignore[arg-type]
    assert not hooks
    with pytest.raises(Mismatch):
        db.compare()
    db.refresh()
    db.compare()


def test_the_frontier_is_chosen_before_the_repair(new_database: Any) -> None:
    """Or a change in between, of the first day of the lookback, could be lost at midnight."""
    db = made(new_database, "plain")
    db.attach()
    db.refresh()
    repaired: list[Any] = []
    hooks = {verify.SQL["bounds"]: lambda: repaired.append(db.scalar("select clock_timestamp()"))}
    refresh.refresh(Hooked(db.own, hooks), db.settings)  # type: ignore[arg-type]
    assert db.scalar("select frontier from usage.state") < repaired[0]
    assert db.settings.lag_limit == 3 * db.settings.refresh_every


def test_days_are_counted_from_the_last_refresh(new_database: Any) -> None:
    """No refresh for a week: what was changed right after the last one, of days 3 days back from it, is seen all the same."""
    db = made(new_database, "plain")
    db.attach()
    db.refresh()
    # As if that had been 7 days ago: a frontier there, and rollups up to it.
    db.execute("update public.looked set created_at = created_at - interval '7 days'")
    db.verify(repair=True)
    db.execute("update usage.state set frontier = frontier - interval '7 days'")
    db.compare()
    _change(db, _ago(db, 10), "all")
    db.refresh()
    db.compare()


def test_a_writer_that_commits_within_the_grace_is_never_missed(new_database: Any) -> None:
    """The frontier stays behind the clock by the grace; without it the event is missed until the next refresh."""
    for grace, seen in ((60, True), (0, False)):
        db = made(new_database, "plain", lookback_grace=grace)
        db.attach()
        writer = db.connect(autocommit=False)
        writer.execute(b"insert into public.looked (resource_type, detail, created_at) values ('ai', '{}', now())")
        result = db.refresh()
        assert result.status == "done", "nobody is waited for"
        writer.commit()
        if seen:
            db.compare()
        else:
            with pytest.raises(Mismatch):
                db.compare()
            db.refresh()
            db.compare()


def test_truncate_and_partitions_are_late_changes_too(new_database: Any) -> None:
    """No trust is lost over a TRUNCATE, a rewrite or a partition: the last days follow, the rest at verify --repair."""
    db = made(new_database, "partitioned")
    db.attach()
    db.refresh()
    db.execute(
        "create table public.extra (like public.looked); insert into public.extra select * from public.looked limit 3"
    )
    db.execute("update public.extra set created_at = now() + interval '40 days'")
    db.execute(
        "alter table public.looked attach partition public.extra for values from (now() + interval '35 days') to ('infinity')"
    )
    db.execute("truncate public.events_new")
    db.refresh()
    _compare_windows(db, ("now-3", None, None))
    assert db.scalar("select usage.doubt()") is None
    db.execute("truncate public.looked")
    db.refresh()
    _compare_windows(db, ("now-3", None, None))
    assert db.verify(repair=True).differences > 0
    db.compare()
    assert db.scalar("select count(*) from usage.daily") == 0


def test_another_relation_of_that_name(new_database: Any) -> None:
    """A view made anew, or dropped, is noticed by reads at once; attach and verify --repair follow it."""
    db = made(new_database, "view")
    db.attach()
    db.refresh()
    db.execute("drop view public.looked; create view public.looked as select * from public.raw_b")
    db.insert(_ago(db, 20), "tts", 2, '{"characters": 17}')
    db.compare()
    assert "another relation bears the name public.looked" in db.scalar("select usage.doubt()")
    db.refresh()
    db.compare()
    assert db.attach().changed
    db.compare()
    assert db.verify(repair=True).trusted
    db.compare()
    assert _receipt(db, "-infinity") == (False, [LATE])
    db.execute("drop view public.looked")
    assert "is gone" in db.scalar("select usage.doubt()")


def test_a_view_over_two_tables(new_database: Any) -> None:
    """That cannot be written: all the same, and purge refuses it in one line."""
    db = made(new_database, "view")
    db.execute(
        "drop view public.looked; create view public.looked as select * from public.raw_a union all select * from public.raw_b"
    )
    db.attach()
    db.refresh()
    db.execute("insert into public.raw_b select * from public.raw_a where created_at > now() - interval '2 days'")
    db.refresh()
    db.compare()
    with pytest.raises(
        UsageError, match=r"events cannot be deleted from public\.looked: delete them where they are kept"
    ):
        purge.purge(db.own, db.settings, "10d")
    day = db.scalar("select (current_date - 10)::text")
    seal.seal(db.own, db.settings, day)
    db.execute("delete from public.raw_a where created_at < %s::date", (day,))
    db.refresh()
    before = db.scalar("select sum(event_count) from usage.by_collection('-infinity')")
    assert before > db.scalar("select count(*) from public.looked")
    assert db.verify(repair=True).differences == 0
    assert db.scalar("select sum(event_count) from usage.by_collection('-infinity')") == before


def test_purge(looked: Database) -> None:
    """Where events can be deleted they are, with their history kept; not those that changes are still awaited of."""
    db = looked
    with pytest.raises(UsageError, match=r"--keep 3d: each refresh looks back 3 days for late changes, so keep more"):
        purge.purge(db.own, db.settings, "3d")
    before = db.execute("select * from usage.by_collection('-infinity')")
    assert purge.purge(db.own, db.settings, "10d").events > 0
    assert db.scalar("select count(*) from public.looked where created_at < current_date - 10") == 0
    assert db.execute("select * from usage.by_collection('-infinity')") == before
    _change(db, _ago(db, 1.5), "all")
    db.refresh()
    _compare_windows(db, ("now-9", None, None))


def test_nightly_follows_what_it_verifies(looked: Database) -> None:
    """Late changes of the last AGGREGATOR_VERIFY_DAYS and of the random older day are folded; trust stays on."""
    db = looked
    _change(db, _ago(db, 5.5), "all")
    found = nightly.run(db.own, db.settings)
    assert found.errors == []
    assert found.differences > 0
    db.compare()
    assert status.read_status(db.own, db.settings).problems == ()


def test_nightly_does_not_follow_a_retention(looked: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of older days a difference turns trust off: somebody's retention must not empty the rollups unseen."""
    db = looked
    day = db.scalar("select day::text from usage.daily where day < current_date - 20 order by day limit 1")
    monkeypatch.setitem(
        nightly.SQL, "random_day", f"select '{day}', ('{day}'::date + 1)::text where %(before)s::date is not null"
    )
    history = db.scalar("select sum(event_count) from usage.daily_total")
    db.execute("delete from public.looked where created_at < current_date - 20")
    found = nightly.run(db.own, db.settings)
    assert len(found.errors) == 1
    assert "run aggregator verify --repair" in found.errors[0]
    assert db.scalar("select sum(event_count) from usage.daily_total") == history
    db.compare()


def test_verify_without_repair_turns_trust_off(looked: Database) -> None:
    """As ever: the answers are right at once, and slow."""
    db = looked
    _change(db, _ago(db, 12), "insert")
    assert db.verify().differences > 0
    db.compare()
    assert [problem.code for problem in status.read_status(db.own, db.settings).problems] == ["untrusted"]
    db.verify(repair=True)
    db.compare()
    assert status.read_status(db.own, db.settings).problems == ()


def test_status_and_receipts_say_so(new_database: Any) -> None:
    """status, and the Python receipt."""
    db = made(new_database, "view", lookback="2w")
    db.attach()
    db.refresh()
    found = status.read_status(db.own, db.settings)
    assert (found.capture, found.lookback_days, found.problems) == ("lookback", 14, ())
    assert dict(found.lines())["capture"].startswith("lookback: each refresh repairs the last 14 days")
    overview = usage_overview(db.connection, days=30)
    assert not overview.receipt.exact
    assert "late change of the last 14 days" in overview.receipt.reasons[0]


def test_a_metric_changed_and_a_frontier_reset(looked: Database) -> None:
    """Rebuild and rebuild --reset-frontier do here what they do with triggers."""
    db = looked
    db.execute("update usage.metric set value_key = 'tokens_out' where resource_type = 'tts'")
    assert "a metric was changed" in db.scalar("select usage.doubt()")
    rebuild.rebuild(db.own, db.settings)
    assert db.scalar("select usage.doubt()") is None
    db.execute("update usage.metric set value_key = 'characters' where resource_type = 'tts'")
    rebuild.rebuild(db.own, db.settings)
    db.insert(_ago(db, -1), "tts", 1, '{"characters": 3}')
    db.execute("update usage.state set frontier = now() + interval '2 days'")
    db.execute("select setval('usage.frontier_seq', (extract(epoch from frontier) * 1000000)::bigint) from usage.state")
    db.verify(repair=True)
    db.compare()
    _change(db, _ago(db, -1.5), "insert")
    rebuild.reset_frontier(db.own)
    db.refresh()
    db.compare()


def test_attach_again_and_another_mode(new_database: Any) -> None:
    """Another lookback at once; another mode after detach."""
    db = made(new_database, "plain")
    assert db.attach().lookback_days == 3
    db.refresh()
    assert not db.attach().changed
    unset = db.settings.model_copy()
    unset.model_fields_set.discard("capture")
    unset.capture = None
    unset.model_fields_set.discard("capture")
    assert not capture.attach(db.own, unset).changed, "as it is attached"
    db.settings.lookback = "5d"
    assert db.attach().changed
    assert not capture.attach(db.own, unset).changed
    assert db.scalar("select (capture_mode, lookback_days)::text from usage.state") == "(lookback,5)"
    assert db.scalar("select usage.doubt()") is None
    triggers = db.settings.model_copy(update={"capture": "triggers"})
    with pytest.raises(
        UsageError, match=r"is attached by lookback: run aggregator detach first, then attach --capture triggers"
    ):
        capture.attach(db.own, triggers)
    capture.detach(db.own, db.settings)
    triggers.model_fields_set.discard("lookback")
    assert capture.attach(db.own, triggers).lookback_days is None
    db.refresh()
    _change(db, _ago(db, 12), "all")
    db.compare()
    assert _receipt(db, "-infinity") == (True, [])
    with pytest.raises(UsageError, match=r"is attached by triggers: run aggregator detach first"):
        db.attach()


@pytest.mark.parametrize(
    ("kind", "message"),
    [("view", r"public\.looked is a view, which can have no triggers: attach it with --capture lookback"),
     ("foreign", r"public\.looked is a foreign table, which can have no triggers: attach it with --capture lookback")],
)  # fmt: skip
def test_refused_without_lookback(new_database: Any, kind: str, message: str) -> None:
    db = made(new_database, kind, capture="triggers")
    with pytest.raises(UsageError, match=message):
        db.attach()


def test_refused_with_lookback(new_database: Any) -> None:
    """What is no source at all, in one line."""
    db = made(new_database, "view")
    db.execute("create view public.lacking as select created_at, detail from public.looked")
    db.execute("create materialized view public.stored as select * from public.looked")
    db.execute("create table public.unindexed (like public.looked)")
    for name, message in {
        "public.lacking": "has no column collection_id",
        "public.stored": "is a materialized view: only a table",
        "public.unindexed": "has no index that leads with created_at",
    }.items():
        with pytest.raises(UsageError, match=message):
            capture.attach(db.own, db.settings.model_copy(update={"source_table": name}))


# Break it on purpose: each of these must be caught -------------------------------------------------------------------


def test_mutation_no_repair(looked: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookback, "repair", lambda *_args, **_options: [])
    with pytest.raises((AssertionError, Mismatch)):
        test_the_promise(looked)


def test_mutation_days_from_today(new_database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    query = lookback.SQL["first_day"].replace(
        "usage.local_day(s.frontier, s.time_zone) - s.", "usage.local_day(now(), s.time_zone) - s."
    )
    assert query != lookback.SQL["first_day"]
    monkeypatch.setitem(lookback.SQL, "first_day", query)
    with pytest.raises(Mismatch):
        test_days_are_counted_from_the_last_refresh(new_database)


def test_mutation_no_reason(looked: Database) -> None:
    looked.execute(
        "create or replace function usage.lookback_reason(first_day date) returns text language sql stable as 'select null::text'"
    )
    with pytest.raises(AssertionError):
        test_the_promise(looked)
