"""Tags by a model that only chats: explained in JSON, or in one word whose log-probabilities the
service shows or does not."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from core.columns import FAILED
from core.sending.chat import Said, chat_body
from core.servers import Endpoint
from synth.generate.ask import Frames, Row, Rows, Unreadable, chats
from synth.tags.asking import codes
from synth.tags.asking.tag import Schema, Tag

WORD_TOKENS = 16
"""max_tokens of a one-word answer where the recipe's sampling gives none."""
_LIMITS = ("max_tokens", "max_completion_tokens")
_UNKNOWN = ("minLength", "maxLength", "maxItems", "minimum", "maximum")
"""What a strict schema of a service may not say."""


def sampling_of(given: Mapping[str, Any], max_tokens: int) -> Row:
    """The recipe's parameters over greedy ones; null takes one of these out, for services that
    refuse it."""
    limit = {} if any(name in given for name in _LIMITS) else {"max_tokens": max_tokens}
    merged = {"temperature": 0.0, **limit, **given}
    return {name: value for name, value in merged.items() if value is not None}


def explained(
    tag: Tag,
    rows: Rows,
    question: Callable[[Row], str],
    sampling: Row,
    read: Callable[[str], Row],
    endpoint: Endpoint,
) -> Frames:
    """Explain mode: JSON by the tag's schema, in words where the service takes no schema. `read`
    reads the JSON's text, or raises Unreadable."""
    schema = plain_schema(tag.schema)

    def body(row: Row) -> Row:
        return chat_body([{"role": "user", "content": question(row)}], sampling, schema)

    def values(answer: Said) -> Row:
        if answer.finish_reason == "length":
            raise Unreadable("cut off at max_tokens before the JSON closed")
        return read(json_of(answer.text))

    return chats(rows, body, values, endpoint, tag.fields)


def labelled(
    tag: Tag,
    rows: Rows,
    question: Callable[[Row], str],
    sampling: Row,
    floor: float,
    endpoint: Endpoint,
) -> Frames:
    """Label mode: one code, with its log-probabilities where the service shows them."""
    shown = {"logprobs": True, "top_logprobs": codes.TOP, **sampling}

    def body(row: Row) -> Row:
        return chat_body([{"role": "user", "content": question(row)}], shown)

    return chats(rows, body, functools.partial(_label, tag, floor), endpoint, tag.fields)


def _label(tag: Tag, floor: float, answer: Said) -> Row:
    """The label of an answer: by the log-probabilities of its first word, else by that word."""
    tops = _first_word(answer.choice)
    if tops is None:
        return word(tag, answer.text)
    values = codes.label_of(tag, codes.summed(tag, tops), floor)
    if tag.label not in values:
        values |= {"status": FAILED, "reason": codes.too_little(floor)}
    return values


def _first_word(choice: Mapping[str, Any]) -> list[tuple[str, float]] | None:
    """(text, log-probability) of what could stand at the first token that is no white space; None
    where the service does not show it."""
    content = (choice.get("logprobs") or {}).get("content") or []
    for token in content:
        if str(token.get("token", "")).strip() and token.get("top_logprobs"):
            return [(each["token"], each["logprob"]) for each in token["top_logprobs"]]
    return None


def word(tag: Tag, text: str) -> Row:
    """The label that an answer of a word or two names: a code, or the label itself."""
    said = text.strip().strip(".*`\"' ").casefold()
    labels = {str(label).casefold(): label for label in tag.labels}
    code = re.match(r"\W*(\w)\b", text)
    if said in labels:
        label = labels[said]
    elif code and code[1] in tag.codes:
        label = tag.labels[tag.codes.index(code[1])]
    else:
        raise Unreadable("the answer names no code and no label")
    row: Row = {tag.label: float(label) if tag.kind == "number" else label}
    if tag.rank:
        row[tag.rank] = float(list(tag.labels).index(label) + 1)
    return row


def plain_schema(schema: Schema) -> Schema:
    """A schema as strict services take it: types and labels, without bounds."""
    plain = {name: value for name, value in schema.items() if name not in _UNKNOWN}
    if "properties" in plain:
        plain["properties"] = {n: plain_schema(each) for n, each in plain["properties"].items()}
    if "items" in plain:
        plain["items"] = plain_schema(plain["items"])
    return plain


def json_of(text: str) -> str:
    """The JSON object in an answer that wraps it in words or a fence; the text itself where there
    is none."""
    first = text.find("{")
    if first < 0:
        return text
    try:
        _, end = json.JSONDecoder().raw_decode(text, first)
    except json.JSONDecodeError:
        return text
    return text[first:end]
