"""Exports: the exact rows of a window, by day or month and whole key, streamed to a file or a pipe."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args
from uuid import UUID

from psycopg import IsolationLevel

from aggregator import db
from aggregator import sql as sql_files
from aggregator.errors import AggregatorError, UsageError
from aggregator.read import bound_parameters, read_instant

SQL = sql_files.load("export")

Format = Literal["csv", "parquet", "ndjson"]
Grain = Literal["day", "month"]

FORMATS: tuple[Format, ...] = get_args(Format)
GRAINS: tuple[Grain, ...] = get_args(Grain)

KEYS_AND_VALUES = (
    "collection_id", "collection_title", "resource_type", "job_type", "model_level",
    "event_count", "total_value", "secondary_value", "unit", "secondary_unit",
)  # fmt: skip
"""The columns after ``day`` or ``month``."""

TEXTS = frozenset({"collection_title", "resource_type", "job_type", "model_level", "unit", "secondary_unit"})

GROUP_ROWS = 16_384
GROUP_CHARACTERS = 16_000_000
"""A row group of a Parquet file ends at either: two of them at most are held in memory."""

_LEFTOVER = ".aggregator-export"

_Rows = Iterable[tuple[str | None, ...]]


class ExportError(AggregatorError):
    """The file could not be written; what was there before is as it was."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it can be believed, as in ``Receipt``.

    ``texts`` are the columns of a Parquet file that are text because a value does not fit their type.
    """

    output_format: Format
    grain: Grain
    since: datetime
    until: datetime | None
    collection_id: UUID | None
    time_zone: str
    as_of: datetime
    frontier: datetime | None
    exact: bool
    reasons: tuple[str, ...]
    texts: tuple[str, ...]
    rows: int = 0

    @property
    def columns(self) -> tuple[str, ...]:
        """The names, in order."""
        return (self.grain, *KEYS_AND_VALUES)

    def as_metadata(self) -> dict[str, Any]:
        """Return what a sidecar, or a Parquet file's own metadata, says; instants in ISO 8601."""
        return {
            "format": self.output_format,
            "grain": self.grain,
            "columns": self.columns,
            "since": self.since.isoformat(),
            "until": self.until and self.until.isoformat(),
            "collection_id": self.collection_id and str(self.collection_id),
            "time_zone": self.time_zone,
            "as_of": self.as_of.isoformat(),
            "frontier": self.frontier and self.frontier.isoformat(),
            "exact": self.exact,
            "reasons": self.reasons,
        }


def export_usage(
    connection: db.Connection,
    target: Path | BinaryIO,
    *,
    output_format: str = "csv",
    grain: str = "day",
    days: int = 30,
    since: datetime | None = None,
    until: datetime | None = None,
    collection_id: UUID | str | None = None,
) -> Exported:
    """Write the rows of [since, until), oldest bucket first, and return what was written.

    One snapshot, in a transaction of its own: the connection must be autocommit. A path gets the whole file and, beside
    it, ``<name>.meta.json``, or stays as it was. Memory does not grow with the rows. Raises UsageError for what
    ``usage_overview`` raises it, for an unknown grain or format and a path that cannot be written, ExportError when
    writing fails later, and BrokenPipeError when nobody reads the pipe any more.
    """
    chosen_format = next((known for known in FORMATS if known == output_format), None)
    chosen_grain = next((known for known in GRAINS if known == grain), None)
    if chosen_format is None:
        raise UsageError(f"format: there is no {output_format!r}; there are {', '.join(FORMATS)}")
    if chosen_grain is None:
        raise UsageError(f"grain: there is no {grain!r}; there are {' and '.join(GRAINS)}")
    if chosen_format == "parquet":
        _pyarrow()
    window = bound_parameters(days=days, since=since, until=until, collection_id=collection_id)
    if not isinstance(target, Path):
        exported = _write(connection, target, chosen_format, chosen_grain, window)
        target.flush()
        return exported
    path = _regular(target)
    with _replacing(path.with_name(f"{path.name}.meta.json")) as sidecar, _replacing(path) as file:
        exported = _write(connection, file, chosen_format, chosen_grain, window)
        file.seek(0)
        # The two files cannot be replaced in one instant: the sum tells whether they belong together.
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        metadata = {**exported.as_metadata(), "rows": exported.rows, "sha256": digest}
        sidecar.write(json.dumps(metadata, ensure_ascii=False, indent=2).encode() + b"\n")
    return exported


