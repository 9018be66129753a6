"""The commands that set up and run: migrate, attach, detach, refresh, schedule, serve, demo."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from aggregator import capture, hourly, jobs, matviews, migrations
from aggregator import refresh as refreshing
from aggregator.cli_base import DatabaseUrl, app, errors, say, session
from aggregator.db import Connection
from aggregator.errors import UsageError
from aggregator.settings import Settings, load_settings


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
        say("nothing to remove" if before is None else f"schema usage removed (it was at revision {before})")
        return
    old, new = migrations.upgrade(settings)
    say(f"schema usage is at revision {new}" + ("" if old == new else f" (was {old or 'not there'})"))


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
    how: Annotated[
        str | None,
        typer.Option(
            "--capture",
            metavar="triggers|lookback",
            help="How changes of past events are noticed: by triggers, or by looking back at each refresh, for a source that"
            " can have none. [env: AGGREGATOR_CAPTURE]",
        ),
    ] = None,
    lookback: Annotated[
        str | None,
        typer.Option(metavar="3d", help="Days that each refresh looks back on. [env: AGGREGATOR_LOOKBACK]"),
    ] = None,
    with_hours: Annotated[
        bool | None,
        typer.Option("--hourly/--no-hourly", help="Keep an hourly rollup too, for dense sources; or no longer."),
    ] = None,
) -> None:
    """Start capture on the source table. From here on every answer is exact.

    With --capture lookback answers are as of the last refresh below the frontier, and their receipt says so.
    """
    settings = load_settings(
        database_url=database_url, source_table=source_table, title_table=title_table, time_zone=time_zone,
        capture=how, lookback=lookback,
    )  # fmt: skip
    with session(settings, "attach") as connection:
        attached = capture.attach(connection, settings)
        turned = None
        if with_hours is not None:
            turned = hourly.turn_on(connection) if with_hours else hourly.turn_off(connection)
        filled = _fill_hours(connection, settings) if with_hours else None
    for warning in attached.warnings:
        say(f"warning: {warning}", "yellow")
    done = "attached" if attached.changed else "was attached already, nothing changed:"
    looks = "" if attached.lookback_days is None else f", looking back {attached.lookback_days} days, without triggers"
    say(f"{done} {attached.source} (titles: {attached.title_table or 'none'}, days of {attached.time_zone}{looks})")
    if filled is None:
        if turned is not None:
            say("the hourly rollup was removed" if turned else "there was no hourly rollup")
    elif filled.done:
        say(f"the hourly rollup is on: {filled.events:,} events of the past filled in")
    else:
        say("the hourly rollup is on; trust is off, so its past is filled in by a later refresh", "yellow")


def _fill_hours(connection: Connection, settings: Settings) -> hourly.Filled:
    def report(filled: hourly.Filled) -> None:
        say(f"{filled.events:,} events; hours from {filled.since} on")

    filled = hourly.fill(connection, settings, progress=report)
    hourly.analyze(connection)
    return filled


@app.command()
def detach(
    database_url: DatabaseUrl = None,
    discard_sealed: Annotated[bool, typer.Option("--discard-sealed", help="Throw sealed history away.")] = False,
) -> None:
    """Stop capture: drop the triggers and the rollups."""
    settings = load_settings(database_url=database_url)
    with session(settings, "detach") as connection, jobs.exclusive(connection, settings, "detach"):
        done = capture.detach(connection, settings, discard_sealed=discard_sealed)
    say("detached" if done else "nothing was attached")


@app.command()
def refresh(
    database_url: DatabaseUrl = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be folded, and fold nothing.")] = False,
    step_events: Annotated[
        int | None, typer.Option(metavar="N", help="Events of one transaction, about. [env: AGGREGATOR_STEP_EVENTS]")
    ] = None,
    connections: Annotated[
        int | None, typer.Option("--jobs", metavar="N", help="Connections, for much to fold. [env: AGGREGATOR_JOBS]")
    ] = None,
    wait_timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Wait for open writers. [env: AGGREGATOR_WAIT_TIMEOUT]")
    ] = None,
    views: Annotated[bool, typer.Option("--views", help="Then the materialized views, if anything changed.")] = False,
) -> None:
    """Bring the rollups up to now."""
    settings = load_settings(
        database_url=database_url, step_events=step_events, jobs=connections, wait_timeout=wait_timeout
    )
    with session(settings, "refresh") as connection:
        if dry_run:
            found = refreshing.forecast(connection)
            say(f"would fold {found.events:,} events from {found.frontier} on and {found.late_changes:,} late changes")
            if found.doubt is not None:
                say(f"trust is off: {found.doubt}", "yellow")
            return
        with _refresh_progress() as report:
            result = refreshing.refresh(connection, settings, progress=report)
        jobs.record_refreshed(connection)
        refreshed = matviews.refresh_views(connection) if views else None
    say(
        f"folded {result.events:,} events and {result.late_changes:,} late changes"
        f" in {result.steps} step{'s' if result.steps != 1 else ''}, {result.seconds:.1f} s; frontier {result.frontier}"
    )
    for writer in result.waited_for:
        say(
            f"left the tail raw, since a writer is open: {writer}; answers are exact, the next refresh folds it",
            "yellow",
        )
    for note in result.notes:
        say(f"note: {note}", "yellow")
    if refreshed is not None:
        say(f"refreshed {', '.join(refreshed)}" if refreshed else "materialized views: nothing has changed since")


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
    from aggregator import scheduler as scheduling  # which takes as long to import as a small command to run

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
            say(f"{step.events:,}{of} events, {step.late_changes:,} late changes; frontier {step.frontier}")

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
def demo(
    events: Annotated[int, typer.Option(min=1, max=100_000_000, help="Sample events.")] = 1_000_000,
    days: Annotated[int, typer.Option(min=1, max=36_500, help="Days of history.")] = 365,
    seed: Annotated[int, typer.Option(min=0, max=1_000_000_000, help="Of the sample data.")] = 1,
) -> None:
    """Run everything once on an embedded PostgreSQL with sample data."""
    from aggregator import demo as demonstration

    if not demonstration.run(events=events, days=days, seed=seed):
        raise typer.Exit(1)
