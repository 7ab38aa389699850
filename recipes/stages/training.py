"""Training: the tokens of every selection, a checkpoint for every arm and seed, those that go on
from one with preference pairs, and every finished model as it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from core.errors import UserError, nearest
from core.models import UNRESOLVED, Model, folder
from core.store import Counts, Result, digest
from core.tracking import Log
from recipes.schema import Recipe
from recipes.stages import checks
from recipes.stages.session import Results, Session, Stage
from recipes.stages.walk import Arms, Selections
from synth.context import Resolve
from train.config import DpoConfig, TrainConfig

OF_THE_LAUNCH = {
    "seeds",
    "max_truncated_share",
    "machine_rank",
    "main_process_ip",
    "main_process_port",
    "base",
    "revision",
    "deepspeed",
    "checkpointing",
    "grace",
    "spikes",
    "spike_threshold",
}
"""Fields of the `train:` block that are no part of a checkpoint's key, or stand in it by
content."""

WITHOUT_EFFECT = {
    "logging_steps",
    "logging_strategy",
    "logging_first_step",
    "logging_dir",
    "log_level",
    "log_level_replica",
    "disable_tqdm",
    "report_to",
    "run_name",
    "save_steps",
    "save_strategy",
    "save_total_limit",
    "ddp_timeout",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
}
"""Arguments of SFTConfig under `trainer` that change no weight: what is logged, when is saved, how
batches are loaded."""


def stages(
    session: Session,
    recipe: Recipe,
    arms: Arms,
    selections: Selections,
    pairs: Selections,
    resolve: Resolve,
) -> Results:
    """A checkpoint for every arm and seed ("ARM/SEED"), and for every finished model ("ARM").

    Where only some trainings are wanted (`session.trainings`), only theirs and what they go on
    from; what is left out because it is not finished is said in `session.left_out`. Raises
    UserError for a training that the recipe does not have, and where none is finished.
    """
    trained = [name for name, arm in arms.configs.items() if arm.model is None]
    _check_wanted(session, [f"{name}/{seed}" for name in trained for seed in arms.seeds])
    config = recipe.train
    tokens = _all_tokens(session, config, arms, selections, resolve) if config else {}
    session.done("tokens")
    models: Results = {}
    tuned: list[Stage] = []
    for name, arm in arms.configs.items():
        if arm.model is not None:
            models[name] = _finished(resolve(arm.model, arm.revision))
        elif config is not None and arm.dpo is None:
            base = resolve(config.base, config.revision)
            for seed in arms.seeds:
                run = f"{name}/{seed}"
                tuned.append(_training(session, config, base, run, tokens[(name, seed)]))
    finished = _finished_before(session, tuned)
    before = {name.removeprefix("train/"): result for name, result in finished.items()}
    aligned = _alignments(session, recipe, arms, Given({**models, **before}, pairs, resolve))
    finished |= _finished_before(session, aligned)
    checkpoints: Results = dict(models)
    further = _alignments(session, recipe, arms, Given(checkpoints, pairs, resolve))
    checks.forecast(session, recipe, tuned, finished)
    for stage in chain(tuned, further):
        checks.gpu_hours(session, recipe, stage, finished)
        _make(session, arms, stage, checkpoints)
    if session.left_out and not any("/" in run for run in checkpoints):
        run, why = next(iter(session.left_out.items()))
        raise UserError(f"none of {len(session.left_out)} trainings is finished; {run}: {why}.")
    session.done("train")
    return _in_order(checkpoints, arms)


def _in_order(checkpoints: Results, arms: Arms) -> Results:
    """As the arms stand in the recipe, those that go on from others last."""
    places = {name: (arm.dpo is not None, n) for n, (name, arm) in enumerate(arms.configs.items())}
    return dict(sorted(checkpoints.items(), key=lambda made: places[made[0].partition("/")[0]]))


def _finished_before(session: Session, stages: Iterable[Stage]) -> dict[str, Result]:
    """The trainings among stages that are finished."""
    found = {stage.name: session.find(stage) for stage in stages}
    return {name: result for name, result in found.items() if result is not None}


def _make(session: Session, arms: Arms, stage: Stage, checkpoints: Results) -> None:
    """Put the checkpoint of a training into `checkpoints`, unless it is not wanted, or left out."""
    run, only = stage.name.removeprefix("train/"), session.trainings.only
    if only is not None and run != only:
        arm, _, seed = only.partition("/")
        if run != f"{arms.configs[arm].dpo}/{seed}":
            return
    if session.trainings.finished and session.find(stage) is None:
        session.left_out[run] = _last_words(session, stage)
        session.log.say(f"{run} is left out: {session.left_out[run]}")
        return
    checkpoints[run] = session.result(stage)


def _all_tokens(
    session: Session, config: TrainConfig, arms: Arms, selections: Selections, resolve: Resolve
) -> Selections:
    """The tokens of every selection that is trained on, by (arm, seed): one result for all seeds
    whose selection is the same."""
    base = resolve(config.base, config.revision)
    tokens: Selections = {}
    tuned = [name for name, arm in arms.configs.items() if arm.model is None and arm.dpo is None]
    for name in tuned:
        for seed, run in arms.selections(name):
            stage = _tokens(config, base, run, selections[(name, seed)])
            tokens[(name, seed)] = session.result(stage)
        of_first = tokens[(name, arms.selections(name)[0][0])]
        tokens |= {(name, seed): of_first for seed in arms.seeds if (name, seed) not in tokens}
    return tokens


def _check_wanted(session: Session, runs: list[str]) -> None:
    only = session.trainings.only
    if only is not None and only not in runs:
        raise UserError(f"no training of this recipe is called '{only}'{nearest(only, runs)}.")


def _last_words(session: Session, stage: Stage) -> str:
    """Why a training is not finished, as far as its folder says."""
    folder = session.store.partial(stage.kind, digest(stage.determined))
    if not folder.is_dir():
        return "its training has not begun"
    errors = sorted(folder.glob("scratch/error-*.txt"))
    if not errors:
        return f"its training is not finished ({folder})"
    return f"its training failed ({errors[0].read_text().strip().splitlines()[0]})"


@dataclass(frozen=True)
class Given:
    """What arms go on from: checkpoints (of a finished model the one, else each seed's), and the
    pairs of arms."""

    checkpoints: Results
    pairs: Selections
    resolve: Resolve


def _alignments(session: Session, recipe: Recipe, arms: Arms, given: Given) -> Iterator[Stage]:
    """The training of every seed of every arm that goes on ("ARM/SEED"). One whose arm before it
    was left out is left out with it."""
    for name, arm in arms.configs.items():
        before = arm.dpo
        if before is None or recipe.dpo is None:
            continue
        model, revision = arms.configs[before].model, arms.configs[before].revision
        finished = None if model is None else given.resolve(model, revision)
        config = _with_templates(recipe.dpo, None if finished else recipe.train)
        source = name if arm.data is not None else before
        for seed in arms.seeds:
            run, of = f"{name}/{seed}", before if finished else f"{before}/{seed}"
            if of not in given.checkpoints:
                if of in session.left_out:
                    session.left_out[run] = f"{of}, from which it goes on, is left out"
                continue
            # pairs of rows that no seed draws anew are the first seed's
            drawn = seed if (source, seed) in given.pairs else arms.seeds[0]
            parents = {"pairs": given.pairs[(source, drawn)], "base": given.checkpoints[of]}
            yield _alignment(session, config, run, parents, finished)


def _with_templates(config: DpoConfig, trained: TrainConfig | None) -> DpoConfig:
    """With the templates of the fine-tuning that it goes on from, where it names none itself."""
    if trained is None or config.chat_template_path is not None:
        return config
    theirs = ("chat_template_path", "inference_template")
    given = {name: getattr(trained, name) for name in theirs if getattr(config, name) is None}
    return config.model_copy(update=given)


def _alignment(
    session: Session,
    config: DpoConfig,
    run: str,
    parents: Mapping[str, Result | None],
    finished: Model | None,
) -> Stage:
    """The stage that makes the checkpoint of a run ("ARM/SEED") that goes on from `base` (the model
    `finished`, where it is one) with `pairs`."""
    from train import launch
    from train.data import pairs
    from train.settings import engine

    seed = int(run.rpartition("/")[2])
    spec = {
        "dpo": determines(config),
        "deepspeed": json.loads(engine.deepspeed_json(config)),
        "seed": seed,
        "templates": _templates(config),
        "VERSION": pairs.VERSION,
    }

    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        session.servers.release()
        base = str(folder(finished, log.say)) if finished else served_path(inputs["base"])
        named = config.model_copy(update={"base": base})
        return launch.run(named, inputs, out, base=base, seed=seed, log=log)

    return Stage(
        f"train/{run}",
        spec,
        parents,
        make,
        content="checkpoint",
        trainer=_reports(config),
    )


def _finished(model: Model) -> Result:
    named = f"{model.path}@{model.commit}" if model.commit else model.path
    return Result(Path(named), {"digest": digest(["model", model.determines])})


def _tokens(config: TrainConfig, base: Model, name: str, chosen: Result | None) -> Stage:
    """The stage that tokenises and packs a selection, for all seeds that train on it."""
    from train.data import tokens

    spec = {"tokens": tokens.determines(config), "base": base.determines}

    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        rows = inputs["selection"] / "selection.parquet"
        return tokens.make(config, str(folder(base, log.say)), rows, out, log)

    return Stage(f"tokens/{name}", spec, {"selection": chosen}, make)


def _training(
    session: Session, config: TrainConfig, base: Model, run: str, tokens: Result | None
) -> Stage:
    """The stage that makes the checkpoint of a run ("ARM/SEED") of the tokens of the selection that
    its arm chose."""
    from train import launch
    from train.data import tokens as data
    from train.settings import engine

    seed = int(run.rpartition("/")[2])
    spec = {
        "train": determines(config),
        "deepspeed": json.loads(engine.deepspeed_json(config)),
        "base": base.determines,
        "seed": seed,
        "templates": _templates(config),
        "VERSION": data.VERSION,
    }

    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        session.servers.release()
        here = str(folder(base, log.say))
        return launch.run(config, inputs, out, base=here, seed=seed, log=log)

    return Stage(
        f"train/{run}",
        spec,
        {"tokens": tokens},
        make,
        content="checkpoint",
        trainer=_reports(config),
    )


def determines(config: TrainConfig) -> dict[str, Any]:
    """What of a `train:` block determines the weights. How many processes there are does only where
    no `tokens_per_step` or `pairs_per_step` says what a step holds; what is done with spikes does
    where their steps are dropped."""
    a_step = config.tokens_per_step or getattr(config, "pairs_per_step", None)
    left_out = OF_THE_LAUNCH | ({"num_processes", "num_machines"} if a_step else set())
    said = config.model_dump(mode="json", exclude=left_out)
    if config.num_processes is not None and "num_machines" in said:
        said["num_machines"] = 1  # so many processes on however many machines
    trainer = {key: value for key, value in said["trainer"].items() if key not in WITHOUT_EFFECT}
    drops = {"spikes": ["skip", config.spike_threshold]} if config.spikes == "skip" else {}
    return {**said, **drops, "trainer": trainer}


def _templates(config: TrainConfig) -> dict[str, str | None]:
    """Digests of the templates that a recipe names."""
    from train import chat

    training, inference = config.chat_template_path, config.inference_template
    return {
        "training": training and digest(chat.read(training, training=True)),
        "inference": inference and digest(chat.read(inference, training=False)),
    }


def _reports(config: TrainConfig) -> bool:
    """Whether the trainer reports to W&B itself: only where the recipe says so; else the stage
    forwards its figures."""
    reports = str(config.trainer.get("report_to", "none"))
    return "wandb" in reports or reports == "all"


def served_path(checkpoint: Path) -> str:
    """The folder to serve for a checkpoint: a training's result, or a finished model (of the hub:
    NAME@COMMIT, downloaded now where need be)."""
    trained = checkpoint / "checkpoint"
    if trained.is_dir() or checkpoint.is_dir():
        return str(trained if trained.is_dir() else checkpoint)
    name, _, commit = str(checkpoint).partition("@")
    return str(folder(Model(name, name, commit or UNRESOLVED)))
