"""What Rejecting Instruction Preferences (RIP, Yu et al., arXiv 2501.18578) goes by: of several
answers to an instruction the reward and the length of the worst, and how far the rewards lie apart.

The answers and rewards are those that preference pairs are made of (`synth.preferences`): neither
buys what the other has. The paper measures length in its own tokens; here it is characters.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from core.columns import FAILED, OK
from synth.config.models import ModelConfig
from synth.config.synthesis import SynthConfig
from synth.context import Context, Serving
from synth.generate.ask import Frames
from synth.tags import several
from synth.tags.several import Several

VERSION = 1
"""Part of every key of such a cell."""


def cell(config: SynthConfig, context: Context) -> dict[str, Any] | None:
    """What determines a cell: the answers, their number, and their rewards; None where the recipe
    has no `preferences`."""
    block, scorer = config.preferences, _scorer(config)
    if block is None or scorer is None:
        return None
    answer, rewarded = _cells(config, context)
    return {"k": block.k, "answer": answer, "reward": rewarded, "VERSION": VERSION}


def _cells(config: SynthConfig, context: Context) -> tuple[dict[str, Any], dict[str, Any]]:
    block, scorer = config.preferences, _scorer(config)
    if block is None or scorer is None:
        raise ValueError("RIP without `synth.preferences`")
    answer = several.answer_cell(config.responder or config.teacher, block.sampling, context)
    return answer, several.reward_cell(scorer, context)


def _scorer(config: SynthConfig) -> ModelConfig | None:
    own = config.preferences.reward if config.preferences else None
    return own or config.tags.reward


def compute(rows: pl.DataFrame, config: SynthConfig, context: Serving) -> Frames:
    """The measure `rip` of rows [id, instruction]: frames [id, worst_reward, worst_length
    (characters), reward_gap, tokens, prompt_tokens, status, reason]."""
    block, scorer = config.preferences, _scorer(config)
    if block is None or scorer is None:
        return
    asked = rows.select("id", "instruction")
    columns = several.columns(context, *_cells(config, context))
    buying = Several(asked, block.k, block.sampling, *columns, context.progress)
    buying.answer(context.serve(config.responder or config.teacher))
    buying.score(context.serve(scorer))
    for draws in buying.slices():
        scored, _ = buying.scored(buying.answered(draws))
        yield figures(scored)


def figures(scored: pl.DataFrame) -> pl.DataFrame:
    """The cells of rows, of their answers [id, number, response, instruct_reward (null: none),
    tokens, prompt_tokens]; of equal rewards the first answer is the worst. A row with fewer than
    two rewards is a failed cell."""
    reward = pl.col("instruct_reward")
    ranked = scored.sort("instruct_reward", "number", nulls_last=True, maintain_order=True)
    cells = ranked.group_by("id", maintain_order=True).agg(
        reward.min().alias("worst_reward"),
        pl.col("response").first().str.len_chars().cast(pl.Int64).alias("worst_length"),
        (reward.max() - reward.min()).alias("reward_gap"),
        pl.col("tokens").sum(),
        pl.col("prompt_tokens").sum(),
        reward.count().alias("rewards"),
    )
    sound = pl.col("rewards") > 1
    values = ("worst_reward", "worst_length", "reward_gap")
    rows = scored.select("id").unique(maintain_order=True)
    cells = rows.join(cells, on="id", how="left", maintain_order="left")
    return cells.select(
        "id",
        *(pl.when(sound).then(name).alias(name) for name in values),
        "tokens",
        "prompt_tokens",
        pl.when(sound).then(pl.lit(OK)).otherwise(pl.lit(FAILED)).alias("status"),
        pl.when(~sound).then(pl.lit("fewer than two answers with a reward")).alias("reason"),
    )
