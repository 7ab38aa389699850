"""Tool turns of a conversation as chat templates take them, and whether a template takes them.

In our rows a call is a turn of role `tool_call` whose content is JSON {name, arguments}, and what
the tool answered a turn of role `tool`. Templates want calls as `tool_calls` of an assistant's
message.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("tool_call", "tool")
UNKNOWN = "tool turns that the chat template does not know"

_PROBE = [
    {"role": "user", "content": "How warm is it?"},
    {"role": "tool_call", "content": '{"name": "thermometer", "arguments": {"place": "attic"}}'},
    {"role": "tool", "content": "31 degrees"},
    {"role": "assistant", "content": "It is warm."},
]
_SEEN = ("thermometer", "attic", "31 degrees", "It is warm.")


def has_tools(messages: Sequence[dict[str, str]]) -> bool:
    """Whether a conversation has tool turns."""
    return any(turn["role"] in ROLES for turn in messages)


def knows_tools(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Whether a chat template (its text) writes out tool calls and what tools answered."""
    try:
        text = tokenizer.apply_chat_template(
            as_templates_take(_PROBE), chat_template=template, tokenize=False
        )
    except Exception:  # a template raises errors of its own for roles that it refuses
        return False
    return all(word in str(text) for word in _SEEN)


def unfit(messages: Sequence[dict[str, str]], knows: bool) -> str | None:
    """Why a conversation cannot be rendered for its tool turns; None where it can. `knows`: what
    `knows_tools` says of the template."""
    return UNKNOWN if has_tools(messages) and not knows else None


def as_templates_take(messages: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """A conversation with its calls in the message of the assistant who makes them."""
    told: list[dict[str, Any]] = []
    for turn in messages:
        if turn["role"] != "tool_call":
            told.append(dict(turn))
            continue
        if not told or told[-1]["role"] != "assistant":
            told.append({"role": "assistant", "content": ""})
        told[-1].setdefault("tool_calls", []).append(
            {"type": "function", "function": _function(turn["content"])}
        )
    return told


def _function(text: str) -> dict[str, Any]:
    """A call's name and arguments; what is no call by its words is a call without a name."""
    try:
        call = json.loads(text)
    except ValueError:
        call = None
    if not isinstance(call, dict) or "name" not in call:
        return {"name": "", "arguments": text}
    return {"name": call["name"], "arguments": call.get("arguments", {})}
