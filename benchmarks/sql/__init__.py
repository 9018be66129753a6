"""The benchmark's SQL: files of named blocks, as those of the program."""

from __future__ import annotations

from pathlib import Path
from typing import LiteralString, cast

from aggregator import sql as sql_files

HERE = Path(__file__).parent


def load(file: str) -> dict[str, LiteralString]:
    """Return the named blocks of ``benchmarks/sql/<file>.sql``."""
    parts = sql_files._NAME.split((HERE / f"{file}.sql").read_text(encoding="utf-8"))  # noqa: SLF001
    return {name: cast(LiteralString, body.strip()) for name, body in zip(parts[1::2], parts[2::2], strict=True)}
