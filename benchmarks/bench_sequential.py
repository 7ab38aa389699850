"""What does judging in steps hold to, save and cost? One pair of arms, 805 prompts, a look after
each 5 % of them; the figures are those of docs/statistics.md.

    nice python benchmarks/bench_sequential.py [--trials 10000] [--seed 0]

Simulated experiments through the function that sequential judging calls: without a difference
(false verdicts: at most 5 %), with the difference that judging all prompts would find 8 times in 10
(power lost), and with twice that (calls saved: at least 30 %).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from eval import stats
from eval.comparing.arms import Arm, Family
from eval.comparing.errors import Errors, Part, detectable
from eval.comparing.estimates import CANNOT_TELL, estimates, verdicts
from eval.comparing.sequential import look

PROMPTS = 805
LOOKS = 20
SEEDS = 3
SAVED = 0.30
KINDS = ("normal", "soft", "rare")


@dataclass(frozen=True)
class Outcome:
    """Of many experiments."""

    decided: float
    """The share in which an arm is called better."""
    judged: float
    """The mean share of prompts that were judged."""
    whole: float
    """The share decided by an interval over all prompts, looked at once."""


def values(kind: str, rng: np.random.Generator, rows: int) -> np.ndarray:
    """An arm's values, (rows, prompts), in [-1, 1]: half of a prompt's variance is the arm's own,
    half changes with the seed."""
    shape = (rows, PROMPTS)
    if kind == "rare":
        return np.asarray(rng.uniform(size=shape) < 0.02, dtype=np.float64)
    if kind == "soft":  # a judge's preferences: mostly near 0 or 1, won at 10 %
        noise = np.where(rng.uniform(size=shape) < 0.84, 0.0, rng.beta(1, 3, size=shape))
        return np.asarray(abs((rng.uniform(size=shape) < 0.10) - noise))
    own = rng.normal(0, math.sqrt(0.5), (1, PROMPTS))
    return np.asarray(own + rng.normal(0, math.sqrt(0.5), shape))


def experiments(kind: str, seeded: bool, rng: np.random.Generator) -> Iterator[Family]:
    """Pairs of equal arms; with seeds, a seed's score deviates by 1.5 errors of the difference."""
    rows, seeds = (SEEDS, tuple(map(str, range(SEEDS)))) if seeded else (1, ())
    spread = 1.5 * error(kind, seeded, rng, prompts_only=True) if seeded else 0.0
    items = [f"q{k}" for k in range(PROMPTS)]
    while True:
        arms = [
            Arm(
                name,
                items,
                items,
                values(kind, rng, rows) + rng.normal(0, spread, (rows, 1)),
                seeds,
            )
            for name in ("a", "b")
        ]
        yield Family("bench", "win_rate", arms, True, planned=PROMPTS)


def error(kind: str, seeded: bool, rng: np.random.Generator, prompts_only: bool = False) -> float:
    """The error of a difference: of the prompts, or of seeds and prompts."""
    rows = SEEDS if seeded else 1
    drawn = [values(kind, rng, rows).mean(axis=0).std() for _ in range(200)]
    of_prompts = math.sqrt(2 * float(np.mean(np.square(drawn))) / PROMPTS)
    if prompts_only or not seeded:
        return of_prompts
    return of_prompts * math.sqrt(1 + 2 * 1.5**2 / SEEDS)


def first(family: Family, prompts: int) -> Family:
    """What is known after so many prompts."""
    members = [
        replace(
            arm,
            items=arm.items[:prompts],
            clusters=arm.clusters[:prompts],
            values=np.ascontiguousarray(arm.values[:, :prompts]),
        )
        for arm in family.members
    ]
    return replace(family, members=members)


def outcome(families: Iterator[Family], shift: float, trials: int) -> Outcome:
    """Experiments in which arm a is better by `shift`, judged in steps until a look says stop."""
    steps = [math.ceil(PROMPTS * k / LOOKS) for k in range(1, LOOKS + 1)]
    decided = judged = whole = 0
    for _, family in zip(range(trials), families, strict=False):
        a, b = family.members
        family = replace(family, members=[replace(a, values=a.values + shift), b])
        for prompts in steps:
            seen = look(first(family, prompts))
            if seen.stop:
                break
        decided += any(pair.verdict != CANNOT_TELL for pair in seen.pairs)
        judged += prompts
        once = estimates(replace(family, planned=0), None)
        whole += verdicts(once) != [CANNOT_TELL]
    return Outcome(decided / trials, judged / trials / PROMPTS, whole / trials)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10_000, help="without a difference")
    parser.add_argument("--effects", type=int, default=2000, help="with one")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    fine = True
    for seeded, kind in product((False, True), KINDS):
        rng = np.random.default_rng(arguments.seed)
        families = experiments(kind, seeded, rng)
        null = outcome(families, 0.0, arguments.trials)
        df = 2.0 * (SEEDS - 1)
        size = error(kind, seeded, rng)
        errors = Errors(Part(size**2, PROMPTS - 1.0))
        if seeded:
            alone = error(kind, seeded, rng, prompts_only=True)
            errors = Errors(Part(alone**2, PROMPTS - 1.0), Part(size**2 - alone**2, df))
        least = detectable(errors, (stats.t_critical(PROMPTS - 1), stats.t_critical(df)))
        once = outcome(families, least, arguments.effects)
        twice = outcome(families, 2 * least, arguments.effects)
        fine &= null.decided <= 0.05 and twice.judged <= 1 - SAVED
        print(
            f"{kind}, {f'{SEEDS} seeds an arm' if seeded else 'two checkpoints'}: "
            f"false verdicts {100 * null.decided:.2f} % of {arguments.trials} "
            f"(all prompts at once: {100 * null.whole:.2f} %), "
            f"{100 * (1 - null.judged):.0f} % of calls saved; "
            f"at the detectable difference ({least:.4g}) found {100 * once.decided:.1f} % against "
            f"{100 * once.whole:.1f} %, {100 * (1 - once.judged):.0f} % saved; at twice that found "
            f"{100 * twice.decided:.1f} %, {100 * (1 - twice.judged):.0f} % saved",
            flush=True,
        )
    if not fine:
        sys.exit("more false verdicts than 5 %, or less than 30 % saved")


if __name__ == "__main__":
    main()
