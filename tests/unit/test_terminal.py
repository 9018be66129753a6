"""What people read: quantities, sparklines, text that cannot harm a terminal, tables that cut no number."""

from __future__ import annotations

import io
from datetime import date, timedelta

import pytest
from rich.console import Console
from rich.text import Text

from aggregator import render
from aggregator.terminal import Column, print_pieces, printable, quantity, sparkline, table


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0, "bytes", "0 B"),
        (1023.4, "bytes", "1023 B"),
        (1023.9, "bytes", "1.00 KiB"),
        (1024**2 - 0.1, "bytes", "1.00 MiB"),
        (-1610612736, "bytes", "-1.50 GiB"),
        (1024.0**7, "bytes", "1,024.00 EiB"),
        (0, "seconds", "0 s"),
        (59.94, "seconds", "59.9 s"),
        (59.99, "seconds", "1 min 00 s"),
        (3599.6, "seconds", "1 h 00 min"),
        (-90, "minutes", "-1 h 30 min"),
        (1e30, "seconds", "2.78e+26 h"),
        (0, None, "0"),
        (999.4, "tokens", "999.4 tokens"),
        (999.96, "tokens", "1.00 k tokens"),
        (999_999, "tokens", "1.00 M tokens"),
        (3_420_000, "tokens", "3.42 M tokens"),
        (-1500, None, "-1.50 k"),
        (1e18, "tokens", "1.00 E tokens"),
        (1e300, "tokens", "1e+282 E tokens"),
        (float("inf"), "seconds", "inf seconds"),
        (float("-inf"), "tokens", "-inf tokens"),
        (float("inf"), "bytes", "inf bytes"),
        (5, "[/b]", "5 [/b]"),
    ],
)
def test_quantity(value: float, unit: str | None, expected: str) -> None:
    """Values are rounded into the unit that suits them, of either sign, however large."""
    assert quantity(value, unit) == expected


FIRST = date(2026, 3, 1)


def days(*values: float | None) -> dict[date, float]:
    return {FIRST + timedelta(days=n): value for n, value in enumerate(values) if value is not None}


@pytest.mark.parametrize(
    ("values", "length", "width", "expected"),
    [
        (days(1, None, 7), 3, 10, "▂ █"),
        (days(None, None, 7), 4, 10, "  █ "),
        (days(0, 0), 2, 10, "▁▁"),
        (days(-5, 5), 2, 10, "▁█"),
        (days(-5, -1), 2, 10, "▁▁"),
        (days(1, 1, None, None, 4, None), 6, 3, "▅ █"),
        (days(float("inf"), 1, float("-inf")), 3, 10, "█▁▁"),
        ({}, 3, 10, "   "),
    ],
)
def test_sparkline(values: dict[date, float], length: int, width: int, expected: str) -> None:
    """One bar for each day, or for several together; a day without events is a gap, one of value 0 is not."""
    last = FIRST + timedelta(days=length - 1)
    assert sparkline(values, FIRST, last, width) == expected
    assert sparkline(values, FIRST, last, width, ascii_only=True).isascii()


def test_sparkline_of_all_history() -> None:
    """A window of ten thousand years is drawn at once, and fits."""
    assert sparkline({date.min: 1, date.max: 2}, date.min, date.max, 40).strip("▅█ ") == ""


def test_printable() -> None:
    """Control and bidi characters are shown, not obeyed; emoji of several code points stay; long texts are cut."""
    assert printable("a\nb\x1b[31m\x9b\u202ec\u2028d") == "a␊b␛[31m��c�d"
    assert printable("👩\u200d🔬 é 中") == "👩\u200d🔬 é 中"
    assert printable("x" * 1_000_000) == "x" * 199 + "…"
    assert printable("x" * 200) == "x" * 200


def drawn(columns: list[Column], rows: list[list[str]], width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, markup=False)
    print_pieces(console, table("Title", columns, [[Text(cell) for cell in row] for row in rows], width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_only_texts_shrink() -> None:
    """Where a table is too wide its texts are cut, and never a number; where that is not enough it becomes lines."""
    columns = [Column("name", shrinks_from=40), Column("kind", shrinks_from=40), Column("number", right=True)]
    rows = [["n" * 40, "k" * 30, "1,234,567,890"], ["短" * 30, "", "2"]]
    for width in (30, 40, 80, 120):
        lines = drawn(columns, rows, width)
        assert lines[0].rstrip() == "Title"
        assert all(Text(line).cell_len <= width or line.startswith(("- ", "  ")) for line in lines)
        assert any("1,234,567,890" in line for line in lines)
    assert any("n…" in line for line in drawn(columns, rows, 60))
    assert drawn(columns, rows[1:], 20)[1:] == ["- name " + "短" * 30, "  number 2"]


def test_rows_of_anything_at_80_columns() -> None:
    """A wide table becomes lines of names and values; columns that are all empty are left out."""
    console = Console(file=io.StringIO(), width=80, markup=False)
    names = ("id", "started_at", "status", "waited_for", "error", "events")
    rows = [(n, "2026-03-01 10:00:00+00", "failed", None, "[/b] " + "e" * 100, 1234567) for n in range(2)]
    render.rows_table(console, "Runs", names, rows)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "- id 0  started at 2026-03-01 10:00:00  status failed\n" in text
    assert "waited" not in text
    assert text.count("[/b] " + "e" * 100) == text.count("events 1,234,567") == 2
