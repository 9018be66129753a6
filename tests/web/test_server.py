"""``aggregator serve`` as operators run it: a process, its start, its headers, its logs, its limits, its database."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from aggregator import cli, embedded, migrations
from aggregator.errors import AggregatorError, UsageError
from aggregator.settings import Settings
from aggregator.web import files, server
from aggregator.web.auth import Nobody
from tests.cli.test_cli import one_line, run
from tests.conftest import SERVER_SETTINGS
from tests.harness import SCHEMA, Database
from tests.integration.test_roles import ROLES
from tests.web.conftest import ADMIN, EDGES, SECRET, Client, serving, token


def test_refuses_to_start(db: Database) -> None:
    """Without a key, without tokens on any but the loopback address, without the schema: one line, 2."""
    one_line(run(db.dsn, "serve"), 2, "AGGREGATOR_HTTP_JWT_SECRET", "--insecure-local")

    def refused(words: str, code: int, *, insecure_local: bool = True, **settings: Any) -> None:
        with pytest.raises(AggregatorError, match=words) as caught:
            server.serve(
                Settings(**{"database_url": db.dsn, "http_port": 0, **settings}), insecure_local=insecure_local
            )
        assert caught.value.exit_code == code

    for host in ("0.0.0.0", "::", "", "192.0.2.1", "example.org"):  # noqa: S104 -- refused
        refused("may not listen", 2, http_host=host)
    refused("drop one of them", 2, http_jwt_secret=SECRET)
    refused("only one of", 2, insecure_local=False, http_jwt_secret=SECRET, http_jwt_jwks="x")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused("set AGGREGATOR_HTTP_PORT", 1, http_port=port)
        refused("set AGGREGATOR_HTTP_METRICS_PORT", 1, http_metrics_port=port)
    db.execute("drop schema usage cascade")
    refused("aggregator migrate", 2)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command says which packages it wants."""
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "aggregator.web.server")
    monkeypatch.delattr("aggregator.web.server")
    result = CliRunner().invoke(cli.app, ["serve"])
    assert isinstance(result.exception, UsageError)
    assert "pip install 'usage-aggregator[web]'" in str(result.exception)


def test_as_reader_with_metrics(web_db: Database) -> None:
    """Role usage_reader and the edges are enough; metrics are on a port of their own; SIGTERM ends it with 0."""
    db = web_db
    db.execute(ROLES.replace(":source", db.source))
    db.execute("grant select (source_id, edge_type) on public.edges to usage_reader")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dsn = f"{db.dsn} options='-c role=usage_reader -c default_transaction_isolation=serializable'"
    try:
        with serving(dsn, "--http-metrics-port", str(port), AGGREGATOR_HTTP_JWT_SECRET=SECRET) as serve:
            assert serve.get("/admin/usage?receipt=true").status == 200
            assert serve.get("/admin/usage/totals?by=collection&grain=week").status == 200
            assert serve.get("/metrics").status == 404
            text, deadline = "", time.monotonic() + 10
            while 'status="404"' not in text and time.monotonic() < deadline:  # counted right after it is sent
                connection = http.client.HTTPConnection("127.0.0.1", port)
                connection.request("GET", "/metrics")
                text = connection.getresponse().read().decode()
                connection.close()
        wanted = 'aggregator_http_requests_total{method="GET",route="/admin/usage",status="200"} 1.0'
        assert wanted in text
        assert 'route="other",status="404"' in text
        assert "aggregator_http_requests_reading 0.0" in text
    finally:
        db.execute("drop owned by usage_owner, usage_reader, usage_refresher")


