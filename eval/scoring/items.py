"""A benchmark's values of one checkpoint as rows of scores.parquet, and the figure over them.

Several answers to a prompt are one row: their mean, with what they vary by.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from eval import stats
from eval.prompt_sets import samples
from eval.prompt_sets.samples import prompts_of
from eval.stats import Floats

SCORES = {
    "benchmark": pl.String,
    "metric": pl.String,
    "item": pl.String,
    "cluster": pl.String,
    "value": pl.Float64,
    "status": pl.String,
    "reason": pl.String,
    "higher_is_better": pl.Boolean,
    "answers": pl.Int64,
    "answer_variance": pl.Float64,
    "judges": pl.Int64,
    "judge_variance": pl.Float64,
}
"""Columns of scores.parquet; `value` is in percent for win rates and arena scores, in nats for the
loss, as lm-eval gives it for tasks, from 1 to 10 for ratings, from -1 to 1 for WB-Reward.
`higher_is_better` is what lm-eval says of a metric, null of all others. `answers` and
`answer_variance`: over how many sampled answers the value is the mean, and what one of them varies
by around it; the same of judges of one answer; null where there is one alone."""

PARTLY = pl.when("partly").then("reason")
"""A reason that stands beside a value, of an item that some judges judged and others not."""


def rows_of(metric: str, frame: pl.DataFrame) -> pl.DataFrame:
    """Rows of scores.parquet from columns item, value and reason; `cluster` where it is not the
    item, `note`, the reason that stands beside a value, and judges and judge_variance where they
    are known. Several answers to a prompt are one row: their mean."""
    defaults = {
        "cluster": prompts_of("item"),
        "note": pl.lit(None, pl.String),
        "higher_is_better": pl.lit(None, pl.Boolean),
        "judges": pl.lit(None, pl.Int64),
        "judge_variance": pl.lit(None, pl.Float64),
    }
    absent = {name: value for name, value in defaults.items() if name not in frame.columns}
    judged = pl.col("value").is_not_null()
    why = pl.col("reason").replace("", None).fill_null("no value")
    rows = frame.with_columns(**absent).select(
        "item",
        "cluster",
        "value",
        "higher_is_better",
        "judges",
        "judge_variance",
        metric=pl.lit(metric),
        status=pl.when(judged).then(pl.lit("ok")).otherwise(pl.lit("unjudged")),
        reason=pl.when(judged).then("note").otherwise(why),
        answers=pl.lit(None, pl.Int64),
        answer_variance=pl.lit(None, pl.Float64),
    )
    if not rows["item"].str.contains(samples.MARK, literal=True).any():
        return rows
    return _by_prompt(rows)


def _by_prompt(rows: pl.DataFrame) -> pl.DataFrame:
    """A row a prompt: the mean of those of its answers that have a value, and what they vary by."""
    known = pl.col("value").is_not_null()
    some = pl.format("{} of {} answers have no value", (~known).sum(), pl.len())
    return (
        rows.group_by(prompts_of("item"), maintain_order=True)
        .agg(
            pl.col("cluster", "metric", "higher_is_better").first(),
            pl.col("value").mean(),
            pl.when(known.any()).then(pl.lit("ok")).otherwise(pl.lit("unjudged")).alias("status"),
            pl.when(known.any() & ~known.all())
            .then(some)
            .otherwise(pl.col("reason").drop_nulls().first())
            .alias("reason"),
            known.sum().cast(pl.Int64).alias("answers"),
            pl.col("value").var().alias("answer_variance"),
            pl.col("judges").max(),
            pl.col("judge_variance").mean(),
        )
        .with_columns(answers=pl.when(pl.col("answers") > 0).then("answers"))
    )


def figure_of(rows: pl.DataFrame) -> dict[str, Any]:
    """Mean, standard error (by cluster) and t interval over the items that have a value; the others
    are counted."""
    known = rows.drop_nulls("value")
    mean = stats.NOTHING
    if known.height:
        mean = stats.mean_interval(known["value"], known["cluster"])
    figure: dict[str, Any] = {
        "value": mean.value,
        **mean.bounds(),
        "n": known.height,
        "unjudged": rows.height - known.height,
    }
    if known["answer_variance"].count():
        figure["components"] = answer_noise(known)
    return figure


def answer_noise(rows: pl.DataFrame) -> dict[str, float | None]:
    """What one answer varies by around its prompt (`answers`: sampling, and the judge's own noise
    with it) and what prompts vary by around the mean (`prompts`): variances by one-way analysis of
    variance over prompts with at least two answers, None where there are no two such prompts."""
    several = rows.drop_nulls("answer_variance")
    if several.height < 2:
        return {"answers": None, "prompts": None}
    k, within = floats(several["answers"]), floats(several["answer_variance"])
    noise = float(((k - 1) * within).sum() / (k - 1).sum())
    of_means = float(np.var(floats(several["value"]), ddof=1))
    return {"answers": noise, "prompts": max(0.0, of_means - noise * float((1 / k).mean()))}


def floats(series: pl.Series) -> Floats:
    """As an array, nan where there is nothing."""
    return series.cast(pl.Float64).fill_null(np.nan).to_numpy()
