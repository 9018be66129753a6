"""The core: rollups, capture, reading and trust.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

from collections.abc import Sequence

from alembic import context

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Create everything in schema usage."""
    run_sql = context.config.attributes["run_sql"]
    for part in ("tables", "functions", "views", "grants"):
        run_sql(f"0001_{part}.sql")


def downgrade() -> None:
    """Drop everything in schema usage."""
    context.config.attributes["run_sql"]("0001_down.sql")
