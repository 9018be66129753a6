"""Exports: equal to the raw query, whole or not there, in memory that does not grow."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from pyarrow import parquet

from aggregator import db as own
from aggregator import export, seal
from aggregator.errors import AggregatorError, UsageError
from tests.cli.test_cli import one_line, run
from tests.harness import COLLECTIONS, ORACLE, Database, Hooked, snapshot

ROLES = (Path(__file__).parents[2] / "deploy" / "roles.sql").read_text(encoding="utf-8")

Row = tuple[Any, ...]

UNITS = {"ai": ("tokens", "tokens"), "whisper": ("seconds", None), "tts": ("characters", None), "cas": ("bytes", None)}

ODD_TEXTS = [
    "",
    "a,b",
    'quo"ted',
    "two\nlines",
    "\r\n",
    " blank ",
    "שלום, עולם",
    "=1+1",
    "\\N",
    "null",
    "é" * 200,
    "\u2028",
]


def oracle(db: Database, **parameters: Any) -> list[Row]:
    """Return the rows that an export must have: those of the raw query, with units."""
    query = ORACLE["export"].replace("{source}", db.source).replace("{titles}", db.titles)
    with snapshot(db.connection):
        rows = db.connection.execute(
            query.encode(), {"until": None, "collection": None, "zone": db.zone, **parameters}
        ).fetchall()
    return [(*row, *UNITS.get(row[3], (None, None))) for row in rows]


def read(data: bytes, output_format: str, grain: str) -> list[Row]:
    """Return the rows of an export as other programs read them: csv, json, pyarrow."""
    names = (grain, *export.KEYS_AND_VALUES)
    if output_format == "parquet":
        table = parquet.read_table(BytesIO(data))
        assert tuple(table.column_names) == names
        rows = [tuple(row.values()) for row in table.to_pylist()]
    elif output_format == "ndjson":
        found = [json.loads(line) for line in data.decode().removesuffix("\n").split("\n") if line]
        assert {tuple(row) for row in found} <= {names}
        rows = [tuple(row.values()) for row in found]
    else:
        header, *rows = [tuple(row) for row in csv.reader(data.decode().splitlines(keepends=True), strict=True)]
        assert header == names
    texts = {index for index, name in enumerate(names) if name in export.TEXTS}
    return [
        tuple(
            int(value) if index == 6 else Decimal(value) if index in {7, 8}
            else str(value) if isinstance(value, date) else None if value == "" and index not in texts else value
            for index, value in enumerate(row)
        )
        for row in rows
    ]  # fmt: skip


def nulls_as_empty(rows: list[Row]) -> list[Row]:
    """Return rows as Python's csv reads them: it does not tell an unquoted nothing from a quoted one."""
    return [tuple("" if value is None and index in {2, 3, 4, 5, 9, 10} else value for index, value in enumerate(row))
            for row in rows]  # fmt: skip


def exported(db: Database, output_format: str = "csv", **options: Any) -> bytes:
    buffer = BytesIO()
    export.export_usage(db.own, buffer, output_format=output_format, **options)
    return buffer.getvalue()


def instant(db: Database, days_ago: float) -> datetime:
    """Return an instant within the filled days, to the microsecond."""
    now: datetime = db.scalar("select now()")
    return now - timedelta(days=days_ago, microseconds=1)


@pytest.mark.parametrize("grain", export.GRAINS)
@pytest.mark.parametrize("output_format", export.FORMATS)
def test_equals_the_raw_query(filled: Database, output_format: str, grain: str) -> None:
    """Every format and grain has the raw query's rows in its order, with edges, late changes and a tail; then refreshed."""
    db = filled
    db.execute(f"delete from {db.source} where note = 'event 20'")
    db.execute(
        f"update {db.source} set detail = '{{\"tokens_in\": 0.125}}', resource_type = 'ai' where note = 'event 30'"
    )
    first = None
    for _ in range(2):
        for since, until, collection in [
            (instant(db, 31), None, None),
            (instant(db, 20.4), instant(db, 3.7), None),
            (instant(db, 1.2), instant(db, 0.9), None),
            (instant(db, 40), None, COLLECTIONS[0]),
            (instant(db, 40), None, COLLECTIONS[6]),
        ]:
            expected = oracle(db, since=since, until=until, collection=collection, grain=grain)
            data = exported(db, output_format, since=since, until=until, collection_id=collection, grain=grain)
            assert read(data, output_format, grain) == (
                nulls_as_empty(expected) if output_format == "csv" else expected
            )
        whole = exported(db, "csv", since=datetime(2000, 1, 1, tzinfo=timezone.utc), grain=grain)
        assert first in {None, whole}  # to the byte, whatever has been refreshed
        first = whole
        db.refresh()


