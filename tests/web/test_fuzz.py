"""The API against its own description: whatever is asked, the answer is one that the OpenAPI document names."""

from __future__ import annotations

import os
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from tests.harness import Database
from tests.web.conftest import SECRET, serving, token

CASES = int(os.environ.get("AGGREGATOR_FUZZ_CASES", "25"))
CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
FEW = settings(
    max_examples=CASES, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


def test_answers_are_those_described(web_db: Database) -> None:
    """Good and bad parameters: no failure, and only statuses, headers and bodies of the document."""
    with serving(web_db.dsn, AGGREGATOR_HTTP_JWT_SECRET=SECRET) as server:
        schema = schemathesis.openapi.from_dict(server.get("/openapi.json", None).json)
        headers = {"Authorization": f"Bearer {token(exp=9999999999)}"}
        operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
        assert [operation.path for operation in operations] == [
            "/admin/usage",
            "/admin/usage/totals",
            "/admin/usage/daily",
            "/healthz",
        ]
        for operation in operations[:3]:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

                @FEW
                @given(case=operation.as_strategy(generation_mode=mode))
                def ask(case: schemathesis.Case[Any]) -> None:
                    case.headers.pop("Authorization", None)
                    case.call_and_validate(base_url=f"http://127.0.0.1:{server.port}", headers=headers, checks=CHECKS)

                ask()
