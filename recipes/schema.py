"""The recipe: one YAML as frozen pydantic models, composed of the stages' own configs.

    load(path, overrides)   read, extend once, override, check; every mistake is one sentence with
                            file, line, key and the nearest valid name

Paths in a recipe are relative to the folder where `magpie` runs.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from core.errors import UserError, json_kind, nearest
from eval.config import EvalConfig
from recipes.blocks.added_arms import control_arms, random_arms
from recipes.blocks.stated import Expected, LaunchConfig
from synth.config.synthesis import SynthConfig
from synth.filters.arm import ArmConfig, check_alignments, check_mixtures, check_shuffled
from train.config import DpoConfig, TrainConfig

HERE = Path(__file__).parent
COMMAND_LINE = ("command line", 1)


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
    controls: bool = False
    """Add controls to the random arm: a second random sample, which must tie with it, and its rows
    with 10, 30 and 100 % of the answers moved between instructions, which must lose to it."""
    train: TrainConfig | None = None
    """How each arm is fine-tuned."""
    dpo: DpoConfig | None = None
    """How arms that name another (`dpo: ARM`) go on from its checkpoints."""
    eval: EvalConfig | None = None
    """How each checkpoint is measured."""
    gpu_hours: float | None = Field(None, gt=0)
    """Begin no training where those that are finished, with one more as long as their mean, reach
    so many GPU hours (docs/comparing.md); part of no key. `eval.judge.budget` caps the judge's
    money."""
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
    expected: Expected | None = None
    """Rows, tokens and GPUs as the recipe states them, for `magpie plan` and `magpie memory` before
    they are there."""
    launch: LaunchConfig = LaunchConfig()
    """How `magpie launch` asks for machines, for a synthesis and for trainings; part of no key."""

    @property
    def folder(self) -> Path:
        """Where its runs leave what a person looks for."""
        return Path(self.store) / "recipes" / self.name

    @model_validator(mode="after")
    def _agree(self) -> Recipe:
        """Refuse parts that contradict each other."""
        arms = with_random(self)
        check_mixtures(arms)
        check_shuffled(arms)
        check_alignments(arms, {"preferences": self.synth.preferences, **dict(self)})
        if self.baseline is not None and self.baseline not in arms:
            hint = nearest(self.baseline, arms)
            raise ValueError(f"baseline: no arm is called '{self.baseline}'{hint}")
        if self.eval is None:
            return self
        finished = ("model", "dpo")
        if self.train is None and any(arm.kind not in finished for arm in self.arms.values()):
            raise ValueError("`eval` needs `train`, because some arms have no finished model")
        heldout = self.eval.heldout
        if heldout is not None and heldout.foreign is None and not self.synth.heldout:
            raise ValueError(
                "`eval.heldout` needs held-out rows; "
                "set `synth.heldout` to their share of the pool (for example 0.1), or name others "
                "by `eval.heldout.foreign`"
            )
        return self


def with_random(recipe: Recipe) -> dict[str, ArmConfig]:
    """The arms of a recipe, with those that it has without writing them: random ones of the same
    size, and its controls."""
    arms = dict(recipe.arms)
    if recipe.random_arm:
        arms |= random_arms(recipe.arms)
    if recipe.controls:
        arms |= control_arms(arms, recipe.baseline)
    return arms


# -- loading ---------------------------------------------------------------------------------------

Block = dict[str, Any]
Keys = tuple[str, ...]
Lines = dict[Keys, tuple[str, int]]


@dataclass(frozen=True)
class Source:
    """Where each key of a recipe was written: path of keys -> (file, line)."""

    path: Path
    lines: Lines

    def at(self, loc: Sequence[object]) -> str:
        """`file:line` of the nearest enclosing key that was written."""
        keys = tuple(map(str, loc))
        while keys and keys not in self.lines:
            keys = keys[:-1]
        file, line = self.lines.get(keys, (self.path, 1))
        return f"{file}:{line}"

    def sentence(self, error: UserError) -> UserError:
        """Put file and line before a sentence that begins with a dotted key (`arms.magpie.where:
        ...`)."""
        keys = str(error).partition(":")[0].split(".")
        return UserError(f"{self.at(keys)}: {error}") if keys[0] in Recipe.model_fields else error


@dataclass(frozen=True)
class Loaded:
    """A checked recipe and where its keys were written."""

    recipe: Recipe
    source: Source


def shipped() -> list[Path]:
    """The recipes that come with the package."""
    return sorted((HERE / "shipped").rglob("*.yaml"))


def load(path: str | Path, overrides: Iterable[str] = ()) -> Loaded:
    """Read a recipe file (or the name of a shipped one), extend it once, apply `key.path=value`
    overrides, and check it.

    Raises UserError with one sentence for a missing file, bad YAML, an unknown key, and every value
    the configs refuse.
    """
    file = _find(path)
    data, lines = _extended(file)
    for text in overrides:
        keys = override(data, text)
        parents = {keys[:depth]: COMMAND_LINE for depth in range(1, len(keys))}
        lines = {**parents, **lines, keys: COMMAND_LINE}
    arms = data.setdefault("arms", {})
    if isinstance(arms, dict):
        data["arms"] = {name: arm for name, arm in arms.items() if arm is not None}
    source = Source(file, lines)
    try:
        return Loaded(Recipe.model_validate(data), source)
    except ValidationError as error:
        raise UserError(_explain(error, source)) from error
    except UserError as error:
        raise source.sentence(error) from error


def _find(path: str | Path) -> Path:
    packaged = {recipe.stem: recipe for recipe in shipped()}
    name = str(path).removesuffix(".yaml").removeprefix("recipes/").removeprefix("shipped/")
    file = Path(path)
    if file.is_file():
        return file
    if name in packaged:
        return packaged[name]
    raise UserError(f"recipe {path} does not exist; shipped recipes are {', '.join(packaged)}.")


def _extended(file: Path) -> tuple[Block, Lines]:
    """A file's recipe over the one that it extends, and where each key was written."""
    data, lines = _read(file)
    if "extends" not in data:
        return data, lines
    base_file = (file.parent / str(data.pop("extends"))).resolve()
    base, base_lines = _read(base_file)
    if "extends" in base:
        raise UserError(
            f"{base_file}: `extends` goes one level; "
            f"{base_file.name} extends another recipe itself."
        )
    return _merge(base, data), base_lines | lines


