"""pgspot over all SQL: what is installed, what runs, and what is there in the end. It knows the ways of CVE-2018-1058."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aggregator import capture, migrations
from aggregator import sql as sql_files
from tests.harness import Database

visitors = pytest.importorskip("pgspot.visitors", reason="pgspot is not installed here, so no SQL was checked by it")

from pglast import parse_plpgsql, parse_sql  # noqa: E402
from pglast.parser import ParseError  # noqa: E402
from pgspot.formatters import raw_sql  # noqa: E402
from pgspot.state import Counter, State  # noqa: E402

ROOT = Path(__file__).parents[2]

PINNED = "set search_path = pg_catalog, pg_temp;\n"
"""What db.set_local() says in each transaction of ours, and ``migrate --sql`` in its text."""

OURS = "create schema usage;\n"
"""migrate refuses one that others own or may create in, so that what is replaced in there is ours."""

EXCEPTIONS = {
    "usage.event": "inlined, so that the source is reached by its index; its body has a table's name and casts only",
    "usage.collection": "inlined likewise",
    "usage.event_between": "inlined likewise; its operators are qualified",
}
"""Functions without a search_path of their own. None is SECURITY DEFINER."""

BEFORE_ATTACH = {
    "'>=' in e.created_at >= $1", "'<' in e.created_at < $2",
}  # fmt: skip
"""Of usage.event_between() as migration 0004 makes it, which is frozen: attach replaces it, and until then there is no event."""


class Findings(Counter):  # type: ignore[misc]
    """Collects what pgspot finds."""

    def __init__(self) -> None:
        super().__init__(
            argparse.Namespace(
                proc_without_search_path=[], summary_only=True, plpgsql=True, ignore=[], ignore_lang=[], sql_fn=[]
            )
        )
        self.found: list[tuple[str, str]] = []

    def print_issue(self, code: str, context: str) -> None:
        self.found.append((code, context))

    def unknown(self, message: str) -> None:
        self.found.append(("unknown", message))


def every_expression(state: Any, node: Any) -> None:
    """Look at every expression of a PL/pgSQL body: pgspot's own way leaves out some statements."""

    def expressions(part: Any) -> Iterator[str]:
        if isinstance(part, list):
            for item in part:
                yield from expressions(item)
        elif isinstance(part, dict):
            for name, value in part.items():
                if name == "PLpgSQL_expr":
                    yield value["query"]
                else:
                    yield from expressions(value)

    for text in expressions(parse_plpgsql(raw_sql(node))):
        # A statement, an expression, or an assignment.
        for form in (text, f"select {text}", f"select {re.split(':?=', text, maxsplit=1)[-1]}"):
            try:
                parse_sql(form)
            except ParseError:
                continue
            visitors.visit_sql(state, form)
            break
        else:
            raise AssertionError(f"not understood: {text}")


def prepared(text: str) -> str:
    """Put what pgspot or its parser cannot read in other words that mean the same."""
    # Bodies of standard SQL are bound when they are made, under the search_path of then.
    text = re.sub(
        r"\nreturn (.*?);+\n(?=\n|comment|create|--|$)",
        lambda found: f"\nset search_path = pg_catalog, pg_temp as $body$select {found[1]}$body$;\n",
        text, flags=re.DOTALL,
    )  # fmt: skip
    text = re.sub(
        r"\nbegin atomic\n(.*?)\nend;+\n",
        lambda found: f"\nset search_path = pg_catalog, pg_temp as $body$ {found[1]} $body$;\n",
        text, flags=re.DOTALL,
    )  # fmt: skip
    # Variables of row types that only a database knows, and their fields.
    text = re.sub(r"\bp\.\w+ :=", "p :=", text)
    return re.sub(r"\busage\.(?:window_parts|state)\b(?=\s*(?:;|:=|,))", "record", text)


