"""The command ``aggregator``. Data on stdout, everything else on stderr; 0 fine, 1 failed or diverged, 2 wrong usage."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import astuple
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import psycopg
import typer
from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from aggregator import capture, db, jobs, matviews, migrations, read, render, terminal
from aggregator import export as exporting
from aggregator import history as history_reading
from aggregator import metrics as definitions
from aggregator import purge as purging
from aggregator import rebuild as rebuilding
from aggregator import refresh as refreshing
from aggregator import scheduler as scheduling
from aggregator import seal as sealing
from aggregator import status as status_reading
from aggregator import totals as summing
from aggregator import verify as verifying
from aggregator.errors import AggregatorError, Stopped, UsageError
from aggregator.settings import Settings, load_settings, parse_instant

app = typer.Typer(
    name="aggregator",
    help="Exact, fast usage rollups on PostgreSQL.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
metric_app = typer.Typer(help="What each resource type adds up.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(metric_app, name="metric")
errors = terminal.console(stderr=True)

_INTERRUPTED = 130
"""Exit code of SIGINT: also what typer makes of a KeyboardInterrupt."""

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


_LONGEST_NOTE = 2000
"""Characters: an error may quote what somebody put into the database."""


def _note(text: str, style: str = "") -> None:
    errors.print(Text(terminal.printable(text, _LONGEST_NOTE), style=style), soft_wrap=True)


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
    with _session(settings, "detach") as connection, jobs.exclusive(connection, settings, "detach"):
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
    views: Annotated[bool, typer.Option("--views", help="Then the materialized views, if anything changed.")] = False,
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
        jobs.record_refreshed(connection)
        refreshed = matviews.refresh_views(connection) if views else None
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
    if refreshed is not None:
        _note(f"refreshed {', '.join(refreshed)}" if refreshed else "materialized views: nothing has changed since")


@app.command()
def schedule(
    database_url: DatabaseUrl = None,
    once: Annotated[bool, typer.Option("--once", help="One nightly run now, then end: for cron.")] = False,
    refresh_every: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Between refreshes. [env: AGGREGATOR_REFRESH_EVERY]")
    ] = None,
    nightly_at: Annotated[
        str | None, typer.Option(metavar="HH:MM", help="In the reporting zone. [env: AGGREGATOR_NIGHTLY_AT]")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(metavar="PORT", help="Of metrics and health. [env: AGGREGATOR_METRICS_PORT]")
    ] = None,
    log_format: Annotated[
        str | None, typer.Option(metavar="text|json", help="Of the log lines. [env: AGGREGATOR_LOG_FORMAT]")
    ] = None,
) -> None:
    """Refresh every few minutes, and do the nightly run, until SIGTERM."""
    settings = load_settings(
        database_url=database_url, refresh_every=refresh_every, nightly_at=nightly_at, metrics_port=metrics_port,
        log_format=log_format,
    )  # fmt: skip
    if once:
        raise typer.Exit(0 if scheduling.run_once(settings) else 1)
    scheduling.Scheduler(settings).run()


def _overtaken(step: refreshing.Progress) -> bool:
    """Return whether the planner's estimate was too low, as without statistics: then nobody knows how much is left."""
    return step.events >= step.expected


