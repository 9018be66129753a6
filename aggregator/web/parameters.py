"""The parameters of a request, read strictly; what is wrong with one is a Refusal with 400."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from starlette.datastructures import QueryParams

from aggregator.errors import UsageError
from aggregator.settings import parse_instant
from aggregator.web.answers import Refusal

DEFAULT_DAYS = 30
MAXIMUM_DAYS = 365

UUID_PATTERN = "[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}"
DAYS_PATTERN = "[+-]?[0-9]+"
ZONE_PATTERN = "[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*"
INSTANT_PATTERN = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,6})?)?(Z|[+-][0-9]{2}:[0-9]{2})"


@dataclass(frozen=True)
class Window:
    """What every question has: the arguments of ``usage_overview``."""

    days: int
    since: datetime | None
    until: datetime | None
    collection_id: UUID | None

    def as_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of the read functions."""
        return vars(self)


@dataclass(frozen=True)
class Grouping:
    """What is asked of totals besides the window."""

    by: tuple[str, ...]
    grain: str
    fill: bool


def window(query: QueryParams) -> Window:
    """Return the window and collection that a query asks for."""
    return Window(_days(query), _instant(query, "since"), _instant(query, "until"), _collection(query))


def grouping(query: QueryParams) -> Grouping:
    """Return the keys and grain that a query asks for; whether there are such is for ``usage_totals`` to say."""
    by = _single(query, "by")
    grain = _single(query, "grain")
    keys = () if by is None else tuple(by.split(","))
    if len(set(keys)) < len(keys):
        raise Refusal(400, "by: a key is repeated")
    return Grouping(keys, "none" if grain is None else grain, flag(query, "fill"))


def flag(query: QueryParams, name: Literal["receipt", "fill"]) -> bool:
    """Return a switch, off by default."""
    value = _single(query, name)
    switches: Mapping[str | None, bool] = {None: False, "false": False, "true": True}
    if value not in switches:
        raise Refusal(400, f"{name} must be true or false")
    return switches[value]


def time_zone(query: QueryParams) -> str | None:
    """Return the name of a time zone, None for the reporting one; whether there is such is for the server to say."""
    name = _single(query, "time_zone")
    if name is not None and not re.fullmatch(ZONE_PATTERN, name):
        raise Refusal(400, "time_zone must be a name like Europe/Oslo")
    return name


def node_id(text: str) -> UUID | None:
    """Return the UUID that a text is in its canonical form, or None."""
    return UUID(text) if re.fullmatch(UUID_PATTERN, text) else None


def _single(query: QueryParams, name: str) -> str | None:
    values = query.getlist(name)
    if len(values) > 1:
        raise Refusal(400, f"{name} is repeated")
    return values[0] if values else None


def _days(query: QueryParams) -> int:
    text = _single(query, "days")
    if text is None:
        return DEFAULT_DAYS
    if not re.fullmatch(DAYS_PATTERN, text):
        raise Refusal(400, "days must be an integer")
    digits = text.lstrip("+-").lstrip("0")
    if text.startswith("-") or not digits:
        return 1
    # Of any size: int() refuses thousands of digits, and is slow before that.
    return min(MAXIMUM_DAYS, int(digits[:4]))


def _instant(query: QueryParams, name: str) -> datetime | None:
    text = _single(query, name)
    if text is None:
        return None
    try:
        if re.fullmatch(INSTANT_PATTERN, text):
            return parse_instant(text, name)
    except UsageError:
        pass  # a 31st of February
    raise Refusal(400, f"{name} must be an instant with an offset, like 2026-03-01T00:00:00Z (a + is written %2B)")


def _collection(query: QueryParams) -> UUID | None:
    text = _single(query, "collection_id")
    found = None if text is None else node_id(text)
    if text is not None and found is None:
        raise Refusal(400, "collection_id must be a UUID")
    return found
