"""Exact, fast usage rollups on PostgreSQL.

The read function is ``usage_overview``; the rest is the command ``aggregator`` and the SQL functions of schema ``usage``.
"""

from aggregator.errors import AggregatorError, UsageError
from aggregator.read import AiUsage, CollectionUsage, DailyUsage, Overview, Receipt, usage_overview

__all__ = [
    "AggregatorError",
    "AiUsage",
    "CollectionUsage",
    "DailyUsage",
    "Overview",
    "Receipt",
    "UsageError",
    "usage_overview",
]
