"""`where`: what is accepted, what is refused by name, and three-valued logic."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from synth.filters.where import parse
from synth.measures import COLUMNS, QUALITY, Field_

FIELDS = {name: field for name, (_, field) in COLUMNS.items()}


def frame() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "input_quality": pl.Series(
                ["very poor", "good", None, "excellent"], dtype=pl.Enum(list(QUALITY))
            ),
            "min_neighbor_distance": [0.0, 0.4, 0.2, None],
            "instruct_reward": [-12.5, -11.0, None, 3.0],
            "instruction": ["a:", "b", "write a list", "C"],
            "language": ["EN", "EN", "DE", None],
            "incomplete": [True, False, False, None],
        }
    )


def values(text: str) -> list[bool | None]:
    return frame().select(parse(text, FIELDS).root.expr.alias("x"))["x"].to_list()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("input_quality >= 'good'", [False, True, None, True]),
        ("input_quality IN ('good', 'very poor')", [True, True, None, False]),
        ("input_quality NOT IN ('good')", [True, False, None, True]),
        ("instruct_reward > -12", [False, True, None, True]),
        ("instruct_reward > -12.25", [False, True, None, True]),
        ("-12 < instruct_reward", [False, True, None, True]),
        ("instruct_reward IN (-11, 3)", [False, True, None, True]),
        ("instruct_reward BETWEEN -12 AND 0", [False, True, None, False]),
        ("instruct_reward NOT BETWEEN -12 AND 0", [True, False, None, True]),
        ("NOT input_quality = 'good'", [True, False, None, True]),
        ("NOT incomplete", [False, True, True, None]),
        ("incomplete = TRUE", [True, False, False, None]),
        ("instruction NOT LIKE '%:'", [False, True, True, True]),
        ("LENGTH(instruction) > 2", [False, False, True, False]),
        ("LOWER(instruction) = 'c'", [False, False, False, True]),
        ("language = 'EN'", [True, True, False, None]),
        ("min_neighbor_distance > 0 AND input_quality >= 'good'", [False, True, None, None]),
        ("min_neighbor_distance > 0.3 OR input_quality >= 'good'", [False, True, None, True]),
        ("input_quality >= 'good' AND FALSE", [False, False, False, False]),
    ],
)
def test_three_valued_result(text: str, expected: list[bool | None]) -> None:
    assert values(text) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "input_quality = 'goood'",
            "'goood' is not a label of `input_quality`; did you mean 'good'?",
        ),
        ("input_quality IN ('good', 'excelent')", "did you mean 'excellent'?"),
        ("input_quality >= 'Good'", "'Good' is not a label"),
        ("input_qualty >= 'good'", "unknown column `input_qualty`; did you mean 'input_quality'?"),
        ("COALESCE(instruct_reward, 0) > 1", "COALESCE is not allowed"),
        ("instruct_reward IS NULL", "IS NULL is not allowed"),
        ("instruct_reward IS NOT NULL", "IS NOT NULL is not allowed"),
        ("CASE WHEN instruct_reward > 1 THEN TRUE ELSE FALSE END", "CASE / IF is not allowed"),
        ("GREATEST(instruct_reward, base_reward) > 1", "GREATEST is not allowed"),
        ("AVG(instruct_reward) > 1", "AVG is not allowed"),
        ("RANK() OVER (ORDER BY instruct_reward) < 3", "is not allowed"),
        ("SUM(instruct_reward) OVER () > 1", "is not allowed"),
        ("instruct_reward <=> base_reward", "is not allowed"),
        ("instruct_reward + 1 > 2", "`where` does not calculate (+): compare a column with"),
        ("ifd * 2 < 1", "`where` does not calculate (*)"),
        ("response_length / instruction_length > 2.5", "`where` does not calculate (/)"),
        ("instruct_reward % 2 = 0", "`where` does not calculate (%)"),
        ("instruct_reward - 1.5 > 2", "`where` does not calculate (-)"),
        ("CAST(instruct_reward AS INT) > 1", "CAST is not allowed"),
        ("instruct_reward > NULL", "NULL is never true"),
        ("instruct_reward IN (1, NULL)", "compared with NULL is never true"),
        ("instruct_reward > 'NaN'", "is a number"),
        ("instruct_reward", "alone is not true or false"),
        ("LENGTH(instruction)", "is not allowed"),
        ("TRUE", "names no column"),
        ("1 < 2", "two constants"),
        ("instruction > 'abc'", "would compare alphabetically"),
        ("task_category > 'Math'", "have no order"),
        ("input_quality LIKE 'good%'", "use = or IN with its labels"),
        ("input_quality = difficulty", "cannot be compared"),
        ("instruct_reward > (SELECT 1)", "a subquery is not allowed"),
        ("instruct_reward >", "cannot read"),
        ("frobnicate(instruct_reward) > 1", "unsupported function 'frobnicate'"),
    ],
)
def test_refused_with_a_sentence(text: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        parse(text, FIELDS, at="arms.magpie.where")
    assert says in str(error.value)
    assert str(error.value).startswith("arms.magpie.where: ")


def test_only_the_null_leaf_that_can_still_decide_is_needed() -> None:
    where = parse(
        "(input_quality >= 'good' AND min_neighbor_distance > 0.3) OR instruct_reward > 0", FIELDS
    )
    needs_quality = (
        frame().select(where.root.needs(frozenset({"input_quality"})).alias("x"))["x"].to_list()
    )
    needs_distance = (
        frame()
        .select(where.root.needs(frozenset({"min_neighbor_distance"})).alias("x"))["x"]
        .to_list()
    )
    # row 2: distance already refuses the left side, so quality cannot matter; only the reward is
    # asked for
    assert needs_quality == [False, False, False, False]
    assert needs_distance == [False, False, False, False]
    assert frame().select(where.root.needs(frozenset({"instruct_reward"})).alias("x"))[
        "x"
    ].to_list() == [False, False, True, False]


def test_predicates_are_the_top_level_terms_in_order() -> None:
    where = parse(
        "input_quality >= 'good' AND (language = 'EN' OR incomplete) AND instruct_reward > -12",
        FIELDS,
    )
    assert [p.text for p in where.predicates()] == [
        "input_quality >= 'good'",
        "language = 'EN' OR incomplete",
        "instruct_reward > -12",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "instruction NOT LIKE '%:'",
        "NOT (instruction LIKE '%:' OR instruct_reward > -12)",
        "LENGTH(instruction) > 2 AND input_quality >= 'good' OR instruction IN ('b', 'C')",
        "instruction = LOWER(language) OR NOT incomplete",
    ],
)
def test_a_test_on_a_text_can_be_answered_beforehand(text: str) -> None:
    where = parse(text, FIELDS)
    answered = where.root.with_answers(frozenset({"instruction"}))
    leaves = [leaf for leaf in where.root.leaves() if "instruction" in leaf.columns]
    short = frame().select(
        pl.exclude("instruction"), *[leaf.expr.alias(leaf.text) for leaf in leaves]
    )
    assert short.select(answered.expr.alias("x"))["x"].to_list() == values(text)
    assert answered.columns == where.root.columns, "it still names what it is about"
    assert [leaf.text for leaf in answered.leaves()] == [leaf.text for leaf in where.root.leaves()]


# ------------------------------------------------------- random predicates, worked out row by row

ROWS = [dict(zip("abc", cells, strict=True)) for cells in product([0, 1, None], repeat=3)]
NUMBERS = {name: Field_("number") for name in "abc"}


def drawn(rng: random.Random, depth: int) -> tuple[Any, ...]:
    """A random predicate: (AND | OR, left, right), (NOT, inner), or (column,) for column > 0."""
    op = rng.choice(["AND", "OR", "NOT", "leaf"] if depth else ["leaf"])
    if op == "leaf":
        return (rng.choice("abc"),)
    return (op, *(drawn(rng, depth - 1) for _ in range(1 if op == "NOT" else 2)))


def written(node: tuple[Any, ...]) -> str:
    if len(node) == 1:
        return f"{node[0]} > 0"
    if len(node) == 2:
        return f"NOT ({written(node[1])})"
    return f"({written(node[1])}) {node[0]} ({written(node[2])})"


def value(node: tuple[Any, ...], row: dict[str, int | None]) -> bool | None:
    """Kleene's logic: unknown where what is unmeasured could make it either."""
    if len(node) == 1:
        cell = row[node[0]]
        return None if cell is None else cell > 0
    if len(node) == 2:
        inner = value(node[1], row)
        return None if inner is None else not inner
    sides = [value(side, row) for side in node[1:]]
    decides = node[0] == "OR"
    if decides in sides:
        return decides
    return None if None in sides else not decides


