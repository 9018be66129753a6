"""What people and programs read: tables for a terminal, the contract's JSON, CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from aggregator.read import DailyUsage, Overview
from aggregator.status import Status
from aggregator.verify import Difference

SHOWN_ROWS = 25
"""Rows of a section that a terminal shows unless asked for all."""

_BARS = "▁▂▃▄▅▆▇█"
_BYTES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_SCALE = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))


def quantity(value: float, unit: str | None) -> str:
    """Return a value in a unit that people read: 1.50 GiB, 12 h 05 min, 3.42 M tokens."""
    sign, size = ("-" if value < 0 else ""), abs(value)
    if unit == "bytes":
        power = 0
        while size >= 1024 and power < len(_BYTES) - 1:
            size, power = size / 1024, power + 1
        return f"{sign}{size:,.0f} B" if power == 0 else f"{sign}{size:,.2f} {_BYTES[power]}"
    if unit in {"seconds", "minutes"}:
        seconds = size if unit == "seconds" else size * 60
        if seconds < 60:
            return f"{sign}{seconds:.4g} s"
        minutes, rest = divmod(round(seconds), 60)
        if minutes < 60:
            return f"{sign}{minutes} min {rest:02d} s"
        return f"{sign}{minutes // 60:,} h {minutes % 60:02d} min"
    suffix = f" {unit}" if unit else ""
    for letter, scale in _SCALE:
        if size >= scale:
            return f"{sign}{size / scale:.2f} {letter}{suffix}"
    return f"{sign}{size:.4g}{suffix}"


def show_tables(
    console: Console, overview: Overview, units: Mapping[str, tuple[str | None, str | None]], rows: int
) -> None:
    """Print the overview's sections as tables, and the receipt as one line; ``rows`` of each at most, 0 for all."""
    if not overview.by_collection and not overview.daily:
        console.print("No usage in this window.")
    else:
        _print_collections(console, overview, units, rows)
        _print_ai(console, overview, rows)
        _print_daily(console, overview.daily, units)
    receipt = overview.receipt
    console.print(
        f"as of {receipt.as_of:%Y-%m-%d %H:%M:%S} UTC, {'exact' if receipt.exact else 'NOT EXACT'}: "
        f"{receipt.rollup_rows:,} rollup rows, {receipt.raw_rows:,} raw events"
        f" and {receipt.pending_changes:,} pending changes read; rollups "
        + ("not yet built" if receipt.frontier is None else f"{_age(receipt.lag)} old"),
        style="dim",
    )
    for reason in receipt.reasons:
        console.print(f"note: {reason}", style="yellow")


def _name(value: object) -> Text:
    return Text("(none)", style="dim") if value is None else Text(str(value))


def _print_collections(
    console: Console, overview: Overview, units: Mapping[str, tuple[str | None, str | None]], rows: int
) -> None:
    table = Table(title="By collection", title_justify="left", header_style="bold")
    table.add_column("collection", overflow="ellipsis", no_wrap=True, max_width=40)
    table.add_column("type", no_wrap=True)
    for column in ("events", "total", "secondary"):
        table.add_column(column, justify="right", no_wrap=True)
    shown = overview.by_collection[:rows] if rows else overview.by_collection
    for row in shown:
        unit, secondary_unit = units.get(row.resource_type or "", (None, None))
        table.add_row(
            _name(row.collection_title or row.collection_id),
            _name(row.resource_type),
            f"{row.event_count:,}",
            quantity(row.total_value, unit),
            quantity(row.secondary_value, secondary_unit) if row.secondary_value else "",
        )
    console.print(table)
    _say_more(console, len(overview.by_collection) - len(shown))


def _print_ai(console: Console, overview: Overview, rows: int) -> None:
    if not overview.ai_drilldown:
        return
    table = Table(title="AI by job type and model level", title_justify="left", header_style="bold")
    table.add_column("collection", overflow="ellipsis", no_wrap=True, max_width=40)
    table.add_column("job type", overflow="ellipsis", no_wrap=True, max_width=24)
    table.add_column("model level", overflow="ellipsis", no_wrap=True, max_width=24)
    for column in ("tokens in", "tokens out", "events"):
        table.add_column(column, justify="right", no_wrap=True)
    shown = overview.ai_drilldown[:rows] if rows else overview.ai_drilldown
    for row in shown:
        table.add_row(
            _name(row.collection_title or row.collection_id), _name(row.job_type), _name(row.model_level),
            f"{row.tokens_in:,}", f"{row.tokens_out:,}", f"{row.event_count:,}",
        )  # fmt: skip
    console.print(table)
    _say_more(console, len(overview.ai_drilldown) - len(shown))


def _say_more(console: Console, left: int) -> None:
    if left > 0:
        console.print(f"… and {left:,} more rows (--rows 0 shows all)", style="dim")


