"""Pre-query templates: the token ids up to the place where a user's message would begin, and the
ids that end it.

Everything is derived from the tokenizer's own chat template by difference: a conversation is
rendered with a sentinel as the user's message and cut at the sentinel. The first turn so has
exactly the BOS that the template writes, and a follow-up turn has no empty assistant header and no
second BOS (distilabel 1.5.3 sends both). Families whose tokenizers come without a chat template are
data: `families.json`.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from core.control_tokens import control_tokens, encode, shield
from core.errors import UserError, nearest
from synth.chat.families import family_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1
"""Part of every key of a generated column; raised when the same tokenizer and settings would give
other token ids."""

DEFAULT = "default"
"""`system_prompt: default` keeps whatever the chat template puts by itself."""

OVERRIDES = ("text", "chat_template", "chat_template_kwargs", "stop_tokens", "stop_token_ids")
"""What a recipe may say instead of deriving it: `text` replaces the pre-query text; the two stop
fields add to what was derived."""

_SENTINEL = "Xq7UserTurnHereXq7"
# Special tokens that end something in every family's spelling: <|end_of_text|>, <|endoftext|>,
# <|eot_id|>, </s>, <end_of_turn>, <|EOT|> ...
_ENDING = re.compile(r"^<[|｜]?(/s|end|im_end|eo[stm])", re.IGNORECASE)


@dataclass(frozen=True)
class PreQuery:
    """A pre-query template: its text, the token ids to send, the token ids that end the user's
    message, and how each was found."""

    text: str
    token_ids: tuple[int, ...]
    stop_token_ids: tuple[int, ...]
    derived: dict[str, Any] = field(default_factory=dict)


def pre_query(
    tokenizer: PreTrainedTokenizerBase,
    system_prompt: str | None = DEFAULT,
    overrides: Mapping[str, Any] | None = None,
) -> PreQuery:
    """The pre-query template of a tokenizer (Magpie, arXiv 2406.08464, section 2.1).

    `system_prompt`: "default" keeps what the template puts by itself, None or "" leaves it out, any
    other text is used as the system message. `overrides`: see OVERRIDES. Raises UserError when the
    tokenizer has no chat template and no known family, when the template refuses or ignores the
    system prompt, and for an override of an unknown name or an unknown token.
    """
    chosen = _checked(overrides)
    template, source = _template(tokenizer, chosen)
    kwargs = dict(chosen.get("chat_template_kwargs", {}))
    notes: list[str] = []
    if template is None and "text" in chosen:
        text, header, after = chosen["text"], "", ""
    else:
        try:
            header, after = _user_header(tokenizer, template, kwargs)
        except UserError as error:
            if "text" not in chosen:
                raise
            header, after = "", ""
            notes.append(
                f"only the tokenizer's own end tokens are known to end an instruction: {error}"
            )
        text = chosen.get("text") or _first_turn(
            tokenizer, template, kwargs, system_prompt, header, notes
        )
    if "text" in chosen:
        source = "the recipe's text"
    if template is not None and "strftime_now" in template and system_prompt == DEFAULT:
        notes.append(
            "the template's default system prompt holds today's date: it differs from day to day"
        )
    ids, left = _stable_ids(tokenizer, text)
    bos = tokenizer.bos_token_id
    if bos is not None and list(ids[:2]) == [bos, bos]:
        notes.append("the text begins with two BOS tokens")
    if text != text.rstrip(" ") and left:
        notes.append(
            "the trailing space is left to the model, whose tokenizer joins it to the next word"
        )
    stop = _stop_ids(tokenizer, after + header, chosen)
    derived = {
        "source": source,
        "system_prompt": system_prompt or None,
        "user_header": header,
        "left_to_model": left,
        "stop_tokens": tokenizer.convert_ids_to_tokens(list(stop)),
        "notes": notes,
    }
    return PreQuery(text, ids, stop, derived)


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
    template, _ = _template(tokenizer, {"chat_template": chat_template} if chat_template else {})
    made = copy.copy(tokenizer)
    made.chat_template = "".join(
        f"{{%- set {name} = {_literal(value)} -%}}" for name, value in sorted(variables.items())
    ) + str(template)
    return made


def _literal(value: Any) -> str:
    """A JSON value as Jinja writes it."""
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{json.dumps(str(k))}: {_literal(v)}" for k, v in value.items()) + "}"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value)


def follow_up(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, str]],
    overrides: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids up to the place of the next user message of a conversation that ends with the
    assistant, by difference.

    `messages` are {"role", "content"}, a system message among them if wanted. Raises UserError when
    the last one is not the assistant's.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise UserError(
            "a follow-up turn continues a conversation whose last message is the assistant's; give one that ends so."
        )
    chosen = _checked(overrides)
    template, _ = _template(tokenizer, chosen)
    safe, hidden = shield(tokenizer, messages)
    text = _rendered(
        tokenizer,
        [*safe, _user(_SENTINEL)],
        template,
        dict(chosen.get("chat_template_kwargs", {})),
        generation=False,
    )
    before = _cut(tokenizer, text)[0]
    if not before.endswith(" "):
        return encode(tokenizer, before, hidden)
    return list(_stable_ids(tokenizer, before, hidden)[0])


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, str]],
    *,
    add_generation_prompt: bool,
    chat_template: str | None = None,
    content_parts: bool = False,
) -> list[int]:
    """Token ids of a conversation, where special tokens spelled inside a message are plain text and
    only the template's own are control tokens.

    A conversation without such spellings gets exactly the ids of the rendered text.
    `content_parts`: the template wants a message's content as a list of parts (Llama-Guard-3-1B and
    4). Raises UserError when the template refuses the conversation.
    """
    template, _ = _template(tokenizer, {"chat_template": chat_template} if chat_template else {})
    safe, hidden = shield(tokenizer, messages)
    given: Sequence[dict[str, Any]] = (
        [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in safe]
        if content_parts
        else safe
    )
    return encode(
        tokenizer,
        _rendered(tokenizer, given, template, {}, generation=add_generation_prompt),
        hidden,
    )


def generation_prompt(tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> str:
    """What the chat template writes after a user's message so that the assistant speaks; some
    templates open a think block there."""
    template, _ = _template(tokenizer, {"chat_template": chat_template} if chat_template else {})
    return _cut(tokenizer, _rendered(tokenizer, [_user(_SENTINEL)], template, {}))[1]


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text without a chat template or BOS, where special tokens that it spells are
    plain text."""
    (safe,), hidden = shield(tokenizer, [_user(text)])
    return encode(tokenizer, safe["content"], hidden)


