"""Plots of a run: read latency over the window's length, and how each cost grows with the history."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from benchmarks.results import RAW, RAW_ONE, RAW_TABLE, ROLLUPS, Results

COLOURS = {
    ROLLUPS: "#0b6e4f", RAW: "#b23a48", RAW_ONE: "#d98e73", RAW_TABLE: "#b23a48", "materialized view": "#5b7db1",
    "naive trigger": "#8d6cab", "TimescaleDB": "#c9982f", "pg_ivm": "#7a7a7a",
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


def _windows(found: Results, folder: Path) -> list[Path]:
    """Read latency over the length of the window."""
    from matplotlib.figure import Figure

    series = [name for name in ("to the second", "whole days", "one collection") if _of_series(found, name)]
    if not series:
        return []
    figure = Figure(figsize=(4 * len(series), 3.4))
    axes = figure.subplots(1, len(series), squeeze=False, sharey=True)
    for axis, name in zip(axes[0], series, strict=True):
        lines: dict[str, list[tuple[float, list[float]]]] = {}
        for one in _of_series(found, name):
            for contender, values in one.values.items():
                if values and one.days is not None:
                    lines.setdefault(contender, []).append((float(one.days), values))
        _lines(axis, lines)
        axis.set_xlabel("days of the window")
        axis.set_title(f"By collection, {name}" if name != "one collection" else "One collection, to the second")
    axes[0][0].set_ylabel("ms")
    return [_save(figure, folder / "reads-by-window.svg")]


def _growth(found: Results, folder: Path) -> list[Path]:
    """Each cost over the number of events, if several histories were measured."""
    from matplotlib.figure import Figure

    if len(found.sizes) < 2:
        return []
    made: list[Path] = []
    for name, cases in GROWTH.items():
        figure = Figure(figsize=(3.6 * len(cases), 3.4))
        axes = figure.subplots(1, len(cases), squeeze=False)
        for axis, (what, title) in zip(axes[0], cases, strict=True):
            lines: dict[str, list[tuple[float, list[float]]]] = {}
            unit = ""
            for size in found.sizes:
                for one in (one for one in size.measurements if one.what == what):
                    unit = one.unit
                    for contender, values in one.values.items():
                        if values:
                            lines.setdefault(contender, []).append((size.events / 1e6, values))
            _lines(axis, lines)
            axis.set_title(title)
            axis.set_xlabel("million events")
            axis.set_ylabel(unit)
        made.append(_save(figure, folder / f"growth-{name}.svg"))
    return made


def _lines(axis: Any, lines: dict[str, list[tuple[float, list[float]]]]) -> None:
    """Draw a line of medians for each contender, with its least and most, on logarithmic axes."""
    from statistics import median

    from matplotlib.ticker import FuncFormatter, NullLocator

    for contender, points in sorted(lines.items(), key=lambda item: (item[0] != ROLLUPS, item[0])):
        points.sort()
        places = [place for place, _ in points]
        colour = COLOURS.get(contender)
        drawn = axis.plot(
            places, [median(values) for _, values in points], marker="o", markersize=3.5, label=contender, color=colour,
            linewidth=2.2 if contender == ROLLUPS else 1.3, linestyle="--" if contender.startswith(f"{ROLLUPS},") else "-",
        )  # fmt: skip
        axis.fill_between(
            places, [min(values) for _, values in points], [max(values) for _, values in points], alpha=0.15,
            color=drawn[0].get_color(), linewidth=0,
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_yscale("log")
    every = sorted({place for points in lines.values() for place, _ in points})
    axis.set_xticks(every, labels=[f"{place:g}" for place in every])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:,.10g}"))
    axis.legend(fontsize=7)


def _of_series(found: Results, name: str) -> list[Any]:
    return [one for one in found.main.measurements if one.subject == "reads" and one.series == name]


def _save(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    return path
