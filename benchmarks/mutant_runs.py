"""How mutants meet their tests: a process that has collected them is forked for each mutant.

First its module's tests run once, unmutated, over modules that note which of their statements each
test reaches; a mutant then meets only tests that reach it, until one fails. In the fork the
function's code is exchanged, so that whoever imported the function has the mutated one. What is
not in a function, or was run on import, is met in a process that imports the mutated module
afresh.
"""

from __future__ import annotations

import ast
import builtins
import gc
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
import time
import traceback
import types
from collections import defaultdict
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.mutations import ROOT, Function, Mutant

MARKS = "not slow and not stack and not process"
SLACK = 20
"""Seconds that a mutant's tests may take beyond five times what they take unmutated."""
LIBRARIES = ("scipy.stats", "scipy.optimize", "scipy.special", "torch", "transformers", "datasets")
"""What tests load within functions, and need not load once a mutant."""

BROKEN = 70
"""The exit status of a fork that came to no result."""

Said = Callable[[Mutant, dict[str, Any]], None]


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


# ---------------------------------------------------------------------- which tests reach what


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


class _Rewritten(importlib.abc.MetaPathFinder):
    """Imports some of the modules of this tree from another syntax tree."""

    def __init__(self, trees: dict[str, Callable[[], ast.Module]]) -> None:
        self.trees = {_dotted(module): tree for module, tree in trees.items()}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in self.trees:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None and spec.origin is not None
        spec.loader = _Loader(name, spec.origin, self.trees[name])
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, tree: Callable[[], ast.Module]) -> None:
        super().__init__(name, path)
        self.tree = tree

    def get_code(self, fullname: str) -> types.CodeType:
        return compile(ast.fix_missing_locations(self.tree()), self.path, "exec")


def _dotted(module: str) -> str:
    return module.removesuffix(".py").replace("/", ".")


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
        sys.meta_path.insert(0, _Rewritten(trees))
        for module in modules:
            importlib.import_module(_dotted(module))
        status = _pytest(files, folder, [notes])
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


# ------------------------------------------------------------------------------------ processes


def _pytest(files: list[str], folder: Path, plugins: list[object]) -> int:
    """Pytest's exit status, in this very process."""
    options = ["-q", "-n0", "-p", "no:cacheprovider", "-m", MARKS]
    options += ["--basetemp", str(folder / "pytest"), "--rootdir", str(ROOT)]
    return int(pytest.main([*options, *files], plugins=plugins))


def forked(run: Callable[[], int], limit: float, log: Path) -> tuple[str, float]:
    """`passed`, `failed` or `hung` (longer than `limit` seconds), and the seconds: what `run`
    returns in a fork of this process."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        status = BROKEN
        try:
            os.setpgid(0, 0)
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            status = run()
        except BaseException:
            log.write_text(traceback.format_exc())
        finally:
            os._exit(status)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        seconds = time.monotonic() - start
        if ended and os.waitstatus_to_exitcode(status) == BROKEN:
            raise SystemExit(f"this campaign itself failed:\n{log.read_text()[-5000:]}")
        if ended:
            return ("passed" if status == 0 else "failed"), seconds
        if seconds > limit:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "hung", seconds
        time.sleep(0.02)


# -------------------------------------------------------------------------------- one mutant


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


def _is_in_a_body(mutant: Mutant) -> bool:
    """Whether it lies in the body of a function, so that exchanging code is all it takes."""
    node = _outermost(mutant)
    return node is not None and any(_holds(one, mutant) for one in node.body)


def _codes(mutant: Mutant) -> dict[tuple[str, int], types.CodeType]:
    """The code of all functions and methods of the mutated module, by name and first line."""
    todo = [compile(mutant.tree, str(ROOT / mutant.module), "exec")]
    found = {}
    while todo:
        for inner in todo.pop().co_consts:
            if isinstance(inner, types.CodeType):
                found[inner.co_qualname, inner.co_firstlineno] = inner
                todo.append(inner)
    return found


def exchange(mutant: Mutant, functions: list[types.FunctionType]) -> int:
    """Give those of these functions that the mutation changes the mutated code; how many."""
    codes, changed = _codes(mutant), 0
    for function in functions:
        old = function.__code__
        new = codes.get((old.co_qualname, old.co_firstlineno))
        if new is not None and new != old and new.co_freevars == old.co_freevars:
            function.__code__ = new
            changed += 1
    return changed


class _Meeting:
    """Pytest's hook that meets mutants in place of running the tests that were collected."""

    def __init__(self, mutants: list[Mutant], known: Reached, folder: Path, say: Said) -> None:
        self.mutants, self.known, self.folder, self.say = mutants, known, folder, say
        self.functions: dict[str, list[types.FunctionType]] = defaultdict(list)
        self.hung = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for module in {mutant.module for mutant in self.mutants}:
            importlib.import_module(_dotted(module))
        gc.collect()
        for function in [one for one in gc.get_objects() if isinstance(one, types.FunctionType)]:
            self.functions[function.__code__.co_filename].append(function)
        gc.freeze()
        for mutant in self.mutants:
            if not self.hung:
                self._meet(mutant, session)
        return True

    def _meet(self, mutant: Mutant, session: pytest.Session) -> None:
        tests = self.known.by(mutant)
        items = [item for item in session.items if item.nodeid in tests]
        items.sort(key=lambda item: tests.index(item.nodeid))
        by = self.folder / "by.txt"
        by.write_text("")
        functions = self.functions[str(ROOT / mutant.module)]

        def run() -> int:
            if not exchange(mutant, functions):
                by.write_text("nothing to exchange")
                return 0
            for item, after in zip(items, [*items, None][1:], strict=True):
                by.write_text(item.nodeid)
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
                if session.testsfailed:
                    return 1
            return 0

        limit = SLACK + 5 * sum(self.known.seconds[test] for test in tests)
        result, seconds = forked(run, limit, self.folder / "log.txt")
        # Where tests are collected with a library's threads, a fork has none of them: what hangs,
        # and the rest of the module, is met in a process that collects them itself.
        self.hung = result == "hung"
        if not self.hung and by.read_text() != "nothing to exchange":
            self.say(mutant, row(result, seconds, by.read_text(), len(tests)))


