"""The sampling of a published row, gen_input_config or gen_input_configs: the fields that each published form has."""

from __future__ import annotations

from typing import Any

import polars as pl

_CONFIG: dict[str, Any] = {"temperature": pl.Float64, "top_p": pl.Float64}
_CONFIGS = {**_CONFIG, "input_generator": pl.String, "seed": pl.Int64, "pre_query_template": pl.String, "extract_input": pl.String}


def sampling(frame: pl.DataFrame, form: str, as_read: bool) -> pl.Expr:
    """The sampling of rows in our form: as it was published, or made of our columns; fields of the form that it lacks are null.

    `as_read`: the rows were read from a file of that very form. Else the form "23" gets its two fields alone (`beyond` has the others).
    """
    fields = _CONFIG if form == "23" else _CONFIGS
    kind = frame.schema.get("gen_input_config")
    own = pl.col("gen_input_config")
    if isinstance(kind, pl.Struct):
        held = [f.name for f in kind.fields]
        if form == "23" and not as_read:
            return pl.struct([(own.struct.field(n) if n in held else pl.lit(None)).cast(t).alias(n) for n, t in fields.items()])
        if held and not set(held) - set(_CONFIGS) and {*_CONFIG} <= set(held):
            return own
        lacking = [pl.lit(None, t).alias(n) for n, t in fields.items() if n not in held]
        return pl.struct([*[own.struct.field(f) for f in held], *lacking])
    if kind is not None:
        return own
    ours = {"temperature": "temperature", "top_p": "top_p", "input_generator": "model", "seed": "seed", "pre_query_template": "pre_query_template"}
    return pl.struct([(pl.col(ours[n]) if ours.get(n) in frame.columns else pl.lit(None)).cast(t).alias(n) for n, t in fields.items()])


def beyond(frame: pl.DataFrame) -> dict[str, pl.Expr]:
    """The fields of the rows' sampling that the form "23" has no place for, by name."""
    kind = frame.schema.get("gen_input_config")
    names = [f.name for f in kind.fields if f.name not in _CONFIG] if isinstance(kind, pl.Struct) else []
    return {name: pl.col("gen_input_config").struct.field(name) for name in names}
