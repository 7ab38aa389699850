"""Conversations of the pool, what they digest to, and how many tokens of the student they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from core.columns import MESSAGES, OK
from core.errors import UserError
from core.store import digest
from recipes.stages.walk import Arms
from synth.context import Resolve
from synth.filters.schedule import TokenCounter
from synth.pool.pool import SLICE, Pool
from train.config import TrainConfig


def conversations(pool: Pool, frame: pl.DataFrame, ids: Sequence[str]) -> pl.DataFrame:
    """Rows [id, messages] of the pool in the given order, texts read by slices."""
    wanted = pl.DataFrame({"id": ids}, schema={"id": pl.String})
    rows = wanted.join(frame, on="id", how="left", maintain_order="left")
    names = ("instruction", "response", "messages")
    slices = [rows.slice(top, SLICE) for top in range(0, max(len(rows), 1), SLICE)]
    return pl.concat([as_messages(pool.with_texts(part, names)) for part in slices])


def as_messages(rows: pl.DataFrame) -> pl.DataFrame:
    """[id, messages] of rows [id, instruction, response, messages]: the whole conversation where
    there is one, else the pair."""
    turns = [
        pl.struct(pl.lit(role).alias("role"), pl.col(name).alias("content"))
        for role, name in (("user", "instruction"), ("assistant", "response"))
    ]
    whole = pl.col("messages")
    if rows.schema["messages"] != MESSAGES:
        whole = pl.lit(None, MESSAGES)
    return rows.select("id", pl.coalesce(whole, pl.concat_list(turns)).alias("messages"))


def rows_digest(rows: pl.DataFrame) -> str:
    """Digest of an ordered list of conversations [id, messages]: what a selection is, whatever rule
    chose it."""
    return digest([[row["id"], digest(row["messages"])] for row in rows.iter_rows(named=True)])


def token_counter(
    train: TrainConfig | None, arms: Arms, pool: Pool, resolve: Resolve
) -> TokenCounter | None:
    """Counts the student's tokens of each row of a pool frame (null where there is no response),
    with the student's chat template; None where no arm has a budget in tokens."""
    budgets = [rule.budget for rule in arms.rules.values() if rule.budget]
    if train is None or not any(budget.tokens for budget in budgets):
        return None
    config = train
    known: dict[str, int] = {}

    def count(frame: pl.DataFrame) -> pl.Series:
        # A conversation that grew is counted anew.
        grown = pl.format("{}:{}", "id", pl.col("turns").fill_null(1)).alias("grown")
        frame = frame.with_columns(grown)
        answered = frame.filter(pl.col("status:response") == OK)
        fresh = answered.filter(~pl.col("grown").is_in(list(known)))
        if len(fresh):
            base = resolve(config.base, config.revision).path
            counted = count_tokens(config, base, conversations(pool, fresh, fresh["id"].to_list()))
            known.update({name: counted[i] for i, name in fresh.select("id", "grown").iter_rows()})
        return pl.Series([known.get(name) for name in frame["grown"]], dtype=pl.Int64)

    return count


def count_tokens(config: TrainConfig, base: str, rows: pl.DataFrame) -> dict[str, int]:
    """Non-pad tokens of conversations [id, messages] under the student's chat template, by id;
    `base` is its resolved path."""
    from core.models import tokenizer
    from train import chat, data

    with TemporaryDirectory() as folder:
        path = Path(folder) / "selection.parquet"
        rows.write_parquet(path)
        template = chat.choose(config, tokenizer(base)).training
        counted = data.token_counts(path, base, template)
    return dict(counted.select("id", "tokens").iter_rows())


def counting(
    train: TrainConfig | None, resolve: Resolve
) -> tuple[Callable[[pl.DataFrame], dict[str, int]], Any]:
    """What counts the student's tokens of conversations [id, messages], by id, and what determines
    its figures, as long as nothing is counted. Without a training it raises UserError."""

    def count(rows: pl.DataFrame) -> dict[str, int]:
        if train is None:
            raise UserError(
                "a budget in tokens needs the student's tokenizer and chat template (`train`); "
                "give the budget in rows instead."
            )
        return count_tokens(train, resolve(train.base, train.revision).path, rows)

    if train is None:
        return count, None
    return count, [train.base, train.revision, train.chat_template_path]