@pytest.mark.parametrize("output_format", export.FORMATS)
def test_any_text(db: Database, output_format: str) -> None:
    """Text comes back as it was: quotes, line ends, right-to-left, the empty text and null."""
    for n, text in enumerate(ODD_TEXTS):
        db.execute("update public.nodes set title = %s where id = %s", (text, COLLECTIONS[n % 5]))
        db.insert("2026-03-01 00:00+00", text, n % 7, json.dumps({"job_type": text, "model_level": None}))
    db.insert("2026-03-01 00:00+00", None, None, None)
    since = datetime(2026, 1, 1, tzinfo=timezone.utc)
    expected = oracle(db, since=since, grain="day")
    data = exported(db, output_format, since=since)
    assert read(data, output_format, "day") == (nulls_as_empty(expected) if output_format == "csv" else expected)
    if output_format == "csv":  # PostgreSQL tells "" from nothing
        db.execute(
            "create table public.back (a text, b text, c text, d text, e text, f text, g int8, h numeric, i numeric, j text, k text)"
        )
        with db.connection.cursor() as cursor, cursor.copy("copy public.back from stdin (format csv, header)") as copy:
            copy.write(data)
        query = 'select * from public.back order by a, b nulls last, d collate "C" nulls last, e collate "C" nulls last'
        assert db.execute(query) == expected


def test_what_does_not_fit_a_parquet_type_is_text(db: Database) -> None:
    """Days are dates and sums decimal(38, 9), until a value does not fit: then that column is text, exact to the digit."""
    since, until = datetime(1, 1, 1, tzinfo=timezone.utc), datetime(2030, 1, 1, tzinfo=timezone.utc)
    for n in range(3):
        db.insert("2026-03-01 00:00+00", "ai", n, '{"tokens_in": 999999999999999999.123456789, "tokens_out": 1}')
    table = parquet.read_table(BytesIO(exported(db, "parquet", since=since, until=until)))
    assert [table.schema.field(name).type for name in ("day", "event_count", "total_value", "secondary_value")] == [
        pa.date32(), pa.int64(), pa.decimal128(38, 9), pa.decimal128(38, 9)
    ]  # fmt: skip
    db.insert("2026-03-02 00:00+00", "ai", 0, f'{{"tokens_in": 1e18, "tokens_out": 0.{"0" * 39}1}}')
    db.insert("infinity", "ai", 0, f'{{"tokens_in": 0.{"0" * 39}1}}')
    data = exported(db, "parquet", since=since)
    table = parquet.read_table(BytesIO(data))
    assert [table.schema.field(name).type for name in ("day", "total_value", "secondary_value")] == [pa.string()] * 3
    assert [str(value) for value in table["day"]] == ["2026-03-01"] * 3 + ["2026-03-02", "infinity"]
    assert read(data, "parquet", "day") == oracle(db, since=since, grain="day")
    for output_format in ("csv", "ndjson"):
        for grain in export.GRAINS:
            assert read(exported(db, output_format, since=since, grain=grain), "csv" if output_format == "csv" else "ndjson", grain
                        )[-1][:8:7] == ("infinity", Decimal(f"0.{'0' * 39}1"))  # fmt: skip


def amid_a_write(db: Database) -> tuple[list[Row], list[Row]]:
    """Return the rows of an export amid whose work others commit, and those of the raw query before it."""
    db.insert("2026-03-01 00:00+00", "ai", 0, '{"tokens_in": 1}')
    since = datetime(2026, 1, 1, tzinfo=timezone.utc)
    expected = oracle(db, since=since, grain="day")

    def write() -> None:
        db.insert("2026-03-01 00:00+00", "ai", 0, '{"tokens_in": 5}')
        db.execute("update public.nodes set title = 'renamed'")
        db.refresh()

    buffer = BytesIO()
    with own.connect(db.settings) as connection:
        hooked: Any = Hooked(connection, {export.SQL["fits"]: write})
        export.export_usage(hooked, buffer, output_format="parquet", since=since)
    return read(buffer.getvalue(), "parquet", "day"), expected


def test_one_snapshot(db: Database) -> None:
    """What is committed while an export is at work is not in it; it is in the next one."""
    found, expected = amid_a_write(db)
    assert found == expected
    later = exported(db, "ndjson", since=datetime(2026, 1, 1, tzinfo=timezone.utc))
    assert read(later, "ndjson", "day")[0][2:8:5] == ("renamed", 6)


