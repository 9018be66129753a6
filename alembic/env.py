"""Alembic's environment: run by aggregator.migrations, which hands in the connection; not by the alembic command."""

from __future__ import annotations

import re
from pathlib import Path

import sqlalchemy as sa

from alembic import context, op

SQL_FOLDER = Path(__file__).parent / "sql"


def run_sql(name: str) -> None:
    """Run a frozen file of alembic/sql as one step of a migration, online or offline."""
    _run((SQL_FOLDER / name).read_text(encoding="utf-8"))


def run_statements(name: str, *beginnings: str) -> None:
    """Run single statements of a frozen file again: for the way back to what it made, which is written down once.

    ``beginnings`` name them; of a function it is the last one of its name, created or replaced.
    """
    text = (SQL_FOLDER / name).read_text(encoding="utf-8")
    for beginning in beginnings:
        start = max(text.rfind(f"\n{beginning}"), text.rfind(f"\n{beginning.replace('create ', 'create or replace ')}"))
        if start < 0:
            raise LookupError(f"{name} has no statement that begins with {beginning}")
        _run(_STATEMENT.match(text, start + 1)[0].replace("create function", "create or replace function", 1))


# A body in $$, one of SQL's own, or none.
_STATEMENT = re.compile(r"(?:(?!;\n|\$\$|begin atomic).)*(?:\$\$.*?\$\$;\n|begin atomic.*?\nend;\n|;\n)", re.DOTALL)


def _run(statements: str) -> None:
    if context.is_offline_mode():
        # What aggregator.migrations sets online. Readers do not queue up behind a migration for long.
        for setting in (
            "search_path = pg_catalog, pg_temp",
            "standard_conforming_strings = on",
            "lock_timeout = '500ms'",
        ):
            op.execute(f"SET LOCAL {setting}")
    # A colon would be taken for a bound parameter.
    op.execute(sa.text(statements.replace(":", r"\:")))


config = context.config
config.attributes["run_sql"] = run_sql
config.attributes["run_statements"] = run_statements
options = {"version_table": "alembic_version", "version_table_schema": "usage"}

if context.is_offline_mode():
    # With the default style a percent sign would come out doubled.
    context.configure(
        dialect_name="postgresql", dialect_opts={"paramstyle": "named"}, output_buffer=config.output_buffer, **options
    )
else:
    # In a transaction of aggregator.migrations.
    context.configure(connection=config.attributes["connection"], **options)
with context.begin_transaction():
    context.run_migrations()