def test_headers_methods_and_paths(client: Client) -> None:
    """Every answer has the headers; what is no GET or HEAD, or not there, gets the contract's error form."""
    for target, method, status in (
        ("/admin/usage", "GET", 200), ("/admin/usage", "HEAD", 200), ("/healthz", "GET", 200), ("/openapi.json", "GET", 200),
        ("/admin/usage", "OPTIONS", 405), ("/admin/usage", "POST", 405), ("/nothing", "TRACE", 405), ("/", "GET", 404),
        ("/admin/usage/totals/", "GET", 404), ("/admin", "GET", 404), ("/admin/usage?" + "x" * 9000, "GET", 414),
        ("/metrics", "GET", 404), ("/admin/usage?days=x", "GET", 400),
    ):  # fmt: skip
        answer = client.get(target, method=method)
        assert answer.status == status, (target, method)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert "server" not in answer.headers
        if status >= 400:
            assert answer.error
        if status == 405:
            assert answer.headers["allow"] == "GET, HEAD"
    assert client.get("/admin/usage", content_length="70000").status == 413
    assert client.get("/admin/usage", None, method="HEAD").status == 401


def test_log_lines_hold_no_secrets(client: Client) -> None:
    """One line a request: method, route, status, time; neither token nor query, nor a path that a client made up."""
    secret = token()
    for target in (f"/admin/usage?token={secret}", f"/{secret}", f"/admin/usage/{secret}", f"/healthz?x={secret}"):
        client.get(target, secret)
        client.get(target, f"{secret}x")
    assert len(client.log.lines) == 8
    assert {facts["route"] for _, facts in client.log.lines} == {"/admin/usage", "/admin/usage/*", "/healthz", "other"}
    assert secret[:20] not in repr(client.log.lines)
    assert set(client.log.lines[0][1]) == {"method", "route", "status", "ms", "client"}


