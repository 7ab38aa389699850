"""What do the intervals and tests of eval/stats.py really cover? Simulation; the figures are those
of docs/evaluation.md.

    python benchmarks/bench_stats_coverage.py [--trials 10000] [--seed 0]

Every line is a fraction of trials: intervals should cover the truth in 95 %, tests should reject a
true null in at most 5 %.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from itertools import combinations

import numpy as np

from eval import stats

Draw = Callable[[np.random.Generator, int], np.ndarray]


def normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(size=n)


def skewed(rng: np.random.Generator, n: int) -> np.ndarray:
    """Exponential, centred on 0: the shape of losses."""
    return rng.exponential(size=n) - 1


def soft_rate(rate: float) -> Draw:
    """Soft preferences of a judge around a win rate: mostly near 0 or 1, as on AlpacaEval (84 %
    within 0.01 of an end)."""

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        won = rng.uniform(size=n) < rate
        noise = np.where(rng.uniform(size=n) < 0.84, 0.0, rng.beta(1, 3, size=n))
        return np.abs(won - noise) - (rate + 0.16 * 0.25 * (1 - 2 * rate))

    return draw


def cover(
    trials: int,
    rng: np.random.Generator,
    groups: int,
    size: int,
    draw: Draw,
    percentile: bool = False,
) -> float:
    """Coverage of the interval for a mean of 0 with `groups` clusters of `size` items that share
    half of their variance."""
    held = 0
    labels = np.repeat(np.arange(groups), size)
    for _ in range(trials):
        x = draw(rng, groups)[labels]
        if size > 1:
            x = (x + draw(rng, groups * size)) / math.sqrt(2)
        if percentile:
            sums, n = np.bincount(labels, weights=x), groups * size
            means = sums[rng.integers(0, groups, size=(1000, groups))].sum(axis=1) / n
            lower, upper = stats.percentiles(means)
        else:
            found = stats.mean_interval(x, labels)
            lower, upper = found.lower, found.upper
        held += lower <= 0 <= upper
    return held / trials


def wilson_cover(trials: int, rng: np.random.Generator, n: int, rate: float) -> float:
    counts = rng.binomial(n, rate, size=trials)
    bounds = {int(k): stats.wilson(int(k), n) for k in set(counts.tolist())}
    return float(np.mean([bounds[k][0] <= rate <= bounds[k][1] for k in counts.tolist()]))


def sign_flip_size(trials: int, rng: np.random.Generator, groups: int) -> float:
    return float(
        np.mean(
            [
                stats.sign_flip(rng.normal(size=groups), resamples=499, seed=t) <= 0.05
                for t in range(trials)
            ]
        )
    )


def mcnemar_size(trials: int, rng: np.random.Generator, items: int, discordant: float) -> float:
    total = rng.binomial(items, discordant, size=trials)
    return float(
        np.mean(
            [
                stats.mcnemar(int(a), int(t - a)) <= 0.05
                for t, a in zip(total, rng.binomial(total, 0.5), strict=True)
            ]
        )
    )


def together(trials: int, rng: np.random.Generator, groups: int, arms: int) -> float:
    """How often all differences of `arms` equal arms lie in their simultaneous intervals."""
    held = 0
    for trial in range(trials):
        x = rng.normal(size=(groups, arms)) + rng.normal(size=(groups, 1))
        parts = [stats.residuals(x[:, i] - x[:, j]) for i, j in combinations(range(arms), 2)]
        c = stats.max_t_critical(
            np.stack([p.sums for p in parts], axis=1), df=groups - 1, resamples=2000, seed=trial
        )
        held += all(abs(p.mean) <= c * math.sqrt(p.variance) for p in parts)
    return held / trials


def seeds_cover(
    trials: int, rng: np.random.Generator, seeds: int, spread: float, *, counted: bool
) -> float:
    """Coverage of the difference of two of three arms with `seeds` seeds each whose scores vary by
    `spread` paired standard errors of the items."""
    items, held = 300, 0
    error = math.sqrt(2 * (0.5 + 0.5 / seeds) / items)
    for _ in range(trials):
        arms = (
            rng.normal(0, spread * error, (3, seeds, 1))
            + rng.normal(0, math.sqrt(0.5), (3, 1, items))
            + rng.normal(0, math.sqrt(0.5), (3, seeds, items))
        )
        part = stats.residuals(arms[0].mean(axis=0) - arms[1].mean(axis=0))
        variance, df = stats.seed_variance(list(arms)) if counted else (0.0, 0.0)
        interval = part.with_seeds(2 * variance / seeds, df)
        held += interval.lower <= 0 <= interval.upper
    return held / trials


def line(text: str, value: float) -> None:
    print(f"{text:86s} {100 * value:5.1f} %", flush=True)


def intervals(trials: int, few: int, rng: np.random.Generator) -> None:
    """Intervals of one mean."""
    for groups in (5, 10, 20, 40, 100):
        line(f"t(G-1), {groups} clusters of 2, normal", cover(trials, rng, groups, 2, normal))
    for groups in (10, 40, 100):
        line(
            f"t(G-1), {groups} clusters of 1, skewed (exponential)",
            cover(trials, rng, groups, 1, skewed),
        )
    for rate, n in ((0.5, 24), (0.1, 24), (0.1, 100), (0.05, 100), (0.05, 805)):
        line(
            f"t(G-1), {n} prompts, soft win rate {rate:g}",
            cover(trials, rng, n, 1, soft_rate(rate)),
        )
    for groups in (5, 20, 40, 100):
        line(
            f"percentile bootstrap, {groups} clusters, normal "
            f"(refused below {stats.MINIMUM_CLUSTERS})",
            cover(few, rng, groups, 1, normal, True),
        )


def tests(trials: int, rng: np.random.Generator) -> None:
    """Rates, and tests of paired outcomes."""
    for rate, n in ((0.5, 24), (0.1, 24), (0.02, 100)):
        line(f"Wilson, {n} items, rate {rate:g}", wilson_cover(trials, rng, n, rate))
    for groups in (5, 8, 12, 30):
        line(f"size of the sign-flip test, {groups} clusters", sign_flip_size(trials, rng, groups))
    for items, discordant in ((20, 0.2), (100, 0.3), (1000, 0.1)):
        line(
            f"size of McNemar's exact test, {items} items, {discordant:g} discordant",
            mcnemar_size(trials, rng, items, discordant),
        )


def families(few: int, rng: np.random.Generator) -> None:
    """Differences of several arms, with several seeds."""
    for groups, arms in ((24, 3), (100, 5)):
        line(
            f"all differences of {arms} arms at once, {groups} prompts",
            together(few, rng, groups, arms),
        )
    for seeds in (2, 3, 5):
        for spread in (0.0, 0.5, 1.0, 3.0):
            line(
                f"{seeds} seeds an arm, seed deviation {spread:g} paired errors",
                seeds_cover(few, rng, seeds, spread, counted=True),
            )
    line(
        "3 seeds an arm, seed deviation 1 paired error, seeds not counted",
        seeds_cover(few, rng, 3, 1.0, counted=False),
    )
    line(
        "1 seed an arm, seed deviation 0.7 paired errors",
        seeds_cover(few, rng, 1, 0.7, counted=False),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    trials, rng = arguments.trials, np.random.default_rng(arguments.seed)
    few = max(1, trials // 5)
    intervals(trials, few, rng)
    tests(trials, rng)
    families(few, rng)


if __name__ == "__main__":
    main()
