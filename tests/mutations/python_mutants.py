"""Mutants of the Python that folds, captures and reads: what cosmic-ray knows to change, and statements left out."""

from __future__ import annotations

import ast
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.mutations.runner import ROOT

_COMMON = ("tests/integration/test_refresh.py", "tests/mutations/test_mutations.py", "tests/integration/test_hourly.py",
           "tests/integration/test_capture.py", "tests/integration/test_trust.py", "tests/integration/test_purge.py")  # fmt: skip
KILLERS = {
    "fold": (*_COMMON, "tests/integration/test_rebuild.py", "tests/integration/test_locks.py"),
    "refresh": (*_COMMON, "tests/integration/test_partitions.py", "tests/integration/test_locks.py",
                "tests/integration/test_restore.py", "tests/integration/test_jobs.py"),
    "frontier": (*_COMMON, "tests/integration/test_locks.py", "tests/integration/test_restore.py"),
    "capture": ("tests/integration/test_attach.py", "tests/integration/test_capture.py", "tests/integration/test_trust.py",
                "tests/integration/test_lookback.py", "tests/integration/test_purge.py", "tests/integration/test_zones.py::test_attach_refuses_years_without_day_intervals"),
    "seal": ("tests/integration/test_purge.py", "tests/mutations/test_operations.py", "tests/integration/test_hourly.py",
             "tests/integration/test_rebuild.py"),
    "verify": ("tests/integration/test_rebuild.py", "tests/integration/test_trust.py", "tests/integration/test_hourly.py",
               "tests/integration/test_lookback.py", "tests/integration/test_purge.py"),
    "read": ("tests/integration/test_sessions.py", "tests/integration/test_contents.py", "tests/integration/test_hourly.py"),
    "hourly": ("tests/integration/test_hourly.py", "tests/integration/test_purge.py"),
    "lookback": ("tests/integration/test_lookback.py",),
    "workers": ("tests/integration/test_jobs.py", "tests/integration/test_refresh.py"),
}  # fmt: skip
"""Of each module the tests that are asked: not all there are, or one mutant would take a quarter of an hour."""

_LEFT_OUT = ("core/RemoveDecorator", "core/NoOp")
"""Operators that break nothing, or everything."""


@dataclass(frozen=True)
class Mutant:
    """A change of one place of a module."""

    module: str
    line: int
    column: int
    what: str
    text: str
    """The whole module, changed."""

    @property
    def name(self) -> str:
        return f"{self.module}.py:{self.line}:{self.column} {self.what}"


def source(module: str) -> Path:
    """Return a module's path, below the checkout."""
    return Path("aggregator") / f"{module}.py"


class _Bare(ast.NodeTransformer):
    """Leaves out annotations, docstrings, assertions, which are for types, and the numbers of constants, all of patience."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        for argument in [
            *node.args.posonlyargs,
            *node.args.args,
            *node.args.kwonlyargs,
            node.args.vararg,
            node.args.kwarg,
        ]:
            if argument is not None:
                argument.annotation = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(0)
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        return ast.Pass() if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> ast.AST:  # noqa: ARG002
        return ast.Pass()

    def visit_Module(self, node: ast.Module) -> ast.AST:
        for statement in node.body:
            if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant | ast.BinOp):
                statement.value = ast.Constant(0)
        return self.generic_visit(node)


def _running(text: str) -> str:
    return ast.dump(_Bare().visit(ast.parse(text)))


def _without_statements(module: str, text: str) -> Iterator[Mutant]:
    """Leave out each call whose result nobody wants, and each error that is raised."""
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        called = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        if isinstance(node, ast.Raise) or called:
            assert isinstance(node, ast.stmt)
            assert node.end_lineno is not None
            first, last = node.lineno - 1, node.end_lineno
            rest = [f"{' ' * node.col_offset}pass\n", *["\n"] * (last - first - 1)]
            what = f"without {' '.join(lines[first].split())}"
            yield Mutant(module, node.lineno, node.col_offset, what, "".join([*lines[:first], *rest, *lines[last:]]))


def _replacements(module: str, text: str) -> Iterator[tuple[str, int, int, str, int]]:
    """Yield (operator, line, column, family, occurrence) of what cosmic-ray could change."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    tree = get_ast(text)
    for name in operator_names():
        operator = get_operator(name)
        if name in _LEFT_OUT or operator.arguments():
            continue
        places = (place for node in ast_nodes(tree) for place in operator().mutation_positions(node))
        for occurrence, ((line, column), _) in enumerate(places):
            yield name, line, column, name.split("_")[0], occurrence


def sample(size: int, seed: int) -> list[Mutant]:
    """Return so many mutants of all modules together; the same ones for the same seed and code."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    choice = random.Random(seed)
    found: list[Mutant] = []
    places: list[tuple[str, int, int, list[tuple[str, int]]]] = []
    texts = {module: (ROOT / source(module)).read_text(encoding="utf-8") for module in KILLERS}
    for module, text in texts.items():
        found += _without_statements(module, text)
        # One of each kind for a place: an addition could become ten other things.
        kinds: dict[tuple[int, int, str], list[tuple[str, int]]] = defaultdict(list)
        for name, line, column, family, occurrence in _replacements(module, text):
            kinds[line, column, family].append((name, occurrence))
        places += [(module, line, column, names) for (line, column, _), names in kinds.items()]
    for module, line, column, names in places:
        name, occurrence = choice.choice(names)
        # Where it is made: many of them only where they are chosen.
        found.append(Mutant(module, line, column, f"{name.removeprefix('core/')}#{occurrence}", ""))
    choice.shuffle(found)
    chosen: list[Mutant] = []
    for mutant in found:
        if len(chosen) == size:
            break
        text = mutant.text
        if not text:
            operator, _, number = mutant.what.partition("#")
            try:
                text = mutate_code(texts[mutant.module], get_operator(f"core/{operator}")(), int(number))
                if _running(text) == _running(texts[mutant.module]):
                    continue
            except (AttributeError, SyntaxError):  # it does not know every form, and not every change is Python
                continue
        chosen.append(Mutant(mutant.module, mutant.line, mutant.column, mutant.what.split("#")[0], text))
    return chosen
