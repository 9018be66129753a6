"""Totals: one general question, by any keys and grain.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

from collections.abc import Sequence

from alembic import context

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Add the function and its parts."""
    context.config.attributes["run_sql"]("0003_totals.sql")


def downgrade() -> None:
    """Take it away again."""
    context.config.attributes["run_sql"]("0003_down.sql")
