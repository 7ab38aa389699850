"""Arms of one metric: their items by seed, paired by name, and what training seeds add to a
difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from eval import stats
from eval.comparing.errors import Part


@dataclass(frozen=True)
class Noise:
    """Chance that was averaged away: `count` values stand behind each item's, and one of them has
    this variance around the item's mean; nan where there was one alone."""

    count: int = 1
    variance: float = math.nan

    @property
    def share(self) -> float:
        """What is left of it in an item's value; 0 where it was not measured."""
        return 0.0 if math.isnan(self.variance) else self.variance / self.count


@dataclass(frozen=True)
class Asked:
    """All items that an arm was asked, also those without a value."""

    items: list[str]
    clusters: list[str]
    values: stats.Floats
    """(seeds, items); nan where there is none."""
    seeds: tuple[str, ...] = ()
    """All training seeds that were asked, also one without any value."""


@dataclass(frozen=True)
class Arm:
    """One arm's items of one metric: those with a value under every seed, in the order of
    `items`."""

    name: str
    items: list[str]
    clusters: list[str]
    values: stats.Floats
    """(seeds, items)."""
    seeds: tuple[str, ...] = ()
    """The training seed of each row of `values`; none for a finished model and for a baseline that
    scores by definition, which are one row that no seed varies."""
    unjudged: int = 0
    """Cells (item under a seed) without a value."""
    by_definition: bool = False
    """The baseline of a metric that compares with it."""
    answers: Noise = Noise()
    """Of the answers sampled to a prompt."""
    judges: Noise = Noise()
    """Of the judges that judged the same answer."""
    asked: Asked | None = None
    """With the items that `values` leave out; None where it leaves out none."""


@dataclass(frozen=True)
class Family:
    """All arms that one metric of one benchmark has scored: its differences hold at once."""

    benchmark: str
    metric: str
    members: list[Arm]
    primary: bool = False
    trained_baseline: tuple[str, ...] = ()
    """Where the metric is a comparison with a baseline that was trained itself: its seeds. Under
    one seed all arms were judged against the same checkpoint, so they share its luck."""
    compared: frozenset[frozenset[str]] | None = None
    """The pairs that are compared, by name; None: all."""
    planned: int = 0
    """Where judging looked at the differences on the way and could stop: the prompts (clusters)
    that it would have gone through at most."""
    beside: int = 1
    """How many families hold at once, this one among them (`Declared.beside`)."""

    def level(self, alone: float) -> float:
        """The level of this family where it would be `alone` by itself (Bonferroni)."""
        return 1 - (1 - alone) / self.beside


@dataclass(frozen=True)
class Pair:
    """Two arms on the items that both have: the same item in the same place."""

    a: Arm
    b: Arm
    x: stats.Floats
    """a's values, (seeds, items)."""
    y: stats.Floats
    clusters: npt.NDArray[np.intp]
    """The cluster of each item, by its number in the family."""
    part: stats.Residuals
    """Of the mean difference."""
    planned: int = 0
    """As in the family."""

    @property
    def of_items(self) -> Part:
        """What the choice of prompts adds to the difference's error."""
        return Part(self.part.variance, len(self.part.sums) - 1.0)

    @property
    def stretch(self) -> float:
        """How many times as wide the items' part of an interval is where not all of the planned
        prompts were judged (eval/comparing/sequential.py)."""
        return math.sqrt(max(1.0, self.planned / len(self.part.sums)))


def pairs(family: Family, baseline: str | None) -> list[Pair]:
    """All pairs that are compared and share items, those with the baseline first and the baseline
    second in each."""
    members = sorted(family.members, key=lambda arm: arm.name == baseline)
    clusters = _numbered([arm.clusters for arm in members])
    found, wanted = [], family.compared
    for (k, a), (_, b) in combinations(enumerate(members), 2):
        if wanted is not None and {a.name, b.name} not in wanted:
            continue
        pair = _pair(family, a, b, clusters[k])
        if pair is not None:
            found.append(pair)
    return sorted(found, key=lambda pair: pair.b.name != baseline)


def shared_items(family: Family) -> list[tuple[str, str, int, int]]:
    """The pairs that are to be compared and share no item, or were asked fewer in common than
    either was: the two names, how many items they share, and how many the arm with fewer was
    asked. Items that are only unjudged are no such case: they are counted by arm."""
    found = []
    for a, b in combinations(family.members, 2):
        if family.compared is not None and {a.name, b.name} not in family.compared:
            continue
        shared = len(a.items) if a.items == b.items else len({*a.items} & {*b.items})
        of_a, of_b = (arm.items if arm.asked is None else arm.asked.items for arm in (a, b))
        fewer = min(len(of_a), len(of_b))
        if not shared or (of_a != of_b and len({*of_a} & {*of_b}) < fewer):
            found.append((a.name, b.name, shared, fewer))
    return found


def _numbered(labels: Sequence[list[str]]) -> list[npt.NDArray[np.intp]]:
    """Labels of several arms as numbers, the same label the same number in all of them."""
    number: dict[str, int] = {}
    made: list[npt.NDArray[np.intp]] = []
    for k, own in enumerate(labels):
        if k and own == labels[k - 1]:
            made.append(made[-1])
        else:
            made.append(np.array([number.setdefault(x, len(number)) for x in own], dtype=np.intp))
    return made


