"""Databases with a filled source, attached and refreshed; each test gets a copy."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from tests.harness import Database
from tests.integration.sources import PARTITIONED, PARTITIONED_DDL, Kind, fill

_numbers = itertools.count()

_FRESH = 600.0
"""Seconds for which a filled template is copied."""


def _source_settings(kind: Kind) -> dict[str, Any]:
    return {} if kind == "plain" else {"source_table": PARTITIONED}


def _administer(server: str, statement: str) -> None:
    with psycopg.connect(f"{server} dbname=postgres", autocommit=True) as connection:
        connection.execute(statement.encode())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test's many cases make test tries each with one kind of ``filled``, in turns, and make test-long with the other."""
    cases: dict[tuple[Any, ...], list[pytest.Function]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec") and "filled" in item.callspec.params:
            cases.setdefault((item.path, item.originalname), []).append(item)
    for found in cases.values():
        kinds = list(dict.fromkeys(item.callspec.params["filled"] for item in found))
        others: dict[str, int] = {}
        for item in found if len(found) > len(kinds) else []:
            other = repr([value for name, value in item.callspec.params.items() if name != "filled"])
            number = others.setdefault(other, len(others))
            if (number + kinds.index(item.callspec.params["filled"])) % len(kinds):
                item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session")
def filled_template(server: str, template: str) -> Callable[[Kind], str]:
    """A function that names a database to copy for a kind of source. Copies keep oids and files, so also trust.

    It is made anew from time to time: a frontier that is half an hour old is no healthy one.
    """
    made: dict[Kind, tuple[str, float]] = {}

    def name_of(kind: Kind) -> str:
        name, until = made.get(kind, ("", 0.0))
        if time.monotonic() >= until:
            if name:
                _administer(server, f"drop database {name}")
            name = f"aggregator_filled_{kind}_{os.getpid()}_{next(_numbers)}"
            _administer(server, f"create database {name} template {template}")
            db = Database(server, name, "UTC", _source_settings(kind))
            if kind == "partitioned":
                db.execute(PARTITIONED_DDL)
            db.attach()
            fill(db)
            db.refresh()
            db.close()
            made[kind] = name, time.monotonic() + _FRESH
        return name

    return name_of


@pytest.fixture
def filled_database(copied_database: Any, filled_template: Callable[[Kind], str]) -> Callable[[Kind], Database]:
    """A function that copies the filled database of a kind of source."""

    def make(kind: Kind) -> Database:
        database: Database = copied_database(filled_template(kind), "UTC", _source_settings(kind))
        return database

    return make


@pytest.fixture(params=["plain", "partitioned"])
def filled(request: pytest.FixtureRequest, filled_database: Callable[[Kind], Database]) -> Database:
    """A plain, and a partitioned, source: attached, filled and refreshed."""
    return filled_database(request.param)


@pytest.fixture
def plain(filled_database: Callable[[Kind], Database]) -> Database:
    """A plain source: attached, filled and refreshed."""
    return filled_database("plain")


@pytest.fixture
def partitioned(filled_database: Callable[[Kind], Database]) -> Database:
    """A partitioned source: attached, filled and refreshed."""
    return filled_database("partitioned")


@pytest.fixture
def make_role(server: str) -> Iterator[Callable[..., str]]:
    """A function that makes a login role. Ask for it before the database, so that it is dropped after it."""
    made: list[str] = []

    def make(options: str = "") -> str:
        name = f"aggregator_role_{os.getpid()}_{next(_numbers)}"
        _administer(server, f"create role {name} login {options}")
        made.append(name)
        return name

    yield make
    for name in made:
        _administer(server, f"drop role if exists {name}")
