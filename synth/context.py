"""What computing a cell needs besides the rows and the recipe: models and their servers, evaluation
prompts, embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from core.errors import UserError
from core.models import Model, tokenizer
from core.servers import Endpoint, Servers
from core.wire import ServerSpec
from synth.chat.templates import worded
from synth.config import ModelConfig

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
        words = tokenizer(self.model.path)
        return (
            worded(words, chat_template_of(self.config), self.config.chat_template_kwargs)
            if self.config
            else words
        )


@dataclass(frozen=True)
class Context:
    """Handed to every function that keys or computes cells. `root`: the store's folder;
    `eval_prompts`: JSONL {id, prompt, benchmark} of the prompts that the models will be evaluated
    on, where the recipe evaluates."""

    root: Path
    resolve: Resolve
    eval_prompts: Path | None = None
    servers: Servers | None = None
    say: Callable[[str], None] = lambda line: None
    """Tells the person watching."""
    instructions: Callable[[pl.DataFrame], Iterator[pl.Series]] = lambda rows: iter(
        [rows["instruction"]]
    )
    """The instructions of rows, slice by slice: the rows of a measure of the whole pool come
    without them."""

    def serving(self, servers: Servers, say: Callable[[str], None] = lambda line: None) -> Context:
        """The same with servers to ask."""
        return replace(self, servers=servers, say=say)

    def revision(self, config: ModelConfig) -> Any:
        """What stands for a model in a key: its revision, or its name where that is not known; and
        a chat template that is not its own."""
        found = self.resolve(config.model, config.revision)
        model: Any = (
            found.revision if found.revision != "unresolved" else [found.name, "unresolved"]
        )
        said = {
            "chat_template": chat_template_of(config),
            "chat_template_kwargs": config.chat_template_kwargs,
        }
        return (
            {"model": model, **{k: v for k, v in said.items() if v}}
            if any(said.values())
            else model
        )

    def serve(self, config: ModelConfig) -> Served:
        """The model behind its server."""
        assert self.servers is not None, "this context only makes keys"
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
