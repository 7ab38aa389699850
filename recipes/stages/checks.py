"""What can be found wrong in a recipe by its arms and results before anything is spent: models,
queries, trainings, the cap on GPU hours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import write_atomic
from core.models import check_access
from core.store import Result, digest
from recipes.checks import libraries, questions
from recipes.schema import Recipe, Source
from recipes.stages import preferences
from recipes.stages.preferences import Named
from recipes.stages.session import Session, Stage
from recipes.stages.walk import Arms
from synth.context import Resolve
from synth.tags.scores.queries import refuse_prompts
from train.config import TrainConfig


def models(recipe: Recipe, arms: Arms, resolve: Resolve) -> None:
    """Resolve every model that the recipe names, and see that the hub lets us have it. Raises
    UserError naming the place in the recipe."""
    teacher, train = recipe.synth.teacher, recipe.train
    named: list[Named] = []
    if not teacher.hosted:  # a service that chats knows its model by name
        named.append(("synth.teacher.model", teacher.model, teacher.revision))
    for name, model in arms.finished.items():
        named.append((f"arms.{name}.model", model, arms.configs[name].revision))
    if train is not None:
        named.append(("train.base", train.base, train.revision))
    best_of = recipe.synth.best_of_reward if recipe.synth.responses else None
    if best_of is not None:
        named.append(("the reward model of synth.responses", best_of.model, best_of.revision))
    for keys, block in questions.models(recipe, ()):
        # An embedded one is made when it is first served.
        if not block.model.startswith("embedded/") and not block.server.get("urls"):
            named.append((".".join((*keys, "model")), block.model, block.revision))
    for place, model, revision in [*named, *preferences.models(recipe.synth, arms)]:
        try:
            check_access(resolve(model, revision))
        except UserError as error:
            raise UserError(f"{place}: {error}") from error


def queries(recipe: Recipe, arms: Arms, prompts: Path | None) -> None:
    """Refuse queries of `rds` that are prompts of the recipe's evaluation: `prompts`, where they
    are known, and those of `synth.tags.decontaminate`. Raises UserError, also where no model is
    trained."""
    own = recipe.synth.tags.decontaminate
    files = [file for file in (prompts, own.file and Path(own.file).expanduser()) if file]
    for rule in [*arms.rules.values(), *arms.data.values()]:
        if rule.choose.kind != "rds":
            continue
        if recipe.train is None:
            raise UserError(
                f"{rule.at}: rds compares hidden states of the model that is trained; add `train`."
            )
        refuse_prompts(Path(rule.choose.arguments[0]).expanduser(), files, own.ngram)


def trainer(config: TrainConfig, source: Source) -> None:
    """Let TRL and DeepSpeed judge the `train:` or `dpo:` block. Importing them takes seconds, so a
    block that these versions accepted once, with the files that it names, is not asked about again.
    What this machine lacks is looked for each time."""
    from train.settings import arguments, machine

    accepted = libraries.memory(questions.training(config))
    try:
        if not accepted.exists():
            arguments.check(config)
            write_atomic(accepted, "")
        if config.num_machines == 1:  # several are not this one
            machine.check(config)
    except UserError as error:
        raise UserError(f"{source.at((config.block, 'trainer'))}: {error}") from error


HOUR = 3600.0


def spent(results: Mapping[str, Result], devices: int) -> list[float]:
    """GPU hours of each finished training, whichever run made it; one that is two arms' counts
    once."""
    made = {result.path: result for name, result in results.items() if name.startswith("train/")}
    return [_seconds(result.manifest) * devices / HOUR for result in made.values()]


def _seconds(manifest: Mapping[str, Any]) -> float:
    """How long a training took: its last attempt, or the steps of all attempts."""
    steps = manifest.get("counts", {}).get("training_seconds", 0)
    return max(float(manifest.get("seconds") or 0), float(steps or 0))


def gpu_hours(
    session: Session, recipe: Recipe, stage: Stage, finished: Mapping[str, Result]
) -> None:
    """The cap on an experiment's GPU hours, beside the judge's budget in money. `finished`: the
    trainings ("train/ARM/SEED") that were finished before this run, also those below in the recipe.

    Raises UserError where a training is to be made now and those that are finished, with one more
    as long as their mean, would reach it. Of the first `forecast` judges; one that has begun is not
    stopped, and what is evaluated is not counted."""
    if recipe.gpu_hours is None or not _begin(session, [stage]):
        return
    from train.settings.machine import processes

    config = recipe.train or recipe.dpo
    if config is None:
        return
    hours = spent({**finished, **session.results}, processes(config))
    one = sum(hours) / len(hours) if hours else 0.0
    if sum(hours) + one >= recipe.gpu_hours:
        raise UserError(
            f"gpu_hours: {len(hours)} trainings took {sum(hours):.3g} of {recipe.gpu_hours:g} GPU "
            f"hours, and {stage.name} would take about {one:.3g} more; raise `gpu_hours`, or "
            "compare what is trained by `magpie run RECIPE --trained`."
        )


def forecast(
    session: Session, recipe: Recipe, stages: Sequence[Stage], finished: Mapping[str, Result]
) -> None:
    """The same cap before the first training, by the forecast of `magpie plan` for this machine's
    GPUs; trainings with pairs are not forecast, since those may not be made yet.

    Raises UserError where what is finished, with all fine-tunings that this run would begin,
    exceeds the cap."""
    if recipe.gpu_hours is None or recipe.train is None:
        return
    begun = _begin(session, stages)
    hours = _forecast(recipe.train, [stage.parents["tokens"] for stage in begun])
    if not hours:
        return
    from train.settings.machine import processes
    from train.sizes.schedule import MFU

    before = sum(spent({**finished, **session.results}, processes(recipe.train)))
    if before + hours > recipe.gpu_hours:
        beside = f" beside the {before:.3g} of those that are finished" if before else ""
        raise UserError(
            f"gpu_hours: {len(begun)} trainings are to take about {hours:.3g} GPU hours{beside} "
            f"(at {MFU:.0%} of the peak of these GPUs), and {recipe.gpu_hours:g} are allowed in "
            "all; raise `gpu_hours`, or train less (arms, seeds, rows, epochs)."
        )


def _begin(session: Session, stages: Iterable[Stage]) -> list[Stage]:
    """Those trainings that this run would begin, what two arms share once."""
    if session.starts_nothing or session.trainings.finished:
        return []
    only = session.trainings.only
    wanted = [stage for stage in stages if only is None or stage.name == f"train/{only}"]
    begun = {digest(stage.determined): stage for stage in wanted if session.find(stage) is None}
    return list(begun.values())


def _forecast(config: TrainConfig, tokens: Iterable[Result | None]) -> float:
    """GPU hours of trainings on these tokens; 0 where this machine's GPUs, or the model's shape,
    are not known."""
    from core.serving import devices
    from train.data.tokens import read_ledger
    from train.settings.machine import processes
    from train.sizes.schedule import MFU, expected_hours, schedule
    from train.sizes.shapes import shape_of
    from train.sizes.speed import peak_flops

    peak = peak_flops(devices.name() or "")
    if peak is None:
        return 0.0
    total = 0.0
    with suppress(UserError):  # of a base of unknown shape
        shape = shape_of(config.base, config.revision)
        for made in tokens:
            ledger = read_ledger(made.path) if made is not None else {}
            rows, count = ledger.get("trained_rows"), ledger.get("trained_tokens")
            if rows and count:
                planned = schedule(config, rows, count, processes(config))
                total += expected_hours(config, shape, planned, rows, count, peak * MFU)
    return total
