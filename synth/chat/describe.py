"""What `magpie template` prints: a model's pre-query template, how it came about, and what the like
of it was tested against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.errors import UserError
from core.models import resolve, tokenizer
from synth.chat.families import UNTESTED, family_of, system_prompt_of
from synth.chat.templates import pre_query
from synth.chat.thinking import thinking_of


def described(
    model: str, system_prompt: str | None = None, chat_template: str | None = None
) -> dict[str, Any]:
    """Facts about a model's template, ready for JSON.

    `system_prompt` as in a recipe (None: what suits the family); `chat_template`: a Jinja file in
    place of the tokenizer's own. Raises UserError for an unknown model, a missing file, a file that
    is no valid Jinja (with its line), and a template that cannot be derived. `tested` speaks of the
    model's own chat template with its family's system prompt; whatever else is asked for is tested
    against nothing real.
    """
    words = tokenizer(resolve(model).path)
    overrides: dict[str, Any] = {}
    if chat_template is not None:
        file = Path(chat_template).expanduser()
        if not file.is_file():
            raise UserError(f"the chat template {file} does not exist; check --chat-template.")
        overrides["chat_template"] = file.read_text()
    meant = system_prompt_of(model, system_prompt)
    try:
        found = pre_query(words, meant, overrides)
    except UserError as error:
        line = getattr(error.__cause__, "lineno", None)  # of Jinja's syntax error
        if line is None or chat_template is None:
            raise
        raise UserError(
            f"{file}, line {line}: this chat template is no valid Jinja: {getattr(error.__cause__, 'message', '')}"
        ) from error
    family = family_of(model)
    as_tested = family is not None and not overrides and (meant or None) == family.system_prompt
    thinking = thinking_of(words, overrides.get("chat_template"))
    facts: dict[str, Any] = {
        "text": found.text,
        "token_ids": list(found.token_ids),
        "stop_token_ids": list(found.stop_token_ids),
        **found.derived,
        "system_prompt_is": "given"
        if system_prompt is not None
        else "the family's default"
        if meant is not None
        else "left out",
        "overridden": sorted(overrides),
        "family": family.name if family else None,
        "tested": family.tested if family and as_tested else UNTESTED,
    }
    if thinking:
        facts["thinking"] = {
            "open": thinking.style.open,
            "close": thinking.style.close,
            "opened_by_the_prompt": thinking.opened,
        }
    if family and family.advice:
        facts["advice"] = family.advice
    return facts
