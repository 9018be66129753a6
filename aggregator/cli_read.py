"""The commands that read: show, totals, export, status, history."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import astuple, replace
from pathlib import Path
from typing import Annotated

import typer
from psycopg import IsolationLevel
from rich.console import RenderableType

from aggregator import db, read, render, terminal
from aggregator import export as exporting
from aggregator import history as history_reading
from aggregator import status as status_reading
from aggregator import totals as summing
from aggregator.cli_base import DatabaseUrl, Format, Json, app, say, session
from aggregator.errors import UsageError
from aggregator.settings import load_settings, parse_instant

Days = Annotated[int, typer.Option(help="The last N local days before --until, or before now; clamped into 1-365.")]
Since = Annotated[str | None, typer.Option(metavar="INSTANT", help="Instead of --days: ISO 8601, with zone.")]
Until = Annotated[str | None, typer.Option(metavar="INSTANT", help="End of the window, exclusive.")]
Collection = Annotated[str | None, typer.Option(metavar="UUID", help="Only this collection.")]


@app.command()
def show(
    database_url: DatabaseUrl = None,
    days: Days = 30,
    since: Since = None,
    until: Until = None,
    collection: Collection = None,
    output: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.table,
    time_zone: Annotated[
        str | None, typer.Option(metavar="ZONE", help="Days of this time zone instead of the reporting one.")
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows of a table at most, 0 for all.")] = render.SHOWN_ROWS,
    watch: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Draw the tables again so often, as far as the screen holds them, until Ctrl-C."
        ),
    ] = None,
) -> None:
    """Print the usage overview of a window, exact to the microsecond."""
    begin = None if since is None else parse_instant(since, "--since")
    end = None if until is None else parse_instant(until, "--until")
    if begin is not None and end is not None and begin >= end:
        raise UsageError("--since must be before --until")
    if watch is not None:
        _check_watch(watch, output)
    settings = load_settings(database_url=database_url)
    with session(settings, "show") as connection:

        def look() -> tuple[read.Overview, render.Units]:
            with db.transaction(connection, isolation=IsolationLevel.REPEATABLE_READ, read_only=True):
                found = read.usage_overview(connection, days=days, since=begin, until=end, collection_id=collection)
                if time_zone is not None:
                    daily = read.usage_daily(
                        connection, time_zone=time_zone, days=days, since=begin, until=end, collection_id=collection
                    )
                    found = replace(found, daily=daily)
                return found, {row[0]: row[2:] for row in connection.execute(read.SQL["metrics"]).fetchall()}

        if output is Format.table:
            console = terminal.console()

            def tables() -> Iterator[RenderableType]:
                return render.overview(console, *look(), rows)

            if watch is None:
                terminal.print_pieces(console, tables())
            else:
                terminal.watch(console, tables, watch)
        else:
            found, _ = look()
            (render.show_json if output is Format.json else render.show_csv)(sys.stdout, found)
            if not found.receipt.exact:
                for reason in found.receipt.reasons:
                    say(f"NOT EXACT: {reason}", "yellow")


@app.command()
def totals(
    database_url: DatabaseUrl = None,
    by: Annotated[
        str, typer.Option(metavar="KEYS", help="Any of collection, resource_type, job_type, model_level, with commas.")
    ] = "resource_type",
    grain: Annotated[str, typer.Option(metavar="GRAIN", help="Also by day, week (ISO) or month, or none.")] = "none",
    fill: Annotated[
        bool, typer.Option("--fill", help="Zeros for gaps, and for what only the window before has.")
    ] = False,
    days: Days = 30,
    since: Since = None,
    until: Until = None,
    collection: Collection = None,
    output: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.table,
) -> None:
    """Print sums of a window by any keys and grain, beside the window before it; exact to the microsecond."""
    begin = None if since is None else parse_instant(since, "--since")
    end = None if until is None else parse_instant(until, "--until")
    keys = [key.strip() for key in by.split(",") if key.strip()]
    settings = load_settings(database_url=database_url)
    with session(settings, "totals") as connection, db.transaction(connection, read_only=True):
        found = summing.usage_totals(
            connection, by=keys, grain=grain, fill=fill, days=days, since=begin, until=end, collection_id=collection
        )
    if output is Format.json:
        sys.stdout.write(render.as_json(sys.stdout, found.as_document()))
    elif output is Format.csv:
        render.csv_table(sys.stdout, summing.COLUMNS, [astuple(row) for row in found.rows])
    else:
        render.totals_table(terminal.console(), found, keys)
    for reason in () if found.exact else found.reasons:
        say(f"NOT EXACT: {reason}", "yellow")


_WATCH_SECONDS = (0.1, 86_400)


def _check_watch(seconds: float, output: Format) -> None:
    least, most = _WATCH_SECONDS
    if not least <= seconds <= most:
        raise UsageError(f"--watch: {seconds:g} is not within {least:g} and {most:,} seconds")
    if output is not Format.table:
        raise UsageError("--watch draws tables: leave --format out")
    if not sys.stdout.isatty():
        raise UsageError("--watch draws on a terminal, and the output is none: leave it out")


@app.command()
def export(
    database_url: DatabaseUrl = None,
    days: Days = 30,
    since: Since = None,
    until: Until = None,
    grain: Annotated[
        str, typer.Option(metavar="day|month", help="A row for each key and local day, or month.")
    ] = "day",
    output_format: Annotated[str, typer.Option("--format", metavar="csv|parquet|ndjson", help="Of the file.")] = "csv",
    collection: Collection = None,
    output: Annotated[
        str, typer.Option(metavar="FILE", help="Replaced when whole, with FILE.meta.json; -: stdout.")
    ] = "-",
) -> None:
    """Write the exact rows of a window, by day or month and whole key, to a file or stdout."""
    begin = None if since is None else parse_instant(since, "--since")
    end = None if until is None else parse_instant(until, "--until")
    if output == "-" and output_format == "parquet" and sys.stdout.isatty():
        raise UsageError("parquet is not for a terminal: give --output FILE")
    settings = load_settings(database_url=database_url)
    with session(settings, "export") as connection:
        exported = exporting.export_usage(
            connection, sys.stdout.buffer if output == "-" else Path(output), output_format=output_format, grain=grain,
            days=days, since=begin, until=end, collection_id=collection,
        )  # fmt: skip
    say(
        f"exported {exported.rows:,} rows from {exported.since:%Y-%m-%d %H:%M:%S} UTC"
        + (f" until {exported.until:%Y-%m-%d %H:%M:%S} UTC" if exported.until else " on")
        + f", as of {exported.as_of:%Y-%m-%d %H:%M:%S} UTC, {'exact' if exported.exact else 'NOT EXACT'}"
    )
    for reason in exported.reasons:
        say(f"note: {reason}", "yellow")


@app.command()
def status(database_url: DatabaseUrl = None, as_json: Json = False) -> None:
    """Print freshness and trust; exit 1 if something needs you."""
    settings = load_settings(database_url=database_url)
    with session(settings, "status") as connection:
        found = status_reading.read_status(connection, settings)
    if as_json:
        sys.stdout.write(render.as_json(sys.stdout, found.as_dict()))
    else:
        render.status_table(terminal.console(), found)
    raise typer.Exit(0 if found.healthy else 1)


@app.command()
def history(
    of: Annotated[history_reading.Kind, typer.Argument(help="Of what.")] = history_reading.Kind.refreshes,
    database_url: DatabaseUrl = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="The newest N.")] = 20,
    as_json: Json = False,
) -> None:
    """Print what refreshes, verifications or restatements there were, newest first."""
    settings = load_settings(database_url=database_url)
    with session(settings, "history") as connection:
        found = history_reading.read_history(connection, of, limit)
    if as_json:
        sys.stdout.write(render.as_json(sys.stdout, found.as_dicts()))
    else:
        render.rows_table(terminal.console(), of.value.capitalize(), found.names, found.rows)
