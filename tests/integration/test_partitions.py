"""Partitions that leave while a refresh runs, in its steps and between them, also CONCURRENTLY: every answer stays exact."""

from __future__ import annotations

from contextlib import suppress

import psycopg
import pytest

from aggregator import fold, hourly, rebuild, refresh, step, verify
from aggregator.db import connect
from tests.harness import Database, Hooked, snapshot, waits
from tests.integration.sources import Background, await_true, bound, doubt, fill, pending, run, settled

DETACH = "alter table public.events detach partition public.events_old"
HOWS = {"detach": DETACH, "concurrently": f"{DETACH} concurrently", "drop": "drop table public.events_old"}

how_it_leaves = pytest.mark.parametrize("how", list(HOWS.values()), ids=list(HOWS))


def _is_pending(db: Database) -> bool:
    return bool(db.scalar("select exists (select from pg_inherits where inhdetachpending)"))


def _leaves(db: Database, how: str) -> Background:
    """Let the partition leave in a session of its own, which may have to wait for ours."""
    host = db.connect()
    host.execute(b"set lock_timeout = '60s'")
    return Background(lambda: host.execute(how.encode()))


def _follow(db: Database) -> None:
    """The operator follows what happened, and trust is back."""
    db.compare()
    assert "is gone" in str(doubt(db))
    assert db.verify(repair=True).trusted
    settled(db)


@how_it_leaves
def test_a_partition_leaves_between_two_steps(partitioned: Database, how: str) -> None:
    """What it brought was folded a step before: it is in doubt at once, and the refresh goes on to its end."""
    run(partitioned, "truncate {source}")
    fill(partitioned)
    steps = 0

    def between(progress: refresh.Progress) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:  # the first one clears the rollups
            assert progress.events > 0
            _leaves(partitioned, how).join()
            assert "is gone" in str(doubt(partitioned))
        partitioned.compare()

    result = refresh.refresh(
        partitioned.own, partitioned.settings.model_copy(update={"step_events": 7}), progress=between
    )
    assert result.status == "done"
    assert steps > 4
    _follow(partitioned)


@how_it_leaves
def test_a_partition_leaves_during_a_step(partitioned: Database, how: str) -> None:
    """The step reads what its snapshot has; the host waits for it, or (CONCURRENTLY) is half done meanwhile."""
    run(partitioned, "insert into {source} (resource_type, created_at) values ('ai', clock_timestamp())")
    run(partitioned, "delete from {source} where note in ('event 3', 'event 50')")
    leaving: list[Background] = []

    def leaves() -> None:
        leaving.append(_leaves(partitioned, how))
        if how.endswith("concurrently"):
            await_true(lambda: _is_pending(partitioned), "the first half")
        else:
            await_true(
                lambda: partitioned.scalar(waits("relation = 'public.events'::regclass")),
                "the host, which waits for the step",
            )
        assert leaving[0].alive

    hooked = Hooked(partitioned.own, {step.SQL["nth_event"]: leaves})
    assert refresh.refresh(hooked, partitioned.settings).status == "done"  # type: ignore[arg-type]
    leaving[0].join()
    _follow(partitioned)


def test_a_partition_that_is_half_detached(partitioned: Database) -> None:
    """DETACH … CONCURRENTLY that waits for a reader, was cancelled, and is finished later: exact at each stage."""
    reader = partitioned.connect()
    with snapshot(reader):
        before = reader.execute(b"select count(*) from public.events").fetchone()
        host = partitioned.connect()
        leaving = Background(lambda: host.execute(HOWS["concurrently"].encode()))
        await_true(lambda: _is_pending(partitioned), "the first half")
        assert "is gone" in str(doubt(partitioned))
        partitioned.compare()
        partitioned.refresh()
        partitioned.compare()
        # A reader of before sees the partition until it ends: ours as well as the raw query.
        assert reader.execute(b"select count(*) from public.events").fetchone() == before
        counted = reader.execute(b"select sum(event_count) from usage.by_collection('-infinity')").fetchone()
        assert counted == before
        host.cancel()
        with pytest.raises(psycopg.errors.QueryCanceled):
            leaving.join()
    assert _is_pending(partitioned)
    assert partitioned.verify(repair=True).trusted
    settled(partitioned)
    # Its triggers are there still: what is written to it is none of the source's, and comes and goes.
    partitioned.execute("delete from public.events_old where note in ('event 50', 'event 51')")
    partitioned.compare()
    partitioned.refresh()
    partitioned.compare()
    partitioned.execute(f"{DETACH} finalize")
    partitioned.compare()
    assert pending(partitioned) == 0
    assert partitioned.verify(repair=True).trusted
    settled(partitioned)


