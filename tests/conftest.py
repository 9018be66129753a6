"""A real PostgreSQL for every test: embedded by default, AGGREGATOR_TEST_DSN or AGGREGATOR_TEST_BIN for another."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from aggregator import embedded
from tests.harness import LONG, Database, create_with_source
from tests.mutations import sql_mutants

SERVER_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "60",
    "max_prepared_transactions": "20",
    "shared_buffers": "'64MB'",
    "autovacuum_naptime": "'5s'",
    "session_preload_libraries": "'auto_explain'",
    "deadlock_timeout": "'500ms'",
}


MUTANT = sql_mutants.chosen()
"""What is wrong on purpose, while python -m tests.mutations asks whether the tests notice."""


def pytest_configure() -> None:
    if MUTANT is not None:
        sql_mutants.break_statement(MUTANT)


def pytest_report_header() -> str:
    where = os.environ.get("AGGREGATOR_TEST_DSN") and "AGGREGATOR_TEST_DSN"
    where = where or os.environ.get("AGGREGATOR_TEST_BIN") or f"embedded, {embedded.embedded_bin()}"
    return f"postgresql: {where}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what takes long, unless it is asked for."""
    if not LONG:
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes long: make test-long"))


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """A connection string of the server, without a database name."""
    dsn = os.environ.get("AGGREGATOR_TEST_DSN")
    if dsn:
        yield dsn
        return
    bin_dir = os.environ.get("AGGREGATOR_TEST_BIN")
    with embedded.temporary_server(Path(bin_dir) if bin_dir else None, SERVER_SETTINGS) as running:
        yield running.dsn().replace(" dbname=postgres", "")


_numbers = itertools.count()


@pytest.fixture(scope="session")
def template(server: str) -> str:
    """A database with the source tables, the oracle and schema usage, to be copied for each test."""
    name = f"aggregator_template_{os.getpid()}"
    create_with_source(server, name)
    if MUTANT is not None:
        with psycopg.connect(f"{server} dbname={name}", autocommit=True) as connection:
            sql_mutants.break_function(MUTANT, connection)
    return name


@pytest.fixture(scope="session")
def attached_template(server: str, template: str) -> str:
    """A copy of the template that is attached, in UTC: to attach takes longer than to copy, and copies keep oids."""
    name = f"{template}_attached"
    _copy(server, template, name)
    database = Database(server, name, "UTC", {})
    database.attach()
    database.close()
    return name


def _copy(server: str, template: str, name: str) -> None:
    with psycopg.connect(f"{server} dbname=postgres", autocommit=True) as connection:
        # Not through the log, which would take it as long again: nothing here is to survive a crash of the machine.
        connection.execute(f"create database {name} template {template} strategy file_copy".encode())


@pytest.fixture
def copied_database(server: str) -> Iterator[Any]:
    """A function that makes a database from a template."""
    made: list[Database] = []

    def make(template: str, zone: str, settings: dict[str, Any]) -> Database:
        name = f"aggregator_test_{os.getpid()}_{next(_numbers)}"
        _copy(server, template, name)
        made.append(Database(server, name, zone, settings))
        return made[-1]

    yield make
    for database in made:
        database.close()
        with psycopg.connect(f"{server} dbname=postgres", autocommit=True) as connection:
            connection.execute(f"drop database if exists {database.name} with (force)".encode())


@pytest.fixture
def new_database(copied_database: Any, template: str) -> Any:
    """A function that makes a database: ``new_database()`` is migrated, not attached."""

    def make(*, zone: str = "UTC", **settings: Any) -> Database:
        database: Database = copied_database(template, zone, settings)
        return database

    return make


@pytest.fixture
def db(copied_database: Any, attached_template: str) -> Database:
    """A migrated database with an empty source, attached, in UTC."""
    database: Database = copied_database(attached_template, "UTC", {})
    return database


@pytest.fixture
def empty(server: str, db: Database) -> Iterator[Database]:
    """A database with the source and no schema usage, beside that of ``db``."""
    name = f"{db.name}_empty"
    create_with_source(server, name, migrated=False)
    database = Database(server, name, "UTC", {})
    yield database
    database.close()
    db.execute(f"drop database {name} with (force)")