def test_without_one_snapshot(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutation: with a snapshot for each statement, the test above finds what others commit meanwhile."""
    transaction = own.transaction
    monkeypatch.setattr(own, "transaction", lambda connection, **_: transaction(connection, read_only=True))
    found, expected = amid_a_write(db)
    assert found != expected


@pytest.mark.parametrize("output_format", export.FORMATS)
def test_a_file_and_what_is_said_of_it(db: Database, tmp_path: Path, output_format: str) -> None:
    """A file has a sidecar with the receipt, the rows and the file's sum; Parquet carries the receipt itself as well."""
    db.days_only()
    for day in ("2026-03-01 10:00+00", "2026-03-02 10:00+00", "2026-04-01 10:00+00"):
        db.insert(day)
    db.refresh()
    seal.seal(db.own, db.settings, "2026-03-03")
    target = tmp_path / "usage"
    (tmp_path / "link").symlink_to(target)
    target.touch(mode=0o640)
    since, until = datetime(2026, 3, 1, 12, tzinfo=timezone.utc), datetime(2026, 5, 1, tzinfo=timezone.utc)
    done = export.export_usage(db.own, tmp_path / "link", output_format=output_format, since=since, until=until)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "usage", "usage.meta.json"]
    assert target.stat().st_mode & 0o777 == 0o640
    said = json.loads((tmp_path / "usage.meta.json").read_text())
    assert said == {
        "format": output_format, "grain": "day", "columns": ["day", *export.KEYS_AND_VALUES],
        "since": "2026-03-01T12:00:00+00:00", "until": "2026-05-01T00:00:00+00:00", "collection_id": None,
        "time_zone": "UTC", "as_of": done.as_of.isoformat(), "frontier": done.frontier and done.frontier.isoformat(),
        "exact": False, "reasons": ["the window starts inside 2026-03-01, which is sealed: that day counts whole"],
        "rows": 3, "sha256": sha256(target.read_bytes()).hexdigest(),
    }  # fmt: skip
    if output_format == "parquet":
        inside = json.loads(parquet.read_schema(target).metadata[b"aggregator"])
        assert inside == {name: value for name, value in said.items() if name not in {"rows", "sha256"}}


