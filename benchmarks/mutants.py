"""Tests that would notice: small mutations of what figures rest on, each met by its module's tests.

    python -m benchmarks.mutants --seed 0 --sample 200

A mutation turns one comparison, arithmetic operator, number, truth value, `and`/`or` or `not` of a
module into its neighbour. Its tests run in a process forked from one that has the libraries loaded,
over a copy of the tree. Every result is appended to `--out`, so that a stopped campaign continues.
Mutations that change nothing which can be observed are named in `equivalent_mutants.json`, each
with its reason; the share noticed is of those that are left.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.json")
TREE = ("core", "synth", "train", "eval", "recipes", "tests", "benchmarks")
MARKS = "not slow and not stack and not process"
SLACK = 30
"""Seconds that a mutant's tests may take beyond five times what they take unmutated."""

TESTS: dict[str, tuple[str, ...]] = {
    "eval/stats.py": ("stats", "errors", "arena", "alpaca", "compare", "sequential"),
    "eval/compare.py": ("compare", "controls_compared", "planning", "duels", "tasks"),
    "eval/comparing/arms.py": ("errors", "planning", "controls_compared", "compare"),
    "eval/comparing/differences.py": ("planning", "sequential", "compare", "errors"),
    "eval/comparing/errors.py": ("errors", "planning", "compare"),
    "eval/comparing/estimates.py": ("errors", "planning", "compare", "sequential"),
    "eval/scoring/length_control.py": ("alpaca", "compare"),
    "eval/scoring/arena.py": ("arena", "result_files", "annotations"),
    "synth/filters/where.py": ("where", "choose", "tagged"),
    "synth/filters/choices.py": ("choose", "strategies", "schedule"),
    "synth/filters/schedule.py": ("schedule", "choose", "strategies"),
    "synth/filters/orders.py": ("choose", "strategies", "tagged", "data_arms"),
    "synth/filters/rule.py": ("schedule", "strategies", "tagged", "own_columns", "hygiene"),
    "synth/filters/arm.py": ("schedule", "strategies", "mixing", "tagged", "hygiene"),
    "synth/filters/verdicts.py": ("tagged", "schedule"),
    "synth/generate/sampling_grid.py": ("grid",),
    "synth/published/forms.py": ("published", "import_export", "any_data"),
    "synth/tags/sanitize.py": ("sanitize",),
    "synth/pool/columns.py": ("pool", "engine_seeds", "families"),
    "train/data/order.py": ("order", "tokens"),
    "train/data/packs.py": ("order", "tokens"),
    "train/data/rows.py": ("train_data", "tokens", "exactness"),
    "train/data/tokens.py": ("tokens", "train_data", "order"),
    "train/sizes/schedule.py": ("plan", "train_data"),
    "eval/judging/verdicts.py": ("judges", "ratings", "wildbench", "arena"),
    "core/columns.py": ("columns", "pool", "turns", "overlap", "damage"),
    "core/store.py": ("store", "columns", "leases", "trainings", "damage"),
}
"""Module -> the tests that are meant to notice (tests/test_NAME.py), quickest first."""

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


@dataclass(frozen=True)
class Mutant:
    """One mutation of one module: its `place`-th node becomes the `choice`-th of its neighbours."""

    module: str
    place: int
    choice: int
    line: int
    column: int
    text: str
    """The line as it stands."""
    before: str
    after: str

    @property
    def name(self) -> str:
        """What is mutated, in words that stay true when lines move."""
        return f"{self.module}: {self.text}: {self.before} -> {self.after} (column {self.column})"

    @property
    def source(self) -> str:
        """The whole module, mutated."""
        tree = ast.parse((ROOT / self.module).read_text())
        node = next(old for at, old in enumerate(_code(tree)) if at == self.place)
        changed = _Exchange(node, _neighbours(node)[self.choice]).visit(tree)
        return ast.unparse(ast.fix_missing_locations(changed))

    @property
    def key(self) -> str:
        """What a result is stored under: the mutation, and the module as it stands."""
        text = (ROOT / self.module).read_text()
        said = [self.module, self.place, self.choice, text]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def mutants(module: str) -> list[Mutant]:
    """Every mutation of a module."""
    text = (ROOT / module).read_text()
    lines = text.splitlines()
    found = []
    for place, node in enumerate(_code(ast.parse(text))):
        for choice, after in enumerate(_neighbours(node)):
            line: int = getattr(node, "lineno", 1)
            words = (lines[line - 1].strip(), ast.unparse(node), ast.unparse(after))
            column: int = getattr(node, "col_offset", 0)
            found.append(Mutant(module, place, choice, line, column, *words))
    return found


