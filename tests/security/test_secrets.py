"""Passwords, secrets of tokens and tokens: in no log, error, traceback, repr, process list, metric or statement.

See also test_no_password_in_errors in tests/unit/test_settings.py and test_log_lines_hold_no_secrets in tests/web/test_server.py.
"""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import psycopg
import pytest
from prometheus_client import generate_latest

from aggregator import capture, embedded, export, migrations, nightly, refresh, scheduler, status, usage_overview
from aggregator.db import connect
from aggregator.errors import AggregatorError, UsageError
from aggregator.settings import Settings, load_settings
from aggregator.web import auth, keys
from aggregator.web.pool import Reader
from tests.harness import Database
from tests.unit.test_settings import UNREACHABLE
from tests.web.conftest import Client, new_client, serving, token, web_db

__all__ = ["new_client", "web_db"]

ROOT = Path(__file__).parents[2]
PASSWORD = "s3cret-passw0rd"  # noqa: S105 -- nobody is asked for it
JWT = "s3cret-of-t0kens-0123456789abcdef"


def with_password(db: Database) -> Settings:
    """Settings with secrets of both kinds; the test server asks for no password, so any will do."""
    return Settings(database_url=f"{db.dsn} password={PASSWORD}", http_jwt_secret=JWT)  # type: ignore[arg-type]


def holds_no_secret(text: str) -> None:
    assert "s3cret" not in text, text


@pytest.mark.parametrize("url", UNREACHABLE)
def test_tracebacks_of_connections(url: str) -> None:
    """A traceback shows what libpq says of a connection string no more than the error does."""
    with pytest.raises(AggregatorError) as caught:
        connect(load_settings(database_url=url))
    holds_no_secret("".join(traceback.format_exception(caught.value)))


def test_tracebacks_of_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret that is refused is not shown, also where another setting is what is wrong."""
    for given in (
        {"http_jwt_secret": "s3cret"},
        {"http_jwt_secret": f"-----BEGIN PRIVATE KEY----- {JWT}"},
        {"http_jwt_secret": JWT, "keep": "forever", "database_url": f"password={PASSWORD}"},
        {"http_jwt_secret": JWT, "refresh_every": -1},
        {"database_url": f"postgresql://user:word@{PASSWORD}@127.0.0.1:1/x"},
    ):
        with pytest.raises(UsageError) as caught:
            load_settings(**given)
        holds_no_secret("".join(traceback.format_exception(caught.value)))
        with pytest.raises(ValueError, match="validation error") as failed:
            Settings(**given)
        holds_no_secret(str(failed.value) + repr(failed.value))


def test_repr(db: Database) -> None:
    """Nothing that holds a secret shows it."""
    settings = with_password(db)
    reader = Reader(settings)
    with connect(settings) as connection:
        for thing in (settings, settings.database_url, settings.http_jwt_secret, auth.authenticator(settings), reader,
                      reader._pool, connection, connection.info, scheduler.Scheduler(settings), settings.model_dump()):  # fmt: skip
            holds_no_secret(f"{thing!r} {thing}")


def test_key_set_of_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL with a password in it is refused without being shown; a query is not shown where the keys are not to be had."""
    with pytest.raises(UsageError, match="a URL with a user or password") as refused:
        keys.KeySet(f"https://user:{PASSWORD}@keys.invalid/set")
    holds_no_secret("".join(traceback.format_exception(refused.value)))
    key_set = keys.KeySet(f"http://127.0.0.1:1/set?key={PASSWORD}")
    with pytest.raises(keys.KeysUnavailableError, match="the keys of http://127.0.0.1/set are not to be had") as caught:
        key_set.find("any")
    holds_no_secret("".join(traceback.format_exception(caught.value)))


