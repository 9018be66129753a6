"""What may be asked, and the JSON that answers it."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import QueryParams

from aggregator import read, totals
from aggregator.db import Connection
from aggregator.errors import UsageError
from aggregator.web import parameters
from aggregator.web.answers import Refusal


def usage(connection: Connection, query: QueryParams) -> dict[str, Any]:
    """Return the contract's three lists, and the receipt if it is asked for."""
    window, with_receipt = parameters.window(query), parameters.flag(query, "receipt")
    try:
        overview = read.usage_overview(connection, **window.as_arguments())
    except UsageError as exc:
        raise Refusal(400, str(exc)) from exc
    answer: dict[str, Any] = dict(overview.as_contract())
    if with_receipt:
        receipt = overview.receipt
        answer["receipt"] = {
            **_reading(receipt),
            "lag_seconds": None if receipt.lag is None else receipt.lag.total_seconds(),
            "rollup_rows": receipt.rollup_rows,
            "raw_rows": receipt.raw_rows,
            "pending_changes": receipt.pending_changes,
        }
    return answer


def usage_totals(connection: Connection, query: QueryParams) -> dict[str, Any]:
    """Return the groups that are asked for, each with the keys that are asked for, and the receipt on request."""
    window, grouping = parameters.window(query), parameters.grouping(query)
    with_receipt = parameters.flag(query, "receipt")
    try:
        found = totals.usage_totals(connection, **window.as_arguments(), **vars(grouping))
    except UsageError as exc:
        raise Refusal(400, str(exc)) from exc
    answer: dict[str, Any] = {"totals": [_total(row, grouping) for row in found.rows]}
    if with_receipt:
        answer["receipt"] = _reading(found)
    return answer


def usage_daily(connection: Connection, query: QueryParams) -> dict[str, Any]:
    """Return the contract's daily list, by days of the time zone that is asked for."""
    window = parameters.window(query)
    try:
        rows = read.usage_daily(connection, time_zone=parameters.time_zone(query), **window.as_arguments())
    except UsageError as exc:
        raise Refusal(400, str(exc)) from exc
    return {"daily": [row.as_contract() for row in rows]}


def _total(row: totals.Total, grouping: parameters.Grouping) -> dict[str, Any]:
    group: dict[str, Any] = {}
    if grouping.grain != "none":
        group["bucket"] = None if row.bucket is None else str(row.bucket)
        group["starts_at"] = row.starts_at
    for key in grouping.by:
        if key == "collection":
            group["collection_id"] = None if row.collection_id is None else str(row.collection_id)
            group["collection_title"] = row.collection_title
        else:
            group[key] = getattr(row, key)
    for name in ("event_count", "total_value", "secondary_value", "unit", "secondary_unit",
                 "event_count_before", "total_value_before", "secondary_value_before"):  # fmt: skip
        group[name] = getattr(row, name)
    return group


def _reading(found: read.Receipt | totals.Totals) -> dict[str, Any]:
    return {
        "as_of": found.as_of.isoformat(),
        "frontier": None if found.frontier is None else found.frontier.isoformat(),
        "exact": found.exact,
        "reasons": list(found.reasons),
    }
