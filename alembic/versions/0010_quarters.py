"""A rollup of quarters, so that long windows are read from fewer rows.

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

from collections.abc import Sequence

from alembic import context

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Make the rollup and the trigger that keeps it, and read it."""
    context.config.attributes["run_sql"]("0010_quarters.sql")


def downgrade() -> None:
    """Put the readers back, and drop it."""
    run_sql, run_statements = (context.config.attributes[name] for name in ("run_sql", "run_statements"))
    run_statements(
        "0008_well_formed.sql", "create or replace function usage.fact_sql(", "comment on function usage.fact_sql("
    )
    run_statements("0004_reads.sql", "create function usage.days_sql(")
    run_statements("0004_hourly.sql", "create or replace function usage.analyze_changed(")
    run_sql("0010_down.sql")