class _Noticing:
    """Pytest's hooks of a process that imported the mutated module: only tests that reach it are
    run, and the one that is running is written down."""

    def __init__(self, tests: list[str], by: Path) -> None:
        self.tests, self.by = tests, by

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        held = {item.nodeid: item for item in items}
        items[:] = [held[test] for test in self.tests if test in held]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.by.write_text(nodeid)


def row(result: str, seconds: float, last: str, tests: int) -> dict[str, Any]:
    """What is kept of a mutant's result: which of how many tests noticed it."""
    by = "" if result == "passed" else last or "importing it"
    return {"result": result, "by": by, "tests": tests, "seconds": round(seconds, 1)}


def _afresh(mutant: Mutant, files: list[str], known: Reached, folder: Path) -> dict[str, Any]:
    """Meet a mutant in a process that imports everything of this project anew."""
    tests, by = known.by(mutant), folder / "by.txt"
    by.write_text("")

    reaching = [file for file in files if any(test.startswith(f"{file}::") for test in tests)]

    def run() -> int:
        sys.meta_path.insert(0, _Rewritten({mutant.module: lambda: mutant.tree}))
        return _pytest(["-x", *reaching], folder, [_Noticing(tests, by)])

    if not tests:
        return row("passed", 0.0, "", 0)
    limit = 2 * SLACK + 5 * sum(known.seconds[test] for test in tests)
    result, seconds = forked(run, limit, folder / "log.txt")
    return row(result, seconds, by.read_text(), len(tests))


def meet(
    mutants: list[Mutant],
    tests: dict[str, list[str]],
    folder: Path,
    say: Said,
    said: Callable[[], set[str]],
) -> None:
    """Meet each mutant with its tests, module by module. `tests`: the files of each module, most
    telling first. `say` is told of each result; `said` has the keys of what it was told of."""
    known, ran = Reached(files=tests), set[str]()
    for module, files in tests.items():
        new = [file for file in files if file not in ran]
        if new:
            reach(new, list(tests), known, folder)
            ran |= set(new)
        mine = [mutant for mutant in mutants if mutant.module == module]
        _exchanging(mine, files, known, folder, say)
        done = said()
        for mutant in [one for one in mine if one.key not in done]:
            say(mutant, _afresh(mutant, files, known, folder))


def _exchanging(
    mutants: list[Mutant], files: list[str], known: Reached, folder: Path, say: Said
) -> None:
    """Meet those of a module's mutants for which exchanging code is enough."""
    quick = [one for one in mutants if _is_in_a_body(one) and not known.on_import(one)]
    if not quick:
        return

    def run() -> int:
        return _pytest(files, folder, [_Meeting(quick, known, folder, say)])

    log = folder / "meeting.txt"
    result, _ = forked(run, 7200, log)
    if result != "passed":
        raise SystemExit(
            f"the mutants of {mutants[0].module} did not end:\n{log.read_text()[-5000:]}"
        )
