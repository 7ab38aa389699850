"""What is known of model families beyond their tokenizers: data of `families.json`, looked up by a
model's name or its vocabulary.

Pre-query templates are derived from the tokenizer's chat template (synth/chat/pre_query.py). A
family adds what cannot be derived: the template of a tokenizer that has none, a default system
prompt that must stay, what was tested, advice. Thinking is recognised by the vocabulary, not the
name.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Family:
    """One family. `match`: found in a hub id or a folder's own name (any case); `tested`: against
    what its pre-query template is tested; `system_prompt`: what a recipe without one means
    ("default": the chat template's own stays); `plain_headers`: turns open with plain text, so that
    strings end an instruction beside token ids."""

    name: str
    match: str
    tested: str
    chat_template: str | None = None
    source: str | None = None
    system_prompt: str | None = None
    advice: str | None = None
    plain_headers: bool = False


@dataclass(frozen=True)
class ThinkingStyle:
    """How a kind of model writes its thinking. `vocabulary`: the tokens that such a tokenizer has;
    `open` and `close` stand around the thinking; patterns ("" for none): `clean` is a paragraph
    break of the thinking, `end` goes from the end of the answer."""

    name: str
    vocabulary: Collection[str]
    open: str
    close: str
    clean: str
    end: str
    models: str


UNTESTED = "against nothing real"
"""`tested` of a model that no family matches, and of another chat template or system prompt than
the family's: only the derivation is tested."""


def family_of(model: str) -> Family | None:
    """The first family whose pattern is found in the model's name: all of a hub id, and of a folder
    its own name, whatever folders it lies in."""
    named = _name(model)
    for family in _data()[0]:
        if re.search(family.match, named, re.IGNORECASE):
            return family
    return None


def _name(model: str) -> str:
    path = Path(model).expanduser()
    if not path.is_dir() and re.fullmatch(r"\w[\w.-]*/[\w.-]+", model):
        return model
    path = path.absolute()  # symbolic links keep the name that they were given
    cached = path.parent.parent.name  # the hub's cache: models--organisation--name/snapshots/commit
    in_cache = path.parent.name == "snapshots" and cached.startswith("models--")
    return cached.removeprefix("models--").replace("--", "/") if in_cache else path.name


def system_prompt_of(model: str, asked: str | None) -> str | None:
    """The system prompt that a recipe means: its own, else what suits the family (None: none; ""
    always leaves it out)."""
    family = family_of(model)
    return asked if asked is not None or family is None else family.system_prompt


def has_plain_headers(model: str) -> bool:
    """Whether a model's family opens turns with plain text, as its name tells without a
    tokenizer."""
    family = family_of(model)
    return family is not None and family.plain_headers


def thinking_style(vocabulary: Collection[str], chat_template: str | None) -> ThinkingStyle | None:
    """The style whose tokens are all in the vocabulary, or are all written in the chat template;
    None for a model that does not think."""
    for style in _data()[1]:
        written = all(token in (chat_template or "") for token in style.vocabulary)
        if written or all(token in vocabulary for token in style.vocabulary):
            return style
    return None


@functools.cache
def _data() -> tuple[tuple[Family, ...], tuple[ThinkingStyle, ...]]:
    data = json.loads(Path(__file__).with_name("families.json").read_text())
    families = tuple(Family(**family) for family in data["families"])
    return families, tuple(ThinkingStyle(**style) for style in data["thinking"])
