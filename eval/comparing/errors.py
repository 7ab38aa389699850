"""The error of a difference that two things vary: the prompts that were drawn, and the training
seeds.

Each part is a variance that was estimated, with its own degrees of freedom, and each gets its own
Student quantile: half width = sqrt(t_items^2 * v_items + t_seeds^2 * v_seeds). One t for the sum
(Satterthwaite) promises too much where two or three seeds are all that is known: with a seed
variance that came out small by chance it rejects true nulls in up to 13 %. Nothing is taken off the
variance between seeds either, though a part of it is the prompts' (they count twice, so the
interval errs towards "cannot tell"). What this holds to, and what it costs, was simulated:
benchmarks/bench_stats_coverage.py and docs/statistics.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from eval.stats import Floats, Interval, t_critical

POWER = 0.8
"""A difference counts as detectable when it is found so often."""


@dataclass(frozen=True)
class Part:
    """What one source of chance adds to the variance of an estimate, known with `df` degrees of
    freedom; variance 0 where it adds nothing."""

    variance: float
    df: float = math.inf


@dataclass(frozen=True)
class Errors:
    """The two parts of an estimate's error."""

    items: Part
    seeds: Part = Part(0.0)

    @property
    def standard_error(self) -> float:
        """Root of the summed variances, in the unit of the values."""
        return math.sqrt(self.items.variance + self.seeds.variance)

    def half_width(self, of_items: float, of_seeds: float) -> float:
        """Half of the interval for the critical values of the two parts; a part without variance
        adds nothing, whatever its critical value."""
        squares = 0.0
        for part, critical in ((self.items, of_items), (self.seeds, of_seeds)):
            # not "> 0": nan (one cluster says nothing about the error) has to stay nan
            squares += critical**2 * part.variance if part.variance != 0 else 0.0
        return math.sqrt(squares)

    def interval(self, value: float, n: int, level: float = 0.95) -> Interval:
        """The interval of this estimate alone. `df` is that of the part with the larger share."""
        items, seeds = self.items, self.seeds
        half = self.half_width(t_critical(items.df, level), t_critical(seeds.df, level))
        larger = seeds if seeds.variance > items.variance else items
        return Interval(value, self.standard_error, value - half, value + half, larger.df, n)

    def p_value(self, value: float, stretch: float = 1.0, looks: int = 1) -> float:
        """The level at which the interval of this estimate alone just touches 0, not below 1e-12 (1
        where nothing varies; nan where the error is unknown). `stretch` and `looks`: of an interval
        that was looked at on the way (eval/comparing/sequential.py), whose items' part is
        `stretch` times as wide at a level of p / `looks`."""
        from scipy.optimize import brentq

        if not self.standard_error > 0:
            return 1.0 if self.standard_error == 0 else math.nan

        def beyond(logarithm: float) -> float:
            p = math.exp(logarithm)
            of_items = stretch * t_critical(self.items.df, 1 - p / looks)
            return self.half_width(of_items, t_critical(self.seeds.df, 1 - p)) - abs(value)

        smallest = math.log(1e-12)
        if math.isnan(beyond(-1.0)):
            return math.nan
        if beyond(smallest) <= 0:
            return math.exp(smallest)
        if beyond(0.0) >= 0:
            return 1.0
        return math.exp(float(brentq(beyond, smallest, 0.0, xtol=1e-9)))


def power(
    difference: float, errors: Errors, criticals: tuple[float, float], true: float | None = None
) -> float:
    """How often an interval with these critical values (of items, of seeds) would leave out 0 when
    the true difference is `difference`: the two variances are drawn anew around what they are
    here.

    `true`: the estimate's real standard error, where it is less than `errors` say (the variance
    between seeds counts a part of the prompts' again)."""
    from scipy.special import ndtr

    squared, weights = np.zeros((1, 1)), np.ones((1, 1))
    for part, critical, axis in zip(
        (errors.items, errors.seeds), criticals, ((-1, 1), (1, -1)), strict=True
    ):
        if part.variance != 0:
            places, of_each = _spread(part.df)
            squared = squared + critical**2 * part.variance * places.reshape(axis)
            weights = weights * of_each.reshape(axis)
    half, error = np.sqrt(squared), true or errors.standard_error
    found = ndtr((difference - half) / error) + ndtr((-difference - half) / error)
    return float((weights * found).sum())


@cache
def _spread(df: float) -> tuple[Floats, Floats]:
    """Values of an estimated variance, as multiples of the true one, and the weight of each:
    Gauss-Legendre places on the scale of its probability."""
    from scipy.special import chdtri

    if math.isinf(df):
        return np.ones(1), np.ones(1)
    nodes, weights = np.polynomial.legendre.leggauss(32)
    return np.asarray(chdtri(df, (nodes + 1) / 2) / df), weights / 2


def detectable(errors: Errors, criticals: tuple[float, float], true: float | None = None) -> float:
    """The smallest true difference that is found 8 times in 10; nan where the error is 0 or
    unknown. `true`: as in `power`."""
    from scipy.optimize import brentq

    error = errors.standard_error
    half = errors.half_width(*criticals)
    if not (error > 0 and math.isfinite(half)):
        return math.nan

    def short(difference: float) -> float:
        return power(difference, errors, criticals, true) - POWER

    return float(brentq(short, 0.0, half * 10 + 10 * error, xtol=error / 1e4))
