"""What the stages of one recipe share: its arms and what they resolve to, and who is compared with
whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from core.store import Result, Store, digest
from core.tracking import Tracker
from eval.comparing.metrics import Control
from recipes.blocks.added_arms import is_random, negative_controls
from recipes.schema import Recipe, with_random
from synth.config.synthesis import SynthConfig
from synth.filters import choices
from synth.filters.arm import ArmConfig, Budget, Choosing, PartConfig
from synth.filters.rule import Rule, linked, resolve
from synth.measures import Measures
from synth.tags.asking.own import measures

Selections = dict[tuple[str, int], Result | None]
"""A selection for every (arm, seed); of rows kept out of every arm, ("heldout", 0)."""

HELDOUT = ("heldout", 0)


@dataclass(frozen=True)
class Arms:
    """The arms of a recipe, random ones of the same size added, and the seeds they train with."""

    configs: Mapping[str, ArmConfig]
    rules: Mapping[str, Rule]
    """What the arms that choose from the pool resolve to."""
    data: Mapping[str, Rule]
    """What the arms resolve to that choose from someone else's data, and such parts of mixtures
    ("MIXTURE/PART")."""
    seeds: tuple[int, ...]
    baseline: str
    """The arm that others are compared with."""

    @classmethod
    def of(cls, recipe: Recipe) -> Arms:
        """Raises UserError for an arm that does not resolve to a rule."""
        configs = with_random(recipe)
        known = measures(recipe.synth.tags)
        rules: dict[str, Rule] = {}
        data: dict[str, Rule] = {}
        for name, arm in configs.items():
            if arm.kind == "pool":
                rules[name] = resolve(name, arm, measures=known)
            elif arm.kind == "data":
                data[name] = _of_data(name, arm, known)
            for part, config in (arm.mix or {}).items():
                if isinstance(config, PartConfig) and config.data:
                    data[f"{name}/{part}"] = _of_part(name, part, config, known)
        trained = recipe.train or recipe.dpo
        seeds = trained.seeds if trained else (0,)
        data = _linked_by_source(data, configs)
        return cls(configs, linked(rules), data, seeds, baseline_of(recipe, configs))

    @property
    def finished(self) -> dict[str, str]:
        """The arms that are finished models: which, by name."""
        return {name: arm.model for name, arm in self.configs.items() if arm.model is not None}

    @property
    def with_rows(self) -> list[str]:
        """The arms that choose rows."""
        return [name for name, arm in self.configs.items() if arm.kind not in ("model", "dpo")]

    @property
    def controls(self) -> dict[str, Control]:
        """The arms that are controls of another one, by name."""
        again = {name: Control(of, None) for name, of in negative_controls(self.configs).items()}
        moved = {
            name: Control(arm.of, arm.shuffled)
            for name, arm in self.configs.items()
            if arm.of is not None
        }
        return again | moved

    def choosing(self, name: str) -> Choosing:
        """What an arm, or a part of a mixture ("MIXTURE/PART"), says of its rows."""
        if name in self.configs:
            return self.configs[name]
        arm, _, part = name.partition("/")
        config = (self.configs[arm].mix or {})[part]
        if isinstance(config, PartConfig):
            return config
        raise KeyError(name)

    def drawn_anew(self, arm: str) -> bool:
        """Whether another seed gives the arm other rows: a mixture is seeded as its parts are, and
        another recipe's arm has what that recipe drew for the seed."""
        of = self.configs[arm].of
        if of is not None:
            return self.drawn_anew(of)
        if self.configs[arm].kind != "mix":
            rule = self.rules.get(arm) or self.data.get(arm)
            return rule is None or rule.seeded
        for part, config in (self.configs[arm].mix or {}).items():
            if not isinstance(config, PartConfig):
                seeded = self.drawn_anew(part)
            else:
                seeded = config.data is None or self.data[f"{arm}/{part}"].seeded
            if seeded:
                return True
        return False

    def selections(self, arm: str) -> list[tuple[int, str]]:
        """(seed, name below a stage) of each selection of an arm that is made by itself: one for
        each seed ("ARM/SEED"), or one in all ("ARM")."""
        if self.drawn_anew(arm):
            return [(seed, f"{arm}/{seed}") for seed in self.seeds]
        return [(self.seeds[0], arm)]


def _of_data(name: str, arm: ArmConfig, known: Measures) -> Rule:
    """The rule of an arm over someone else's data. Nothing said of which rows come first: hash
    order; without a budget, every row that may be chosen."""
    at = f"arms.{name}"
    if not arm.filtered:
        order = choices.read("hash_order", at)
        cut = arm.allow_cut is not False
        return Rule(name, at, None, order, arm.budget, arm.allow_short, known, cut)
    unordered = arm.choose is None and arm.strategy is None
    if unordered and arm.budget is None:
        arm = arm.model_copy(update={"choose": "all"})
    return resolve(name, arm, at, known)


def _of_part(mixture: str, part: str, config: PartConfig, known: Measures) -> Rule:
    """The rule of a mixture's part; its budget follows from its share when rows are taken."""
    at = f"arms.{mixture}.mix.{part}"
    stated = ("strategy", "params", "where", "choose", "allow_cut")
    fields = {name: getattr(config, name) for name in stated}
    arm = ArmConfig(data=config.data, **fields)
    if config.choose is None and config.strategy is None:
        arm = arm.model_copy(update={"choose": "hash_order"})
    everything = arm.choose == "all" or arm.strategy == "all"
    sized = arm.model_copy(update={"budget": None if everything else Budget(rows=1)})
    rule = resolve(f"{mixture}/{part}", sized, at, known)
    return replace(rule, budget=None, allow_short=True)


def _linked_by_source(
    rules: Mapping[str, Rule], configs: Mapping[str, ArmConfig]
) -> dict[str, Rule]:
    """The rules over data; a control is of an arm over the same data."""
    sources = {name: configs[name].data if name in configs else None for name in rules}
    found = dict(rules)
    for source in dict.fromkeys(sources.values()):
        found |= linked({name: rules[name] for name in rules if sources[name] == source})
    return found


def baseline_of(recipe: Recipe, arms: Mapping[str, ArmConfig]) -> str:
    """The arm that others are compared with: the recipe's, else the first finished model, else the
    first random arm (of the pool before those of data), else the first arm."""
    if recipe.baseline:
        return recipe.baseline
    finished = [name for name, arm in arms.items() if arm.model is not None]
    drawn = [name for name, arm in arms.items() if arm.choose == "hash_order" and is_random(arm)]
    random = sorted(drawn, key=lambda name: arms[name].kind != "pool")
    return next(iter([*finished, *random, *arms]))


def tracker_of(recipe: Recipe, store: Store) -> Tracker:
    """Where the runs of this recipe are tracked, all in one group; what its tasks get on a cluster
    makes no other recipe of it."""
    group = f"{recipe.name}-{digest(recipe.model_dump(mode='json', exclude={'launch'}))[:8]}"
    return Tracker(recipe.track, project=recipe.project, group=group, folder=store.root)


def needs_pool(arms: Arms, synth: SynthConfig) -> bool:
    """Whether anything is chosen from rows of the recipe's own."""
    return bool(arms.rules) or synth.heldout > 0
