"""The recipe: one YAML as frozen pydantic models, composed of the stages' own configs.

    load(path, overrides)   read, extend once, override, check; every mistake is one sentence with file, line, key and the nearest valid name

Paths in a recipe are relative to the folder where `magpie` runs.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from core.errors import UserError, nearest
from eval.config import EvalConfig
from synth.config import SynthConfig
from synth.filters.arm import ArmConfig
from train.config import TrainConfig

HERE = Path(__file__).parent


class LaunchConfig(BaseModel):
    """How `magpie launch --stage synth` asks a cluster for machines: arguments of datatrove's
    executors, verbatim."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    slurm: dict[str, Any] = {}
    """SlurmPipelineExecutor: time and partition at least; cpus_per_task, mem_per_cpu_gb,
    gpus_per_task, qos, workers, env_command, sbatch_args ..."""
    ray: dict[str, Any] = {}
    """RayPipelineExecutor: cpus_per_task, mem_per_cpu_gb, gpus_per_task, workers, ray_remote_kwargs
    ..."""


class Recipe(BaseModel):
    """What a user asks for: a teacher, arms, a training, an evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = Field(pattern=r"^[\w.-]+$")
    """Names the run, its W&B group and its report; part of no key."""
    store: str = "runs"
    """Folder of all results and columns; recipes that share it share what is measured."""
    synth: SynthConfig
    """Rows and tags."""
    arms: dict[str, ArmConfig] = Field(min_length=1)
    """Filter strategies (or data, or models) to compare."""
    random_arm: bool = True
    """Add an arm `random` of the same size for each distinct budget that has none."""
    train: TrainConfig | None = None
    """How each arm is fine-tuned."""
    eval: EvalConfig | None = None
    """How each checkpoint is measured."""
    baseline: str | None = None
    """Arm that the others are judged against; default: the first arm that is a finished model, else
    the first random arm."""
    caveat: str | None = None
    """One sentence that stands below every result of this recipe, for what a reader must know to
    judge it."""
    track: Literal["wandb", "none"] = "wandb"
    """Experiment tracking; W&B writes offline where there is no API key."""
    project: str = "magpie"
    """W&B project."""
    launch: LaunchConfig = LaunchConfig()
    """What a task of the synthesis gets on a cluster; part of no key."""

    @model_validator(mode="after")
    def _agree(self) -> Recipe:
        if self.baseline is not None and self.baseline not in with_random(self):
            raise ValueError(
                f"baseline: no arm is called '{self.baseline}'{nearest(self.baseline, with_random(self))}"
            )
        if (
            self.eval is not None
            and self.train is None
            and any(arm.model is None for arm in self.arms.values())
        ):
            raise ValueError("`eval` needs `train`, because some arms have no finished model")
        if self.eval is not None and self.eval.heldout is not None and not self.synth.heldout:
            raise ValueError(
                "`eval.heldout` needs held-out rows; set `synth.heldout` to their share of the pool (for example 0.1)"
            )
        return self


def with_random(recipe: Recipe) -> dict[str, ArmConfig]:
    """The arms, with a size-matched random arm for each distinct budget that has none ("Chasing
    Random", arXiv 2410.15225)."""
    from synth.filters.strategies import STRATEGIES

    arms = dict(recipe.arms)
    if not recipe.random_arm:
        return arms

    def budget(arm: ArmConfig) -> dict[str, int] | None:
        rows = STRATEGIES[arm.strategy].rows if arm.strategy in STRATEGIES else None
        return (
            arm.budget.model_dump(exclude_none=True)
            if arm.budget
            else {"rows": rows}
            if rows
            else None
        )

    def plain(arm: ArmConfig) -> bool:
        return (
            arm.where is None
            and arm.data is None
            and (arm.choose == "hash_order" or arm.strategy == "random")
        )

    sizes: list[dict[str, int]] = []
    for arm in recipe.arms.values():
        size = budget(arm)
        if arm.model is None and size is not None and size not in sizes:
            sizes.append(size)
    missing = [s for s in sizes if not any(plain(a) and budget(a) == s for a in arms.values())]
    for size in missing:
        name = (
            "random"
            if len(missing) == 1 and "random" not in arms
            else "random-" + "".join(f"{v}-{k}" for k, v in size.items())
        )
        short = any(a.allow_short for a in recipe.arms.values())
        arms[name] = ArmConfig.model_validate(
            {"choose": "hash_order", "budget": size, "allow_short": short}
        )
    return arms


@dataclass(frozen=True)
class Source:
    """Where each key of a recipe was written: path of keys -> (file, line)."""

    path: Path
    lines: Mapping[tuple[str, ...], tuple[str, int]] = field(default_factory=dict)

    def at(self, loc: Sequence[Any]) -> str:
        """`file:line` of the nearest enclosing key that was written."""
        keys = tuple(str(k) for k in loc)
        while keys and keys not in self.lines:
            keys = keys[:-1]
        file, line = self.lines.get(keys, (str(self.path), 1))
        return f"{file}:{line}"

    def sentence(self, error: UserError) -> UserError:
        """Put file and line before a sentence that begins with a dotted key (`arms.magpie.where:
        ...`)."""
        head, _, _ = str(error).partition(":")
        keys = tuple(head.split("."))
        return UserError(f"{self.at(keys)}: {error}") if keys[0] in Recipe.model_fields else error


@dataclass(frozen=True)
class Loaded:
    """A checked recipe and where its keys were written."""

    recipe: Recipe
    source: Source


def shipped() -> list[Path]:
    """The recipes that come with the package."""
    return sorted(HERE.glob("*.yaml"))


def load(path: str | Path, overrides: Iterable[str] = ()) -> Loaded:
    """Read a recipe file (or the name of a shipped one), extend it once, apply `key.path=value`
    overrides, and check it.

    Raises UserError with one sentence for a missing file, bad YAML, an unknown key, and every value
    the configs refuse.
    """
    file = _find(path)
    lines: dict[tuple[str, ...], tuple[str, int]] = {}
    data = _read(file, lines)
    if "extends" in data:
        base_file = (file.parent / str(data.pop("extends"))).resolve()
        base_lines: dict[tuple[str, ...], tuple[str, int]] = {}
        base = _read(base_file, base_lines)
        if "extends" in base:
            raise UserError(
                f"{base_file}: `extends` goes one level; {base_file.name} extends another recipe itself."
            )
        data, lines = _merge(base, data), {**base_lines, **lines}
    for text in overrides:
        _override(data, text, lines)
    source = Source(file, lines)
    data["arms"] = (
        {k: v for k, v in data["arms"].items() if v is not None}
        if isinstance(data.get("arms"), dict)
        else data.get("arms", {})
    )
    try:
        return Loaded(Recipe.model_validate(data), source)
    except ValidationError as error:
        raise UserError(_explain(error, source)) from error
    except UserError as error:
        raise source.sentence(error) from error


def _find(path: str | Path) -> Path:
    file = Path(path)
    if file.is_file():
        return file
    packaged = {p.stem: p for p in shipped()}
    if str(path).removesuffix(".yaml").removeprefix("recipes/") in packaged:
        return packaged[str(path).removesuffix(".yaml").removeprefix("recipes/")]
    raise UserError(f"recipe {path} does not exist; shipped recipes are {', '.join(packaged)}.")


def _read(file: Path, lines: dict[tuple[str, ...], tuple[str, int]]) -> dict[str, Any]:
    try:
        text = file.read_text()
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except FileNotFoundError as error:
        raise UserError(f"recipe {file} does not exist.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError(
            f"{file}:{mark.line + 1 if mark else 1}: not valid YAML ({getattr(error, 'problem', error)})."
        ) from error
    if not isinstance(data, dict):
        raise UserError(f"{file}:1: a recipe is a mapping of keys, not {type(data).__name__}.")
    _mark(node, (), lines, str(file))
    return data


def _mark(
    node: Any, at: tuple[str, ...], lines: dict[tuple[str, ...], tuple[str, int]], file: str
) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*at, str(key.value))
            if here in lines:
                raise UserError(
                    f"{file}:{key.start_mark.line + 1}: `{'.'.join(here)}` is written twice."
                )
            lines[here] = (file, key.start_mark.line + 1)
            _mark(value, here, lines, file)


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _override(
    data: dict[str, Any], text: str, lines: dict[tuple[str, ...], tuple[str, int]]
) -> None:
    dotted, sign, value = text.partition("=")
    keys = tuple(dotted.split("."))
    if not sign or not all(keys):
        raise UserError(
            f"override '{text}' has no form key.path=value (for example train.trainer.num_train_epochs=1)."
        )
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"override '{text}': the value is not valid YAML.") from error
    here = data
    for key in keys[:-1]:
        if not isinstance(here.get(key), dict):
            here[key] = {}
        here = here[key]
    here[keys[-1]] = parsed
    for depth in range(1, len(keys) + 1):
        lines.setdefault(keys[:depth], ("command line", 1))
    lines[keys] = ("command line", 1)


