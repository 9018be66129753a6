"""BI tools, as a login role that may read answers and nothing else: the same numbers as ``show``."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import psycopg
import pytest
import sqlalchemy as sa
import yaml

from aggregator import matviews
from aggregator.read import usage_overview
from tests.harness import Database

DEPLOY = Path(__file__).parents[2] / "deploy"
ROLES = (DEPLOY / "roles.sql").read_text(encoding="utf-8")
BUNDLE = DEPLOY / "superset" / "bundle"

READABLE = ("daily_live", "monthly_live", "freshness", "daily", "monthly", "daily_total", "trailing", "monthly_ranking")


@pytest.fixture
def reader(db: Database) -> Iterator[tuple[Database, str]]:
    """Whole local days of usage, half of it refreshed, and the DSN of a login role in usage_reader."""
    for n in range(1, 13):
        db.execute(
            "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at) values"
            " (%s, %s, %s, date_trunc('day', now()) - make_interval(days => %s) + interval '10 hours')",
            (
                f"00000000-0000-0000-0000-00000000000{n % 5 + 1}", ["ai", "cas", "unknown"][n % 3],
                f'{{"tokens_in": {n}.25, "tokens_out": {n}, "size_bytes": {n}000, "job_type": "job {n % 2}"}}', n,
            ),
        )  # fmt: skip
        if n == 6:
            db.refresh()
            matviews.refresh_views(db.own)
    db.execute("update public.resource_usage_log set resource_type = 'ai' where detail->>'tokens_out' = '2'")
    db.execute(ROLES.replace(":source", db.source))
    name = f"{db.name}_bi"
    db.execute(f"create role {name} login in role usage_reader")
    yield db, db.dsn.replace("user=postgres", f"user={name}")
    db.execute(f"drop owned by usage_owner, usage_reader, usage_refresher; drop role {name}")


def shown(db: Database) -> dict[tuple[str | None, str | None], tuple[int, float, float]]:
    """Return what show says of the last 30 days, by collection and type."""
    rows = usage_overview(db.connection, days=30).by_collection
    return {
        (str(row.collection_id), row.resource_type): (row.event_count, row.total_value, row.secondary_value)
        for row in rows
    }


def engine(dsn: str) -> sa.Engine:
    """Return an SQLAlchemy engine that connects as that DSN says, and keeps no connection."""
    return sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn), poolclass=sa.NullPool)


def test_every_column_is_described(db: Database) -> None:
    """Every column of every table, view and materialized view has a comment; sums name their unit."""
    columns = db.execute(
        "select c.relname || '.' || a.attname, coalesce(col_description(c.oid, a.attnum), '')"
        " from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped"
        " where c.relnamespace = 'usage'::regnamespace and c.relkind in ('r', 'p', 'v', 'm')"
    )
    assert len(columns) > 150
    assert [name for name, text in columns if not text] == []
    for name, text in columns:
        if ("total_value" in name or "secondary_value" in name) and not name.startswith("restatement"):
            assert "unit" in text or "total_value" in text, f"{name}: {text}"


def test_sqlalchemy_reflection(reader: tuple[Database, str]) -> None:
    """Reflected tables carry the comments, and the live view has show's numbers, to the digit."""
    db, dsn = reader
    with engine(dsn).connect() as connection:
        metadata = sa.MetaData(schema="usage")
        metadata.reflect(connection, views=True, only=READABLE)
        for name in READABLE:
            assert metadata.tables[f"usage.{name}"].columns
        comments = {c["name"]: c["comment"] for c in sa.inspect(connection).get_columns("daily_live", schema="usage")}
        assert comments["total_value"] == "Exact sum, in unit."
        live = metadata.tables["usage.daily_live"]
        query = sa.select(
            live.c.collection_id, live.c.resource_type, sa.func.sum(live.c.event_count),
            sa.func.sum(live.c.total_value), sa.func.sum(live.c.secondary_value),
        ).group_by(live.c.collection_id, live.c.resource_type)  # fmt: skip
        found = {
            (str(row[0]), row[1]): (int(row[2]), float(row[3]), float(row[4])) for row in connection.execute(query)
        }
    assert found == shown(db)


