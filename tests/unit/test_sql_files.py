"""The files of named statements."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from aggregator import sql

FILES = sorted(file.name.removesuffix(".sql") for file in resources.files(sql).iterdir() if file.name.endswith(".sql"))


@pytest.mark.parametrize("file", FILES)
def test_a_name_is_given_once(file: str) -> None:
    """The second of two blocks of one name would win, without a word (a merge once left one behind)."""
    names = re.findall(
        r"^-- (\w+) --$", resources.files(sql).joinpath(f"{file}.sql").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(names) == len(set(names)) == len(sql.load(file)) > 0
