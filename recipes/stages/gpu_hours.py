"""A cap on the GPU hours of an experiment (`gpu_hours`), beside the judge's `budget` in money: no
training begins that would take it past."""

from __future__ import annotations

from collections.abc import Mapping

from core.errors import UserError
from core.store import Result
from recipes.schema import Recipe
from recipes.stages.session import Session, Stage

HOUR = 3600.0


def spent(results: Mapping[str, Result], devices: int) -> list[float]:
    """GPU hours of each finished training, whichever run made it."""
    return [
        float(result.manifest.get("seconds") or 0) * devices / HOUR
        for name, result in results.items()
        if name.startswith("train/")
    ]


def check(session: Session, recipe: Recipe, stage: Stage) -> None:
    """Raise UserError where a training is to be made now and those that are finished, with one more
    as long as their mean, would pass the recipe's cap. What is evaluated is not counted."""
    only = session.trainings.only
    wanted = only is None or stage.name == f"train/{only}"
    if recipe.gpu_hours is None or session.starts_nothing or session.trainings.finished:
        return
    if not wanted or session.find(stage) is not None:
        return
    from train.settings.machine import processes

    config = recipe.train or recipe.dpo
    if config is None:
        return
    hours = spent(session.results, processes(config))
    one = sum(hours) / len(hours) if hours else 0.0
    if sum(hours) + one >= recipe.gpu_hours:
        raise UserError(
            f"gpu_hours: {len(hours)} trainings took {sum(hours):.3g} of {recipe.gpu_hours:g} GPU "
            f"hours, and {stage.name} would take about {one:.3g} more; raise `gpu_hours`, or "
            "compare what is trained by `magpie run RECIPE --trained`."
        )