def text_start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a text by itself: BOS, or nothing."""
    ids = tokenizer("a")["input_ids"]
    return (
        [int(ids[0])]
        if tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
        else []
    )


def _first_turn(
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    kwargs: dict[str, Any],
    system_prompt: str | None,
    header: str,
    notes: list[str],
) -> str:
    """The text before the first user message, with the system prompt that was asked for."""
    if system_prompt and system_prompt != DEFAULT:
        messages = [{"role": "system", "content": system_prompt}, _user(_SENTINEL)]
        before, _ = _cut(tokenizer, _rendered(tokenizer, messages, template, kwargs))
        if system_prompt.strip() not in before:
            raise UserError(
                f"the chat template of {tokenizer.name_or_path} ignores a system prompt; leave `system_prompt` out."
            )
        return before
    before, _ = _cut(tokenizer, _rendered(tokenizer, [_user(_SENTINEL)], template, kwargs))
    if system_prompt == DEFAULT or not before.endswith(header):
        if system_prompt != DEFAULT:
            notes.append(
                "the first user turn is rendered unlike later ones, so a default system prompt could not be told apart and stays"
            )
        return before
    lead = before[: len(before) - len(header)]
    for token in control_tokens(tokenizer):
        lead = lead.replace(token, "")
    if not lead.strip():
        return before  # nothing but BOS and the like: this template puts no system prompt by itself
    notes.append("the template's default system prompt was cut")
    bos = str(tokenizer.bos_token or "")
    return (bos if bos and before.startswith(bos) and not header.startswith(bos) else "") + header


def _user_header(
    tokenizer: PreTrainedTokenizerBase, template: str | None, kwargs: dict[str, Any]
) -> tuple[str, str]:
    """(what opens a user turn, what follows a user's message when the assistant is to speak)."""
    _, after = _cut(tokenizer, _rendered(tokenizer, [_user(_SENTINEL)], template, kwargs))
    answer = "Xq7AnswerXq7"
    talk = [_user("Hello"), {"role": "assistant", "content": answer}, _user(_SENTINEL)]
    before, _ = _cut(tokenizer, _rendered(tokenizer, talk, template, kwargs, generation=False))
    tail = before.rpartition(answer)[2]
    header = tail.lstrip()
    # The assistant's end-of-turn token comes first. A template that writes none has only the header
    # there.
    first = next(
        (
            t
            for t in sorted(control_tokens(tokenizer), key=len, reverse=True)
            if header.startswith(t)
        ),
        "",
    )
    rest = header[len(first) :].lstrip("\n")
    return (rest if first and rest.strip() else header), after


def _stable_ids(
    tokenizer: PreTrainedTokenizerBase, text: str, hidden: Mapping[str, str] = MappingProxyType({})
) -> tuple[tuple[int, ...], str]:
    """Token ids of `text` that stay the same whatever word follows, and the end of the text that
    they leave to the model.

    A tokenizer that writes " What" as one token would never continue a lone " ": such a space is
    not sent.
    """
    alone = encode(tokenizer, text, hidden)
    follow = [encode(tokenizer, text + word, hidden) for word in ("What", "Please", "I", "1", "(")]
    same = 0
    while (
        all(same < len(ids) for ids in (alone, *follow))
        and len({ids[same] for ids in (alone, *follow)}) == 1
    ):
        same += 1
    return tuple(alone[:same]), str(tokenizer.decode(alone[same:])) if same < len(alone) else ""


def _stop_ids(
    tokenizer: PreTrainedTokenizerBase, headers: str, chosen: Mapping[str, Any]
) -> tuple[int, ...]:
    """Ids that end a user's message: eos, end of turn, and every control token that opens a header;
    never a plain word such as "assistant"."""
    known = control_tokens(tokenizer)
    ends = {i for token, i in known.items() if token in headers or _ENDING.match(token)}
    pad = (
        tokenizer.pad_token_id if tokenizer.pad_token_id != tokenizer.unk_token_id else None
    )  # Llama-2 style: pad = <unk>
    ends |= {i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id, pad) if i is not None}
    ends |= set(_generation_ends(str(tokenizer.name_or_path)))
    for token in chosen.get("stop_tokens", ()):
        if token not in known:
            raise UserError(
                f"stop token {token!r} is no special token of {tokenizer.name_or_path}{nearest(token, known)}"
            )
        ends.add(known[token])
    return tuple(sorted(ends | set(chosen.get("stop_token_ids", ()))))