def _explain(error: ValidationError, source: Source) -> str:
    """One sentence for the first problem (and how many more there are)."""
    problems = error.errors()
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    loc = [
        k
        for k in first["loc"]
        if not (
            isinstance(k, str) and ("[" in k or k in ("int", "ImportConfig", "str", "ModelConfig"))
        )
    ]
    key = ".".join(str(k) for k in loc)
    if first["type"] == "extra_forbidden":
        what = f"unknown key `{key}`{nearest(str(loc[-1]), _valid_keys(loc[:-1]))}"
    elif first["type"] == "missing":
        what = f"`{key}` is missing"
    else:
        message = str(first["msg"]).removeprefix("Value error, ")
        given = first.get("input")
        shown = (
            f" (it is {given!r})"
            if isinstance(given, (str, int, float, bool)) or given is None
            else ""
        )
        what = f"`{key}`: {message}{shown}" if key else message
    return f"{source.at(loc)}: {what}."


def _valid_keys(loc: Sequence[Any]) -> list[str]:
    """The keys allowed at a place of the recipe, following the models' annotations."""
    places: list[Any] = [Recipe]
    for key in loc:
        inner: list[Any] = []
        for place in places:
            if _is_model(place):
                inner += _alternatives(_names(place).get(str(key)))
            elif typing.get_origin(place) is dict:
                inner += _alternatives(typing.get_args(place)[1])
        places = inner
    return [name for place in places if _is_model(place) for name in _names(place)]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _names(model: type[BaseModel]) -> dict[str, Any]:
    return {info.alias or name: info.annotation for name, info in model.model_fields.items()}


def _alternatives(annotation: Any) -> list[Any]:
    """X | Y | None -> [X, Y, None]; anything else is its own only alternative."""
    return (
        list(typing.get_args(annotation))
        if typing.get_origin(annotation) in (typing.Union, types.UnionType)
        else [annotation]
    )


def json_schema() -> dict[str, Any]:
    """The recipe's JSON schema, for editors."""
    return Recipe.model_json_schema()
