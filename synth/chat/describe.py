"""What `magpie template` prints: a model's pre-query template, how it came about, and what the like
of it was tested against."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from core.models import tokenizer, tokenizer_path
from synth.chat.families import UNTESTED, family_of, system_prompt_of
from synth.chat.pre_query import PreQuery, pre_query
from synth.chat.templates import worded
from synth.chat.thinking import thinking_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def described(
    model: str, system_prompt: str | None = None, chat_template: str | None = None
) -> dict[str, Any]:
    """Facts about a model's template, ready for JSON; its tokenizer is all that is needed.

    `system_prompt` as in a recipe (None: what suits the family); `chat_template`: a Jinja file in
    place of the tokenizer's own. Raises UserError for an unknown model, a missing file, a file that
    is no valid Jinja (with its line), and a template that cannot be derived. `tested` speaks of the
    model's own chat template with its family's system prompt; whatever else is asked for is tested
    against nothing real.
    """
    own = tokenizer(tokenizer_path(model))
    file = Path(chat_template).expanduser() if chat_template is not None else None
    if file is not None and not file.is_file():
        raise UserError(f"the chat template {file} does not exist; check --chat-template.")
    shown = worded(own, file.read_text(), {}) if file else own
    meant = system_prompt_of(model, system_prompt)
    template = _derived(shown, meant, file)
    family = family_of(model)
    name = family.name if family else None
    facts: dict[str, Any] = {
        "text": template.text,
        "token_ids": list(template.token_ids),
        "stop_token_ids": list(template.stop_token_ids),
        "stop_strings": list(template.stop_strings),
        **template.derived,
        "system_prompt_is": _whence(system_prompt, meant),
        "overridden": ["chat_template"] if file else [],
        "family": name,
        "tested": UNTESTED,
    }
    if file:
        facts["source"] = "the recipe's chat template"
    elif family and (meant or None) == family.system_prompt:
        facts["tested"] = family.tested
    thinking = thinking_of(shown)
    if thinking:
        facts["thinking"] = {
            "open": thinking.style.open,
            "close": thinking.style.close,
            "opened_by_the_prompt": thinking.opened,
        }
    if family and family.advice:
        facts["advice"] = family.advice
    return facts


def _derived(shown: PreTrainedTokenizerBase, meant: str | None, file: Path | None) -> PreQuery:
    """The pre-query template, where a syntax error in `file` is one of that file."""
    try:
        return pre_query(shown, meant)
    except UserError as error:
        line = getattr(error.__cause__, "lineno", None)  # of Jinja's syntax error
        if line is None or file is None:
            raise
        problem = getattr(error.__cause__, "message", "")
        raise UserError(
            f"{file}, line {line}: this chat template is no valid Jinja: {problem}"
        ) from error


def _whence(given: str | None, meant: str | None) -> str:
    if given is not None:
        return "given"
    return "left out" if meant is None else "the family's default"
