"""Statistics for comparing models: pure functions on arrays, nothing about benchmarks.

Everything here treats a *cluster* (a question judged twice, both turns of one conversation, one
MMLU subject) as the unit that was sampled. Where every item is a cluster of its own, pass no
clusters. Sources: Miller 2024, "Adding Error Bars to Evals" (arXiv 2411.00640) for clustered and
paired errors; Cameron and Miller 2015 for t(G-1); Chernozhukov, Chetverikov and Kato 2013 and
Hothorn, Bretz and Westfall 2008 for max-|t| intervals. What these intervals really cover was
simulated: benchmarks/bench_stats_coverage.py and docs/statistics.md.
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


def without_rounding(centred: Floats, scale: float) -> Floats:
    """Centred values, 0 where they are no more than what rounding leaves of numbers as large as
    `scale`: without a spread of its own a difference must not get an interval of width 1e-16."""
    return np.where(abs(centred) <= 1e-12 * scale, 0.0, centred)


def residuals(
    values: npt.ArrayLike, clusters: npt.ArrayLike | None = None, scale: float = 0.0
) -> Residuals:
    """The mean of `values` (n,) and the scaled residual sums of its clusters. At least two clusters
    are needed for a finite variance. `scale`: the largest of the numbers that `values` are
    differences of."""
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0 or not np.isfinite(x).all():
        raise ValueError(
            "values must be finite and not empty; "
            "leave out what was not judged before asking for a mean"
        )
    index, groups = codes(clusters, len(x))
    mean = float(x.mean())
    centred = without_rounding(x - mean, max(scale, float(abs(x).max())))
    sums = np.bincount(index, weights=centred, minlength=groups)
    correction = math.sqrt(groups / (groups - 1)) if groups > 1 else math.nan
    return Residuals(mean, correction * sums / len(x), len(x))


def t_critical(df: float, level: float = 0.95) -> float:
    """Two-sided critical value of Student's t with `df` degrees of freedom (infinite df: the
    normal's; df below 1: nan)."""
    return _t_quantile(0.5 + level / 2, df)


def _t_quantile(p: float, df: float) -> float:
    from scipy.special import ndtri, stdtrit

    if not df >= 1:  # also nan
        return math.nan
    return float(ndtri(p) if math.isinf(df) else stdtrit(df, p))


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


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
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
    """Two-sided p-value of the sign-flip permutation test on paired differences (n,); see
    `sign_flips`."""
    x = np.asarray(differences, dtype=np.float64)
    return sign_flips(x[:, None], clusters, resamples, seed)[0]


FLIPPED = 2**24
"""Signs that are held at once, 9 octets each: about 150 MB, however many items there are."""


