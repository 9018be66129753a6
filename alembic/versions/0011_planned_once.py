"""What every read asks first is planned once a session, and not asked where one look tells.

Revision ID: 0011
Revises: 0010
"""

from __future__ import annotations

from collections.abc import Sequence

from alembic import context

revision: str = "0011"
down_revision: str | None = "0010"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Write functions in PL/pgSQL that were in SQL, and ask less of an ordinary table."""
    context.config.attributes["run_sql"]("0011_planned_once.sql")


def downgrade() -> None:
    """Put them back."""
    run_statements = context.config.attributes["run_statements"]
    run_statements("0001_functions.sql", "create function usage.day_start(")
    run_statements("0004_reads.sql", "create function usage.lookback_reason(", "create function usage.keys_of(")
    run_statements("0004_doubt.sql", "create function usage.fingerprint()", "create function usage.fingerprint_doubt()")
    run_statements("0005_hardening.sql", "alter function usage.fingerprint_doubt()")
    run_statements(
        "0007_one_collection.sql", "create function usage.by_collection(", "create function usage.ai_drilldown("
    )
