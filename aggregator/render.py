"""What people and programs read: tables for a terminal, the contract's JSON, CSV."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import TextIO

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from aggregator.read import DailyUsage, Overview, Receipt
from aggregator.status import Status
from aggregator.terminal import Column, days_together, print_pieces, printable, quantity, sparkline, table
from aggregator.totals import Totals
from aggregator.verify import Difference

SHOWN_ROWS = 25
"""Rows of a section that a terminal shows unless asked for all."""

_SHORTEST_SERIES = 23
"""Characters: the first and last day, which stand above it."""

Units = Mapping[str, tuple[str | None, str | None]]
"""Unit of the total and of the secondary value, by resource type."""


def overview(console: Console, found: Overview, units: Units, rows: int) -> Iterator[RenderableType]:
    """Yield the overview's sections as tables for a console, and the receipt as lines; ``rows`` of each at most, 0 for all."""
    if not found.by_collection and not found.daily:
        yield Text("No usage in this window.")
    else:
        yield from _collections(console, found, units, rows)
        yield from _ai(console, found, rows)
        yield from _daily(console, found.daily, units)
    yield from _receipt(found.receipt)


def show_tables(console: Console, found: Overview, units: Units, rows: int) -> None:
    """Print the overview for people."""
    print_pieces(console, overview(console, found, units, rows))


def _receipt(receipt: Receipt) -> Iterator[Text]:
    yield Text(
        f"as of {receipt.as_of:%Y-%m-%d %H:%M:%S} UTC, {'exact' if receipt.exact else 'NOT EXACT'}: "
        f"{receipt.rollup_rows:,} rollup rows, {receipt.raw_rows:,} raw events"
        f" and {receipt.pending_changes:,} pending changes read; rollups "
        + ("not yet built" if receipt.frontier is None else f"{_age(receipt.lag)} old"),
        style="dim",
    )
    for reason in receipt.reasons:
        yield Text(f"note: {printable(reason, 2000)}", style="yellow")


def _name(value: object) -> Text:
    return Text("(none)", style="dim") if value is None else Text(printable(str(value)))


def _unit(units: Units, resource_type: str | None) -> tuple[str | None, str | None]:
    unit, secondary = units.get(resource_type or "", (None, None))
    return unit and printable(unit, 24), secondary and printable(secondary, 24)


def _collections(console: Console, found: Overview, units: Units, rows: int) -> Iterator[RenderableType]:
    columns = (
        Column("collection", shrinks_from=40), Column("type", shrinks_from=24),
        Column("events", right=True), Column("total", right=True), Column("secondary", right=True),
    )  # fmt: skip
    shown = found.by_collection[:rows] if rows else found.by_collection
    cells: list[tuple[Text, ...]] = []
    for row in shown:
        unit, secondary_unit = _unit(units, row.resource_type)
        cells.append((
            _name(row.collection_title or row.collection_id),
            _name(row.resource_type),
            Text(f"{row.event_count:,}"),
            Text(quantity(row.total_value, unit)),
            Text(quantity(row.secondary_value, secondary_unit) if row.secondary_value else ""),
        ))  # fmt: skip
    yield from _without_empty("By collection", columns, cells, console.width)
    yield from _more(len(found.by_collection) - len(shown))


def _ai(console: Console, found: Overview, rows: int) -> Iterator[RenderableType]:
    if not found.ai_drilldown:
        return
    columns = (
        Column("collection", shrinks_from=40), Column("job type", shrinks_from=24),
        Column("model level", shrinks_from=24), Column("tokens in", right=True),
        Column("tokens out", right=True), Column("events", right=True),
    )  # fmt: skip
    shown = found.ai_drilldown[:rows] if rows else found.ai_drilldown
    cells = [
        (_name(row.collection_title or row.collection_id), _name(row.job_type), _name(row.model_level),
         Text(f"{row.tokens_in:,}"), Text(f"{row.tokens_out:,}"), Text(f"{row.event_count:,}"))
        for row in shown
    ]  # fmt: skip
    yield from table("AI by job type and model level", columns, cells, console.width)
    yield from _more(len(found.ai_drilldown) - len(shown))


