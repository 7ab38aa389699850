"""Statistics for comparing models: pure functions on arrays, nothing about benchmarks.

Everything here treats a *cluster* (a question judged twice, both turns of one conversation, one
MMLU subject) as the unit that was sampled. Where every item is a cluster of its own, pass no
clusters. Sources: Miller 2024, "Adding Error Bars to Evals" (arXiv 2411.00640) for clustered and
paired errors; Cameron and Miller 2015 for t(G-1); Chernozhukov, Chetverikov and Kato 2013 and
Hothorn, Bretz and Westfall 2008 for max-|t| intervals. What these intervals really cover was
simulated: benchmarks/bench_stats_coverage.py and docs/evaluation.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.errors import UserError

Floats = npt.NDArray[np.float64]

MINIMUM_CLUSTERS = 40
"""The percentile bootstrap is refused below this many clusters: it covers 83 % at 5 clusters and 92
% at 20 where 95 % is promised."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval, all in the unit of the values. `df`: degrees of freedom of the
    t distribution behind it; `n`: items."""

    value: float
    standard_error: float
    lower: float
    upper: float
    df: float
    n: int


@dataclass(frozen=True)
class Residuals:
    """A mean and what each cluster contributes to its error: `sums[g]` with variance of the mean =
    sum of squares of `sums`."""

    mean: float
    sums: Floats  # (G,)
    n: int

    @property
    def variance(self) -> float:
        """Cluster-robust variance of the mean, with the G/(G-1) correction (for clusters of one
        item: sd(ddof=1)^2 / n)."""
        return float(self.sums @ self.sums)


def codes(clusters: npt.ArrayLike | None, n: int) -> tuple[npt.NDArray[np.intp], int]:
    """Cluster labels (n,) of any type as integers 0..G-1, and G. None: every item is a cluster of
    its own."""
    if clusters is None:
        return np.arange(n), n
    labels = np.asarray(clusters)
    if labels.shape != (n,):
        raise ValueError(f"{n} values but clusters of shape {labels.shape}")
    found, index = np.unique(labels, return_inverse=True)
    return index, len(found)


def residuals(values: npt.ArrayLike, clusters: npt.ArrayLike | None = None) -> Residuals:
    """The mean of `values` (n,) and the scaled residual sums of its clusters. At least two clusters
    are needed for a finite variance."""
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0 or not np.isfinite(x).all():
        raise ValueError(
            "values must be finite and not empty; leave out what was not judged before asking for a mean"
        )
    index, groups = codes(clusters, len(x))
    mean = float(x.mean())
    sums = np.bincount(index, weights=x - mean, minlength=groups)
    scale = math.sqrt(groups / (groups - 1)) if groups > 1 else math.nan
    return Residuals(mean, scale * sums / len(x), len(x))


def t_critical(df: float, level: float = 0.95) -> float:
    """Two-sided critical value of Student's t with `df` degrees of freedom (infinite df: the
    normal's; df below 1: nan)."""
    from scipy.special import ndtri, stdtrit

    if math.isnan(df) or df < 1:
        return math.nan
    return float(ndtri(0.5 + level / 2) if math.isinf(df) else stdtrit(df, 0.5 + level / 2))


def t_p_value(statistic: float, df: float) -> float:
    """Two-sided p-value of a t statistic (nan where the standard error is 0 or unknown)."""
    from scipy.special import stdtr

    return (
        math.nan
        if math.isnan(statistic) or math.isnan(df)
        else float(2 * stdtr(df, -abs(statistic)))
    )


def t_interval(
    value: float, standard_error: float, df: float, n: int, level: float = 0.95
) -> Interval:
    """value +- t(df) * standard_error."""
    half = t_critical(df, level) * standard_error
    return Interval(value, standard_error, value - half, value + half, df, n)


def mean_interval(
    values: npt.ArrayLike, clusters: npt.ArrayLike | None = None, level: float = 0.95
) -> Interval:
    """Mean of `values` (n,) with a cluster-robust standard error and a t interval with G-1 degrees
    of freedom.

    With one cluster nothing is known about the error: standard error and bounds are nan.
    """
    parts = residuals(values, clusters)
    return t_interval(parts.mean, math.sqrt(parts.variance), len(parts.sums) - 1, parts.n, level)