def test_logs_of_all_levels(
    db: Database, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every logger at DEBUG, of ours and of what we use: all commands, in order and while the database is away."""
    settings = with_password(db)
    monkeypatch.setenv("AGGREGATOR_DATABASE_URL", settings.conninfo)
    monkeypatch.setenv("AGGREGATOR_HTTP_JWT_SECRET", JWT)
    caplog.set_level(logging.DEBUG)
    for name in list(logging.root.manager.loggerDict):
        caplog.set_level(logging.DEBUG, name)
    migrations.downgrade(settings)
    migrations.upgrade(settings)
    with connect(settings) as own:
        capture.attach(own, settings)
        db.insert("2026-03-01 00:00+00", "ai", 0, '{"tokens_in": 3}')
        refresh.refresh(own, settings.model_copy(update={"jobs": 2}))
        assert nightly.run(own, settings).errors == []
        export.export_usage(own, io.BytesIO(), days=365)
    for log_format in ("json", "text"):
        assert scheduler.run_once(settings.model_copy(update={"log_format": log_format}))
    away = Settings(database_url=f"postgresql://user:{PASSWORD}@127.0.0.1:1/x", refresh_every=1.0)  # type: ignore[arg-type]
    for at in (settings, away):
        running = scheduler.Scheduler(at.model_copy(update={"log_format": "json"}))
        running.wake("refresh")
        running.wake("nightly")
        reader = Reader(at)
        monkeypatch.setattr(reader._pool, "timeout", 1.0)
        reader.open()
        try:
            if at is settings:
                assert reader.ask(None, lambda connection: usage_overview(connection, days=365).by_collection)
            else:
                with pytest.raises(psycopg.OperationalError) as caught:
                    reader.ask(None, usage_overview)
                holds_no_secret("".join(traceback.format_exception(caught.value)))
        finally:
            reader.close()
    printed = capfd.readouterr()
    assert '"event": "cannot work"' in printed.err
    assert len(caplog.records) > 5
    holds_no_secret(printed.out + printed.err)
    holds_no_secret("\n".join(f"{record.getMessage()} {record.args} {record.exc_text}" for record in caplog.records))


def test_http_errors_logs_and_metrics(web_db: Database, new_client: Callable[..., Client]) -> None:
    """Answers, log lines and metrics: neither password, nor secret, nor token, also when the database is away."""
    given = token(JWT)
    for dsn in (f"{web_db.dsn} password={PASSWORD}", f"postgresql://user:{PASSWORD}@127.0.0.1:1/x"):
        client = new_client(web_db, database_url=dsn, http_jwt_secret=JWT)
        client.application._reader._pool.timeout = 1.0
        seen = []
        for target in (
            "/admin/usage?days=365",
            "/admin/usage/totals",
            f"/admin/usage?since={given}",
            f"/{given}",
            "/openapi.json",
        ):
            for bearer in (given, given[:-3] + "abc", None):
                answer = client.get(target, bearer)
                seen.append(f"{answer.status} {answer.headers} {answer.body!r}")
        assert any(line.startswith("200" if dsn.startswith("host") else "500") for line in seen)
        everything = "\n".join(
            [*seen, repr(client.log.lines), generate_latest(client.application.metrics.registry).decode()]
        )
        holds_no_secret(everything)
        assert given[:-10] not in everything.replace(f"since={given}", "")


def test_what_the_server_sees(web_db: Database, new_client: Callable[..., Client]) -> None:
    """Sessions' names and statements in pg_stat_activity hold neither secret nor token."""
    settings = with_password(web_db)
    client = new_client(web_db, database_url=settings.conninfo, http_jwt_secret=JWT)
    assert client.get("/admin/usage", token(JWT)).status == 200
    with connect(settings) as own:
        refresh.refresh(own, settings)
        sessions = web_db.execute(
            "select application_name, query from pg_stat_activity where datname = current_database()"
        )
    assert {"aggregator", "aggregator serve"} <= {name for name, _ in sessions}
    holds_no_secret(repr(sessions))
    assert token(JWT)[:40] not in repr(sessions)


# Processes ----------------------------------------------------------------------------------------------------------------


def processes(root: int) -> list[int]:
    """Return a process and all that descend from it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(fields[1])
    found = [root]
    for pid in found:
        found.extend(child for child, parent in parents.items() if parent == pid)
    return found


@contextmanager
def scheduling(dsn: str) -> Iterator[tuple[int, int, list[str]]]:
    """Run ``aggregator schedule``; yield its pid, the port of its metrics, and its lines so far."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "AGGREGATOR_"))}
    environment = {**kept, "AGGREGATOR_DATABASE_URL": dsn, "AGGREGATOR_METRICS_PORT": "0", "AGGREGATOR_LOG_FORMAT": "json",
                   "AGGREGATOR_HTTP_JWT_SECRET": JWT, "AGGREGATOR_JOBS": "2"}  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "aggregator", "schedule"], env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        lines = [process.stderr.readline()]
        port = int(json.loads(lines[0])["metrics"].rpartition(":")[2])
        while not any('"job": "refresh"' in line for line in lines):
            lines.append(process.stderr.readline())
            assert lines[-1], lines  # it has ended
        yield process.pid, port, lines
        process.send_signal(signal.SIGTERM)
        lines += process.stderr.readlines()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="there is no /proc here")
def test_processes(web_db: Database) -> None:
    """The process list shows no secret, and no process is started that would inherit one; logs and metrics neither."""
    dsn = f"{web_db.dsn} password={PASSWORD}"
    with scheduling(dsn) as (pid, port, lines):
        assert processes(pid) == [pid]
        holds_no_secret(Path(f"/proc/{pid}/cmdline").read_text())
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            holds_no_secret(answer.read().decode())
    holds_no_secret("".join(lines))
    with serving(dsn, AGGREGATOR_HTTP_JWT_SECRET=JWT) as server:
        assert server.get("/admin/usage", token(JWT)).status == 200
        assert processes(server.process.pid) == [server.process.pid]
        holds_no_secret(Path(f"/proc/{server.process.pid}/cmdline").read_text())


def test_environment_of_the_embedded_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the demo starts inherits nothing of our environment."""
    monkeypatch.setenv("AGGREGATOR_DATABASE_URL", f"password={PASSWORD}")
    monkeypatch.setenv("AGGREGATOR_HTTP_JWT_SECRET", JWT)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    server = embedded.Server.__new__(embedded.Server)
    server.bin, server.folder, server.user = Path("/usr/bin"), tmp_path, None
    printed = server.run("env")
    assert "PATH=" in printed
    holds_no_secret(printed)


def test_password_on_the_command_line(db: Database) -> None:
    """Who gives it there is told that others see it, without it being repeated; data goes to stdout as ever."""

    def run(dsn: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "AGGREGATOR_"))}
        return subprocess.run(
            [sys.executable, "-m", "aggregator", "status", "--json", "--database-url", dsn],
            env=kept, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    warned = run(f"{db.dsn} password={PASSWORD}")
    assert "others see the password in --database-url" in warned.stderr
    assert json.loads(warned.stdout)["source"] == db.source
    holds_no_secret(warned.stdout + warned.stderr)
    assert run(db.dsn).stderr == ""


def test_status_and_history_show_no_connection(db: Database) -> None:
    """What is kept of runs that failed is one line of the server's, which never saw the connection string."""
    settings = with_password(db)
    db.execute("alter table public.resource_usage_log rename to elsewhere")
    with connect(settings) as own:
        with pytest.raises((psycopg.Error, AggregatorError)):
            refresh.refresh(own, settings)
        holds_no_secret(json.dumps(status.read_status(own, settings).as_dict(), default=str))
    holds_no_secret(repr(db.execute("select r::text from usage.refresh_run r")))
