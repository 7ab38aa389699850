"""Chat templates: which one a model has, and conversations rendered by it.

Families whose tokenizers come without a chat template are data: `families.json`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from synth.chat.families import family_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1
"""Part of every key of a generated column; raised when the same tokenizer and settings would give
other token ids."""

_SENTINEL = "Xq7UserTurnHereXq7"


def template_of(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """(the chat template, where it comes from): the tokenizer's own, or that of a known family
    without one. Raises UserError where neither is there."""
    if tokenizer.chat_template:
        return str(tokenizer.get_chat_template()), "the tokenizer's chat template"
    family = family_of(str(tokenizer.name_or_path))
    if family is not None and family.chat_template:
        return family.chat_template, f"families.json: {family.name} ({family.source})"
    raise UserError(
        f"the tokenizer of {tokenizer.name_or_path} has no chat template, "
        "so there is no pre-query template: use an instruction-tuned model, "
        "or give `chat_template` of the model, or `synth.pre_query_template`, in the recipe."
    )


def worded(
    tokenizer: PreTrainedTokenizerBase, chat_template: str | None, variables: Mapping[str, Any]
) -> PreTrainedTokenizerBase:
    """A tokenizer with another chat template, or with variables of its template set, e.g.
    {"enable_thinking": False}; the given one stays as it is.

    Set within the template, they hold wherever it is rendered. Raises UserError where there is no
    template to set them in.
    """
    if chat_template is None and not variables:
        return tokenizer
    template = chat_template or template_of(tokenizer)[0]
    # Jinja reads Python's literals; through JSON a dictionary's keys are strings.
    values = json.loads(json.dumps(dict(variables)))
    settings = [f"{{%- set {name} = {value!r} -%}}" for name, value in sorted(values.items())]
    other = copy.copy(tokenizer)
    other.chat_template = "".join(settings) + template
    return other


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool,
) -> str:
    """A conversation as the chat template writes it. Raises UserError when the template refuses it,
    or is no valid Jinja."""
    from jinja2 import TemplateError, TemplateSyntaxError

    template, _ = template_of(tokenizer)
    named = f"the chat template of {tokenizer.name_or_path}"
    try:
        text = tokenizer.apply_chat_template(
            list(messages),
            chat_template=template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except TemplateSyntaxError as error:
        raise UserError(
            f"{named} is no valid Jinja in line {error.lineno}: {error.message}"
        ) from error
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(f"{named} refuses a conversation with roles [{roles}]: {error}") from error
    return str(text)


def around_user(
    tokenizer: PreTrainedTokenizerBase,
    before: Sequence[Mapping[str, str]] = (),
    *,
    add_generation_prompt: bool = True,
) -> tuple[str, str]:
    """What the chat template writes (before, after) a user's message that follows the messages
    `before`: a sentinel is rendered in its place, and the text cut there.

    Raises UserError where the template writes the message otherwise, or more than once.
    """
    messages = [*before, {"role": "user", "content": _SENTINEL}]
    text = rendered(tokenizer, messages, add_generation_prompt=add_generation_prompt)
    if text.count(_SENTINEL) != 1:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path} does not write a user's message "
            "exactly once, so its pre-query template cannot be derived; give it as "
            "`synth.pre_query_template` in the recipe, or another `chat_template` of the model."
        )
    head, _, tail = text.partition(_SENTINEL)
    return head, tail
