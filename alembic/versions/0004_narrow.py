"""Narrow rollups: keys by number, and statements made for the window that is asked for.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

from collections.abc import Sequence

from alembic import context

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Move the rollups into narrow tables, with views of the old names over them."""
    context.config.attributes["run_sql"]("0004_narrow.sql")


def downgrade() -> None:
    """Move them back."""
    context.config.attributes["run_sql"]("0004_down.sql")
