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
from synth.chat.templates import worded

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


def behind_thinking(tokenizer: PreTrainedTokenizerBase) -> str:
    """What closes the thinking behind the generation prompt, so that the next token is the answer's
    first; "" where the prompt does so itself, or the model does not think.

    As the template writes it where that can be told not to think; a template that opens the
    thinking has it closed at once, and where a marker of its own leads to the answer (gpt-oss),
    that one stands there.
    """
    thinking = thinking_of(tokenizer)
    if thinking is None:
        return ""
    style, prompt = thinking.style, generation_prompt(tokenizer)
    if thinking.opened:
        return f"\n{style.close}\n\n"
    if style.close in prompt:
        return ""
    if style.open in style.close:
        return style.close
    told = generation_prompt(worded(tokenizer, None, {"enable_thinking": False}))
    if told != prompt and told.startswith(prompt):
        return told.removeprefix(prompt)
    asks = "enable_thinking" in str(tokenizer.get_chat_template())
    return f"{style.open}\n\n{style.close}\n\n" if asks else ""
