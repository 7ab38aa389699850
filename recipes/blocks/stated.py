"""Blocks of a recipe that belong to no other floor: what it states of its trainings before their
rows are there, and how a cluster is asked for machines."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

LONGEST_NAME = 100
"""Characters of a name that is part of files' names."""


def safe_name(name: str, what: str = "a name") -> str:
    """A name as it is. Raises ValueError for one that is no safe name of a file and a folder on
    every machine: `..`, one with a slash or a space, one that a command takes for an option."""
    if re.fullmatch(r"\w[\w.-]*(?<!\.)", name) and len(name) <= LONGEST_NAME:
        return name
    raise ValueError(
        f"{what} becomes a file's: letters, digits, `_`, `-` and `.` (neither `-` nor `.` first, "
        f"no `.` last), {LONGEST_NAME} characters at most, not {name[: LONGEST_NAME + 1]!r}"
    )


class ExpectedRows(BaseModel):
    """Rows of an arm and their tokens, as a recipe states them before they are there."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rows: int | None = Field(None, ge=1)
    """Rows that an arm trains on."""
    tokens: int | None = Field(None, ge=1)
    """Their tokens under the training template, once over all rows."""


class Expected(ExpectedRows):
    """What a recipe states of its trainings before their rows are there; part of no key."""

    arms: dict[str, ExpectedRows] = {}
    """The same of single arms, where they differ."""
    gpus: int | None = Field(None, ge=1)
    """GPUs that the recipe is written for, over all machines."""
    gpu_memory: float | None = Field(None, gt=0)
    """Memory of each, in GiB."""
    prompt_sd: float | None = Field(None, gt=0)
    """Standard deviation over prompts of the difference between two arms, each the mean over its
    seeds, in the unit of the metric that decides: for the smallest difference that the design
    finds."""
    seed_sd: float | None = Field(None, ge=0)
    """Standard deviation of an arm's score over its training seeds, in the same unit."""


class LaunchConfig(BaseModel):
    """How `magpie launch` asks for machines: for a synthesis arguments of datatrove's executors,
    for trainings options of sbatch and a task of SkyPilot, all verbatim."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    slurm: dict[str, Any] = {}
    """SlurmPipelineExecutor: time and partition at least; cpus_per_task, mem_per_cpu_gb,
    gpus_per_task, qos, workers, env_command, sbatch_args ..."""
    ray: dict[str, Any] = {}
    """RayPipelineExecutor: cpus_per_task, mem_per_cpu_gb, gpus_per_task, workers, ray_remote_kwargs
    ..."""
    sbatch: dict[str, Any] = {}
    """Options of sbatch for trainings: partition, account, time, cpus-per-task, gres ..."""
    sky: dict[str, Any] = {}
    """Fields of a SkyPilot task for trainings: resources, file_mounts, volumes, setup ..."""
    setup: str = ""
    """Lines of shell that every job runs first (module load ...)."""
    notice: int = Field(600, ge=1)
    """Seconds before the end of a Slurm job's time at which it saves and is queued again."""
    template: str | None = None
    """A Jinja file in place of the shipped script of `--on slurm` or `--on print`."""