def _code(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a module that are run: no annotation, decorator or version."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.arg):
            continue
        if isinstance(node, ast.Assign) and "VERSION" in ast.unparse(node.targets[0]):
            continue
        if isinstance(node, ast.AnnAssign):
            if node.value is not None:
                yield node.value
                yield from _code(node.value)
            continue
        yield node
        if isinstance(node, ast.ClassDef):
            yield from _code(ast.Module(node.body, []))
            continue
        if isinstance(node, ast.FunctionDef):
            for part in [*node.body, *node.args.defaults, *node.args.kw_defaults]:
                if part is not None:
                    yield part
                    yield from _code(part)
            continue
        yield from _code(node)


def _neighbours(node: ast.AST) -> list[ast.expr]:
    """What the node could have been by a slip."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        ops = [COMPARISONS[type(node.ops[0])](), *node.ops[1:]]
        return [ast.Compare(node.left, ops, node.comparators)]
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        if isinstance(node.left, (ast.JoinedStr, ast.Constant)) and _is_text(node.left):
            return []
        return [ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)]
    if isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return [ast.BoolOp(other, node.values)]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub, ast.Invert)):
        return [node.operand]
    if isinstance(node, ast.Constant):
        return _other_constants(node.value)
    return []


def _other_constants(value: object) -> list[ast.expr]:
    if isinstance(value, bool):
        return [ast.Constant(not value)]
    if isinstance(value, (int, float)):
        return [ast.Constant(value + 1)]
    return []


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or isinstance(getattr(node, "value", None), str)


class _Exchange(ast.NodeTransformer):
    def __init__(self, place: ast.AST, after: ast.expr) -> None:
        self.place, self.after = place, after

    def visit(self, node: ast.AST) -> Any:
        return self.after if node is self.place else self.generic_visit(node)


def drawn(sample: int, seed: int) -> list[Mutant]:
    """A sample of all mutations, the same for the same seed and code."""
    everything = [mutant for module in TESTS for mutant in mutants(module)]
    return random.Random(seed).sample(everything, min(sample, len(everything)))


def _loaded() -> None:
    """What nearly every test loads, so that a fork has it already. No module of this project."""
    import jinja2
    import numpy as np
    import polars as pl
    import pyarrow.parquet
    import pydantic
    import pytest
    import scipy.stats
    import yaml

    del jinja2, np, pl, pyarrow, pydantic, pytest, scipy, yaml


def _tests(tree: Path, module: str, log: Path) -> int:
    """Pytest's exit status for the module's tests in a tree, run in this very process."""
    import pytest

    os.chdir(tree)
    sys.path.insert(0, str(tree))
    os.environ.setdefault("MAGPIE_SHARED", str(ROOT.parent / "shared"))
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    files = [f"tests/test_{name}.py" for name in TESTS[module]]
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", MARKS]
    return int(pytest.main([*options, *files]))


def outcome(tree: Path, module: str, limit: float, log: Path) -> tuple[str, float]:
    """`passed`, `failed` or `hung` (longer than `limit` seconds), and the seconds."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        status = 70
        try:
            status = _tests(tree, module, log)
        finally:
            os._exit(status)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        seconds = time.monotonic() - start
        if ended:
            return ("passed" if status == 0 else "failed"), seconds
        if seconds > limit:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "hung", seconds
        time.sleep(0.05)


def _copied(folder: Path) -> Path:
    for name in TREE:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def work(out: Path, mine: list[Mutant], folder: Path) -> None:
    """Meet each mutant with its tests, and append what came of it to `out`."""
    _loaded()
    tree = _copied(folder / "tree")
    usual: dict[str, float] = {}
    for mutant in mine:
        module = mutant.module
        log = folder / "log.txt"
        if module not in usual:
            result, usual[module] = outcome(tree, module, 600, log)
            if result != "passed":
                raise SystemExit(
                    f"{module}: its tests do not pass as it stands:\n{log.read_text()}"
                )
        path = tree / module
        as_is = path.read_text()
        path.write_text(mutant.source)
        shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)
        result, seconds = outcome(tree, module, 5 * usual[module] + SLACK, log)
        path.write_text(as_is)
        shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)
        said = {"key": mutant.key, "name": mutant.name, "line": mutant.line}
        with out.open("a") as file:
            file.write(json.dumps({**said, "result": result, "seconds": round(seconds, 1)}) + "\n")


