"""`magpie launch RECIPE --stage synth --on slurm|ray --tasks R`: a synthesis on many machines, by
datatrove's executors.

    instructions (R tasks) -> pool columns (1) -> tags (R) -> answers and what reads them (R) ->
    what is left, and selections (1)

Each task runs the same code as `magpie run` on its share of the rows, with a model server of its
own (or `server.urls`), into one store on a file system that all machines share. datatrove's own
completion markers know tasks, not rows, so they are not asked (`skip_completed=False`): every task
looks into the store for what is missing, and a chain that was interrupted is continued by launching
it again.
"""

from __future__ import annotations

import inspect
import os
import shlex
import shutil
import subprocess
import sys
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from core.errors import UserError, nearest
from core.files import write_atomic
from recipes.schema import Loaded, load
from recipes.verbs.cluster_task import STAGES, Task

OURS = {
    "pipeline": "it is the stage itself",
    "tasks": "use --tasks",
    "logging_dir": "it is below the store",
    "skip_completed": "the store knows what is missing",
    "depends": "the stages follow one another",
    "nodes_per_task": "a task is one server on one machine; use more tasks",
}
"""Arguments of the executors that a recipe does not set, and why."""


def main(recipe_file: str, overrides: list[str], *, on: str, tasks: int, dry_run: bool) -> None:
    """Check everything that can be checked here, write the resolved recipe, then submit the chain
    (Slurm) or run it (Ray)."""
    if on not in ("slurm", "ray"):
        raise UserError(f"--on {on}: no such cluster{nearest(on, ('slurm', 'ray'))}.")
    if tasks < 1:
        raise UserError(f"--tasks {tasks}: at least one task has to do the work.")
    loaded = load(recipe_file, overrides)
    settings = _settings(loaded, on)
    from recipes.stages import graph

    for step in graph.plan(
        loaded
    ).steps:  # a wrong model name or filter shows here, not on a worker
        if step.name.partition("/")[0] in ("instructions", "measure"):
            print(f"# {step.name}: {step.state}{f' ({step.why})' if step.why else ''}")
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
    folder = Path(loaded.recipe.store).resolve() / "recipes" / loaded.recipe.name / "launch" / stamp
    resolved = yaml.safe_dump(pinned(loaded), sort_keys=False, allow_unicode=True)
    write_atomic(folder / "recipe.yaml", resolved)
    if dry_run:
        print(f"# resolved recipe ({folder / 'recipe.yaml'})\n{resolved.rstrip()}")
    steps = [
        (
            stage,
            Task(str(folder / "recipe.yaml"), str(Path.cwd()), stage),
            1 if _alone(loaded, stage) else tasks,
        )
        for stage in STAGES
    ]
    (_slurm if on == "slurm" else _ray)(
        loaded.recipe.name, steps, folder, settings, dry_run=dry_run
    )


def _alone(loaded: Loaded, stage: str) -> bool:
    """Whether a stage is one task: what reads the whole pool, what closes the chain, and an
    import."""
    return stage in ("pool", "select") or (
        stage == "instructions" and not isinstance(loaded.recipe.synth.rows, int)
    )


def pinned(loaded: Loaded) -> dict[str, Any]:
    """The recipe as workers read it: overrides applied, and every hub model of the synthesis at the
    commit that it has now.

    Workers may see another hub cache, and a branch may move on while the chain waits in a queue;
    then each task would fill columns of its own.
    """
    from core.models import UNRESOLVED, resolve

    data: dict[str, Any] = loaded.recipe.model_dump(mode="json", by_alias=True)

    def pin(block: Any) -> None:
        if isinstance(block, dict):
            if {"model", "revision", "server"} <= block.keys():
                found = resolve(block["model"], block.get("revision"))
                if found.revision != UNRESOLVED and not Path(found.path).is_dir():
                    block["revision"] = found.revision
            for inner in block.values():
                pin(inner)

    pin(data["synth"])
    return data


def _settings(loaded: Loaded, on: str) -> dict[str, Any]:
    """The recipe's arguments for the executor, checked against its own signature."""
    given: dict[str, Any] = dict(getattr(loaded.recipe.launch, on))
    where = loaded.source.at(("launch", on))
    parameters = inspect.signature(_executor(on).__init__).parameters
    allowed = set(parameters) - {"self"} - set(OURS)
    for name in given:
        if name in OURS:
            raise UserError(
                f"{where}: launch.{on}.{name} is not for a recipe to say: {OURS[name]}."
            )
        if name not in allowed:
            raise UserError(
                f"{where}: launch.{on}.{name}: datatrove's {_executor(on).__name__} knows no such argument{nearest(name, allowed)}."
            )
    if on == "slurm" and isinstance(given.get("time"), int):
        raise UserError(
            f"{where}: launch.slurm.time is the number {given['time']}; put it in quotes (YAML reads 20:00:00 as 72000)."
        )
    needed = [
        n for n in allowed if parameters[n].default is inspect.Parameter.empty and n not in given
    ]
    if needed:
        raise UserError(
            f"{where}: datatrove's {_executor(on).__name__} needs {', '.join(f'launch.{on}.{n}' for n in sorted(needed))}."
        )
    return given


