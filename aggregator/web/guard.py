"""Around every request: headers that keep browsers from guessing, limits, one log line, and no answer from the inside."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aggregator import db
from aggregator.web.answers import Refusal, error
from aggregator.web.metrics import Metrics

API_POLICY = "default-src 'none'; frame-ancestors 'none'"

_HEADERS = {
    "Content-Security-Policy": API_POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

_LONGEST_TARGET = 8192
_LARGEST_BODY = 65536


class Guard:
    """Answers errors in the contract's form, and counts and logs every request, without query, token or unknown path."""

    def __init__(
        self,
        app: ASGIApp,
        log: Any,
        metrics: Metrics,
        route_of: Callable[[str], str],
        hosts: frozenset[str] | None,
    ) -> None:
        self._app = app
        self._log = log
        self._metrics = metrics
        self._route_of = route_of
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        status = 0

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        problem: str | None = None
        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                raise refusal
            await self._app(scope, receive, send_guarded)
        except Exception as exc:
            answer, problem = _answer_of(exc)
            if status:
                raise  # too late for another answer: the server cuts the connection
            await answer(scope, receive, send_guarded)
        finally:
            seconds = time.perf_counter() - begun
            route = self._route_of(scope["path"])
            self._metrics.count(route, scope["method"], status, seconds)
            self._write(scope, route, status, seconds, problem)

    def _refusal(self, scope: Scope) -> Refusal | None:
        if scope["method"] not in {"GET", "HEAD"}:
            return Refusal(405, "the method is not allowed", {"Allow": "GET, HEAD"})
        headers = dict(scope["headers"])
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > _LONGEST_TARGET:
            return Refusal(414, "the URL is too long")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > _LARGEST_BODY:
            return Refusal(413, "no body is expected")
        host = headers.get(b"host", b"").decode("latin-1")
        # Without tokens, a page of any site could have its own name lead here, and read along (DNS rebinding).
        if self._hosts is not None and _name_of(host) not in self._hosts:
            return Refusal(421, "this server answers to its loopback name only")
        return None

    def _write(self, scope: Scope, route: str, status: int, seconds: float, problem: str | None) -> None:
        client = scope.get("client")
        facts = {
            "method": scope["method"], "route": route, "status": status, "ms": round(seconds * 1000, 1),
            "client": client[0] if client else None,
        }  # fmt: skip
        if problem is None:
            self._log.info("request", **facts)
        else:
            self._log.error("request failed", **facts, problem=problem)


def _answer_of(exc: Exception) -> tuple[ASGIApp, str | None]:
    """Return what to answer to an error, and what to log of it."""
    if isinstance(exc, Refusal):
        return error(exc.status, str(exc), exc.headers), None
    return error(500, "the request failed"), f"{type(exc).__name__}: {db.one_line(exc)}"


def _name_of(host: str) -> str:
    """Return a Host header without its port."""
    return host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0].lower()


def known_routes(paths: Iterable[str], page: str) -> Callable[[str], str]:
    """Return what names the route of a path in logs and metrics: nothing that a client made up."""
    known = frozenset(paths)

    def route_of(path: str) -> str:
        if path in known:
            return path
        return f"{page}*" if path.startswith(page) else "other"

    return route_of
