"""Metrics as data: what each resource type adds up, changed without code.

A change of a key turns trust off in its own transaction (a trigger on ``usage.metric``), so readers read raw, by the new
definition, until a rebuild has made the rollups so. Sealed history keeps the old definition: its raw events may be gone.
So late events of sealed days add by that one too (``usage.metric_definition``), and a receipt says where sums are of both.
A unit or a label alone is another name for the same sums, sealed ones too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal

from aggregator import fold
from aggregator import sql as sql_files
from aggregator.db import Connection, transaction
from aggregator.errors import UsageError, never

SQL = sql_files.load("metrics")

_NEWEST = 1000
"""Events whose keys are named where a key is unknown."""

_NAMED = 12
"""Keys that are named."""


@dataclass(frozen=True)
class Metric:
    """Keys are those of ``detail`` whose numbers are added up; None: 0."""

    resource_type: str
    value_key: str | None = None
    secondary_key: str | None = None
    unit: str | None = None
    secondary_unit: str | None = None
    label: str | None = None

    @property
    def keys(self) -> tuple[str | None, str | None]:
        """What sums depend on."""
        return self.value_key, self.secondary_key


@dataclass(frozen=True)
class OldMetric:
    """The definition that sealed days below ``valid_below`` (an ISO day) were added up by."""

    metric: Metric
    valid_below: str


@dataclass(frozen=True)
class MonthChange:
    """What a change does to the totals of a month: its first day as ISO text, exact sums before and after."""

    month: str
    events: int
    old_total: Decimal
    new_total: Decimal
    old_secondary: Decimal
    new_secondary: Decimal
    rejected: int
    """Events whose value would be no number."""

    @property
    def changes(self) -> bool:
        """Whether any sum of the month differs."""
        return self.old_total != self.new_total or self.old_secondary != self.new_secondary


@dataclass(frozen=True)
class Metrics:
    """All metrics, and the definitions that sealed history still has."""

    metrics: tuple[Metric, ...]
    sealed: tuple[OldMetric, ...]


def list_metrics(connection: Connection) -> tuple[tuple[Metric, ...], tuple[OldMetric, ...]]:
    """Return the metrics, and the definitions that sealed history still has."""
    with transaction(connection, read_only=True):
        metrics = tuple(Metric(*row) for row in connection.execute(SQL["list"]).fetchall())
        history = tuple(OldMetric(Metric(*row[:-1]), row[-1]) for row in connection.execute(SQL["history"]).fetchall())
    return metrics, history


def find(connection: Connection, resource_type: str) -> Metric | None:
    """Return the metric of a resource type, or None."""
    return next((metric for metric in list_metrics(connection)[0] if metric.resource_type == resource_type), None)


def require(connection: Connection, resource_type: str) -> Metric:
    """Return the metric of a resource type; raise UsageError, naming those there are, for an unknown one."""
    return _require(list_metrics(connection)[0], resource_type)


def check_metric(
    connection: Connection, metric: Metric, *, force: bool = False, check: Callable[[], None] = never
) -> str | None:
    """Return a note for the operator, or None.

    Raises UsageError for what cannot be meant: an empty name, or, unless ``force``, a key that no event of the type has.
    Reads the raw events month by month, newest first, until every key was seen; each in a transaction of its own.
    """
    if not metric.resource_type.strip():
        raise UsageError("the resource type is empty")
    if any(key is not None and not key.strip() for key in metric.keys):
        raise UsageError("a key is empty; leave the option out for none")
    missing = {key for key in metric.keys if key is not None}
    if force or not missing:
        return None
    events = 0
    seen: Counter[str] = Counter()
    below: str | None = None
    while missing:
        check()
        month = fold.with_retries(lambda below=below, n=_NEWEST - events: _keys(connection, metric, below, n))  # type: ignore[misc]
        if month is None:
            break
        missing -= month.keys
        events += month.events
        seen.update(month.seen)
        below = month.start
    if events == 0:
        return f"there are no events of type {metric.resource_type} yet"
    for key in metric.keys:
        if key in missing:
            names = ", ".join(sorted(seen, key=lambda name: (-seen[name], name))[:_NAMED])
            raise UsageError(
                f"no event of type {metric.resource_type} has the key {key!r} (seen: {names or 'none'});"
                " to set it all the same, add --force"
            )
    return None


def preview(
    connection: Connection,
    old: Metric | None,
    new: Metric,
    *,
    progress: Callable[[str], None] = lambda _month: None,
    check: Callable[[], None] = never,
) -> tuple[MonthChange, ...]:
    """Return, for each month above the seal with events of the type, what the change does to its totals.

    Reads the raw events month by month, each in a transaction of its own; locks nothing for longer. ``progress`` is told
    each month that was read, ``check`` is called before each and may raise Stopped.
    """
    before = old or Metric(new.resource_type)
    keys = {
        "type": new.resource_type,
        "old_value": before.value_key,
        "new_value": new.value_key,
        "old_secondary": before.secondary_key,
        "new_secondary": new.secondary_key,
    }
    with transaction(connection, read_only=True):
        instant = fold.read_state(connection).sealed_until
    found: list[MonthChange] = []
    while instant != "infinity":
        check()
        step = fold.with_retries(lambda instant=instant: _month(connection, instant, keys))  # type: ignore[misc]
        if step is None:
            break
        change, instant = step
        progress(change.month)
        if change.events:
            found.append(change)
    return tuple(found)


def set_metric(connection: Connection, metric: Metric, *, force: bool = False) -> bool:
    """Add or change a metric; commits. Return whether anything was changed.

    Where a key changes, trust is off from this commit on, until a rebuild; sealed history keeps the old definition.
    Raises UsageError as ``check_metric``.
    """
    check_metric(connection, metric, force=force)
    return fold.with_retries(lambda: _change(connection, metric.resource_type, metric))


def remove_metric(connection: Connection, resource_type: str) -> None:
    """Remove a metric: its events count on, with value 0; commits. Raises UsageError for an unknown one."""
    fold.with_retries(lambda: _change(connection, resource_type, None))


def changed(metric: Metric, fields: dict[str, str | None]) -> Metric:
    """Return the metric with the given fields, named as its own (None: as it is; ``-``: none)."""
    given = {name: None if value == "-" else value for name, value in fields.items() if value is not None}
    return Metric(**{**asdict(metric), **given})


def _metrics(connection: Connection) -> list[Metric]:
    return [Metric(*row) for row in connection.execute(SQL["list"]).fetchall()]


def _require(known: Sequence[Metric], resource_type: str) -> Metric:
    for metric in known:
        if metric.resource_type == resource_type:
            return metric
    raise UsageError(
        f"there is no metric {resource_type!r}; there are {', '.join(m.resource_type for m in known) or 'none'}"
    )


def _change(connection: Connection, resource_type: str, new: Metric | None) -> bool:
    """Put a definition (None: none) in the place of what there is, in one transaction; return whether that is another."""
    with transaction(connection):
        # No seal and no fold in between: what is sealed by now has the old definition, what is sealed later the new one.
        connection.execute(fold.SQL["lock_state"])
        known = _metrics(connection)
        old = next((metric for metric in known if metric.resource_type == resource_type), None)
        if new is None:
            old = _require(known, resource_type)
        elif new == old:
            return False
        value_key, secondary_key = keys = (new or Metric(resource_type)).keys
        if (old or Metric(resource_type)).keys != keys:
            connection.execute(SQL["keep_old"], {"type": resource_type})
            connection.execute(
                SQL["forget_restored"],
                {"type": resource_type, "value_key": value_key, "secondary_key": secondary_key},
            )
        if new is None:
            connection.execute(SQL["remove"], {"type": resource_type})
        else:
            connection.execute(SQL["add" if old is None else "change"], asdict(new))
        return True


@dataclass(frozen=True)
class _Keys:
    """What a month's events of a type have: which of the keys asked for, and all keys of the newest ones, counted."""

    start: str
    events: int
    keys: frozenset[str]
    seen: Counter[str]