def test_page_is_served(web_db: Database, new_client: Callable[..., Client], tmp_path: Path, monkeypatch: Any) -> None:
    """Without a token, under its own policy, by ETag; only files that are there, of no other folder."""
    (tmp_path / "secret.txt").write_text("secret")
    folder = tmp_path / "static"
    (folder / "fonts").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html>" + "x" * 2000)
    (folder / "fonts" / "a.woff2").write_bytes(b"font")
    (folder / "page.js").write_text("0")
    monkeypatch.setattr(files, "FOLDER", folder)
    client = new_client(web_db)
    index = client.get("/admin/usage/", None)
    assert (index.status, index.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert index.headers["content-security-policy"] == files.PAGE_POLICY
    assert index.headers["cache-control"] == "no-cache"
    assert client.get("/admin/usage/", None, if_none_match=index.headers["etag"]).status == 304
    assert client.get("/admin/usage/", None, accept_encoding="gzip").headers["content-encoding"] == "gzip"
    assert client.get("/admin/usage/fonts/a.woff2", None).headers["content-type"] == "font/woff2"
    assert client.get("/admin/usage/page.js", None).headers["content-type"].startswith("text/javascript")
    for path in (
        "../secret.txt",
        "..%2fsecret.txt",
        "fonts",
        "fonts/",
        "/etc/passwd",
        "fonts/../index.html",
        "%00",
        "x.js",
    ):
        assert client.get(f"/admin/usage/{path}", None).status == 404, path
    (folder / "page.js").write_text("1")
    os.utime(folder / "page.js", ns=(1, 1))
    assert client.get("/admin/usage/page.js", None).body == b"1"


def test_insecure_local_answers_to_loopback_names_only(web_db: Database, new_client: Callable[..., Client]) -> None:
    """No token is asked for, but a page of another site cannot make its own name lead here (DNS rebinding)."""
    client = new_client(web_db, Nobody(), http_jwt_secret=None)
    for host in ("127.0.0.1", "localhost:8080", "[::1]:8080", "LOCALHOST"):
        assert client.get("/admin/usage", None, host=host).status == 200
    for host in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", "", "[::2]", "localhost@evil.example"):
        assert client.get("/admin/usage", None, host=host).status == 421
    assert client.raw("/admin/usage", []).status == 421


def test_too_many(web_db: Database) -> None:
    """One reads, one waits, the others get 503 with Retry-After at once; who waits too long does too; health goes on."""
    blocker = web_db.connect(autocommit=False)
    with serving(
        web_db.dsn, "--http-max-reads=1", "--http-max-waiting=1", "--http-wait=1.5", AGGREGATOR_HTTP_JWT_SECRET=SECRET
    ) as serve:
        assert serve.get("/admin/usage").status == 200
        blocker.execute(b"lock table public.edges in access exclusive mode")
        with ThreadPoolExecutor(8) as threads:
            asked = [threads.submit(serve.get, "/admin/usage") for _ in range(8)]
            while sum(one.done() for one in asked) < 7:
                time.sleep(0.02)
            assert serve.get("/healthz", None).status == 200
            blocker.rollback()
            answers = [one.result() for one in asked]
        assert sorted(answer.status for answer in answers) == [200, *[503] * 7]
        for answer in answers:
            if answer.status == 503:
                assert answer.headers["retry-after"] == "1"
                assert answer.error == "too many requests at a time; try again"
        assert serve.get("/admin/usage").status == 200


def test_statement_timeout(web_db: Database, new_client: Callable[..., Client]) -> None:
    """A statement that takes too long is a failure, and the connection is good again after it."""
    client = new_client(web_db, http_statement_timeout=0.2, http_max_reads=1)
    blocker = web_db.connect(autocommit=False)
    blocker.execute(b"lock table public.edges in access exclusive mode")
    assert client.get("/admin/usage").status == 500
    blocker.rollback()
    assert client.get("/admin/usage").status == 200


def test_sessions_that_were_cut(web_db: Database, new_client: Callable[..., Client]) -> None:
    """Connections that died in the pool cost no request."""
    client = new_client(web_db)
    for _ in range(3):
        assert client.get("/admin/usage").status == 200
        cut = "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity where application_name = 'aggregator serve' and datname = %s"
        assert web_db.scalar(cut, (web_db.name,)) >= 1
        assert client.get("/admin/usage").status == 200


def test_database_that_goes_away(tmp_path: Path) -> None:
    """Away: a failure, said shortly, and no restart is needed when it is back; it may be away at the start too."""
    if os.environ.get("AGGREGATOR_TEST_DSN"):
        pytest.skip("stops the server, so it needs one of its own")
    programs = os.environ.get("AGGREGATOR_TEST_BIN")
    with embedded.temporary_server(Path(programs) if programs else None, SERVER_SETTINGS) as postgres:
        dsn = postgres.dsn()
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(SCHEMA.encode())
            connection.execute(EDGES.encode())
        db = Database(dsn.replace(" dbname=postgres", ""), "postgres", "UTC", {})
        migrations.upgrade(db.settings)
        db.attach()
        db.close()
        postgres.stop()
        with serving(dsn, AGGREGATOR_HTTP_JWT_SECRET=SECRET) as serve:
            for _ in range(2):
                answer = serve.get("/admin/usage")
                assert (answer.status, answer.body) == (500, b'{"error":"the request failed"}')
                assert serve.get("/admin/usage", None).status == 401
                assert serve.get("/healthz", None).status == 200
                postgres.start()
                until = time.monotonic() + 60
                while serve.get("/admin/usage").status != 200:
                    assert time.monotonic() < until
                postgres.stop()
        postgres.start()


def test_openapi_names_every_route(client: Client) -> None:
    """The document describes what there is; every reference leads somewhere."""
    answer = client.get("/openapi.json", None)
    assert answer.status == 200
    document = answer.json
    assert set(document["paths"]) == {"/admin/usage", "/admin/usage/totals", "/admin/usage/daily", "/healthz"}
    for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)):
        assert name in document["components"]["schemas"]
    for path in ("/admin/usage", "/admin/usage/totals"):
        assert client.get(path, token(sub=str(ADMIN))).status == 200
