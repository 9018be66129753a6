"""The OpenAPI document."""

from __future__ import annotations

from typing import Any

DOCUMENT: dict[str, Any] = {"openapi": "3.1.0", "info": {"title": "aggregator", "version": "1"}, "paths": {}}
