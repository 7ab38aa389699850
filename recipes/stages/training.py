"""Training: a checkpoint for every arm and seed, and every finished model as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.errors import UserError, nearest
from core.models import Model
from core.store import Counts, Result, digest, tree_digest
from core.tracking import Log
from recipes.stages.session import Results, Session, Stage
from recipes.stages.walk import Arms, Selections
from synth.context import Resolve
from train.config import TrainConfig

OF_THE_LAUNCH = {
    "seeds",
    "main_process_ip",
    "main_process_port",
    "max_truncated_share",
    "base",
    "revision",
    "deepspeed",
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
    config: TrainConfig | None,
    arms: Arms,
    selections: Selections,
    resolve: Resolve,
) -> Results:
    """A checkpoint for every arm and seed ("ARM/SEED"), and for every finished model ("ARM").

    Where only some trainings are wanted (`session.trainings`), only theirs; what is left out
    because it is not finished is said in `session.left_out`. Raises UserError for a training that
    the recipe does not have, and where none is finished.
    """
    trained = [name for name, arm in arms.configs.items() if arm.model is None]
    _check_wanted(session, [f"{name}/{seed}" for name in trained for seed in arms.seeds])
    checkpoints: Results = {}
    for name, arm in arms.configs.items():
        if arm.model is not None:
            checkpoints[name] = _finished(resolve(arm.model, arm.revision))
        elif config is not None:
            base = resolve(config.base, config.revision)
            for seed in arms.seeds:
                run = f"{name}/{seed}"
                if session.trainings.only not in (None, run):
                    continue
                stage = _training(session, config, base, run, selections[(name, seed)])
                if session.trainings.finished and session.find(stage) is None:
                    session.left_out[run] = _last_words(session, stage)
                    session.log.say(f"{run} is left out: {session.left_out[run]}")
                    continue
                checkpoints[run] = session.result(stage)
    if session.left_out and not any("/" in run for run in checkpoints):
        raise UserError(
            f"none of {len(session.left_out)} trainings is finished; "
            f"the first, {next(iter(session.left_out.items()))}."
        )
    session.done("train")
    return checkpoints


def _check_wanted(session: Session, runs: list[str]) -> None:
    only = session.trainings.only
    if only is not None and only not in runs:
        raise UserError(f"no training of this recipe is called '{only}'{nearest(only, runs)}.")


def _last_words(session: Session, stage: Stage) -> str:
    """Why a training is not finished, as far as its folder says."""
    if None in stage.parents.values():
        return "its selection is not made"
    folder = session.store.partial(stage.kind, digest(stage.determined))
    if not folder.is_dir():
        return "its training has not begun"
    errors = sorted(folder.glob("scratch/error-*.txt"))
    if not errors:
        return f"its training is not finished ({folder})"
    return f"its training failed ({errors[0].read_text().strip().splitlines()[0]})"


def _finished(model: Model) -> Result:
    return Result(Path(model.path), {"digest": digest(["model", model.determines])})


def _training(
    session: Session, config: TrainConfig, base: Model, run: str, chosen: Result | None
) -> Stage:
    """The stage that makes the checkpoint of a run ("ARM/SEED") of the selection that its arm
    chose."""
    from train import chat, launch
    from train.data import tokens as data
    from train.settings import engine
    from train.settings.base import snapshot

    seed = int(run.rpartition("/")[2])
    training, inference = config.chat_template_path, config.inference_template
    spec = {
        "train": determines(config),
        "deepspeed": json.loads(engine.deepspeed_json(config)),
        "base": base.determines,
        "seed": seed,
        "templates": {
            "training": training and digest(chat.read(training, training=True)),
            "inference": inference and digest(chat.read(inference, training=False)),
        },
        "VERSION": data.VERSION,
    }

    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        session.servers.release()
        folder = str(snapshot(base))
        return launch.run(config, inputs, out, base=folder, seed=seed, log=log)

    # The trainer reports to W&B itself only where the recipe says so; else the stage forwards its
    # figures.
    reports = str(config.trainer.get("report_to", "none"))
    return Stage(
        f"train/{run}",
        spec,
        {"selection": chosen},
        make,
        content=lambda out: tree_digest(out / "checkpoint"),
        trainer="wandb" in reports or reports == "all",
    )


def determines(config: TrainConfig) -> dict[str, Any]:
    """What of a `train:` block determines the weights. How many processes there are does only where
    no `tokens_per_step` or `pairs_per_step` says what a step holds."""
    a_step = config.tokens_per_step or getattr(config, "pairs_per_step", None)
    left_out = OF_THE_LAUNCH | ({"num_processes", "num_machines"} if a_step else set())
    said = config.model_dump(mode="json", exclude=left_out)
    trainer = {key: value for key, value in said["trainer"].items() if key not in WITHOUT_EFFECT}
    return {**said, "trainer": trainer}


def served_path(checkpoint: Path) -> str:
    """The folder (or hub id) to serve for a checkpoint: a training's result, or a finished
    model."""
    folder = checkpoint / "checkpoint"
    return str(folder if folder.is_dir() else checkpoint)
