"""What computing a cell needs besides the rows and the recipe: models and their servers, evaluation
prompts, embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from core.errors import UserError
from core.models import Model, tokenizer
from core.servers import Endpoint, Servers
from core.wire import ServerSpec
from synth.chat.templates import worded
from synth.config.models import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Resolve = Callable[[str, str | None], Model]
"""`core.models.resolve`, or a table of what was resolved before."""


@dataclass(frozen=True)
class Served:
    """A model ready to be asked: nothing starts before the first request."""

    model: Model
    endpoint: Endpoint
    config: ModelConfig | None = None
    """What the recipe says of it, where it comes from one."""

    @property
    def spec(self) -> ServerSpec:
        """Its server's settings."""
        return self.endpoint.spec

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, with the recipe's chat template and template variables where it
        gives any."""
        own = tokenizer(self.model.path)
        if self.config is None:
            return own
        template = chat_template_of(self.config)
        return worded(own, template, self.config.chat_template_kwargs)


@dataclass(frozen=True)
class Context:
    """Handed to every function that makes keys of cells. `root`: the store's folder;
    `eval_prompts`: JSONL {id, prompt, benchmark} of the prompts that the models will be evaluated
    on, where the recipe evaluates."""

    root: Path
    resolve: Resolve
    eval_prompts: Path | None = None

    def serving(self, servers: Servers, say: Callable[[str], None] = lambda line: None) -> Serving:
        """The same with servers to ask."""
        return Serving(self.root, self.resolve, self.eval_prompts, servers=servers, say=say)

    def revision(self, config: ModelConfig) -> Any:
        """What stands for a model in a key: its revision, or its name where that is not known; and
        a chat template that is not its own."""
        model = self.resolve(config.model, config.revision)
        known = model.revision != "unresolved"
        revision: Any = model.revision if known else [model.name, "unresolved"]
        template = {
            "chat_template": chat_template_of(config),
            "chat_template_kwargs": config.chat_template_kwargs,
        }
        given = {name: value for name, value in template.items() if value}
        return {"model": revision, **given} if given else revision


@dataclass(frozen=True, kw_only=True)
class Serving(Context):
    """Handed to every function that computes cells: the same with servers to ask."""

    servers: Servers
    say: Callable[[str], None]
    """Tells the person watching."""
    instructions: Callable[[pl.DataFrame], Iterator[pl.Series]] = lambda rows: iter(
        [rows["instruction"]]
    )
    """The instructions of rows, slice by slice: the rows of a measure of the whole pool come
    without them."""

    def serve(self, config: ModelConfig) -> Served:
        """The model behind its server."""
        model, spec = spec_of(config, self.resolve)
        return Served(model, self.servers.serve(spec), config)


def chat_template_of(config: ModelConfig) -> str | None:
    """The text of the chat template that the recipe gives a model; None for the tokenizer's own.
    Raises UserError when the file is missing."""
    if config.chat_template is None:
        return None
    file = Path(config.chat_template).expanduser()
    if not file.is_file():
        raise UserError(
            f"the chat template {file} of {config.model} does not exist; check `chat_template`."
        )
    return file.read_text()


def spec_of(config: ModelConfig, resolve: Resolve) -> tuple[Model, ServerSpec]:
    """The resolved model and the server that it is to be asked through."""
    model = resolve(config.model, config.revision)
    block = dict(config.server)
    if config.revision:
        block["args"] = {"revision": config.revision, **block.get("args", {})}
    return model, ServerSpec(model=model.path, **block)
