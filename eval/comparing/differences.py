"""All differences of one metric, each with its intervals, p-value and verdict."""

from __future__ import annotations

from typing import Any

import numpy as np

from eval import stats
from eval.comparing.arms import Arm, Family, Pair, between_seeds
from eval.comparing.errors import Errors, Part, detectable
from eval.comparing.estimates import CANNOT_TELL, Estimate, estimates, tested, verdicts
from eval.comparing.missing import missing
from eval.comparing.planning.components import components
from eval.comparing.planning.settled import settled

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
        "seeds": len(arm.seeds),
        "primary": family.primary,
    }


def differences(
    family: Family,
    baseline: str | None,
    *,
    lower_is_better: bool = False,
    equivalent: float | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[Row]:
    """All pairs of arms of one metric, one family for the simultaneous intervals and for Holm, as
    rows of comparison.json. `equivalent`: as in `verdicts`."""
    found = estimates(family, baseline, resamples=resamples, seed=seed)
    known = components(family, found)
    lacking = missing(family, found, baseline=baseline, lower_is_better=lower_is_better, seed=seed)
    tests = tested(found, resamples, seed)
    rows = [_row(family, one) | test for one, test in zip(found, tests, strict=True)]
    within = stats.holm([row["p"] for row in rows])
    adjusted = [float(np.minimum(1.0, p * family.beside)) for p in within]  # nan stays nan
    said = verdicts(found, lower_is_better=lower_is_better, equivalent=equivalent, seed=seed)
    for row, one, p_holm, verdict, lack in zip(rows, found, adjusted, said, lacking, strict=True):
        row |= {"p_holm": p_holm, "verdict": verdict, "scope": _scope(one.pair, family)}
        row["missing"] = lack
        row["settled"] = settled(one, known) if verdict == CANNOT_TELL else None
    return rows


def _row(family: Family, one: Estimate) -> Row:
    """A difference's figures: its own interval, the one that holds for the whole family, and what
    that would detect."""
    interval = one.errors.interval(one.value, one.pair.part.n)
    lower, upper = one.bounds
    return {
        "benchmark": family.benchmark,
        "metric": family.metric,
        "a": one.pair.a.name,
        "b": one.pair.b.name,
        "difference": one.value,
        **interval.bounds(),
        "simultaneous_lower": lower,
        "simultaneous_upper": upper,
        "detectable": detectable(one.errors, one.criticals),
        "n": one.pair.part.n,
    }


def _scope(pair: Pair, family: Family) -> str:
    """What a verdict speaks of: filters where both arms were trained with several seeds, two
    checkpoints where one of them was trained once, else the finished model that one or both are."""
    kinds = {_trainings(arm, family) for arm in (pair.a, pair.b)}
    about = "these filters"
    if "one" in kinds:
        about = "these two checkpoints"
    elif kinds == {"none"}:
        about = "these two models"
    elif "none" in kinds:
        about = "this filter and this model"
    return about if family.primary else f"{about}; exploratory"


def _trainings(arm: Arm, family: Family) -> str:
    """How often an arm was trained: "none" is a finished model's; a baseline that scores by
    definition was trained with the seeds that the others were judged against."""
    seeds = family.trained_baseline if arm.by_definition else arm.seeds
    return ("none", "one", "several")[min(len(seeds), 2)]
