"""``aggregator serve``: checks before the start, then uvicorn until a signal."""

from __future__ import annotations

import signal
import socket
from typing import Any

import uvicorn

from aggregator import db, migrations
from aggregator.errors import AggregatorError, UsageError
from aggregator.scheduler import make_logger
from aggregator.settings import Settings
from aggregator.web import auth
from aggregator.web.app import Application
from aggregator.web.keys import LOOPBACK

_GRACE = 10
"""Seconds that open requests have to end in after a signal."""


def serve(settings: Settings, *, insecure_local: bool) -> None:
    """Serve until SIGTERM or SIGINT; raise AggregatorError at the start for what no retry mends."""
    authenticator = _authenticator(settings, insecure_local=insecure_local)
    log = make_logger(settings.log_format)
    _check_database(settings, log)
    with _listen(settings) as listening:
        application = Application(settings, authenticator, log)
        metrics = application.metrics.start(settings)
        try:
            _run(application, listening, log)
        finally:
            if metrics is not None:
                metrics.shutdown()
                metrics.server_close()


def _run(application: Application, listening: socket.socket, log: Any) -> None:
    server = uvicorn.Server(
        uvicorn.Config(
            application.asgi,
            http="h11",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_GRACE,
        )
    )
    # uvicorn ends in order, and then raises the signal again, which would end us with its number.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    host, port = listening.getsockname()[:2]
    log.info("serving", host=host, port=port, tokens=application.asks_for_tokens)
    server.run(sockets=[listening])
    log.info("stopped")


def _authenticator(settings: Settings, *, insecure_local: bool) -> auth.Authenticator:
    if not insecure_local:
        return auth.authenticator(settings)
    if settings.http_host not in LOOPBACK:
        raise UsageError(
            f"--insecure-local lets everybody see everything, so it may not listen on {settings.http_host}"
        )
    if settings.http_jwt_secret or settings.http_jwt_public_key or settings.http_jwt_jwks:
        raise UsageError(
            "--insecure-local asks for no token, but a key to check tokens by is configured: drop one of them"
        )
    return auth.Nobody()


def _check_database(settings: Settings, log: Any) -> None:
    """Refuse a schema that is not there or not current; a database that is away will be back."""
    try:
        with db.connect(settings, name="aggregator serve") as connection:
            migrations.require_current(connection)
    except db.DatabaseError as exc:
        log.warning("the database is away", problem=str(exc))


def _listen(settings: Settings) -> socket.socket:
    host, port = settings.http_host, settings.http_port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(found[4][:2], family=found[0])
    except OSError as exc:
        raise AggregatorError(f"cannot listen on {host}:{port} ({exc.strerror}): set AGGREGATOR_HTTP_PORT") from exc
