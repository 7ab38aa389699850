"""Thinking models: what they thought is stored beside the answer, never inside it, and a thought
that was cut off is a failed cell.

The markers are data (`families.json`, "thinking"). Whether the prompt itself opens the thinking
(DeepSeek-R1, Qwen3-Thinking), or opens and closes it (Qwen3 with `enable_thinking: false`), is read
off the rendered generation prompt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synth.chat.families import ThinkingStyle, thinking_style
from synth.chat.pre_query import generation_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Thinking:
    """How one model's texts are taken apart. `opened`: the generation prompt ends inside the
    thinking; `sampling`: what requests need besides."""

    style: ThinkingStyle
    opened: bool
    sampling: dict[str, Any]

    def split(self, text: str, *, opened: bool | None = None) -> tuple[str | None, str | None]:
        """(thinking or None, answer); the answer is None when the thinking is not closed.

        A marker inside the answer, or in a text that does not begin with thinking, is content.
        `opened` overrides what the prompt did.
        """
        style = self.style
        begins = self.opened if opened is None else opened
        if not begins and not text.lstrip().startswith(style.open):
            return None, text
        thought, closed, answer = text.partition(style.close)
        if style.clean:
            thought = re.sub(style.clean, "\n\n", thought.strip())
        thought = thought.strip().removeprefix(style.open)
        if style.end:
            answer = re.sub(style.end, "", answer)
        return thought.strip() or None, answer.strip() if closed else None


def thinking_of(tokenizer: PreTrainedTokenizerBase) -> Thinking | None:
    """How this tokenizer's model thinks, or None. Raises UserError when the chat template refuses a
    one-message conversation."""
    template = str(tokenizer.get_chat_template()) if tokenizer.chat_template else None
    style = thinking_style(tokenizer.get_vocab(), template)
    if style is None:
        return None
    prompt = generation_prompt(tokenizer)
    opened = prompt.rfind(style.open) > prompt.rfind(style.close)
    # Servers leave special tokens out of a text unless told otherwise, and with them the markers.
    hidden = any(
        token.special and token.content in style.vocabulary
        for token in tokenizer.added_tokens_decoder.values()
    )
    return Thinking(style, opened, {"skip_special_tokens": False} if hidden else {})