@functools.lru_cache(maxsize=32)
def _generation_ends(name: str) -> tuple[int, ...]:
    """The end ids of the model's own generation_config.json, where it has one (Llama-3 lists two
    there)."""
    from transformers.utils import cached_file

    try:
        path = cached_file(
            name,
            "generation_config.json",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):
        return ()
    ends = json.loads(Path(path).read_text()).get("eos_token_id") if path else None
    return tuple(ends) if isinstance(ends, list) else (ends,) if isinstance(ends, int) else ()


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _cut(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[str, str]:
    if text.count(_SENTINEL) != 1:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path} does not write a user's message exactly once, so its pre-query template "
            "cannot be derived; give it as `synth.pre_query_template` in the recipe, or another `chat_template` of the model."
        )
    before, _, after = text.partition(_SENTINEL)
    return before, after


def _rendered(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    template: str | None,
    kwargs: dict[str, Any],
    generation: bool = True,
) -> str:
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages),
                chat_template=template,
                tokenize=False,
                add_generation_prompt=generation,
                **kwargs,
            )
        )
    except TemplateSyntaxError as error:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path} is no valid Jinja in line {error.lineno}: {error.message}"
        ) from error
    except TemplateError as error:
        roles = ", ".join(m["role"] for m in messages)
        raise UserError(
            f"the chat template of {tokenizer.name_or_path} refuses a conversation with roles [{roles}]: {error}"
        ) from error


def _template(
    tokenizer: PreTrainedTokenizerBase, chosen: Mapping[str, Any]
) -> tuple[str | None, str]:
    """(the chat template to use, where it comes from): the recipe's, the tokenizer's own, or that
    of a known family without one."""
    if chosen.get("chat_template"):
        return str(chosen["chat_template"]), "the recipe's chat template"
    if tokenizer.chat_template:
        return str(tokenizer.get_chat_template()), "the tokenizer's chat template"
    family = family_of(str(tokenizer.name_or_path))
    if family is not None and family.chat_template:
        return family.chat_template, f"families.json: {family.name} ({family.source})"
    if "text" in chosen:
        return None, "the recipe's text"
    raise UserError(
        f"the tokenizer of {tokenizer.name_or_path} has no chat template, so there is no pre-query template: use an instruction-tuned model, "
        "or give `chat_template` of the model, or `synth.pre_query_template`, in the recipe."
    )


def _checked(overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    for name in overrides or {}:
        if name not in OVERRIDES:
            raise UserError(f"template has no setting '{name}'{nearest(name, OVERRIDES)}")
    return dict(overrides or {})
