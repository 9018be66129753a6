"""Folds presume that events are well formed, and their sums tell where some are not.

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

from collections.abc import Sequence

from alembic import context

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Make the text of presumed events."""
    context.config.attributes["run_sql"]("0009_presumed.sql")


def downgrade() -> None:
    """Drop it."""
    context.config.attributes["run_sql"]("0009_down.sql")