def test_pandas(reader: tuple[Database, str]) -> None:
    """A data frame of the live view, and of a read function, has show's numbers."""
    db, dsn = reader
    with engine(dsn).connect() as connection:
        frame = pd.read_sql_table("daily_live", connection, schema="usage")
        called = pd.read_sql("select * from usage.by_collection(now() - interval '30 days')", connection)
    sums: Any = frame.groupby(["collection_id", "resource_type"])[
        ["event_count", "total_value", "secondary_value"]
    ].sum()
    assert {
        (str(collection), kind): (int(row[0]), float(row[1]), float(row[2]))
        for (collection, kind), row in zip(sums.index, sums.itertuples(index=False), strict=True)
    } == shown(db)
    assert {
        (str(row.collection_id), row.resource_type): (row.event_count, row.total_value, row.secondary_value)
        for row in called.itertuples()
    } == shown(db)


def test_duckdb(reader: tuple[Database, str], tmp_path: Path) -> None:
    """DuckDB's postgres reader, signed and from the package index, has show's numbers; nothing is downloaded here."""
    packaged = pytest.importorskip("duckdb_extension_postgres")
    db, dsn = reader
    (extension,) = Path(packaged.__file__).parent.rglob("*.duckdb_extension")
    named = tmp_path / "postgres_scanner.duckdb_extension"  # its name is that of its entry point
    named.symlink_to(extension)
    with duckdb.connect(config={"autoinstall_known_extensions": "false"}) as connection:
        connection.execute(f"load '{named}'")
        connection.execute(f"attach '{dsn}' as app (type postgres, read_only)")
        rows = connection.execute(
            "select collection_id::text, resource_type, sum(event_count), sum(total_value), sum(secondary_value)"
            " from app.usage.daily_live group by all"
        ).fetchall()
    assert {(row[0], row[1]): (int(row[2]), float(row[3]), float(row[4])) for row in rows} == shown(db)


def test_what_is_not_for_readers(reader: tuple[Database, str]) -> None:
    """The role reads no raw rows, and its views say the day that they are of."""
    _, dsn = reader
    with psycopg.connect(dsn, autocommit=True) as connection:
        for raw in ("public.resource_usage_log", "usage.pending", "usage.rejected_event", "usage.late_change"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"select * from {raw}".encode())
        assert connection.execute(
            "select sum(total_value_30d), max(as_of_day) = current_date from usage.trailing where resource_type = 'cas'"
        ).fetchone() == (Decimal(5000), True)


def test_superset_bundle(reader: tuple[Database, str], tmp_path: Path) -> None:
    """Its datasets name columns and functions that are there, and every chart and the dashboard what they are made of."""
    _, dsn = reader
    files = {
        path.relative_to(BUNDLE): yaml.safe_load(path.read_text(encoding="utf-8")) for path in BUNDLE.rglob("*.yaml")
    }
    by_folder: dict[str, dict[str, Any]] = {}
    for path, content in files.items():
        if len(path.parts) > 1:
            by_folder.setdefault(path.parts[0], {})[content["uuid"]] = content
    with psycopg.connect(dsn) as connection:
        for dataset in by_folder["datasets"].values():
            assert dataset["database_uuid"] in by_folder["databases"]
            source = dataset["sql"] or f"usage.{dataset['table_name']}"
            cursor = connection.execute(
                f"select * from {f'({source}) s' if dataset['sql'] else source} limit 0".encode()
            )
            assert cursor.description is not None
            assert {column["column_name"] for column in dataset["columns"]} == {
                column.name for column in cursor.description
            }
            for metric in dataset["metrics"]:
                connection.execute(
                    f"select {metric['expression']} from {f'({source}) s' if dataset['sql'] else source}".encode()
                )
    for chart in by_folder["charts"].values():
        dataset = by_folder["datasets"][chart["dataset_uuid"]]
        assert set(chart["params"]["metrics"]) <= {metric["metric_name"] for metric in dataset["metrics"]}
        assert set(chart["params"]["groupby"]) <= {column["column_name"] for column in dataset["columns"]}
    (dashboard,) = by_folder["dashboards"].values()
    placed = {
        item["meta"]["uuid"]
        for item in dashboard["position"].values()
        if isinstance(item, dict) and item["type"] == "CHART"
    }
    assert placed == set(by_folder["charts"])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BUNDLE.parent))
        from bundle import write_bundle  # type: ignore[import-not-found]

        write_bundle(tmp_path / "usage.zip", "postgresql+psycopg2://someone@db.example/app")
    with zipfile.ZipFile(tmp_path / "usage.zip") as archive:
        assert set(archive.namelist()) == {f"usage/{path}" for path in files}
        assert b"someone@db.example" in archive.read("usage/databases/usage.yaml")
