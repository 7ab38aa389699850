"""Scripts that train every arm and seed of a recipe and evaluate what came of it: a job array for
Slurm, a task for SkyPilot, a script for machines that are started by hand.

All of them run `magpie run RECIPE --only ARM/SEED`, so that what decides between reuse and work,
and what is tracked, is the same everywhere. Nothing secret is written into them: keys come from
the environment of whoever submits.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml

from core.errors import Stopped, UserError, nearest
from recipes.blocks.stated import LaunchConfig
from recipes.schema import Recipe, with_random

ATTEMPTS = 50
"""Attempts of a job after which it is not queued again: a time limit shorter than the way to the
first step would queue it forever."""

KEPT = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "PYTHONPATH", "WANDB_MODE")
KEPT_PREFIXES = ("NCCL_", "WANDB_BASE_URL", "WANDB_ENTITY")
"""What a script takes over from the environment of whoever launches; nothing of it is secret."""

OURS = {
    "array": "it is made of the arms and seeds",
    "nodes": "use --nodes",
    "ntasks": "a node is one task, which starts a process for each GPU",
    "ntasks-per-node": "a node is one task, which starts a process for each GPU",
    "output": "logs are below the store",
    "error": "logs are below the store",
    "open-mode": "logs are below the store",
    "signal": "it is what lets a training save; launch.notice is how long before the end",
    "requeue": "jobs always are",
    "no-requeue": "jobs always are",
    "dependency": "jobs follow one another",
}
"""Options of sbatch that a recipe does not set, and why."""


@dataclass(frozen=True)
class Asked:
    """What is to be trained, and on what."""

    name: str
    first: tuple[str, ...]
    """Trainings ("ARM/SEED") that start from the base model."""
    then: tuple[str, ...]
    """Trainings that go on from those."""
    nodes: int
    gpus: int | None
    """Of each machine; None: all that the machine has."""
    evaluates: bool
    until: str
    """The last stage before the trainings."""
    blocks: tuple[str, ...] = ("train",)
    """The recipe's blocks that say how is trained: train, dpo."""

    @property
    def runs(self) -> tuple[str, ...]:
        """All trainings, in an order that they can be made in."""
        return (*self.first, *self.then)


@dataclass(frozen=True)
class Place:
    """Where a launch writes and runs."""

    folder: Path
    """The launch's own folder: recipe, script, logs."""
    cwd: Path
    """Where relative paths of the recipe start."""

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.folder / "recipe.yaml"


def runs_of(recipe: Recipe, arm: str | None, seed: int | None) -> tuple[list[str], list[str]]:
    """The trainings of a recipe, or those of an arm or a seed: those from the base, and those that
    go on from another arm's. Raises UserError where there is none."""
    arms = {name: each for name, each in with_random(recipe).items() if each.model is None}
    trained = recipe.train or recipe.dpo
    if trained is None:
        raise UserError(f"recipe {recipe.name} has no `train:` block: there is nothing to launch.")
    for what, given, known in (("arm", arm, [*arms]), ("seed", seed, [*trained.seeds])):
        if given is not None and given not in known:
            hint = nearest(str(given), map(str, known))
            raise UserError(f"--{what} {given}: no {what} of that name is trained{hint}.")
    seeds = trained.seeds if seed is None else (seed,)
    wanted = {arm: arms[arm]} if arm is not None else arms
    first = [name for name, each in wanted.items() if each.dpo is None]
    then = [name for name, each in wanted.items() if each.dpo is not None]
    return (
        [f"{name}/{of}" for name in first for of in seeds],
        [f"{name}/{of}" for name in then for of in seeds],
    )


def environment() -> dict[str, str]:
    """What a script exports, quoted for a shell."""
    kept = {
        name: value
        for name, value in sorted(os.environ.items())
        if name in KEPT or name.startswith(KEPT_PREFIXES)
    }
    quoted = {name: shlex.quote(value) for name, value in kept.items()}
    return {"PATH": f"{shlex.quote(str(Path(sys.executable).parent))}:$PATH", **quoted}


