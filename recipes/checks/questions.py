"""What a recipe asks of other libraries, as questions that they judge one by one: each distinct
value once, with the place where it was written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from core.errors import UserError
from core.files import file_digest
from core.serving.adapters import arguments, rank_of
from core.serving.devices import gpus
from core.store import content_of_files, digest
from eval.config import TasksConfig
from eval.protocols import JudgeConfig
from recipes.blocks import adapters
from recipes.checks.sampled import Sampled, of_evaluation, of_synthesis
from recipes.schema import Recipe
from synth.config.models import ModelConfig
from synth.context import Resolve
from train.config import DpoConfig, TrainConfig

Place = tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """One value that one library judges; `content` is that of the files that it names."""

    library: str
    kind: str
    place: Place
    value: Mapping[str, Any]
    content: object = None

    def asked(self) -> dict[str, Any]:
        """As the checker reads it."""
        return {"kind": self.kind, "place": ".".join(self.place), "value": self.value}


def of_recipe(recipe: Recipe, resolve: Resolve) -> list[Question]:
    """The questions of a recipe; equal ones once, where they were written first. Raises UserError
    where a model is not found whose server the recipe describes."""
    found: dict[str, Question] = {}
    for question in _all(recipe, resolve):
        known = [question.library, question.kind, question.value, question.content]
        found.setdefault(digest(known), question)
    return list(found.values())


def _all(recipe: Recipe, resolve: Resolve) -> Iterator[Question]:
    yield from map(_sampling, filter(_ours, [*of_synthesis(recipe.synth)]))
    for place, model, server in _served(recipe):
        if not server.get("urls"):
            yield _engine(place, model, server, resolve)
    if recipe.eval is not None:
        yield from map(_sampling, filter(_ours, [*of_evaluation(recipe.eval)]))
        if recipe.eval.tasks is not None:
            yield _tasks(recipe.eval.tasks, _base(recipe, resolve))
    for config in (recipe.train, recipe.dpo):
        if config is not None:
            yield training(config)


def _ours(sampled: Sampled) -> bool:
    """Whether a server of ours samples so, and anything is said: what others' servers take is
    theirs to say."""
    return not sampled.server.get("urls") and bool(sampled.sampling)


def _sampling(sampled: Sampled) -> Question:
    value = {"api": sampled.api, "sampling": dict(sampled.sampling)}
    return Question("vllm", "sampling", tuple(sampled.place.split(".")), value)


def training(config: TrainConfig | DpoConfig) -> Question:
    """The block of a training, without what no library judges; files count by content."""
    neutral: dict[str, Any] = {"seeds": (0,), "revision": None, "machine_rank": None}
    neutral |= {"main_process_ip": None, "main_process_port": None, "grace": 0}
    if not config.model_init and not (config.lora or {}).get("target_modules"):
        neutral["base"] = ""
    files = [config.deepspeed, config.chat_template_path, config.inference_template]
    contents = [content_of_files(each) if isinstance(each, str) else None for each in files]
    judged = config.located().model_copy(update=neutral)
    value = {"block": config.block, "config": judged.model_dump(mode="json")}
    return Question("trl", "training", (config.block, "trainer"), value, [contents, bool(gpus())])


def _base(recipe: Recipe, resolve: Resolve) -> str | None:
    """The folder of what is trained, where it is here: its configuration is every checkpoint's."""
    base = recipe.train.base if recipe.train is not None else None
    if base is None or not _is_local(base):
        return None
    folder = _folder(base, resolve)
    return str(folder) if (folder / "config.json").is_file() else None


def _tasks(config: TasksConfig, base: str | None) -> Question:
    """The block of lm-eval; `base` where something is said of how a model is loaded."""
    names = [
        task if isinstance(task, str) else str(task.get("task") or task.get("group"))
        for task in config.tasks
    ]
    value = config.model_dump(mode="json", include={"tasks", "backend", "model_args", "evaluate"})
    value["base"] = base if config.model_args else None
    contents = [content_of_files(name) for name in names]
    return Question("lm_eval", "tasks", ("eval", "tasks"), value, contents)


def _engine(
    place: Place, model: str | None, server: Mapping[str, Any], resolve: Resolve
) -> Question:
    """The arguments of a server of ours; `model`: of a model that is here its folder, whose
    configuration decides what fits."""
    folder, content = None, None
    if model is not None and _is_local(model):
        path = _folder(model, resolve)
        if (path / "config.json").is_file():
            folder, content = str(path), file_digest(path / "config.json")
    value = {"args": dict(server.get("args") or {}), "model": folder}
    return Question("vllm", "engine", (*place, "server", "args"), value, [content, bool(gpus())])


def _folder(model: str, resolve: Resolve) -> Path:
    """Where a model lies; nowhere for one that cannot be had, which is said where it is needed."""
    try:
        return Path(resolve(model, None).path)
    except UserError:
        return Path("nowhere")


def _is_local(model: str) -> bool:
    return model.startswith("embedded/") or Path(model).expanduser().is_dir()


def models(block: Any, at: Place) -> Iterator[tuple[Place, ModelConfig | JudgeConfig]]:
    """Every model with a server block below a block of a recipe, with its place."""
    if isinstance(block, (ModelConfig, JudgeConfig)):
        yield at, block
    if isinstance(block, BaseModel):
        inside = [(name, getattr(block, name)) for name in type(block).model_fields]
    elif isinstance(block, tuple):
        inside = [(str(number), each) for number, each in enumerate(block)]
    else:
        inside = list(block.items()) if isinstance(block, dict) else []
    for name, each in inside:
        yield from models(each, (*at, name))


def _served(recipe: Recipe) -> Iterator[tuple[Place, str | None, Mapping[str, Any]]]:
    """(place, model, its server block) of everything that vLLM serves here; a checkpoint's model
    is not known yet, but it fits what its base does."""
    for place, block in models(recipe, ()):
        yield place, block.model, block.server
    config = recipe.eval
    base = recipe.train.base if recipe.train is not None else None
    if recipe.synth.tags.fit.server:
        yield ("synth", "tags", "fit"), base, recipe.synth.tags.fit.server
    if config is None:
        return
    for place, server in adapters.servers(config):
        yield place, base, _with_adapters(recipe, server)


def _with_adapters(recipe: Recipe, server: Mapping[str, Any]) -> Mapping[str, Any]:
    """A checkpoint's server, with what vLLM is told where it holds adapters."""
    lora = recipe.train.lora if recipe.train is not None else None
    if lora is None or recipe.eval is None or recipe.eval.lora == "merged":
        return server
    told = arguments(rank_of(lora))
    return {**server, "args": {**told, **(server.get("args") or {})}}
