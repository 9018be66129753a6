"""Exact, fast usage rollups on PostgreSQL.

The read functions are ``usage_overview``, ``usage_daily`` and ``usage_totals``; the rest is the command ``aggregator`` and the SQL functions of schema ``usage``.
"""

from aggregator.errors import AggregatorError, UsageError
from aggregator.read import AiUsage, CollectionUsage, DailyUsage, Overview, Receipt, usage_daily, usage_overview
from aggregator.totals import Total, Totals, usage_totals

__all__ = [
    "AggregatorError",
    "AiUsage",
    "CollectionUsage",
    "DailyUsage",
    "Overview",
    "Receipt",
    "Total",
    "Totals",
    "UsageError",
    "usage_daily",
    "usage_overview",
    "usage_totals",
]
