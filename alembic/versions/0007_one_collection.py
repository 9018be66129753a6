"""Reads of one collection are planned once a session, where the source has an index for them.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

from collections.abc import Sequence

from alembic import context

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Add the functions that read one collection, and let the sections use them."""
    context.config.attributes["run_sql"]("0007_one_collection.sql")


def downgrade() -> None:
    """Put the sections back."""
    run_sql, run_statements = (context.config.attributes[name] for name in ("run_sql", "run_statements"))
    run_statements(
        "0004_reads.sql",
        "create function usage.measured_sql(",
        "comment on function usage.measured_sql(",
        "create function usage.window_events_sql(",
        "create function usage.by_collection(",
        "create function usage.ai_drilldown(",
    )
    run_statements("0005_hardening.sql", "alter function usage.by_collection(", "alter function usage.ai_drilldown(")
    run_sql("0007_down.sql")
