"""Others' ways to the same numbers, each in a database of its own with the same events."""

from __future__ import annotations

from typing import Any, ClassVar, LiteralString

import psycopg

from benchmarks.data import Database, Sample, Server
from benchmarks.measure import Recorder
from benchmarks.sql import load


class Peer:
    """One other way: daily rows by the whole key. Answers are for whole days.

    ``sql`` names its file, with the blocks ``build``, ``read`` and ``size``, and ``refresh`` if it ``refreshes``;
    ``captures`` tells whether writers pay for it.
    """

    name: ClassVar[str]
    sql: ClassVar[str]
    refreshes: ClassVar[bool] = False
    captures: ClassVar[bool] = True

    def __init__(self, database: Database) -> None:
        self.database = database
        self.blocks: dict[str, LiteralString] = load(self.sql)

    def build(self) -> None:
        """Make the rollup from all events."""
        self._run("build")

    def refresh(self) -> None:
        """Bring the rollup up to now."""
        self._run("refresh")

    def ask(self, parameters: dict[str, object]) -> psycopg.Cursor[Any]:
        """Ask for the sums by collection and resource type of whole days; return when they are at the client."""
        return self.database.connection.execute(self.blocks["read"], parameters)

    def read(self, parameters: dict[str, object]) -> list[tuple[Any, ...]]:
        """Return what is asked for."""
        return self.ask(parameters).fetchall()

    def size(self) -> int:
        """Return the bytes of the rollup and its indexes."""
        row = self.database.connection.execute(self.blocks["size"]).fetchone()
        assert row is not None
        return int(row[0])

    def version(self) -> str | None:
        """Return the version of what it is, if it has one of its own."""
        if "version" not in self.blocks:
            return None
        row = self.database.connection.execute(self.blocks["version"]).fetchone()
        return None if row is None else str(row[0])

    def _run(self, block: str) -> None:
        """Run the statements of a block, each by itself: some refuse to be in a transaction."""
        for statement in self.blocks[block].split(";\n\n"):
            self.database.connection.execute(statement)


class LocalPeer(Peer):
    """One that needs nothing but PostgreSQL: a copy of the source, on the benchmark's own server."""

    @classmethod
    def set_up(cls, server: Server, _sample: Sample) -> Peer:
        """Make the database."""
        return cls(server.create(cls.sql, copy_of="source"))


class ExtensionPeer(Peer):
    """One that is an extension: the same events, made anew on a server that has it."""

    option: ClassVar[str]

    @classmethod
    def set_up(cls, server: Server, sample: Sample) -> Peer:
        """Make the database, the extension, and the events."""
        database = server.create(cls.sql)
        sample.make(database)
        peer = cls(database)
        peer._run("prepare")
        database.vacuum()
        return peer


def set_up(record: Recorder, server: Server, elsewhere: dict[str, Server], sample: Sample) -> list[Peer]:
    """Set up the peers that were asked for and can be had; say which cannot."""
    from benchmarks.peers import matview, naive, pg_ivm, timescaledb

    peers: list[Peer] = []
    every: tuple[type[LocalPeer | ExtensionPeer], ...] = (
        matview.MaterializedView, naive.NaiveTrigger, timescaledb.TimescaleDB, pg_ivm.PgIvm,
    )  # fmt: skip
    for kind in every:
        if kind.sql not in record.options.peers:
            record.skip(f"{kind.name}: not among --peers")
            continue
        where: Server | None = server
        if issubclass(kind, ExtensionPeer):
            where = elsewhere.get(kind.option)
            if where is None:
                record.skip(f"{kind.name}: no --{kind.option} was given")
                continue
        with record.attempt(f"setting up {kind.name}"):
            assert where is not None
            peers.append(kind.set_up(where, sample))
    return peers
