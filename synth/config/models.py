"""A model behind a server, as a recipe states it. Imports pydantic only."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

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

    @field_validator("server")
    @classmethod
    def _check_server(cls, block: Verbatim) -> Verbatim:
        from core.wire import ServerSpec

        if "model" in block:
            raise ValueError("a `server:` block names no model; write `model:` beside it")
        ServerSpec(model="model", **block)
        return block
