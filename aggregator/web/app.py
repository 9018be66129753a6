"""The application: routes, and the order of their checks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from aggregator.db import Connection
from aggregator.settings import Settings
from aggregator.web import files, openapi, questions
from aggregator.web.answers import Refusal, encode, json_answer
from aggregator.web.auth import Authenticator, Nobody
from aggregator.web.gate import Gate
from aggregator.web.guard import Guard, known_routes
from aggregator.web.keys import LOOPBACK
from aggregator.web.metrics import Metrics
from aggregator.web.pool import Reader

PAGE = "/admin/usage/"

Question = Callable[[Connection, QueryParams], dict[str, Any]]


class Application:
    """All that one server consists of; ``asgi`` is what answers."""

    def __init__(self, settings: Settings, authenticator: Authenticator, log: Any) -> None:
        self._authenticator = authenticator
        self._reader = Reader(settings)
        self._gate = Gate(settings.http_max_reads, settings.http_max_waiting, settings.http_wait)
        self.metrics = Metrics(self._gate)
        routes = [
            Route("/admin/usage", self._answers(questions.usage)),
            Route("/admin/usage/totals", self._answers(questions.usage_totals)),
            Route("/admin/usage/daily", self._answers(questions.usage_daily)),
            Route("/healthz", _live),
            Route("/openapi.json", _describe),
        ]
        paths = [route.path for route in routes]
        if files.there_is_a_page():
            routes.append(Route(PAGE + "{name:path}", files.serve_file))
        # A bare router: Starlette's own error handlers answer in plain text, and Guard's do not.
        inner = Router(routes, redirect_slashes=False, default=_nothing, lifespan=self._lifespan)
        self.asks_for_tokens = not isinstance(authenticator, Nobody)
        hosts = None if self.asks_for_tokens else LOOPBACK
        self.asgi: ASGIApp = Guard(inner, log, self.metrics, known_routes(paths, PAGE), hosts)

    @asynccontextmanager
    async def _lifespan(self, _app: Any) -> AsyncIterator[None]:
        self._reader.open()
        try:
            yield
        finally:
            self._gate.close()
            await run_in_threadpool(self._reader.close)

    def _answers(self, question: Question) -> Callable[[Request], Awaitable[Response]]:
        """Return the endpoint of a question: who are you, may you see usage, what do you ask, and the answer."""

        async def endpoint(request: Request) -> Response:
            user = await run_in_threadpool(self._authenticator.user, request.headers)

            def work() -> Response:
                return json_answer(
                    request, self._reader.ask(user, lambda connection: question(connection, request.query_params))
                )

            return await self._gate.run(work)

        return endpoint


async def _nothing(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise Refusal(404, "there is nothing here")


async def _live(_request: Request) -> Response:
    """Say that the process answers; the database is not asked, for a restart of this would not mend it."""
    return Response(encode({"status": "ok"}), media_type="application/json", headers={"Cache-Control": "no-store"})


async def _describe(request: Request) -> Response:
    return json_answer(request, openapi.DOCUMENT)
