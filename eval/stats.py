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
from itertools import chain
from typing import Any

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

    def bounds(self) -> dict[str, float]:
        """What tables hold beside a value: standard_error, lower, upper."""
        return {
            "standard_error": self.standard_error,
            "lower": self.lower,
            "upper": self.upper,
        }


NOTHING = Interval(math.nan, math.nan, math.nan, math.nan, math.nan, 0)
"""What is known of the mean of no values."""


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

    def with_seeds(self, variance: float, df: float) -> Interval:
        """The mean's t interval where training seeds add `variance`, known with `df` degrees of
        freedom, to what the items say."""
        parts = [(self.variance, len(self.sums) - 1.0), (variance, df)]
        error = math.sqrt(sum(part for part, _ in parts))
        return t_interval(self.mean, error, satterthwaite(parts), self.n)


def codes(clusters: npt.ArrayLike | None, n: int) -> tuple[npt.NDArray[np.intp], int]:
    """Cluster labels (n,) of any type as integers 0..G-1, and G. None: every item is a cluster of
    its own."""
    if clusters is None:
        return np.arange(n), n
    labels = np.asarray(clusters)
    if labels.shape != (n,):
        raise ValueError(f"{n} values but clusters of shape {labels.shape}")
    names, index = np.unique(labels, return_inverse=True)
    return index, len(names)


def residuals(values: npt.ArrayLike, clusters: npt.ArrayLike | None = None) -> Residuals:
    """The mean of `values` (n,) and the scaled residual sums of its clusters. At least two clusters
    are needed for a finite variance."""
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0 or not np.isfinite(x).all():
        raise ValueError(
            "values must be finite and not empty; "
            "leave out what was not judged before asking for a mean"
        )
    index, groups = codes(clusters, len(x))
    mean = float(x.mean())
    sums = np.bincount(index, weights=x - mean, minlength=groups)
    scale = math.sqrt(groups / (groups - 1)) if groups > 1 else math.nan
    return Residuals(mean, scale * sums / len(x), len(x))


def t_critical(df: float, level: float = 0.95) -> float:
    """Two-sided critical value of Student's t with `df` degrees of freedom (infinite df: the
    normal's; df below 1: nan)."""
    return _t_quantile(0.5 + level / 2, df)


def _t_quantile(p: float, df: float) -> float:
    from scipy.special import ndtri, stdtrit

    if not df >= 1:  # also nan
        return math.nan
    return float(ndtri(p) if math.isinf(df) else stdtrit(df, p))


def t_p_value(statistic: float, df: float) -> float:
    """Two-sided p-value of a t statistic (nan where the standard error is 0 or unknown)."""
    from scipy.special import stdtr

    return float(2 * stdtr(df, -abs(statistic)))


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


def bootstrap_counts(groups: int, resamples: int, seed: int, batch: int = 1000) -> Iterator[Floats]:
    """How often each of `groups` clusters is drawn: `resamples` rows of `groups` counts, in batches
    (b, G), the same for the same seed.

    Raises UserError below MINIMUM_CLUSTERS clusters, where percentile intervals are known to be too
    narrow.
    """
    if groups < MINIMUM_CLUSTERS:
        raise UserError(
            f"a bootstrap over {groups} clusters would give intervals that are too narrow "
            f"(at least {MINIMUM_CLUSTERS} are needed); use more prompts, or the t interval."
        )
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, batch):
        rows = min(batch, resamples - start)
        # Each row counts in bins of its own, so that one bincount serves the whole batch.
        drawn = rng.integers(0, groups, size=(rows, groups)) + groups * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * groups)
        yield counts.reshape(rows, groups).astype(np.float64)


