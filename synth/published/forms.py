"""The published forms: their names, which names our columns go by in them, and how conversations
are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import polars as pl

from synth.measures import CATEGORY, DIFFICULTY, QUALITY

Form = Literal["magpie", "23", "25", "sharegpt", "messages"]


FORMS: tuple[Form, ...] = ("magpie", "23", "25", "sharegpt", "messages")


# Our name -> (type, the names it goes by in published files). None: kept as it is.
NAMES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "id": (pl.String, ("uuid", "conversation_id", "id")),
    "model": (pl.String, ("model",)),
    "gen_input_config": (None, ("gen_input_config", "gen_input_configs")),
    "instruction": (pl.String, ("input", "instruction", "prompt")),
    "response": (pl.String, ("output", "response")),
    "task_category": (pl.String, ("task_category",)),
    "other_task_category": (pl.List(pl.String), ("other_task_category",)),
    "task_category_generator": (pl.String, ("task_category_generator",)),
    "difficulty": (pl.String, ("difficulty",)),
    "intent": (pl.String, ("intent",)),
    "knowledge": (pl.String, ("knowledge",)),
    "difficulty_generator": (pl.String, ("difficulty_generator",)),
    "input_quality": (pl.String, ("input_quality",)),
    "quality_explanation": (pl.String, ("quality_explanation",)),
    "quality_generator": (pl.String, ("quality_generator",)),
    "llama_guard_2": (pl.String, ("llama_guard_2",)),
    "reward_model": (pl.String, ("reward_model",)),
    "instruct_reward": (pl.Float64, ("instruct_reward",)),
    "base_output": (pl.String, ("base_output",)),
    "base_reward": (pl.Float64, ("base_reward",)),
    "reward_difference": (pl.Float64, ("reward_difference",)),
    "min_neighbor_distance": (pl.Float64, ("min_neighbor_distance",)),
    "repeat_count": (pl.Int64, ("repeat_count",)),
    "min_similar_id": (
        pl.String,
        ("min_similar_uuid", "min_similar_conversation_id", "min_similar_id"),
    ),
    "language": (pl.String, ("language",)),
    "instruction_length": (pl.Int64, ("input_length", "instruction_length")),
    "response_length": (pl.Int64, ("output_length", "response_length")),
}


TAG_LABELS = {"input_quality": QUALITY, "difficulty": DIFFICULTY, "task_category": CATEGORY}


TAGS = (
    *TAG_LABELS,
    "llama_guard_2",
    "instruct_reward",
    "base_reward",
    "reward_difference",
    "min_neighbor_distance",
    "language",
)
"""Columns in which a null is that row's failed tag."""


_SPEAKERS = {"user": "human", "assistant": "gpt"}


_TURN = pl.Struct({"from": pl.String, "value": pl.String})


PLAIN_TURNS = pl.List(_TURN)


def is_ours(frame: pl.DataFrame) -> bool:
    """Whether a frame is in our form already."""
    return {"id", "instruction", "status", "reason", "failed_tags"} <= set(frame.columns)


def turn_of(turns: pl.Expr, at: int, field: str) -> pl.Expr:
    return turns.list.get(at, null_on_oob=True).struct.field(field)


def conversation_of(ours: pl.DataFrame, who: str, what: str) -> pl.Expr:
    """The conversation of our rows as from/value or role/content."""
    names: Mapping[str, str] = _SPEAKERS if who == "from" else {}
    role, content = (
        pl.element().struct.field("role").replace(names),
        pl.element().struct.field("content"),
    )
    whole = pl.col("messages").list.eval(pl.struct(role.alias(who), content.alias(what)))
    sides = (("user", "instruction"), ("assistant", "response"))
    pair = [
        pl.struct(pl.lit(names.get(role, role)).alias(who), pl.col(name).alias(what))
        for role, name in sides
    ]
    if ours["messages"].null_count() == len(ours):
        return pl.concat_list(pair)
    return pl.when(pl.col("messages").is_not_null()).then(whole).otherwise(pl.concat_list(pair))