def paired_difference(
    a: npt.ArrayLike, b: npt.ArrayLike, clusters: npt.ArrayLike | None = None, level: float = 0.95
) -> Interval:
    """Mean of a - b over items that both have (n,), position i of both being the same item;
    otherwise as `mean_interval`."""
    return mean_interval(
        np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64), clusters, level
    )


def bootstrap_counts(groups: int, resamples: int, seed: int, batch: int = 1000) -> Iterator[Floats]:
    """How often each of `groups` clusters is drawn: `resamples` rows of `groups` counts, in batches
    (b, G), the same for the same seed.

    Raises UserError below MINIMUM_CLUSTERS clusters, where percentile intervals are known to be too
    narrow.
    """
    if groups < MINIMUM_CLUSTERS:
        raise UserError(
            f"a bootstrap over {groups} clusters would give intervals that are too narrow (at least {MINIMUM_CLUSTERS} are needed); "
            "use more prompts, or the t interval."
        )
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, batch):
        rows = min(batch, resamples - start)
        drawn = rng.integers(0, groups, size=(rows, groups)) + groups * np.arange(rows)[:, None]
        yield (
            np.bincount(drawn.ravel(), minlength=rows * groups)
            .reshape(rows, groups)
            .astype(np.float64)
        )


def bootstrap_interval(
    values: npt.ArrayLike,
    clusters: npt.ArrayLike | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Mean of `values` (n,) with a percentile interval over resampled clusters. Raises UserError
    below MINIMUM_CLUSTERS clusters."""
    x = np.asarray(values, dtype=np.float64)
    index, groups = codes(clusters, len(x))
    sums, sizes = (
        np.bincount(index, weights=x, minlength=groups),
        np.bincount(index, minlength=groups).astype(np.float64),
    )
    means = np.concatenate(
        [(w @ sums) / (w @ sizes) for w in bootstrap_counts(groups, resamples, seed)]
    )
    lower, upper = percentiles(means, level)
    return Interval(float(x.mean()), float(means.std(ddof=1)), lower, upper, groups - 1, len(x))


def percentiles(draws: Floats, level: float = 0.95) -> tuple[float, float]:
    """The two percentiles of bootstrap draws (R,) that leave (1 - level) / 2 outside on each
    side."""
    lower, upper = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    return float(lower), float(upper)


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for a rate of independent 0/1 outcomes, as fractions in [0, 1] (n = 0:
    nothing is known, (0, 1))."""
    if n == 0:
        return 0.0, 1.0
    z = t_critical(math.inf, level)
    rate, spread = successes / n, z * z / n
    centre = (rate + spread / 2) / (1 + spread)
    half = math.sqrt(rate * (1 - rate) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided McNemar p-value: of the items that only one arm solved, `only_a` were solved
    by a and `only_b` by b."""
    from scipy.special import bdtr

    total = only_a + only_b
    return 1.0 if total == 0 else min(1.0, 2 * float(bdtr(min(only_a, only_b), total, 0.5)))


def sign_flip(
    differences: npt.ArrayLike,
    clusters: npt.ArrayLike | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> float:
    """Two-sided p-value of the sign-flip permutation test on paired differences (n,): whole
    clusters change sign together.

    Under the null the two arms could be exchanged within every cluster. Exact (all 2^G signs) up to
    12 clusters; above that the observed assignment counts as one of the resamples (Phipson and
    Smyth 2010), so the size never exceeds the level.
    """
    x = np.asarray(differences, dtype=np.float64)
    index, groups = codes(clusters, len(x))
    sums = np.bincount(index, weights=x, minlength=groups)
    observed = (
        abs(sums.sum()) * (1 - 1e-12) - 1e-12
    )  # ties count as at least as extreme, rounding included
    if groups <= 12:
        signs = 1.0 - 2.0 * ((np.arange(2**groups)[:, None] >> np.arange(groups)) & 1)
        return float((abs(signs @ sums) >= observed).mean())
    rng = np.random.default_rng(seed)
    extreme = 0
    for start in range(0, resamples, 1000):
        rows = min(1000, resamples - start)
        bits = np.unpackbits(
            rng.integers(0, 256, size=(rows, (groups + 7) // 8), dtype=np.uint8),
            axis=1,
            count=groups,
        )
        extreme += int((abs(sums.sum() - 2.0 * (bits @ sums)) >= observed).sum())
    return (1 + extreme) / (1 + resamples)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values in the order given (family-wise error under any dependence); nan
    stays nan and counts as one test."""
    order = sorted(
        range(len(p_values)), key=lambda i: math.inf if math.isnan(p_values[i]) else p_values[i]
    )
    adjusted, running = [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        if not math.isnan(p_values[i]):
            running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
            adjusted[i] = running
    return adjusted


def seed_variance(
    arms: Sequence[Floats], clusters: Sequence[npt.ArrayLike | None] | None = None
) -> tuple[float, float]:
    """Variance that training seeds add to a score, pooled over arms: `arms` holds one array (seeds,
    items) for each arm.

    The variance between the seeds' scores also holds what a finite set of prompts adds (prompts on
    which the seeds happen to differ), which the error over prompts counts already; that part is
    estimated from the seed-by-prompt residuals and taken off (two-way analysis of variance).
    Returns (variance of one seed, its degrees of freedom, fewer the more was taken off); (0, 0)
    when no arm has two seeds or nothing is left.
    """
    between, noise, df = 0.0, 0.0, 0
    for position, scores in enumerate(arms):
        seeds, items = scores.shape
        if seeds < 2:
            continue
        means = scores.mean(axis=1)
        between += float(((means - means.mean()) ** 2).sum())
        left = scores - means[:, None] - scores.mean(axis=0) + means.mean()
        labels = None if clusters is None else clusters[position]
        noise += sum(residuals(row, labels).variance for row in left) if items > 1 else 0.0
        df += seeds - 1
    if df == 0 or between <= noise:
        return 0.0, 0.0
    return (between - noise) / df, df * ((between - noise) / between) ** 2


def satterthwaite(parts: Sequence[tuple[float, float]]) -> float:
    """Degrees of freedom of a sum of estimated variances, from (variance, df) pairs; parts of
    variance 0 do not count."""
    total = sum(variance for variance, _ in parts)
    weight = sum(variance**2 / df for variance, df in parts if variance > 0)
    return total**2 / weight if weight > 0 else max((df for _, df in parts), default=math.nan)


def max_t_critical(
    errors: Floats,
    seeds: Floats | None = None,
    df: float = math.inf,
    seeds_df: float = math.inf,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> float:
    """Critical value for simultaneous intervals of K estimates: the `level` quantile of max |t|
    under one joint bootstrap.

    `errors` (G, K): residual sums of the clusters (`Residuals.sums`), the same cluster in the same
    row for every estimate. The bootstrap is the multiplier one: every resample weighs each cluster
    by one standard normal for all K estimates. Given the data, those sums are exactly normal with
    covariance errors' errors, so they are drawn from it at a cost that does not depend on G.
    `seeds` (K, K): covariance that the training seeds add. Both variances are studentised with
    chi-square draws of their `df` and `seeds_df`, so that with K = 1 and no seeds the result is
    Student's t(df). Estimates without any variance are left out; nan when none has any.
    """
    covariance = errors.T @ errors
    extra = np.zeros_like(covariance) if seeds is None else seeds
    used = np.diag(covariance) + np.diag(extra) > 0
    if not used.any() or df < 1:
        return math.nan
    rng = np.random.default_rng(seed)
    item_part, seed_part = covariance[np.ix_(used, used)], extra[np.ix_(used, used)]
    draws = (
        rng.standard_normal((resamples, used.sum())) @ _root(item_part).T
        + rng.standard_normal((resamples, used.sum())) @ _root(seed_part).T
    )
    variance = np.outer(_chi(rng, df, resamples), np.diag(item_part)) + np.outer(
        _chi(rng, seeds_df, resamples), np.diag(seed_part)
    )
    return float(np.quantile(abs(draws / np.sqrt(variance)).max(axis=1), level))


def _root(covariance: Floats) -> Floats:
    """A matrix R with R R' = covariance, which may be singular (differences of three arms have rank
    two)."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.clip(values, 0, None)))


def _chi(rng: np.random.Generator, df: float, size: int) -> Floats:
    """Chi-square draws divided by their degrees of freedom (infinite: ones)."""
    return np.ones(size) if math.isinf(df) or df <= 0 else rng.chisquare(df, size) / df


def detectable_difference(
    standard_error: float, critical: float, df: float = math.inf, power: float = 0.8
) -> float:
    """Smallest true difference found with probability `power` by an interval of half-width critical
    * standard_error."""
    from scipy.special import ndtri, stdtrit

    quantile = (
        float(ndtri(power) if math.isinf(df) else stdtrit(df, power)) if df >= 1 else math.nan
    )
    return (critical + quantile) * standard_error