@app.command()
def serve(
    database_url: DatabaseUrl = None,
    http_host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Listen there. [env: AGGREGATOR_HTTP_HOST]")
    ] = None,
    http_port: Annotated[
        int | None, typer.Option(metavar="PORT", help="And there. [env: AGGREGATOR_HTTP_PORT]")
    ] = None,
    insecure_local: Annotated[
        bool, typer.Option("--insecure-local", help="Ask for no token; on the loopback address only.")
    ] = False,
    http_jwt_public_key: Annotated[
        str | None, typer.Option(metavar="FILE", help="Check RS256 by it. [env: AGGREGATOR_HTTP_JWT_PUBLIC_KEY]")
    ] = None,
    http_jwt_jwks: Annotated[
        str | None, typer.Option(metavar="FILE|URL", help="Check RS256 by it. [env: AGGREGATOR_HTTP_JWT_JWKS]")
    ] = None,
    http_jwt_issuer: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Of tokens. [env: AGGREGATOR_HTTP_JWT_ISSUER]")
    ] = None,
    http_jwt_audience: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Of tokens. [env: AGGREGATOR_HTTP_JWT_AUDIENCE]")
    ] = None,
    http_access_query: Annotated[
        str | None, typer.Option(metavar="SQL", help="May $user see it? [env: AGGREGATOR_HTTP_ACCESS_QUERY]")
    ] = None,
    http_max_reads: Annotated[
        int | None, typer.Option(metavar="N", help="Reads at a time. [env: AGGREGATOR_HTTP_MAX_READS]")
    ] = None,
    http_max_waiting: Annotated[
        int | None, typer.Option(metavar="N", help="Requests that may wait. [env: AGGREGATOR_HTTP_MAX_WAITING]")
    ] = None,
    http_wait: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="So long at most. [env: AGGREGATOR_HTTP_WAIT]")
    ] = None,
    http_statement_timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Of a read. [env: AGGREGATOR_HTTP_STATEMENT_TIMEOUT]")
    ] = None,
    http_metrics_port: Annotated[
        int | None, typer.Option(metavar="PORT", help="Of metrics. [env: AGGREGATOR_HTTP_METRICS_PORT]")
    ] = None,
    http_metrics_host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Of metrics. [env: AGGREGATOR_HTTP_METRICS_HOST]")
    ] = None,
    log_format: Annotated[
        str | None, typer.Option(metavar="text|json", help="Of the log lines. [env: AGGREGATOR_LOG_FORMAT]")
    ] = None,
) -> None:
    """Serve the HTTP API and the admin page, until SIGTERM.

    Needs a key to check tokens by: a public key, a JWK set, or AGGREGATOR_HTTP_JWT_SECRET, which is no option: others see those.
    """
    settings = load_settings(
        database_url=database_url, http_host=http_host, http_port=http_port, http_jwt_public_key=http_jwt_public_key,
        http_jwt_jwks=http_jwt_jwks, http_jwt_issuer=http_jwt_issuer, http_jwt_audience=http_jwt_audience,
        http_access_query=http_access_query, http_max_reads=http_max_reads, http_max_waiting=http_max_waiting,
        http_wait=http_wait, http_statement_timeout=http_statement_timeout, http_metrics_port=http_metrics_port,
        http_metrics_host=http_metrics_host, log_format=log_format,
    )  # fmt: skip
    try:
        from aggregator.web import server
    except ModuleNotFoundError as exc:
        raise UsageError(f"serve needs packages of its own ({exc.name}): pip install 'usage-aggregator[web]'") from exc
    server.serve(settings, insecure_local=insecure_local)