def _more(left: int) -> Iterator[Text]:
    if left > 0:
        yield Text(f"… and {left:,} more rows (--rows 0 shows all)", style="dim")


def _daily(console: Console, daily: Sequence[DailyUsage], units: Units) -> Iterator[RenderableType]:
    by_type: dict[str | None, list[DailyUsage]] = {}
    for row in daily:
        by_type.setdefault(row.resource_type, []).append(row)
    days = [row.day for row in daily if isinstance(row.day, date)]
    totals = {
        name: (Text(f"{sum(row.event_count for row in mine):,}"),
               Text(quantity(sum(row.total_value for row in mine), _unit(units, name)[0])))
        for name, mine in by_type.items()
    }  # fmt: skip
    # The series gets what the frame, the longest type and the numbers leave.
    others = [max(len("events"), *(len(events) for events, _ in totals.values())),
              max(len("total"), *(len(total) for _, total in totals.values())),
              min(24, max(len("type"), *(_name(name).cell_len for name in totals)))]  # fmt: skip
    width = max(_SHORTEST_SERIES, console.width - sum(others) - 13)
    cells = []
    for name, mine in sorted(by_type.items(), key=lambda item: (item[0] is None, item[0] or "")):
        # A type that has no metric has no values: its events are drawn instead.
        measured = _unit(units, name)[0] is not None
        values = {
            row.day: (row.total_value if measured else float(row.event_count))
            for row in mine if isinstance(row.day, date)
        }  # fmt: skip
        line = sparkline(values, min(days), max(days), width, ascii_only=console.options.ascii_only) if days else ""
        cells.append((_name(name), *totals[name], Text(line)))
    together = days_together(min(days), max(days), width) if days else 1
    columns = [
        Column("type", shrinks_from=24), Column("events", right=True), Column("total", right=True),
        Column(f"{min(days)} … {max(days)}" if days else ""),
    ]  # fmt: skip
    title = "By day" if together == 1 else f"By day, {together} in one bar"
    yield from _without_empty(title, columns, cells, console.width)
    for row in daily:
        if not isinstance(row.day, date):
            yield Text(
                f"besides, {row.event_count:,} events of {_name(row.resource_type)} dated {row.day} (outside years 1-9999)",
                style="dim",
            )


def _without_empty(
    title: str, columns: Sequence[Column], rows: Sequence[Sequence[Text]], width: int
) -> Iterator[RenderableType]:
    """Yield a table of those columns that any row has something in."""
    kept = [index for index in range(len(columns)) if any(row[index].plain for row in rows)]
    yield from table(title, [columns[index] for index in kept], [[row[index] for index in kept] for row in rows], width)


