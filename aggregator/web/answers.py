"""What goes out: JSON in bytes that depend on the answer alone, errors that say nothing of the inside, ETags."""

from __future__ import annotations

import gzip
import hashlib
import json
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from aggregator.errors import AggregatorError

_WORTH_PACKING = 1024


class Refusal(AggregatorError):  # noqa: N818 -- a status to answer with
    """The request is answered with an error status; ``text`` is for the client."""

    def __init__(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers or {}


def encode(value: object) -> bytes:
    """Return JSON without spaces, keys in the order given: equal answers are equal bytes."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def error(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    """Return the contract's error body."""
    return Response(
        encode({"error": text}),
        status,
        media_type="application/json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def tagged(request: Request, body: bytes, media_type: str, headers: dict[str, str] | None = None) -> Response:
    """Return a body with an ETag, packed if the client takes gzip; 304 if the client has it already.

    The tag is the hash of the whole body, so it changes whenever the answer does: nothing cheaper would, for writers
    change answers before any refresh, and windows move with the clock. It is weak because the same answer is sent packed
    and unpacked, and a strong tag would promise equal bytes.
    """
    tag = f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"Cache-Control": "private, no-cache", **(headers or {}), "ETag": tag, "Vary": "Accept-Encoding"}
    if _has(request, tag):
        return Response(status_code=304, headers=headers)
    if len(body) >= _WORTH_PACKING and _takes_gzip(request):
        body = gzip.compress(body, compresslevel=5, mtime=0)
        headers["Content-Encoding"] = "gzip"
    return Response(body, media_type=media_type, headers=headers)


def _has(request: Request, tag: str) -> bool:
    """Compare weakly, as RFC 9110 says of If-None-Match."""
    given = [part.strip() for line in request.headers.getlist("if-none-match") for part in line.split(",")]
    return "*" in given or tag.removeprefix("W/") in {part.removeprefix("W/") for part in given}


def _takes_gzip(request: Request) -> bool:
    for part in ",".join(request.headers.getlist("accept-encoding")).lower().split(","):
        coding, _, quality = part.partition(";")
        if coding.strip() == "gzip":
            return quality.replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False


def json_answer(request: Request, value: Any) -> Response:
    """Return a value as a tagged JSON answer."""
    return tagged(request, encode(value), "application/json")
