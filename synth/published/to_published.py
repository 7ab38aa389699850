"""Rows of ours into a published form: the 23 columns of the Llama-3 v0.1 sets, the 25 of the later
ones, conversations or messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import polars as pl

from core.columns import FAILED, MESSAGES
from synth.published.forms import NAMES, PLAIN_TURNS, TAG_LABELS, Form, conversation_of
from synth.published.to_ours import OWN_COLUMNS

_FORMS: dict[str, tuple[str, ...]] = {
    "23": (
        "id",
        "model",
        "gen_input_config",
        "instruction",
        "response",
        "messages",
        "task_category",
        "difficulty",
        "intent",
        "knowledge",
        "input_quality",
        "quality_explanation",
        "llama_guard_2",
        "reward_model",
        "instruct_reward",
        "base_output",
        "base_reward",
        "reward_difference",
        "min_neighbor_distance",
        "repeat_count",
        "min_similar_id",
        "instruction_length",
        "response_length",
    ),
    "25": (
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
        "min_neighbor_distance",
        "repeat_count",
        "min_similar_id",
        "instruction_length",
        "response_length",
        "language",
    ),
}


_OLD_NAMES = {
    "gen_input_config": "gen_input_config",
    "instruction": "input",
    "response": "output",
    "instruction_length": "input_length",
    "response_length": "output_length",
    "id": "uuid",
    "messages": "conversations",
    "min_similar_id": "min_similar_uuid",
}


_LATER_NAMES = {
    **_OLD_NAMES,
    "gen_input_config": "gen_input_configs",
    "instruction": "instruction",
    "response": "response",
    "instruction_length": "instruction_length",
    "response_length": "response_length",
}


def to_form(frame: pl.DataFrame, form: Form) -> pl.DataFrame:
    """Our rows in a published form, failed rows left out ("magpie": as they are).

    "23" and "25": the form's columns as the cards name, order and type them (null where nothing was
    measured), then every other column there is; rows that were read from a file of the same form
    keep that file's names and order. "sharegpt" and "messages": the id and the conversation.
    """
    if form == "magpie":
        return frame
    kept = frame.filter(pl.col("status") != FAILED) if "status" in frame.columns else frame
    if "messages" not in kept.columns:
        kept = kept.with_columns(pl.lit(None, MESSAGES).alias("messages"))
    if form == "messages":
        return kept.select("id", conversation_of(kept, "role", "content").alias("messages"))
    turns = conversation_of(kept, "from", "value").cast(PLAIN_TURNS)
    if kept.schema.get("source_conversations") == PLAIN_TURNS:
        own = pl.col("source_conversations")
        turns = pl.when(own.is_null()).then(turns).when(own.list.len() > 0).then(own)
    if form == "sharegpt":
        return kept.select(pl.col("id").alias("conversation_id"), turns.alias("conversations"))
    source = _source(kept, form)
    names = {
        **(_OLD_NAMES if form == "23" else _LATER_NAMES),
        **{ours: name for name, ours in source.items() if ours in _FORMS[form]},
    }
    columns: dict[str, pl.Expr] = {names.get(n, n): _published(kept, n, form) for n in _FORMS[form]}
    columns[names["messages"]] = turns
    own_names = {ours: name for name, ours in source.items()}
    others = [c for c in kept.columns if c not in _FORMS[form] and c not in OWN_COLUMNS]
    columns |= {_free(own_names.get(c, c), columns): pl.col(c) for c in others}
    columns |= {
        _free(n, columns): value
        for n, value in (beyond(kept) if form == "23" and not source else {}).items()
    }
    made = kept.select([value.alias(name) for name, value in columns.items()])
    place = {name: at for at, name in enumerate(source)}
    ordered: list[str] = sorted(made.columns, key=lambda c: place.get(c, len(place)))
    return made.select(ordered)


def _source(frame: pl.DataFrame, form: Form) -> dict[str, str]:
    """Published name -> our name of the one file form that all rows were read from, where that is
    `form`; else nothing."""
    known = frame["source_columns"].unique().to_list() if "source_columns" in frame.columns else []
    if len(known) != 1 or known[0] is None:
        return {}
    source: dict[str, str] = dict(json.loads(known[0]))
    return source if set(_FORMS[form]) - {"gen_input_config"} <= set(source.values()) else {}


def _free(name: str, used: Mapping[str, Any]) -> str:
    return f"source_{name}" if name in used else name


def _published(frame: pl.DataFrame, name: str, form: Form) -> pl.Expr:
    """One column of a published form, in the type of the cards."""
    if name in ("instruction_length", "response_length") and name not in frame.columns:
        return pl.col(name.removesuffix("_length")).str.len_chars().cast(pl.Int64)
    if name == "gen_input_config":
        return sampling(frame, form, bool(_source(frame, form)))
    kind = NAMES[name][0] if name in NAMES else PLAIN_TURNS
    if name not in frame.columns:
        return pl.lit(None, kind)
    value = pl.col(name)
    if (
        name in TAG_LABELS
        and "failed_tags" in frame.columns
        and frame["failed_tags"].list.len().sum()
    ):
        item = (
            pl.element().filter(pl.element().struct.field("column") == name).struct.field("value")
        )
        value = pl.coalesce(
            value.cast(pl.String), pl.col("failed_tags").list.eval(item).list.first()
        )
    if name == "min_similar_id" and "repeat_count" in frame.columns:
        value = pl.when(
            ~((pl.col("repeat_count") == 0) & (value == pl.col("id"))).fill_null(False)
        ).then(value)
    return value.cast(kind)


_CONFIG: dict[str, Any] = {"temperature": pl.Float64, "top_p": pl.Float64}


_CONFIGS = {
    **_CONFIG,
    "input_generator": pl.String,
    "seed": pl.Int64,
    "pre_query_template": pl.String,
    "extract_input": pl.String,
}


def sampling(frame: pl.DataFrame, form: str, as_read: bool) -> pl.Expr:
    """The sampling of rows in our form: as it was published, or made of our columns; fields of the
    form that it lacks are null.

    `as_read`: the rows were read from a file of that very form. Else the form "23" gets its two
    fields alone (`beyond` has the others).
    """
    fields = _CONFIG if form == "23" else _CONFIGS
    kind = frame.schema.get("gen_input_config")
    own = pl.col("gen_input_config")
    if isinstance(kind, pl.Struct):
        held = [f.name for f in kind.fields]
        if form == "23" and not as_read:
            return pl.struct(
                [
                    (own.struct.field(n) if n in held else pl.lit(None)).cast(t).alias(n)
                    for n, t in fields.items()
                ]
            )
        if held and not set(held) - set(_CONFIGS) and {*_CONFIG} <= set(held):
            return own
        lacking = [pl.lit(None, t).alias(n) for n, t in fields.items() if n not in held]
        return pl.struct([*[own.struct.field(f) for f in held], *lacking])
    if kind is not None:
        return own
    ours = {
        "temperature": "temperature",
        "top_p": "top_p",
        "input_generator": "model",
        "seed": "seed",
        "pre_query_template": "pre_query_template",
    }
    return pl.struct(
        [
            (pl.col(ours[n]) if ours.get(n) in frame.columns else pl.lit(None)).cast(t).alias(n)
            for n, t in fields.items()
        ]
    )


def beyond(frame: pl.DataFrame) -> dict[str, pl.Expr]:
    """The fields of the rows' sampling that the form "23" has no place for, by name."""
    kind = frame.schema.get("gen_input_config")
    names = (
        [f.name for f in kind.fields if f.name not in _CONFIG]
        if isinstance(kind, pl.Struct)
        else []
    )
    return {name: pl.col("gen_input_config").struct.field(name) for name in names}
