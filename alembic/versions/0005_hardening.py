"""A reader whose snapshot is older learns that the frontier sequence was behind; row-level security.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

from collections.abc import Sequence

from alembic import context

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Count how often the sequence was found behind, where every reader sees it; close what others could have used."""
    context.config.attributes["run_sql"]("0005_hardening.sql")


def downgrade() -> None:
    """Count no more, and open it again."""
    run_sql, run_statements = (context.config.attributes[name] for name in ("run_sql", "run_statements"))
    run_statements("0001_functions.sql", "create function usage.doubt(", "create function usage.rolled_until(")
    run_statements("0002_operations.sql", "create function usage.partition_rows(")
    run_statements("0004_reads.sql", "create function usage.cut_window(", "create function usage.window_parts(")
    run_sql("0005_down.sql")