def sign_flips(
    differences: Floats,
    clusters: npt.ArrayLike | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[float]:
    """Two-sided p-values (K,) of the sign-flip permutation test on K columns of paired differences
    (n, K), of the same items: whole clusters change sign together.

    Under the null the two arms could be exchanged within every cluster. Exact (all 2^G signs) up to
    12 clusters; above that the observed assignment counts as one of the resamples (Phipson and
    Smyth 2010), so the size never exceeds the level.
    """
    index, groups = codes(clusters, len(differences))
    columns = differences.T
    of_each = [np.bincount(index, weights=x, minlength=groups) for x in columns]
    sums = np.stack(of_each, axis=1).astype(np.float64, copy=False)
    # Ties count as at least as extreme, rounding included.
    observed = abs(sums.sum(axis=0)) * (1 - 1e-12) - 1e-12
    if groups <= 12:
        signs = 1.0 - 2.0 * ((np.arange(2**groups)[:, None] >> np.arange(groups)) & 1)
        return [float(p) for p in (abs(signs @ sums) >= observed).mean(axis=0)]
    rng = np.random.default_rng(seed)
    extreme = np.zeros(len(columns))
    # Random octets come in fours, so batches of whole fours take the same ones whatever their size.
    batch = max(4, min(1000, FLIPPED // groups) // 4 * 4)
    for start in range(0, resamples, batch):
        rows = min(batch, resamples - start)
        extreme += (abs(_flipped(sums, rows, rng)) >= observed).sum(axis=0)
    return [float(p) for p in (1 + extreme) / (1 + resamples)]


def _flipped(sums: Floats, rows: int, rng: np.random.Generator) -> Floats:
    """Sums over clusters (rows, K) of the sums of each (G, K), with random signs."""
    groups = len(sums)
    # One random bit a cluster is its sign: 1 takes the cluster's sum off twice.
    octets = rng.integers(0, 256, size=(rows, (groups + 7) // 8), dtype=np.uint8)
    bits = np.unpackbits(octets, axis=1, count=groups).astype(np.float64)
    return np.asarray(sums.sum(axis=0) - 2.0 * (bits @ sums))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values in the order given (family-wise error under any dependence); nan
    stays nan and counts as one test."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)  # nan sorts last
    stepped = np.minimum(1.0, p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(stepped)
    return [float(value) for value in adjusted]


def joint_errors(parts: Sequence[tuple[Residuals, npt.ArrayLike]]) -> Floats:
    """Residual sums (G, K) of K estimates, each given with the cluster of each of its items: a
    cluster has the same row in all of them, so that one resample moves them together."""
    names = [np.unique(np.asarray(clusters)) for _, clusters in parts]
    everyone = np.unique(np.concatenate(names))
    errors = np.zeros((len(everyone), len(parts)))
    for k, (part, _) in enumerate(parts):
        errors[np.searchsorted(everyone, names[k]), k] = part.sums
    return np.nan_to_num(errors)  # an estimate from one cluster has no known error


def max_t_critical(
    errors: Floats,
    df: float = math.inf,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> float:
    """Critical value for simultaneous intervals of K estimates: the `level` quantile of max |t|
    under one joint bootstrap.

    `errors` (G, K): from `joint_errors`. The bootstrap is the multiplier one: every resample weighs
    each cluster by one standard normal for all K estimates. Given the data, those sums are exactly
    normal with covariance errors' errors, so they are drawn from it at a cost that does not depend
    on G. The variance is studentised with chi-square draws of its `df`, so that with K = 1 the
    result is Student's t(df). Estimates without any variance are left out; nan when none has any.
    """
    if df < 1:
        return math.nan
    covariance = errors.T @ errors
    each = np.full(len(covariance), df)
    criticals = simultaneous(covariance, each, level=level, resamples=resamples, seed=seed)
    return float(np.nanmax(criticals)) if np.isfinite(criticals).any() else math.nan


def simultaneous(
    covariance: Floats,
    df: Floats,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Floats:
    """Critical values (K,) such that |z_k| / (sd_k * chi_k) stays below its own for all K estimates
    at once with probability `level`; nan for an estimate without variance.

    `covariance` (K, K) up to a factor. `df` (K,): estimates of equal df share the variance that
    they are studentised with. Each estimate gets the same level of its own t distribution (min p):
    with one df that is max |t|, and for all pairs of equal arms Tukey's range.
    """
    from scipy.special import stdtr, stdtrit

    spread = np.sqrt(np.diag(covariance))
    known = (spread > 0) & (df >= 1)
    criticals = np.full(len(df), math.nan)
    if not known.any():
        return criticals
    if known.sum() == 1:  # one estimate: no draw is needed
        criticals[known] = t_critical(float(df[known][0]), level)
        return criticals
    rng = np.random.default_rng(seed)
    root = _root(covariance[np.ix_(known, known)] / np.outer(spread[known], spread[known]))
    z = rng.standard_normal((resamples, len(root))) @ root.T
    for each in np.unique(df[known]):
        if np.isfinite(each):
            chi = np.sqrt(rng.chisquare(each, resamples) / each)
            z[:, df[known] == each] /= chi[:, None]
    # stdtr takes a large number for infinitely many degrees of freedom
    degrees = np.minimum(df[known], 1e10)
    if len(set(degrees.tolist())) == 1:
        criticals[known] = np.quantile(abs(z).max(axis=1), level)
        return criticals
    tails = stdtr(degrees, -abs(z)).min(axis=1)
    criticals[known] = -stdtrit(degrees, np.quantile(tails, 1 - level))
    return criticals


def _root(covariance: Floats) -> Floats:
    """A matrix R with R R' = covariance, which may be singular (differences of three arms have rank
    two)."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.clip(values, 0, None)))
