"""`where`: a checked SQL predicate over columns, evaluated with unmeasured cells as null.

polars parses the text (`pl.sql_expr`, no `eval`) and follows three-valued logic, so that the
planner is the filter itself: false means the row is finished, null means something that matters is
unmeasured. That holds only for a subset of SQL, so the expression tree is walked first and
everything else is refused by name: COALESCE, IS NULL and CASE would decide rows before they are
measured, window functions and aggregates depend on the shard.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from core.errors import UserError, nearest
from synth.measures import Field_

COMPARISONS = {"Eq": "=", "NotEq": "<>", "Lt": "<", "LtEq": "<=", "Gt": ">", "GtEq": ">="}
REFUSED = {
    "Coalesce": "COALESCE",
    "IsNull": "IS NULL",
    "IsNotNull": "IS NOT NULL",
    "MaxHorizontal": "GREATEST",
    "MinHorizontal": "LEAST",
    "EqValidity": "<=> / IS NOT DISTINCT FROM",
    "NotEqValidity": "IS DISTINCT FROM",
    "Ternary": "CASE / IF",
    "Over": "a window function",
    "Rank": "RANK",
    "Plus": "+",
    "Minus": "-",
    "Multiply": "*",
    "Divide": "/",
    "TrueDivide": "/",
    "RustDivide": "/",
    "FloorDivide": "//",
    "Modulus": "%",
    "SubPlan": "a subquery",
    "Mean": "AVG",
    "Cast": "CAST",
}
TEXT_TESTS = {"StartsWith", "EndsWith", "Contains"}


@dataclass(frozen=True)
class Node:
    """One boolean node of the predicate: a leaf test, or AND / OR / NOT over children."""

    expr: pl.Expr
    text: str
    columns: frozenset[str]
    children: tuple[Node, ...] = ()
    op: str = ""

    def leaves(self) -> Iterator[Node]:
        """The leaf tests below this node."""
        if not self.children:
            yield self
        for child in self.children:
            yield from child.leaves()

    def needs(self, columns: frozenset[str]) -> pl.Expr:
        """Where an answer in one of `columns` could still decide this node (boolean, never null).

        A node that is already true or false needs nothing; a null leaf needs the columns it reads.
        """
        if not self.children:
            return self.expr.is_null() if self.columns & columns else pl.lit(False)
        return self.expr.is_null() & pl.any_horizontal(
            [child.needs(columns) for child in self.children]
        )

    def with_answers(self, columns: frozenset[str]) -> Node:
        """The same node over answers: a leaf that reads one of `columns` becomes the boolean column
        that is named by the leaf's text."""
        if not self.children:
            return replace(self, expr=pl.col(self.text)) if self.columns & columns else self
        parts = tuple(child.with_answers(columns) for child in self.children)
        exprs = [part.expr for part in parts]
        joined = (
            ~exprs[0]
            if self.op == "NOT"
            else exprs[0] & exprs[1]
            if self.op == "AND"
            else exprs[0] | exprs[1]
        )
        return replace(self, expr=joined, children=parts)


@dataclass(frozen=True)
class Where:
    """A checked predicate."""

    text: str
    root: Node

    @property
    def columns(self) -> frozenset[str]:
        """Every column it names."""
        return self.root.columns

    def predicates(self) -> list[Node]:
        """Its top-level AND terms, in the order written (the funnel's steps)."""
        found: list[Node] = []
        stack = [self.root]
        while stack:
            node = stack.pop()
            if node.op == "AND":
                stack += reversed(node.children)
            else:
                found.append(node)
        return found


def parse(text: str, columns: Mapping[str, Field_], at: str = "where") -> Where:
    """Parse and check a predicate against the declared columns.

    `at` names its place in a recipe for the error sentence. Raises UserError for a syntax error, an
    unknown column (with the nearest name), a literal that is no label of the column it is compared
    with, a non-boolean result, and everything outside the safe subset.
    """
    try:
        expr = pl.sql_expr(text)
        tree = json.loads(expr.meta.serialize(format="json"))
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise UserError(
            f"{at}: cannot read {text!r} as a SQL predicate ({str(error).splitlines()[0]})."
        ) from error
    root = _Checker(columns, at).boolean(tree)
    if not root.columns:
        raise UserError(
            f"{at}: {text!r} names no column, so it keeps every row or none; leave `where` out to keep every row."
        )
    return Where(text, root)


