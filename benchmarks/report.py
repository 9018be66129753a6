"""Tables of a run: on a terminal, and as Markdown into a page between its marks.

``python -m benchmarks.report results.json`` prints them; ``--into docs/performance.md`` fills the page's parts between
``<!-- results: NAME -->`` and ``<!-- end -->``. Of several files the first with a size counts, as for the plots.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import plots, results
from benchmarks.results import ROLLUPS, TARGET_EVENTS, Measurement, Results, Size

Cells = list[list[str]]
"""The rows of a table, its head first."""

GROWING = {
    "by collection, 30 days to the second", "by collection, all of history", "all rollups, against one raw pass",
    "after 20,000 new events", "after 20,000 late events", "all days, against one raw pass", "rollups with their indexes",
}  # fmt: skip


def figures(measurement: Measurement, contender: str) -> str:
    """Return a median with its unit and spread, and ours as a ratio."""
    values = measurement.values.get(contender)
    if not values:
        return ""
    median = statistics.median(values)
    text = f"{_number(median)} {measurement.unit}"
    if len(values) > 1:
        text += f" ({_number(min(values))}-{_number(max(values))})"
    ratio = measurement.ratio(contender)
    if contender != ROLLUPS and ratio is not None:
        text += f"; {ratio:.3g} x"
    return text


def _number(value: float) -> str:
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def subject_table(size: Size, subject: str) -> Cells:
    """Return the measurements of a subject, a column for each contender."""
    found = [one for one in size.measurements if one.subject == subject]
    contenders = list(dict.fromkeys([ROLLUPS, *(name for one in found for name in one.values)]))
    rows = [[one.what, *(figures(one, contender) for contender in contenders)] for one in found]
    return [[subject, *contenders], *rows] if found else []


def target_table(found: Results) -> Cells:
    """Return the targets and how they came out."""
    head = ["target", "ours", "against", "target is", "found", "met"]
    return [head, *(outcome.cells() for outcome in found.targets())]


def growth_table(found: Results) -> Cells:
    """Return what grows with the history: medians at each size, of whom was measured at more than one."""
    if len(found.sizes) < 2:
        return []
    rows: dict[tuple[str, str], list[str]] = {}
    for number, size in enumerate(found.sizes):
        for one in (one for one in size.measurements if one.what in GROWING):
            for contender in one.values:
                median = one.median(contender)
                row = rows.setdefault((f"{one.subject}: {one.what}", contender), [""] * len(found.sizes))
                row[number] = "" if median is None else f"{_number(median)} {one.unit}"
    head = ["", "", *(f"{size.events / 1e6:g} million events, {size.days:,} days" for size in found.sizes)]
    return [
        head,
        *([what, contender, *cells] for (what, contender), cells in rows.items() if sum(map(bool, cells)) > 1),
    ]


def subjects(size: Size) -> list[str]:
    """Return the subjects that were measured, in order."""
    return list(dict.fromkeys(one.subject for one in size.measurements))


def about(found: Results) -> str:
    """Return in a sentence or two what was measured where."""
    known, size = found.facts, found.main
    server = known["postgresql"]
    peers = "".join(f", {name} {version}" for name, version in known.get("peers", {}).items())
    return (
        f"{size.events:,} events of {size.days:,} days, {known['collections']} collections (skew {known['skew']:g}),"
        f" {known['types']} resource types. PostgreSQL {server['server_version']}{peers}; {known['cpus']} CPUs ({known['cpu']});"
        f" shared_buffers {server['shared_buffers']}, fsync {server['fsync']}, max_parallel_workers_per_gather"
        f" {server['max_parallel_workers_per_gather']}. aggregator {known['aggregator']}"
        f"{' (' + known['commit'] + ')' if known.get('commit') else ''}, {known['at']}."
    )


EXPLAINED = (
    "Medians (least-most). The ratios are of the rollups: in reads and refresh how many times as fast, else how many times"
    " as much as the column they stand in."
)


def show(found: Results) -> None:
    """Print the tables, and what failed, was missed or skipped."""
    # Not a terminal's width: a table in a log or a file is not to be cut.
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=200)
    for size in found.sizes:
        console.print(f"\n{size.events:,} events, {size.days:,} days", style="bold")
        for subject in subjects(size):
            _print(console, subject_table(size, subject))
    if cells := growth_table(found):
        _print(console, cells)
    _print(console, target_table(found))
    if found.main.events != TARGET_EVENTS:
        console.print(f"the targets are for {TARGET_EVENTS:,} events, not {found.main.events:,}")
    console.print(f"{about(found)}\n{EXPLAINED}")
    for size in found.sizes:
        for kind, notes in (("skipped", size.skipped), ("note", size.notes), ("FAILED", size.failures)):
            for note in notes:
                console.print(f"{kind}, {size.events:,} events: {note}", soft_wrap=True, markup=False)
        for note in size.different:
            console.print(f"DIFFERENT, {size.events:,} events: {note}. This is a bug", soft_wrap=True, markup=False)
    if not found.failed:
        console.print("every answer of ours equalled the raw query's, to the last digit")


def _print(console: Console, cells: Cells) -> None:
    table = Table()
    for number, head in enumerate(cells[0]):
        table.add_column(head, justify="right" if number else "left")
    for row in cells[1:]:
        table.add_row(*row)
    console.print(table)


def markdown(cells: Cells) -> str:
    """Return a table as Markdown."""
    if not cells:
        return "Not measured."
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" + "---:|" * (len(cells[0]) - 1), *lines[1:]])


def _remarks(found: Results) -> str:
    lines = [f"- skipped: {note}" for note in found.main.skipped] + [f"- {note}" for note in found.main.notes]
    lines += [f"- failed: {note}" for note in found.main.failures]
    equal = "Every answer of ours equalled the raw query's, in one snapshot, to the last digit."
    wrong = [f"- different: {note}" for note in found.main.different]
    return "\n".join([equal if not wrong else "", *lines, *wrong]).strip()


def parts(found: Results) -> dict[str, Callable[[], str]]:
    """Return what can stand between a page's marks, by name."""
    named: dict[str, Callable[[], str]] = {
        "about": lambda: f"{about(found)} {EXPLAINED}",
        "targets": lambda: markdown(target_table(found)),
        "growth": lambda: markdown(growth_table(found)) if len(found.sizes) > 1 else "",
        "remarks": lambda: _remarks(found),
    }
    for subject in ("reads", "hourly", "first build", "refresh", "verify", "writes", "storage", "late changes unseen"):
        named[subject] = lambda subject=subject: markdown(subject_table(found.main, subject))  # type: ignore[misc]
    return named


_MARKED = re.compile(r"(<!-- results: ([a-z ]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def fill(page: str, found: Results) -> str:
    """Return the page with its marked parts filled; raise KeyError for a name that is none.

    Growth stays as it is where one size was measured: it takes hours, and a run of its own.
    """
    known = parts(found)

    def filled(match: re.Match[str]) -> str:
        text = known[match[2]]()
        return f"{match[1]}\n{text}\n\n{match[4]}" if text else match[0]

    return _MARKED.sub(filled, page)


def main(arguments: list[str] | None = None) -> int:
    """Print the tables of results, or fill a page with them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--into", type=Path, help="the page")
    parser.add_argument("--plots", type=Path, help="a folder to draw the plots into")
    options = parser.parse_args(arguments)
    found = results.read(options.results)
    if options.into is None:
        show(found)
    else:
        options.into.write_text(fill(options.into.read_text(encoding="utf-8"), found), encoding="utf-8")
    if options.plots is not None:
        for path in plots.draw(found, options.plots):
            print(f"drawn: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
