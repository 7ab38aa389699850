"""`magpie launch`: the resolved recipe and the exact training command of every machine, or a
synthesis on many. Nothing is scheduled here."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import yaml

from core.errors import UserError, nearest
from recipes.schema import load, with_random
from recipes.stages import graph


@dataclass(frozen=True)
class Asked:
    """What is to be launched: the training of an arm, or the synthesis on a cluster."""

    stage: str = "train"
    arm: str | None = None
    on: str | None = None
    tasks: int = 1


def main(recipe: str, overrides: list[str], asked: Asked, dry_run: bool) -> None:
    """Launch the stage that the command line names. Raises UserError for options that do not go
    together."""
    if asked.stage == "synth":
        from recipes.launching import synthesis

        if asked.on is None:
            raise UserError(
                "--stage synth needs --on slurm or --on ray; "
                "on this machine `magpie run RECIPE --until select` does the same."
            )
        if asked.arm is not None:
            raise UserError("--arm goes with --stage train: the synthesis is shared by all arms.")
        synthesis.main(recipe, overrides, on=asked.on, tasks=asked.tasks, dry_run=dry_run)
    elif asked.stage == "train":
        if asked.on is not None or asked.tasks != 1:
            raise UserError(
                "--on and --tasks go with --stage synth; "
                "a training runs where its command is started."
            )
        train(recipe, overrides, dry_run=dry_run, arm=asked.arm)
    else:
        hint = nearest(asked.stage, ("train", "synth"))
        raise UserError(f"--stage {asked.stage}: no such stage to launch{hint}.")


def train(recipe_file: str, overrides: list[str], *, dry_run: bool, arm: str | None) -> None:
    """Print (with `dry_run`) or run the training of one arm.

    For several machines, which share the store: `magpie run --until train` on one of them prepares
    the folder and stops with these commands; start one on each machine, and run again when they
    have ended.
    """
    from train.machines import command

    loaded = load(recipe_file, overrides)
    recipe, config = loaded.recipe, loaded.recipe.train
    if config is None:
        raise UserError(f"{recipe_file} has no `train:` block, so there is nothing to launch.")
    trained = [name for name, each in with_random(recipe).items() if each.model is None]
    if arm is not None and arm not in trained:
        raise UserError(f"--arm {arm}: no arm of that name is trained{nearest(arm, trained)}.")
    if not dry_run and config.num_machines > 1:
        raise UserError(
            "several machines are started by your scheduler: "
            "`magpie launch RECIPE --dry-run` prints the command of each machine."
        )
    if not dry_run:
        graph.run(loaded, until="train")
        return
    print("# resolved recipe")
    resolved = recipe.model_dump(mode="json")
    print(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True).rstrip())
    name = f"train/{arm or trained[0]}/{config.seeds[0]}"
    path = next(step.path for step in graph.plan(loaded).steps if step.name == name)
    if path is None:
        path = Path(recipe.store, "results", "train", "KEY")
        how = f"`magpie run {recipe_file} --until select`"
        print(f"\n# {name}: KEY below is known once its selection is made ({how})")
    for rank in range(config.num_machines):
        print(f"\n# machine {rank} of {config.num_machines}")
        print(shlex.join(command(config, Path(f"{path}.partial"), machine_rank=rank)))
