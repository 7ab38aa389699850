"""A model behind a server, as a recipe states it. Imports pydantic only."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from core.sending.purse import Prices

Verbatim = dict[str, Any]
"""Settings of a library, passed through as they are."""

STRICT = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelConfig(BaseModel):
    """A model behind an OpenAI-compatible server."""

    model_config = STRICT
    model: str
    """Hub id, local folder, or `embedded/NAME` for a model that pip delivered."""
    revision: str | None = None
    """Hub commit, branch or tag."""
    server: Verbatim = Field(default_factory=dict)
    """Its server, as core.wire.ServerSpec has it: `args` (vLLM's, verbatim), env, replicas,
    max_in_flight, timeout; or `urls` (and `api_key_env`) of servers that run already."""
    chat_template: str | None = None
    """A Jinja file in place of the tokenizer's chat template."""
    chat_template_kwargs: Verbatim = Field(default_factory=dict)
    """Variables of the chat template, e.g. {enable_thinking: false} for Qwen3 and SmolLM3,
    {reasoning_effort: low} for gpt-oss."""
    api: Literal["completions", "chat"] = "completions"
    """How it is asked. `completions` sends token ids, to our own servers and to `urls` that take
    them; `chat` sends messages to `server.urls`, any OpenAI-compatible service, under the model
    name that it knows: no tokenizer is needed, and control tokens are the service's business."""
    prices: Prices | None = None
    """With prices, the money that a hosted model costs is counted, and `budget` can stop it."""
    budget: float | None = Field(default=None, gt=0)
    """The most that this model may cost this experiment in all, over all its runs, in the currency
    of `prices`. When it is reached the run stops with a sentence; everything bought is kept."""

    @property
    def hosted(self) -> bool:
        """Whether it is a service that chats: nothing of it is on this machine."""
        return self.api == "chat"

    @model_validator(mode="after")
    def _hosting(self) -> ModelConfig:
        if self.hosted and not self.server.get("urls"):
            raise ValueError("`api: chat` is for a service; give its address in `server.urls`")
        if self.hosted and (self.chat_template or self.chat_template_kwargs):
            raise ValueError(
                "with `api: chat` the service renders the conversation: it takes no "
                "`chat_template` (and parameters of its own stand in the sampling)"
            )
        if (self.prices or self.budget) and not self.server.get("urls"):
            raise ValueError("`prices` and `budget` are for a hosted model; give its `server.urls`")
        if self.budget is not None and self.prices is None:
            raise ValueError("`budget` needs `prices`: without them no money is counted")
        return self

    @field_validator("server")
    @classmethod
    def _check_server(cls, block: Verbatim) -> Verbatim:
        return checked_server(block)


def checked_server(block: Verbatim) -> Verbatim:
    """A `server:` block as it is. Raises ValueError for what the class that it ends up in
    refuses."""
    from core.wire import ServerSpec

    if "model" in block:
        raise ValueError("a `server:` block names no model; write `model:` beside it")
    ServerSpec(model="model", **block)
    return block
