"""What a terminal shows: text that cannot harm it, numbers that people read, tables that never cut a number."""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

LONGEST = 200
"""Characters of a text that a cell shows at most."""

_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = "._-=+*%#"
_BYTES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_THOUSANDS = ("", "k", "M", "G", "T", "P", "E")
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")


def console(*, stderr: bool = False) -> Console:
    """Return a console that takes no text for markup, and writes ``?`` for what the stream's encoding lacks.

    With NO_COLOR set it styles nothing at all: the library would still write bold and dim.
    """
    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    return Console(
        stderr=stderr, markup=False, highlight=False, emoji=False,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
    )  # fmt: skip


def printable(text: str, longest: int = LONGEST) -> str:
    """Return a text in one line without characters that move the cursor or turn the writing direction; ``…`` where cut."""
    cut = text[: longest + 1]
    shown = "".join(map(_visible, cut if len(cut) <= longest else cut[: longest - 1]))
    return shown if len(cut) <= longest else f"{shown}…"


def _visible(character: str) -> str:
    if character < " ":
        return chr(0x2400 + ord(character))  # the control's picture: ␊ for a newline
    if character in _BIDI or unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}:
        return "�"
    return character


def quantity(value: float, unit: str | None) -> str:
    """Return a value in a unit that people read: 1.50 GiB, 12 h 05 min, 3.42 M tokens."""
    sign, size = ("-" if value < 0 else ""), abs(value)
    suffix = f" {unit}" if unit else ""
    if not math.isfinite(size):
        return f"{value}{suffix}"
    if unit == "bytes":
        number, power = _scaled(size, 1024, len(_BYTES) - 1)
        return f"{sign}{round(size)} B" if power == 0 else f"{sign}{number} {_BYTES[power]}"
    if unit in {"seconds", "minutes"}:
        return sign + _duration(size if unit == "seconds" else size * 60)
    number, power = _scaled(size, 1000, len(_THOUSANDS) - 1)
    return f"{sign}{number}{' ' if power else ''}{_THOUSANDS[power]}{suffix}"


def _scaled(size: float, base: int, most: int) -> tuple[str, int]:
    """Return a number of three digits or so, and the power of ``base`` that it is to be multiplied with."""
    power = 0
    # What rounds up to the base belongs to the next unit: 1.00 MiB, not 1,024.00 KiB.
    while power < most and round(size, 2 if power else 0) >= base:
        size, power = size / base, power + 1
    if size >= 1e9:
        return f"{size:.3g}", power
    return (f"{size:,.2f}" if power else f"{size:.4g}"), power


def _duration(seconds: float) -> str:
    if round(seconds, 1) < 60:
        return f"{seconds:.3g} s"
    if seconds >= 1e15:
        return f"{seconds / 3600:.3g} h"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes:02d} min"


def sparkline(values: Mapping[date, float], first: date, last: date, width: int, *, ascii_only: bool = False) -> str:
    """Draw one character for each day, or for so many days together that it fits ``width``; days without events are gaps."""
    together = days_together(first, last, width)
    sums: dict[int, float] = {}
    for day, value in values.items():
        place = (day - first).days // together
        sums[place] = sums.get(place, 0) + value
    top = max(sums.values(), default=0)
    bars = _ASCII_BARS if ascii_only else _BARS
    return "".join(
        bars[_level(sums[place], top, len(bars) - 1)] if place in sums else " "
        for place in range(-(-((last - first).days + 1) // together))
    )


def days_together(first: date, last: date, width: int) -> int:
    """Return how many days one character of a sparkline stands for."""
    return -(-((last - first).days + 1) // width)


def _level(value: float, top: float, highest: int) -> int:
    if value == top > 0:  # also where both are infinite
        return highest
    return 0 if value <= 0 else round(value / top * highest)


@dataclass(frozen=True)
class Column:
    """A column of a table. What is longer than ``shrinks_from`` may be cut, and more where the terminal is narrow; None: never."""

    name: str
    right: bool = False
    shrinks_from: int | None = None


def table(
    title: str, columns: Sequence[Column], rows: Sequence[Sequence[Text]], width: int
) -> Iterator[RenderableType]:
    """Yield a table that fits ``width``; where not even cut texts make it fit, the rows as lines of names and values."""
    widths = _widths(columns, rows, width)
    if widths is None:
        yield Text(title, style="italic")
        for row in rows:
            yield _record(columns, row, width)
        return
    grid = Table(title=title, title_justify="left", header_style="bold")
    for column, wide in zip(columns, widths, strict=True):
        grid.add_column(
            Text(column.name),
            justify="right" if column.right else "left",
            width=wide,
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in rows:
        grid.add_row(*row)
    yield grid


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[Text]], width: int) -> list[int] | None:
    """Return the width of each column; None if what must be whole is too wide already."""
    natural = [
        max(
            [
                cell_len(column.name),
                *(min(cell_len(row[index].plain), column.shrinks_from or sys.maxsize) for row in rows),
            ]
        )
        for index, column in enumerate(columns)
    ]
    frame = 3 * len(columns) + 1
    left = (
        width - frame - sum(wide for wide, column in zip(natural, columns, strict=True) if column.shrinks_from is None)
    )
    texts = [
        (wide, cell_len(column.name)) for wide, column in zip(natural, columns, strict=True) if column.shrinks_from
    ]
    if left < sum(least for _, least in texts):
        return None
    level = max((wide for wide, _ in texts), default=0)
    while sum(max(min(wide, level), least) for wide, least in texts) > left:
        level -= 1
    return [
        max(min(wide, level), cell_len(column.name)) if column.shrinks_from else wide
        for wide, column in zip(natural, columns, strict=True)
    ]


def _record(columns: Sequence[Column], row: Sequence[Text], width: int) -> Text:
    """Return a row as names and values, several to a line; a value is never parted from its name, nor cut."""
    lines: list[Text] = []
    for column, value in zip(columns, row, strict=True):
        if not value.plain:
            continue
        item = Text.assemble((f"{column.name} ", "dim"), value)
        if lines and cell_len(lines[-1].plain) + 2 + cell_len(item.plain) <= width:
            lines[-1] = Text.assemble(lines[-1], "  ", item)
        else:
            lines.append(Text.assemble("  ", item) if lines else Text.assemble("- ", item))
    return Text("\n").join(lines)


def print_pieces(target: Console, pieces: Iterable[RenderableType]) -> None:
    """Print tables and lines; a line is left to the terminal to wrap, so that a pipe gets it whole."""
    for piece in pieces:
        target.print(piece, soft_wrap=True)


def watch(target: Console, pieces: Callable[[], Iterable[RenderableType]], seconds: float) -> None:
    """Draw in the terminal's other screen, again every so many seconds until Ctrl-C, and leave the last drawing behind."""
    last: list[RenderableType] = []
    with contextlib.suppress(KeyboardInterrupt), Live(console=target, screen=True, auto_refresh=False) as live:
        while True:
            last = list(pieces())
            live.update(Group(Text(f"every {seconds:g} s until Ctrl-C", style="dim"), *last), refresh=True)
            time.sleep(seconds)
    print_pieces(target, last)