def _keys(connection: Connection, metric: Metric, below: str | None, newest: int) -> _Keys | None:
    """Look for the metric's keys in the last month with events below an instant; None: there is none."""
    with fold.looking(connection):
        row = connection.execute(SQL["previous_month"], {"below": below}).fetchone()
        if row is None:
            return None
        bounds = {"from": row[0], "below": below, "type": metric.resource_type}
        keys = {"value_key": metric.value_key, "secondary_key": metric.secondary_key}
        counted = connection.execute(SQL["has_keys"], {**bounds, **keys}).fetchone()
        assert counted is not None
        found = frozenset(key for key, has in zip(metric.keys, counted[1:], strict=True) if has and key is not None)
        seen: Counter[str] = Counter()
        if newest > 0 and counted[0]:
            seen.update(dict(connection.execute(SQL["keys_seen"], {**bounds, "n": newest}).fetchall()))
        return _Keys(row[0], counted[0], found, seen)


def _month(connection: Connection, instant: str, keys: dict[str, str | None]) -> tuple[MonthChange, str] | None:
    with fold.looking(connection):
        row = connection.execute(SQL["next_event"], {"from": instant}).fetchone()
        if row is None:
            return None
        month, end = row
        sums = connection.execute(SQL["month"], {**keys, "from": instant, "to": end}).fetchone()
        assert sums is not None
        events, old_total, new_total, old_secondary, new_secondary, rejected = sums
        return MonthChange(month, events, old_total, new_total, old_secondary, new_secondary, rejected), end
