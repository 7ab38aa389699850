"""What do the intervals and tests of eval/stats.py really cover? Simulation; the figures are those
of docs/statistics.md.

    python benchmarks/bench_stats_coverage.py [--trials 10000] [--seed 0]

Every line is a fraction of trials: intervals should cover the truth in 95 %, tests should reject a
true null in at most 5 %.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, product
from typing import Literal

import numpy as np

from eval import stats
from eval.comparing.arms import Arm, Family
from eval.comparing.errors import Errors, Part, detectable
from eval.comparing.estimates import CANNOT_TELL, estimates, verdicts
from eval.comparing.planning.before import Design, detectable_before
from eval.comparing.planning.components import Components

HIGHEST = 0.055
"""False verdicts that a design may give (5 % are promised)."""
SEED_EFFECT = 1.5
"""The standard deviation of a seed's score, in errors of the paired difference over the prompts."""
RESAMPLES = 2000
"""Draws behind a simultaneous quantile, fewer than a comparison's to save time."""
BASELINES = ("fixed", "trained", "judged")

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
            np.stack([p.sums for p in parts], axis=1), groups - 1, resamples=2000, seed=trial
        )
        held += all(abs(p.mean) <= c * math.sqrt(p.variance) for p in parts)
    return held / trials


@dataclass(frozen=True)
class Cell:
    """A design under the null: arms that differ in nothing but chance."""

    arms: int
    seeds: int
    prompts: int
    kind: str
    """normal (seed effects of 1.5 standard errors) or rare (0/1 outcomes at 2 %)."""
    baseline: str
    """fixed (a finished model), trained (one more arm), or judged (all arms were judged against a
    trained one, which scores by definition)."""

    def family(self, rng: np.random.Generator) -> Family:
        """One experiment: its arms and the baseline."""
        names = [f"arm{k}" for k in range(self.arms)]
        drawn = [self.values(rng, self.seeds) for _ in names]
        seeds = tuple(map(str, range(self.seeds)))
        if self.baseline == "judged":
            against = self.values(rng, self.seeds)
            drawn = [values - against for values in drawn]
            flat = np.zeros((1, self.prompts))
            base = Arm("base", self.items, self.items, flat, by_definition=True)
        elif self.baseline == "trained":
            base = Arm("base", self.items, self.items, self.values(rng, self.seeds), seeds)
        else:
            base = Arm("base", self.items, self.items, self.values(rng, 1))
        arms = [
            Arm(name, self.items, self.items, values, seeds)
            for name, values in zip(names, drawn, strict=True)
        ]
        trained = seeds if self.baseline == "judged" else ()
        return Family("bench", "win_rate", [*arms, base], True, trained)

    @cached_property
    def items(self) -> list[str]:
        """Names of the prompts."""
        return [f"q{k}" for k in range(self.prompts)]

    def values(self, rng: np.random.Generator, seeds: int) -> np.ndarray:
        """An arm's values, (seeds, prompts): half of a prompt's variance is the arm's own, half
        changes with the seed. A finished model is one row."""
        shape = (seeds, self.prompts)
        if self.kind == "rare":
            return 100.0 * (rng.uniform(size=shape) < 0.02)
        # the error of the paired difference of two arms over the prompts
        error = math.sqrt(2 * (0.5 + 0.5 / self.seeds) / self.prompts)
        own = rng.normal(0, math.sqrt(0.5), (1, self.prompts)) + rng.normal(
            0, math.sqrt(0.5), shape
        )
        effect = rng.normal(0, SEED_EFFECT * error, (seeds, 1)) if seeds > 1 else 0.0
        return np.asarray(own + effect)


def wrong(cell: Cell, nulls: int, rng: np.random.Generator) -> float:
    """The share of experiments without any difference in which one is claimed."""
    found = 0
    for trial in range(nulls):
        made = estimates(cell.family(rng), "base", resamples=RESAMPLES, seed=trial % 7)
        found += any(said != CANNOT_TELL for said in verdicts(made))
    return found / nulls