@contextmanager
def _refresh_progress() -> Iterator[Callable[[refreshing.Progress], None]]:
    if not errors.is_terminal:

        def report_line(step: refreshing.Progress) -> None:
            of = "" if _overtaken(step) else f" of about {step.expected:,}"
            _note(f"{step.events:,}{of} events, {step.late_changes:,} late changes; frontier {step.frontier}")

        yield report_line
        return
    with Progress(
        TextColumn("folding"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(), console=errors, transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task("events", total=None)

        def report_bar(step: refreshing.Progress) -> None:
            bar.update(task, completed=step.events, total=None if _overtaken(step) else step.expected)

        yield report_bar


@app.command()
def show(
    database_url: DatabaseUrl = None,
    days: Annotated[
        int, typer.Option(help="The last N local days before --until, or before now; clamped into 1-365.")
    ] = 30,
    since: Annotated[
        str | None, typer.Option(metavar="INSTANT", help="Instead of --days: ISO 8601, with zone.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="INSTANT", help="End of the window, exclusive.")] = None,
    collection: Annotated[str | None, typer.Option(metavar="UUID", help="Only this collection.")] = None,
    output: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.table,
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
    with _session(settings, "show") as connection:

        def look() -> tuple[read.Overview, render.Units]:
            with db.transaction(connection, read_only=True):
                found = read.usage_overview(connection, days=days, since=begin, until=end, collection_id=collection)
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
                    _note(f"NOT EXACT: {reason}", "yellow")


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
    days: Annotated[
        int, typer.Option(help="The last N local days before --until, or before now; clamped into 1-365.")
    ] = 30,
    since: Annotated[
        str | None, typer.Option(metavar="INSTANT", help="Instead of --days: ISO 8601, with zone.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="INSTANT", help="End of the window, exclusive.")] = None,
    collection: Annotated[str | None, typer.Option(metavar="UUID", help="Only this collection.")] = None,
    output: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.table,
) -> None:
    """Print sums of a window by any keys and grain, beside the window before it; exact to the microsecond."""
    begin = None if since is None else parse_instant(since, "--since")
    end = None if until is None else parse_instant(until, "--until")
    keys = [key.strip() for key in by.split(",") if key.strip()]
    settings = load_settings(database_url=database_url)
    with _session(settings, "totals") as connection, db.transaction(connection, read_only=True):
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
        _note(f"NOT EXACT: {reason}", "yellow")


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
    days: Annotated[int, typer.Option(help="The last N local days, clamped into 1-365.")] = 30,
    since: Annotated[
        str | None, typer.Option(metavar="INSTANT", help="Instead of --days: ISO 8601, with zone.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="INSTANT", help="End of the window, exclusive.")] = None,
    grain: Annotated[
        str, typer.Option(metavar="day|month", help="A row for each key and local day, or month.")
    ] = "day",
    output_format: Annotated[str, typer.Option("--format", metavar="csv|parquet|ndjson", help="Of the file.")] = "csv",
    collection: Annotated[str | None, typer.Option(metavar="UUID", help="Only this collection.")] = None,
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
    with _session(settings, "export") as connection:
        exported = exporting.export_usage(
            connection, sys.stdout.buffer if output == "-" else Path(output), output_format=output_format, grain=grain,
            days=days, since=begin, until=end, collection_id=collection,
        )  # fmt: skip
    _note(
        f"exported {exported.rows:,} rows from {exported.since:%Y-%m-%d %H:%M:%S} UTC"
        + (f" until {exported.until:%Y-%m-%d %H:%M:%S} UTC" if exported.until else " on")
        + f", as of {exported.as_of:%Y-%m-%d %H:%M:%S} UTC, {'exact' if exported.exact else 'NOT EXACT'}"
    )
    for reason in exported.reasons:
        _note(f"note: {reason}", "yellow")


@app.command()
def status(database_url: DatabaseUrl = None, as_json: Json = False) -> None:
    """Print freshness and trust; exit 1 if something needs you."""
    settings = load_settings(database_url=database_url)
    with _session(settings, "status") as connection:
        found = status_reading.read_status(connection, settings)
    if as_json:
        sys.stdout.write(render.as_json(sys.stdout, found.as_dict()))
    else:
        render.status_table(terminal.console(), found)
    raise typer.Exit(0 if found.healthy else 1)


Since = Annotated[str | None, typer.Option(metavar="DAY", help="First day, like 2026-03-01.")]
Until = Annotated[str | None, typer.Option(metavar="DAY", help="Day after the last one.")]


@app.command()
def verify(
    database_url: DatabaseUrl = None,
    repair: Annotated[bool, typer.Option("--repair", help="Fold exactly the differences.")] = False,
    since: Since = None,
    until: Until = None,
    as_json: Json = False,
) -> None:
    """Compare the rollups with the raw events; exit 1 if they differ and are not repaired."""
    first, last = _days(since, until)
    settings = load_settings(database_url=database_url)
    with _session(settings, "verify") as connection, ExitStack() as stack:
        if repair:
            stack.enter_context(jobs.exclusive(connection, settings, "verify --repair"))
        result = verifying.verify(
            connection, settings, repair=repair, since=first, until=last, progress=_verify_progress
        )
    _print_verified(result, as_json=as_json)


@app.command()
def rebuild(
    database_url: DatabaseUrl = None,
    since: Since = None,
    until: Until = None,
    reset_frontier: Annotated[
        bool, typer.Option("--reset-frontier", help="First put a frontier that lies in the future back to now.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make the rollups what the raw events say, step by step.

    Interrupted while trust is off, and of all days, it goes on where it stopped. With --since or --until, or while trust
    is on, it begins anew.
    """
    first, last = _days(since, until)
    settings = load_settings(database_url=database_url)
    with _session(settings, "rebuild") as connection, jobs.exclusive(connection, settings, "rebuild"):
        if reset_frontier:
            moved = rebuilding.reset_frontier(connection)
            _note(f"the frontier was {moved.before}, and is {moved.after}")
        result = rebuilding.rebuild(connection, settings, since=first, until=last, progress=_verify_progress)
    if result.resumed_from is not None:
        _note(f"went on from {result.resumed_from}, where it was interrupted")
    _print_verified(result, as_json=as_json)


def _days(since: str | None, until: str | None) -> tuple[str | None, str | None]:
    return (
        None if since is None else verifying.parse_day(since, "--since"),
        None if until is None else verifying.parse_day(until, "--until"),
    )


def _verify_progress(step: verifying.VerifyProgress) -> None:
    _note(f"{step.day_from} … {step.day_to}: {step.differences:,} differences so far")


def _print_verified(result: verifying.VerifyResult, *, as_json: bool) -> None:
    """Print the differences, and exit with 1 if there are any that were not repaired."""
    if as_json:
        render.json_document(sys.stdout, result)
    else:
        render.differences_table(terminal.console(), result.shown, result.differences)
    if result.differences == 0:
        _note(f"equal: {result.chunks} ranges of days compared")
    else:
        _note(
            f"{result.differences:,} differences"
            + (", repaired" if result.repaired else "; verify --repair folds them")
        )
    if result.doubt is not None:
        _note(f"trust is off, so reads are slow: {result.doubt}", "yellow")
    raise typer.Exit(1 if result.differences and not result.repaired else 0)


@app.command()
def seal(
    until: Annotated[str, typer.Option(metavar="DAY", help="Keep the history before this day, like 2026-03-01.")],
    database_url: DatabaseUrl = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be kept, and change nothing.")] = False,
) -> None:
    """Keep history whose raw events somebody dropped: before a day the rollups become the record."""
    day = verifying.parse_day(until, "--until")
    settings = load_settings(database_url=database_url)
    with _session(settings, "seal") as connection, jobs.exclusive(connection, settings, "seal"):
        done = sealing.seal(connection, settings, day, dry_run=dry_run)
    _note(
        f"{'would keep' if dry_run else 'sealed'} {done.events:,} events of {done.days:,} days"
        f" from {done.first_day or 'the beginning'} until before {done.day}"
    )
    for note in done.notes:
        _note(f"note: {note}", "yellow")


@app.command()
def purge(
    database_url: DatabaseUrl = None,
    keep: Annotated[
        str | None, typer.Option(metavar="DAYS", help="Raw events to keep, like 400d. [env: AGGREGATOR_KEEP]")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would go, and delete nothing.")] = False,
) -> None:
    """Delete raw events that are old, and keep their history: fold, verify, seal, then delete."""
    settings = load_settings(database_url=database_url, keep=keep)
    if settings.keep is None:
        raise UsageError("nothing says how much to keep: give --keep, like 400d, or set AGGREGATOR_KEEP")

    def report(step: purging.PurgeProgress) -> None:
        _note(f"{step.events:,} of about {step.expected:,} events deleted")

    with _session(settings, "purge") as connection, jobs.exclusive(connection, settings, "purge"):
        done = purging.purge(connection, settings, settings.keep, dry_run=dry_run, progress=report)
    for note in done.notes:
        _note(f"note: {note}" + (f" (the oldest is of {done.oldest})" if not done.events and done.oldest else ""))
    if done.events or not done.notes:
        whole = f", {len(done.partitions)} whole partitions among them" if done.partitions else ""
        _note(
            f"{'would delete' if dry_run else 'deleted'} {done.events:,} events of before {done.day}{whole}:"
            f" about {terminal.quantity(done.size, 'bytes')}"
        )


@metric_app.command("list")
def metric_list(database_url: DatabaseUrl = None, as_json: Json = False) -> None:
    """Print what each resource type adds up, and what sealed history was added up by."""
    settings = load_settings(database_url=database_url)
    with _session(settings, "metric") as connection:
        found, history = definitions.list_metrics(connection)
    if as_json:
        render.json_document(sys.stdout, definitions.Metrics(found, history))
        return
    names = ("type", "value key", "secondary key", "unit", "secondary unit", "label")
    console = terminal.console()
    render.rows_table(console, "Metrics", names, [astuple(metric) for metric in found])
    if history:
        rows = [(*astuple(old.metric), f"before {old.valid_below}") for old in history]
        render.rows_table(console, "Sealed history is added up by", (*names, "days"), rows)


@metric_app.command("set")
def metric_set(
    resource_type: Annotated[str, typer.Argument(metavar="TYPE", help="The resource type, new or known.")],
    database_url: DatabaseUrl = None,
    value_key: Annotated[str | None, typer.Option(help="Key in detail that total_value adds up; '-': none.")] = None,
    secondary_key: Annotated[str | None, typer.Option(help="Key that secondary_value adds up; '-': none.")] = None,
    unit: Annotated[str | None, typer.Option(help="Unit of total_value.")] = None,
    secondary_unit: Annotated[str | None, typer.Option(help="Unit of secondary_value.")] = None,
    label: Annotated[str | None, typer.Option(help="What people call it.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also a key that no event has.")] = False,
) -> None:
    """Define what a resource type adds up: shows which totals change, changes it, and rebuilds the rollups."""
    settings = load_settings(database_url=database_url)
    with _session(settings, "metric") as connection, jobs.exclusive(connection, settings, "metric set"):
        old = definitions.find(connection, resource_type)
        new = definitions.changed(
            old or definitions.Metric(resource_type),
            {
                "value_key": value_key,
                "secondary_key": secondary_key,
                "unit": unit,
                "secondary_unit": secondary_unit,
                "label": label,
            },
        )
        note = definitions.check_metric(connection, new, force=force)
        if note is not None:
            _note(f"note: {note}", "yellow")
        _print_preview(definitions.preview(connection, old, new), settings, connection)
        if dry_run:
            return
        if not definitions.set_metric(connection, new, force=force):
            _note("nothing to change")
            return
        _note(f"metric {resource_type} is set")
        _rebuild_after(connection, settings)


@metric_app.command("remove")
def metric_remove(
    resource_type: Annotated[str, typer.Argument(metavar="TYPE", help="The resource type.")],
    database_url: DatabaseUrl = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
) -> None:
    """Remove a metric: its events count on, with value 0."""
    settings = load_settings(database_url=database_url)
    with _session(settings, "metric") as connection, jobs.exclusive(connection, settings, "metric remove"):
        old = definitions.require(connection, resource_type)
        _print_preview(definitions.preview(connection, old, definitions.Metric(resource_type)), settings, connection)
        if dry_run:
            return
        definitions.remove_metric(connection, resource_type)
        _note(f"metric {resource_type} is removed")
        _rebuild_after(connection, settings)


def _print_preview(months: tuple[definitions.MonthChange, ...], settings: Settings, connection: db.Connection) -> None:
    changing = [month for month in months if month.changes]
    if not changing:
        _note("no total changes")
    else:
        rows = [
            (m.month[:7], m.events, m.old_total, m.new_total, m.new_total - m.old_total, m.old_secondary, m.new_secondary, m.rejected)
            for m in changing
        ]  # fmt: skip
        names = ("month", "events", "total", "would be", "difference", "secondary", "would be", "rejected")
        render.rows_table(terminal.console(), "Totals that change", names, rows)
    sealed = status_reading.read_status(connection, settings).sealed_until
    if sealed is not None:
        _note(f"days before {sealed} are sealed, and keep what they were added up by", "yellow")


def _rebuild_after(connection: db.Connection, settings: Settings) -> None:
    """Rebuild what a changed metric made wrong; until it is done readers read raw, and are right."""
    if verifying.read_doubt(connection) is None:
        return
    result = rebuilding.rebuild(connection, settings, progress=_verify_progress)
    _note(f"rebuilt: {result.differences:,} rollup rows changed")
    if result.doubt is not None:
        _note(f"trust is off, so reads are slow: {result.doubt}", "yellow")


@app.command()
def history(
    of: Annotated[history_reading.Kind, typer.Argument(help="Of what.")] = history_reading.Kind.refreshes,
    database_url: DatabaseUrl = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="The newest N.")] = 20,
    as_json: Json = False,
) -> None:
    """Print what refreshes, verifications or restatements there were, newest first."""
    settings = load_settings(database_url=database_url)
    with _session(settings, "history") as connection:
        found = history_reading.read_history(connection, of, limit)
    if as_json:
        sys.stdout.write(render.as_json(sys.stdout, found.as_dicts()))
    else:
        render.rows_table(terminal.console(), of.value.capitalize(), found.names, found.rows)


@app.command()
def demo(
    events: Annotated[int, typer.Option(min=1, max=100_000_000, help="Sample events.")] = 1_000_000,
    days: Annotated[int, typer.Option(min=1, max=36_500, help="Days of history.")] = 365,
    seed: Annotated[int, typer.Option(min=0, max=1_000_000_000, help="Of the sample data.")] = 1,
) -> None:
    """Run everything once on an embedded PostgreSQL with sample data."""
    from aggregator import demo as demonstration

    if not demonstration.run(events=events, days=days, seed=seed):
        raise typer.Exit(1)


def main() -> None:
    """Run the command; turn every expected error into one line and an exit code."""
    terminated = threading.Event()

    def terminate(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one does not wait for the database
        terminated.set()
        raise KeyboardInterrupt  # psycopg knows it, and cancels the statement

    # Also because process 1 of a container would not notice SIGTERM at all.
    signal.signal(signal.SIGTERM, terminate)
    try:
        try:
            app(prog_name="aggregator")
        finally:
            sys.stdout.flush()  # here, where a full disk is still an error like others
    except AggregatorError as exc:
        _fail(str(exc), exc.exit_code)
    except psycopg.Error as exc:
        _fail(db.one_line(exc), 1)
    except UnicodeEncodeError as exc:
        _fail(f"the output cannot be written in {exc.encoding}: set PYTHONIOENCODING=utf-8", 1)
    except BrokenPipeError:  # the reader has what it wanted
        _drop_output()
        sys.exit(1)
    except OSError as exc:
        _drop_output()
        _fail(str(exc), 1)
    except (KeyboardInterrupt, SystemExit) as exc:
        if isinstance(exc, SystemExit) and exc.code != _INTERRUPTED:
            raise
        _fail("interrupted; what was committed stays good", Stopped.exit_code if terminated.is_set() else _INTERRUPTED)


def _fail(text: str, code: int) -> NoReturn:
    _note(f"aggregator: {text}", "red")
    sys.exit(code)


def _drop_output() -> None:
    """Send what is still buffered nowhere: the interpreter would try once more at its end, with a traceback."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
