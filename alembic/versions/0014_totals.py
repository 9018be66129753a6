"""Hours by resource type alone, and marks of them, so that a daily series within dense days costs little more than of whole ones.

Revision ID: 0014
Revises: 0013
"""

from __future__ import annotations

from collections.abc import Sequence

from alembic import context

revision: str = "0014"
down_revision: str | None = "0013"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Make the tables and the trigger that keeps hours by type, and read them."""
    for part in ("totals", "readers"):
        context.config.attributes["run_sql"](f"0014_{part}.sql")


def downgrade() -> None:
    """Take them out of the readers, and drop them."""
    run_sql, run_statements = (context.config.attributes[name] for name in ("run_sql", "run_statements"))
    run_sql("0014_readers.sql")
    run_statements(
        "0004_reads.sql",
        "create function usage.daily_series(since timestamptz, until timestamptz default null",
        "create function usage.daily_series(since timestamptz, until timestamptz, collection uuid, time_zone",
    )
    run_sql("0014_down.sql")