def sbatch_options(given: Mapping[str, Any], gpus: int, where: str) -> list[str]:
    """Options of sbatch as lines of a script: the recipe's verbatim, and the GPUs unless those say
    which. Raises UserError for one that the script sets itself."""
    names = {str(name).lstrip("-").replace("_", "-"): value for name, value in given.items()}
    for name, value in names.items():
        if name in OURS:
            raise UserError(f"{where}.{name} is not for a recipe to say: {OURS[name]}.")
        if name == "time" and isinstance(value, int):
            remedy = "put it in quotes (YAML reads 20:00:00 as 72000)"
            raise UserError(f"{where}.time is the number {value}; {remedy}.")
    if gpus and not {"gres", "gpus", "gpus-per-node", "gpus-per-task"} & names.keys():
        names["gpus-per-node"] = gpus
    given_values = {name: value for name, value in names.items() if value not in (None, False)}
    return [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in given_values.items()
    ]


def values(asked: Asked, place: Place, launch: LaunchConfig, group: str) -> dict[str, Any]:
    """What the templates are filled with."""
    exported = environment() | {"WANDB_RUN_GROUP": shlex.quote(group)}
    if asked.gpus == 0:
        exported["CUDA_VISIBLE_DEVICES"] = ""
    machine = [f'{each}.machine_rank="$rank"' for each in asked.blocks]
    machine += [f'{each}.main_process_ip="$main"' for each in asked.blocks]
    logs = place.folder / "logs"
    return {
        "name": asked.name,
        "runs": [shlex.quote(run) for run in asked.runs],
        "nodes": asked.nodes,
        "gpus": "all its" if asked.gpus is None else asked.gpus,
        "machine": " ".join(machine),
        "until": asked.until,
        "folder": shlex.quote(str(place.cwd)),
        "recipe": shlex.quote(str(place.recipe)),
        "logs": logs,
        "logs_quoted": str(logs).replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$"),
        "environment": exported,
        "setup": launch.setup.strip(),
        "magpie": "magpie",
        "again": Stopped.code,
        "attempts": ATTEMPTS,
        "notice": launch.notice,
    }


def slurm(asked: Asked, place: Place, launch: LaunchConfig, group: str, where: str) -> str:
    """The script of the job array, by the recipe's own template where it has one."""
    options = sbatch_options(launch.sbatch, asked.gpus or 0, where)
    filled = values(asked, place, launch, group) | {"options": options}
    filled["submitted"] = [shlex.join(line) for line in submissions(asked, place, prepares=True)]
    return _rendered(launch.template or "slurm.sh.jinja", filled)


def submissions(asked: Asked, place: Place, *, prepares: bool) -> list[list[str]]:
    """The calls of sbatch, in order; each JOB stands for the job that the one before submitted."""
    script = str(place.folder / "train.sh")
    size, first = len(asked.runs), len(asked.first)
    alone = ["--array=0", "--nodes=1"]
    calls: list[list[str]] = []

    def call(kind: str, role: str, *options: str) -> None:
        after = [f"--dependency={kind}:JOB", "--kill-on-invalid-dep=yes"] if calls else []
        calls.append(["sbatch", "--parsable", *after, *options, script, role])

    if prepares:
        call("", "prepare", *alone, f"--job-name={asked.name}-prepare")
    if asked.first:
        call("afterok", "train", f"--array=0-{first - 1}")
    if asked.then:
        call("afterany" if asked.first else "afterok", "train", f"--array={first}-{size - 1}")
    if asked.evaluates:
        call("afterany", "evaluate", *alone, f"--job-name={asked.name}-evaluate")
    return calls


def by_hand(asked: Asked, place: Place, launch: LaunchConfig, group: str, store: Path) -> str:
    """The script of machines that somebody else starts."""
    filled = values(asked, place, launch, group)
    filled |= {"store": store.resolve(), "script": shlex.quote(str(place.folder / "train.sh"))}
    return _rendered(launch.template or "machines.sh.jinja", filled)


