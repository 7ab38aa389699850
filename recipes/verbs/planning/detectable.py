"""Which difference a recipe's design finds, before it is run, from variances that the recipe
states, that an earlier comparison of this store showed, or that published judgments have. The
arithmetic is in eval/comparing/planning/before.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.errors import UserError
from core.files import read_json
from eval.protocols import PAIRWISE
from recipes.schema import Recipe
from recipes.stages.evaluating import judging
from recipes.stages.walk import Arms

if TYPE_CHECKING:
    from eval.comparing.planning.before import Design
    from eval.comparing.planning.components import Components

PUBLISHED = {
    "alpaca": (
        32.0,
        "the median of 66 pairs among 12 published AlpacaEval 2 models (14 to 46)",
    ),
}
"""Standard deviation over prompts of the difference between two models, in the unit of the
benchmark's metric, and where it was measured."""
UNITS = {
    "alpaca": "points of win rate",
    "arena": "points",
    "heldout": "nats a token",
    "checks": "of what is checked",
}
METRICS = {
    "alpaca": ("length_controlled_winrate", "length_controlled_minimal", "win_rate"),
    "arena": ("arena_score",),
    "heldout": ("loss", "foreign_loss"),
    "checks": ("followed",),
    "wildbench": ("wb_score",),
    "mtbench": ("mt_score",),
}
"""Metrics of a benchmark that decide, the first that a comparison has."""


@dataclass(frozen=True)
class Known:
    """How much the metric that decides varies, and what that rests on."""

    components: Components
    rests_on: str


def design_of(recipe: Recipe, arms: Arms, benchmark: str, prompts: int) -> Design:
    """The differences in question as one design. A finished model beside the baseline counts as one
    more trained arm, which errs on the wide side."""
    from eval.comparing.planning.before import Design

    asked = [name for name in arms.configs if name not in arms.controls]
    config = recipe.eval
    rival = None
    for pairwise in PAIRWISE:
        if config is not None and pairwise == benchmark:
            rival = judging.rival(config, arms, pairwise)
    finished = [name for name in asked if name in arms.finished]
    baseline: Literal["none", "finished", "trained"] = "finished" if finished else "none"
    if rival in asked:
        baseline = "finished" if rival in finished else "trained"
    return Design(
        arms=len(asked) - (baseline != "none"),
        prompts=prompts,
        seeds=len(arms.seeds),
        baseline=baseline,
        judged=rival in asked,
        beside=len(arms.controls),
    )


def of_recipe(recipe: Recipe, arms: Arms, prompts: int | None) -> dict[str, Any]:
    """What a plan says of the primary metric; {} where nothing is compared. `prompts`: how many
    items it has, None where that is not known yet."""
    from eval.comparing.planning.before import detectable_before

    config = recipe.eval
    asked = [name for name in arms.configs if name not in arms.controls]
    if config is None or config.deciding is None or len(asked) < 2:
        return {}
    benchmark, _, metric = config.deciding.partition("/")
    known = _known(recipe, benchmark, metric)
    said: dict[str, Any] = {
        "primary": config.deciding,
        "prompts": prompts,
        "seeds": len(arms.seeds),
        "pairs": len(asked) * (len(asked) - 1) // 2,
    }
    if known is None or not prompts or prompts < 2:
        return said | {"difference": None, "rests_on": _lacking(known, prompts)}
    planned = detectable_before(design_of(recipe, arms, benchmark, prompts), known.components)
    kind = planned.between_arms or planned.from_baseline
    assert kind is not None, "two arms are asked about"
    cell = known.components.cell() / len(arms.seeds)
    seed_sd = math.sqrt(known.components.seeds)
    return said | {
        "difference": kind.detectable,
        "unit": UNITS.get(benchmark, ""),
        "prompt_sd": math.sqrt(known.components.prompts + 2 * cell),
        "seed_sd": None if math.isnan(seed_sd) else seed_sd,
        "rests_on": known.rests_on,
    }


def _lacking(known: Known | None, prompts: int | None) -> str:
    if not prompts:
        return "how many items it has is not known yet"
    if known is None:
        return "how much it varies is not known: state `expected.prompt_sd`, or run a pilot"
    return "one item says nothing"


def _known(recipe: Recipe, benchmark: str, metric: str) -> Known | None:
    """As the recipe states it, else as an earlier comparison in its store showed it, else as
    published."""
    from eval.comparing.planning.before import earlier
    from eval.comparing.planning.components import Components

    stated = recipe.expected
    of_seeds = math.nan
    if stated is not None and stated.seed_sd is not None:
        of_seeds = stated.seed_sd**2
    if stated is not None and stated.prompt_sd is not None:
        return Known(Components(stated.prompt_sd**2, of_seeds), "stated in `expected`")
    metrics = (metric,) if metric else METRICS.get(benchmark, ())
    for folder, comparison in _comparisons(Path(recipe.store)):
        for name in metrics:
            found = earlier(comparison, benchmark, name)
            if found is not None:
                return Known(found, f"an earlier comparison, {folder.name[:12]}")
    if benchmark in PUBLISHED and metric in ("", "win_rate"):
        sd, source = PUBLISHED[benchmark]
        return Known(Components(sd**2, of_seeds), source)
    return None


def _comparisons(store: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The comparisons of a store, the newest first; one that cannot be read tells nothing."""
    paths = store.glob("results/compare/*/comparison.json")
    for path in sorted(paths, key=lambda path: -path.stat().st_mtime):
        with suppress(UserError):
            yield path.parent, read_json(path)
