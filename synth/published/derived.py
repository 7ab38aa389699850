"""How a column follows from others, where a file or a cell does not hold it."""

from __future__ import annotations

import polars as pl

from synth.measures import COLUMNS

_SAMPLING = pl.col("gen_input_config").struct
_INSTRUCTION = pl.col("instruction")


def _rank(label: str) -> pl.Expr:
    labels = pl.Enum(COLUMNS[label].field.labels)
    return pl.col(label).cast(labels, strict=False).to_physical().cast(pl.Float64) + 1


RANKS = {
    declared.rank: _rank(name)
    for name, (_, declared) in COLUMNS.items()
    if declared.rank and declared.labels
}
"""The rank of a label that stands without one."""

DERIVED: dict[str, pl.Expr] = {
    "instruction_length": _INSTRUCTION.str.len_chars(),
    "response_length": pl.col("response").str.len_chars(),
    "near_duplicate": pl.col("min_similar_id") != pl.col("id"),
    "reward_difference": pl.col("instruct_reward") - pl.col("base_reward"),
    **RANKS,
    "pair_score_rank": pl.col("pair_score"),
    "pair_score": pl.col("pair_score_rank"),
    "temperature": _SAMPLING.field("temperature"),
    "top_p": _SAMPLING.field("top_p"),
    # A pair of hashes in place of the text; told apart once every row is read.
    "exact_duplicate": pl.struct(a=_INSTRUCTION.hash(0), b=_INSTRUCTION.hash(1)),
}

MIN_SIMILAR_ID = (
    pl.when(pl.col("min_similar_id").is_null() & (pl.col("repeat_count") == 0))
    .then("id")
    .otherwise("min_similar_id")
    .alias("min_similar_id")
)
"""Ours is always filled; published sets write null for a row that repeats none."""


def inputs(column: str) -> list[str]:
    """The columns, ids aside, that a column follows from; none where it does not."""
    roots = DERIVED[column].meta.root_names() if column in DERIVED else []
    return [name for name in dict.fromkeys(roots) if name != "id"]
