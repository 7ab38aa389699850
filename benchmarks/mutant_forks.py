"""Forks of a process that has libraries loaded: pytest over some files, and modules imported from
another syntax tree than their text's."""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import os
import signal
import time
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.mutations import ROOT

MARKS = "not slow and not stack and not process"
BROKEN = 70
"""The exit status of a fork that came to no result."""


class Rewritten(importlib.abc.MetaPathFinder):
    """Imports some of the modules of this tree from another syntax tree."""

    def __init__(self, trees: dict[str, Callable[[], ast.Module]]) -> None:
        self.trees = {dotted(module): tree for module, tree in trees.items()}

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


def dotted(module: str) -> str:
    """The name that a module is imported by."""
    return module.removesuffix(".py").replace("/", ".")


def run_pytest(files: list[str], folder: Path, plugins: list[object]) -> int:
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
