"""Keys that tokens are checked by: one, or a JWK set in a file or behind a URL."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from aggregator.errors import AggregatorError, UsageError

Key = RSAPublicKey | bytes

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

_SMALLEST_RSA = 2048
_GOOD_FOR = 300.0
"""Seconds after which a set is fetched anew."""
_BETWEEN_FETCHES = 10.0
"""Seconds at least from one fetch to the next, however many tokens name a key that is not there."""
_LARGEST = 1 << 20


class KeysUnavailableError(AggregatorError):
    """The JWK set is not there, and never was."""


class Keys(Protocol):
    """Finds the key of a token."""

    def find(self, kid: Any) -> Key:
        """Return the key that ``kid`` names; raise jwt.PyJWTError if there is none."""


class _One:
    def __init__(self, key: Key) -> None:
        self._key = key

    def find(self, kid: Any) -> Key:  # noqa: ARG002 -- there is one
        return self._key


def one(key: Key) -> Keys:
    """Return the one key there is, whatever the token names."""
    return _One(key)


def read_public_key(file: str) -> RSAPublicKey:
    """Return the RSA key of a PEM file; raise UsageError if there is none."""
    try:
        key = load_pem_public_key(Path(file).read_bytes())
    except OSError as exc:
        raise UsageError(f"AGGREGATOR_HTTP_JWT_PUBLIC_KEY: cannot read {file}: {exc.strerror}") from exc
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise UsageError(f"AGGREGATOR_HTTP_JWT_PUBLIC_KEY: {file} holds no public key in PEM") from exc
    if not isinstance(key, RSAPublicKey) or key.key_size < _SMALLEST_RSA:
        raise UsageError(f"AGGREGATOR_HTTP_JWT_PUBLIC_KEY: {file} holds no RSA key of {_SMALLEST_RSA} bits or more")
    return key


class KeySet:
    """A JWK set: read at the start from a file, or fetched when it is needed and every few minutes from a URL.

    While the URL does not answer, the keys that it gave last stay good. Raises UsageError for what no retry mends.
    """

    def __init__(self, place: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._fetched_at = float("-inf")
        self._tried_at = float("-inf")
        self._keys: dict[str | None, RSAPublicKey] | None = None
        url = urlsplit(place)
        self._url = place if url.scheme in {"http", "https"} else None
        self._shown = f"{url.scheme}://{url.hostname}{url.path}"
        if self._url is not None and "@" in url.netloc:
            # Not sent by what fetches them, and one more place to read a password in.
            raise UsageError(
                "AGGREGATOR_HTTP_JWT_JWKS: a URL with a user or password in it is refused; keys are public"
            )
        if url.scheme == "http" and url.hostname not in LOOPBACK:
            raise UsageError("AGGREGATOR_HTTP_JWT_JWKS: keys that come over http could be anybody's: use https")
        if self._url is None:
            try:
                self._keys = _usable(Path(place).read_bytes())
            except OSError as exc:
                raise UsageError(f"AGGREGATOR_HTTP_JWT_JWKS: cannot read {place}: {exc.strerror}") from exc
            except ValueError as exc:
                raise UsageError(f"AGGREGATOR_HTTP_JWT_JWKS: {place}: {exc}") from exc

    def find(self, kid: Any) -> RSAPublicKey:
        """Return the key that ``kid`` names, or the only one; raise KeysUnavailableError if the set was never there."""
        keys = self._keys
        if keys is None or kid not in keys or self._is_old():
            keys = self._renewed(kid)
        if kid is None and len(keys) == 1:
            return next(iter(keys.values()))
        if kid not in keys:
            raise jwt.InvalidKeyError("no such key")
        return keys[kid]

    def _is_old(self) -> bool:
        return self._url is not None and self._clock() - self._fetched_at > _GOOD_FOR

    def _renewed(self, kid: Any) -> dict[str | None, RSAPublicKey]:
        """Fetch the keys, unless another thread just did; while they are fresh, tokens of keys that are known do not wait."""
        with self._lock:
            now = self._clock()
            wanted = self._keys is None or kid not in self._keys or self._is_old()
            if self._url is not None and wanted and now - self._tried_at > _BETWEEN_FETCHES:
                self._tried_at = now
                self._fetch(self._url)
            if self._keys is None:
                raise KeysUnavailableError(f"the keys of {self._shown} are not to be had")
            return self._keys

    def _fetch(self, url: str) -> None:
        try:
            with _opener.open(url, timeout=5) as answer:
                self._keys = _usable(answer.read(_LARGEST))
        except (OSError, HTTPException, ValueError):
            return
        self._fetched_at = self._clock()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_arguments: Any) -> None:
        """Follow none: https could lead to http."""


_opener = urllib.request.build_opener(_NoRedirect)


def _usable(text: bytes) -> dict[str | None, RSAPublicKey]:
    """Return the keys that RS256 tokens may be signed by; raise ValueError if there are none."""
    document = json.loads(text)
    entries = document.get("keys") if isinstance(document, dict) else None
    found: dict[str | None, RSAPublicKey] = {}
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict) or entry.get("kty") != "RSA" or entry.get("use", "sig") != "sig":
            continue
        if entry.get("alg", "RS256") != "RS256" or "d" in entry or not isinstance(entry.get("kid"), str | None):
            continue
        try:
            key = jwt.PyJWK(entry, algorithm="RS256").key
        except (jwt.PyJWTError, ValueError, TypeError):
            continue
        if isinstance(key, RSAPublicKey) and key.key_size >= _SMALLEST_RSA:
            found[entry.get("kid")] = key
    if not found:
        raise ValueError("it holds no RSA key for signatures")
    return found