def _write(
    connection: db.Connection, file: BinaryIO, output_format: Format, grain: Grain, window: dict[str, Any]
) -> Exported:
    write = {"csv": _write_csv, "ndjson": _write_ndjson, "parquet": _write_parquet}[output_format]
    with db.transaction(connection, isolation=IsolationLevel.REPEATABLE_READ, read_only=True):
        receipt = connection.execute(SQL["receipt"], window).fetchone()
        assert receipt is not None
        begin, as_of, frontier, exact, reasons, zone = receipt
        parameters = {**window, "since": read_instant(begin), "grain": grain}
        texts: tuple[str, ...] = ()
        if output_format == "parquet":
            fits = connection.execute(SQL["fits"], parameters).fetchone()
            assert fits is not None
            names = (grain, "total_value", "secondary_value")
            texts = tuple(name for name, fit in zip(names, fits, strict=True) if not fit)
        exported = Exported(
            output_format, grain, read_instant(begin), window["until"], window["collection"], zone,
            read_instant(as_of), None if frontier is None else read_instant(frontier), exact, tuple(reasons), texts,
        )  # fmt: skip
        with connection.cursor() as cursor, cursor.copy(SQL["rows"], parameters) as rows:
            written = write(file, rows.rows(), exported)
    return Exported(**{**vars(exported), "rows": written})


def _write_csv(file: BinaryIO, rows: _Rows, exported: Exported) -> int:
    """Write RFC 4180, as PostgreSQL's COPY reads it: text is quoted, so that nothing is null and "" the empty text."""
    quoted = [name in TEXTS for name in exported.columns]
    file.write(",".join(exported.columns).encode() + b"\r\n")
    written = 0
    for row in rows:
        fields = (
            "" if value is None else f'"{value.replace(chr(34), chr(34) * 2)}"' if is_text else value
            for value, is_text in zip(row, quoted, strict=True)
        )
        file.write(",".join(fields).encode() + b"\r\n")
        written += 1
    return written


def _write_ndjson(file: BinaryIO, rows: _Rows, exported: Exported) -> int:
    """Write one object a line; sums are strings, because most readers make floats of numbers."""
    written = 0
    for row in rows:
        values: dict[str, Any] = dict(zip(exported.columns, row, strict=True))
        values["event_count"] = int(values["event_count"])
        file.write(json.dumps(values, ensure_ascii=False).encode() + b"\n")
        written += 1
    return written


def _write_parquet(file: BinaryIO, rows: _Rows, exported: Exported) -> int:
    pa, parquet = _pyarrow()
    types = {exported.grain: pa.date32(), "event_count": pa.int64(),
             "total_value": pa.decimal128(38, 9), "secondary_value": pa.decimal128(38, 9)}  # fmt: skip
    schema = pa.schema(
        [(name, pa.string() if name in exported.texts else types.get(name, pa.string())) for name in exported.columns],
        metadata={"aggregator": json.dumps(exported.as_metadata(), ensure_ascii=False)},
    )
    written = 0
    with parquet.ParquetWriter(_Sink(file), schema, compression="zstd") as writer:
        for group in _groups(rows):
            columns = [
                pa.array(values, pa.string()).cast(field.type)
                for values, field in zip(zip(*group, strict=True), schema, strict=True)
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))
            written += len(group)
    return written


def _groups(rows: _Rows) -> Iterator[list[tuple[str | None, ...]]]:
    group: list[tuple[str | None, ...]] = []
    characters = 0
    for row in rows:
        group.append(row)
        characters += sum(len(value) for value in row if value is not None)
        if len(group) >= GROUP_ROWS or characters >= GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as exc:
        raise UsageError("format: parquet needs pyarrow: pip install 'usage-aggregator[parquet]'") from exc
    return pa, parquet


class _Sink(io.RawIOBase):
    """A file that counts what was written: pyarrow asks where it is, and a pipe does not know."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._position = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, data: Any) -> int:
        self._file.write(data)
        self._position += len(data)
        return len(data)


def _regular(target: Path) -> Path:
    """Return where the file lies or will lie, links followed; raise UsageError for what is no file."""
    try:
        path = target.resolve()
        if not path.exists() or path.is_file():
            return path
    except OSError as exc:
        raise UsageError(f"output: cannot write {target}: {exc.strerror}") from exc
    raise UsageError(f"output: {target} is no regular file; use - for stdout")


@contextmanager
def _replacing(path: Path) -> Iterator[io.BufferedRandom]:
    """Yield a hidden file that takes the path's place once it is whole and on disk; if anything fails, it is removed."""
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_LEFTOVER}")
    try:
        _remove_leftovers(path)
        file = hidden.open("x+b")
    except OSError as exc:
        raise UsageError(f"output: cannot write {path}: {exc.strerror}") from exc
    try:
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
            file.flush()
            os.fsync(file.fileno())
            if path.exists():
                shutil.copymode(path, hidden)
            hidden.replace(path)
            _sync_folder(path.parent)
    except OSError as exc:
        hidden.unlink(missing_ok=True)
        raise ExportError(f"cannot write {path}: {exc.strerror or exc}") from exc
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise


def _remove_leftovers(path: Path) -> None:
    """Remove what a killed export to this path has left: a hidden file that nobody holds a lock on."""
    for found in path.parent.iterdir():
        if found.name.startswith(f".{path.name}.") and found.name.endswith(_LEFTOVER):
            with found.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                found.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