def draws_interval(value: float, draws: Floats, df: float, n: int, level: float = 0.95) -> Interval:
    """`value` with the spread of its bootstrap draws (R,) as standard error and their percentiles
    as bounds."""
    error = float(draws.std(ddof=1))
    return Interval(value, error, *percentiles(draws, level), df, n)


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
    # Ties count as at least as extreme, rounding included.
    observed = abs(sums.sum()) * (1 - 1e-12) - 1e-12
    if groups <= 12:
        signs = 1.0 - 2.0 * ((np.arange(2**groups)[:, None] >> np.arange(groups)) & 1)
        return float((abs(signs @ sums) >= observed).mean())
    rng = np.random.default_rng(seed)
    extreme = 0
    for start in range(0, resamples, 1000):
        rows = min(1000, resamples - start)
        # One random bit a cluster is its sign: 1 takes the cluster's sum off twice.
        octets = rng.integers(0, 256, size=(rows, (groups + 7) // 8), dtype=np.uint8)
        bits = np.unpackbits(octets, axis=1, count=groups)
        extreme += int((abs(sums.sum() - 2.0 * (bits @ sums)) >= observed).sum())
    return (1 + extreme) / (1 + resamples)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values in the order given (family-wise error under any dependence); nan
    stays nan and counts as one test."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)  # nan sorts last
    stepped = np.minimum(1.0, p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(stepped)
    return [float(value) for value in adjusted]


def paired_p_value(
    x: Floats,
    y: Floats,
    clusters: Sequence[str],
    interval: Interval,
    resamples: int,
    seed: int,
) -> tuple[float, str]:
    """(p-value, name of the test) of the difference of two arms: `x` and `y` (seeds, items) hold
    the same items, `interval` is that of their difference.

    An exact test where prompts are all that varies (one seed an arm), else the t test that holds
    the seeds' variance too.
    """
    if len(x) > 1 or len(y) > 1:
        error = interval.standard_error
        return (t_p_value(interval.value / error, interval.df) if error else 1.0), "t"
    outcomes = set(np.unique([x, y]).tolist())
    if len(set(clusters)) == len(clusters) and outcomes in ({0.0, 1.0}, {0.0, 100.0}):
        return mcnemar(int((x > y).sum()), int((x < y).sum())), "McNemar"
    return sign_flip(x[0] - y[0], clusters, resamples, seed), "sign flip"


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


def joint_errors(parts: Sequence[tuple[Residuals, Sequence[str]]]) -> Floats:
    """Residual sums (G, K) of K estimates, each given with the cluster of each of its items: a
    cluster has the same row in all of them, so that one resample moves them together."""
    names = [sorted(set(clusters)) for _, clusters in parts]
    row = {name: k for k, name in enumerate(dict.fromkeys(chain.from_iterable(names)))}
    errors = np.zeros((len(row), len(parts)))
    for k, (part, _) in enumerate(parts):
        errors[[row[name] for name in names[k]], k] = part.sums
    return np.nan_to_num(errors)  # an estimate from one cluster has no known error


def max_t_critical(
    errors: Floats,
    seeds: Floats | None = None,
    df: float = math.inf,
    seeds_df: float = math.inf,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> float:
    """Critical value for simultaneous 95 % intervals of K estimates: that quantile of max |t| under
    one joint bootstrap.

    `errors` (G, K): from `joint_errors`. The bootstrap is the multiplier one: every resample weighs
    each cluster by one standard normal for all K estimates. Given the data, those sums are exactly
    normal with covariance errors' errors, so they are drawn from it at a cost that does not depend
    on G.
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
    shape = (resamples, len(item_part))
    by_items = rng.standard_normal(shape) @ _root(item_part).T
    by_seeds = rng.standard_normal(shape) @ _root(seed_part).T
    # Each variance is an estimate: drawing it too is what makes the quantile Student's, not normal.
    of_items = np.outer(_chi(rng, df, resamples), np.diag(item_part))
    of_seeds = np.outer(_chi(rng, seeds_df, resamples), np.diag(seed_part))
    t = (by_items + by_seeds) / np.sqrt(of_items + of_seeds)
    return float(np.quantile(abs(t).max(axis=1), 0.95))


def _root(covariance: Floats) -> Floats:
    """A matrix R with R R' = covariance, which may be singular (differences of three arms have rank
    two)."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.clip(values, 0, None)))


def _chi(rng: np.random.Generator, df: float, size: int) -> Floats:
    """Chi-square draws divided by their degrees of freedom (infinite: ones)."""
    return np.ones(size) if math.isinf(df) or df <= 0 else rng.chisquare(df, size) / df


def detectable_difference(standard_error: float, critical: float, df: float = math.inf) -> float:
    """Smallest true difference found 8 times in 10 by an interval of half-width critical *
    standard_error."""
    return (critical + _t_quantile(0.8, df)) * standard_error


def simultaneous(interval: Interval, critical: float) -> dict[str, Any]:
    """A difference's figures: its own interval, the one of half-width `critical` standard errors
    that holds for the whole family, and what that would detect."""
    error, wide, detectable = interval.standard_error, 0.0, math.nan
    if error > 0:
        # Never narrower than the interval of one pair.
        wide = max(critical, t_critical(interval.df))
        detectable = detectable_difference(error, wide, interval.df)
    return {
        "difference": interval.value,
        **interval.bounds(),
        "simultaneous_lower": interval.value - wide * error,
        "simultaneous_upper": interval.value + wide * error,
        "detectable": detectable,
        "n": interval.n,
    }


def finite(value: Any) -> Any:
    """For JSON: nan and infinities as null, also inside dicts and lists; all else as it is."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
