"""Where the error of a difference comes from: prompts, training runs, answers, judges; and what it
would be with more of each.

A score of one run on one prompt is taken as the prompt's own difficulty for that arm, plus the
run's luck (the same on all prompts), plus the run's taste for that prompt, plus the chance of the
answer that was sampled, plus that of the judgment. Each component is the variance of one unit:
with n prompts, S runs, K answers a prompt and J judges a difference has the variance

    prompts / n + 2 * (seeds + (rest + answers / K + judges / J) / n) / S.

Answers are told from the rest only where each prompt has several, judges where several judge the
same item; otherwise they are a part of `rest`, and with one run an arm of `prompts`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from eval.comparing.arms import Arm, Family, Noise, Pair, beside_prompts, of_seeds_prompts
from eval.comparing.errors import Errors, Part
from eval.comparing.estimates import Estimate


@dataclass(frozen=True)
class Components:
    """Variances of one unit each, in squared units of the metric; nan where it was not measured
    and stands in another component."""

    prompts: float
    """Of the true difference of two arms, between prompts (clusters)."""
    seeds: float = math.nan
    """Of one training run's score."""
    rest: float = math.nan
    """Of one run on one prompt, beside all others: its taste, and what was not measured apart."""
    answers: float = math.nan
    """Of one sampled answer's value."""
    judges: float = math.nan
    """Of one judge's value for one answer."""

    def cell(self, answers: int = 1, judges: int = 1) -> float:
        """The variance of one run's value on one prompt beside the prompt's own, with so many
        answers and judges."""
        parts = (self.rest, self.answers / answers, self.judges / judges)
        return sum(part for part in parts if not math.isnan(part))


@dataclass(frozen=True)
class Size:
    """How much of everything a comparison of two arms has."""

    prompts: int
    """Clusters."""
    seeds: int = 1
    answers: int = 1
    """A prompt."""
    judges: int = 1
    """An answer."""


def components(family: Family, made: Sequence[Estimate]) -> Components:
    """The components behind these differences of a family (their mean where they differ by
    pair)."""
    answers = _noise([arm.answers for arm in family.members])
    judges = _noise([arm.judges for arm in family.members])
    cells = [_cell(arm) for arm in family.members]
    residuals = [(own, weight) for own, weight in cells if weight]
    rest = math.nan
    if residuals:
        whole = sum(own * weight for own, weight in residuals)
        measured = answers.share + judges.share
        rest = max(0.0, whole / sum(weight for _, weight in residuals) - measured)
    found = Components(math.nan, math.nan, rest, answers.variance, judges.variance)
    own = [of_prompts(one.pair, found) for one in made if one.errors.items.variance >= 0]
    seeds = [of_runs(one) for one in made if one.errors.seeds.variance > 0]
    return replace(found, prompts=_mean(own), seeds=_mean(seeds))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def shown(family: Family, made: Sequence[Estimate]) -> dict[str, Any]:
    """The components of a metric as comparison.json has them, and of how many prompts (clusters)
    they are known."""
    names = {"benchmark": family.benchmark, "metric": family.metric, "primary": family.primary}
    clusters = max((len(one.pair.part.sums) for one in made), default=0)
    return {**names, "clusters": clusters, **asdict(components(family, made))}


def of_prompts(pair: Pair, known: Components) -> float:
    """The prompts' component of one pair: the variance of its items' part that answers and runs
    leave."""
    groups, items = len(pair.part.sums), len(pair.clusters)
    left = pair.part.variance
    for arm, values in ((pair.a, pair.x), (pair.b, pair.y)):
        left -= _cell_variance(arm, len(values), known) / (len(values) * items)
    return max(0.0, left) * groups


def of_runs(one: Estimate) -> float:
    """The seeds' component of one pair: the variance between its seeds less what a finite set of
    prompts adds to it, by run."""
    left = max(0.0, one.errors.seeds.variance - of_seeds_prompts(one.pair))
    pair = one.pair
    shares = sum(
        1 / len(values) for arm, values in ((pair.a, pair.x), (pair.b, pair.y)) if arm.seeds
    )
    return left / shares if shares else left


def predicted(one: Estimate, known: Components, now: Size, then: Size) -> Errors:
    """The two parts of a pair's error with more of everything: `now` is what it has. The variance
    between seeds of an arm that was trained once is known from the other arms, and so are its
    degrees of freedom; an arm that was trained less often than the other gets its share of
    `then.seeds`, and never fewer than it has."""
    pair = one.pair
    items = len(pair.clusters) / len(pair.part.sums) * then.prompts
    of_items = of_prompts(pair, known) / then.prompts
    of_seeds = 0.0
    for arm, values in ((pair.a, pair.x), (pair.b, pair.y)):
        runs, cell = len(values), _cell_variance(arm, len(values), known, then)
        if arm.seeds:
            runs = max(runs, round(runs * then.seeds / now.seeds))
            # `of_runs` is free of the prompts only where an arm shows how much they add
            added = cell / items if len(values) > 1 else 0.0
            of_seeds += (of_runs(one) + added) / runs
        of_items += cell / (runs * items)
    if not (pair.a.seeds or pair.b.seeds):
        of_seeds = one.errors.seeds.variance  # of the baseline that both were judged against
    if not one.errors.seeds.variance:
        return Errors(Part(of_items, then.prompts - 1))
    df = one.errors.seeds.df
    if now.seeds > 1:
        df *= (then.seeds - 1) / (now.seeds - 1)
    return Errors(Part(of_items, then.prompts - 1), Part(of_seeds, df))


def _cell(arm: Arm) -> tuple[float, int]:
    """The residual variance of runs by prompts, and its degrees of freedom."""
    found = beside_prompts(arm.values)
    runs, items = arm.values.shape
    return (0.0, 0) if math.isnan(found) else (found, (runs - 1) * (items - 1))


def _cell_variance(arm: Arm, runs: int, known: Components, then: Size | None = None) -> float:
    """What stands beside the prompt in one cell of an arm: with one run only what was measured
    apart; the rest is the prompts' then."""
    answers, judges = arm.answers.count, arm.judges.count
    if then is not None:
        answers, judges = max(answers, then.answers), max(judges, then.judges)
    if runs > 1:
        return known.cell(answers, judges)
    return Components(0.0, answers=known.answers, judges=known.judges).cell(answers, judges)


def _noise(found: Sequence[Noise]) -> Noise:
    """The mean over the arms that have it."""
    own = [noise for noise in found if not math.isnan(noise.variance)]
    if not own:
        return Noise()
    variance = sum(noise.variance for noise in own) / len(own)
    return Noise(min(noise.count for noise in own), variance)