def grid(nulls: int, rng: np.random.Generator) -> bool:
    """False verdicts of whole experiments; a cell over 5.5 % again with ten times as many. Returns
    whether none stays above."""
    designs = product(BASELINES, ("normal", "rare"), (24, 805), (2, 3, 5), (1, 2, 4))
    fine = True
    for baseline, kind, prompts, seeds, arms in designs:
        cell = Cell(arms, seeds, prompts, kind, baseline)
        share = wrong(cell, nulls, rng)
        if share > HIGHEST:
            share = wrong(cell, 10 * nulls, rng)
        fine &= share <= HIGHEST
        few = f"{arms} arm{'s' if arms > 1 else ''}, {seeds} seeds, {prompts} prompts"
        line(f"false verdicts: {few}, {kind}, baseline {baseline}", share)
    return fine


def costs() -> None:
    """What that costs: the smallest difference of one arm from a trained baseline that is found 8
    times in 10, in its true standard errors."""
    for seeds in (2, 3, 5, 10):
        df = 2.0 * (seeds - 1)
        # prompts and seeds weigh alike
        errors = Errors(Part(0.5, 804.0), Part(0.5, df))
        least = detectable(errors, (stats.t_critical(804), stats.t_critical(df)))
        print(f"detectable difference, {seeds} seeds, in standard errors: {least:.2f}", flush=True)


def experiments(trials: int, rng: np.random.Generator) -> bool:
    """Power that a plan says (eval/comparing/planning/before.py) against what experiments with that
    difference find: one arm and its baseline, and three arms. Returns whether no design is off by
    more than two points."""
    fine = True
    for arms, seeds, prompts, baseline in (
        (1, 2, 200, "trained"),
        (1, 3, 200, "trained"),
        (1, 3, 805, "fixed"),
        (1, 5, 805, "trained"),
        (3, 3, 200, "fixed"),
    ):
        cell = Cell(arms, seeds, prompts, "normal", baseline)
        error = math.sqrt(2 * (0.5 + 0.5 / seeds) / prompts)
        known = Components(prompts=1.0, seeds=(SEED_EFFECT * error) ** 2, rest=0.5)
        kind: Literal["finished", "trained"] = "trained" if baseline == "trained" else "finished"
        planned = detectable_before(Design(arms, prompts, seeds, kind), known).from_baseline
        assert planned is not None
        shift, found = planned.detectable, 0
        for trial in range(trials):
            family = cell.family(rng)
            first, *others = family.members
            better = replace(first, values=first.values + shift)
            made = estimates(
                replace(family, members=[better, *others]),
                "base",
                resamples=RESAMPLES,
                seed=trial % 7,
            )
            found += verdicts(made)[0] == "arm0 is better"
        said = planned.power(shift)
        fine &= abs(said - found / trials) <= 0.02
        print(
            f"power, {arms} arm{'s' if arms > 1 else ''}, {seeds} seeds, {prompts} prompts, "
            f"baseline {baseline}, difference {shift:.4f}: said {100 * said:.1f} %, "
            f"found {100 * found / trials:.1f} % of {trials}",
            flush=True,
        )
    return fine


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--nulls", type=int, default=2000, help="experiments a design of the grid")
    parser.add_argument("--experiments", type=int, default=5000, help="experiments with an effect")
    parser.add_argument("--only", choices=("grid", "power"), help="one part alone")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    trials, rng = arguments.trials, np.random.default_rng(arguments.seed)
    few = max(1, trials // 5)
    if arguments.only is None:
        intervals(trials, few, rng)
        tests(trials, rng)
        families(few, rng)
    if arguments.only != "grid":
        costs()
        if not experiments(arguments.experiments, rng):
            sys.exit("power is off by more than two points")
    if arguments.only != "power" and not grid(arguments.nulls, rng):
        sys.exit(f"a design gives more than {100 * HIGHEST:.1f} % false verdicts")


if __name__ == "__main__":
    main()
