"""Alembic's environment: run by aggregator.migrations, which hands in the connection; not by the alembic command."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from alembic import context, op

SQL_FOLDER = Path(__file__).parent / "sql"


def run_sql(name: str) -> None:
    """Run a frozen file of alembic/sql as one step of a migration, online or offline."""
    # For this transaction only: a transaction pooler would hand a session's settings to somebody else. A migration that
    # does not get its locks fails, changes nothing, and is tried again; readers do not queue up behind it for long.
    op.execute(f"SET LOCAL lock_timeout = {config.attributes.get('lock_timeout', 500)}")
    op.execute("SET LOCAL search_path = pg_catalog, pg_temp")
    # What a DBA set for the host's statements; not all servers have the last one.
    op.execute(
        "SELECT set_config(s.name, '0', true) FROM pg_settings s"
        " WHERE s.name IN ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')"
    )
    # A colon would be taken for a bound parameter.
    op.execute(sa.text((SQL_FOLDER / name).read_text(encoding="utf-8").replace(":", r"\:")))


config = context.config
config.attributes["run_sql"] = run_sql
options = {"version_table": "alembic_version", "version_table_schema": "usage", "transaction_per_migration": True}

if context.is_offline_mode():
    # With the default style a percent sign would come out doubled.
    context.configure(
        dialect_name="postgresql", dialect_opts={"paramstyle": "named"}, output_buffer=config.output_buffer, **options
    )
    with context.begin_transaction():
        context.run_migrations()
else:
    context.configure(connection=config.attributes["connection"], **options)
    with context.begin_transaction():
        context.run_migrations()