def _pair(family: Family, a: Arm, b: Arm, clusters: npt.NDArray[np.intp]) -> Pair | None:
    """The items that both arms have, in the order of `a` (whose clusters are given); None where
    they share none. Under a trained baseline only the seeds that both have count, so that its luck
    falls out."""
    x, y = a.values, b.values
    if family.trained_baseline:
        rows, others = _shared_seeds(a, b)
        x = x if rows is None else x[rows]
        y = y if others is None else y[others]
    if a.items != b.items:
        place = {item: k for k, item in enumerate(b.items)}
        left = [k for k, item in enumerate(a.items) if item in place]
        right = [place[a.items[k]] for k in left]
        x, y, clusters = x[:, left], y[:, right], clusters[left]
    if not len(clusters):
        return None
    of_a, of_b = x.mean(axis=0), y.mean(axis=0)
    largest = float(max(abs(of_a).max(), abs(of_b).max()))
    part = stats.residuals(of_a - of_b, clusters, largest)
    return Pair(a, b, x, y, clusters, part, family.planned)


def _shared_seeds(a: Arm, b: Arm) -> tuple[list[int] | None, list[int] | None]:
    """The rows of the seeds that both arms have; None, all rows, where they share none."""
    shared = [seed for seed in a.seeds if seed in b.seeds]
    if not shared:
        return None, None
    return [a.seeds.index(s) for s in shared], [b.seeds.index(s) for s in shared]


@dataclass(frozen=True)
class SeedParts:
    """What training seeds add to each of K differences."""

    parts: list[Part]
    covariance: stats.Floats
    """(K, K), of the seeds' part alone, for their simultaneous critical values."""


def seed_parts(family: Family, pairs: Sequence[Pair]) -> SeedParts:
    """What training seeds add to the differences of a family.

    The variance between the seeds of an arm is pooled over the arms. Two arms that were judged
    against the same trained baseline share its part under each seed: their difference is left with
    what remains when the seeds' common part is taken out (the residual of arms by seeds), and the
    difference from the baseline itself keeps the whole, known by no more than its seeds.
    """
    whole = between_seeds(family.members)
    after = whole
    if family.trained_baseline:
        after = beside_shared_seeds(family.members) or whole
        whole = Part(whole.variance, min(whole.df, max(1.0, len(family.trained_baseline) - 1.0)))
    names = [arm.name for arm in family.members]
    unit = dict(zip(names, np.eye(len(names)), strict=True))
    contrast = np.array([unit[pair.a.name] - unit[pair.b.name] for pair in pairs])
    shares = {arm.name: _share(arm, family) for arm in family.members}
    parts = []
    for pair in pairs:
        paired = family.trained_baseline and {*pair.a.seeds} & {*pair.b.seeds}
        each = after if paired else whole
        share = _paired_share(pair) if paired else shares[pair.a.name] + shares[pair.b.name]
        parts.append(Part(each.variance * share, each.df))
    # Under a trained baseline each arm's score holds the baseline's luck: the baseline is one more
    # arm of as many seeds.
    diagonal = [shares[name] for name in names]
    if family.trained_baseline:
        own = 1 / len(family.trained_baseline)
        diagonal = [share if share else own for share in diagonal]
    return SeedParts(parts, contrast @ np.diag(diagonal) @ contrast.T)


def _share(arm: Arm, family: Family) -> float:
    """The share of one seed's variance that stands in an arm's mean: one over its seeds; 0 for what
    no seed varies. A finished model that was judged against one checkpoint of a trained baseline
    holds all of that one's."""
    if arm.seeds:
        return 1 / len(arm.seeds)
    return 1.0 if family.trained_baseline and not arm.by_definition else 0.0


def _paired_share(pair: Pair) -> float:
    """Both arms' shares on the seeds that they have in common."""
    return 2 / len({*pair.a.seeds} & {*pair.b.seeds})


def between_seeds(arms: Sequence[Arm]) -> Part:
    """The variance of one seed's score around its arm's mean, pooled over the arms that have
    several; (0, infinite) where none has."""
    squares, df = 0.0, 0
    for arm in arms:
        if len(arm.seeds) > 1 and arm.items:
            means = arm.values.mean(axis=1)
            apart = stats.without_rounding(means - means.mean(), float(abs(means).max()))
            squares += float((apart**2).sum())
            df += len(means) - 1
    return Part(squares / df, float(df)) if df else Part(0.0)


def beside_prompts(values: stats.Floats) -> float:
    """What one answer's chance and a seed's taste for single prompts add to one cell of `values`
    (seeds, items): the residual mean square of seeds by items; nan below two of either."""
    seeds, items = values.shape
    if seeds < 2 or items < 2:
        return math.nan
    left = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    return float((left**2).sum()) / float((seeds - 1) * (items - 1))


def of_seeds_prompts(pair: Pair) -> float:
    """The part of a difference's variance between seeds that a finite set of prompts makes, and
    that further prompts take away; 0 where no seed varies either arm."""
    parts = [beside_prompts(values) / values.size for values in (pair.x, pair.y)]
    return float(sum(part for part in parts if not math.isnan(part)))


def beside_shared_seeds(arms: Sequence[Arm]) -> Part | None:
    """The variance of one seed's score that arms do not share under that seed: the residual mean
    square of arms by seeds, over the seeds that all of them have; None below two of either."""
    several = [arm for arm in arms if len(arm.seeds) > 1 and arm.items]
    if len(several) < 2:
        return None
    common = set.intersection(*({*arm.seeds} for arm in several))
    shared = [seed for seed in several[0].seeds if seed in common]
    if len(shared) < 2:
        return None
    means = np.array([_means(arm, shared) for arm in several])
    left = means - means.mean(axis=1, keepdims=True) - means.mean(axis=0) + means.mean()
    left = stats.without_rounding(left, float(abs(means).max()))
    df = (len(several) - 1.0) * (len(shared) - 1.0)
    return Part(float((left**2).sum()) / df, df)


def _means(arm: Arm, seeds: Sequence[str]) -> list[float]:
    """An arm's score under each of some of its seeds."""
    return [float(arm.values[arm.seeds.index(seed)].mean()) for seed in seeds]