def _age(lag: timedelta | None) -> str:
    seconds = 0 if lag is None else round(lag.total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if abs(seconds) >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def show_json(stream: TextIO, found: Overview) -> None:
    """Print the contract's JSON object, in its order."""
    stream.write(as_json(stream, found.as_contract()))


def as_json(stream: TextIO, value: object) -> str:
    """Return JSON text that the stream's encoding can hold; what JSON has no type for is text."""
    unicode = (stream.encoding or "utf-8").lower().startswith("utf")
    return json.dumps(value, ensure_ascii=not unicode, indent=2, default=str) + "\n"


def json_document(stream: TextIO, result: object) -> None:
    """Print a result dataclass as JSON; exact numbers stay exact, as text."""
    assert is_dataclass(result)
    assert not isinstance(result, type)
    stream.write(as_json(stream, asdict(result)))


_CSV_COLUMNS = (
    "section", "day", "collection_id", "collection_title", "resource_type", "job_type", "model_level",
    "event_count", "total_value", "secondary_value", "tokens_in", "tokens_out",
)  # fmt: skip


def show_csv(stream: TextIO, found: Overview) -> None:
    """Print all sections as one CSV table. Nulls, and columns that a section has not, are empty; an empty text is ``""``."""
    rows = [{"section": section, **row} for section, rows in found.as_contract().items() for row in rows]
    csv_table(stream, _CSV_COLUMNS, [[row.get(column) for column in _CSV_COLUMNS] for row in rows])


def csv_table(stream: TextIO, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows as CSV with a header. Nulls are empty; an empty text is ``""``."""
    # At once, so that what the encoding cannot hold leaves nothing half written.
    text = "\n".join(",".join(map(_csv_field, row)) for row in (columns, *rows))
    stream.write(text + "\n")


def _csv_field(value: object) -> str:
    """Return a field as csv.QUOTE_NOTNULL of Python 3.12 would read it back: null and the empty text differ."""
    text = "" if value is None else str(value)
    if isinstance(value, str) and (not text or re.search(r'[",\r\n]', text)):
        return '"' + text.replace('"', '""') + '"'
    return text


def status_table(console: Console, status: Status) -> None:
    """Print the state of the rollups, and whether they are healthy, as a table."""
    grid = Table(show_header=False, box=None, pad_edge=False)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in status.lines():
        grid.add_row(Text(name), Text(printable(value, 2000)))
    console.print(grid)
    for note in status.notes:
        console.print(Text(f"note: {printable(note, 2000)}"), soft_wrap=True)
    if status.healthy:
        console.print(Text("healthy", style="green"))
    for problem in status.problems:
        console.print(Text(f"unhealthy: {printable(str(problem), 2000)}", style="bold red"), soft_wrap=True)


_UTC_SECOND = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\+00")


def totals_table(console: Console, found: Totals, keys: Sequence[str]) -> None:
    """Print sums by any keys, in readable units, each beside that of the window before."""
    shown = {
        "collection": lambda row: row.collection_title or row.collection_id or "(none)",
        "resource_type": lambda row: row.resource_type or "(none)",
        "job_type": lambda row: row.job_type or "(none)",
        "model_level": lambda row: row.model_level or "(none)",
    }
    graded = any(row.bucket is not None for row in found.rows)
    columns = [Column("from")] if graded else []
    columns += [Column(key.replace("_", " "), shrinks_from=12) for key in keys]
    columns += [Column("events", right=True), Column("total", right=True), Column("secondary", right=True)]
    columns += [Column("events before", right=True), Column("total before", right=True)]

    def number(value: float | None, unit: str | None) -> Text:
        return Text("" if value is None else quantity(value, unit))

    rows = [
        [Text(str(row.bucket))] * graded
        + [Text(printable(str(shown[key](row)))) for key in keys]
        + [Text(f"{row.event_count:,}"), number(row.total_value, row.unit)]
        + [number(row.secondary_value if row.secondary_unit else None, row.secondary_unit)]
        + [Text("" if row.event_count_before is None else f"{row.event_count_before:,}")]
        + [number(row.total_value_before, row.unit)]
        for row in found.rows
    ]
    if not rows:
        console.print("No usage in this window.")
    print_pieces(console, _without_empty("Usage", columns, rows, console.width) if rows else ())


def rows_table(console: Console, title: str, names: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows of anything, numbers to the right, instants without their offset, which is UTC; columns all empty are left out."""
    columns = [
        Column(name.replace("_", " "), right=any(_is_number(row[index]) for row in rows))
        for index, name in enumerate(names)
    ]
    cells = [[Text(_cell(value)) for value in row] for row in rows]
    print_pieces(console, _without_empty(title, columns, cells, console.width))


def _is_number(value: object) -> bool:
    return isinstance(value, int | Decimal) and not isinstance(value, bool)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Decimal):
        return f"{value:,f}"
    if isinstance(value, int):
        return f"{value:,}"
    return _UTC_SECOND.sub(r"\1", printable(str(value), 2000))


def differences_table(console: Console, differences: Sequence[Difference], total: int) -> None:
    """Print what has to be added to rollup rows to make them right."""
    if differences:
        names = (
            "rollup",
            "bucket",
            "collection",
            "type",
            "job type",
            "model level",
            "events",
            "total",
            "secondary",
            "rejected",
        )
        rows = [
            (row.rollup, row.bucket, row.collection_id, row.resource_type, row.job_type, row.model_level,
             row.event_count, row.total_value, row.secondary_value, row.rejected_count)
            for row in differences
        ]  # fmt: skip
        rows_table(console, "Differences: what the rollup lacks (or, negative, has too much)", names, rows)
    if total > len(differences):
        console.print(Text(f"… and {total - len(differences):,} more differences", style="dim"))
