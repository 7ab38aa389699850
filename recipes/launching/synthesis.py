"""`magpie launch RECIPE --stage synth --on slurm|ray --tasks R`: a synthesis on many machines, by
datatrove's executors.

    instructions (R tasks) -> pool columns (1) -> tags (R) -> answers and what reads them (R) ->
    small files merged (1) -> what is left, and selections (1)

Each task runs the same code as `magpie run` on its share of the rows, with a model server of its
own (or `server.urls`), into one store on a file system that all machines share. datatrove's own
completion markers know tasks, not rows, so they are not asked (`skip_completed=False`): every task
looks into the store for what is missing, and a chain that was interrupted is continued by launching
it again.
"""

from __future__ import annotations

import inspect
import itertools
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from core.errors import UserError, nearest
from core.files import write_atomic
from recipes.launching.synthesis_task import STAGES, Task
from recipes.schema import Loaded, Recipe, load

Block = dict[str, Any]

OURS = {
    "pipeline": "it is the stage itself",
    "tasks": "use --tasks",
    "logging_dir": "it is below the store",
    "skip_completed": "the store knows what is missing",
    "depends": "the stages follow one another",
    "nodes_per_task": "a task is one server on one machine; use more tasks",
}
"""Arguments of the executors that a recipe does not set, and why."""


@dataclass(frozen=True)
class Step:
    """One stage of the chain: what a task of it does, and how many tasks do it."""

    task: Task
    tasks: int
    logs: Path

    @property
    def arguments(self) -> Block:
        """What both of datatrove's executors take."""
        return {
            "pipeline": [self.task],
            "tasks": self.tasks,
            "logging_dir": str(self.logs),
            "skip_completed": False,
        }


def main(recipe_file: str, overrides: list[str], *, on: str, tasks: int, dry_run: bool) -> None:
    """Check everything that can be checked here, write the resolved recipe, then submit the chain
    (Slurm) or run it (Ray)."""
    from recipes.stages import graph

    if on not in LAUNCHERS:
        raise UserError(f"--on {on}: no such cluster{nearest(on, LAUNCHERS)}.")
    if tasks < 1:
        raise UserError(f"--tasks {tasks}: at least one task has to do the work.")
    loaded = load(recipe_file, overrides)
    recipe = loaded.recipe
    settings = _settings(loaded, on)
    # A wrong model name or filter shows in the plan, not on a worker.
    for planned in graph.plan(loaded, judged=True).steps:
        if planned.name.partition("/")[0] in ("instructions", "measure"):
            why = f" ({planned.why})" if planned.why else ""
            print(f"# {planned.name}: {planned.state}{why}")
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
    folder = recipe.folder.resolve() / "launch" / stamp
    path = folder / "recipe.yaml"
    resolved = yaml.safe_dump(pinned(loaded), sort_keys=False, allow_unicode=True)
    write_atomic(path, resolved)
    if dry_run:
        print(f"# resolved recipe ({path})\n{resolved.rstrip()}")
    steps = []
    for stage in STAGES:
        task = Task(str(path), str(Path.cwd()), stage)
        steps.append(Step(task, 1 if _alone(recipe, stage) else tasks, folder / stage))
    LAUNCHERS[on](recipe.name, steps, settings, dry_run)


def _alone(recipe: Recipe, stage: str) -> bool:
    """Whether a stage is one task: what reads the whole pool, what closes the chain, and an
    import."""
    imports = not isinstance(recipe.synth.rows, int)
    return stage in ("pool", "merge", "select") or (stage == "instructions" and imports)


def pinned(loaded: Loaded) -> Block:
    """The recipe as workers read it: overrides applied, and every hub model of the synthesis and of
    the trainings at the commit that it has now.

    Workers may see another hub cache, and a branch may move on while the chain waits in a queue;
    then each task would fill columns of its own.
    """
    from core.models import UNRESOLVED, resolve

    def pin(block: Any) -> None:
        if not isinstance(block, dict):
            return
        if {"model", "revision", "server"} <= block.keys():
            model = resolve(block["model"], block.get("revision"))
            if model.revision != UNRESOLVED and not Path(model.path).is_dir():
                block["revision"] = model.revision
        for inner in block.values():
            pin(inner)

    data: Block = loaded.recipe.model_dump(mode="json", by_alias=True)
    pin(data["synth"])
    models = [(data["train"] or {}, "base"), *((arm, "model") for arm in data["arms"].values())]
    for named, model in models:
        if named.get(model):
            found = resolve(named[model], named.get("revision"))
            if found.revision != UNRESOLVED and not Path(found.path).is_dir():
                named["revision"] = found.revision
    return data


def _settings(loaded: Loaded, on: str) -> Block:
    """The recipe's arguments for the executor, checked against its own signature."""
    given: Block = dict(getattr(loaded.recipe.launch, on))
    where = loaded.source.at(("launch", on))
    executor = _executor(on)
    parameters = inspect.signature(executor).parameters
    allowed = set(parameters) - set(OURS)
    for name in given:
        if name in OURS:
            why = OURS[name]
            raise UserError(f"{where}: launch.{on}.{name} is not for a recipe to say: {why}.")
        if name not in allowed:
            unknown = f"datatrove's {executor.__name__} knows no such argument"
            raise UserError(f"{where}: launch.{on}.{name}: {unknown}{nearest(name, allowed)}.")
    limit = given.get("time")
    if on == "slurm" and isinstance(limit, int):
        remedy = "put it in quotes (YAML reads 20:00:00 as 72000)"
        raise UserError(f"{where}: launch.slurm.time is the number {limit}; {remedy}.")
    missing = [
        f"launch.{on}.{name}"
        for name in sorted(allowed - set(given))
        if parameters[name].default is inspect.Parameter.empty
    ]
    if missing:
        needs = ", ".join(missing)
        raise UserError(f"{where}: datatrove's {executor.__name__} needs {needs}.")
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
        raise UserError(
            f"many machines need datatrove (and Ray, for --on ray), and {error.name} "
            "is not installed: pip install 'magpie-harness[cluster]'."
        ) from error


