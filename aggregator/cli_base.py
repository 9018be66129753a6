"""What the commands share: the app, option types, a session, notes on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated

import psycopg
import typer
from psycopg.conninfo import conninfo_to_dict
from rich.text import Text

from aggregator import db, migrations, terminal
from aggregator.settings import Settings

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


def _warn_of_password(given: str | None) -> str | None:
    """Say so where a password is on the command line: every user of the host can read it there."""
    try:
        exposed = given is not None and "password" in conninfo_to_dict(given)
    except psycopg.ProgrammingError:
        exposed = False  # refused when it is used
    if exposed:
        say("aggregator: others see the password in --database-url: put it into AGGREGATOR_DATABASE_URL or ~/.pgpass", "yellow")  # fmt: skip
    return given


DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url", metavar="URL", callback=_warn_of_password,
        help="libpq URI or keywords, without the password, which others would see. [env: AGGREGATOR_DATABASE_URL, PG*]",
    ),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


class Format(StrEnum):
    """How show prints the overview."""

    table = "table"
    json = "json"
    csv = "csv"


@contextmanager
def session(settings: Settings, command: str) -> Iterator[db.Connection]:
    """Connect, and require the schema of this version; raises SchemaError, naming the command to run."""
    with db.connect(settings, name=f"aggregator {command}") as connection:
        migrations.require_current(connection)
        yield connection


_LONGEST_NOTE = 2000
"""Characters: an error may quote what somebody put into the database."""


def say(text: str, style: str = "") -> None:
    """Say something to people, on stderr and on one line."""
    errors.print(Text(terminal.printable(text, _LONGEST_NOTE), style=style), soft_wrap=True)
