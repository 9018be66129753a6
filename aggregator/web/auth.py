"""Who is asking: bearer tokens, checked by one algorithm and never by what the token itself says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

import jwt
from starlette.datastructures import Headers

from aggregator.errors import UsageError
from aggregator.settings import Settings
from aggregator.web import keys
from aggregator.web.answers import Refusal
from aggregator.web.parameters import node_id

_LEEWAY = 10
"""Seconds that the clocks of two hosts may differ."""

_LONGEST = 8192


class Authenticator(Protocol):
    """Says who is asking."""

    def user(self, headers: Headers) -> UUID | None:
        """Return the node id of the user, None where nobody is asked; raise Refusal with 401 without a valid token."""


class Nobody:
    """Asks nobody who they are: for ``--insecure-local``."""

    def user(self, headers: Headers) -> None:  # noqa: ARG002 -- as the protocol says
        """Return None."""
        return


@dataclass(frozen=True)
class Tokens:
    """Checks JSON Web Tokens: signature, expiry, issuer and audience; the subject is the user's node id."""

    algorithm: str
    keys: keys.Keys
    issuer: str | None
    audience: str | None

    def user(self, headers: Headers) -> UUID:
        """Return the subject of the request's token; raise Refusal with 401 if there is no valid one."""
        given = headers.getlist("authorization")
        if not given:
            raise Refusal(401, "a bearer token is required", {"WWW-Authenticate": "Bearer"})
        scheme, _, token = given[0].partition(" ")
        token = token.strip()
        if len(given) > 1 or scheme.lower() != "bearer" or not token or len(token) > _LONGEST:
            raise _invalid()
        try:
            claims = jwt.decode(
                token,
                self.keys.find(jwt.get_unverified_header(token).get("kid")),
                algorithms=[self.algorithm],
                issuer=self.issuer,
                audience=self.audience,
                leeway=_LEEWAY,
                options={"require": self._required()},
            )
        # PyJWT raises other errors too at times, on numbers and texts that no issuer writes.
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as exc:
            raise _invalid() from exc
        subject = claims["sub"]
        user = node_id(subject) if isinstance(subject, str) else None
        if user is None:
            raise _invalid()
        return user

    def _required(self) -> list[str]:
        named = {"iss": self.issuer, "aud": self.audience}
        return ["exp", "sub", *(claim for claim, value in named.items() if value is not None)]


def authenticator(settings: Settings) -> Tokens:
    """Return the check that the settings ask for; raise UsageError unless they name exactly one kind of key."""
    secret, file, jwks = settings.http_jwt_secret, settings.http_jwt_public_key, settings.http_jwt_jwks
    if sum(way is not None for way in (secret, file, jwks)) > 1:
        raise UsageError(
            "tokens are checked by one algorithm: set only one of AGGREGATOR_HTTP_JWT_SECRET, _PUBLIC_KEY and _JWKS"
        )
    issuer, audience = settings.http_jwt_issuer, settings.http_jwt_audience
    if secret is not None:
        return Tokens("HS256", keys.one(secret.get_secret_value().encode()), issuer, audience)
    if file is not None:
        return Tokens("RS256", keys.one(keys.read_public_key(file)), issuer, audience)
    if jwks is not None:
        return Tokens("RS256", keys.KeySet(jwks), issuer, audience)
    raise UsageError(
        "no key to check tokens by: set AGGREGATOR_HTTP_JWT_SECRET, _PUBLIC_KEY or _JWKS (or --insecure-local, on loopback)"
    )


def _invalid() -> Refusal:
    return Refusal(401, "the token is not valid", {"WWW-Authenticate": 'Bearer error="invalid_token"'})
