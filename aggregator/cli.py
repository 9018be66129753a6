"""The command ``aggregator``. Data on stdout, everything else on stderr; 0 fine, 1 failed or diverged, 2 wrong usage."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated

import psycopg
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from aggregator import capture, db, migrations, read, render
from aggregator import refresh as refreshing
from aggregator import status as status_reading
from aggregator import verify as verifying
from aggregator.errors import AggregatorError, UsageError
from aggregator.settings import Settings, load_settings, parse_instant

app = typer.Typer(
    name="aggregator",
    help="Exact, fast usage rollups on PostgreSQL.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
errors = Console(stderr=True, highlight=False)

DatabaseUrl = Annotated[
    str | None,
    typer.Option("--database-url", metavar="URL", help="libpq URI or keywords. [env: AGGREGATOR_DATABASE_URL, PG*]"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


class Format(StrEnum):
    """How show prints the overview."""

    table = "table"
    json = "json"
    csv = "csv"


@contextmanager
def _session(settings: Settings, command: str) -> Iterator[db.Connection]:
    with db.connect(settings, name=f"aggregator {command}") as connection:
        migrations.require_current(connection)
        yield connection


def _note(text: str, style: str = "") -> None:
    errors.print(text, style=style, soft_wrap=True, markup=False)


@app.command()
def migrate(
    database_url: DatabaseUrl = None,
    down: Annotated[bool, typer.Option("--down", help="Remove schema usage and the triggers on the source.")] = False,
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL instead of running it.")] = False,
    discard_sealed: Annotated[bool, typer.Option("--discard-sealed", help="With --down: sealed history too.")] = False,
) -> None:
    """Create or upgrade schema usage; --down removes it."""
    if sql:
        sys.stdout.write(migrations.offline_sql(down=down))
        return
    settings = load_settings(database_url=database_url)
    if down:
        before = migrations.downgrade(settings, discard_sealed=discard_sealed)
        _note("nothing to remove" if before is None else f"schema usage removed (it was at revision {before})")
        return
    old, new = migrations.upgrade(settings)
    _note(f"schema usage is at revision {new}" + ("" if old == new else f" (was {old or 'not there'})"))


@app.command()
def attach(
    database_url: DatabaseUrl = None,
    source_table: Annotated[
        str | None, typer.Option(metavar="NAME", help="The table of usage events. [env: AGGREGATOR_SOURCE_TABLE]")
    ] = None,
    title_table: Annotated[
        str | None, typer.Option(metavar="NAME", help="The table of titles, or none. [env: AGGREGATOR_TITLE_TABLE]")
    ] = None,
    time_zone: Annotated[
        str | None, typer.Option(metavar="ZONE", help="Reporting time zone. [env: AGGREGATOR_TIME_ZONE]")
    ] = None,
) -> None:
    """Start capture on the source table. From here on every answer is exact."""
    settings = load_settings(
        database_url=database_url, source_table=source_table, title_table=title_table, time_zone=time_zone
    )
    with _session(settings, "attach") as connection:
        attached = capture.attach(connection, settings)
    for warning in attached.warnings:
        _note(f"warning: {warning}", "yellow")
    done = "attached" if attached.changed else "was attached already, nothing changed:"
    _note(f"{done} {attached.source} (titles: {attached.title_table or 'none'}, days of {attached.time_zone})")


@app.command()
def detach(
    database_url: DatabaseUrl = None,
    discard_sealed: Annotated[bool, typer.Option("--discard-sealed", help="Throw sealed history away.")] = False,
) -> None:
    """Stop capture: drop the triggers and the rollups."""
    settings = load_settings(database_url=database_url)
    with _session(settings, "detach") as connection:
        done = capture.detach(connection, settings, discard_sealed=discard_sealed)
    _note("detached" if done else "nothing was attached")


@app.command()
def refresh(
    database_url: DatabaseUrl = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be folded, and fold nothing.")] = False,
    step_events: Annotated[
        int | None, typer.Option(metavar="N", help="Events of one transaction, about. [env: AGGREGATOR_STEP_EVENTS]")
    ] = None,
    wait_timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Wait for open writers. [env: AGGREGATOR_WAIT_TIMEOUT]")
    ] = None,
) -> None:
    """Bring the rollups up to now."""
    settings = load_settings(database_url=database_url, step_events=step_events, wait_timeout=wait_timeout)
    with _session(settings, "refresh") as connection:
        if dry_run:
            found = refreshing.forecast(connection)
            _note(
                f"would fold {found.events:,} events from {found.frontier} on and {found.late_changes:,} late changes"
            )
            if found.doubt is not None:
                _note(f"trust is off: {found.doubt}", "yellow")
            return
        with _refresh_progress() as report:
            result = refreshing.refresh(connection, settings, progress=report)
    _note(
        f"folded {result.events:,} events and {result.late_changes:,} late changes"
        f" in {result.steps} step{'s' if result.steps != 1 else ''}, {result.seconds:.1f} s; frontier {result.frontier}"
    )
    for writer in result.waited_for:
        _note(
            f"left the tail raw, since a writer is open: {writer}; answers are exact, the next refresh folds it",
            "yellow",
        )
    for note in result.notes:
        _note(f"note: {note}", "yellow")


@contextmanager
def _refresh_progress() -> Iterator[Callable[[refreshing.Progress], None]]:
    if not errors.is_terminal:

        def report_line(step: refreshing.Progress) -> None:
            _note(
                f"{step.events:,} of about {step.expected:,} events, {step.late_changes:,} late changes;"
                f" frontier {step.frontier}"
            )

        yield report_line
        return
    with Progress(
        TextColumn("folding"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(), console=errors, transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task("events", total=None)

        def report_bar(step: refreshing.Progress) -> None:
            bar.update(task, completed=step.events, total=step.expected)

        yield report_bar


@app.command()
def show(
    database_url: DatabaseUrl = None,
    days: Annotated[int, typer.Option(help="The last N local days, clamped into 1-365.")] = 30,
    since: Annotated[
        str | None, typer.Option(metavar="INSTANT", help="Instead of --days: ISO 8601, with zone.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="INSTANT", help="End of the window, exclusive.")] = None,
    collection: Annotated[str | None, typer.Option(metavar="UUID", help="Only this collection.")] = None,
    output: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.table,
    rows: Annotated[int, typer.Option(min=0, help="Rows of a table at most, 0 for all.")] = render.SHOWN_ROWS,
) -> None:
    """Print the usage overview of a window, exact to the microsecond."""
    begin = None if since is None else parse_instant(since, "--since")
    end = None if until is None else parse_instant(until, "--until")
    if begin is not None and end is not None and begin >= end:
        raise UsageError("--since must be before --until")
    settings = load_settings(database_url=database_url)
    with _session(settings, "show") as connection, db.transaction(connection, read_only=True):
        overview = read.usage_overview(connection, days=days, since=begin, until=end, collection_id=collection)
        units = {row[0]: (row[2], row[3]) for row in connection.execute(read.SQL["metrics"]).fetchall()}
    if output is Format.json:
        render.show_json(sys.stdout, overview)
    elif output is Format.csv:
        render.show_csv(sys.stdout, overview)
    else:
        render.show_tables(Console(highlight=False), overview, units, rows)


@app.command()
def status(database_url: DatabaseUrl = None, as_json: Json = False) -> None:
    """Print freshness and trust; exit 1 if something needs you."""
    settings = load_settings(database_url=database_url)
    with _session(settings, "status") as connection:
        found = status_reading.read_status(connection)
    if as_json:
        sys.stdout.write(json.dumps(found.as_dict(), ensure_ascii=False, indent=2) + "\n")
    else:
        render.status_table(Console(highlight=False), found)
    raise typer.Exit(0 if found.healthy else 1)


@app.command()
def verify(
    database_url: DatabaseUrl = None,
    repair: Annotated[bool, typer.Option("--repair", help="Fold exactly the differences.")] = False,
    since: Annotated[str | None, typer.Option(metavar="DAY", help="First day, like 2026-03-01.")] = None,
    until: Annotated[str | None, typer.Option(metavar="DAY", help="Day after the last one.")] = None,
) -> None:
    """Compare the rollups with the raw events; exit 1 if they differ and are not repaired."""
    first = None if since is None else verifying.parse_day(since, "--since")
    last = None if until is None else verifying.parse_day(until, "--until")
    settings = load_settings(database_url=database_url)

    def report(step: verifying.VerifyProgress) -> None:
        _note(f"{step.day_from} … {step.day_to}: {step.differences:,} differences so far")

    with _session(settings, "verify") as connection:
        result = verifying.verify(connection, settings, repair=repair, since=first, until=last, progress=report)
    render.differences_table(Console(highlight=False), result.shown, result.differences)
    if result.differences == 0:
        _note(f"equal: {result.months} months compared")
    else:
        _note(f"{result.differences:,} differences" + (", repaired" if repair else "; verify --repair folds them"))
    if result.doubt is not None:
        _note(f"trust is off, so reads are slow: {result.doubt}", "yellow")
    raise typer.Exit(1 if result.differences and not repair else 0)


@app.command()
def demo(
    events: Annotated[int, typer.Option(min=1, help="Sample events.")] = 1_000_000,
    days: Annotated[int, typer.Option(min=1, help="Days of history.")] = 365,
    seed: Annotated[int, typer.Option(help="Of the sample data.")] = 1,
) -> None:
    """Run everything once on an embedded PostgreSQL with sample data."""
    from aggregator import demo as demonstration

    if not demonstration.run(events=events, days=days, seed=seed):
        raise typer.Exit(1)


def main() -> None:
    """Run the command; turn every expected error into one line and an exit code."""
    try:
        app()
    except AggregatorError as exc:
        _note(f"aggregator: {exc}", "red")
        sys.exit(exc.exit_code)
    except psycopg.Error as exc:
        _note(f"aggregator: {db.one_line(exc)}", "red")
        sys.exit(1)
    except KeyboardInterrupt:
        _note("aggregator: interrupted; what was committed stays good", "red")
        sys.exit(130)


if __name__ == "__main__":
    main()
