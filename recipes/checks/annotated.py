"""What the arguments of other people's functions ask for, read from their annotations as they are
written: a recipe's values are texts, numbers, truth values, lists and mappings."""

from __future__ import annotations

import ast
import inspect
import types
import typing
from collections.abc import Iterator
from typing import Any

from core.errors import UserError
from train.settings.values import fits, shown, words

KINDS: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "dict": dict,
    "Dict": dict,
    "Mapping": dict,
    "list": list,
    "List": list,
    "tuple": list,
    "Sequence": list,
    "Any": Any,
    "object": Any,
}
"""Names in annotations of what a recipe can write; other classes it cannot."""


def arguments(function: Any) -> dict[str, Any]:
    """Name -> what a function's (or a class's) argument asks for, without those of `**`."""
    named = inspect.signature(function).parameters.values()
    return {
        each.name: _asked(each.annotation)
        for each in named
        if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL) and each.name != "self"
    }


def _asked(annotation: Any) -> Any:
    """The part of an annotation that a recipe can write; Any where that is nothing, or unsaid."""
    if annotation is inspect.Parameter.empty:
        return Any
    written = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    try:
        kinds = tuple(_kinds(ast.parse(written, mode="eval").body))
    except SyntaxError:
        return Any
    alone = all(each is types.NoneType for each in kinds)
    return Any if alone else typing.Union[kinds]  # noqa: UP007 - of a number that is not known


def _kinds(node: ast.expr) -> Iterator[Any]:
    """The alternatives of an annotation."""
    if isinstance(node, ast.BinOp):
        yield from _kinds(node.left)
        yield from _kinds(node.right)
    elif isinstance(node, ast.Constant):
        if node.value is None:
            yield types.NoneType
        elif isinstance(node.value, str):
            yield from _kinds(ast.parse(node.value, mode="eval").body)
    elif isinstance(node, ast.Subscript):
        yield from _of_subscript(_name(node.value), node.slice)
    elif _name(node) in KINDS:
        yield KINDS[_name(node)]


def _of_subscript(name: str, inside: ast.expr) -> Iterator[Any]:
    """Those of `Literal[...]`, `Union[...]`, `Optional[...]`, `dict[...]` and the like."""
    parts = inside.elts if isinstance(inside, ast.Tuple) else [inside]
    if name == "Literal":
        yield typing.Literal[tuple(ast.literal_eval(part) for part in parts)]
    elif name in ("Union", "Optional"):
        for part in parts:
            yield from _kinds(part)
        if name == "Optional":
            yield types.NoneType
    elif name in KINDS:
        yield KINDS[name]


def _name(node: ast.expr) -> str:
    """The last name of `typing.Literal`, say."""
    return str(getattr(node, "attr", "") or getattr(node, "id", ""))


def check(place: str, value: Any, asked: Any) -> None:
    """Raise UserError for a value that an argument does not take. Nothing (null) leaves it to the
    library."""
    if value is None or fits(value, asked):
        return
    needed = " or ".join(dict.fromkeys(each for each in words(asked) if each != "null"))
    raise UserError(f"{place}: needs {needed} (it is {shown(value)}).")
