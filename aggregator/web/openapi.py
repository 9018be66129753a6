"""The OpenAPI document: what may be asked, and what is answered, for programs and for tests."""

from __future__ import annotations

from typing import Any

from aggregator.totals import GRAINS, KEYS
from aggregator.web.parameters import DEFAULT_DAYS, INSTANT_PATTERN, MAXIMUM_DAYS, ZONE_PATTERN

Schema = dict[str, Any]

_COUNT: Schema = {"type": "integer", "minimum": 0}
_NUMBER: Schema = {"type": "number"}
_TEXT: Schema = {"type": ["string", "null"]}
_UUID: Schema = {"type": ["string", "null"], "format": "uuid"}
_INSTANT: Schema = {"type": ["string", "null"], "format": "date-time"}
_MAYBE_NUMBER: Schema = {"type": ["number", "null"]}
_DAY_START: Schema = {
    "type": "string",
    "description": "Start of the day, in UTC, YYYY-MM-DDTHH:MM:SSZ; -infinity or infinity outside years 1-9999.",
}


def _object(properties: dict[str, Schema], *, optional: tuple[str, ...] = ()) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _list(properties: dict[str, Schema], *, optional: tuple[str, ...] = ()) -> Schema:
    return {"type": "array", "items": _object(properties, optional=optional)}


