"""Conversations and texts as token ids, in which only the template's own control tokens are control
tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.pretrained.control_tokens import encode, shield
from synth.chat.templates import rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, str]],
    *,
    add_generation_prompt: bool,
    content_parts: bool = False,
) -> list[int]:
    """Token ids of a conversation, where special tokens spelled inside a message are plain text and
    only the template's own are control tokens.

    A conversation without such spellings gets exactly the ids of the rendered text.
    `content_parts`: the template wants a message's content as a list of parts (Llama-Guard-3-1B and
    4). Raises UserError when the template refuses the conversation.
    """
    safe, hidden = shield(tokenizer, messages)
    shown: list[Mapping[str, Any]] = [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if content_parts
        else message
        for message in safe
    ]
    text = rendered(tokenizer, shown, add_generation_prompt=add_generation_prompt)
    return encode(tokenizer, text, hidden)


def encode_question(
    tokenizer: PreTrainedTokenizerBase, text: str, before_answer: str = ""
) -> list[int]:
    """Token ids of a conversation of one user's message, up to the place of the answer.
    `before_answer`: control text that stands there besides."""
    (safe,), hidden = shield(tokenizer, [{"role": "user", "content": text}])
    asked = rendered(tokenizer, [safe], add_generation_prompt=True)
    return encode(tokenizer, asked + before_answer, hidden)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text without a chat template or BOS, where special tokens that it spells are
    plain text."""
    (safe,), hidden = shield(tokenizer, [{"role": "user", "content": text}])
    return encode(tokenizer, str(safe["content"]), hidden)


def pair(instruction: str, response: str) -> list[dict[str, str]]:
    """An instruction and its response as a conversation."""
    return [
        {"role": "user", "content": instruction},
        {"role": "assistant", "content": response},
    ]


def text_start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a text by itself: BOS, or nothing."""
    first = tokenizer("a")["input_ids"][0]
    return [int(first)] if first == tokenizer.bos_token_id else []
