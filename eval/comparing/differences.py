"""All differences of one metric, each with its intervals, p-value and verdict."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from eval import stats
from eval.comparing.arms import Arm, Family, Pair, between_seeds, pairs, seed_parts
from eval.comparing.errors import Errors, Part, detectable

Row = dict[str, Any]
"""A score or a difference, as comparison.json has it."""


def score(arm: Arm, family: Family) -> Row:
    """An arm's mean over its items and seeds, with the interval of both."""
    interval = stats.NOTHING
    if arm.items:
        part = stats.residuals(arm.values.mean(axis=0), arm.clusters)
        of_seeds = between_seeds(family.members)
        share = of_seeds.variance / len(arm.seeds) if arm.seeds else 0.0
        items = Part(part.variance, len(part.sums) - 1.0)
        interval = Errors(items, Part(share, of_seeds.df)).interval(part.mean, part.n)
    return {
        "benchmark": family.benchmark,
        "metric": family.metric,
        "arm": arm.name,
        "value": interval.value,
        **interval.bounds(),
        "n": len(arm.items),
        "unjudged": arm.unjudged,
        "primary": family.primary,
    }


def differences(
    family: Family,
    baseline: str | None,
    *,
    lower_is_better: bool = False,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[Row]:
    """All pairs of arms of one metric: one family for the simultaneous intervals and for Holm.
    Pairs with the baseline come first, the baseline second in each."""
    found = pairs(family, baseline)
    if not found:
        return []
    seeds = seed_parts(family, found)
    of_items = _items_critical(found, resamples, seed)
    df = np.array([part.df for part in seeds.parts])
    of_seeds = stats.simultaneous(seeds.covariance, df, resamples=resamples, seed=seed)
    rows = []
    for k, pair in enumerate(found):
        errors = Errors(pair.of_items, seeds.parts[k])
        # Never narrower than the interval of one pair.
        single = stats.t_critical(errors.items.df), stats.t_critical(errors.seeds.df)
        wide = float(np.fmax(of_items, single[0])), float(np.fmax(of_seeds[k], single[1]))
        rows.append(_row(family, pair, errors, wide) | _test(pair, errors, resamples, seed))
    adjusted = stats.holm([row["p"] for row in rows])
    for row, pair, p_holm in zip(rows, found, adjusted, strict=True):
        row["p_holm"] = p_holm
        row["verdict"] = _verdict(row, lower_is_better)
        row["scope"] = _scope(pair, family)
    return rows


def _items_critical(found: list[Pair], resamples: int, seed: int) -> float:
    """The critical value of the items' part, for all pairs at once; nan where no pair has any."""
    known = [pair for pair in found if len(pair.part.sums) > 1]
    if not known:
        return math.nan
    fewest = min(len(pair.part.sums) for pair in known)
    errors = stats.joint_errors([(pair.part, pair.clusters) for pair in known])
    return stats.max_t_critical(errors, fewest - 1.0, resamples=resamples, seed=seed)


def _row(family: Family, pair: Pair, errors: Errors, criticals: tuple[float, float]) -> Row:
    """A difference's figures: its own interval, the one that holds for the whole family, and what
    that would detect."""
    value = pair.part.mean
    interval = errors.interval(value, pair.part.n)
    half = errors.half_width(*criticals)
    return {
        "benchmark": family.benchmark,
        "metric": family.metric,
        "a": pair.a.name,
        "b": pair.b.name,
        "difference": value,
        **interval.bounds(),
        "simultaneous_lower": value - half,
        "simultaneous_upper": value + half,
        "detectable": detectable(errors, criticals),
        "n": pair.part.n,
    }


def _test(pair: Pair, errors: Errors, resamples: int, seed: int) -> Row:
    """The p-value of a difference and the name of its test: an exact one where prompts are all that
    is known to vary (one seed an arm), else that of the interval."""
    if errors.seeds.variance or max(len(pair.x), len(pair.y)) > 1:
        return {"p": errors.p_value(pair.part.mean), "test": "t"}
    outcomes = set(np.unique([pair.x, pair.y]).tolist())
    alone = len(set(pair.clusters)) == len(pair.clusters)
    if alone and outcomes in ({0.0, 1.0}, {0.0, 100.0}):
        only = int((pair.x > pair.y).sum()), int((pair.x < pair.y).sum())
        return {"p": stats.mcnemar(*only), "test": "McNemar"}
    p = stats.sign_flip(pair.x[0] - pair.y[0], pair.clusters, resamples, seed)
    return {"p": p, "test": "sign flip"}


def _verdict(row: Row, lower_is_better: bool) -> str:
    """Which arm is better, by the simultaneous interval; by the exact test where all differences
    are equal and no interval exists."""
    apart = row["simultaneous_lower"] > 0 or row["simultaneous_upper"] < 0
    sure = row["standard_error"] > 0 or row["p_holm"] <= 0.05
    if not (apart and sure):  # also for nan: one cluster says nothing
        return "cannot tell"
    first_is_better = (row["difference"] > 0) != lower_is_better
    return f"{row['a'] if first_is_better else row['b']} is better"


def _scope(pair: Pair, family: Family) -> str:
    """What a verdict speaks of: with one training seed of either arm two checkpoints, else the
    filters."""
    one_run = 1 in (len(pair.a.seeds), len(pair.b.seeds))
    about = "these two checkpoints" if one_run else "these filters"
    return about if family.primary else f"{about}; exploratory"
