"""How a column follows from others, where a file or a cell does not hold it."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from synth.measures import COLUMNS, Field_, Measures

_SAMPLING = pl.col("gen_input_config").struct
_INSTRUCTION = pl.col("instruction")


def ranks(columns: Mapping[str, Field_]) -> dict[str, pl.Expr]:
    """The ranks of labels that stand without one, by the name of the rank's column."""
    return {
        declared.rank: _rank(name, declared)
        for name, declared in columns.items()
        if declared.rank and declared.labels
    }


def _rank(label: str, declared: Field_) -> pl.Expr:
    labels = pl.Enum(declared.labels)
    return pl.col(label).cast(labels, strict=False).to_physical().cast(pl.Float64) + 1


DERIVED: dict[str, pl.Expr] = {
    "instruction_length": _INSTRUCTION.str.len_chars(),
    "response_length": pl.col("response").str.len_chars(),
    "near_duplicate": pl.col("min_similar_id") != pl.col("id"),
    "reward_difference": pl.col("instruct_reward") - pl.col("base_reward"),
    **ranks({name: declared for name, (_, declared) in COLUMNS.items()}),
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


def derived(measures: Measures) -> dict[str, pl.Expr]:
    """How a column follows from others, the ranks of a recipe's own labels among them."""
    return {**ranks({name: each for name, (_, each) in measures.columns.items()}), **DERIVED}


def inputs(column: str, derived: Mapping[str, pl.Expr] = DERIVED) -> list[str]:
    """The columns, ids aside, that a column follows from; none where it does not."""
    roots = derived[column].meta.root_names() if column in derived else []
    return [name for name in dict.fromkeys(roots) if name != "id"]
