"""Scores folders as one table of items, and the items of one arm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from core.errors import UserError
from eval.comparing.arms import Arm, Asked, Noise
from eval.comparing.metrics import AGAINST_BASELINE

COLUMNS = ["benchmark", "metric", "item", "cluster", "value", "status", "reason"]
"""Of a scores file, which may also say `higher_is_better` of its metrics."""
MEASURED = ["answers", "answer_variance", "judges", "judge_variance"]
"""Columns that a scores file may have beside them: over how many sampled answers an item's value is
the mean, and their variance (of one answer's value, with n - 1); the same for several judges of
the same answers. Null where there is one alone."""


def read(key: str, folder: Path) -> pl.DataFrame:
    """One scores folder with its arm and seed beside each item; one row an item of a metric is a
    condition of everything below."""
    path = folder / "scores.parquet"
    if not path.is_file():
        raise UserError(
            f"the scores of {key} are missing: there is no {path}; run its evaluation first."
        )
    frame = pl.read_parquet(path, glob=False)
    missing = [column for column in COLUMNS if column not in frame.columns]
    if missing:
        raise UserError(
            f"{path} lacks the column {missing[0]}; a scores file has {', '.join(COLUMNS)}."
        )
    names = frame.select("benchmark", "metric", "item")
    twice = names.filter(names.is_duplicated())
    if twice.height:
        benchmark, metric, item = twice.row(0)
        raise UserError(
            f"{path} holds the item {item} of {benchmark}/{metric} more than once; "
            "give each its own name and share the cluster."
        )
    arm, _, training_seed = key.partition("/")
    said = pl.lit(None, pl.Boolean)
    if "higher_is_better" in frame.columns:
        said = pl.col("higher_is_better")
    return frame.select(
        *COLUMNS[:4],
        pl.col("value").cast(pl.Float64).fill_nan(None),
        *(_measured(frame, column) for column in MEASURED),
        arm=pl.lit(arm),
        seed=pl.lit(training_seed),
        higher_is_better=said,
    )


def _measured(frame: pl.DataFrame, column: str) -> pl.Expr:
    """A column that not every scores file has."""
    own = pl.col(column) if column in frame.columns else pl.lit(None)
    return own.cast(pl.Float64).fill_nan(None).alias(column)


def _noise(own: pl.DataFrame, count: str, variance: str) -> Noise:
    """What was averaged away in an arm's values."""
    if variance not in own.columns or own[variance].count() == 0:
        return Noise()
    known = own.filter(pl.col(variance).is_not_null())
    return Noise(round(float(known[count].mean() or 1)), float(known[variance].mean() or 0))  # type: ignore[arg-type]


def arm(name: str, metric: str, rows: pl.DataFrame, is_baseline: bool) -> Arm | None:
    """One arm's items, those judged under every one of its seeds that has any value; None where it
    was not scored (and is no baseline by definition)."""
    own = rows.filter(pl.col("arm") == name)
    by_definition = own.is_empty() and is_baseline and metric in AGAINST_BASELINE
    if by_definition:
        everyone = rows.unique("item", keep="first", maintain_order=True)
        own = everyone.with_columns(value=AGAINST_BASELINE[metric], seed=pl.lit(""))
    if own.is_empty():
        return None
    seeds = own["seed"].unique(maintain_order=True).to_list()
    items = own.unique("item", keep="first", maintain_order=True).select("item", "cluster")
    by_seed = own.pivot("seed", index="item", values="value")
    asked = items.join(by_seed, on="item", maintain_order="left")
    # A seed that nothing was judged of is one seed less, not the end of the others.
    kept = [seed for seed in seeds if asked[seed].count()] or seeds
    judged = asked.drop_nulls(kept)
    unjudged = items.height * len(seeds) - own["value"].count()
    return Arm(
        name=name,
        items=judged["item"].to_list(),
        clusters=judged["cluster"].to_list(),
        values=np.ascontiguousarray(judged.select(kept).to_numpy().T),
        seeds=tuple(seed for seed in kept if seed),
        unjudged=unjudged,
        by_definition=by_definition,
        answers=_noise(own, "answers", "answer_variance"),
        judges=_noise(own, "judges", "judge_variance"),
        asked=_asked(asked, seeds) if unjudged else None,
    )


def _asked(asked: pl.DataFrame, seeds: Sequence[str]) -> Asked:
    """All items with their values under each seed, nan where there is none."""
    values = asked.select(seeds).cast(pl.Float64).to_numpy().T
    names = tuple(seed for seed in seeds if seed)
    items, clusters = asked["item"].to_list(), asked["cluster"].to_list()
    return Asked(items, clusters, np.ascontiguousarray(values), names)
