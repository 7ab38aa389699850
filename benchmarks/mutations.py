"""Mutations: one comparison, arithmetic operator, number, truth value, `and`/`or` or `not` of a
module turned into its neighbour. Messages, types and versions are left as they are."""

from __future__ import annotations

import ast
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

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
LARGE = 100
"""Numbers from here on are doubled, smaller ones get one more: 10,001 resamples in place of 10,000
are no slip that anybody could notice."""

NO_FIGURES = (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)
"""Messages, and what holds of any code that is right; so is `strict` of a `zip`."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Mutant:
    """One mutation of one module: its `place`-th node becomes the `choice`-th of its neighbours."""

    module: str
    place: int
    choice: int
    line: int
    column: int
    function: str
    """The function that it is in, methods as CLASS.NAME; "" at the top of the module."""
    text: str
    """The line as it stands."""
    before: str
    after: str
    same: int = 0
    """How many mutations before it in the module are called the same."""

    @property
    def name(self) -> str:
        """What is mutated, in words that stay true when lines move."""
        where = f"{self.module}: {self.function}".rstrip(": ")
        again = f", {self.same + 1}" if self.same else ""
        return f"{where}: {self.text}: {self.before} -> {self.after} (column {self.column}{again})"

    @property
    def tree(self) -> ast.Module:
        """The whole module, mutated; every other node keeps its line."""
        tree = ast.parse((ROOT / self.module).read_text())
        node = [old for old, _ in _code(tree)][self.place]
        changed = _Exchange(node, _neighbours(node)[self.choice]).visit(tree)
        return ast.Module(ast.fix_missing_locations(changed).body, [])

    @property
    def key(self) -> str:
        """What a result is stored under: the mutation, and the module as it stands."""
        text = (ROOT / self.module).read_text()
        said = [self.module, self.place, self.choice, self.after, text]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def mutants(module: str) -> list[Mutant]:
    """Every mutation of a module."""
    text = (ROOT / module).read_text()
    lines = text.splitlines()
    found: list[Mutant] = []
    named: Counter[str] = Counter()
    for place, (node, function) in enumerate(_code(ast.parse(text))):
        for choice, after in enumerate(_neighbours(node)):
            line: int = getattr(node, "lineno", 1)
            words = (function, lines[line - 1].strip(), ast.unparse(node), ast.unparse(after))
            column: int = getattr(node, "col_offset", 0)
            mutant = Mutant(module, place, choice, line, column, *words)
            found.append(replace(mutant, same=named[mutant.name]))
            named[mutant.name] += 1
    return found


def _code(node: ast.AST, within: str = "") -> Iterator[tuple[ast.AST, str]]:
    """The nodes of a module that figures follow from, each with the function that it is in: no
    annotation, decorator, version or message, and no alias of a type."""
    for child in _parts(node):
        name = within
        if isinstance(child, (ast.ClassDef, Function)):
            name = f"{within}.{child.name}".lstrip(".")
        yield child, name
        yield from _code(child, name)


def _parts(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, NO_FIGURES):
        return
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "zip":
        yield from node.args
        return
    if isinstance(node, ast.AnnAssign):
        yield from [node.value] if node.value else []
        return
    if isinstance(node, Function):
        defaults = [part for part in node.args.kw_defaults if part is not None]
        yield from [*node.args.defaults, *defaults, *node.body]
        return
    if isinstance(node, ast.ClassDef):
        yield from node.body
        return
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Assign) and _is_no_code(child):
            continue
        yield child


def _is_no_code(node: ast.Assign) -> bool:
    """A version, or another name of a type (`A | None`, at the top of a module)."""
    name = ast.unparse(node.targets[0])
    union = isinstance(node.value, ast.BinOp) and isinstance(node.value.op, ast.BitOr)
    return "VERSION" in name or (union and name[:1].isupper() and not name.isupper())


def _neighbours(node: ast.AST) -> list[ast.expr]:
    """What the node could have been by a slip."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        ops = [COMPARISONS[type(node.ops[0])](), *node.ops[1:]]
        return [ast.Compare(node.left, ops, node.comparators)]
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        if _is_text(node.left) or _is_text(node.right):
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
        return [ast.Constant(value + 1 if abs(value) < LARGE else 2 * value)]
    return []


def _is_text(node: ast.expr) -> bool:
    """A text, or a path's part: what no arithmetic is done with."""
    return isinstance(node, ast.JoinedStr) or isinstance(getattr(node, "value", None), str)


class _Exchange(ast.NodeTransformer):
    def __init__(self, place: ast.AST, after: ast.expr) -> None:
        self.place, self.after = place, after

    def visit(self, node: ast.AST) -> Any:
        return self.after if node is self.place else self.generic_visit(node)
