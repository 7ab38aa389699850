"""Everything that can be found wrong in a recipe before anything is spent: models, sampling
parameters, TRL's own keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from core.errors import UserError, nearest
from core.files import write_atomic
from core.serving.devices import gpus
from core.store import Result, content_of_files, digest
from recipes.schema import Recipe, Source
from recipes.stages import preferences
from recipes.stages.preferences import Named
from recipes.stages.session import Session, Stage
from recipes.stages.walk import Arms
from synth.config.synthesis import SynthConfig
from synth.config.tags import OwnConfig, TagConfig, TagsConfig
from synth.context import Resolve
from synth.tags.scores.queries import refuse_prompts
from train.config import TrainConfig

OURS = (
    "model",
    "prompt",
    "n",
    "best_of",
    "stream",
    "stream_options",
    "echo",
    "use_beam_search",
    "structured_outputs",
    "return_token_ids",
)
"""What the harness says in a request itself, or what would make answers that nobody reads."""


JUDGES = ("trl", "transformers", "accelerate", "deepspeed", "peft")
"""Packages that judge a `train:` block."""


def models(recipe: Recipe, arms: Arms, resolve: Resolve) -> None:
    """Resolve every model that the recipe names. Raises UserError naming the place in the
    recipe."""
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
    for place, model, revision in [*named, *preferences.models(recipe.synth, arms)]:
        try:
            resolve(model, revision)
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


def trainer(config: TrainConfig, source: Source, root: Path) -> None:
    """Let TRL and DeepSpeed judge the `train:` or `dpo:` block. Importing them takes seconds, so a
    block that these versions accepted once, with the files that it names, is not asked about again
    (remembered below the store's `root`). What this machine lacks is looked for each time."""
    from train.settings import arguments, machine

    files = [config.deepspeed, config.chat_template_path, config.inference_template]
    contents = [content_of_files(each) if isinstance(each, str) else None for each in files]
    judged = [config, contents, bool(gpus()), [version(package) for package in JUDGES]]
    accepted = root / "checked" / digest(judged)[:16]
    try:
        if not accepted.exists():
            arguments.check(config)
            write_atomic(accepted, "")
        if config.num_machines == 1:  # several are not this one
            machine.check(config)
    except UserError as error:
        raise UserError(f"{source.at((config.block, 'trainer'))}: {error}") from error


def sampling(synth: SynthConfig) -> None:
    """Refuse sampling parameters that vLLM would ignore, with the nearest valid name. Models on
    other people's servers (`urls`) take what they take.

    Raises UserError naming the place in the recipe.
    """
    from core.serving.vllm_server import completion_fields

    known = completion_fields() - set(OURS)
    for place, parameters, server in _samplings(synth):
        for name in parameters:
            if name in OURS:
                raise UserError(
                    f"{place}.{name} is not for a recipe to say: every request asks for one text, "
                    "in a form of the harness's own."
                )
            if known and not server.get("urls") and name not in known:
                hint = nearest(name, known)
                raise UserError(f"{place}: vLLM knows no sampling parameter '{name}'{hint}")


def asked_tags(tags: TagsConfig) -> Iterator[tuple[str, TagConfig | OwnConfig]]:
    """(place, settings) of everything that language models are asked to tag."""
    for name in ("quality", "difficulty", "category", "pair_score"):
        yield f"synth.tags.{name}", getattr(tags, name)
    for name, own in tags.own.items():
        if own.prompt is None:
            continue
        yield f"synth.tags.own.{name}", own


def _samplings(
    synth: SynthConfig,
) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """(place, sampling, the server block of the model that samples so) of everything that synthesis
    samples."""
    teacher, responder = synth.teacher.server, (synth.responder or synth.teacher).server
    yield "synth.instruction", synth.instruction, teacher
    yield "synth.response", synth.response, responder
    entries = synth.grid if isinstance(synth.grid, tuple) else ()
    for number, entry in enumerate(entries):
        yield f"synth.grid[{number}].sampling", entry.sampling, teacher
    tags = synth.tags
    for place, tag in asked_tags(tags):
        yield f"{place}.sampling", tag.sampling, (tag.model or synth.teacher).server
    if tags.safety is not None:
        yield "synth.tags.safety.sampling", tags.safety.sampling, tags.safety.server
    if tags.base is not None:
        yield "synth.tags.base.sampling", tags.base.sampling, tags.base.server
    if synth.responses is not None:
        yield "synth.responses.sampling", synth.best_of_sampling, responder
    if synth.preferences is not None:
        yield "synth.preferences.sampling", synth.preferences.sampling, responder


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
    as long as their mean, would reach it. The first is not forecast, one that has begun is not
    stopped, and what is evaluated is not counted."""
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
    hours = spent({**finished, **session.results}, processes(config))
    one = sum(hours) / len(hours) if hours else 0.0
    if sum(hours) + one >= recipe.gpu_hours:
        raise UserError(
            f"gpu_hours: {len(hours)} trainings took {sum(hours):.3g} of {recipe.gpu_hours:g} GPU "
            f"hours, and {stage.name} would take about {one:.3g} more; raise `gpu_hours`, or "
            "compare what is trained by `magpie run RECIPE --trained`."
        )