def test_a_failure_leaves_what_was_there(db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the database or of the disk half-way leaves the old file, and nothing else."""
    for n in range(5):
        db.insert("2026-03-01 00:00+00", f"type {n}")
    target = tmp_path / "usage.csv"
    target.write_text("old")

    def fail(error: BaseException) -> Callable[..., int]:
        def write(file: Any, rows: Iterator[Row], _: Any) -> int:
            file.write(str(next(rows)).encode())
            raise error

        return write

    for error, expected in [
        (OSError(28, "No space left on device"), AggregatorError),
        (psycopg.OperationalError("the server went away"), psycopg.OperationalError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ]:
        monkeypatch.setattr(export, "_write_csv", fail(error))
        with pytest.raises(expected):
            export.export_usage(db.own, target, since=datetime(2026, 1, 1, tzinfo=timezone.utc))
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("usage.csv", "old")]


def many(db: Database, rows: int) -> None:
    """Fill the source with events of a key each, on two days, two thirds on the second; not refreshed."""
    db.execute(
        "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)"
        " select md5(n::text)::uuid, 'ai', jsonb_build_object('tokens_in', n, 'job_type', 'job ' || n %% 7),"
        " timestamptz '2026-03-01 12:00+00' + least(n / (%s / 3), 1) * interval '1 day' from generate_series(0, %s - 1) n",
        (rows, rows),
    )
    db.execute("analyze public.resource_usage_log")


MEASURED = """
import resource, sys
from aggregator.cli import main
try:
    main()
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, file=sys.stderr)
"""


@pytest.mark.long
def test_constant_memory(db: Database, tmp_path: Path) -> None:
    """Three times the rows do not take more memory; held, the 80,000 would take 50 MB."""
    many(db, 120_000)
    for output_format in export.FORMATS:
        peaks = []
        for until in ("2026-03-02T00:00Z", "2026-03-03T00:00Z"):
            result = subprocess.run(
                [sys.executable, "-c", MEASURED, "export", "--since", "2026-03-01T00:00Z", "--until", until,
                 "--format", output_format, "--output", str(tmp_path / "usage")],
                env={**os.environ, "AGGREGATOR_DATABASE_URL": db.dsn}, capture_output=True, text=True, timeout=300, check=True,
            )  # fmt: skip
            peaks.append(int(result.stderr.splitlines()[-1]))
            expected = 40_000 if until.startswith("2026-03-02") else 120_000
            assert json.loads((tmp_path / "usage.meta.json").read_text())["rows"] == expected
        assert peaks[1] - peaks[0] < 15, f"{output_format}: {peaks} MB"


def test_kill(db: Database, tmp_path: Path) -> None:
    """A kill -9 half-way leaves the old file whole; the next export removes what the killed one had begun."""
    many(db, 30_000)
    target = tmp_path / "usage.csv"
    target.write_text("old")
    arguments = ["export", "--since", "2026-03-01T00:00Z", "--output", str(target)]
    process = subprocess.Popen(
        [sys.executable, "-m", "aggregator", *arguments], env={**os.environ, "AGGREGATOR_DATABASE_URL": db.dsn}
    )
    while not any(path.stat().st_size > 100_000 for path in tmp_path.glob(".usage.csv.*")):
        assert process.poll() is None
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGSTOP)
    during = {path.name for path in tmp_path.iterdir()}
    assert len(during) == 3  # the old file, the new one's and its sidecar's beginning
    assert target.read_text() == "old"
    export.export_usage(db.own, target, collection_id=COLLECTIONS[0])  # takes nothing away from a living one
    assert during == {path.name for path in tmp_path.iterdir()} - {"usage.csv.meta.json"}
    another = target.read_bytes()
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert target.read_bytes() == another
    assert len(list(tmp_path.glob(".usage.csv.*.aggregator-export"))) == 2
    assert run(db.dsn, *arguments).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["usage.csv", "usage.csv.meta.json"]
    assert target.read_bytes().count(b"\r\n") == 30_001


def test_until_alone_counts_back(db: Database, tmp_path: Path) -> None:
    """As everywhere: --days before --until, where that is given."""
    until = datetime(2026, 5, 1, tzinfo=timezone.utc)
    done = export.export_usage(db.own, tmp_path / "april.csv", days=30, until=until)
    assert done.since == until - timedelta(days=30)


def test_a_reader_may(db: Database) -> None:
    """The role of BI tools exports, and gets the same rows."""
    db.insert("2026-03-01 00:00+00", "ai", 0, '{"tokens_in": 1.5}')
    db.execute(ROLES.replace(":source", db.source))
    since = datetime(2026, 1, 1, tzinfo=timezone.utc)
    expected = exported(db, since=since)
    db.own.execute("set role usage_reader")
    assert exported(db, since=since) == expected
    db.own.execute("reset role")
    db.execute("drop owned by usage_owner, usage_reader, usage_refresher")


def test_stdout(db: Database) -> None:
    """To stdout go the rows and nothing else; nobody who stops reading is told a story."""
    many(db, 30_000)
    result = run(db.dsn, "export", "--since", "2026-03-01T00:00Z", "--grain", "month", "--format", "ndjson")
    assert result.returncode == 0
    assert json.loads(result.stdout.splitlines()[0])["month"] == "2026-03-01"
    assert result.stderr.startswith("exported 30,000 rows from 2026-03-01 00:00:00 UTC on, as of ")
    for output_format in export.FORMATS:
        process = subprocess.Popen(
            [sys.executable, "-m", "aggregator", "export", "--since", "2026-03-01T00:00Z", "--format", output_format],
            env={**os.environ, "AGGREGATOR_DATABASE_URL": db.dsn}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(4)
        process.stdout.close()
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.wait() == 1
    assert db.scalar("select count(*) from pg_stat_activity where application_name = 'aggregator export'") == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--grain", "week"], "grain: there is no 'week'; there are day and month"),
        (["--format", "xlsx"], "format: there is no 'xlsx'"),
        (["--since", "yesterday"], "--since"),
        (["--since", "2026-03-02T00:00Z", "--until", "2026-03-01T00:00Z"], "since must be before until"),
        (["--collection", "nobody"], "no UUID"),
        (["--output", "/nowhere/usage.csv"], "cannot write /nowhere/usage.csv"),
        (["--output", "/"], "no regular file"),
        (["--output", "/dev/null"], "no regular file"),
        (["--output", "x" * 300], "cannot write"),
    ],
)
def test_what_is_refused(db: Database, arguments: list[str], words: str) -> None:
    """A user's mistake is one line and exit 2."""
    one_line(run(db.dsn, "export", *arguments), 2, words)


def test_nothing_to_export(db: Database) -> None:
    """An empty window or an unknown collection is an export without rows; a database without capture is an error."""
    assert exported(db) == (",".join(("day", *export.KEYS_AND_VALUES)) + "\r\n").encode()
    assert exported(db, "ndjson") == b""
    assert parquet.read_table(BytesIO(exported(db, "parquet"))).num_rows == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(UsageError, match=r"pip install 'usage-aggregator\[parquet\]'"):
            exported(db, "parquet")
    db.execute("select 1")
    one_line(run(db.dsn.replace(db.name, "postgres"), "export"), 2, "run aggregator migrate")
