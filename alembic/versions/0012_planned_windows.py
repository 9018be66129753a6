"""Windows of all collections, by collection, are read by a statement that is planned once a session.

Revision ID: 0012
Revises: 0011
"""

from __future__ import annotations

from collections.abc import Sequence

from alembic import context

revision: str = "0012"
down_revision: str | None = "0011"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Add the statement, and read by it where its plan does not depend on the window."""
    context.config.attributes["run_sql"]("0012_planned_windows.sql")


def downgrade() -> None:
    """Plan them one by one again."""
    context.config.attributes["run_statements"]("0011_planned_once.sql", "create function usage.by_collection(")
    context.config.attributes["run_statements"](
        "0007_one_collection.sql",
        "create function usage.collection_rows(",
        "comment on function usage.collection_rows(",
    )
    context.config.attributes["run_statements"]("0010_quarters.sql", "create function usage.days_sql(")
    context.config.attributes["run_sql"]("0012_down.sql")
