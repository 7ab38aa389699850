"""What the stages of one recipe share: its arms and what they resolve to, and who is compared with
whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from core.store import Result, Store, digest
from core.tracking import Tracker
from recipes.schema import Recipe, with_random
from synth.config.synthesis import SynthConfig
from synth.filters.arm import ArmConfig
from synth.filters.rule import Rule, resolve
from synth.tags.own.columns import measures

Selections = dict[tuple[str, int], Result | None]
"""A selection for every (arm, seed); of rows kept out of every arm, ("heldout", 0)."""

HELDOUT = ("heldout", 0)


@dataclass(frozen=True)
class Arms:
    """The arms of a recipe, random ones of the same size added, and the seeds they train with."""

    configs: Mapping[str, ArmConfig]
    rules: Mapping[str, Rule]
    """What the arms that choose from the pool resolve to."""
    seeds: tuple[int, ...]
    baseline: str
    """The arm that others are compared with."""

    @classmethod
    def of(cls, recipe: Recipe) -> Arms:
        """Raises UserError for an arm that does not resolve to a rule."""
        configs = with_random(recipe)
        from_pool = {n: arm for n, arm in configs.items() if arm.model is None and arm.data is None}
        known = measures(recipe.synth.tags)
        rules = {name: resolve(name, arm, measures=known) for name, arm in from_pool.items()}
        seeds = recipe.train.seeds if recipe.train else (0,)
        return cls(configs, rules, seeds, baseline_of(recipe, configs))

    @property
    def with_data(self) -> dict[str, str]:
        """The arms that are someone else's data: where it is, by name."""
        return {name: arm.data for name, arm in self.configs.items() if arm.data is not None}

    @property
    def finished(self) -> dict[str, str]:
        """The arms that are finished models: which, by name."""
        return {name: arm.model for name, arm in self.configs.items() if arm.model is not None}

    def drawn_anew(self, arm: str) -> bool:
        """Whether another seed gives the arm other rows."""
        return arm not in self.rules or self.rules[arm].seeded

    def selections(self, arm: str) -> list[tuple[int, str]]:
        """(seed, name below a stage) of each selection of an arm that is made by itself: one for
        each seed ("ARM/SEED"), or one in all ("ARM")."""
        if self.drawn_anew(arm):
            return [(seed, f"{arm}/{seed}") for seed in self.seeds]
        return [(self.seeds[0], arm)]


def baseline_of(recipe: Recipe, arms: Mapping[str, ArmConfig]) -> str:
    """The arm that others are compared with: the recipe's, else the first finished model, else the
    first random arm, else the first arm."""
    if recipe.baseline:
        return recipe.baseline
    finished = [name for name, arm in arms.items() if arm.model is not None]
    random = [
        name
        for name, arm in arms.items()
        if arm.choose == "hash_order" and arm.where is None and arm.data is None
    ]
    return next(iter([*finished, *random, *arms]))


def tracker_of(recipe: Recipe, store: Store) -> Tracker:
    """Where the runs of this recipe are tracked, all in one group; what its tasks get on a cluster
    makes no other recipe of it."""
    group = f"{recipe.name}-{digest(recipe.model_dump(mode='json', exclude={'launch'}))[:8]}"
    return Tracker(recipe.track, project=recipe.project, group=group, folder=store.root)


def needs_pool(arms: Arms, synth: SynthConfig) -> bool:
    """Whether anything is chosen from rows of the recipe's own."""
    return bool(arms.rules) or synth.heldout > 0
