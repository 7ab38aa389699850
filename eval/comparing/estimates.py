"""All differences of one metric with their errors, and what they say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval import stats
from eval.comparing.arms import Family, Pair, pairs, seed_parts
from eval.comparing.errors import Errors

CANNOT_TELL = "cannot tell"
IS_BETTER = " is better"
"""How a verdict ends that tells two arms apart; "is no worse" and "equal within" do not."""
LOOKED_AT = 0.975
"""The level of the items' critical value where judging may stop on the way: by Levy's inequality
that is 95 % at all times together (eval/comparing/sequential.py)."""


@dataclass(frozen=True)
class Estimate:
    """A difference with both parts of its error, and the interval that holds for all differences
    of its family at once."""

    pair: Pair
    errors: Errors
    criticals: tuple[float, float]
    """Of the items' part and of the seeds'."""
    beside: int = 1
    """As in the family."""

    @property
    def value(self) -> float:
        """The mean difference; 0 where it is no more than rounding leaves."""
        largest = max(float(abs(self.pair.x).max()), float(abs(self.pair.y).max()))
        return float(stats.without_rounding(np.array(self.pair.part.mean), largest))

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
    level = family.level(LOOKED_AT if family.planned else 0.95)
    of_all = family.level(0.95)
    of_items = _items_critical(found, level, resamples, seed)
    df = np.array([part.df for part in seeds.parts])
    of_seeds = stats.simultaneous(
        seeds.covariance, df, level=of_all, resamples=resamples, seed=seed
    )
    made = []
    for pair, part, critical in zip(found, seeds.parts, of_seeds, strict=True):
        errors = Errors(pair.of_items, part)
        # Never narrower than the interval of one pair.
        single = (
            stats.t_critical(errors.items.df, level),
            stats.t_critical(errors.seeds.df, of_all),
        )
        wide = float(np.fmax(of_items, single[0])), float(np.fmax(critical, single[1]))
        made.append(Estimate(pair, errors, (pair.stretch * wide[0], wide[1]), family.beside))
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
        exact = stats.holm([test["p"] for test in tested(found, 10_000, seed)])
    else:
        exact = [math.nan] * len(found)
    sure = [
        one.errors.standard_error > 0 or p * one.beside <= 0.05
        for one, p in zip(found, exact, strict=True)
    ]
    return [
        _verdict(one, known, lower_is_better, equivalent)
        for one, known in zip(found, sure, strict=True)
    ]


def _verdict(one: Estimate, sure: bool, lower_is_better: bool, equivalent: float | None) -> str:
    """What one difference says; the arm that looks better comes first, and its interval is turned
    so that larger is better for it."""
    better, worse = one.pair.a.name, one.pair.b.name
    lower, upper = one.bounds
    if (one.value > 0) == lower_is_better:
        better, worse = worse, better
    if one.value < 0:
        lower, upper = -upper, -lower
    if one.apart and sure:
        return f"{better}{IS_BETTER}"
    if equivalent is None or not one.errors.standard_error > 0:
        return CANNOT_TELL
    if max(-lower, upper) < equivalent:
        return f"equal within {equivalent:g}"
    if -lower < equivalent:
        return f"{better} is no worse"
    return CANNOT_TELL


def tested(found: Sequence[Estimate], resamples: int, seed: int) -> list[dict[str, Any]]:
    """The p-value of each difference and the name of its test: an exact one where prompts are all
    that is known to vary (one seed an arm), else that of the interval."""
    tests: list[dict[str, Any]] = [_direct(one) for one in found]
    flipped = [one for one, test in zip(found, tests, strict=True) if test["p"] is None]
    # Pairs on the same items flip the same signs, so that all of them cost one.
    alike: dict[bytes, list[Pair]] = {}
    for one in flipped:
        alike.setdefault(one.pair.clusters.tobytes(), []).append(one.pair)
    p_values: dict[int, float] = {}
    for of in alike.values():
        x = np.column_stack([pair.x[0] - pair.y[0] for pair in of])
        found_p = stats.sign_flips(x, of[0].clusters, resamples, seed)
        p_values |= {id(pair): p for pair, p in zip(of, found_p, strict=True)}
    for one, test in zip(found, tests, strict=True):
        if test["p"] is None:
            test["p"] = p_values[id(one.pair)]
    return tests


def _direct(one: Estimate) -> dict[str, Any]:
    """The test of a difference; of a sign flip only its name, with p None."""
    pair = one.pair
    # Where no prompt differs from another, the exact tests hold at every look: if all of them agree
    # later on, they agreed at the first look, and that is as rare by chance as the test says.
    if pair.planned and one.errors.standard_error > 0:
        return {"p": one.errors.p_value(one.value, pair.stretch, 2), "test": "sequence"}
    if one.errors.seeds.variance or max(len(pair.x), len(pair.y)) > 1:
        return {"p": one.errors.p_value(one.value), "test": "t"}
    outcomes = set(np.unique([pair.x, pair.y]).tolist())
    alone = len(pair.part.sums) == len(pair.clusters)
    if alone and outcomes in ({0.0, 1.0}, {0.0, 100.0}):
        only = int((pair.x > pair.y).sum()), int((pair.x < pair.y).sum())
        return {"p": stats.mcnemar(*only), "test": "McNemar"}
    return {"p": None, "test": "sign flip"}


def _items_critical(found: list[Pair], level: float, resamples: int, seed: int) -> float:
    """The critical value of the items' part, for all pairs at once; nan where no pair has any."""
    known = [pair for pair in found if len(pair.part.sums) > 1]
    if not known:
        return math.nan
    fewest = min(len(pair.part.sums) for pair in known)
    errors = stats.joint_errors([(pair.part, pair.clusters) for pair in known])
    return stats.max_t_critical(errors, fewest - 1.0, level=level, resamples=resamples, seed=seed)