def _print_daily(
    console: Console, daily: Sequence[DailyUsage], units: Mapping[str, tuple[str | None, str | None]]
) -> None:
    finite = [row for row in daily if isinstance(row.day, date)]
    types = sorted({row.resource_type for row in daily}, key=lambda name: (name is None, name or ""))
    days = [row.day for row in finite if isinstance(row.day, date)]
    width = max(10, console.width - 46)
    table = Table(title="By day", title_justify="left", header_style="bold")
    table.add_column("type", no_wrap=True)
    table.add_column("events", justify="right", no_wrap=True)
    table.add_column("total", justify="right", no_wrap=True)
    table.add_column(f"{min(days)} … {max(days)}" if days else "", no_wrap=True)
    for name in types:
        mine = [row for row in daily if row.resource_type == name]
        unit = units.get(name or "", (None, None))[0]
        # A type that has no metric has no values: its events are drawn instead.
        values = {
            row.day: (row.total_value if unit else float(row.event_count)) for row in mine if isinstance(row.day, date)
        }
        table.add_row(
            _name(name),
            f"{sum(row.event_count for row in mine):,}",
            quantity(sum(row.total_value for row in mine), unit),
            sparkline(values, min(days), max(days), width) if days else "",
        )
    console.print(table)
    for row in daily:
        if not isinstance(row.day, date):
            console.print(
                f"besides, {row.event_count:,} events of {row.resource_type or '(none)'} dated {row.day} (outside years 1-9999)",
                style="dim",
            )


def sparkline(values: Mapping[date, float], first: date, last: date, width: int) -> str:
    """Draw one character for each day, or for so many days together that it fits ``width``; days without events are gaps."""
    span = (last - first).days + 1
    together = -(-span // width)
    sums: list[float | None] = []
    for start in range(0, span, together):
        days = (first + timedelta(days=start + offset) for offset in range(min(together, span - start)))
        found = [values[day] for day in days if day in values]
        sums.append(sum(found) if found else None)
    top = max((value for value in sums if value is not None), default=0)
    scale = len(_BARS) - 1
    return "".join(
        " " if value is None else _BARS[0 if top <= 0 else max(0, round(value / top * scale))] for value in sums
    )


def _age(lag: timedelta | None) -> str:
    seconds = 0 if lag is None else round(lag.total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if abs(seconds) >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def show_json(stream: TextIO, overview: Overview) -> None:
    """Print the contract's JSON object, in its order."""
    json.dump(overview.as_contract(), stream, ensure_ascii=False, indent=2)
    stream.write("\n")


def show_csv(stream: TextIO, overview: Overview) -> None:
    """Print all sections as one CSV table; columns that a section has not are empty."""
    contract = overview.as_contract()
    columns = ["section", *dict.fromkeys(key for key in _CSV_COLUMNS)]
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for section, rows in contract.items():
        for row in rows:
            writer.writerow({"section": section, **row})


_CSV_COLUMNS = (
    "day", "collection_id", "collection_title", "resource_type", "job_type", "model_level",
    "event_count", "total_value", "secondary_value", "tokens_in", "tokens_out",
)  # fmt: skip


def status_table(console: Console, status: Status) -> None:
    """Print the state of the rollups, and whether they are healthy, as a table."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in status.lines():
        table.add_row(name, value)
    console.print(table)
    if status.healthy:
        console.print("healthy", style="green")
    for problem in status.problems:
        console.print(f"unhealthy: {problem}", style="bold red", soft_wrap=True)


def json_document(stream: TextIO, result: object) -> None:
    """Print a result dataclass as JSON; exact numbers stay exact, as text."""
    assert is_dataclass(result)
    assert not isinstance(result, type)
    stream.write(json.dumps(asdict(result), ensure_ascii=False, indent=2, default=str) + "\n")


_SHORT = 12
"""Characters of a cell that is not to be folded."""


def rows_table(console: Console, title: str, names: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows of anything as a table, numbers to the right."""
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(names):
        numeric = any(isinstance(row[index], int | Decimal) for row in rows)
        short = all(len(_cell(row[index])) <= _SHORT for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=short)
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    console.print(table)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int | Decimal) and not isinstance(value, bool) else str(value)


def differences_table(console: Console, differences: Iterable[Difference], total: int) -> None:
    """Print what has to be added to rollup rows to make them right."""
    table = Table(title="Differences: what the rollup lacks (or, negative, has too much)", title_justify="left")
    for column in ("rollup", "bucket", "collection", "type", "job type", "model level"):
        table.add_column(column, overflow="fold")
    for column in ("events", "total", "secondary", "rejected"):
        table.add_column(column, justify="right")
    shown = 0
    for row in differences:
        shown += 1
        table.add_row(
            row.rollup, row.bucket, _name(row.collection_id), _name(row.resource_type), _name(row.job_type),
            _name(row.model_level), str(row.event_count), f"{row.total_value:f}", f"{row.secondary_value:f}",
            str(row.rejected_count),
        )  # fmt: skip
    if shown:
        console.print(table)
    _say_not_shown(console, total - shown)


def _say_not_shown(console: Console, left: int) -> None:
    if left > 0:
        console.print(f"… and {left:,} more differences", style="dim")
