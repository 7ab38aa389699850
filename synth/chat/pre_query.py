"""Pre-query templates: the token ids up to the place where a user's message would begin, and the
ids and strings that end it.

Everything is derived from the tokenizer's own chat template by difference: a conversation is
rendered with a sentinel as the user's message and cut at the sentinel. The first turn so has
exactly the BOS that the template writes, and a follow-up turn has no empty assistant header and no
second BOS (distilabel 1.5.3 sends both).
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from core.models import files_of
from core.pretrained.control_tokens import control_tokens, encode, shield
from synth.chat.encoding import pair
from synth.chat.templates import around_user, template_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT = "default"
"""`system_prompt: default` keeps whatever the chat template puts by itself."""

STOP_STRINGS = 1
"""Part of every key of texts drawn from a family with plain turn headers; raised when the same
template would give other stop strings."""

# Special tokens that end something in every family's spelling: <|end_of_text|>, <|endoftext|>,
# <|eot_id|>, </s>, <end_of_turn>, <|EOT|> ...
_ENDING = re.compile(r"^<[|｜]?(/s|end|im_end|eo[stm])", re.IGNORECASE)


@dataclass(frozen=True)
class PreQuery:
    """A pre-query template: its text, the token ids to send, the token ids and the strings that
    end the user's message, and how each was found."""

    text: str
    token_ids: tuple[int, ...]
    stop_token_ids: tuple[int, ...]
    stop_strings: tuple[str, ...] = ()
    derived: dict[str, Any] = field(default_factory=dict)


def ending(
    token_ids: Sequence[int], strings: Sequence[str], sampling: Mapping[str, Any]
) -> dict[str, Any]:
    """The stops of a request for a user's message: those of its template and those of the recipe's
    own sampling; `stop` only where there is any."""
    own = sampling.get("stop") or ()
    words = list(dict.fromkeys([*strings, *([own] if isinstance(own, str) else own)]))
    ids = sorted({*token_ids, *sampling.get("stop_token_ids", ())})
    return {"stop_token_ids": ids, **({"stop": words} if words else {})}


def pre_query(
    tokenizer: PreTrainedTokenizerBase,
    system_prompt: str | None = DEFAULT,
    text: str | None = None,
) -> PreQuery:
    """The pre-query template of a tokenizer (Magpie, arXiv 2406.08464, section 2.1).

    `system_prompt`: "default" keeps what the template puts by itself, None or "" leaves it out, any
    other text is used as the system message. `text`: the recipe's own, in place of what would be
    derived. Raises UserError when the tokenizer has no chat template and no known family, and when
    the template refuses or ignores the system prompt.
    """
    notes: list[str] = []
    if text:
        source = "the recipe's text"
        header, after = _known_header(tokenizer, notes)
    else:
        template, source = template_of(tokenizer)
        header, after = _user_header(tokenizer)
        text = _first_turn(tokenizer, system_prompt, header, notes)
        if "strftime_now" in template and system_prompt == DEFAULT:
            notes.append(
                "the template's default system prompt holds today's date: "
                "it differs from day to day"
            )
    ids, left = _stable_ids(tokenizer, text)
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == (bos, bos):
        notes.append("the text begins with two BOS tokens")
    if text.endswith(" ") and left:
        notes.append(
            "the trailing space is left to the model, whose tokenizer joins it to the next word"
        )
    stop = _stop_ids(tokenizer, after + header)
    strings = _stop_strings(tokenizer, after, header, notes)
    derived = {
        "source": source,
        "system_prompt": system_prompt or None,
        "user_header": header,
        "left_to_model": left,
        "stop_tokens": tokenizer.convert_ids_to_tokens(list(stop)),
        "notes": notes,
    }
    return PreQuery(text, ids, stop, strings, derived)


