"""What each training seed scored, from the items of a comparison."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from core.errors import UserError
from recipes.report import sources
from recipes.report.sources import REMEDY, Inputs

ITEMS = ("benchmark", "metric", "arm", "seed", "item", "value")
"""Columns of comparison.parquet that a page reads."""
Family = tuple[str, str]
"""(benchmark, metric)"""
Seeds = Mapping[tuple[str, str, str], list[tuple[str, float]]]
"""(benchmark, metric, arm) -> each seed with its score, where the arm has several."""


def items(inputs: Inputs) -> pl.DataFrame:
    """Every item of a comparison that has a value: `ITEMS`; empty where there is no comparison.
    Raises UserError where its file lacks a column."""
    path = inputs.get("comparison", Path()) / "comparison.parquet"
    table = sources.read_table(path)
    if table is None:
        return pl.DataFrame(schema=dict.fromkeys(ITEMS[:-1], pl.String) | {"value": pl.Float64})
    missing = [name for name in ITEMS if name not in table.columns]
    if missing:
        raise UserError(f"{path} lacks the column {missing[0]}; {REMEDY}.")
    known = table.select(*ITEMS[:-1], pl.col("value").cast(pl.Float64).fill_nan(None))
    return known.filter(pl.col("value").is_finite())


def of_arms(table: pl.DataFrame) -> pl.DataFrame:
    """The items of an arm that have a value under each of its seeds, as its score counts them:
    `ITEMS`."""
    arm = ["benchmark", "metric", "arm"]
    needed = table.group_by(arm).agg(pl.col("seed").n_unique().alias("needed"))
    there = table.group_by(*arm, "item").agg(pl.col("seed").n_unique().alias("there"))
    whole = there.join(needed, on=arm).filter(pl.col("there") == pl.col("needed"))
    return table.join(whole, on=[*arm, "item"], how="semi", maintain_order="left")


def scores(table: pl.DataFrame) -> Seeds:
    """Each seed's mean over the items that its arm's score is made of."""
    keys = ["benchmark", "metric", "arm", "seed"]
    means = of_arms(table).group_by(keys, maintain_order=True).agg(pl.col("value").mean())
    found = defaultdict(list)
    for benchmark, metric, arm, seed, mean in means.select(*keys, "value").iter_rows():
        found[benchmark, metric, arm].append((seed, mean))
    return {
        key: sorted(each, key=lambda seed: seed[0]) for key, each in found.items() if len(each) > 1
    }
