"""Running sums within dense hours, so that a window to the second costs little more than whole days.

Revision ID: 0013
Revises: 0012
"""

from __future__ import annotations

from collections.abc import Sequence

from alembic import context

revision: str = "0013"
down_revision: str | None = "0012"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Make the tables and the triggers that keep them true, and read them."""
    for part in ("marks", "readers"):
        context.config.attributes["run_sql"](f"0013_{part}.sql")


def downgrade() -> None:
    """Take marks out of the readers, and drop them."""
    run_sql, run_statements = (context.config.attributes[name] for name in ("run_sql", "run_statements"))
    run_sql("0013_readers.sql")
    run_statements("0004_reads.sql", "create function usage.hours_sql(", "comment on function usage.hours_sql(")
    run_statements("0010_quarters.sql", "create or replace function usage.analyze_changed(")
    run_sql("0013_down.sql")
