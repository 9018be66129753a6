"""Run-time SQL: files of named blocks, loaded once.

A block begins with ``-- name --``; comment lines right below it describe it; parameters are psycopg's ``%(name)s``.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import LiteralString, cast

_NAME = re.compile(r"^-- ([a-z_]+) --$", re.MULTILINE)


def load(file: str) -> dict[str, LiteralString]:
    """Return the named blocks of ``aggregator/sql/<file>.sql``."""
    text = resources.files(__package__).joinpath(f"{file}.sql").read_text(encoding="utf-8")
    parts = _NAME.split(text)
    # The files are part of the program, as a literal would be.
    return {name: cast(LiteralString, body.strip()) for name, body in zip(parts[1::2], parts[2::2], strict=True)}