def test_a_partition_is_made_for_every_step(partitioned: Database) -> None:
    """A host that makes, fills, detaches and drops partitions between all steps of a refresh meets no error, nor do we."""
    run(partitioned, "truncate {source}")
    fill(partitioned)
    steps = 0

    def between(_progress: refresh.Progress) -> None:
        nonlocal steps
        steps += 1
        if steps % 2:
            partitioned.execute("select public.add_partition('events_ancient', 400, 300)")
            run(
                partitioned,
                "insert into {source} (resource_type, created_at) values ('ai', now() - interval '350 days')",
            )
        else:
            with suppress(psycopg.errors.UndefinedTable):
                partitioned.execute("alter table public.events detach partition public.events_ancient concurrently")
                partitioned.compare()
                partitioned.execute("drop table public.events_ancient")
        partitioned.compare()

    refresh.refresh(partitioned.own, partitioned.settings.model_copy(update={"step_events": 7}), progress=between)
    assert steps > 4
    partitioned.compare()
    partitioned.refresh()
    if doubt(partitioned) is not None:
        assert partitioned.verify(repair=True).trusted
    settled(partitioned)


LEAVE = "alter table public.events detach partition public.events_new"


def without(db: Database) -> str:
    """Take a partition away, follow it, and return the statement that brings it back."""
    come = f"alter table public.events attach partition public.events_new {bound(db, 'public.events_new')}"
    db.execute(LEAVE)
    db.attach()
    assert db.verify(repair=True).trusted
    return come


@pytest.mark.parametrize("folded", [False, True])
def test_a_partition_comes_and_goes_during_a_repair(
    partitioned: Database, folded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fingerprint afterwards is that of before, but its events were read, by the repair or by a refresh: no trust."""
    db = partitioned
    if folded:  # by a refresh that had looked before
        db.execute(
            "insert into public.events (resource_type, detail, created_at) values ('tts', '{\"characters\": 3}', now())"
        )
        monkeypatch.setattr(refresh, "_mend", lambda *_: [])
    come = without(db)
    settled(db)
    db.execute("update usage.state set trusted = false, distrust_reason = 'a test says so'")
    chunks = db.verify().chunks
    came, left, looked_at = False, False, 0

    def between(progress: verify.VerifyProgress) -> None:
        nonlocal came, left, looked_at
        looked_at += 1
        if not came and looked_at == (chunks if folded else 1):
            db.execute(come)
            came = True
            if folded:
                with connect(db.settings) as other:
                    refresh.refresh(other, db.settings)
        if came and not left and (folded or progress.differences):
            db.execute(LEAVE)
            left = True

    result = db.verify(repair=True, progress=between)
    assert left
    db.compare()
    assert not result.trusted
    assert db.verify(repair=True).trusted
    settled(db)


def test_a_partition_comes_and_goes_during_a_fill(partitioned: Database) -> None:
    """As during a repair: what was read of it is not kept, though the fingerprint tells nothing afterwards."""
    db = partitioned
    db.days_only()
    come = without(db)
    hourly.turn_on(db.own)
    hooks = {hourly.SQL["newest"]: lambda: db.execute(come)}  # after the fill has asked for doubts
    filled = hourly.fill(Hooked(db.own, hooks), db.settings)  # type: ignore[arg-type]
    assert not hooks
    db.compare()
    db.execute(LEAVE)
    hours = [str(db.scalar("select (now() - make_interval(hours => %s))::text", (120 + 3 * n,))) for n in range(8)]
    db.compare([(hour, None, None) for hour in hours])
    assert not filled.done
    assert hourly.fill(db.own, db.settings).done
    settled(db)


def test_a_partition_comes_and_goes_during_a_reset_of_the_frontier(partitioned: Database) -> None:
    """As during a repair: what was taken out of the rollups for its events was never in them."""
    db = partitioned
    db.execute("insert into public.events (resource_type, created_at) values ('ai', now() + interval '1 day')")
    come = without(db)
    db.execute("select setval('usage.frontier_seq', (extract(epoch from timestamptz '2099-01-01') * 1e6)::bigint)")
    settled(db)
    hooks = {fold.SQL["create_delta"]: lambda: db.execute(come)}  # after the reset has asked for doubts
    rebuild.reset_frontier(Hooked(db.own, hooks))  # type: ignore[arg-type]
    assert not hooks
    db.compare()
    db.execute(LEAVE)
    db.compare()
    assert db.verify(repair=True).trusted
    settled(db)


def test_hours_are_filled_after_a_refresh_has_seen_a_new_partition(partitioned: Database) -> None:
    """Be it empty: until then a fill ends with nothing done, at once."""
    db = partitioned
    db.days_only()
    db.execute("select public.add_partition('events_next', -30, -60)")
    hourly.turn_on(db.own)
    assert not hourly.fill(db.own, db.settings).done
    settled(db)
    assert hourly.fill(db.own, db.settings).done
    settled(db)
