"""`where`: a checked SQL predicate over columns, evaluated with unmeasured cells as null.

polars parses the text (`pl.sql_expr`, no `eval`) and follows three-valued logic, so that the
planner is the filter itself: false means the row is finished, null means something that matters is
unmeasured. That holds only for a subset of SQL, so the expression tree is walked first and
everything else is refused by name: COALESCE, IS NULL and CASE would decide rows before they are
measured, window functions and aggregates depend on the shard.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from core.errors import UserError, nearest
from synth.filters import sql_tree
from synth.filters.sql_tree import COMPARISONS, Tree
from synth.measures import Field_

EQUALITIES = ("Eq", "NotEq")
MIRRORED = {"Lt": "Gt", "LtEq": "GtEq", "Gt": "Lt", "GtEq": "LtEq"}
JOINS: dict[str, Callable[..., pl.Expr]] = {
    "AND": operator.and_,
    "OR": operator.or_,
    "NOT": operator.invert,
}
PATTERNS = {"StartsWith": "starts with", "EndsWith": "ends with", "Contains": "matches"}
TEXT_FUNCTIONS = {
    ("StringExpr", "LenChars"): ("LENGTH", Field_("number")),
    ("StringExpr", "LenBytes"): ("LENGTH", Field_("number")),
    ("StringExpr", "Lowercase"): ("LOWER", Field_("text")),
    ("StringExpr", "Uppercase"): ("UPPER", Field_("text")),
}
"""Functions of a text column: (name in SQL, what their value is)."""
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
    "SubPlan": "a subquery",
    "Mean": "AVG",
    "Cast": "CAST",
}
"""What SQL calls some of what is refused, by polars' name."""
ARITHMETIC = {
    "Plus": "+",
    "Minus": "-",
    "Multiply": "*",
    "Mul": "*",
    "Divide": "/",
    "Div": "/",
    "TrueDivide": "/",
    "RustDivide": "/",
    "FloorDivide": "//",
    "Modulus": "%",
    "Rem": "%",
}
"""The same of what computes."""
SAFE = (
    "AND, OR, NOT, comparisons, IN, BETWEEN, LIKE, LENGTH, LOWER, UPPER and ARRAY_CONTAINS over "
    "measured columns "
    "(anything else could decide rows that are not measured yet)"
)


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

    def terms(self) -> Iterator[Node]:
        """What the top-level ANDs join, in the order written."""
        if self.op != "AND":
            yield self
            return
        for child in self.children:
            yield from child.terms()

    def needs(self, columns: frozenset[str]) -> pl.Expr:
        """Where an answer in one of `columns` could still decide this node (boolean, never null).

        A node that is already true or false needs nothing; a null leaf needs the columns it reads.
        """
        if not self.children:
            return self.expr.is_null() if self.columns & columns else pl.lit(False)
        below = [child.needs(columns) for child in self.children]
        return self.expr.is_null() & pl.any_horizontal(below)

    def with_answers(self, columns: frozenset[str]) -> Node:
        """The same node over answers: a leaf that reads one of `columns` becomes the boolean column
        that is named by the leaf's text."""
        if self.children:
            children = tuple(child.with_answers(columns) for child in self.children)
            return replace(self, expr=_joined(self.op, children), children=children)
        return replace(self, expr=pl.col(self.text)) if self.columns & columns else self


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
        return list(self.root.terms())


