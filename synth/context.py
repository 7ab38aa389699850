"""What computing a cell needs besides the rows and the recipe: models and their servers, evaluation
prompts, embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from core.errors import UserError
from core.models import UNRESOLVED, Model, tokenizer
from core.sending.account import Account
from core.sending.purse import Ledger, Purse
from core.servers import Endpoint, Servers
from core.serving.weights import spec_at
from core.store import digest
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
        gives any. Raises UserError for a service that chats, of which none is known."""
        if self.config is not None and self.config.hosted:
            raise UserError(
                f"{self.model.name} is asked through chats (`api: chat`), but this needs its "
                "tokenizer: take a model that is asked by token ids."
            )
        own = tokenizer(self.model.path, self.model.commit)
        if self.config is None:
            return own
        template = chat_template_of(self.config)
        return worded(own, template, self.config.chat_template_kwargs)


Conversation = Sequence[Mapping[str, str]]
"""Messages {role, content}."""


@dataclass(frozen=True)
class Student:
    """The model that the recipe fine-tunes, as its training sees rows; handed over by the recipe,
    because only the training knows its template."""

    base: str
    """As the recipe names it."""
    revision: str | None
    determines: Any
    """What stands for the rendering in a key."""
    encode: Callable[[Sequence[Conversation]], list[tuple[list[int], list[int]]]]
    """Token ids of conversations, and which of them are supervised (1)."""


@dataclass(frozen=True)
class Context:
    """Handed to every function that makes keys of cells. `root`: the store's folder;
    `eval_prompts`: JSONL {id, prompt, benchmark} of the prompts that the models will be evaluated
    on, where the recipe evaluates; `spent`: the folder of the experiment's ledger, what hosted
    models cost (default: in the store)."""

    root: Path
    resolve: Resolve
    eval_prompts: Path | None = None
    spent: Path | None = None
    student: Student | None = None
    """What is trained, where some arm ranks rows by it."""

    def serving(self, servers: Servers, say: Callable[[str], None] = lambda line: None) -> Serving:
        """The same with servers to ask."""
        given = {each.name: getattr(self, each.name) for each in fields(Context)}
        return Serving(**given, servers=servers, say=say)

    def ledger(self) -> Ledger:
        """What the experiment paid to hosted models."""
        return Ledger(self.spent or self.root / "spent")

    def revision(self, config: ModelConfig) -> Any:
        """What stands for a model in a key: its revision, or its name where that is not known; and
        a chat template that is not its own. Of a service that chats: the name that it knows."""
        if config.hosted:
            return {"api": "chat", "model": config.model, "revision": config.revision}
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
    progress: Callable[[int, int, str], None] = lambda done, total, unit: None
    """Tells how many of how many units are done."""
    instructions: Callable[[pl.DataFrame], Iterator[pl.Series]] = lambda rows: iter(
        [rows["instruction"]]
    )
    """The instructions of rows, slice by slice: the rows of a measure of the whole pool come
    without them."""

    def serve(self, config: ModelConfig) -> Served:
        """The model behind its server; what a hosted one costs is counted."""
        model, spec = spec_of(config, self.resolve)
        account = self._account(config) if config.server.get("urls") else None
        return Served(model, self.servers.serve(spec, account), config)

    def _account(self, config: ModelConfig) -> Account | None:
        """With what a hosted model's answers are bought; None where no money is counted and the
        server takes token ids."""
        if not config.hosted and config.prices is None:
            return None
        ledger = self.ledger()
        prices, budget = config.prices, config.budget
        known = (config.model, ledger.folder, prices, budget)
        if known not in self.servers.accounts:
            journal = self.root / "paid" / digest(config.model)[:16]
            account = Account(config.model, Purse(prices, budget), ledger, journal)
            self.servers.accounts[known] = account
        return self.servers.accounts[known]


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
    """The resolved model and the server that it is to be asked through; a service that chats knows
    its own by name."""
    if config.hosted:
        known = Model(config.model, config.model, config.revision or UNRESOLVED)
        return known, ServerSpec(model=config.model, **config.server)
    model = resolve(config.model, config.revision)
    return model, spec_at(model, config.server)
