"""polars' serialized expression as a tree whose nodes have names. Knows no columns and refuses
nothing."""

from __future__ import annotations

import io
import json
import operator
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import polars as pl

COMPARISONS: dict[str, tuple[str, Callable[..., pl.Expr]]] = {
    "Eq": ("=", operator.eq),
    "NotEq": ("<>", operator.ne),
    "Lt": ("<", operator.lt),
    "LtEq": ("<=", operator.le),
    "Gt": (">", operator.gt),
    "GtEq": (">=", operator.ge),
}
"""polars' name of a comparison -> (its sign in SQL, its function)."""


class Tree:
    """One node. `kind` is (group, name): ("BinaryExpr", "And"), ("StringExpr", "Contains"),
    ("", "Column"); `inputs` are the nodes below, `body` is what the node says besides."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.kind = _kind(raw)
        self.body = _opened(raw)[1]

    @property
    def name(self) -> str:
        """What the node does, without its group."""
        return self.kind[1]

    @property
    def inputs(self) -> list[Tree]:
        """The arguments of a function, or the two sides of an operator."""
        body = self.body
        below = body["input"] if "input" in body else [body["left"], body["right"]]
        return list(map(Tree, below))

    @property
    def constant(self) -> bool:
        """Whether it is a constant, or a list of constants."""
        return self.kind == ("", "Literal")

    @property
    def expr(self) -> pl.Expr:
        """The node as a polars expression."""
        return pl.Expr.deserialize(io.BytesIO(json.dumps(self.raw).encode()), format="json")

    @property
    def values(self) -> pl.Series:
        """What the constant holds."""
        series = pl.select(self.expr).to_series()
        return series.explode() if isinstance(series.dtype, pl.List) else series

    @property
    def value(self) -> Any:
        """The constant itself; a decimal as a float."""
        values = self.values.to_list()
        value = values[0] if len(values) == 1 else values
        return float(value) if isinstance(value, Decimal) else value


def read(text: str) -> Tree:
    """The tree of a SQL expression. Raises polars' errors, and ValueError."""
    return Tree(json.loads(pl.sql_expr(text).meta.serialize(format="json")))


def _kind(raw: Any) -> tuple[str, str]:
    name, body = _opened(raw)
    if name == "BinaryExpr":
        return name, body["op"]
    if name == "Agg":
        return name, _opened(body)[0]
    if name != "Function":
        return "", name
    group, function = _opened(body["function"])
    if function is None:
        return "", group
    member, sign = _opened(function)
    # with a decimal (a > -12.5), and for some arithmetic, an operator is a function of polars' own
    return ("BinaryExpr", str(sign)) if member == "Binary" else (group, member)


def _opened(raw: Any) -> tuple[str, Any]:
    """A node is `{name: body}`, or a name alone."""
    return next(iter(raw.items())) if isinstance(raw, dict) and raw else (str(raw), None)
