"""The commands that compare, repair, redefine and purge."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import astuple
from typing import Annotated

import typer

from aggregator import db, jobs, render, terminal
from aggregator import metrics as definitions
from aggregator import purge as purging
from aggregator import rebuild as rebuilding
from aggregator import seal as sealing
from aggregator import status as status_reading
from aggregator import verify as verifying
from aggregator.cli_base import DatabaseUrl, Json, app, metric_app, say, session
from aggregator.errors import UsageError
from aggregator.settings import Settings, load_settings

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
    with session(settings, "verify") as connection, ExitStack() as stack:
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
    with session(settings, "rebuild") as connection, jobs.exclusive(connection, settings, "rebuild"):
        if reset_frontier:
            moved = rebuilding.reset_frontier(connection)
            say(f"the frontier was {moved.before}, and is {moved.after}")
        result = rebuilding.rebuild(connection, settings, since=first, until=last, progress=_verify_progress)
    if result.resumed_from is not None:
        say(f"went on from {result.resumed_from}, where it was interrupted")
    _print_verified(result, as_json=as_json)


def _days(since: str | None, until: str | None) -> tuple[str | None, str | None]:
    return (
        None if since is None else verifying.parse_day(since, "--since"),
        None if until is None else verifying.parse_day(until, "--until"),
    )


def _verify_progress(step: verifying.VerifyProgress) -> None:
    say(f"{step.day_from} … {step.day_to}: {step.differences:,} differences so far")


def _print_verified(result: verifying.VerifyResult, *, as_json: bool) -> None:
    """Print the differences, and exit with 1 if there are any that were not repaired."""
    if as_json:
        render.json_document(sys.stdout, result)
    else:
        render.differences_table(terminal.console(), result.shown, result.differences)
    if result.differences == 0:
        say(f"equal: {result.chunks} ranges of days compared")
    else:
        say(
            f"{result.differences:,} differences"
            + (", repaired" if result.repaired else "; verify --repair folds them")
        )
    if result.doubt is not None:
        say(f"trust is off, so reads are slow: {result.doubt}", "yellow")
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
    with session(settings, "seal") as connection, jobs.exclusive(connection, settings, "seal"):
        done = sealing.seal(connection, settings, day, dry_run=dry_run)
    say(
        f"{'would keep' if dry_run else 'sealed'} {done.events:,} events of {done.days:,} days"
        f" from {done.first_day or 'the beginning'} until before {done.day}"
    )
    for note in done.notes:
        say(f"note: {note}", "yellow")


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
        say(f"{step.events:,} of about {step.expected:,} events deleted")

    with session(settings, "purge") as connection, jobs.exclusive(connection, settings, "purge"):
        done = purging.purge(connection, settings, settings.keep, dry_run=dry_run, progress=report)
    for note in done.notes:
        say(f"note: {note}" + (f" (the oldest is of {done.oldest})" if not done.events and done.oldest else ""))
    if done.events or not done.notes:
        whole = f", {len(done.partitions)} whole partitions among them" if done.partitions else ""
        say(
            f"{'would delete' if dry_run else 'deleted'} {done.events:,} events of before {done.day}{whole}:"
            f" about {terminal.quantity(done.size, 'bytes')}"
        )


@metric_app.command("list")
def metric_list(database_url: DatabaseUrl = None, as_json: Json = False) -> None:
    """Print what each resource type adds up, and what sealed history was added up by."""
    settings = load_settings(database_url=database_url)
    with session(settings, "metric") as connection:
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
    with session(settings, "metric") as connection, jobs.exclusive(connection, settings, "metric set"):
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
            say(f"note: {note}", "yellow")
        _print_preview(definitions.preview(connection, old, new), settings, connection)
        if dry_run:
            return
        if not definitions.set_metric(connection, new, force=force):
            say("nothing to change")
            return
        say(f"metric {resource_type} is set")
        _rebuild_after(connection, settings)


@metric_app.command("remove")
def metric_remove(
    resource_type: Annotated[str, typer.Argument(metavar="TYPE", help="The resource type.")],
    database_url: DatabaseUrl = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
) -> None:
    """Remove a metric: its events count on, with value 0."""
    settings = load_settings(database_url=database_url)
    with session(settings, "metric") as connection, jobs.exclusive(connection, settings, "metric remove"):
        old = definitions.require(connection, resource_type)
        _print_preview(definitions.preview(connection, old, definitions.Metric(resource_type)), settings, connection)
        if dry_run:
            return
        definitions.remove_metric(connection, resource_type)
        say(f"metric {resource_type} is removed")
        _rebuild_after(connection, settings)


def _print_preview(months: tuple[definitions.MonthChange, ...], settings: Settings, connection: db.Connection) -> None:
    changing = [month for month in months if month.changes]
    if not changing:
        say("no total changes")
    else:
        rows = [
            (m.month[:7], m.events, m.old_total, m.new_total, m.new_total - m.old_total, m.old_secondary, m.new_secondary, m.rejected)
            for m in changing
        ]  # fmt: skip
        names = ("month", "events", "total", "would be", "difference", "secondary", "would be", "rejected")
        render.rows_table(terminal.console(), "Totals that change", names, rows)
    sealed = status_reading.read_status(connection, settings).sealed_until
    if sealed is not None:
        say(f"days before {sealed} are sealed, and keep what they were added up by", "yellow")


def _rebuild_after(connection: db.Connection, settings: Settings) -> None:
    """Rebuild what a changed metric made wrong; until it is done readers read raw, and are right."""
    if verifying.read_doubt(connection) is None:
        return
    result = rebuilding.rebuild(connection, settings, progress=_verify_progress)
    say(f"rebuilt: {result.differences:,} rollup rows changed")
    if result.doubt is not None:
        say(f"trust is off, so reads are slow: {result.doubt}", "yellow")
