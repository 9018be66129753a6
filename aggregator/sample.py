"""Sample data, for the demo and the benchmark: a year of a host application's usage events.

The same seed and end give the same rows. A few collections are large and most are small; nights and weekends are quiet;
usage grows over the year; some events have no collection, some arrive days late, and some hold no number.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from aggregator import sql as sql_files
from aggregator.db import Connection, transaction
from aggregator.errors import UsageError

SQL = sql_files.load("sample")

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_DAY = timedelta(days=1)

_FIRST_WORDS = (
    "Quiet", "Northern", "Copper", "Paper", "Winter", "Open", "Little", "Amber", "Harbour", "Silver",
    "Linden", "Bright", "Western", "Hollow", "Granite", "Meadow", "Second", "Velvet", "Island", "Early",
)  # fmt: skip
_SECOND_WORDS = (
    "Library", "Observatory", "Academy", "Orchard", "Studio", "Archive", "Workshop", "Museum", "Kitchen", "Press",
    "Clinic", "Theatre", "Garden", "Institute", "Station", "Gallery", "Choir",
)  # fmt: skip

_WEEKEND = 0.45
"""Events of a Saturday or Sunday, for each one of a working day."""

_GROWTH = 0.5
"""How much more the last day has than the first."""

_KINDS = (512, 690, 812, 894, 966, 1014, 1024)
"""Of 1,024 events, how many are of the first resource type, of the first two, and so on: the query's thresholds."""


_MOST_SKEW = 5.0
"""Nearly everything is the first collection's then; beyond, powers lose their digits."""


@dataclass(frozen=True)
class _Piece:
    """Rows [first, last] of one UTC day; the shares of the day's events that come before and by its end."""

    midnight: datetime
    first: int
    last: int
    share_from: float
    share_to: float


def create_sample(
    connection: Connection,
    *,
    events: int = 1_000_000,
    days: int = 365,
    collections: int = 300,
    seed: int = 1,
    skew: float = 1.0,
    types: int = len(_KINDS),
    late_share: float = 0.001,
    malformed: int = 30,
    until: datetime | None = None,
    progress: Callable[[int], None] = lambda _done: None,
) -> None:
    """Create public.nodes and public.resource_usage_log and fill them, in one transaction, which it commits.

    The events lie in the ``days`` before ``until`` (by default the server's clock), in order of arrival; ``late_share``
    of them are dated 1 to 11 days earlier than their neighbours; ``malformed`` of them, evenly spread, hold no number.
    Collections are drawn in proportion to ``1 / rank ** skew``; ``types`` is how many of the resource types there are.
    ``progress`` is given the number of events made so far. Raises UsageError if a table of either name is there.
    """
    if min(events, days, collections) < 1 or not 0 <= late_share <= 1 or not 0 <= malformed <= events:
        raise UsageError("sample data: events, days and collections must be positive, and shares within 0 and 1")
    if not 1 <= types <= len(_KINDS) or not 0 <= skew <= _MOST_SKEW:
        raise UsageError(f"sample data: 1 to {len(_KINDS)} types, and a skew of 0 to {_MOST_SKEW:g}")
    with transaction(connection):
        if _scalar(connection, "present"):
            raise UsageError("public.nodes or public.resource_usage_log is there already: take a new database")
        end = until or _EPOCH + timedelta(microseconds=_scalar(connection, "now"))
        since = end - days * _DAY
        connection.execute(SQL["create_nodes"])
        connection.execute(SQL["create_log"])
        ids = _scalar(connection, "fill_nodes", seed=seed, titles=list(itertools.islice(_titles(), collections)))
        parameters = {
            "seed": seed,
            "ids": ids,
            "collections": collections,
            "skew": skew,
            "kinds": _KINDS[types - 1],
            "since": since,
            "late": round(late_share * 65536),
            "step": events // malformed if malformed else 0,
        }
        for piece in _pieces(since, end, events):
            connection.execute(SQL["fill_log"], {**parameters, **vars(piece)})
            progress(piece.last)
        connection.execute(SQL["set_sequence"], {"events": events})
        connection.execute(SQL["create_index"])
        connection.execute(SQL["analyze"])


def _titles() -> Iterator[str | None]:
    """Yield titles without end, no two alike; now and then none."""
    for number in itertools.count():
        first = _FIRST_WORDS[number % len(_FIRST_WORDS)]
        second = _SECOND_WORDS[number % len(_SECOND_WORDS)]  # coprime lengths: every pair comes up once
        again, place = divmod(number, len(_FIRST_WORDS) * len(_SECOND_WORDS))
        title = f"{first} {second} {again + 1}" if again else f"{first} {second}"
        yield None if place % 97 == 96 else title  # noqa: PLR2004


def _pieces(since: datetime, until: datetime, events: int) -> Iterator[_Piece]:
    """Yield the days of [since, until), the first and last perhaps cut, with their part of the events."""
    spans: list[tuple[datetime, float, float, float]] = []
    midnight = since.astimezone(timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    while midnight < until:
        share_from = _share_by(max(since - midnight, timedelta()) / _DAY)
        share_to = _share_by(min(until - midnight, _DAY) / _DAY)
        rate = (1 + _GROWTH * ((midnight - since) / (until - since))) * (_WEEKEND if midnight.weekday() >= 5 else 1)  # noqa: PLR2004
        spans.append((midnight, share_from, share_to, rate * (share_to - share_from)))
        midnight += _DAY
    total = sum(weight for *_, weight in spans)
    done, reached = 0, 0.0
    for midnight, share_from, share_to, weight in spans:
        reached += weight
        last = events if midnight == spans[-1][0] else min(events, round(events * reached / total))
        if last > done:
            yield _Piece(midnight, done + 1, last, share_from, share_to)
        done = last


def _share_by(part: float) -> float:
    """Return the share of a day's events that has come by a part of the day: the inverse of the query's formula."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if middle + math.sin(2 * math.pi * middle) / 10 < part:
            low = middle
        else:
            high = middle
    return high


def _scalar(connection: Connection, block: str, **parameters: object) -> Any:
    row = connection.execute(SQL[block], parameters or None).fetchone()
    assert row is not None
    return row[0]
