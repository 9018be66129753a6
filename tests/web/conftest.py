"""A server of our own for each test: in this process, or a subprocess as operators run it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from uuid import UUID

import jwt
import pytest

from aggregator.settings import Settings
from aggregator.web import auth
from aggregator.web.app import Application
from tests.harness import COLLECTIONS, Database

ROOT = Path(__file__).parents[2]
SECRET = "0123456789abcdef" * 4
ADMIN = UUID("aaaaaaaa-0000-0000-0000-000000000001")
STRANGER = UUID("aaaaaaaa-0000-0000-0000-000000000002")

EDGES = (
    "create table public.edges (source_id uuid, target_id uuid, edge_type text);"
    f"insert into public.edges values ('{ADMIN}', '{COLLECTIONS[0]}', 'admin'), ('{STRANGER}', '{COLLECTIONS[0]}', 'member')"
)


@dataclass(frozen=True)
class Answer:
    """What came back; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The text of an error, whose body has nothing else."""
        assert list(self.json) == ["error"]
        return str(self.json["error"])


def token(key: Any = SECRET, *, algorithm: str = "HS256", headers: Any = None, **claims: Any) -> str:
    """Return a token of the admin that is good for a minute; a claim of None is left out."""
    given = {"sub": str(ADMIN), "exp": int(time.time()) + 60, **claims}
    return jwt.encode(
        {name: value for name, value in given.items() if value is not None}, key, algorithm=algorithm, headers=headers
    )


class Log:
    """Keeps what the server would have logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **facts: Any) -> None:
        self.lines.append((event, facts))

    warning = error = info


class Client:
    """Asks an application in this process, through ASGI, from an event loop of its own."""

    def __init__(self, settings: Settings, authenticator: auth.Authenticator | None = None) -> None:
        self.log = Log()
        self._loop = asyncio.new_event_loop()
        self.application = self._loop.run_until_complete(self._make(settings, authenticator))

    async def _make(self, settings: Settings, authenticator: auth.Authenticator | None) -> Application:
        application = Application(settings, authenticator or auth.authenticator(settings), self.log)
        application._reader.open()
        return application

    def close(self) -> None:
        self.application._gate.close()
        self.application._reader.close()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def get(self, target: str, bearer: str | None = "", *, method: str = "GET", **headers: str) -> Answer:
        """Ask with a good token, or with the given one, or (None) without; ``if_none_match`` is If-None-Match."""
        given = [
            (name.replace("_", "-").encode(), value.encode())
            for name, value in {"host": "127.0.0.1", **headers}.items()
        ]
        if bearer is not None:
            given.append((b"authorization", f"Bearer {bearer or token()}".encode()))
        return self.raw(target, given, method)

    def raw(self, target: str, headers: list[tuple[bytes, bytes]], method: str = "GET") -> Answer:
        """Ask with exactly these headers."""
        path, _, query = target.partition("?")
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "", "headers": headers,
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        }  # fmt: skip
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        self._loop.run_until_complete(self.application.asgi(scope, receive, send))
        body = b"".join(message.get("body", b"") for message in sent[1:])
        return Answer(sent[0]["status"], {k.decode().lower(): v.decode() for k, v in sent[0]["headers"]}, body)


@pytest.fixture
def web_db(db: Database) -> Database:
    """Attached, with who may administer what, and a few events of all kinds; refreshed once, then two events more."""
    db.execute(EDGES)
    for n in range(40):
        detail = {"tokens_in": n + 0.5, "tokens_out": 2, "duration_seconds": 1.25, "size_bytes": 10**n % 10**15,
                  "job_type": ["chat", None, "embed"][n % 3], "model_level": ["high", "low"][n % 2]}  # fmt: skip
        db.execute(
            "insert into public.resource_usage_log (collection_id, resource_type, detail, created_at) values"
            " (%s, %s, %s, now() - make_interval(hours => %s))",
            (
                None if n % 7 == 6 else COLLECTIONS[n % 7],
                ["ai", "whisper", "cas", "ai", "other", None][n % 6],
                json.dumps(detail),
                n * 20,
            ),
        )
        if n == 1:
            db.refresh()
    return db


@pytest.fixture
def new_client() -> Iterator[Callable[..., Client]]:
    """A function that makes a client of a server with these settings."""
    made: list[Client] = []

    def make(db: Database, authenticator: auth.Authenticator | None = None, **settings: Any) -> Client:
        given = {"database_url": db.dsn, "http_jwt_secret": SECRET, **settings}
        made.append(Client(Settings(**given), authenticator))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(web_db: Database, new_client: Callable[..., Client]) -> Client:
    """A client of a server on ``web_db`` that checks HS256."""
    return new_client(web_db)


@dataclass
class Server:
    """``aggregator serve`` in a process of its own."""

    process: subprocess.Popen[str]
    port: int

    def get(self, target: str, bearer: str | None = "", *, method: str = "GET", timeout: float = 60) -> Answer:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            headers = {} if bearer is None else {"Authorization": f"Bearer {bearer or token()}"}
            connection.request(method, target, headers=headers)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()


@contextmanager
def serving(dsn: str, *arguments: str, **environment: str) -> Iterator[Server]:
    """Run the server on a free port until the block ends, then by SIGTERM, which it must obey with 0."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "AGGREGATOR_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "aggregator", "serve", "--http-port", "0", *arguments],
        env={**kept, "AGGREGATOR_DATABASE_URL": dsn, **environment},
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        seen = ""
        while (found := re.search(r"event=serving .*port=(\d+)", seen)) is None:
            line = process.stderr.readline()
            assert line, seen
            seen += line
        # A pipe that nobody reads would stop the server.
        drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        process.stderr.close()
        server = Server(process, int(found[1]))
        while True:
            try:
                server.get("/healthz", None)
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.02)
        yield server
        process.terminate()
        assert process.wait(30) == 0
        drain.wait(10)
    finally:
        process.kill()
        process.wait()