def findings(text: str, monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """Return what pgspot finds in some SQL, less the exceptions."""
    monkeypatch.setattr(visitors, "visit_plpgsql", every_expression)
    counter = Findings()
    visitors.visit_sql(State(counter), prepared(text), toplevel=True)
    return {
        (code, context)
        for code, context in counter.found
        if not (code == "PS005" and context.partition("(")[0] in EXCEPTIONS)
    }


def test_pgspot_sees_what_there_is_to_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of mistake is found by the way in which our SQL is looked at: in SQL, in PL/pgSQL, in loops and conditions."""
    for text, codes in {
        "select now() > 'now'": {"PS001", "PS016"},
        "create function usage.f() returns int language sql security definer as 'select 1'": {"PS003"},
        "create function usage.f() returns int language sql as 'select 1'": {"PS005"},
        "create function usage.f() returns int language sql security definer set search_path = public as 'select 1'": {"PS004"},
        "create or replace function usage.f() returns int language sql set search_path = pg_catalog, pg_temp as 'select 1'": {"PS002"},
        "do $$ begin for n in 1..2 loop if n > 1 then perform pg_catalog.now(); end if; end loop; end $$": {"PS001"},
        "do $$ declare x int; begin x := 1 + 1; end $$": {"PS001"},
        "select * from usage.state s, other": {"PS017"},
    }.items():  # fmt: skip
        assert {code for code, _ in findings(text, monkeypatch)} == codes, text
    assert findings(PINNED + "select now() > 'now'", monkeypatch) == set()


def test_migrations(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``migrate --sql`` prints, all of alembic/sql up and down."""
    up, down = migrations.offline_sql(), OURS + migrations.offline_sql(down=True)
    for path in (ROOT / "alembic" / "sql").glob("*.sql"):
        lines = [line for line in path.read_text().splitlines() if line.strip().startswith("comment on function")]
        assert all(line in up or line in down for line in lines), path
    assert {context for _, context in findings(up, monkeypatch)} <= BEFORE_ATTACH
    assert {context for _, context in findings(down, monkeypatch)} <= BEFORE_ATTACH


def test_run_time_sql(monkeypatch: pytest.MonkeyPatch) -> None:
    """aggregator/sql: in transactions of our own; what runs in a caller's session (read.sql) has all its names qualified."""
    places = {
        "hour": "null",
        "by_hour": "",
        "where": "",
        "body": "'select 1'",
        "parallel": "safe",
        "mode": "always",
        "key_id": "1",
    }
    checked = 0
    for path in sorted((ROOT / "aggregator" / "sql").glob("*.sql")):
        for name, block in sql_files.load(path.stem).items():
            if name.endswith(("_body", "_event_body")) or name in {"late", "unsealed", "hour", "expected", "found"}:
                continue  # parts of statements, which are looked at where they are made
            text = re.sub(r"%\(\w+\)s", "null", block.replace("%%", "%").replace("{{}}", "'{}'"))
            places["body"] = "'begin end'" if "plpgsql" in block else "'select 1'"
            text = re.sub(r"\{(\w+)\}", lambda found: places.get(found[1], "usage.x"), text)
            try:
                parse_sql(text)
            except ParseError:
                continue
            before = "" if path.stem == "read" else OURS + PINNED
            assert findings(before + text, monkeypatch) == set(), f"{path.name}: {name}"
            checked += 1
    assert checked > 200


def test_roles(monkeypatch: pytest.MonkeyPatch) -> None:
    """deploy/roles.sql, which a superuser runs."""
    text = (ROOT / "deploy" / "roles.sql").read_text(encoding="utf-8").replace(":source", "public.resource_usage_log")
    assert findings(text, monkeypatch) == set()


@pytest.mark.parametrize("titles", ["public.nodes", "none"])
def test_what_is_there_in_the_end(db: Database, titles: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every function of schema usage, as migrations and attach left it; and again after detach."""
    capture.attach(db.own, db.settings.model_copy(update={"title_table": titles}))
    for _ in range(2):
        texts = [text for (text,) in db.execute(
            "select pg_get_functiondef(p.oid) from pg_proc p where p.pronamespace = 'usage'::regnamespace and p.prosqlbody is null"
            " order by p.proname"
        )]  # fmt: skip
        assert len(texts) > 50
        assert findings(OURS + PINNED + ";\n".join(texts), monkeypatch) == set()
        open_ones = db.execute(
            "select p.oid::regprocedure::text, p.prosecdef from pg_proc p where p.pronamespace = 'usage'::regnamespace"
            " and p.prosqlbody is null and not coalesce(p.proconfig::text like '%search_path=pg_catalog, pg_temp%', false)"
        )
        assert {name.partition("(")[0] for name, _ in open_ones} <= set(EXCEPTIONS)
        assert not any(definer for _, definer in open_ones)
        capture.detach(db.own, db.settings)