def _parameter(name: str, schema: Schema, description: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": description, **more}


_READING: dict[str, Schema] = {
    "as_of": {"type": "string", "format": "date-time"},
    "frontier": {**_INSTANT, "description": "Rollups hold what is before it; null before the first refresh."},
    "exact": {"type": "boolean"},
    "reasons": {"type": "array", "items": {"type": "string"}},
}

_DAILY = _list({"day": _DAY_START, "resource_type": _TEXT, "event_count": _COUNT, "total_value": _NUMBER})

_USAGE = _object(
    {
        "by_collection": _list(
            {
                "collection_id": _UUID,
                "collection_title": _TEXT,
                "resource_type": _TEXT,
                "event_count": _COUNT,
                "total_value": _NUMBER,
                "secondary_value": _NUMBER,
            }
        ),
        "ai_drilldown": _list(
            {
                "collection_id": _UUID,
                "collection_title": _TEXT,
                "job_type": _TEXT,
                "model_level": _TEXT,
                "tokens_in": {"type": "integer", "description": "Of any size."},
                "tokens_out": {"type": "integer", "description": "Of any size."},
                "event_count": _COUNT,
            }
        ),
        "daily": _DAILY,
        "receipt": _object(
            {
                **_READING,
                "lag_seconds": _MAYBE_NUMBER,
                "rollup_rows": _COUNT,
                "raw_rows": _COUNT,
                "pending_changes": _COUNT,
            }
        ),
    },
    optional=("receipt",),
)

_KEYS_ON_REQUEST: dict[str, Schema] = {
    "bucket": {
        "type": "string",
        "description": "The local day, the Monday of the ISO week, or the first of the month.",
    },
    "starts_at": _DAY_START,
    "collection_id": _UUID,
    "collection_title": _TEXT,
    "resource_type": _TEXT,
    "job_type": _TEXT,
    "model_level": _TEXT,
}

_TOTALS = _object(
    {
        "totals": _list(
            {
                **_KEYS_ON_REQUEST,
                "event_count": _COUNT,
                "total_value": {**_MAYBE_NUMBER, "description": "Null where units differ within the group."},
                "secondary_value": _MAYBE_NUMBER,
                "unit": _TEXT,
                "secondary_unit": _TEXT,
                "event_count_before": {
                    "type": ["integer", "null"],
                    "description": "Of the window before; null where that is no whole number of buckets.",
                },
                "total_value_before": _MAYBE_NUMBER,
                "secondary_value_before": _MAYBE_NUMBER,
            },
            optional=tuple(_KEYS_ON_REQUEST),
        ),
        "receipt": _object(_READING),
    },
    optional=("receipt",),
)

_WINDOW = [
    _parameter(
        "days",
        {"type": "integer", "default": DEFAULT_DAYS},
        f"The last days up to and beyond now; any integer, clamped into 1-{MAXIMUM_DAYS}. Ignored if since is given.",
    ),
    _parameter("collection_id", {"type": "string", "format": "uuid"}, "Only events of that collection."),
    _parameter("since", {"type": "string", "pattern": f"^{INSTANT_PATTERN}$"}, "First instant of the window."),
    _parameter(
        "until", {"type": "string", "pattern": f"^{INSTANT_PATTERN}$"}, "The window ends before it; none: no bound."
    ),
]

_RECEIPT = _parameter(
    "receipt", {"type": "boolean", "default": False}, "Add what was read, and how far it can be believed."
)

_TIME_ZONE = _parameter(
    "time_zone",
    {"type": "string", "pattern": f"^{ZONE_PATTERN}$"},
    "Whose days; none: those of the reporting time zone. Fast where the hourly rollup is on, else from raw events.",
)

_GROUPING = [
    _parameter(
        "by",
        {"type": "array", "items": {"enum": list(KEYS)}, "uniqueItems": True, "minItems": 1},
        "Keys of a group, separated by commas; without it there is one group.",
        style="form",
        explode=False,
    ),
    _parameter("grain", {"enum": list(GRAINS), "default": "none"}, "One row for each of these."),
    _parameter("fill", {"type": "boolean", "default": False}, "Zeros for gaps, too many of which are refused."),
]


def _error(description: str, headers: dict[str, Any] | None = None) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {"description": description, "content": content, **({"headers": headers} if headers else {})}


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


def _question(summary: str, parameters: list[dict[str, Any]], schema: str) -> dict[str, Any]:
    return {
        "get": {
            "summary": summary,
            "operationId": schema.lower(),
            "security": [{"token": []}],
            "parameters": parameters,
            "responses": {
                "200": {
                    "description": "The answer, of one snapshot.",
                    "headers": {"ETag": _header("Changes whenever the answer does.")},
                    "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
                },
                "304": {"description": "The client has the answer already (If-None-Match)."},
                "400": _error("A parameter is wrong: empty, repeated, or not of its type. Unknown ones are ignored."),
                "401": _error("No valid token.", {"WWW-Authenticate": _header("Bearer")}),
                "403": _error("The user is no owner or admin of any collection."),
                "500": _error("The request failed."),
                "503": _error("Too many requests at a time.", {"Retry-After": _header("Seconds.")}),
                "default": _error("The request is none: its method, size or host."),
            },
        }
    }


DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {
        "title": "aggregator",
        "version": "1",
        "description": "Exact usage of collections. Checks come in this order: 401, 403, 400. A + in an instant is written %2B.",
    },
    "paths": {
        "/admin/usage": _question("Usage by collection, AI by job type, and daily.", [*_WINDOW, _RECEIPT], "Usage"),
        "/admin/usage/totals": _question("Sums by any keys and grain, beside the window before.", [*_GROUPING, *_WINDOW, _RECEIPT], "Totals"),
        "/admin/usage/daily": _question("Usage by day of any time zone.", [_TIME_ZONE, *_WINDOW], "Daily"),
        "/healthz": {
            "get": {
                "summary": "The process lives.",
                "operationId": "live",
                "responses": {
                    "200": {
                        "description": "It does.",
                        "content": {"application/json": {"schema": _object({"status": {"const": "ok"}})}},
                    },
                    "default": _error("The request is none: its method, size or host."),
                },
            }
        },
    },
    "components": {
        "schemas": {"Usage": _USAGE, "Totals": _TOTALS, "Daily": _object({"daily": _DAILY}), "Error": _object({"error": {"type": "string"}})},
        "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
    },
}  # fmt: skip
