"""Conversations of the pool, and how many tokens of the student they are."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import polars as pl

from core.columns import MESSAGES, OK
from synth.filters.schedule import TokenCounter
from synth.pool.pool import SLICE, Pool
from train.config import TrainConfig

if TYPE_CHECKING:
    from recipes.stages.graph import Stages


def conversations(pool: Pool, frame: pl.DataFrame, ids: list[str]) -> pl.DataFrame:
    """Rows [id, messages] of the pool in the given order, texts read by slices."""
    rows = pl.DataFrame({"id": ids}, schema={"id": pl.String}).join(
        frame, on="id", how="left", maintain_order="left"
    )
    names = ("instruction", "response", "messages")
    return pl.concat(
        [
            _messages(pool.with_texts(rows.slice(top, SLICE), names))
            for top in range(0, max(len(rows), 1), SLICE)
        ]
    )


def _messages(rows: pl.DataFrame) -> pl.DataFrame:
    """[id, messages] of rows [id, instruction, response, messages]: the whole conversation where
    there is one, else the pair."""
    sides = (("user", "instruction"), ("assistant", "response"))
    pair = pl.concat_list(
        [
            pl.struct(pl.lit(role).alias("role"), pl.col(name).alias("content"))
            for role, name in sides
        ]
    )
    whole = pl.col("messages") if rows.schema["messages"] == MESSAGES else pl.lit(None, MESSAGES)
    return rows.select("id", pl.coalesce(whole, pair).alias("messages"))


def token_counter(graph: Stages, pool: Pool) -> TokenCounter | None:
    """Student tokens per row of a pool frame (null where there is no response), counted with the
    student's chat template."""
    config = graph.recipe.train
    if config is None or not any(
        rule.budget and rule.budget.tokens for rule in graph.filters.values()
    ):
        return None
    known: dict[str, int] = {}

    def count(frame: pl.DataFrame) -> pl.Series:
        # A conversation that grew is counted anew.
        frame = frame.with_columns(
            pl.format("{}:{}", "id", pl.col("turns").fill_null(1)).alias("grown")
        )
        fresh = frame.filter(
            (pl.col("status:response") == OK) & ~pl.col("grown").is_in(list(known))
        )
        if len(fresh):
            counted = count_tokens(
                config,
                graph.resolve(config.base, config.revision).path,
                conversations(pool, fresh, fresh["id"].to_list()),
            )
            known.update(
                {grown: counted[i] for i, grown in fresh.select("id", "grown").iter_rows()}
            )
        return pl.Series([known.get(i) for i in frame["grown"]], dtype=pl.Int64)

    return count


def count_tokens(config: TrainConfig, base: str, rows: pl.DataFrame) -> dict[str, int]:
    """Non-pad tokens of conversations [id, messages] under the student's chat template, by id;
    `base` is its resolved path."""
    from core.models import tokenizer
    from train import chat, data

    with TemporaryDirectory() as folder:
        path = Path(folder) / "selection.parquet"
        rows.write_parquet(path)
        counted = data.token_counts(path, base, chat.choose(config, tokenizer(base)).training)
    return dict(counted.select("id", "tokens").iter_rows())
