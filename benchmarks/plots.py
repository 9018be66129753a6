"""Plots of a run: read latency over the window's length, and how each cost grows with the history."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.results import RAW, RAW_ONE, RAW_TABLE, ROLLUPS, TENTH, TWO_JOBS, Results

COLOURS = {
    ROLLUPS: "#0b6e4f", RAW: "#b23a48", RAW_ONE: "#d98e73", RAW_TABLE: "#b23a48", "materialized view": "#5b7db1",
    TWO_JOBS: "#58a884", "naive trigger": "#8d6cab", "TimescaleDB": "#c9982f", "pg_ivm": "#7a7a7a",
}  # fmt: skip

GROWTH = {
    "reads": (
        ("by collection, 30 days to the second", "Read 30 days to the second"),
        ("by collection, all of history", "Read all of history"),
    ),
    "costs": (
        ("all rollups, against one raw pass", "First build"),
        ("after 20,000 new events", "Refresh after 20,000 new events"),
        ("after 20,000 late events", "Refresh after 20,000 late events"),
        ("all days, against one raw pass", "Verify all days"),
        ("rollups with their indexes", "Storage"),
    ),
}


def draw(found: Results, folder: Path) -> list[Path]:
    """Draw what the results have into a folder, as SVG; return the files. Without matplotlib, say so and draw nothing."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no plots: matplotlib is not installed (dependency group bench)", file=sys.stderr)
        return []
    import matplotlib as mpl

    mpl.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "aggregator", "font.family": "sans-serif", "font.size": 9,
         "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
         "legend.frameon": False}
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    return [*_windows(found, folder), *_growth(found, folder)]


Lines = dict[str, list[tuple[float, list[float]]]]
"""Of each contender: places on the x axis, and the figures there."""


def _windows(found: Results, folder: Path) -> list[Path]:
    """Read latency over the length of the window."""
    titles = {
        "to the second": "By collection, to the second",
        "whole days": "By collection, whole days",
        "one collection": "One collection, to the second",
    }
    panels: list[tuple[str, str, Lines]] = []
    for series, title in titles.items():
        lines: Lines = {}
        for one in found.main.measurements:
            if one.subject == "reads" and one.series == series and one.days is not None:
                for contender, values in one.values.items():
                    lines.setdefault(contender, []).append((float(one.days), values))
        panels.append((title, "ms", lines))
    path = folder / "reads-by-window.svg"
    return [path] if _panels(path, panels, "days of the window", share=True) else []


def _growth(found: Results, folder: Path) -> list[Path]:
    """Each cost over the number of events, if several histories were measured."""
    if len(found.sizes) < 2:
        return []
    made: list[Path] = []
    for name, cases in GROWTH.items():
        panels: list[tuple[str, str, Lines]] = []
        for what, title in cases:
            lines: Lines = {}
            unit = ""
            for size in found.sizes:
                for one in (one for one in size.measurements if one.what == what):
                    unit = one.unit
                    for contender in one.values.keys() - {TENTH}:
                        lines.setdefault(contender, []).append((size.events / 1e6, one.values[contender]))
            panels.append((title, unit, lines))
        path = folder / f"growth-{name}.svg"
        if _panels(path, panels, "million events"):
            made.append(path)
    return made


def _panels(path: Path, panels: list[tuple[str, str, Lines]], over: str, *, share: bool = False) -> bool:
    """Draw panels, three in a row, with one legend below; return whether there was anything to draw."""
    from matplotlib.figure import Figure

    drawn = [
        (title, unit, lines)
        for title, unit, some in panels
        if (lines := {name: points for name, points in some.items() if any(values for _, values in points)})
    ]
    if not drawn:
        return False
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.0 * rows + 0.5), layout="constrained")
    every = list(figure.subplots(rows, columns, squeeze=False, sharey=share).flat)
    handles: dict[str, Any] = {}
    for axis, (title, unit, lines) in zip(every, drawn, strict=False):
        handles |= _lines(axis, lines)
        axis.set_title(title)
        axis.set_xlabel(over)
        axis.set_ylabel(unit)
    for axis in every[len(drawn) :]:
        axis.set_axis_off()
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(6, len(handles)))
    figure.savefig(path, metadata={"Date": None})
    return True


def _lines(axis: Any, lines: Lines) -> dict[str, Any]:
    """Draw a line of medians for each contender, with its least and most, on logarithmic axes; return them by name."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    handles: dict[str, Any] = {}
    for contender, all_points in sorted(lines.items(), key=lambda item: (item[0] != ROLLUPS, item[0])):
        points = sorted((place, values) for place, values in all_points if values)
        places = [place for place, _ in points]
        (handles[contender],) = axis.plot(
            places, [median(values) for _, values in points], marker="o", markersize=3.5, color=COLOURS.get(contender),
            linewidth=2.2 if contender == ROLLUPS else 1.3, linestyle="--" if contender.startswith(f"{ROLLUPS},") else "-",
        )  # fmt: skip
        axis.fill_between(
            places, [min(values) for _, values in points], [max(values) for _, values in points], alpha=0.15,
            color=handles[contender].get_color(), linewidth=0,
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_yscale("log")
    ticks = sorted({place for points in lines.values() for place, _ in points})
    axis.set_xticks(ticks, labels=[f"{place:g}" for place in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:,.10g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    return handles
