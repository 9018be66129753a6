"""Prometheus metrics of the server, on a port of their own if one is configured: they need no token there."""

from __future__ import annotations

from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from aggregator.errors import AggregatorError
from aggregator.settings import Settings
from aggregator.web.gate import Gate

_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})


class Metrics:
    """Counts requests by route, and shows how busy the gate is."""

    def __init__(self, gate: Gate) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "aggregator_http_requests", "Requests answered.", ["route", "method", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "aggregator_http_request_seconds", "From request to answer.", ["route"], registry=self.registry
        )
        for name, text, read in (
            ("reading", "Requests that read from the database now.", lambda: gate.working),
            ("waiting", "Requests that wait for their turn to read.", lambda: gate.waiting),
        ):
            Gauge(f"aggregator_http_requests_{name}", text, registry=self.registry).set_function(read)

    def count(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(route, method if method in _METHODS else "other", str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def start(self, settings: Settings) -> WSGIServer | None:
        """Open the port, if one is configured; raise AggregatorError if it is not to be had."""
        host, port = settings.http_metrics_host, settings.http_metrics_port
        if port is None:
            return None
        try:
            return start_http_server(port, host, self.registry)[0]
        except OSError as exc:
            raise AggregatorError(
                f"cannot open {host}:{port} for metrics ({exc.strerror}): set AGGREGATOR_HTTP_METRICS_PORT"
            ) from exc
