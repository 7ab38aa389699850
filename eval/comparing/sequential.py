"""Judging in steps: prompts in random order, and a look at all differences after each step, which
may stop everything.

A difference looked at often needs a wider interval than one looked at once. At most N prompts are
to be judged, so the interval at t of them is a confidence sequence with that horizon: half width =
c * sd * sqrt(N) / t, where c is the simultaneous critical value at 97.5 % in place of 95 %. That it
holds at all t together follows from Levy's inequality: for sums of independent symmetric steps
P(max over t of ||S_t|| > x) <= 2 P(||S_N|| > x), with the largest |difference| in its errors as the
norm. At t = N it costs 2.24 standard errors in place of 1.96; a sequence without a horizon
(Robbins' mixture, betting: Waudby-Smith and Ramdas 2024, arXiv 2010.09686) costs 3.04 at its best
place. Like the interval that it replaces it rests on the central limit theorem; the small t where
that fails decide nothing, since c * sqrt(N) / t is large there. The seeds' part is that of
eval/comparing/errors.py, at every look. What it holds to, saves and costs was simulated:
benchmarks/bench_sequential.py and docs/statistics.md.

Arms that `compare` is given with `planned` prompts get the same intervals (`Family.planned`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

from eval.comparing.arms import Family, of_seeds_prompts
from eval.comparing.estimates import CANNOT_TELL, Estimate, estimates, verdicts

FEWEST = 40
"""Clusters before the first look that may stop anything: an error estimated on fewer is too
rough."""
HOPELESS = 0.05
"""A pair is given up when it would be decided less often than this if all planned prompts were
judged, the rest drawn around what was seen so far."""
GIVEN_UP_AFTER = 1 / 3
"""The share of the planned prompts before which no pair is given up."""


@dataclass(frozen=True)
class Pair:
    """What a look says of two arms."""

    a: str
    b: str
    difference: float
    lower: float
    upper: float
    verdict: str
    """As in a comparison; "cannot tell" until it is decided."""
    hopeless: bool
    """Not decided, and with the prompts that are left it would hardly be."""


@dataclass(frozen=True)
class Look:
    """All differences of a family after some of the planned prompts."""

    judged: int
    """Clusters that every pair has, of `planned`."""
    planned: int
    pairs: list[Pair]

    @property
    def stop(self) -> bool:
        """Whether no pair is left for which further prompts are worth their price."""
        enough = self.judged >= min(FEWEST, self.planned)
        settled = all(pair.hopeless or pair.verdict != CANNOT_TELL for pair in self.pairs)
        return enough and bool(self.pairs) and settled


def order(clusters: Iterable[str], seed: int = 0) -> list[str]:
    """Clusters in random order, the same for all arms and runs; of a larger set of prompts the
    smaller one keeps its order."""
    names = dict.fromkeys(clusters)
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest())


def look(
    family: Family,
    baseline: str | None = None,
    *,
    lower_is_better: bool = False,
    equivalent: float | None = None,
    seed: int = 0,
) -> Look:
    """All differences of a family of which every arm was judged on the first prompts of the same
    random order, `family.planned` (clusters) in all. It may be taken after any prompt.

    `equivalent`: the smallest difference that would matter, if one was declared. `seed` is that of
    the critical values.
    """
    made = estimates(family, baseline, seed=seed)
    said = verdicts(made, lower_is_better=lower_is_better, equivalent=equivalent, seed=seed)
    pairs = []
    for one, verdict in zip(made, said, strict=True):
        # too early to say anything: the error is not known well yet
        known = len(one.pair.part.sums)
        final = CANNOT_TELL if known < min(FEWEST, family.planned) else verdict
        late = known >= max(GIVEN_UP_AFTER * family.planned, min(FEWEST, family.planned))
        hopeless = late and final == CANNOT_TELL and _decided(one, equivalent) < HOPELESS
        names = one.pair.a.name, one.pair.b.name
        pairs.append(Pair(*names, one.value, *one.bounds, final, hopeless))
    judged = min((len(one.pair.part.sums) for one in made), default=0)
    return Look(judged, family.planned, pairs)


def _differing(one: Estimate) -> int:
    """How many prompts, all with the same sign, tell two arms apart that are alike on every other
    one: their mean in its errors is then the root of m (N - 1) / (N - m)."""
    planned, squared = one.pair.planned, (one.criticals[0] / one.pair.stretch) ** 2
    return math.floor(squared * planned / (planned - 1 + squared)) + 1


def _still(wanted: int, alike: int, planned: int) -> float:
    """How often at least so many of the prompts that are left differ from the first ones, which are
    all alike: with every share of differing prompts equally likely beforehand, the chance that the
    `wanted` smallest of planned + 1 uniform numbers are all among those left."""
    return math.prod((planned - alike - k) / (planned + 1 - k) for k in range(wanted))


def _decided(one: Estimate, equivalent: float | None) -> float:
    """How often a pair would be decided after all planned prompts: the difference then is drawn
    around what it is now, with the error of the prompts that are still to come."""
    from scipy.special import ndtr

    judged, stretch = len(one.pair.part.sums), one.pair.stretch
    share = 1 / stretch**2
    of_items = one.errors.items.variance
    spread = math.sqrt(of_items * (1 - share))
    # at the end the items' part is as wide as it is for all planned prompts
    squared = (one.criticals[0] / stretch) ** 2 * of_items * share
    if one.errors.seeds.variance:
        left = of_seeds_prompts(one.pair) * (1 - share)
        least = of_seeds_prompts(one.pair) * share
        squared += one.criticals[1] ** 2 * max(least, one.errors.seeds.variance - left)
    half = math.sqrt(squared)
    if not spread > 0:  # all planned prompts are judged, or none differs from another so far
        wanted = _differing(one) if one.value == 0 and equivalent is None else 1
        return _still(wanted, judged, one.pair.planned)
    found = ndtr((abs(one.value) - half) / spread) + ndtr((-abs(one.value) - half) / spread)
    if equivalent is not None and equivalent > half:
        room = equivalent - half
        found += ndtr((room - one.value) / spread) - ndtr((-room - one.value) / spread)
    # beyond twice the half width both hold for some differences, and one of them for all
    return min(1.0, float(found))
