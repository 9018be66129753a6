"""Lookback: sources without triggers.

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
    """Let a source be captured by looking back."""
    context.config.attributes["run_sql"]("0005_lookback.sql")


def downgrade() -> None:
    """Know triggers only again."""
    context.config.attributes["run_sql"]("0005_down.sql")
