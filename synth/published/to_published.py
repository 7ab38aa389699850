"""Rows of ours into a published form: the 23 columns of the Llama-3 v0.1 sets, the 25 of the later
ones, conversations or messages."""

from __future__ import annotations

import json
from collections.abc import Container
from typing import TYPE_CHECKING

import polars as pl

from core.columns import MESSAGES
from synth.measures import DECLARED
from synth.published.cells.derived import DERIVED
from synth.published.forms import (
    FORM_COLUMNS,
    PLAIN_TURNS,
    TAG_LABELS,
    Form,
    conversation_of,
    failed_value,
    name_in,
    not_failed,
    or_null,
    sampling_fields,
    sampling_of,
)
from synth.published.to_ours import OWN_COLUMNS

if TYPE_CHECKING:
    from synth.measures import PolarsTypes

_CONFIG: PolarsTypes = {"temperature": pl.Float64, "top_p": pl.Float64}
_SAMPLING_25: PolarsTypes = {
    **_CONFIG,
    "input_generator": pl.String,
    "seed": pl.Int64,
    "pre_query_template": pl.String,
    "extract_input": pl.String,
}


def to_form(frame: pl.DataFrame, form: Form) -> pl.DataFrame:
    """Our rows in a published form, failed rows left out ("magpie": as they are).

    "23" and "25": the form's columns as the cards name, order and type them (null where nothing was
    measured), then every other column there is; rows that were read from a file of the same form
    keep that file's names and order. "sharegpt" and "messages": the id and the conversation.
    """
    if form == "magpie":
        return frame
    kept = not_failed(frame)
    kept = kept.with_columns(or_null("messages", kept.columns, MESSAGES))
    if form == "messages":
        return kept.select("id", messages=conversation_of(kept, "role", "content"))
    turns = _turns(kept)
    if form == "sharegpt":
        return kept.select(conversation_id="id", conversations=turns)
    return _columns(kept.with_columns(messages=turns), form)


def _turns(kept: pl.DataFrame) -> pl.Expr:
    """Conversations as from/value; where a file's own was another, that one."""
    turns = conversation_of(kept, "from", "value").cast(PLAIN_TURNS)
    if kept.schema.get("source_conversations") != PLAIN_TURNS:
        return turns
    own = pl.col("source_conversations")
    return pl.when(own.is_null()).then(turns).when(own.list.len() > 0).then(own)


def _columns(kept: pl.DataFrame, form: Form) -> pl.DataFrame:
    """Rows, their conversations in the form's way, in the columns of "23" or "25"."""
    own = FORM_COLUMNS[form]
    source = _source(kept, form)
    read_as = {ours: name for name, ours in source.items()}
    names = {c: name_in(form, c) for c in own}
    names |= {ours: name for ours, name in read_as.items() if ours in own}
    columns = {names[c]: _value(kept, c, form, as_read=bool(source)) for c in own}
    for c in kept.columns:
        if c not in own and c not in OWN_COLUMNS:
            columns[_free(read_as.get(c, c), columns)] = pl.col(c)
    if form == "23" and not source:  # what of the sampling the form has no place for
        for field in sampling_fields(kept.schema):
            if field not in _CONFIG:
                value = pl.col("gen_input_config").struct.field(field)
                columns[_free(field, columns)] = value
    place = {name: at for at, name in enumerate(source)}
    ordered = sorted(columns, key=lambda name: place.get(name, len(place)))
    return kept.select(**{name: columns[name] for name in ordered})


def _source(frame: pl.DataFrame, form: Form) -> dict[str, str]:
    """Published name -> our name of the one file form that all rows were read from, where that is
    `form`; else nothing."""
    known = frame["source_columns"].unique().to_list() if "source_columns" in frame.columns else []
    if len(known) != 1 or known[0] is None:
        return {}
    source: dict[str, str] = dict(json.loads(known[0]))
    return source if {*FORM_COLUMNS[form]} - {"gen_input_config"} <= {*source.values()} else {}


def _free(name: str, used: Container[str]) -> str:
    return f"source_{name}" if name in used else name


def _value(frame: pl.DataFrame, name: str, form: Form, *, as_read: bool) -> pl.Expr:
    """One column of a published form, in the type of the cards. `as_read`: the rows were read from
    a file of that very form."""
    if name == "messages":
        return pl.col(name)
    if name == "gen_input_config":
        return _sampling(frame.schema, form, as_read)
    kind = DECLARED[name].plain
    if name in ("instruction_length", "response_length") and name not in frame.columns:
        return DERIVED[name].cast(kind)
    if name not in frame.columns:
        return pl.lit(None, kind)
    value = pl.col(name)
    if name in TAG_LABELS and _has_failed_tags(frame):
        value = pl.coalesce(value.cast(pl.String), failed_value(name))
    if name == "min_similar_id" and "repeat_count" in frame.columns:
        alone = (pl.col("repeat_count") == 0) & (value == pl.col("id"))
        value = pl.when(~alone.fill_null(False)).then(value)
    return value.cast(kind)


def _has_failed_tags(frame: pl.DataFrame) -> bool:
    return "failed_tags" in frame.columns and bool(frame["failed_tags"].list.len().sum())


def _sampling(schema: pl.Schema, form: Form, as_read: bool) -> pl.Expr:
    """The sampling of rows in our form: as it was published, or made of our columns; fields of the
    form that it lacks are null."""
    fields = _CONFIG if form == "23" else _SAMPLING_25
    kind = schema.get("gen_input_config")
    own = pl.col("gen_input_config")
    if kind is None:
        own_names = {"input_generator": "model", "extract_input": ""}
        return pl.struct(
            or_null(own_names.get(n, n), schema, t).alias(n) for n, t in fields.items()
        )
    if not isinstance(kind, pl.Struct):
        return own
    if form == "23" and not as_read:
        return sampling_of(schema, fields)
    held = sampling_fields(schema)
    if held and {*_CONFIG} <= {*held} <= {*_SAMPLING_25}:
        return own
    lacking = [pl.lit(None, t).alias(n) for n, t in fields.items() if n not in held]
    return pl.struct([*(own.struct.field(f) for f in held), *lacking])