def asked(node: tuple[Any, ...], row: dict[str, int | None], columns: set[str]) -> bool:
    """Whether a cell of these columns is unmeasured and behind nothing that is decided."""
    if value(node, row) is not None:
        return False
    if len(node) == 1:
        return node[0] in columns
    return any(asked(side, row, columns) for side in node[1:])


@pytest.mark.parametrize("seed", range(40))
def test_a_predicate_is_kleenes_logic_and_asks_only_for_what_could_decide_it(seed: int) -> None:
    node = drawn(random.Random(seed), 4)
    where = parse(written(node), NUMBERS)
    table = pl.DataFrame(ROWS, schema=dict.fromkeys("abc", pl.Float64))

    def of(expr: pl.Expr) -> list[bool | None]:
        return table.with_columns(expr.alias("x"))["x"].to_list()

    assert of(where.root.expr) == [value(node, row) for row in ROWS]
    for columns in ({"a"}, {"b", "c"}):
        expected = [asked(node, row, columns) for row in ROWS]
        assert of(where.root.needs(frozenset(columns))) == expected
    # what a person reads of it means the same, whole and term by term
    assert of(parse(where.root.text, NUMBERS).root.expr) == of(where.root.expr)
    terms = [parse(term.text, NUMBERS).root.expr for term in where.predicates()]
    assert of(pl.all_horizontal(terms)) == of(where.root.expr)
    assert where.columns == {leaf.text[0] for leaf in where.root.leaves()}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a > 0 AND TRUE OR 1", "the result must be true or false, not the constant 1"),
        ("a = TRUE", "`a` is a number; True is not"),
        ("b = 'x'", "`b` is true or false; 'x' is neither"),
        ("c = 3", "`c` is text; 3 is not"),
        ("c > a", "`c` (text) and `a` (number) cannot be compared with >"),
        ("c > d", "cannot be compared with >"),
        ("d > c", "cannot be compared with >"),
        ("e = 'x'", "`e` is a list; ask ARRAY_CONTAINS(e, 'label')"),
        ("e = f", "cannot be compared with ="),
        ("ARRAY_CONTAINS(c, 'x')", "looks into a list; `c` is no list but a text column"),
        ("ARRAY_CONTAINS(e, 'z')", "'z' is no label of `e`"),
        ("ARRAY_CONTAINS(e, c)", "needs a fixed label in quotes"),
        ("a LIKE 'x%'", "`a` is a number column: it is not a text column"),
    ],
)
def test_kinds_that_do_not_go_together_are_one_sentence(text: str, says: str) -> None:
    labels = ("x", "y")
    fields = {
        "a": Field_("number"),
        "b": Field_("bool"),
        "c": Field_("text"),
        "d": Field_("text"),
        "e": Field_("labels", members=labels),
        "f": Field_("labels", members=labels),
    }
    with pytest.raises(UserError) as error:
        parse(text, fields)
    assert says in str(error.value)


def test_texts_may_be_compared_with_each_other_for_equality() -> None:
    fields = {"c": Field_("text"), "d": Field_("text")}
    table = pl.DataFrame({"c": ["x", "x", None], "d": ["x", "y", "y"]})
    for text, expected in (("c = d", [True, False, None]), ("c <> d", [False, True, None])):
        found = table.select(parse(text, fields).root.expr.alias("x"))["x"]
        assert found.to_list() == expected
