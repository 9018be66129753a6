"""The plans of all the statements that a session runs, as auto_explain sees them, inside functions too."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg

from tests.harness import Database

Node = dict[str, Any]


def record(connection: psycopg.Connection[Any], plans: list[tuple[str, Node]]) -> Callable[[], None]:
    """Add (statement, plan) of what the session runs from now on to ``plans``; return what ends it."""

    def collect(notice: psycopg.errors.Diagnostic) -> None:
        text = notice.message_primary or ""
        if text.startswith("duration: "):
            found = json.loads(text[text.index("{") :])
            plans.append((found["Query Text"], found["Plan"]))

    connection.execute("load 'auto_explain'")
    connection.execute(
        "set client_min_messages = notice; set auto_explain.log_level = notice; set auto_explain.log_format = json;"
        "set auto_explain.log_nested_statements = on; set auto_explain.log_min_duration = 0"
    )
    connection.add_notice_handler(collect)

    def end() -> None:
        connection.remove_notice_handler(collect)
        connection.execute("set auto_explain.log_min_duration = -1")

    return end


def plans_of(db: Database, query: str, *, analyze: bool = False) -> list[Node]:
    """Run a query in a session of its own and return the plans of all the statements it ran, with what was done if wanted."""
    plans: list[tuple[str, Node]] = []
    connection = db.connect()
    if analyze:
        connection.execute("load 'auto_explain'; set auto_explain.log_analyze = on; set auto_explain.log_timing = off")
    record(connection, plans)
    connection.execute(query.encode())
    connection.close()
    return [plan for _, plan in plans]


def nodes_done(db: Database, query: str) -> list[Node]:
    """Run a query in a session of its own and return the nodes of all plans that were done, with what they gave."""
    return [node for plan in plans_of(db, query, analyze=True) for node in nodes_of(plan) if node["Actual Loops"]]


def nodes_of(node: Node) -> Iterator[Node]:
    """Return a plan's nodes."""
    yield node
    for child in node.get("Plans", []):
        yield from nodes_of(child)
