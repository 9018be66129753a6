"""Settings: one class, an environment variable ``AGGREGATOR_…`` for each."""

from __future__ import annotations

import os
import re
from datetime import datetime, timezone
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from aggregator.errors import UsageError

MAX_DAYS = 365_000
"""A thousand years: days further back are none that events are of, nor dates that arithmetic can do."""

_SECRET_BYTES = 32
"""As RFC 7518 demands of HS256: as long as the hash."""

_LIBPQ_TARGETS = ("PGSERVICE", "PGHOST", "PGHOSTADDR", "PGDATABASE")

# No number that is set may overflow a PostgreSQL integer, interval or timeout, or a Python timedelta.
_MOST_EVENTS = 1_000_000_000
_MOST_SECONDS = MAX_DAYS * 86_400
_LOCK_TIMEOUT = (0.001, 86_400)
"""Seconds: PostgreSQL counts in milliseconds, and takes 0 for no timeout at all."""


class Settings(BaseSettings):
    """Everything that can be set, from the environment or by command-line options."""

    model_config = SettingsConfigDict(
        env_prefix="AGGREGATOR_",
        extra="ignore",
        env_ignore_empty=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,  # which may be a secret
    )

    database_url: SecretStr | None = Field(
        default=None, description="libpq URI or keywords; without it PGHOST, PGDATABASE or PGSERVICE must be set."
    )
    source_table: str = Field(
        default="public.resource_usage_log", description="The table of usage events, a qualified SQL name."
    )
    title_table: str = Field(
        default="public.nodes",
        description="The table of collection titles (columns id, title), a qualified SQL name; 'none': there is none.",
    )
    time_zone: str = Field(default="UTC", description="Reporting time zone, an IANA name; fixed by attach.")
    capture: Literal["triggers", "lookback"] | None = Field(
        default=None,
        description="How changes of past events are noticed: triggers or lookback; fixed by attach, whose default is triggers.",
    )
    lookback: str = Field(
        default="3d", description="With capture lookback: each refresh repairs the days of so long ago, like 3d or 2w."
    )
    lookback_grace: float = Field(
        default=60.0,
        ge=0,
        le=_MOST_SECONDS,
        description="With capture lookback: seconds that the frontier stays behind the clock, for writers to commit in.",
    )
    step_events: int = Field(
        default=500_000,
        ge=1,
        le=_MOST_EVENTS,
        description="Events folded by one transaction, about; with several jobs eight times as many, or as many times as there are jobs.",
    )
    jobs: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Connections of a refresh that has more than a step to fold: all but one add up events for it.",
    )
    wait_timeout: float = Field(
        default=60.0,
        ge=0,
        le=_MOST_SECONDS,
        description="Seconds that a refresh waits for open writers before it leaves the tail raw.",
    )
    lock_timeout: float = Field(
        default=0.5,
        ge=_LOCK_TIMEOUT[0],
        le=_LOCK_TIMEOUT[1],
        description="Seconds that one try of attach or detach waits for a lock on the source.",
    )
    lock_retries: int = Field(default=60, ge=0, description="Further tries of attach or detach for that lock.")
    refresh_every: float = Field(
        default=300.0, ge=1, le=_MOST_SECONDS, description="Seconds between refreshes by the scheduler."
    )
    nightly_at: str = Field(default="03:30", description="Local time of the nightly run, in the reporting time zone.")
    verify_days: int = Field(
        default=7, ge=1, le=MAX_DAYS, description="Days before today that the nightly run verifies."
    )
    keep: str | None = Field(
        default=None, description="Raw events that the nightly run keeps, like 400d; without it none is purged."
    )
    purge_batch: int = Field(
        default=10_000, ge=1, le=_MOST_EVENTS, description="Raw events that purge deletes in one transaction."
    )
    keep_history_days: int = Field(
        default=400, ge=1, le=MAX_DAYS, description="Days that refresh_run, verification and restatement are kept."
    )
    max_lag: float | None = Field(
        default=None,
        gt=0,
        le=_MOST_SECONDS,
        description="Unhealthy: seconds since the frontier; default 3 times refresh_every.",
    )
    max_verification_age_days: float = Field(
        default=3.0, gt=0, le=MAX_DAYS, description="Unhealthy: days since anything was last verified."
    )
    max_pending_changes: int = Field(
        default=1_000_000, ge=0, le=2**63 - 1, description="Unhealthy: late changes that wait."
    )
    max_rejected_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Unhealthy: part of the last 30 days' events with a value that is no number.",
    )
    max_frontier_ahead: float = Field(
        default=60.0,
        ge=0,
        le=_MOST_SECONDS,
        description="Unhealthy: seconds that the frontier lies ahead of the clock.",
    )
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Port of the scheduler's metrics and health; without it there is none.",
    )
    metrics_host: str = Field(default="127.0.0.1", description="Address that port is opened on.")
    log_format: Literal["text", "json"] = Field(
        default="text", description="Log lines of schedule and serve: text or json."
    )
    http_host: str = Field(default="127.0.0.1", description="Address that serve listens on.")
    http_port: int = Field(default=8080, ge=0, le=65535, description="Port that serve listens on; 0: any free one.")
    http_jwt_secret: SecretStr | None = Field(
        default=None, description="Tokens are HS256, by this secret of 32 bytes at least."
    )
    http_jwt_public_key: str | None = Field(
        default=None, description="Tokens are RS256, by the public key in this PEM file."
    )
    http_jwt_jwks: str | None = Field(
        default=None, description="Tokens are RS256, by a key of this JWK set: a file, or an https URL."
    )
    http_jwt_issuer: str | None = Field(default=None, description="Tokens must name this issuer (iss).")
    http_jwt_audience: str | None = Field(
        default=None, description="Tokens must name this audience (aud); without it they must name none."
    )
    http_access_query: str = Field(
        default="select exists (select from public.edges where source_id = $user and edge_type in ('owner','admin'))",
        description="One statement: true if the user of the token, $user, a uuid, may see usage.",
    )
    http_max_reads: int = Field(default=8, ge=1, description="Requests that read at a time, each on a connection.")
    http_max_waiting: int = Field(default=128, ge=0, description="Requests that wait for their turn; beyond: 503.")
    http_wait: float = Field(default=10.0, gt=0, description="Seconds that a request waits for its turn; beyond: 503.")
    http_statement_timeout: float = Field(default=30.0, gt=0, description="Seconds that one statement may take.")
    http_metrics_port: int | None = Field(
        default=None, ge=0, le=65535, description="Port of serve's metrics; without it there is none."
    )
    http_metrics_host: str = Field(default="127.0.0.1", description="Address that port is opened on.")

    @field_validator("database_url")
    @classmethod
    def _names_a_database(cls, value: SecretStr | None) -> SecretStr | None:
        # To libpq an empty string means whatever server its defaults lead to.
        if value is not None and not value.get_secret_value().strip():
            raise ValueError("it is empty; write it like postgresql://user@host/database")
        # libpq takes what follows the first @ for a host, and errors and logs name hosts.
        scheme, _, rest = value.get_secret_value().partition("://") if value is not None else ("", "", "")
        if scheme.strip() in {"postgresql", "postgres"} and rest.partition("/")[0].count("@") > 1:
            raise ValueError("its password has an @ in it: write it as %40")
        return value

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
            raise ValueError(f"{value!r} is no IANA time zone, such as Europe/Oslo") from exc
        return value

    @field_validator("nightly_at")
    @classmethod
    def _local_time(cls, value: str) -> str:
        try:
            return datetime.strptime(value, "%H:%M").strftime("%H:%M")  # noqa: DTZ007 -- a time of day, of any zone
        except ValueError as exc:
            raise ValueError(f"{value!r} is no local time; write it like 03:30") from exc

    @field_validator("http_jwt_secret")
    @classmethod
    def _strong(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            secret = value.get_secret_value()
            if "-----BEGIN" in secret:
                raise ValueError(
                    "it is a key in PEM, not a secret; AGGREGATOR_HTTP_JWT_PUBLIC_KEY names the file of one"
                )
            if len(secret.encode()) < _SECRET_BYTES:
                raise ValueError(f"it is shorter than {_SECRET_BYTES} bytes, so it can be guessed from a token")
        return value

    @field_validator("http_access_query")
    @classmethod
    def _asks_for_the_user(cls, value: str) -> str:
        if "$user" not in value:
            raise ValueError("it does not ask for $user, so everybody or nobody would be let in")
        return value

    @field_validator("lookback")
    @classmethod
    def _lookback(cls, value: str) -> str:
        days_back(value)
        return value

    @field_validator("keep")
    @classmethod
    def _keep(cls, value: str | None) -> str | None:
        if value is not None:
            days_to_keep(value)
        return value

    @property
    def lag_limit(self) -> float:
        """Seconds since the frontier from which on ``status`` complains."""
        if self.max_lag is not None:
            return self.max_lag
        return 3 * self.refresh_every + (self.lookback_grace if self.capture == "lookback" else 0)

    @property
    def conninfo(self) -> str:
        """The connection string; empty where libpq's own environment says it all.

        Raises UsageError when nothing says which database is meant: a job that lost its environment must not happily
        work on whatever server answers.
        """
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        if any(os.environ.get(name) for name in _LIBPQ_TARGETS):
            return ""
        raise UsageError(
            "no database: set AGGREGATOR_DATABASE_URL (postgresql://user@host/database), or PGHOST, PGDATABASE or PGSERVICE"
        )

    @property
    def title_table_or_none(self) -> str | None:
        """The title table, or None if there is none."""
        return None if self.title_table.strip().lower() in {"", "none"} else self.title_table


def days_to_keep(text: str) -> int:
    """Return the days of a text like ``400d`` or ``57w``; raise ValueError for anything else, or not 1 to MAX_DAYS days."""
    return _whole_days(text, "to keep events for", "400d")


def days_back(text: str) -> int:
    """Return the days of a lookback like ``3d`` or ``2w``; raise ValueError for anything else, or not 1 to MAX_DAYS days."""
    return _whole_days(text, "to look back", "3d")


def _whole_days(text: str, purpose: str, example: str) -> int:
    found = re.fullmatch(r"\s*([0-9]{1,9})\s*([dw])\s*", text)
    days = int(found[1]) * {"d": 1, "w": 7}[found[2]] if found else 0
    if not 1 <= days <= MAX_DAYS:
        raise ValueError(
            f"{text!r} is no time {purpose}; write whole days, at least 1d and at most {MAX_DAYS}d, like {example}"
        )
    return days


def load_settings(**overrides: object) -> Settings:
    """Return the settings of the environment, with the given ones (None: not given) on top.

    Raises UsageError naming the first wrong one.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as exc:
        error = exc.errors()[0]
        name = "_".join(str(part) for part in error["loc"])
        message = error["msg"].removeprefix("Value error, ")
        raise UsageError(f"AGGREGATOR_{name.upper()} (--{name.replace('_', '-')}): {message}") from exc


def parse_instant(text: str, option: str) -> datetime:
    """Return the aware instant that an ISO 8601 text names; raise UsageError if it is none, or naive."""
    try:
        instant = datetime.fromisoformat(text)
        if instant.tzinfo is not None:
            return instant.astimezone(timezone.utc)
    except (ValueError, OverflowError) as exc:
        raise UsageError(f"{option}: {text!r} is no instant; write it like 2026-03-01T00:00+01:00") from exc
    raise UsageError(f"{option}: {text!r} has no time zone; write it like 2026-03-01T00:00+01:00 or …Z")
