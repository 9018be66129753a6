"""Import the bundle into a real Superset and compare what its charts get with the read functions (make superset-check).

An embedded PostgreSQL with sample data and the roles of deploy/roles.sql; Superset in its own environment, its metadata
in SQLite, all in a temporary folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from bundle import write_bundle
from pydantic import SecretStr

from aggregator import capture, db, embedded, matviews, migrations, refresh, sample
from aggregator.settings import Settings

HERE = Path(__file__).parent
SUPERSET = HERE.parents[1] / ".venv-superset" / "bin" / "superset"

CONFIG = """
SECRET_KEY = {secret!r}
SQLALCHEMY_DATABASE_URI = "sqlite:///{folder}/superset.db"
WTF_CSRF_ENABLED = False
"""

START_SECONDS = 180

WINDOW = "usage.window_start(30, (select s.time_zone from usage.state s))"

# What each chart must add up to, by resource type or job type, straight from the read functions: key, then the sums.
EXPECTED = {
    "Events by day": (
        ("resource_type", "events"),
        "select resource_type, sum(event_count) from usage.daily_series({since}, {until}) group by 1",
    ),
    "Daily usage": (
        ("resource_type", "events", "total", "secondary"),
        "select resource_type, sum(event_count), sum(total_value), sum(secondary_value)"
        " from usage.export_rows({since}, {until}) group by 1",
    ),
    "Collections ranked, 30 days": (
        ("resource_type", "events", "total", "secondary"),
        "select resource_type, sum(event_count), sum(total_value), sum(secondary_value)"
        f" from usage.by_collection({WINDOW}) group by 1",
    ),
    "AI by job type and model level, 30 days": (
        ("job_type", "events", "tokens_in", "tokens_out"),
        f"select job_type, sum(event_count), sum(tokens_in), sum(tokens_out) from usage.ai_drilldown({WINDOW}) group by 1",
    ),
    "Trailing windows": (
        ("resource_type", "total_7d", "total_30d", "total_365d"),
        "select r.resource_type, sum(r.total_value) filter (where r.bucket >= t.day - 7),"
        " sum(r.total_value) filter (where r.bucket >= t.day - 30), sum(r.total_value)"
        " from (select max(as_of_day) as day from usage.trailing) t,"
        " usage.export_rows((t.day - 365)::timestamp at time zone 'UTC', t.day::timestamp at time zone 'UTC') r group by 1",
    ),
}


def main() -> int:
    """Return 0 if every chart's sums are the read functions', 1 otherwise."""
    with embedded.temporary_server() as server, tempfile.TemporaryDirectory(prefix="superset-") as folder:
        settings = Settings(database_url=SecretStr(server.dsn()))
        _fill(settings)
        with _superset(Path(folder), f"postgresql+psycopg2://dashboard@/postgres?host={server.folder}") as api:
            charts = api("/api/v1/chart/?q=(page_size:100)")["result"]
            assert {chart["slice_name"] for chart in charts} == set(EXPECTED)
            with psycopg.connect(server.dsn(user="dashboard")) as reader:
                equal = [_compare(api, reader, chart["id"]) for chart in charts]
    print("all equal" if all(equal) else "DIFFERENT")
    return 0 if all(equal) else 1


def _fill(settings: Settings) -> None:
    roles = (HERE.parent / "roles.sql").read_text(encoding="utf-8").replace(":source", "public.resource_usage_log")
    with db.connect(settings) as connection:
        sample.create_sample(connection, events=100_000, days=400)
        # Charts ask a little later than we do: no event may leave the window meanwhile.
        connection.execute(
            "delete from public.resource_usage_log where created_at between now() - interval '30 days 1 hour'"
            " and now() - interval '29 days 23 hours'"
        )
        migrations.upgrade(settings)
        capture.attach(connection, settings)
        refresh.refresh(connection, settings)
        matviews.refresh_views(connection)
        connection.execute(roles.encode())
        connection.execute("create role dashboard login in role usage_reader")
        connection.execute("update public.resource_usage_log set collection_id = null where id % 1000 = 0")
    print("filled: 100,000 events of 400 days, refreshed, a hundred changed since")


@contextlib.contextmanager
def _superset(folder: Path, uri: str) -> Iterator[Any]:
    """Run a Superset with the bundle imported; yield a function that asks its REST API as admin."""
    config = folder / "superset_config.py"
    config.write_text(CONFIG.format(secret=secrets.token_urlsafe(42), folder=folder))
    password = secrets.token_urlsafe(16)
    environment = {
        **os.environ, "SUPERSET_CONFIG_PATH": str(config), "SUPERSET_HOME": str(folder), "FLASK_APP": "superset",
    }  # fmt: skip
    write_bundle(folder / "usage.zip", uri)
    log = folder / "log"

    def superset(*arguments: str) -> None:
        with log.open("ab") as output:
            done = subprocess.run([SUPERSET, *arguments], env=environment, stdout=output, stderr=output, check=False)
        if done.returncode:
            sys.exit(f"superset {arguments[0]} failed:\n{log.read_text(errors='replace')[-4000:]}")

    superset("db", "upgrade")
    superset("fab", "create-admin", "--username", "admin", "--firstname", "A", "--lastname", "B", "--email", "a@example.com",
             "--password", password)  # fmt: skip
    superset("init")
    superset("import-dashboards", "-p", str(folder / "usage.zip"), "-u", "admin")
    print("imported: superset import-dashboards -p usage.zip")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with log.open("ab") as output:
        process = subprocess.Popen([SUPERSET, "run", "-p", str(port)], env=environment, stdout=output, stderr=output)
    try:
        yield _api(f"http://127.0.0.1:{port}", password)
    finally:
        process.terminate()
        process.wait()


def _api(base: str, password: str) -> Any:
    headers = {"Content-Type": "application/json"}

    def ask(path: str, body: Any = None) -> Any:
        request = urllib.request.Request(base + path, None if body is None else json.dumps(body).encode(), headers)  # noqa: S310 -- http, ours
        try:
            with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310
                return json.load(response)
        except urllib.error.HTTPError as exc:
            sys.exit(f"{path}: {exc.code} {exc.read().decode(errors='replace')[:4000]}")

    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            login = {"username": "admin", "password": password, "provider": "db", "refresh": False}
            headers["Authorization"] = f"Bearer {ask('/api/v1/security/login', login)['access_token']}"
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return ask


def _compare(api: Any, reader: psycopg.Connection[Any], chart_id: int) -> bool:
    """Print and return whether a chart's own query, run by Superset, adds up to the read functions."""
    chart = api(f"/api/v1/chart/{chart_id}")["result"]
    (result,) = api("/api/v1/chart/data", json.loads(chart["query_context"]))["result"]
    (key, *sums), query = EXPECTED[chart["slice_name"]]
    found: dict[str | None, list[float]] = {}
    for row in result["data"]:
        group = found.setdefault(row[key], [0.0] * len(sums))
        for index, name in enumerate(sums):
            group[index] += float(row[name])
    instants = {
        name: f"to_timestamp({result[label] / 1000})" if result[label] else "null"
        for name, label in (("since", "from_dttm"), ("until", "to_dttm"))
    }
    rows = reader.execute(query.format(**instants).encode()).fetchall()
    expected = {row[0]: [float(value or 0) for value in row[1:]] for row in rows}
    equal = bool(expected) and found.keys() == expected.keys() and all(
        abs(ours - theirs) <= abs(theirs) * 1e-12
        for name in expected for ours, theirs in zip(found[name], expected[name], strict=True)
    )  # fmt: skip
    total = sum(group[0] for group in expected.values())
    print(
        f"{'equal' if equal else 'DIFFERENT':9}  {chart['slice_name']}: {result['rowcount']:,} rows,"
        f" {len(expected)} groups of {key}, {sums[0]} {total:,.0f}"
    )
    if not equal:
        print(f"  found {found}\n  expected {expected}\n  {result.get('query')}")
    return equal


if __name__ == "__main__":
    sys.exit(main())
