"""`magpie launch`: trainings here, on Slurm, by SkyPilot or by hand, and a synthesis on many
machines."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import yaml

from core.errors import UserError, nearest
from core.files import write_atomic
from core.store import Store
from recipes.launching import scripts
from recipes.schema import Loaded, load
from recipes.stages import graph
from recipes.stages.session import REUSE, Trainings
from recipes.stages.walk import tracker_of

PLACES = ("local", "slurm", "sky", "print")
BEFORE = ("instructions", "measure", "select", "preferences", "tokens")
"""Kinds of the stages that all trainings share."""


@dataclass(frozen=True)
class Asked:
    """What the command line asks for."""

    stage: str = "train"
    on: str | None = None
    arm: str | None = None
    seed: int | None = None
    nodes: int | None = None
    gpus: int | None = None
    """GPUs of each node."""
    tasks: int = 1


def main(recipe: str, overrides: list[str], asked: Asked, dry_run: bool) -> None:
    """Launch the stage that the command line names. Raises UserError for options that do not go
    together."""
    of_trainings = {"--arm": asked.arm, "--seed": asked.seed, "--nodes": asked.nodes}
    of_trainings |= {"--gpus": asked.gpus}
    if asked.stage == "synth":
        from recipes.launching import synthesis

        if asked.on is None:
            raise UserError(
                "--stage synth needs --on slurm or --on ray; "
                "on this machine `magpie run RECIPE --until select` does the same."
            )
        for option, value in of_trainings.items():
            if value is not None:
                raise UserError(f"{option} goes with --stage train; a synthesis has --tasks.")
        synthesis.main(recipe, overrides, on=asked.on, tasks=asked.tasks, dry_run=dry_run)
    elif asked.stage == "train":
        if asked.tasks != 1:
            raise UserError("--tasks goes with --stage synth; trainings have --nodes and --gpus.")
        train(recipe, overrides, asked, dry_run=dry_run)
    else:
        hint = nearest(asked.stage, ("train", "synth"))
        raise UserError(f"--stage {asked.stage}: no such stage to launch{hint}.")


def train(recipe_file: str, overrides: list[str], asked: Asked, *, dry_run: bool) -> None:
    """Write the script of the trainings that are asked for, and submit or run it where it can be.

    The script and the recipe as it was resolved lie in STORE/recipes/NAME/launch/DATE; `dry_run`
    leaves it at that and prints the script's path. Raises UserError for a place that there is not,
    and where how many GPUs there are would have to be guessed.
    """
    on = asked.on or "local"
    if on not in PLACES:
        raise UserError(f"--on {on}: trainings go nowhere of that name{nearest(on, PLACES)}.")
    nodes, gpus = _sized(asked, on)
    loaded = load(recipe_file, overrides)
    first, then = scripts.runs_of(loaded.recipe, asked.arm, asked.seed)
    # In a plan a wrong name shows here, not on a node.
    until, prepares = _before(loaded)
    name, evaluates = loaded.recipe.name, loaded.recipe.eval is not None
    blocks = tuple(each for each in ("train", "dpo") if getattr(loaded.recipe, each) is not None)
    of = scripts.Asked(name, (*first,), (*then,), nodes, gpus, evaluates, until, blocks)
    sized = loaded if gpus is None else _with_machines(loaded, recipe_file, overrides, of, gpus)
    if on == "local" and not dry_run:
        _here(sized, of)
        return
    script = write(loaded, sized, of, on)
    if dry_run or on in ("print", "sky"):
        print(script)
        return
    submit(of, scripts.Place(script.parent, Path.cwd()), prepares=prepares)


def _sized(asked: Asked, on: str) -> tuple[int, int | None]:
    """(nodes, GPUs a node); None: those of this machine, which is the one that trains."""
    if on == "local":
        if asked.nodes not in (None, 1):
            raise UserError(
                f"--nodes {asked.nodes} with --on local: this is one machine; "
                "use --on slurm, sky or print."
            )
        return 1, asked.gpus
    if asked.gpus is None:
        raise UserError(
            f"--on {on} needs --gpus, how many GPUs each node has (0: it trains on the CPU); "
            "those of this machine say nothing about it."
        )
    if (asked.nodes or 1) < 1 or asked.gpus < 0:
        raise UserError(f"--nodes {asked.nodes} --gpus {asked.gpus}: at least one node, no fewer.")
    return asked.nodes or 1, asked.gpus


def _before(loaded: Loaded) -> tuple[str, bool]:
    """The last stage before the trainings, and whether anything up to it is to be made."""
    until = graph.BEFORE_TRAINING
    steps = graph.plan(loaded, judged=True).steps
    shared = [step for step in steps if step.name.partition("/")[0] in BEFORE]
    return until, any(step.state != REUSE for step in shared)


def _with_machines(
    loaded: Loaded, recipe_file: str, overrides: list[str], of: scripts.Asked, gpus: int
) -> Loaded:
    """The recipe on so many machines and GPUs. Raises UserError where it says another number of
    processes, and where the batch would depend on how many GPUs there are."""
    count = of.nodes * max(1, gpus)
    more = []
    for name in of.blocks:
        block = getattr(loaded.recipe, name)
        stated = block.num_processes
        if stated not in (None, count):
            raise UserError(
                f"{name}.num_processes is {stated}, and --nodes {of.nodes} --gpus {gpus} are "
                f"{count}: say one of the two."
            )
        a_step = block.tokens_per_step or getattr(block, "pairs_per_step", None)
        if a_step is None and stated is None and count > 1:
            raise UserError(
                f"{name} has no tokens_per_step, so what a step holds would follow from the number "
                f"of GPUs and not from the recipe; say {name}.tokens_per_step=..., or "
                f"{name}.num_processes={count} in the recipe."
            )
        more += [f"{name}.num_processes={count}", f"{name}.num_machines={of.nodes}"]
    return load(recipe_file, [*overrides, *more])


def _here(loaded: Loaded, of: scripts.Asked) -> None:
    """Train on this machine, one after the other, and evaluate nothing."""
    if of.gpus == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    graph.run(loaded, of.until)
    for run in of.runs:
        graph.run(loaded, trainings=Trainings(only=run))


def write(loaded: Loaded, resolved: Loaded, of: scripts.Asked, on: str) -> Path:
    """Write the recipe as it was resolved for the machines, and the script, into a new folder;
    returns the script's path."""
    from recipes.launching.synthesis import pinned

    recipe = resolved.recipe
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
    place = scripts.Place(recipe.folder.resolve() / "launch" / stamp, Path.cwd())
    # The user's recipe, so that what the cluster tracks and what `magpie run` tracks is one group.
    group = tracker_of(loaded.recipe, Store(Path(recipe.store))).group
    if on == "slurm":
        where = f"{resolved.source.at(('launch', 'sbatch'))}: launch.sbatch"
        text, name = scripts.slurm(of, place, recipe.launch, group, where), "train.sh"
    elif on == "sky":
        text, name = scripts.sky(of, place, recipe, group), "train.yaml"
    else:
        text = scripts.by_hand(of, place, recipe.launch, group, Path(recipe.store))
        name = "train.sh"
    (place.folder / "logs").mkdir(parents=True, exist_ok=True)
    said = yaml.safe_dump(pinned(resolved), sort_keys=False, allow_unicode=True)
    write_atomic(place.recipe, said)
    write_atomic(place.folder / name, text)
    return place.folder / name


def submit(of: scripts.Asked, place: scripts.Place, *, prepares: bool) -> None:
    """Submit the jobs of a script, each after the one before. Raises UserError where sbatch is not
    there or refuses."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "there is no `sbatch` on this machine; launch from a login node of the cluster "
            "(--dry-run writes the script anywhere)."
        )
    job = ""
    for call in scripts.submissions(of, place, prepares=prepares):
        arguments = [word.replace(":JOB", f":{job}") for word in call]
        done = subprocess.run(arguments, capture_output=True, text=True)
        if done.returncode:
            before = f" Cancel what was submitted before: scancel {job}." if job else ""
            raise UserError(f"sbatch refused the job: {done.stderr.strip()}.{before}")
        job = done.stdout.strip().partition(";")[0]
        print(f"job {job}: {call[-1]}, of {place.folder / 'train.sh'}")
    print(f"`squeue --me` shows the jobs, {place.folder / 'logs'} holds their logs")
