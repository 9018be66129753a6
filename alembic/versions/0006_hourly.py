"""Hourly rollup: the edges of windows by hours, and days of other time zones.

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
    """Add the hourly rollup, which is off."""
    context.config.attributes["run_sql"]("0006_hourly.sql")


def downgrade() -> None:
    """Take it away."""
    context.config.attributes["run_sql"]("0006_down.sql")
