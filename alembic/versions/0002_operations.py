"""Operations: leases of jobs, refreshes of the materialized views, health, redefined metrics, resumable rebuilds.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

from collections.abc import Sequence

from alembic import context

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Add the tables, columns and functions of operations."""
    context.config.attributes["run_sql"]("0002_operations.sql")


def downgrade() -> None:
    """Take them away again."""
    context.config.attributes["run_sql"]("0002_down.sql")