def _executor(on: str) -> Any:
    try:
        if on == "slurm":
            from datatrove.executor.slurm import SlurmPipelineExecutor

            return SlurmPipelineExecutor
        import ray  # noqa: F401
        from datatrove.executor.ray import RayPipelineExecutor

        return RayPipelineExecutor
    except ImportError as error:
        what = f"many machines need datatrove (and Ray, for --on ray), and {error.name} is not installed"
        raise UserError(f"{what}: pip install 'magpie-harness[cluster]'.") from error


def _slurm(
    recipe: str,
    steps: list[tuple[str, Task, int]],
    folder: Path,
    settings: dict[str, Any],
    *,
    dry_run: bool,
) -> None:
    """Submit one job array a stage, each waiting for the one before; or print what would be
    submitted."""
    from datatrove.executor import slurm

    if "SLURM_ARRAY_TASK_ID" in os.environ:
        raise UserError(
            "this is a task of a Slurm job array, where datatrove runs instead of submitting; launch from a login node."
        )
    if not dry_run and shutil.which("sbatch") is None:
        raise UserError(
            "there is no `sbatch` on this machine; launch from a login node of the cluster (--dry-run prints the scripts anywhere)."
        )
    # A job whose predecessor failed would wait in the queue forever.
    options = {
        "env_command": f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
        **settings,
    }
    options["sbatch_args"] = {"kill-on-invalid-dep": "yes", **(settings.get("sbatch_args") or {})}
    executor = None
    for stage, task, tasks in steps:
        executor = slurm.SlurmPipelineExecutor(
            pipeline=[task],
            tasks=tasks,
            logging_dir=str(folder / stage),
            skip_completed=False,
            depends=executor,
            **{"job_name": f"{recipe}-{stage}", **options},
        )
    assert executor is not None
    printed = 0

    def show(script: str, _: Any, *arguments: str) -> str:
        nonlocal printed
        printed += 1
        print(f"\n# sbatch {shlex.join(arguments)}\n{script.rstrip()}")
        return f"JOB{printed}"

    # datatrove would follow each stage by a job that adds up its own statistics: ours has none, and
    # that job would ask for a GPU too.
    with (
        patch.object(slurm.SlurmPipelineExecutor, "launch_merge_stats"),
        patch.object(
            slurm, "launch_slurm_job", show if dry_run else slurm.launch_slurm_job
        ),  # the very scripts, without submitting them
    ):
        try:
            executor.run()
        except subprocess.CalledProcessError as error:
            raise UserError(
                f"sbatch refused a job (exit {error.returncode}, its words are above); scancel what was submitted before it."
            ) from error
    if not dry_run:
        print(
            f"submitted; `squeue --me` shows the jobs, {folder} holds their logs; the last job is {executor.job_id}"
        )


def _ray(
    recipe: str,
    steps: list[tuple[str, Task, int]],
    folder: Path,
    settings: dict[str, Any],
    *,
    dry_run: bool,
) -> None:
    """Run one stage after the other on the Ray cluster, until all are done; or print the calls."""
    # A lost node takes its tasks along: Ray starts them again elsewhere, also while they are being
    # placed.
    options = {
        **settings,
        "ray_remote_kwargs": {
            "max_restarts": 3,
            "max_task_retries": 3,
            **(settings.get("ray_remote_kwargs") or {}),
        },
    }
    if dry_run:
        for stage, task, tasks in steps:
            arguments = {
                "pipeline": [task],
                "tasks": tasks,
                "logging_dir": str(folder / stage),
                "skip_completed": False,
                **options,
            }
            print(
                f"\nRayPipelineExecutor({', '.join(f'{k}={v!r}' for k, v in arguments.items())}).run()"
            )
        return
    import ray
    from datatrove.executor.ray import RayPipelineExecutor

    if not ray.is_initialized():
        try:
            ray.init(address=os.environ.get("RAY_ADDRESS", "auto"))
        except ConnectionError as error:
            raise UserError(
                "no Ray cluster is running here: start one with `ray start --head` (and `ray start --address=...` on the other "
                "machines), or name it in RAY_ADDRESS."
            ) from error
    for stage, task, tasks in steps:
        executor = RayPipelineExecutor(
            pipeline=[task],
            tasks=tasks,
            logging_dir=str(folder / stage),
            skip_completed=False,
            **options,
        )
        executor.run()
        left = executor.get_incomplete_ranks(
            skip_completed=True
        )  # markers of this launch: its folder is new
        if left:
            raise UserError(
                f"{len(left)} of {tasks} tasks of {stage} failed; see {folder / stage / 'logs'}; the same command continues."
            )
    print(
        f"{recipe}: instructions, columns and selections are made; `magpie run` goes on from here"
    )