# -- Slurm -----------------------------------------------------------------------------------------


def _slurm(recipe: str, steps: list[Step], settings: Block, dry_run: bool) -> None:
    """Submit one job array a stage, each waiting for the one before; or print what would be
    submitted."""
    from datatrove.executor.slurm import launch_slurm_job

    if "SLURM_ARRAY_TASK_ID" in os.environ:
        raise UserError(
            "this is a task of a Slurm job array, where datatrove runs instead of submitting; "
            "launch from a login node."
        )
    if not dry_run and shutil.which("sbatch") is None:
        raise UserError(
            "there is no `sbatch` on this machine; launch from a login node of the cluster "
            "(--dry-run prints the scripts anywhere)."
        )
    environment = f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
    options: Block = {"env_command": environment, **settings}
    # A job whose predecessor failed would wait in the queue forever.
    ends = {"kill-on-invalid-dep": "yes"}
    options["sbatch_args"] = ends | (settings.get("sbatch_args") or {})
    sbatch = _Shown() if dry_run else launch_slurm_job
    for step in steps:
        named = {"job_name": f"{recipe}-{step.task.stage}"}
        executor = _executor("slurm")(**named | options | step.arguments)
        try:
            options["depends_job_id"] = _submit(executor, sbatch)
        except subprocess.CalledProcessError as error:
            raise UserError(
                f"sbatch refused a job (exit {error.returncode}, its words are above); "
                "scancel what was submitted before it."
            ) from error
    if not dry_run:
        last = options["depends_job_id"]
        logs = f"{steps[0].logs.parent} holds their logs"
        print(f"submitted; `squeue --me` shows the jobs, {logs}; the last job is {last}")


class _Shown:
    """In place of `sbatch`: prints the very script, and submits nothing."""

    def __init__(self) -> None:
        self.jobs = itertools.count(1)

    def __call__(self, script: str, _: object, *arguments: str) -> str:
        print(f"\n# sbatch {shlex.join(arguments)}\n{script.rstrip()}")
        return f"JOB{next(self.jobs)}"


def _submit(executor: Any, sbatch: Callable[..., str]) -> str:
    """Submit the job arrays of one stage, and return the last one's id.

    This is what `SlurmPipelineExecutor.launch_job` does, with two differences. It cannot show a
    script without submitting it. And behind each stage it submits a job that adds up datatrove's
    own statistics: ours has none, and that job would ask for a GPU too.
    """
    import dill  # type: ignore[import-untyped]

    logs = executor.logging_dir
    with logs.open("executor.pik", "wb") as file:
        dill.dump(executor, file, fmode=dill.CONTENTS_FMODE)
    executor.save_executor_as_json()
    with logs.open("ranks_to_run.json", "w") as file:
        json.dump(list(range(executor.tasks)), file)
    command = f"launch_pickled_pipeline {logs.resolve_paths('executor.pik')}"
    if executor.with_srun:
        given = " ".join(f"--{name}={value}" for name, value in (executor.srun_args or {}).items())
        command = f"srun {given} -l -n {executor.nodes_per_task} {command}"
    jobs = math.ceil(executor.tasks / executor.tasks_per_job)
    size = jobs if executor.max_array_size == -1 else min(jobs, executor.max_array_size)
    script = executor.get_launch_file_contents(executor.get_sbatch_args(size), command)
    with logs.open("launch_script.slurm", "w") as file:
        file.write(script)
    for place in range(math.ceil(jobs / size)):
        if place and executor.max_array_launch_parallel:
            time.sleep(executor.stagger_max_array_jobs)
        arguments = [f"--export=ALL,RUN_OFFSET={place}"]
        if executor.dependency:
            arguments.append(f"--dependency={executor.dependency}")
        executor.job_id = sbatch(script, executor.job_id_retriever, *arguments)
    return str(executor.job_id)


# -- Ray -------------------------------------------------------------------------------------------


def _ray(recipe: str, steps: list[Step], settings: Block, dry_run: bool) -> None:
    """Run one stage after the other on the Ray cluster, until all are done; or print the calls."""
    # A lost node takes its tasks along: Ray starts them again elsewhere, also while they are being
    # placed.
    again = {"max_restarts": 3, "max_task_retries": 3}
    remote = again | (settings.get("ray_remote_kwargs") or {})
    options = settings | {"ray_remote_kwargs": remote}
    if not dry_run:
        _connect()
    for step in steps:
        arguments = step.arguments | options
        if dry_run:
            shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            print(f"\nRayPipelineExecutor({shown}).run()")
            continue
        executor = _executor("ray")(**arguments)
        executor.run()
        # datatrove's markers of this launch: its folder is new.
        left = executor.get_incomplete_ranks(skip_completed=True)
        if left:
            failed = f"{len(left)} of {step.tasks} tasks of {step.task.stage} failed"
            raise UserError(f"{failed}; see {step.logs / 'logs'}; the same command continues.")
    if not dry_run:
        made = "instructions, columns and selections are made"
        print(f"{recipe}: {made}; `magpie run` goes on from here")


def _connect() -> None:
    import ray

    if ray.is_initialized():
        return
    try:
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"))
    except ConnectionError as error:
        raise UserError(
            "no Ray cluster is running here: start one with `ray start --head` "
            "(and `ray start --address=...` on the other machines), or name it in RAY_ADDRESS."
        ) from error


LAUNCHERS = {"slurm": _slurm, "ray": _ray}
