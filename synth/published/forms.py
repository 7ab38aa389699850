"""The published forms: which columns they have, in which order and under which names, and how
conversations are written."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Literal

import polars as pl

from core.columns import FAILED
from synth.measures import COLUMNS, DECLARED

Form = Literal["magpie", "23", "25", "sharegpt", "messages"]
FORMS: tuple[Form, ...] = ("magpie", "23", "25", "sharegpt", "messages")

_ORDER = (
    "id",
    "model",
    "gen_input_config",
    "instruction",
    "response",
    "messages",
    "task_category",
    "other_task_category",
    "task_category_generator",
    "difficulty",
    "intent",
    "knowledge",
    "difficulty_generator",
    "input_quality",
    "quality_explanation",
    "quality_generator",
    "llama_guard_2",
    "reward_model",
    "instruct_reward",
    "base_output",
    "base_reward",
    "reward_difference",
    "min_neighbor_distance",
    "repeat_count",
    "min_similar_id",
    "language",
    "instruction_length",
    "response_length",
)

if TYPE_CHECKING:
    from synth.measures import PolarsType, PolarsTypes
_ONLY_23 = {"base_output", "base_reward", "reward_difference"}
_ONLY_25 = {
    "other_task_category",
    "task_category_generator",
    "difficulty_generator",
    "quality_generator",
    "language",
}
FORM_COLUMNS: dict[str, tuple[str, ...]] = {
    "23": tuple(c for c in _ORDER if c not in _ONLY_25),
    "25": (*(c for c in _ORDER if c not in _ONLY_23 | {"language"}), "language"),
}
"""Our names of a form's columns, as the cards order them."""

PUBLISHED = tuple(c for c in _ORDER if c != "messages")
"""Columns of the published forms, conversations aside, in the order of our own form."""

TAG_LABELS = {
    name: declared.labels
    for name, (_, declared) in COLUMNS.items()
    if declared.labels and name in PUBLISHED
}

TAGS = (
    *TAG_LABELS,
    "llama_guard_2",
    "instruct_reward",
    "base_reward",
    "reward_difference",
    "min_neighbor_distance",
)
"""Columns in which a null is that row's failed tag. A null `language` is an unmeasured one:
OpenHermes-2.5 has the column and nothing in it."""

TROUBLE = pl.List(pl.Struct({"column": pl.String, "reason": pl.String, "value": pl.String}))
"""The type of a row's failed tags."""

_SPEAKERS = {"user": "human", "assistant": "gpt"}
PLAIN_TURNS = pl.List(pl.Struct({"from": pl.String, "value": pl.String}))


def names_of(column: str) -> tuple[str, ...]:
    """The names that a column of ours goes by in published files, in the order in which they
    count."""
    declared = DECLARED.get(column)
    return (
        tuple(dict.fromkeys(declared.published)) if declared and declared.published else (column,)
    )


KNOWN = frozenset(name for column in DECLARED for name in names_of(column))
"""Every name that a column of ours goes by."""


def name_in(form: str, column: str) -> str:
    """The name of a column of ours in the form "23" or "25"."""
    declared = DECLARED[column]
    return declared.published[("23", "25").index(form)] if declared.published else column


def is_ours(columns: Collection[str]) -> bool:
    """Whether rows of these columns are in our form already."""
    return {"id", "instruction", "status", "reason", "failed_tags"} <= {*columns}


def sampling_fields(schema: Mapping[str, pl.DataType]) -> list[str]:
    """The fields of the sampling that rows were published with; none where there is none."""
    kind = schema.get("gen_input_config")
    return [each.name for each in kind.fields] if isinstance(kind, pl.Struct) else []


def sampling_of(
    schema: Mapping[str, pl.DataType], fields: PolarsTypes, strict: bool = True
) -> pl.Expr:
    """These fields of the sampling that rows were published with, null where it has none.

    `strict`: raise polars' error for a value of another kind, which is else null.
    """
    known = sampling_fields(schema)
    config = pl.col("gen_input_config").struct
    values = [
        (config.field(name) if name in known else pl.lit(None))
        .cast(kind, strict=strict)
        .alias(name)
        for name, kind in fields.items()
    ]
    return pl.struct(values).alias("gen_input_config")


def or_null(name: str, there: Collection[str], kind: PolarsType) -> pl.Expr:
    """A column in this type; null where it is not there."""
    return (pl.col(name) if name in there else pl.lit(None)).cast(kind).alias(name)


def failed_value(column: str) -> pl.Expr:
    """What a file of ours held in place of a label of this column, as a row's failed tag tells."""
    here = pl.element().struct.field("column") == column
    value = pl.element().filter(here).struct.field("value")
    return pl.col("failed_tags").list.eval(value).list.first()


def of_turn(field: str) -> pl.Expr:
    """One field of each turn, inside `list.eval`."""
    return pl.element().struct.field(field)


def not_failed(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows of our form that are no failed rows."""
    return frame.filter(pl.col("status") != FAILED) if "status" in frame.columns else frame


def turn_of(turns: pl.Expr, at: int, field: str) -> pl.Expr:
    """One field of the turn at a place; null beyond the last."""
    return turns.list.get(at, null_on_oob=True).struct.field(field)


def conversation_of(ours: pl.DataFrame, who: str, what: str) -> pl.Expr:
    """The conversation of our rows as from/value or role/content."""
    names: Mapping[str, str] = _SPEAKERS if who == "from" else {}
    sides = (("user", "instruction"), ("assistant", "response"))
    pair = pl.concat_list(
        pl.struct(pl.lit(names.get(role, role)).alias(who), pl.col(name).alias(what))
        for role, name in sides
    )
    messages = pl.col("messages")
    if ours["messages"].null_count() == len(ours):
        return pair
    role = of_turn("role").replace(names)
    content = of_turn("content")
    whole = messages.list.eval(pl.struct(role.alias(who), content.alias(what)))
    return pl.when(messages.is_not_null()).then(whole).otherwise(pair)
