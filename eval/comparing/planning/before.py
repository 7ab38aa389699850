"""What a design can find, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np

from eval import stats
from eval.comparing.errors import Errors, Part, detectable, power
from eval.comparing.estimates import LOOKED_AT
from eval.comparing.planning.components import Components


@dataclass(frozen=True)
class Design:
    """Arms that are all alike, and what they are compared with."""

    arms: int
    """Those that are compared among each other, the baseline not counted."""
    prompts: int
    """Clusters."""
    seeds: int = 1
    baseline: Literal["none", "finished", "trained"] = "none"
    """A model that no seed varies, or one more arm of as many seeds."""
    judged: bool = False
    """Whether the metric is itself a comparison with the baseline (a win rate), which then scores
    by definition."""
    answers: int = 1
    """A prompt."""
    judges: int = 1
    """An answer."""
    sequential: bool = False
    """Whether judging may stop on the way, which costs wider intervals at its end."""
    beside: int = 0
    """Arms of as many seeds that are not among these differences (controls): they only help to know
    how much seeds vary."""


@dataclass(frozen=True)
class Kind:
    """One kind of difference of a design."""

    errors: Errors
    """As a comparison estimates them."""
    criticals: tuple[float, float]
    true: float
    """The real standard error: less, since a comparison counts what prompts add to a seed's score
    twice."""

    @property
    def detectable(self) -> float:
        """The smallest true difference that is found 8 times in 10."""
        return detectable(self.errors, self.criticals, self.true)

    def power(self, difference: float) -> float:
        """How often a true difference is found."""
        return power(difference, self.errors, self.criticals, self.true)


@dataclass(frozen=True)
class Planned:
    """What a design can find, in the unit of the metric."""

    between_arms: Kind | None
    """None with one arm."""
    from_baseline: Kind | None
    """None without a baseline."""


def detectable_before(design: Design, known: Components) -> Planned:
    """What a design can find with these components (stated, or those of an earlier comparison):
    `.between_arms.detectable` and `.from_baseline.detectable`. The critical values are those of all
    pairs of the design together, as a comparison has them.

    With one seed the differences are those of checkpoints: no component of seeds enters.
    """
    names = design.arms + (design.baseline != "none")
    found = list(combinations(range(names), 2))
    if not found:
        return Planned(None, None)
    contrast = np.zeros((len(found), names))
    for row, (a, b) in enumerate(found):
        contrast[row, [a, b]] = 1, -1
    base = design.arms  # its place, where there is one
    items, runs = np.array([_of_arm(design, known, place, base) for place in range(names)]).T
    paired = design.judged and design.baseline == "trained"
    df = np.array([_seeds_df(design, base in pair) for pair in found])
    spread = contrast @ np.diag(items) @ contrast.T
    level = LOOKED_AT if design.sequential else 0.95
    of_items = stats.simultaneous(spread, np.full(len(found), design.prompts - 1.0), level=level)
    # a judged arm's score holds the trained baseline's luck
    shares = np.where(np.arange(names) == base, runs[0] if paired else runs, runs)
    of_seeds = stats.simultaneous(contrast @ np.diag(shares) @ contrast.T, df)
    kinds: dict[bool, Kind] = {}
    for row, pair in enumerate(found):
        with_base = base in pair
        errors = Errors(Part(float(spread[row, row]), design.prompts - 1.0))
        true = float(spread[row, row])
        left = float(runs[list(pair)].sum())
        if paired and with_base:
            left = 2 * float(runs[0])
        if left:
            errors = Errors(errors.items, Part(left, float(df[row])))
            true += left - _twice(design, known, with_base)
        single = stats.t_critical(errors.items.df, level), stats.t_critical(errors.seeds.df)
        wide = float(np.fmax(of_items[row], single[0])), float(np.fmax(of_seeds[row], single[1]))
        kinds.setdefault(with_base, Kind(errors, wide, math.sqrt(true)))
    return Planned(kinds.get(False), kinds.get(True))


def _cell(design: Design, known: Components) -> float:
    """What one run's value on one prompt has beside the prompt's own, over the prompts; 0 where
    nothing of it was told from the prompts."""
    return known.cell(design.answers, design.judges) / design.prompts


def _of_arm(design: Design, known: Components, place: int, base: int) -> tuple[float, float]:
    """An arm's share of the items' variance and of the seeds', as a comparison estimates them."""
    own, cell = known.prompts / 2 / design.prompts, _cell(design, known)
    if place != base:
        return own + cell / design.seeds, _of_runs(design, known, cell)
    if design.judged:
        return 0.0, 0.0
    if design.baseline == "finished":
        return own + cell, 0.0
    return own + cell / design.seeds, _of_runs(design, known, cell)


def _of_runs(design: Design, known: Components, cell: float) -> float:
    if design.seeds == 1 or math.isnan(known.seeds):
        return 0.0
    return (known.seeds + cell) / design.seeds


def _twice(design: Design, known: Components, with_base: bool) -> float:
    """What prompts add to the runs' scores, which the items' part has already."""
    varied = 2
    if with_base and (design.judged or design.baseline == "finished"):
        varied = 1 + (design.judged and design.baseline == "trained")
    return varied * _cell(design, known) / design.seeds


def _seeds_df(design: Design, with_base: bool) -> float:
    """Degrees of freedom of the seeds' part: pooled over the arms that have seeds; under a trained
    baseline that all were judged against, see eval/comparing/arms.py."""
    per_arm = design.seeds - 1.0
    varied = design.arms + design.beside
    if design.seeds == 1:
        return math.inf
    if design.judged and design.baseline == "trained":
        return per_arm if with_base or varied < 2 else (varied - 1) * per_arm
    return (varied + (design.baseline == "trained")) * per_arm


def earlier(comparison: Mapping[str, Any], benchmark: str, metric: str) -> Components | None:
    """The components of a metric in an earlier comparison.json; None where it has none."""
    for one in comparison.get("components", []):
        if (one["benchmark"], one["metric"]) == (benchmark, metric):
            parts = {
                name: math.nan if one[name] is None else float(one[name])
                for name in ("prompts", "seeds", "rest", "answers", "judges")
            }
            return None if math.isnan(parts["prompts"]) else Components(**parts)
    return None
