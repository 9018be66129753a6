"""Raw events of a window's edges are read without bounds where rollups say that all are well formed.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

from collections.abc import Sequence

from alembic import context

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Make the text of events of two parts, and let the reader take signed values."""
    context.config.attributes["run_sql"]("0008_well_formed.sql")


def downgrade() -> None:
    """Put the reader and what it calls back."""
    run_sql, run_statements = (context.config.attributes[name] for name in ("run_sql", "run_statements"))
    run_statements(
        "0004_reads.sql",
        "create function usage.fact_sql(",
        "comment on function usage.fact_sql(",
        "create function usage.hour_fact_sql(",
        "comment on function usage.hour_fact_sql(",
        "create function usage.window_rows(",
        "create function usage.window_sums(",
    )
    run_statements("0006_reads.sql", "do $$\ndeclare\n    patched record;")
    run_statements(
        "0007_one_collection.sql",
        "create function usage.measured_sql(",
        "create function usage.window_events_sql(",
    )
    run_statements("0004_reads.sql", "comment on function usage.window_events_sql(")
    run_sql("0008_down.sql")
