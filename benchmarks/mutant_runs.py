"""How mutants meet their tests: a process that has collected them is forked for each mutant.

First its module's tests run once, unmutated, over modules that note which of their statements each
test reaches; a mutant then meets only tests that reach it, until one fails. In the fork the
function's code is exchanged, so that whoever imported the function has the mutated one. What is
not in a function, or was run on import, is met in a process that imports the mutated module
afresh.
"""

from __future__ import annotations

import gc
import importlib
import sys
import types
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.mutant_forks import Rewritten, dotted, forked, run_pytest
from benchmarks.mutant_reach import Reached, is_in_a_body, reach
from benchmarks.mutations import ROOT, Mutant

SLACK = 20
"""Seconds that a mutant's tests may take beyond five times what they take unmutated."""

Said = Callable[[Mutant, dict[str, Any]], None]


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
            importlib.import_module(dotted(module))
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
        sys.meta_path.insert(0, Rewritten({mutant.module: lambda: mutant.tree}))
        return run_pytest(["-x", *reaching], folder, [_Noticing(tests, by)])

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
    quick = [one for one in mutants if is_in_a_body(one) and not known.on_import(one)]
    if not quick:
        return

    def run() -> int:
        return run_pytest(files, folder, [_Meeting(quick, known, folder, say)])

    log = folder / "meeting.txt"
    result, _ = forked(run, 7200, log)
    if result != "passed":
        raise SystemExit(
            f"the mutants of {mutants[0].module} did not end:\n{log.read_text()[-5000:]}"
        )
