"""Roles of the tests of security, and traps that tell with whose rights they are sprung."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import Database
from tests.integration.conftest import make_role

__all__ = ["make_role"]

TRAPS = (Path(__file__).parent / "traps.sql").read_text(encoding="utf-8")


@pytest.fixture
def trapped(new_database: object) -> Database:
    """A migrated database whose schema ``evil`` shadows all of pg_catalog, and ours, first on its search path.

    The tests' own session ``connection`` is not led into it, nor is what was opened before.
    """
    database: Database = new_database()  # type: ignore[operator]
    database.execute(TRAPS)
    database.execute(f'alter database {database.name} set search_path = evil, "$user", public, pg_catalog')
    return database