def parse(text: str, columns: Mapping[str, Field_], at: str = "where") -> Where:
    """Parse and check a predicate against the declared columns.

    `at` names its place in a recipe for the error sentence. Raises UserError for a syntax error, an
    unknown column (with the nearest name), a literal that is no label of the column it is compared
    with, a non-boolean result, and everything outside the safe subset.
    """
    try:
        tree = sql_tree.read(text)
    except (pl.exceptions.PolarsError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{at}: cannot read {text!r} as a SQL predicate ({reason}).") from error
    try:
        root = _Checker(columns, at).boolean(tree)
    except RecursionError as error:
        raise UserError(f"{at}: more conditions than can be read; use IN, or fewer.") from error
    except pl.exceptions.PolarsError as error:  # JSON has no infinity: the number is not written
        raise UserError(f"{at}: a number in {text!r} is beyond every float; correct it.") from error
    if not root.columns:
        raise UserError(
            f"{at}: {text!r} names no column, so it keeps every row or none; "
            "leave `where` out to keep every row."
        )
    return Where(text, root)


@dataclass(frozen=True)
class _Operand:
    """What a test is about: a column, or a function of one; `field` is what its value is."""

    column: str
    field: Field_
    text: str
    expr: pl.Expr

    def leaf(self, expr: pl.Expr, test: str) -> Node:
        return Node(expr, f"{self.text} {test}", frozenset({self.column}))


class _Checker:
    """Walks polars' serialized expression once, refusing what is in neither table of nodes."""

    def __init__(self, columns: Mapping[str, Field_], at: str) -> None:
        self.columns = columns
        self.at = at

    def fail(self, what: str) -> UserError:
        return UserError(f"{self.at}: {what}.")

    def refuse(self, name: str) -> UserError:
        if name in ARITHMETIC:
            return self.fail(
                f"`where` does not calculate ({ARITHMETIC[name]}): compare a column with a number "
                "or with another column (the difference of the rewards is reward_difference); what "
                "has to be worked out can be a column of its own"
            )
        return self.fail(f"{REFUSED.get(name, name)} is not allowed in `where`; use {SAFE}")

    def boolean(self, tree: Tree) -> Node:
        """Check a node whose value must be true, false or null."""
        if tree.kind not in _BOOLEAN:
            raise self.refuse(tree.name)
        return _BOOLEAN[tree.kind](self, tree)

    def joined(self, tree: Tree) -> Node:
        """AND, OR."""
        op = tree.name.upper()
        left, right = sides = tuple(self.boolean(side) for side in tree.inputs)
        texts = [f"({s.text})" if (op, s.op) == ("AND", "OR") else s.text for s in sides]
        columns = left.columns | right.columns
        return Node(_joined(op, sides), f" {op} ".join(texts), columns, sides, op)

    def negated(self, tree: Tree) -> Node:
        """NOT."""
        child = self.boolean(tree.inputs[0])
        text = f"({child.text})" if child.children else child.text
        return Node(~child.expr, f"NOT {text}", child.columns, (child,), "NOT")

    def cast(self, tree: Tree) -> Node:
        """polars wraps what NOT negates in a cast to Boolean; no other cast is allowed."""
        if tree.body["dtype"] != {"Literal": "Boolean"}:
            raise self.refuse("Cast")
        return self.boolean(Tree(tree.body["expr"]))

    def column(self, tree: Tree) -> Node:
        """A column that is true or false by itself."""
        name = tree.body
        kind = self.field(name).kind
        if kind != "bool":
            raise self.fail(
                f"`{name}` alone is not true or false (it is a {kind} column); "
                "compare it with something"
            )
        return Node(tree.expr, name, frozenset({name}))

    def constant(self, tree: Tree) -> Node:
        """TRUE, FALSE."""
        value = tree.value
        if not isinstance(value, bool):
            raise self.fail(f"the result must be true or false, not the constant {value!r}")
        return Node(tree.expr, str(value).upper(), frozenset())

    def comparison(self, tree: Tree) -> Node:
        """A column against a constant, on either side, or against another column."""
        left, right = tree.inputs
        op = tree.name
        if left.constant and not right.constant:
            left, right, op = right, left, MIRRORED.get(op, op)
        subject = self.operand(left)
        if right.constant:
            return self.with_constant(subject, op, right.value)
        return self.with_column(subject, op, self.operand(right))

    def with_constant(self, subject: _Operand, op: str, value: Any) -> Node:
        sign, test = COMPARISONS[op]
        self.check(subject, value, ordering=op not in EQUALITIES)
        # polars compares a float column with a SQL decimal as decimals; as floats the comparison is
        # what the user means
        constant = float(value) if subject.field.kind == "number" else value
        return subject.leaf(test(subject.expr, pl.lit(constant)), f"{sign} {_shown(value)}")

    def with_column(self, subject: _Operand, op: str, other: _Operand) -> Node:
        sign, test = COMPARISONS[op]
        mine, theirs = subject.field, other.field
        alike = (mine.kind, mine.labels) == (theirs.kind, theirs.labels)
        unordered = mine.kind in ("text", "label") and op not in EQUALITIES
        unordered |= mine.kind == "labels"
        if unordered or not alike:
            raise self.fail(
                f"`{subject.column}` ({mine.kind}) and `{other.column}` ({theirs.kind}) "
                f"cannot be compared with {sign}"
            )
        columns = frozenset({subject.column, other.column})
        text = f"{subject.text} {sign} {other.text}"
        return Node(test(subject.expr, other.expr), text, columns)

    def membership(self, tree: Tree) -> Node:
        """IN over constants."""
        tested, constants = tree.inputs
        subject = self.operand(tested)
        if not constants.constant:
            raise self.fail(f"IN on `{subject.column}` needs a list of constants")
        values = constants.values.to_list()
        for value in values:
            self.check(subject, value, ordering=False)
        expr, wanted = subject.expr, pl.Series(values)
        if subject.field.kind == "number":
            expr, wanted = expr.cast(pl.Float64), pl.Series(map(float, values), dtype=pl.Float64)
        elif subject.field.labels:
            wanted = pl.Series(values, dtype=pl.Enum(subject.field.labels))
        shown = ", ".join(map(_shown, values))
        return subject.leaf(expr.is_in(pl.lit(wanted).implode()), f"IN ({shown})")

    def pattern(self, tree: Tree) -> Node:
        """LIKE, which polars turns into a test of how the text begins, ends or matches."""
        tested, constant = tree.inputs
        subject = self.text_operand(tested)
        pattern = constant.value if constant.constant else None
        if not isinstance(pattern, str):
            raise self.fail(f"LIKE on `{subject.column}` needs a fixed pattern in quotes")
        return subject.leaf(tree.expr, f"{PATTERNS[tree.name]} {pattern!r}")

    def listed(self, tree: Tree) -> Node:
        """ARRAY_CONTAINS: whether a list of labels holds one."""
        tested, constant = tree.inputs
        subject = self.operand(tested)
        members, column = subject.field.members, subject.column
        if subject.field.kind != "labels":
            kind = f"no list but a {subject.field.kind} column"
            raise self.fail(f"ARRAY_CONTAINS looks into a list; `{column}` is {kind}")
        label = constant.value if constant.constant else None
        if not isinstance(label, str):
            raise self.fail(f"ARRAY_CONTAINS on `{column}` needs a fixed label in quotes")
        if members and label not in members:
            raise self.fail(f"{label!r} is no label of `{column}`{nearest(label, members)}")
        return subject.leaf(tree.expr, f"holds {_shown(label)}")

    def operand(self, tree: Tree) -> _Operand:
        """A column, or LENGTH / LOWER / UPPER of a text column."""
        if tree.kind == ("", "Column"):
            column = tree.body
            return _Operand(column, self.field(column), column, tree.expr)
        if tree.kind in TEXT_FUNCTIONS:
            function, field = TEXT_FUNCTIONS[tree.kind]
            inner = self.text_operand(tree.inputs[0])
            return _Operand(inner.column, field, f"{function}({inner.text})", tree.expr)
        if tree.constant:
            raise self.fail(
                "a comparison between two constants decides every row alike; compare a column"
            )
        raise self.refuse(tree.name)

    def text_operand(self, tree: Tree) -> _Operand:
        subject = self.operand(tree)
        field = subject.field
        if field.kind != "text":
            hint = "use = or IN with its labels" if field.labels else "it is not a text column"
            raise self.fail(f"`{subject.column}` is a {field.kind} column: {hint}")
        return subject

    def field(self, name: str) -> Field_:
        if name not in self.columns:
            raise self.fail(f"unknown column `{name}`{nearest(name, self.columns)}")
        return self.columns[name]

    def check(self, subject: _Operand, value: Any, *, ordering: bool) -> None:
        """Refuse a constant that can never equal a value of the column, or, where it is `ordering`,
        has no order among them."""
        column, field = f"`{subject.column}`", subject.field
        if field.kind == "labels":
            raise self.fail(f"{column} is a list; ask ARRAY_CONTAINS({subject.column}, 'label')")
        if value is None or (isinstance(value, float) and math.isnan(value)):
            shown = "NULL" if value is None else "NaN"
            raise self.fail(
                f"{column} compared with {shown} is never true; leave that comparison out"
            )
        if isinstance(value, (int, float)) and abs(value) > _LARGEST:
            raise self.fail(
                f"{column} compared with a number that is beyond every float: correct it"
            )
        if field.labels and value not in field.labels:
            near = nearest(str(value), field.labels)
            raise self.fail(f"{value!r} is not a label of {column}{near}")
        fits, complaint = _CONSTANTS.get(field.kind, (None, ""))
        if fits and not fits(value):
            raise self.fail(f"{column} {complaint.format(value)}")
        if ordering and field.kind == "label":
            raise self.fail(f"the labels of {column} have no order; use = or IN")
        if ordering and field.kind == "text":
            raise self.fail(f"{column} is text and would compare alphabetically; use =, IN or LIKE")


_LARGEST = sys.float_info.max
_CONSTANTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "number": (lambda value: not isinstance(value, bool | str), "is a number; {!r} is not"),
    "bool": (lambda value: isinstance(value, bool), "is true or false; {!r} is neither"),
    "text": (lambda value: isinstance(value, str), "is text; {!r} is not"),
}
"""Kind of column without labels -> (whether a constant can be compared with it, what to say)."""

_BOOLEAN: dict[tuple[str, str], Callable[[_Checker, Tree], Node]] = {
    ("BinaryExpr", "And"): _Checker.joined,
    ("BinaryExpr", "Or"): _Checker.joined,
    ("Boolean", "Not"): _Checker.negated,
    ("Sql", "IsIn"): _Checker.membership,
    ("ListExpr", "Contains"): _Checker.listed,
    ("", "Cast"): _Checker.cast,
    ("", "Column"): _Checker.column,
    ("", "Literal"): _Checker.constant,
    **{("BinaryExpr", op): _Checker.comparison for op in COMPARISONS},
    **{("StringExpr", test): _Checker.pattern for test in PATTERNS},
}
"""The nodes that may decide a row, by kind; nothing else may."""


def _joined(op: str, nodes: tuple[Node, ...]) -> pl.Expr:
    return JOINS[op](*(node.expr for node in nodes))


def _shown(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)
