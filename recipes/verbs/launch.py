"""`magpie launch`: the resolved recipe and the exact training command of every machine, or a
synthesis on many. Nothing is scheduled here."""

from __future__ import annotations

import shlex
from pathlib import Path

import yaml

from core.errors import UserError, nearest
from recipes.schema import load, with_random


def main(
    recipe_file: str,
    overrides: list[str],
    *,
    dry_run: bool,
    arm: str | None,
    stage: str,
    on: str | None,
    tasks: int,
) -> None:
    """Launch the stage that the command line names."""
    if stage == "synth":
        from recipes.verbs import cluster

        if on is None:
            raise UserError(
                "--stage synth needs --on slurm or --on ray; on this machine `magpie run RECIPE --until select` does the same."
            )
        if arm is not None:
            raise UserError("--arm goes with --stage train: the synthesis is shared by all arms.")
        cluster.main(recipe_file, overrides, on=on, tasks=tasks, dry_run=dry_run)
    elif stage == "train":
        if on is not None or tasks != 1:
            raise UserError(
                "--on and --tasks go with --stage synth; a training runs where its command is started."
            )
        train(recipe_file, overrides, dry_run=dry_run, arm=arm)
    else:
        raise UserError(
            f"--stage {stage}: no such stage to launch{nearest(stage, ('train', 'synth'))}."
        )


def train(recipe_file: str, overrides: list[str], *, dry_run: bool, arm: str | None) -> None:
    """Print (with `dry_run`) or run the training of one arm.

    For several machines, which share the store: `magpie run --until train` on one of them prepares
    the folder and stops with these commands; start one on each machine, and run again when they
    have ended.
    """
    from train.launch import command

    loaded = load(recipe_file, overrides)
    recipe = loaded.recipe
    if recipe.train is None:
        raise UserError(f"{recipe_file} has no `train:` block, so there is nothing to launch.")
    trained = [n for n, a in with_random(recipe).items() if a.model is None]
    if arm is not None and arm not in trained:
        raise UserError(f"--arm {arm}: no arm of that name is trained{nearest(arm, trained)}.")
    if not dry_run and recipe.train.num_machines > 1:
        raise UserError(
            "several machines are started by your scheduler: `magpie launch RECIPE --dry-run` prints the command of each machine."
        )
    if not dry_run:
        from recipes.stages import graph

        graph.run(loaded, until="train")
        return
    print("# resolved recipe")
    print(
        yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True).rstrip()
    )
    from recipes.stages import graph

    name = f"train/{arm or trained[0]}/{recipe.train.seeds[0]}"
    step = next(s for s in graph.plan(loaded).steps if s.name == name)
    if step.path is None:
        print(
            f"\n# {name}: KEY below is known once its selection is made (`magpie run {recipe_file} --until select`)"
        )
    out = (
        Path(f"{step.path}.partial")
        if step.path
        else Path(recipe.store) / "results" / "train" / "KEY.partial"
    )
    for rank in range(recipe.train.num_machines):
        print(f"\n# machine {rank} of {recipe.train.num_machines}")
        print(shlex.join(command(recipe.train, out, machine_rank=rank)))
