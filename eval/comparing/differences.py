"""All differences of one metric, each with its intervals, p-value and verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval import stats
from eval.comparing.arms import Arm, Family, Pair, between_seeds, pairs, seed_parts
from eval.comparing.errors import Errors, Part, detectable

Row = dict[str, Any]
"""A score or a difference, as comparison.json has it."""

CANNOT_TELL = "cannot tell"
LOOKED_AT = 0.975
"""The level of the items' critical value where judging may stop on the way: by Levy's inequality
that is 95 % at all times together (eval/comparing/sequential.py)."""


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


@dataclass(frozen=True)
class Estimate:
    """A difference with both parts of its error, and the interval that holds for all differences
    of its family at once."""

    pair: Pair
    errors: Errors
    criticals: tuple[float, float]
    """Of the items' part and of the seeds'."""

    @property
    def value(self) -> float:
        """The mean difference."""
        return self.pair.part.mean

    @property
    def bounds(self) -> tuple[float, float]:
        """The simultaneous interval."""
        half = self.errors.half_width(*self.criticals)
        return self.value - half, self.value + half

    @property
    def apart(self) -> bool:
        """Whether the simultaneous interval leaves out 0; not where the error is unknown."""
        lower, upper = self.bounds
        return lower > 0 or upper < 0


def estimates(
    family: Family, baseline: str | None, *, resamples: int = 10_000, seed: int = 0
) -> list[Estimate]:
    """The differences of all pairs of arms of one metric. Pairs with the baseline come first, the
    baseline second in each."""
    found = pairs(family, baseline)
    if not found:
        return []
    seeds = seed_parts(family, found)
    level = LOOKED_AT if family.planned else 0.95
    of_items = _items_critical(found, level, resamples, seed)
    df = np.array([part.df for part in seeds.parts])
    of_seeds = stats.simultaneous(seeds.covariance, df, resamples=resamples, seed=seed)
    made = []
    for pair, part, critical in zip(found, seeds.parts, of_seeds, strict=True):
        errors = Errors(pair.of_items, part)
        # Never narrower than the interval of one pair.
        single = stats.t_critical(errors.items.df, level), stats.t_critical(errors.seeds.df)
        wide = float(np.fmax(of_items, single[0])), float(np.fmax(critical, single[1]))
        made.append(Estimate(pair, errors, (pair.stretch * wide[0], wide[1])))
    return made


def verdicts(
    found: Sequence[Estimate],
    *,
    lower_is_better: bool = False,
    equivalent: float | None = None,
    seed: int = 0,
) -> list[str]:
    """Which arm is better, for each difference of a family: by its simultaneous interval, and by
    the exact test (after Holm) where all items differ alike and an interval of no width says
    nothing.

    `equivalent`: the smallest difference that would matter, in the metric's unit. Where no arm is
    better, an interval within it on both sides says "equal within", on one side that an arm is "no
    worse". All such statements of a family follow from intervals that hold at once, so they hold
    at once.
    """
    if any(one.apart and not one.errors.standard_error > 0 for one in found):
        exact = stats.holm([test["p"] for test in _tests(found, 10_000, seed)])
    else:
        exact = [math.nan] * len(found)
    sure = [one.errors.standard_error > 0 or p <= 0.05 for one, p in zip(found, exact, strict=True)]
    return [
        _verdict(one, known, lower_is_better, equivalent)
        for one, known in zip(found, sure, strict=True)
    ]


def _verdict(one: Estimate, sure: bool, lower_is_better: bool, equivalent: float | None) -> str:
    better, worse = one.pair.a.name, one.pair.b.name
    lower, upper = one.bounds
    if (one.value > 0) == lower_is_better:
        better, worse = worse, better
    if one.value < 0:
        lower, upper = -upper, -lower
    if one.apart and sure:
        return f"{better} is better"
    if equivalent is None or not one.errors.standard_error > 0:
        return CANNOT_TELL
    if max(-lower, upper) < equivalent:
        return f"equal within {equivalent:g}"
    if -lower < equivalent:
        return f"{better} is no worse"
    return CANNOT_TELL


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
    tests = _tests(found, resamples, seed)
    rows = [_row(family, one) | test for one, test in zip(found, tests, strict=True)]
    adjusted = stats.holm([row["p"] for row in rows])
    said = verdicts(found, lower_is_better=lower_is_better, equivalent=equivalent, seed=seed)
    for row, one, p_holm, verdict in zip(rows, found, adjusted, said, strict=True):
        row |= {"p_holm": p_holm, "verdict": verdict, "scope": _scope(one.pair, family)}
    return rows


def _items_critical(found: list[Pair], level: float, resamples: int, seed: int) -> float:
    """The critical value of the items' part, for all pairs at once; nan where no pair has any."""
    known = [pair for pair in found if len(pair.part.sums) > 1]
    if not known:
        return math.nan
    fewest = min(len(pair.part.sums) for pair in known)
    errors = stats.joint_errors([(pair.part, pair.clusters) for pair in known])
    return stats.max_t_critical(errors, fewest - 1.0, level=level, resamples=resamples, seed=seed)


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


def _tests(found: Sequence[Estimate], resamples: int, seed: int) -> list[Row]:
    """The p-value of each difference and the name of its test: an exact one where prompts are all
    that is known to vary (one seed an arm), else that of the interval."""
    tests: list[Row] = [_direct(one) for one in found]
    flipped = [one for one, test in zip(found, tests, strict=True) if test["p"] is None]
    # Pairs on the same items flip the same signs, so that all of them cost one.
    alike: dict[tuple[str, ...], list[Pair]] = {}
    for one in flipped:
        alike.setdefault(tuple(one.pair.clusters), []).append(one.pair)
    p_values: dict[int, float] = {}
    for clusters, of in alike.items():
        x = np.column_stack([pair.x[0] - pair.y[0] for pair in of])
        found_p = stats.sign_flips(x, clusters, resamples, seed)
        p_values |= {id(pair): p for pair, p in zip(of, found_p, strict=True)}
    for one, test in zip(found, tests, strict=True):
        if test["p"] is None:
            test["p"] = p_values[id(one.pair)]
    return tests


def _direct(one: Estimate) -> Row:
    """The test of a difference; of a sign flip only its name, with p None."""
    pair = one.pair
    if pair.planned:
        return {"p": one.errors.p_value(one.value, pair.stretch, 2), "test": "sequence"}
    if one.errors.seeds.variance or max(len(pair.x), len(pair.y)) > 1:
        return {"p": one.errors.p_value(one.value), "test": "t"}
    outcomes = set(np.unique([pair.x, pair.y]).tolist())
    alone = len(pair.part.sums) == len(pair.clusters)
    if alone and outcomes in ({0.0, 1.0}, {0.0, 100.0}):
        only = int((pair.x > pair.y).sum()), int((pair.x < pair.y).sum())
        return {"p": stats.mcnemar(*only), "test": "McNemar"}
    return {"p": None, "test": "sign flip"}


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
