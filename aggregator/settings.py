"""Settings: one class, an environment variable ``AGGREGATOR_…`` for each."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from aggregator.errors import UsageError

_LIBPQ_TARGETS = ("PGSERVICE", "PGHOST", "PGHOSTADDR", "PGDATABASE")


class Settings(BaseSettings):
    """Everything that can be set, from the environment or by command-line options."""

    model_config = SettingsConfigDict(env_prefix="AGGREGATOR_", extra="ignore", env_ignore_empty=True)

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
    step_events: int = Field(default=500_000, ge=1, description="Events folded by one transaction, about.")
    wait_timeout: float = Field(
        default=60.0, ge=0, description="Seconds that a refresh waits for open writers before it leaves the tail raw."
    )
    lock_timeout: float = Field(
        default=0.5, gt=0, description="Seconds that one try of attach or detach waits for a lock on the source."
    )
    lock_retries: int = Field(default=60, ge=0, description="Further tries of attach or detach for that lock.")

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
            raise ValueError(f"{value!r} is no IANA time zone, such as Europe/Oslo") from exc
        return value

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
