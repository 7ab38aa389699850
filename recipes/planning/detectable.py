"""Which difference a design finds, before it is run: by the same arithmetic as the comparison's
intervals, from variances that the recipe states, that an earlier comparison of this store showed,
or that published judgments have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from recipes.schema import Recipe
from recipes.stages.walk import Arms

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
class Spread:
    """What varies: the standard deviation over prompts of the difference between two arms, that of
    an arm's score over its seeds (None: not known), and what both rest on."""

    prompt_sd: float
    seed_sd: float | None
    rests_on: str


@dataclass(frozen=True)
class Design:
    """What is compared: arms in question, arms that are trained (controls among them), training
    seeds, prompts."""

    arms: int
    trained: int
    seeds: int
    prompts: int

    @property
    def pairs(self) -> int:
        """Differences whose intervals hold at once."""
        return self.arms * (self.arms - 1) // 2


def smallest(design: Design, spread: Spread) -> float:
    """The smallest true difference between two trained arms that is found 8 times in 10 by
    intervals that hold for all pairs at once; nan where the design has no error to go by."""
    import numpy as np

    from eval import stats
    from eval.comparing.errors import Errors, Part, detectable

    unit = np.eye(design.arms)
    contrast = np.array([unit[a] - unit[b] for a, b in combinations(range(design.arms), 2)])
    items = Part(spread.prompt_sd**2 / design.prompts, design.prompts - 1.0)
    seeds = Part(0.0)
    if spread.seed_sd and design.seeds > 1:
        known = design.trained * (design.seeds - 1.0)
        seeds = Part(2 * spread.seed_sd**2 / design.seeds, known)
    criticals = []
    for part in (items, seeds):
        df = np.full(design.pairs, part.df)
        together = stats.simultaneous(contrast @ contrast.T, df)[0]
        criticals.append(float(np.fmax(together, stats.t_critical(part.df))))
    return detectable(Errors(items, seeds), (criticals[0], criticals[1]))


def of_recipe(recipe: Recipe, arms: Arms, prompts: int | None) -> dict[str, Any]:
    """What a plan says of the primary metric; {} where nothing is compared. `prompts`: how many
    items it has, None where that is not known yet."""
    config = recipe.eval
    asked = [name for name in arms.configs if name not in arms.controls]
    if config is None or config.deciding is None or len(asked) < 2:
        return {}
    benchmark, _, metric = config.deciding.partition("/")
    trained = [name for name, arm in arms.configs.items() if arm.model is None]
    design = Design(len(asked), len(trained), len(arms.seeds), prompts or 0)
    spread = _spread(recipe, benchmark, metric)
    said: dict[str, Any] = {
        "primary": config.deciding,
        "prompts": prompts,
        "seeds": design.seeds,
        "pairs": design.pairs,
    }
    if spread is None or not prompts or prompts < 2:
        return said | {"difference": None, "rests_on": _lacking(spread, prompts)}
    return said | {
        "difference": smallest(design, spread),
        "unit": UNITS.get(benchmark, ""),
        "prompt_sd": spread.prompt_sd,
        "seed_sd": spread.seed_sd,
        "rests_on": spread.rests_on,
    }


def _lacking(spread: Spread | None, prompts: int | None) -> str:
    if not prompts:
        return "how many items it has is not known yet"
    if spread is None:
        return "how much it varies is not known: state `expected.prompt_sd`, or run a pilot"
    return "one item says nothing"


def _spread(recipe: Recipe, benchmark: str, metric: str) -> Spread | None:
    """As the recipe states it, else as an earlier comparison in its store showed it, else as
    published."""
    stated = recipe.expected
    if stated is not None and stated.prompt_sd is not None:
        return Spread(stated.prompt_sd, stated.seed_sd, "stated in `expected`")
    metrics = (metric,) if metric else METRICS.get(benchmark, ())
    for path in sorted(
        Path(recipe.store).glob("results/compare/*/comparison.parquet"),
        key=lambda path: -path.stat().st_mtime,
    ):
        for name in metrics:
            found = _earlier(path, benchmark, name)
            if found is not None:
                return found
    if benchmark in PUBLISHED and metric in ("", "win_rate"):
        sd, source = PUBLISHED[benchmark]
        seed_sd = stated.seed_sd if stated else None
        return Spread(sd, seed_sd, source)
    return None


def _earlier(path: Path, benchmark: str, metric: str) -> Spread | None:
    """What an earlier comparison's items show: the median over pairs of arms; None where it has
    fewer than two arms of this metric."""
    import numpy as np
    import polars as pl

    items = pl.read_parquet(path).filter(
        (pl.col("benchmark") == benchmark) & (pl.col("metric") == metric)
    )
    scores = items.group_by("arm", "seed").agg(pl.col("value").mean())
    # what belongs to one prompt is named PROMPT#PART
    prompt = pl.col("item").str.split("#").list.first().alias("prompt")
    means = items.group_by("arm", prompt).agg(pl.col("value").mean())
    wide = means.pivot("arm", index="prompt", values="value").drop("prompt")
    spreads = [_apart(wide, a, b) for a, b in combinations(wide.columns, 2)]
    known = [one for one in spreads if one]
    if not known:
        return None
    return Spread(
        float(np.median(known)), _between(scores), f"an earlier comparison, {path.parent.name[:12]}"
    )


def _apart(wide: Any, a: str, b: str) -> float | None:
    """Standard deviation of two arms' differences over items."""
    both = wide.select(a, b).drop_nulls()
    value = (both[a] - both[b]).std()
    return float(value) if value is not None else None


def _between(scores: Any) -> float | None:
    """Standard deviation of a seed's score around its arm's, pooled; None where no arm has two."""
    squares, df = 0.0, 0
    by_arm: Mapping[Any, Any] = {arm: rows["value"] for (arm,), rows in scores.group_by("arm")}
    for values in by_arm.values():
        if len(values) > 1:
            squares += float(((values - values.mean()) ** 2).sum())
            df += len(values) - 1
    return (squares / df) ** 0.5 if df else None
