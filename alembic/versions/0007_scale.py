"""Sources of many partitions, in databases of many tables, with millions of keys.

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
    """Let reads look at many partitions at once, and folds find keys by a hash."""
    context.config.attributes["run_sql"]("0007_scale.sql")


def downgrade() -> None:
    """Put both back."""
    context.config.attributes["run_sql"]("0007_down.sql")
