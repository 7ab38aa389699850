"""The recipe: one YAML as frozen pydantic models, composed of the stages' own configs.

    load(path, overrides)   read, extend once, override, check; every mistake is one sentence with
                            file, line, key and the nearest valid name

Paths in a recipe are relative to the folder where `magpie` runs.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from core.errors import UserError, nearest
from core.wire import ServerSpec
from eval.config import EvalConfig
from recipes.blocks import adapters, refusals, written
from recipes.blocks.added_arms import control_arms, random_arms
from recipes.blocks.stated import Expected, LaunchConfig, safe_name
from recipes.blocks.written import COMMAND_LINE, Keys
from synth.config.synthesis import SynthConfig
from synth.filters.arm import ArmConfig, check_alignments, check_mixtures, check_shuffled
from train.config import DpoConfig, TrainConfig

HERE = Path(__file__).parent


class Recipe(BaseModel):
    """What a user asks for: a teacher, arms, a training, an evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """Names the run, its W&B group and its report; part of no key. A safe file name."""
    store: str = Field("runs", min_length=1)
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
    so many GPU hours, and the first where all are forecast to (docs/comparing.md); part of no key.
    `eval.judge.budget` caps the judge's money."""
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

    @field_validator("store")
    @classmethod
    def _at_home(cls, store: str) -> str:
        try:
            return str(Path(store).expanduser()) if store.startswith("~") else store
        except RuntimeError as error:
            raise ValueError(f"there is no such user's home: {store}") from error

    @field_validator("name")
    @classmethod
    def _named(cls, name: str) -> str:
        return safe_name(name)

    @field_validator("arms")
    @classmethod
    def _arms_named(cls, arms: dict[str, ArmConfig]) -> dict[str, ArmConfig]:
        for name, arm in arms.items():
            for each in (name, *(arm.mix or ())):
                safe_name(each, "an arm's name")
        return arms

    @model_validator(mode="after")
    def _agree(self) -> Recipe:
        """Refuse parts that contradict each other."""
        arms = with_random(self)
        check_mixtures(arms)
        check_shuffled(arms)
        check_alignments(arms, {"preferences": self.synth.preferences, **dict(self)})
        if self.dpo is not None and self.dpo.base:
            raise ValueError(
                "`dpo.base` is not for a recipe to say: an arm's `dpo: ARM` names what goes on"
            )
        if self.baseline is not None and self.baseline not in arms:
            hint = nearest(self.baseline, arms)
            raise ValueError(f"baseline: no arm is called '{self.baseline}'{hint}")
        if self.eval is None:
            return self
        adapters.check(self.train, self.eval)
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
Lines = dict[Keys, tuple[str, int]]


@dataclass(frozen=True)
class Source:
    """Where each key of a recipe was written: path of keys -> (file, line)."""

    path: Path
    lines: Lines

    def at(self, loc: Sequence[object]) -> str:
        """`file:line` of the nearest enclosing key that was written, or `command line`."""
        keys = tuple(map(str, loc))
        while keys and keys not in self.lines:
            keys = keys[:-1]
        file, line = self.lines.get(keys, (str(self.path), 1))
        return file if file == COMMAND_LINE else f"{file}:{line}"

    def where(self, sentence: str, block: Sequence[str] = ()) -> str:
        """Where a setting was written that a sentence is about. The sentence begins with its keys,
        or with those of the block that holds it (else `block`), and then has the setting's name in
        quotes."""
        keys = tuple(sentence.partition(":")[0].split("."))
        at = tuple(block) if block and keys[0] != block[0] else keys
        named = [(*at, name) for name in re.findall(r"'([^']+)'", sentence)]
        return self.at(next((each for each in named if each in self.lines), at))

    def sentence(self, error: UserError) -> UserError:
        """Put file and line before a sentence that begins with a dotted key (`arms.magpie.where:
        ...`)."""
        said = str(error)
        known = said.partition(":")[0].split(".")[0] in Recipe.model_fields
        return UserError(f"{self.where(said)}: {said}") if known else error


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
        parents = {keys[:depth]: (COMMAND_LINE, 1) for depth in range(1, len(keys))}
        lines = {**parents, **lines, keys: (COMMAND_LINE, 1)}
    arms = data.setdefault("arms", {})
    if isinstance(arms, dict):
        data["arms"] = {name: arm for name, arm in arms.items() if arm is not None}
    source = Source(file, lines)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise UserError(_explain(error, source, data)) from error
    except UserError as error:
        raise source.sentence(error) from error
    changed = refusals.coerced(data, recipe)
    if changed is not None:
        loc, sentence = changed
        raise UserError(f"{source.at(loc)}: `{_dotted(loc)}`: {sentence}.")
    return Loaded(recipe, source)


def _find(path: str | Path) -> Path:
    packaged = {recipe.stem: recipe for recipe in shipped()}
    name = str(path).removesuffix(".yaml").removeprefix("recipes/").removeprefix("shipped/")
    file = Path(path)
    if file.is_file():
        return file
    if name in packaged:
        return packaged[name]
    what = "is a folder, not a recipe file" if file.is_dir() else "does not exist"
    raise UserError(f"recipe {path} {what}; shipped recipes are {', '.join(packaged)}.")