def known(out: Path) -> dict[str, dict[str, Any]]:
    """What is known of mutants already, by key."""
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    return {row["key"]: row for row in rows}


def equivalent() -> dict[str, str]:
    """Mutations that change nothing which can be observed, by name, each with the reason."""
    return dict(json.loads(EQUIVALENT.read_text()))


def told(sample: list[Mutant], results: dict[str, dict[str, Any]]) -> str:
    """The table: by module how many were noticed, then every survivor by name."""
    reasons = equivalent()
    lines = [f"{'module':36} {'mutants':>8} {'noticed':>8} {'equivalent':>11} {'survived':>9}"]
    sums = [0, 0, 0, 0]
    survivors, equal = [], []
    for module in TESTS:
        own = [mutant for mutant in sample if mutant.module == module]
        left = [mutant for mutant in own if results[mutant.key]["result"] == "passed"]
        alike = [mutant for mutant in left if mutant.name in reasons]
        counts = [len(own), len(own) - len(left), len(alike), len(left) - len(alike)]
        sums = [total + count for total, count in zip(sums, counts, strict=True)]
        lines.append(f"{module:36} {counts[0]:8} {counts[1]:8} {counts[2]:11} {counts[3]:9}")
        survivors += [mutant for mutant in left if mutant.name not in reasons]
        equal += alike
    lines.append(f"{'all':36} {sums[0]:8} {sums[1]:8} {sums[2]:11} {sums[3]:9}")
    hung = sum(results[mutant.key]["result"] == "hung" for mutant in sample)
    share = 100 * sums[1] / max(sums[0] - sums[2], 1)
    lines.append(f"noticed: {share:.1f} % of those that are not equivalent ({hung} by their time)")
    lines += [f"survived: line {mutant.line}, {mutant.name}" for mutant in survivors]
    lines += [f"equivalent: {mutant.name}: {reasons[mutant.name]}" for mutant in equal]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "mutants.jsonl")
    parser.add_argument("--only", help="one module, all of its mutants drawn from")
    parser.add_argument("--share", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.only:
        for name in [name for name in TESTS if name != chosen.only]:
            del TESTS[name]
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    sample = drawn(chosen.sample, chosen.seed)
    todo = [mutant for mutant in sample if mutant.key not in known(chosen.out)]
    todo.sort(key=lambda mutant: mutant.module)
    if chosen.share:
        place, of = map(int, chosen.share.split("/"))
        size = -(-len(todo) // of)
        with tempfile.TemporaryDirectory() as folder:
            work(chosen.out, todo[place * size : (place + 1) * size], Path(folder))
        return
    command = [sys.executable, "-m", "benchmarks.mutants", *sys.argv[1:]]
    shares = [f"{place}/{chosen.workers}" for place in range(chosen.workers)]
    started = [subprocess.Popen([*command, "--share", share], cwd=ROOT) for share in shares]
    failed = [process.wait() for process in started]
    if any(failed):
        raise SystemExit("a worker stopped; run the same command again")
    print(told(sample, known(chosen.out)))


if __name__ == "__main__":
    main()
