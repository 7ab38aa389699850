"""Which difference a recipe's design finds, before it is run, from variances that the recipe
states, that an earlier comparison of this store showed, or that published judgments have. The
arithmetic is in eval/comparing/planning/before.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from core.errors import UserError
from core.files import read_json
from eval.protocols import PAIRWISE, RATED
from recipes.schema import Recipe
from recipes.stages.evaluating import judging
from recipes.stages.walk import Arms

if TYPE_CHECKING:
    from eval.comparing.planning.before import Design
    from eval.comparing.planning.components import Components
    from eval.config import EvalConfig

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
    "alpaca": ("win_rate",),
    "arena": ("arena_score",),
    "heldout": ("loss", "foreign_loss"),
    "checks": ("followed",),
    "wildbench": ("wb_score",),
    "mtbench": ("mt_score",),
}
"""Metrics of a benchmark that decide, the first that a comparison has."""
CONTROLLED = "length_controlled_winrate"
"""What decides in `alpaca` where the prompts and the baseline are AlpacaEval's own."""


@dataclass(frozen=True)
class Known:
    """How much the metric that decides varies, and what that rests on."""

    components: Components
    rests_on: str
    prompts: int | None = None
    """Clusters that an earlier comparison had of it, where nothing else says how many."""


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
        **_per_prompt(config, benchmark),
    )


class _PerPrompt(TypedDict, total=False):
    answers: int
    judges: int
    sequential: bool


def _per_prompt(config: EvalConfig | None, benchmark: str) -> _PerPrompt:
    """How often a prompt is answered and an answer is judged, and whether in steps."""
    for pairwise in PAIRWISE:
        if config is not None and pairwise == benchmark:
            protocols = config.protocols(pairwise)
            return {
                "answers": protocols[0].answers.answers_per_prompt,
                "judges": 1 if protocols[0].share else len(protocols),  # shared: one of them each
                "sequential": config.judging == "sequential" and pairwise == "alpaca",
            }
    for rated in RATED:
        if config is not None and rated == benchmark:
            return {"answers": config.rating(rated).answers.answers_per_prompt}
    return {}


def of_recipe(recipe: Recipe, arms: Arms, prompts: int | None) -> dict[str, Any]:
    """What a plan says of the primary metric; {} where nothing is compared. `prompts`: how many
    items it has, None where that is not known yet."""
    from eval.comparing.planning.before import detectable_before

    config = recipe.eval
    asked = [name for name in arms.configs if name not in arms.controls]
    if config is None or config.deciding is None or len(asked) < 2:
        return {}
    benchmark, _, metric = config.deciding.partition("/")
    known = _known(recipe, arms, benchmark, metric)
    if known is not None and benchmark == "tasks":
        prompts = known.prompts
    said: dict[str, Any] = {
        "primary": config.deciding,
        "prompts": prompts,
        "seeds": len(arms.seeds),
        "pairs": len(asked) * (len(asked) - 1) // 2,
    }
    if known is None or not prompts or prompts < 2:
        return said | {"difference": None, "rests_on": _lacking(recipe, known, prompts)}
    design = design_of(recipe, arms, benchmark, prompts)
    planned = detectable_before(design, known.components)
    kind = planned.between_arms or planned.from_baseline
    assert kind is not None, "two arms are asked about"
    cell = known.components.cell() / len(arms.seeds)
    seed_sd = math.sqrt(known.components.seeds)
    return said | {
        "difference": kind.detectable,
        "unit": UNITS.get(benchmark, "in its own unit"),
        "sequential": design.sequential,
        "prompt_sd": math.sqrt(known.components.prompts + 2 * cell),
        "seed_sd": None if math.isnan(seed_sd) else seed_sd,
        "rests_on": "; ".join([known.rests_on, *_unmeasured(design, known.components)]),
    }