def _read(file: Path) -> tuple[Block, Lines]:
    """A file's mapping, and the line of each of its keys."""
    try:
        text = file.read_text()
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except FileNotFoundError as error:
        raise UserError(f"recipe {file} does not exist.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", error)
        raise UserError(f"{file}:{line}: not valid YAML ({problem}).") from error
    if not isinstance(data, dict):
        raise UserError(f"{file}:1: a recipe is a mapping of keys, not {json_kind(data)}.")
    lines: Lines = {}
    for keys, line in _keys(node):
        if keys in lines:
            raise UserError(f"{file}:{line}: `{'.'.join(keys)}` is written twice.")
        lines[keys] = (str(file), line)
    return data, lines


def _keys(node: yaml.Node | None, above: Keys = ()) -> Iterator[tuple[Keys, int]]:
    """Every key of a mapping, with those above it, and its line."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*above, str(key.value))
            yield here, key.start_mark.line + 1
            yield from _keys(value, here)


def _merge(base: Block, top: Block) -> Block:
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            value = _merge(below, value)
        merged[key] = value
    return merged


def override(data: Block, text: str, example: str = "train.trainer.num_train_epochs=1") -> Keys:
    """Put the value of `key.path=value` into `data`, and return its path of keys. Raises UserError,
    with `example`, for a text of another form."""
    dotted, sign, value = text.partition("=")
    keys = tuple(dotted.split("."))
    if not sign or not all(keys):
        form = f"key.path=value (for example {example})"
        raise UserError(f"override '{text}' has no form {form}.")
    here = data
    for key in keys[:-1]:
        if not isinstance(here.get(key), dict):
            here[key] = {}
        here = here[key]
    try:
        here[keys[-1]] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"override '{text}': the value is not valid YAML.") from error
    return keys


# -- what is wrong ---------------------------------------------------------------------------------


def _explain(error: ValidationError, source: Source) -> str:
    """One sentence for the first problem, an unknown key before any other."""
    problems = error.errors()
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    first = (unknown or problems)[0]
    loc = [key for key in first["loc"] if not _is_alternative(key)]
    key = ".".join(map(str, loc))
    if unknown:
        what = f"unknown key `{key}`{nearest(str(loc[-1]), _valid_keys(loc[:-1]))}"
    elif first["type"] == "missing":
        what = f"`{key}` is missing"
    else:
        message = str(first["msg"]).removeprefix("Value error, ")
        given = first.get("input")
        plain = given is None or isinstance(given, (str, int, float))
        shown = f" (it is {given!r})" if plain else ""
        what = f"`{key}`: {message}{shown}" if key else message
    return f"{source.at(loc)}: {what}."


def _is_alternative(key: int | str) -> bool:
    """Whether pydantic names by this which type of a union it tried; nobody wrote it."""
    return isinstance(key, str) and ("[" in key or key in ALTERNATIVES)


ALTERNATIVES = ("int", "float", "ImportConfig", "PartConfig", "str", "ModelConfig")


def _valid_keys(loc: Sequence[object]) -> list[str]:
    """The keys allowed at a place of the recipe, following the models' annotations."""
    places: list[Any] = [Recipe]
    for key in loc:
        inner: list[Any] = []
        for place in places:
            if typing.get_origin(place) is dict:
                inner += _alternatives(typing.get_args(place)[1])
            inner += _alternatives(_names(place).get(str(key)))
        places = inner
    return [name for place in places for name in _names(place)]


def _names(annotation: Any) -> Block:
    """Key -> annotation of a model; {} of anything else."""
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return {}
    fields = annotation.model_fields.items()
    return {info.alias or name: info.annotation for name, info in fields}


def _alternatives(annotation: Any) -> Sequence[Any]:
    """X | Y | None -> [X, Y, None]; anything else is its own only alternative."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else [annotation]


def json_schema() -> Block:
    """The recipe's JSON schema, for editors."""
    return Recipe.model_json_schema()
