"""Databases of the benchmark: made, filled with the same events, copied, attached, and dropped at the end."""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from aggregator import capture, db, hourly, marks, migrations, refresh, sample
from aggregator.settings import Settings
from benchmarks.measure import say
from benchmarks.sql import load

SQL = load("data")

PREFIX = "aggregator_bench_"


@dataclass
class Database:
    """A database with its one connection, autocommit."""

    settings: Settings
    connection: db.Connection

    def vacuum(self) -> None:
        """Leave nothing for autovacuum to do while something is measured."""
        self.connection.execute("vacuum (analyze)")

    def attach(self, *, with_hours: bool = False) -> None:
        """Create schema usage and start capture; keep hourly rollups too, if wanted."""
        migrations.upgrade(self.settings)
        capture.attach(self.connection, self.settings)
        if with_hours:
            hourly.turn_on(self.connection)

    def refresh(self, jobs: int = 1) -> None:
        """Bring the rollups up to now, on so many connections."""
        refresh.refresh(self.connection, self.settings.model_copy(update={"jobs": jobs}))

    def make_marks(self) -> None:
        """Make all marks of dense hours, of which a refresh makes some and leaves the others to the next."""
        marks.make(self.connection, self.settings)

    def add_tail(self, events: int) -> None:
        """Add new events, and let the statistics know, as hours of ordinary writing would have."""
        self.connection.execute(SQL["add_tail"], {"n": events})

    def add_late(self, events: int) -> None:
        """Add events dated within the last 30 days."""
        self.connection.execute(SQL["add_late"], {"n": events})


@dataclass
class Server:
    """A server, and the databases that were made on it. Its role must be a superuser."""

    dsn: str
    open: list[Database] = field(default_factory=list)
    made: set[str] = field(default_factory=set)

    def create(self, name: str, *, copy_of: str | None = None) -> Database:
        """Make a database, empty or as a copy of one that nobody is connected to, and connect."""
        with psycopg.connect(self.dsn, autocommit=True) as admin:
            self._drop(admin, name)
            template = sql.Identifier(PREFIX + copy_of if copy_of else "template0")
            encoding = sql.SQL("strategy file_copy" if copy_of else "encoding 'UTF8'")
            admin.execute(
                sql.SQL("create database {} template {} {}").format(sql.Identifier(PREFIX + name), template, encoding)
            )
            self.made.add(name)
        return self.connect(name)

    def connect(self, name: str) -> Database:
        """Connect to a database that was made."""
        dsn = make_conninfo(self.dsn, dbname=PREFIX + name)
        settings = Settings(database_url=SecretStr(dsn), time_zone="UTC")
        database = Database(settings, db.connect(settings, name="aggregator bench"))
        self.open.append(database)
        return database

    def drop(self, name: str) -> None:
        """Drop a database, whoever is connected."""
        with psycopg.connect(self.dsn, autocommit=True) as admin:
            self._drop(admin, name)
        self.made.discard(name)

    def drop_all(self) -> None:
        """Drop what was made."""
        for database in self.open:
            database.connection.close()
        self.open.clear()
        for name in sorted(self.made):
            with contextlib.suppress(psycopg.Error):
                self.drop(name)

    @staticmethod
    def _drop(admin: psycopg.Connection[Any], name: str) -> None:
        admin.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(PREFIX + name)))


@dataclass
class Sample:
    """The events of one size, the same wherever they are made."""

    options: argparse.Namespace
    events: int
    days: int
    until: datetime

    @property
    def midnight(self) -> datetime:
        """The first instant of the day of the run."""
        return self.until.replace(hour=0, minute=0, second=0, microsecond=0)

    def tenth(self) -> Sample:
        """Return a tenth of the history: as many events a day."""
        return Sample(self.options, max(1, self.events // 10), max(1, self.days // 10), self.until)

    def make(self, database: Database) -> None:
        """Make the tables and fill them."""
        options = self.options
        say.print(f"making {self.events:,} events of {self.days:,} days in {database.connection.info.dbname} …")
        sample.create_sample(
            database.connection, events=self.events, days=self.days, collections=options.collections, until=self.until,
            skew=options.skew, types=options.types, late_share=options.late_share, malformed=0,
        )  # fmt: skip
        database.vacuum()

    def window(
        self, days: int, *, to_the_second: bool, collection: str | None = None, minutes: int = 0, ended: bool = False
    ) -> dict[str, object]:
        """Return the bounds of the last ``days`` days, until midnight if whole, else until the end.

        To the second: from about noon on, where a window cuts most, whenever the benchmark is run. The first day of all
        has events from its middle on only, so the whole history begins a day later there. ``minutes`` later, for hours;
        ``ended``: until about noon of yesterday, instead of open.
        """
        if to_the_second:
            noon = self.midnight + timedelta(hours=12, minutes=minutes, seconds=1)
            since = noon - timedelta(days=min(days, self.days - 1))
            return {
                "since": since,
                "until": noon - timedelta(days=1, seconds=2) if ended else None,
                "collection": collection,
            }
        return {"since": self.midnight - timedelta(days=days), "until": self.midnight, "collection": collection}

    def middling_collection(self, database: Database) -> str:
        """Return a collection that is neither large nor small: the 21st, or the last of fewer."""
        return self.collection(database, min(21, self.options.collections))

    @staticmethod
    def collection(database: Database, rank: int) -> str:
        """Return a collection by its rank: the first is the largest."""
        row = database.connection.execute(SQL["collection"], {"n": rank}).fetchone()
        assert row is not None
        return str(row[0])


EVERYTHING: dict[str, object] = {"since": "-infinity", "until": None, "collection": None}


def make_sample(options: argparse.Namespace, events: int) -> Sample:
    """Return the sample of one size; all sizes of a series have as many events a day."""
    days = options.days if not options.growth else max(2, round(options.days * events / options.events))
    return Sample(options, events, days, datetime.now(timezone.utc))


def if_fits(counts: tuple[int, ...], events: int) -> list[int]:
    """Return numbers of new events that are at most a tenth of the history, cut where they are more."""
    return sorted({min(count, max(100, events // 10)) for count in counts})