SKY_HEAD = """rank=$SKYPILOT_NODE_RANK
MACHINE_RANK=$rank
MAIN_ADDRESS=$(echo "$SKYPILOT_NODE_IPS" | head -n1)
export MACHINE_RANK MAIN_ADDRESS
"""


def sky(asked: Asked, place: Place, recipe: Recipe, group: str) -> str:
    """A SkyPilot task: `launch.sky` verbatim, and beside it the machines, the recipe and what they
    run. Raises UserError for what SkyPilot cannot know from here."""
    launch = recipe.launch
    given: dict[str, Any] = json.loads(json.dumps(launch.sky))
    resources = given.setdefault("resources", {})
    kind = resources.get("accelerators")
    if asked.gpus and not isinstance(kind, str):
        raise UserError(
            "SkyPilot needs to know which GPU: say launch.sky.resources.accelerators=H100 "
            "(how many a machine has is --gpus)."
        )
    if not Path(recipe.store).is_absolute() or not {"file_mounts", "volumes"} & given.keys():
        raise UserError(
            "with SkyPilot the store outlives its machines only on storage that all of them mount: "
            "name it in launch.sky.file_mounts or launch.sky.volumes, and say store=/ITS/PATH."
        )
    if asked.gpus:
        resources["accelerators"] = f"{str(kind).partition(':')[0]}:{asked.gpus}"
    remote = "/tmp/magpie-recipe.yaml"
    filled = values(asked, place, launch, group) | {"recipe": remote, "folder": "~/sky_workdir"}
    filled["environment"] = {"PATH": "~/sky_workdir/.venv/bin:$PATH", "WANDB_RUN_GROUP": group}
    mounts = {**given.pop("file_mounts", {}), remote: str(place.recipe)}
    secrets = {name: None for name in _secrets(recipe)}
    task = {
        "name": asked.name,
        "num_nodes": asked.nodes,
        "workdir": str(Path(__file__).parents[2]),
        "setup": "make install",
        **given,
        "file_mounts": mounts,
        **({"secrets": {**secrets, **given.get("secrets", {})}} if secrets else {}),
        "run": f"set -euo pipefail\n{SKY_HEAD}{_rendered('body.sh.jinja', filled)}",
    }
    return (
        f"# {asked.name}: written by `magpie launch`; start it by\n#   sky jobs launch "
        + "".join(f"--secret {name} " for name in secrets)
        + f"{place.folder / 'train.yaml'}\n"
        + yaml.dump(task, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    )


def _secrets(recipe: Recipe) -> list[str]:
    """Names of the variables whose values a run needs and no file holds."""
    found = ["WANDB_API_KEY"] if recipe.track == "wandb" else []

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            if isinstance(value.get("api_key_env"), str):
                found.append(value["api_key_env"])
            for inner in value.values():
                collect(inner)
        elif isinstance(value, list):
            for inner in value:
                collect(inner)

    collect(recipe.model_dump(mode="json"))
    if os.environ.get("HF_TOKEN"):
        found.append("HF_TOKEN")
    return list(dict.fromkeys(found))


class _Dumper(yaml.SafeDumper):
    """Writes a text of several lines as one, so that a person can read it."""


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _block)


def _rendered(template: str, filled: Mapping[str, Any]) -> str:
    """A shipped template by its name, or the user's own by its path, filled in. Raises UserError
    naming the template and what is wrong in it."""
    own = Path(template).expanduser()
    folders = [str(Path(__file__).parent / "templates")]
    if own.parent != Path() or own.is_file():
        folders.insert(0, str(own.parent))
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    try:
        return made.get_template(own.name).render(filled)
    except jinja2.TemplateNotFound as error:
        raise UserError(f"launch.template: there is no {error.name} in {own.parent}.") from error
    except jinja2.TemplateError as error:
        known = ", ".join(sorted(filled))
        raise UserError(f"launch.template {own}: {error}; it is given {known}.") from error
