"""Which tests reach which statements: the tests of some files run once, unmutated, over modules
that note each statement within their functions as it is run."""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.mutant_forks import Rewritten, dotted, forked, run_pytest
from benchmarks.mutations import ROOT, Function, Mutant

LIBRARIES = ("scipy.stats", "scipy.optimize", "scipy.special", "torch", "transformers", "datasets")
"""What tests load within functions, and need not load once a mutant."""


@dataclass
class Reached:
    """Which tests reach which statements, and how long each takes unmutated."""

    tests: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """MODULE:LINE of a statement -> the tests, and wider fixtures, within which it was run; "" is
    outside of all."""
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    users: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Of a fixture that several tests share: these tests."""
    order: list[str] = field(default_factory=list)
    """All tests."""
    files: dict[str, list[str]] = field(default_factory=dict)
    """The test files of each module."""

    def by(self, mutant: Mutant) -> list[str]:
        """The tests of its module's files that reach it, in their order. All of them for what is
        run on import."""
        own = [test for test in self.order if test.partition("::")[0] in self.files[mutant.module]]
        own.sort(key=lambda test: self.files[mutant.module].index(test.partition("::")[0]))
        statement = statement_of(mutant)
        if statement is None or self.on_import(mutant):
            return own
        within = self.tests.get(statement, set())
        named = {test for one in within for test in self.users.get(one, [one])}
        return [test for test in own if test in named]

    def on_import(self, mutant: Mutant) -> bool:
        """Whether it was run outside of all tests."""
        return "" in self.tests.get(statement_of(mutant) or "", set())


class _Noting(ast.NodeTransformer):
    """Notes each statement within functions as it is run. Nothing is remembered between calls:
    else only the first caller would reach a cached function."""

    def __init__(self, module: str) -> None:
        self.module, self.depth = module, 0

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, Function):
            node.decorator_list = [one for one in node.decorator_list if not _is_cache(one)]
            self.depth += 1
            self.generic_visit(node)
            self.depth -= 1
        else:
            self.generic_visit(node)
        for name in ("body", "orelse", "finalbody"):
            held = getattr(node, name, None)
            if isinstance(held, list) and (self.depth or isinstance(node, Function)):
                setattr(node, name, self._noted(held))
        return node

    def _noted(self, body: list[ast.stmt]) -> list[ast.stmt]:
        found: list[ast.stmt] = []
        for place, statement in enumerate(body):
            if not (place == 0 and _is_text(statement)):
                call = f"__reached__({self.module + ':' + str(statement.lineno)!r})"
                found.append(ast.copy_location(ast.parse(call).body[0], statement))
            found.append(statement)
        return found


def _is_cache(node: ast.expr) -> bool:
    return ast.unparse(node).partition("(")[0].rpartition(".")[2] in ("cache", "lru_cache")


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


class _Notes:
    """Pytest's hooks of the unmutated run."""

    def __init__(self) -> None:
        self.reached = Reached()
        self.failed: set[str] = set()
        self.within = [""]
        builtins.__dict__["__reached__"] = self.note

    def note(self, statement: str) -> None:
        self.reached.tests[statement].add(self.within[-1])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self.within.append(item.nodeid)
        start = time.monotonic()
        done = yield
        self.reached.seconds[item.nodeid] = time.monotonic() - start
        self.within.pop()
        return done

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None, Any, Any]:
        shared = fixturedef.scope != "function"
        self.within.append(_called(fixturedef) if shared else self.within[-1])
        done = yield
        self.within.pop()
        return done

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            fixtures: dict[str, Any] = item._fixtureinfo.name2fixturedefs  # type: ignore[attr-defined]
            for fixture in [one for several in fixtures.values() for one in several]:
                self.reached.users[_called(fixture)].append(item.nodeid)


def _called(fixture: Any) -> str:
    return f"fixture {fixture.argname} of {fixture.baseid}"


def reach(files: list[str], modules: list[str], known: Reached, folder: Path) -> None:
    """Adds to `known` which tests of these files reach which statements of these modules. Tests
    that do not pass as they stand are left out, with a word. Raises SystemExit where the files
    cannot be run."""
    out, log = folder / "reached.json", folder / "log.txt"

    def run() -> int:
        notes = _Notes()
        trees = {module: partial(_noting, module) for module in modules}
        sys.meta_path.insert(0, Rewritten(trees))
        for module in modules:
            importlib.import_module(dotted(module))
        status = run_pytest(files, folder, [notes])
        own = notes.reached
        lists = {name: sorted(tests) for name, tests in own.tests.items()}
        loaded = [name for name in LIBRARIES if name in sys.modules]
        failed = sorted(notes.failed)
        out.write_text(json.dumps([lists, own.seconds, own.users, loaded, failed]))
        return 0 if status in (0, 1) else status

    result, _ = forked(run, 1800, log)
    if result != "passed":
        raise SystemExit(f"these tests cannot be run:\n{log.read_text()[-5000:]}")
    lists, seconds, users, loaded, failed = json.loads(out.read_text())
    for name, tests in lists.items():
        known.tests[name] |= set(tests)
    known.seconds |= seconds
    for name, tests in users.items():
        known.users[name] += tests
    known.order += [test for test in seconds if test not in failed]
    for name in failed:
        print(f"left out, since it does not pass as it stands: {name}", flush=True)
    for name in loaded:
        importlib.import_module(name)


def _noting(module: str) -> ast.Module:
    changed: ast.Module = _Noting(module).visit(ast.parse((ROOT / module).read_text()))
    return changed


def statement_of(mutant: Mutant) -> str | None:
    """The statement within a function (MODULE:LINE) that has to be run for it to matter: of a
    function's default, its first one. None for what lies outside of functions."""
    node = _outermost(mutant)
    if node is None:
        return None
    inner = [one for one in ast.walk(node) if isinstance(one, ast.stmt) and _holds(one, mutant)]
    own = min(inner, key=lambda one: ((one.end_lineno or 0) - one.lineno, one is node))
    if isinstance(own, Function):
        behind = own.body[1:] if _is_text(own.body[0]) else []
        own = [*behind, *own.body][0]
    return f"{mutant.module}:{own.lineno}"


def _holds(node: ast.stmt, mutant: Mutant) -> bool:
    start, end = (node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)
    return start <= (mutant.line, mutant.column) < end


def _outermost(mutant: Mutant) -> Function | None:
    """The function at the top of the module, or method of a class there, that it is in."""
    todo: list[ast.stmt] = list(ast.parse((ROOT / mutant.module).read_text()).body)
    while todo:
        node = todo.pop()
        if isinstance(node, Function) and _holds(node, mutant):
            return node
        if isinstance(node, ast.ClassDef):
            todo += node.body
    return None


def is_in_a_body(mutant: Mutant) -> bool:
    """Whether it lies in the body of a function, so that exchanging code is all it takes."""
    node = _outermost(mutant)
    return node is not None and any(_holds(one, mutant) for one in node.body)