def _unmeasured(design: Design, known: Components) -> Iterator[str]:
    """What several answers and judges save that nobody measured, so that it is not in a figure."""
    for count, variance, names in (
        (design.answers, known.answers, "answers a prompt"),
        (design.judges, known.judges, "judges an answer"),
    ):
        if count > 1 and math.isnan(variance):
            yield f"what {count} {names} save is not known and not in it"


def _lacking(recipe: Recipe, known: Known | None, prompts: int | None) -> str:
    """Why no difference can be named."""
    task = _task(recipe)
    if task and known is None:
        return f"no earlier comparison in the store has lm-eval's {task}: run a pilot in it"
    if task and not prompts:
        return f"no comparison in the store says how many clusters {task} has: run a pilot in it"
    if not prompts:
        return "how many items it has is not known yet"
    if known is None:
        return "how much it varies is not known: state `expected.prompt_sd`, or run a pilot"
    return "one item says nothing"


def _task(recipe: Recipe) -> str:
    """The task of lm-eval that decides; "" where another benchmark does."""
    from eval.checkpoint.lm_eval_tasks import first_name

    config = recipe.eval
    benchmark, _, metric = str(config and config.deciding).partition("/")
    if config is None or config.tasks is None or benchmark != "tasks":
        return ""
    return metric.split(" ")[0] or first_name(config.tasks.tasks)


def _known(recipe: Recipe, arms: Arms, benchmark: str, metric: str) -> Known | None:
    """As the recipe states it, else as an earlier comparison in its store showed it, else as
    published."""
    from eval.comparing.planning.components import Components

    stated = recipe.expected
    of_seeds = math.nan
    if stated is not None and stated.seed_sd is not None:
        of_seeds = stated.seed_sd**2
    earlier = _earlier(recipe, benchmark, _deciding(recipe, arms, benchmark, metric))
    if stated is not None and stated.prompt_sd is not None:
        prompts = earlier.prompts if earlier is not None else None
        return Known(Components(stated.prompt_sd**2, of_seeds), "stated in `expected`", prompts)
    if earlier is not None:
        return earlier
    if benchmark in PUBLISHED and metric in ("", "win_rate"):
        sd, source = PUBLISHED[benchmark]
        if CONTROLLED in _deciding(recipe, arms, benchmark, metric):
            source += f", whose raw win rate stands for the {CONTROLLED}"
        return Known(Components(sd**2, of_seeds), source)
    return None


def _deciding(recipe: Recipe, arms: Arms, benchmark: str, metric: str) -> tuple[str, ...]:
    """The metric that will decide, then those that stand for it where no comparison has it."""
    from recipes.stages.evaluating import length_control

    if metric:
        return (metric,)
    if benchmark == "alpaca" and recipe.eval and not length_control.unfit(recipe.eval, arms):
        return (CONTROLLED, *METRICS["alpaca"])
    task = _task(recipe)
    return METRICS.get(benchmark, (f"{task} ",) if task else ())  # any metric of the task's


def _earlier(recipe: Recipe, benchmark: str, metrics: Sequence[str]) -> Known | None:
    """As the newest comparison of the store showed the first of these metrics that any has."""
    from eval.comparing.planning.before import earlier

    found = list(_comparisons(Path(recipe.store)))
    for number, name in enumerate(metrics):
        for folder, comparison in found:
            for one in comparison.get("components", []):
                own = (
                    one["metric"].startswith(name) if name.endswith(" ") else one["metric"] == name
                )
                known = earlier(comparison, benchmark, one["metric"]) if own else None
                if known is not None:
                    of = f" (its {name}, in place of {metrics[0]})" if number else ""
                    rests_on = f"an earlier comparison, {folder.name[:12]}{of}"
                    return Known(known, rests_on, one.get("clusters"))
    return None


def _comparisons(store: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The comparisons of a store, the newest first; one that cannot be read tells nothing."""
    paths = store.glob("results/compare/*/comparison.json")
    for path in sorted(paths, key=lambda path: -path.stat().st_mtime):
        with suppress(UserError):
            yield path.parent, read_json(path)
