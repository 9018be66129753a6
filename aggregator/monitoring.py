"""Being seen: Prometheus metrics and health of the scheduler, on a port of its own if one is configured.

What the database knows is read when it is asked for, at most every few seconds; what the scheduler did is counted.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

import psycopg
from prometheus_client import CollectorRegistry, Counter, Histogram, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from aggregator import migrations
from aggregator.db import connect
from aggregator.errors import AggregatorError
from aggregator.settings import Settings
from aggregator.status import Status, read_status

_FRESH = 5.0
"""Seconds that a status is good for: a scrape costs the database one reading at most."""


class StatusReader:
    """Reads the status when it is asked for, through a connection of its own; None while the database is away."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._status: Status | None = None

    def __call__(self) -> Status | None:
        """Return the status, some seconds old at most."""
        with self._lock:
            if time.monotonic() - self._read_at > _FRESH:
                try:
                    with connect(self._settings, name="aggregator monitoring") as connection:
                        migrations.require_current(connection)
                        self._status = read_status(connection, self._settings)
                except (psycopg.Error, AggregatorError):
                    self._status = None
                self._read_at = time.monotonic()
            return self._status


class _StatusCollector(Collector):
    def __init__(self, read: Callable[[], Status | None]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Return nothing: describing would read the database when the registry is made."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield what the database knows."""
        status = self._read()

        def gauge(name: str, text: str, value: float | None) -> Iterator[Metric]:
            if value is not None:
                yield GaugeMetricFamily(f"aggregator_{name}", text, value=value)

        yield from gauge("up", "1 if the status could be read from the database.", float(status is not None))
        if status is None:
            return
        yield from gauge("healthy", "1 if nothing needs anybody.", float(status.healthy))
        yield from gauge("trusted", "1 if readers use the rollups; 0: they read raw.", float(status.doubt is None))
        yield from gauge("lag_seconds", "Age of the frontier.", status.lag_seconds)
        yield from gauge("pending_changes", "Late changes waiting for a refresh.", status.pending_changes)
        yield from gauge("tail_events", "Events from the frontier on, counted up to 100001.", status.tail_events)
        yield from gauge("rejected_share", "Share of the last 30 days' events with a value that is no number.", status.rejected_share)  # fmt: skip
        yield from gauge("rejected_values", "Values in the rollups that are no numbers and count as 0.", status.rejected_values)  # fmt: skip
        yield from gauge("last_refresh_timestamp_seconds", "When a refresh last went well.", status.last_refreshed_seconds)  # fmt: skip
        yield from gauge(
            "last_verification_timestamp_seconds", "When days were last found equal.", status.last_verified_seconds
        )
        problems = GaugeMetricFamily("aggregator_problem", "1 for each problem that status names.", labels=["code"])
        for problem in status.problems:
            problems.add_metric([problem.code], 1)
        yield problems


class Monitor:
    """Counts what the scheduler did, and serves it with the state of the rollups."""

    def __init__(self, settings: Settings, alive: Callable[[], bool]) -> None:
        self._settings = settings
        self._alive = alive
        self._read = StatusReader(settings)
        self._server: WSGIServer | None = None
        self.registry = CollectorRegistry()
        self.registry.register(_StatusCollector(self._read))
        self.runs = Counter("aggregator_runs", "Runs by job and outcome.", ["job", "outcome"], registry=self.registry)
        self.seconds = Histogram(
            "aggregator_run_seconds", "Duration of runs.", ["job"], registry=self.registry,
            buckets=(0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400),
        )  # fmt: skip
        self.events = Counter("aggregator_folded_events", "Raw events folded.", registry=self.registry)
        self.late_changes = Counter("aggregator_folded_late_changes", "Late changes folded.", registry=self.registry)
        self.differences = Counter(
            "aggregator_differences_found", "Rollup rows that differed from the raw events.", registry=self.registry
        )
        self.purged = Counter("aggregator_purged_events", "Raw events deleted by purge.", registry=self.registry)

    def start(self) -> int | None:
        """Open the port, if one is configured, and return it; raise AggregatorError if it is not to be had."""
        port = self._settings.metrics_port
        if port is None:
            return None
        try:
            self._server = make_server(
                self._settings.metrics_host, port, self._application(), _ThreadingServer, _QuietHandler
            )
        except OSError as exc:
            raise AggregatorError(
                f"cannot open {self._settings.metrics_host}:{port} for metrics ({exc.strerror}): set AGGREGATOR_METRICS_PORT"
            ) from exc
        threading.Thread(target=self._server.serve_forever, name="monitoring", daemon=True).start()
        return int(self._server.server_port)

    def stop(self) -> None:
        """Close the port."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _application(self) -> Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]:
        metrics = make_wsgi_app(self.registry)

        def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            path = environ.get("PATH_INFO", "")
            if environ.get("REQUEST_METHOD") not in {"GET", "HEAD"}:
                return _answer(start_response, "405 Method Not Allowed", {"error": "GET only"})
            if path == "/metrics":
                return metrics(environ, start_response)  # type: ignore[no-any-return]
            if path == "/health/live":
                alive = self._alive()
                return _answer(start_response, "200 OK" if alive else "503 Service Unavailable", {"alive": alive})
            if path == "/health/ready":
                return _answer(start_response, *self._ready())
            return _answer(start_response, "404 Not Found", {"error": "/metrics, /health/live or /health/ready"})

        return application

    def _ready(self) -> tuple[str, dict[str, Any]]:
        status = self._read()
        if status is None:
            return "503 Service Unavailable", {"healthy": False, "problems": ["the database cannot be read"]}
        problems = [str(problem) for problem in status.problems]
        return "503 Service Unavailable" if problems else "200 OK", {"healthy": not problems, "problems": problems}


class _ThreadingServer(WSGIServer):
    """One thread a request, so that a slow database does not hold up the liveness probe."""

    def process_request(self, request: Any, client_address: Any) -> None:
        threading.Thread(target=self._process, args=(request, client_address), daemon=True).start()

    def _process(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:
            pass  # the client went away
        finally:
            self.shutdown_request(request)


class _QuietHandler(WSGIRequestHandler):
    timeout = 10

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing: probes and scrapes come every few seconds."""


def _answer(start_response: StartResponse, code: str, body: dict[str, Any]) -> list[bytes]:
    text = (json.dumps(body) + "\n").encode()
    start_response(code, [("Content-Type", "application/json"), ("Content-Length", str(len(text)))])
    return [text]