class _Checker:
    """Walks polars' serialized expression once, refusing what is outside the subset."""

    def __init__(self, columns: Mapping[str, Field_], at: str) -> None:
        self.columns = columns
        self.at = at

    def fail(self, what: str) -> UserError:
        return UserError(f"{self.at}: {what}.")

    def refuse(self, name: str) -> UserError:
        return self.fail(
            f"{REFUSED.get(name, name)} is not allowed in `where`; use AND, OR, NOT, comparisons, IN, BETWEEN, LIKE, "
            "LENGTH, LOWER and UPPER over measured columns (anything else could decide rows that are not measured yet)"
        )

    def boolean(self, node: Any) -> Node:
        """Check a node whose value must be true, false or null."""
        kind: str = next(iter(node)) if isinstance(node, dict) else str(node)
        body: Any = node[kind] if isinstance(node, dict) else None
        if kind == "BinaryExpr" and body["op"] in ("And", "Or"):
            sides = (self.boolean(body["left"]), self.boolean(body["right"]))
            op = body["op"].upper()
            text = f" {op} ".join(
                f"({s.text})" if s.op == "OR" and op == "AND" else s.text for s in sides
            )
            expr = sides[0].expr & sides[1].expr if op == "AND" else sides[0].expr | sides[1].expr
            return Node(expr, text, sides[0].columns | sides[1].columns, sides, op)
        if kind == "BinaryExpr" and body["op"] in COMPARISONS:
            return self.comparison(body["left"], body["op"], body["right"])
        if kind == "BinaryExpr":
            raise self.refuse(body["op"])
        if kind == "Function":
            return self.function(node, body)
        if kind == "Cast":  # polars wraps what NOT negates in a cast to Boolean
            if body["dtype"] == {"Literal": "Boolean"}:
                return self.boolean(body["expr"])
            raise self.refuse("Cast")
        if kind == "Column":
            field = self.field(body)
            if field.kind != "bool":
                raise self.fail(
                    f"`{body}` alone is not true or false (it is a {field.kind} column); compare it with something"
                )
            return Node(_expr(node), body, frozenset({body}))
        if kind == "Literal":
            if body == {"Scalar": {"Boolean": True}} or body == {"Scalar": {"Boolean": False}}:
                return Node(
                    _expr(node), "TRUE" if body["Scalar"]["Boolean"] else "FALSE", frozenset()
                )
            raise self.fail(
                f"the result must be true or false, not the constant {_literal(node)!r}"
            )
        if kind == "Agg":
            raise self.refuse(next(iter(body)) if isinstance(body, dict) else "an aggregate")
        raise self.refuse(kind)

    def function(self, node: Any, body: Any) -> Node:
        name = body["function"]
        inputs = body["input"]
        if name == {"Boolean": "Not"}:
            child = self.boolean(inputs[0])
            text = (
                f"NOT ({child.text})"
                if child.children or child.op == "NOT"
                else f"NOT {child.text}"
            )
            return Node(~child.expr, text, child.columns, (child,), "NOT")
        if isinstance(name, dict) and _name(name.get("Sql")) == "Binary":  # decimals: a > -12.5
            return self.comparison(inputs[0], name["Sql"]["Binary"], inputs[1])
        if isinstance(name, dict) and _name(name.get("Sql")) == "IsIn":
            return self.membership(inputs)
        if isinstance(name, dict) and _name(name.get("StringExpr")) in TEXT_TESTS:
            column, text = self.text_operand(inputs[0])
            pattern = _literal(inputs[1]) if "Literal" in inputs[1] else None
            if not isinstance(pattern, str):
                raise self.fail(f"LIKE on `{column}` needs a fixed pattern in quotes")
            verb = {"StartsWith": "starts with", "EndsWith": "ends with", "Contains": "matches"}[
                _name(name["StringExpr"])
            ]
            return Node(_expr(node), f"{text} {verb} {pattern!r}", frozenset({column}))
        raise self.refuse(_name(next(iter(name.values())) if isinstance(name, dict) else name))

    def comparison(self, left: Any, op: str, right: Any) -> Node:
        if op not in COMPARISONS:
            raise self.refuse(op)
        if "Literal" in left and "Literal" not in right:
            flipped = {"Lt": "Gt", "LtEq": "GtEq", "Gt": "Lt", "GtEq": "LtEq"}
            return self.comparison(right, flipped.get(op, op), left)
        sign = COMPARISONS[op]
        column, field, text = self.operand(left)
        if "Literal" in right:
            value = _literal(right)
            self.check_literal(column, field, value, ordering=op not in ("Eq", "NotEq"))
            shown = f"'{value}'" if isinstance(value, str) else str(value)
            # polars compares a float column with a SQL decimal as decimals; as floats the
            # comparison is what the user means
            constant = pl.lit(float(value)) if field.kind == "number" else pl.lit(value)
            return Node(
                _compare(_expr(left), op, constant), f"{text} {sign} {shown}", frozenset({column})
            )
        other, other_field, other_text = self.operand(right)
        if (field.kind, field.labels) != (other_field.kind, other_field.labels) or (
            field.kind in ("text", "label") and op not in ("Eq", "NotEq")
        ):
            raise self.fail(
                f"`{column}` ({field.kind}) and `{other}` ({other_field.kind}) cannot be compared with {sign}"
            )
        return Node(
            _compare(_expr(left), op, _expr(right)),
            f"{text} {sign} {other_text}",
            frozenset({column, other}),
        )

    def membership(self, inputs: list[Any]) -> Node:
        column, field, text = self.operand(inputs[0])
        if "Literal" not in inputs[1]:
            raise self.fail(f"IN on `{column}` needs a list of constants")
        values = pl.select(_expr(inputs[1])).to_series()
        listed = (
            values.explode().to_list() if isinstance(values.dtype, pl.List) else values.to_list()
        )
        for value in listed:
            self.check_literal(column, field, value, ordering=False)
        dtype = (
            pl.Float64
            if field.kind == "number"
            else pl.Enum(list(field.labels))
            if field.labels
            else None
        )
        operand = _expr(inputs[0]).cast(pl.Float64) if field.kind == "number" else _expr(inputs[0])
        wanted = [float(v) for v in listed] if field.kind == "number" else listed
        shown = ", ".join(f"'{v}'" if isinstance(v, str) else str(v) for v in listed)
        return Node(
            operand.is_in(pl.lit(pl.Series(wanted, dtype=dtype)).implode()),
            f"{text} IN ({shown})",
            frozenset({column}),
        )

    def operand(self, node: Any) -> tuple[str, Field_, str]:
        """A column, or LENGTH / LOWER / UPPER of a text column: (column, what its value is,
        text)."""
        kind, body = next(iter(node.items()))
        if kind == "Column":
            return body, self.field(body), body
        if (
            kind == "Function"
            and isinstance(body["function"], dict)
            and "StringExpr" in body["function"]
        ):
            name = _name(body["function"]["StringExpr"])
            if name in ("LenChars", "LenBytes"):
                column, text = self.text_operand(body["input"][0])
                return column, Field_("number"), f"LENGTH({text})"
            if name in ("Lowercase", "Uppercase"):
                column, text = self.text_operand(body["input"][0])
                return column, Field_("text"), f"{name[:5].upper()}({text})"
            raise self.refuse(name)
        if kind == "Function":
            name = body["function"]
            raise self.refuse(_name(next(iter(name.values())) if isinstance(name, dict) else name))
        if kind == "BinaryExpr":
            raise self.refuse(body["op"])
        if kind == "Agg":
            raise self.refuse(next(iter(body)))
        if kind == "Literal":
            raise self.fail(
                "a comparison between two constants decides every row alike; compare a column"
            )
        raise self.refuse(kind)

    def text_operand(self, node: Any) -> tuple[str, str]:
        column, field, text = self.operand(node)
        if field.kind != "text":
            hint = "use = or IN with its labels" if field.labels else "it is not a text column"
            raise self.fail(f"`{column}` is a {field.kind} column: {hint}")
        return column, text

    def field(self, name: str) -> Field_:
        if name not in self.columns:
            raise self.fail(f"unknown column `{name}`{nearest(name, self.columns)}")
        return self.columns[name]

    def check_literal(self, column: str, field: Field_, value: Any, ordering: bool) -> None:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            raise self.fail(
                f"`{column}` compared with {'NULL' if value is None else 'NaN'} is never true; leave that comparison out"
            )
        if field.labels:
            if value not in field.labels:
                raise self.fail(
                    f"{value!r} is not a label of `{column}`{nearest(str(value), field.labels)}"
                )
            if ordering and field.kind != "ordered":
                raise self.fail(f"the labels of `{column}` have no order; use = or IN")
        elif field.kind == "number" and (isinstance(value, (bool, str))):
            raise self.fail(f"`{column}` is a number; {value!r} is not")
        elif field.kind == "bool" and not isinstance(value, bool):
            raise self.fail(f"`{column}` is true or false; {value!r} is neither")
        elif field.kind == "text":
            if not isinstance(value, str):
                raise self.fail(f"`{column}` is text; {value!r} is not")
            if ordering:
                raise self.fail(
                    f"`{column}` is text and would compare alphabetically; use =, IN or LIKE"
                )


def _name(function: Any) -> str:
    return str(next(iter(function)) if isinstance(function, dict) and function else function)


def _expr(node: Any) -> pl.Expr:
    return pl.Expr.deserialize(io.BytesIO(json.dumps(node).encode()), format="json")


def _literal(node: Any) -> Any:
    values = pl.select(_expr(node)).to_series()
    value: Any = values.to_list()[0] if len(values) == 1 else values.to_list()
    return float(value) if type(value).__name__ == "Decimal" else value


def _compare(left: pl.Expr, op: str, right: pl.Expr) -> pl.Expr:
    return {
        "Eq": left == right,
        "NotEq": left != right,
        "Lt": left < right,
        "LtEq": left <= right,
        "Gt": left > right,
        "GtEq": left >= right,
    }[op]
