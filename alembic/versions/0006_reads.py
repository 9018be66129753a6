"""Reads of one section group raw events once; one home for days that time zone data has moved.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

from collections.abc import Sequence

from alembic import context

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Replace the functions that read."""
    context.config.attributes["run_sql"]("0006_reads.sql")


def downgrade() -> None:
    """Put them back."""
    run_sql, run_statements = (context.config.attributes[name] for name in ("run_sql", "run_statements"))
    run_statements(
        "0005_hardening.sql",
        "create function usage.moved_day(",
        "comment on function usage.moved_day(",
        "create function usage.window_parts(",
    )
    run_statements("0004_reads.sql", "create function usage.window_rows(")
    run_sql("0006_down.sql")