def _extended(file: Path) -> tuple[Block, Lines]:
    """A file's recipe over the one that it extends, and where each key was written."""
    data, lines = _read(file)
    if "extends" not in data:
        return data, lines
    extends = data.pop("extends")
    if not isinstance(extends, str):
        at = f"{file}:{lines['extends',][1]}"
        raise UserError(f"{at}: `extends` names one recipe file, not {refusals.shown(extends)}.")
    base_file = (file.parent / extends).resolve()
    packaged = {recipe.stem: recipe for recipe in shipped()}
    name = extends.removesuffix(".yaml")
    if not base_file.is_file() and name in packaged:
        base, base_lines = _extended(packaged[name])
        return _merge(base, data), base_lines | lines
    if not base_file.is_file():
        at = f"{file}:{lines['extends',][1]}"
        hint = nearest(extends, packaged)
        raise UserError(
            f"{at}: `extends` names {base_file}, which does not exist, and no shipped recipe{hint}."
        )
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
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}: a recipe is UTF-8 text, and byte {error.start} is none; save it as UTF-8."
        ) from error
    except OSError as error:
        raise UserError(f"recipe {file} cannot be read ({error.strerror}).") from error
    data, lines = written.read(text, str(file))
    if not isinstance(data, dict):
        what = refusals.shown(data) if data is None or isinstance(data, str) else "a list"
        raise UserError(f"{file}:1: a recipe is a mapping of keys (it is {what}).")
    return data, {keys: (str(file), line) for keys, line in lines.items()}


def _merge(base: Block, top: Block) -> Block:
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            value = _merge(below, value)
        merged[key] = value
    return merged


def override(data: Block, text: str, example: str = "train.trainer.num_train_epochs=1") -> Keys:
    """Put the value of `key.path=value` into `data`, and return its path of keys; an entry of a
    list goes by its number, from 0. Raises UserError, with `example`, for a text of another form,
    and for an entry that the list does not have."""
    dotted, sign, value = text.partition("=")
    keys = tuple(dotted.split("."))
    if not sign or not all(keys) or dotted != dotted.strip():
        form = f"key.path=value (for example {example})"
        raise UserError(f"override '{text}' has no form {form}.")
    here: Any = data
    for depth, key in enumerate(keys[:-1]):
        at = _entry(here, key, text)
        below = here[at] if isinstance(here, list) else here.get(at)
        if isinstance(below, str) and below.startswith("preset:") and keys[depth + 1] != "preset":
            below = here[at] = {"preset": below.removeprefix("preset:")}
        if not isinstance(below, (dict, list)):
            below = here[at] = {}
        here = below
    here[_entry(here, keys[-1], text)] = written.value(value, f"override '{text}'")
    return keys


def _entry(here: Block | list[Any], key: str, text: str) -> Any:
    """A key of a mapping, or the number of a list's entry."""
    if isinstance(here, dict):
        return key
    if key.isascii() and key.isdigit() and int(key) < len(here):
        return int(key)
    raise UserError(
        f"override '{text}': there stands a list of {len(here)}; name its entry by a number from 0"
        f"{f' to {len(here) - 1}' if here else ''}, or give the whole list."
    )


# -- what is wrong ---------------------------------------------------------------------------------


def _explain(error: ValidationError, source: Source, data: Block) -> str:
    """One sentence for the first problem, an unknown key before any other."""
    problem, loc, same = refusals.first(error.errors(), data)
    key = _dotted(loc)
    if problem["type"] == "extra_forbidden":
        what = f"unknown key `{key}`{nearest(str(loc[-1]), _valid_keys(loc[:-1]))}"
        if loc == ("extends",):
            what = "`extends` stands in a recipe's file alone, before what it changes"
        if loc[:-1] in (("train",), ("dpo",)):
            near = what.partition("; valid names")[0]
            what = f"{near} (what goes to TRL stands in `{loc[0]}.trainer`)"
    else:
        told = " is missing" if same[0]["type"] == "missing" else f": {refusals.said(same)}"
        what = f"`{key}`{told}" if key else told.removeprefix(": ")
    return f"{source.at(loc)}: {what}."


def _dotted(loc: Sequence[object]) -> str:
    return ".".join(map(str, loc))


def _valid_keys(loc: Sequence[object]) -> list[str]:
    """The keys allowed at a place of the recipe, following the models' annotations."""
    places: list[Any] = [Recipe]
    for key in loc:
        inner: list[Any] = []
        for place in places:
            inner += _alternatives(_below(place, str(key)))
        places = inner
    return [name for place in places for name in _names(place)]


def _below(annotation: Any, key: str) -> Any:
    """The annotation of what stands under a key, or of an entry of a list."""
    kind, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if key == "server":  # checked where it is written, by the class that it ends up in
        return ServerSpec
    if kind is dict:
        return inner[1]
    if kind in (tuple, list):
        return inner[0]
    return _names(annotation).get(key)


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
