"""What the rollups cost: the first build, refreshes, verify, storage."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from aggregator import verify
from benchmarks.data import EVERYTHING, Database, Server, if_fits
from benchmarks.measure import DifferentError, Recorder, milliseconds
from benchmarks.peers import Peer
from benchmarks.reads import READS
from benchmarks.results import HOURLY, RAW, RAW_ONE, RAW_TABLE, ROLLUPS, TENTH, TWO_JOBS, Measurement
from benchmarks.sql import load

SQL = load("storage")


def raw_pass(database: Database, *, one_process: bool) -> float:
    """Return the milliseconds of the raw query over everything: as the server likes it, or in one process."""
    with database.connection.transaction():
        if one_process:
            database.connection.execute(READS["one_process"])
        return milliseconds(lambda: database.connection.execute(READS["raw_by_collection"], EVERYTHING).fetchall())


def build(
    record: Recorder, server: Server, full: Database, tenth: Database, hourly: Database | None, peers: list[Peer]
) -> None:
    """First build of all rollups, beside passes of the raw query over the same rows, and beside others' builds."""

    def anew(jobs: int) -> float:
        # In a database of its own: detach would leave the room that its rows took.
        fresh = server.create("fresh", copy_of="source")
        try:
            fresh.attach()
            return _built(fresh, lambda: fresh.refresh(jobs))
        finally:
            fresh.connection.close()
            server.drop("fresh")

    found: dict[str, list[float]] = {ROLLUPS: []}

    def once(name: str, database: Database, work: Callable[[], object]) -> None:
        with record.attempt(f"first build, {name}"):
            found[name] = [_built(database, work)]

    once(ROLLUPS, full, full.refresh)
    works: dict[str, Callable[[], float]] = {
        RAW: lambda: raw_pass(full, one_process=False),
        RAW_ONE: lambda: raw_pass(full, one_process=True),
        ROLLUPS: lambda: anew(1),
        TWO_JOBS: lambda: anew(2),
    }
    again = record.interleave("first build", works, repeat=min(3, record.options.repeat), warm_up=False)
    found |= {name: found.get(name, []) + values for name, values in again.items()}
    if hourly is not None:
        once(HOURLY, hourly, hourly.refresh)
    for peer in peers:
        once(peer.name, peer.database, peer.build)
    peers[:] = [peer for peer in peers if peer.name in found]  # one that failed is noted, and has nothing to measure
    for database in (full, tenth, hourly):
        if database is not None:
            with record.attempt("refresh and vacuum after the first build"):
                database.refresh()
                database.make_marks()
                database.vacuum()
    for peer in peers:
        with record.attempt(f"vacuum, {peer.name}"):
            peer.database.vacuum()
    record.add(Measurement("first build", "all rollups, against one raw pass", "ms", found, series="first build"))


def _built(database: Database, work: Callable[[], object]) -> float:
    """Return how long a build takes that finds its events as warm as any other."""
    raw_pass(database, one_process=False)
    return milliseconds(work)


def refreshes(
    record: Recorder, full: Database, tenth: Database, hourly: Database | None, peers: list[Peer], events: int
) -> None:
    """Refresh after new events, and after late ones; ours at a tenth of the history too."""
    others = {name: database for name, database in ((TENTH, tenth), (HOURLY, hourly)) if database is not None}
    for new in if_fits((1_000, 20_000), events):
        _refresh(record, f"after {new:,} new events", new, {ROLLUPS: full, **others}, peers)
    for new in if_fits((1_000, 20_000), events):
        _refresh(record, f"after {new:,} late events", new, {ROLLUPS: full, **others}, peers, late=True)
    many = if_fits((1_000_000,), events)[0]
    if events >= 1_000_000:
        _refresh(record, f"after {many:,} new events", many, {ROLLUPS: full}, peers, rounds=1)
    else:
        record.skip("refresh after many new events: too small a history")
    for database in (full, tenth):
        database.vacuum()


def _refresh(
    record: Recorder, what: str, new: int, mine: dict[str, Database], peers: list[Peer],
    *, late: bool = False, rounds: int | None = None,
) -> None:  # fmt: skip
    def ours(database: Database) -> float:
        (database.add_late if late else database.add_tail)(new)
        return milliseconds(database.refresh)

    def theirs(peer: Peer) -> float:
        (peer.database.add_late if late else peer.database.add_tail)(new)
        return milliseconds(peer.refresh)

    works: dict[str, Callable[[], float]] = {name: partial(ours, database) for name, database in mine.items()}
    works |= {peer.name: partial(theirs, peer) for peer in peers if peer.refreshes}
    values = record.interleave(f"refresh {what}", works, repeat=rounds, warm_up=rounds is None)
    series = "refresh, new events" if not late else "refresh, late events"
    record.add(Measurement("refresh", what, "ms", values, series=series if new == 20_000 else None))


def verification(record: Recorder, full: Database) -> None:
    """Verify all days, beside passes of the raw query."""

    def ours() -> float:
        found: list[verify.VerifyResult] = []
        took = milliseconds(lambda: found.append(verify.verify(full.connection, full.settings)))
        if found[0].differences:
            raise DifferentError(f"verify found {found[0].differences} differences")
        return took

    works = {
        RAW: lambda: raw_pass(full, one_process=False),
        RAW_ONE: lambda: raw_pass(full, one_process=True),
        ROLLUPS: ours,
    }
    values = record.interleave("verify", works, repeat=min(2, record.options.repeat), warm_up=False)
    record.add(Measurement("verify", "all days, against one raw pass", "ms", values, series="verify"))


def storage(record: Recorder, full: Database, hourly: Database | None, peers: list[Peer]) -> None:
    """Sizes of all rollups, indexes included, and of the raw table with its one index."""

    def size(database: Database, block: str) -> list[float]:
        row = database.connection.execute(SQL[block]).fetchone()
        assert row is not None
        return [row[0] / 1e6]

    values = {RAW_TABLE: size(full, "raw_table"), ROLLUPS: size(full, "rollups")}
    if hourly is not None:
        values[HOURLY] = size(hourly, "rollups")
    for peer in peers:
        with record.attempt(f"storage, {peer.name}"):
            values[peer.name] = [peer.size() / 1e6]
    record.add(Measurement("storage", "rollups with their indexes", "MB", values, series="storage"))