def follow_up(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> list[int]:
    """Token ids up to the place of the next user message of a conversation that ends with the
    assistant, by difference.

    `messages` are {"role", "content"}, a system message among them if wanted. Raises UserError when
    the last one is not the assistant's.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise UserError(
            "a follow-up turn continues a conversation whose last message is the assistant's; "
            "give one that ends so."
        )
    safe, hidden = shield(tokenizer, messages)
    before, _ = around_user(tokenizer, safe, add_generation_prompt=False)
    if not before.endswith(" "):
        return encode(tokenizer, before, hidden)
    return list(_stable_ids(tokenizer, before, hidden)[0])


def generation_prompt(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the chat template writes after a user's message so that the assistant speaks; some
    templates open a think block there."""
    return around_user(tokenizer)[1]


def _first_turn(
    tokenizer: PreTrainedTokenizerBase, system_prompt: str | None, header: str, notes: list[str]
) -> str:
    """The text before the first user message, with the system prompt that was asked for."""
    if system_prompt and system_prompt != DEFAULT:
        before, _ = around_user(tokenizer, [{"role": "system", "content": system_prompt}])
        if system_prompt.strip() not in before:
            raise UserError(
                f"the chat template of {tokenizer.name_or_path} ignores a system prompt; "
                "leave `system_prompt` out."
            )
        return before
    before, _ = around_user(tokenizer)
    if system_prompt == DEFAULT:
        return before
    if not before.endswith(header):
        notes.append(
            "the first user turn is rendered unlike later ones, "
            "so a default system prompt could not be told apart and stays"
        )
        return before
    lead = before.removesuffix(header)
    for token in control_tokens(tokenizer):
        lead = lead.replace(token, "")
    if not lead.strip():
        return before  # nothing but BOS and the like: this template puts no system prompt by itself
    notes.append("the template's default system prompt was cut")
    bos = str(tokenizer.bos_token or "")
    return header if header.startswith(bos) or not before.startswith(bos) else bos + header


def _known_header(tokenizer: PreTrainedTokenizerBase, notes: list[str]) -> tuple[str, str]:
    """As `_user_header`, and nothing where that cannot be derived: the recipe gives the text."""
    try:
        template_of(tokenizer)
    except UserError:
        return "", ""
    try:
        return _user_header(tokenizer)
    except UserError as error:
        notes.append(
            f"only the tokenizer's own end tokens are known to end an instruction: {error}"
        )
        return "", ""


def _user_header(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """(what opens a user turn, what follows a user's message when the assistant is to speak)."""
    answer = "Xq7AnswerXq7"
    after = generation_prompt(tokenizer)
    before, _ = around_user(tokenizer, pair("Hello", answer), add_generation_prompt=False)
    header = before.rpartition(answer)[2].lstrip()
    # The assistant's end-of-turn token comes first. A template that writes none has only the header
    # there.
    openers = [token for token in control_tokens(tokenizer) if header.startswith(token)]
    if not openers:
        return header, after
    rest = header.removeprefix(max(openers, key=len)).lstrip("\n")
    return (rest if rest.strip() else header), after


def _stable_ids(
    tokenizer: PreTrainedTokenizerBase, text: str, hidden: Mapping[str, str] = MappingProxyType({})
) -> tuple[tuple[int, ...], str]:
    """Token ids of `text` that stay the same whatever word follows, and the end of the text that
    they leave to the model.

    A tokenizer that writes " What" as one token would never continue a lone " ": such a space is
    not sent.
    """
    alone = encode(tokenizer, text, hidden)
    words = ("What", "Please", "I", "1", "(")
    follow = [encode(tokenizer, text + word, hidden) for word in words]
    agree = itertools.takewhile(lambda ids: len(set(ids)) == 1, zip(alone, *follow, strict=False))
    same = len(list(agree))
    left = str(tokenizer.decode(alone[same:])) if same < len(alone) else ""
    return tuple(alone[:same]), left


def _stop_ids(tokenizer: PreTrainedTokenizerBase, headers: str) -> tuple[int, ...]:
    """Ids that end a user's message: eos, end of turn, and every control token that opens a header;
    never a plain word such as "assistant"."""
    ends = {
        i
        for token, i in control_tokens(tokenizer).items()
        if token in headers or _ENDING.match(token)
    }
    ends |= {tokenizer.bos_token_id, tokenizer.eos_token_id}
    if tokenizer.pad_token_id != tokenizer.unk_token_id:  # Llama-2 style: pad = <unk>
        ends.add(tokenizer.pad_token_id)
    ends.update(_generation_ends(files_of(tokenizer)))
    return tuple(sorted(ends - {None}))


def _stop_strings(
    tokenizer: PreTrainedTokenizerBase, after: str, header: str, notes: list[str]
) -> tuple[str, ...]:
    """What ends a user's message where the template writes turn headers in plain text ("
    ASSISTANT:", "### Response:"): no token id could; nothing where a control token opens them.

    A header that begins a line ends a message only there: its newlines are cut to one. A header of
    nothing but letters is a word of its own, which any message may hold; it counts only as a line.
    """
    lead = "\n" if after[: len(after) - len(after.lstrip())].count("\n") else ""
    strings: list[str] = []
    for turn in (after, header):
        words = turn.strip().split("\n", 1)[0].rstrip()
        if not words or any(token in turn for token in control_tokens(tokenizer)):
            continue
        if re.search(r"[^\w\s]", words):
            strings.append(lead + words)
        elif lead and "\n" in turn.strip(" ").lstrip("\n"):
            strings.append(f"\n{words}\n")
        else:
            notes.append(
                f"a turn opens with the plain word {words!r}, which cannot end an instruction"
            )
    return tuple(dict.fromkeys(strings))


@functools.lru_cache(maxsize=32)
def _generation_ends(folder: Path) -> tuple[int, ...]:
    """The end ids of the model's own generation_config.json, where it has one (Llama-3 lists two
    there)."""
    path = folder / "generation_config.json"
    ends = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
    if isinstance(ends, int):
        return (ends,)
    return tuple(ends or ())
