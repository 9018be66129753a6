"""Narrow rollups, hours, lookback, statements made for the window that is asked for.

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

RESTORED = {
    "0002_operations.sql": ("source_tree", "fingerprint", "fingerprint_doubt", "window_parts", "measured", "window_rows",
                            "analyze_changed", "tail_events", "problems"),
    "0003_totals.sql": ("window_sums", "totals"),
    "0001_functions.sql": ("is_captured", "pending_event", "pending_sums", "by_collection", "ai_drilldown", "daily_series",
                           "receipt", "overview_rows"),
}  # fmt: skip
"""Functions that this revision replaced, by the file that has them as they were; what others call first."""


def upgrade() -> None:
    """Move the rollups into narrow tables, with views of the old names over them, and replace what reads them."""
    for part in ("narrow", "hourly", "lookback", "doubt", "reads", "privileges"):
        context.config.attributes["run_sql"](f"0004_{part}.sql")


def downgrade() -> None:
    """Move them back."""
    run_sql, run_statements = (context.config.attributes[name] for name in ("run_sql", "run_statements"))
    run_sql("0004_down.sql")
    run_statements(
        "0002_operations.sql", "create or replace view usage.daily_live", "create or replace view usage.monthly_live"
    )
    for file, names in RESTORED.items():
        run_statements(file, *(f"create function usage.{name}(" for name in names))
    run_statements(
        "0001_functions.sql", "comment on function usage.measured(", "comment on function usage.window_rows("
    )
    run_sql("0004_down_end.sql")
