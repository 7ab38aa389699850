"""Tags by language models: quality, difficulty and category of an instruction, a score of the pair
of instruction and response, and whatever a recipe asks itself.

Two ways to ask a judge. `label`: one token out of one-token codes (1 to 5, A to L) with its
log-probabilities, so the label comes with an expected rank. `explain`: JSON constrained by a
schema, explanation first, as in the paper; a brace inside an explanation cannot break it (the
original stopped at the first "}" and lost those rows). What cannot be read is a failed cell with
its reason.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from core.servers import Endpoint
from core.wire import Reply, Request
from synth.chat.encoding import encode_question
from synth.chat.thinking import behind_thinking
from synth.generate.ask import (
    TOKENS,
    Frames,
    Row,
    Rows,
    Sampling,
    Unreadable,
    answers,
    asked,
    context_length,
    failed,
    first_choice,
    fitting,
    spent,
)
from synth.tags.asking import codes, hosted
from synth.tags.asking.tag import TYPES, Mode, Tag, ask, prompt_text, template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSIONS = {"label": 2, "explain": 1}
"""Part of every key of a tag, by mode; raised when the same settings would give other tags."""

EXPLAIN_TOKENS = 512
"""max_tokens of an explanation where the recipe's sampling gives none."""


@dataclass(frozen=True)
class Asking:
    """How a tag is asked for: `sampling` is verbatim (greedy when empty), `prompt` a jinja file in
    place of the tag's, `floor` what the codes of label mode must carry of the probability."""

    mode: Mode = "label"
    sampling: Sampling = field(default_factory=dict)
    prompt: str | None = None
    floor: float = codes.FLOOR

    def of(self, tag: Tag) -> Callable[[Row], str]:
        """What is asked of a row."""
        prompt = template(prompt_text(tag, "label", self.prompt))
        return lambda row: ask(
            tag, row["instruction"], self.mode, prompt, row.get("response") or ""
        )


def tag(
    chosen: Tag,
    rows: Rows,
    how: Asking,
    tokenizer: PreTrainedTokenizerBase,
    endpoint: Endpoint,
) -> Frames:
    """An LLM tag of each row, by token ids.

    `rows`: id, instruction, and for a tag of conversations also response. Yields frames [id, the
    tag's fields, tokens, prompt_tokens, status, reason]: the label; in label mode the rank of
    ordered labels (1.0 is the lowest) and the mass of the codes; in explain mode explanations; null
    where the mode has none. Raises UserError when the codes are not one token each for this
    tokenizer.
    """
    if how.mode == "label":
        return _labels(chosen, rows, how, tokenizer, endpoint)
    sampling = {"temperature": 0.0, "max_tokens": EXPLAIN_TOKENS, **how.sampling}
    question = how.of(chosen)

    def body(row: Row) -> Row:
        ids = encode_question(tokenizer, question(row))
        return {**sampling, "structured_outputs": {"json": chosen.schema}, "prompt": ids}

    read = functools.partial(_read_json, chosen)
    return answers(rows, body, lambda choice: read(_whole(choice)), endpoint, chosen.fields)


def chat_tag(chosen: Tag, rows: Rows, how: Asking, endpoint: Endpoint) -> Frames:
    """As `tag`, by a model that only chats: explanations by structured outputs where they are
    offered; a label by the log-probabilities of a one-word answer where those are shown, else by
    that word alone (its mass is then null)."""
    question = how.of(chosen)
    if how.mode == "label":
        sampling = hosted.sampling_of(how.sampling, hosted.WORD_TOKENS)
        return hosted.labelled(chosen, rows, question, sampling, how.floor, endpoint)
    sampling = hosted.sampling_of(how.sampling, EXPLAIN_TOKENS)
    read = functools.partial(_read_json, chosen)
    return hosted.explained(chosen, rows, question, sampling, read, endpoint)


def _labels(
    chosen: Tag,
    rows: Rows,
    how: Asking,
    tokenizer: PreTrainedTokenizerBase,
    endpoint: Endpoint,
) -> Frames:
    """Cells of label mode: one unconstrained token behind the thinking that the template closes."""
    of_tag, limit = codes.codes_of(chosen, tokenizer), context_length(endpoint)
    question, answer_now = how.of(chosen), behind_thinking(tokenizer)
    sampling = {"temperature": 0.0, **how.sampling, **of_tag.body}
    sent: dict[str, Request] = {}
    likeliest = False  # the server knows no tokens by id

    def request(row: Row) -> Request | Row:
        ids = encode_question(tokenizer, question(row), answer_now)
        made = fitting(Request(row["id"], {**sampling, "prompt": ids}), limit)
        if isinstance(made, Request):
            made = codes.by_text(made) if likeliest else made
            sent[made.key] = made
        return made

    def again(reply: Reply) -> Request | None:
        nonlocal likeliest
        request = sent.pop(reply.key, None)
        if request is None or not codes.refuses_ids(request, reply):
            return None
        likeliest = True
        return codes.by_text(request)

    def cell(reply: Reply) -> Row:
        try:
            values = codes.label_of(chosen, of_tag.read(first_choice(reply)), how.floor)
        except Unreadable as error:
            return failed(reply.key, str(error), **spent(reply))
        return labelled(chosen, reply, values, how.floor)

    return asked(rows, request, cell, endpoint, {**chosen.fields, **TOKENS}, again)


def labelled(chosen: Tag, reply: Reply, values: Row, floor: float) -> Row:
    """The cell of a label; failed where its codes carry less than the floor."""
    if chosen.label not in values:
        return failed(reply.key, codes.too_little(floor), **values, **spent(reply))
    return {"id": reply.key, **spent(reply), **values, "status": "ok"}


def _whole(choice: Row) -> str:
    """The text of a choice. Raises Unreadable where it was cut off."""
    if choice.get("finish_reason") == "length":
        raise Unreadable("cut off at max_tokens before the JSON closed")
    return str(choice["text"])


def _read_json(tag: Tag, text: str) -> Row:
    """The fields of an explanation, under the names of their columns."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise Unreadable(f"no JSON: {error.msg}") from error
    if not isinstance(values, dict):
        raise Unreadable("the answer is JSON but no object")
    return {tag.names.get(name, name): _field(tag, name, values) for name in tag.explanation}


def _field(tag: Tag, name: str, values: Row) -> Any:
    """One field of an explanation; of a list of labels, those besides the label itself."""
    value = values.get(name)
    kind = TYPES[tag.explanation[name]["type"]][0]
    if kind is list:
        if not isinstance(value, list) or not all(label in tag.labels for label in value):
            raise Unreadable(f"the answer's {name} is no list of labels")
        besides = values.get(tag.label) if name != tag.label else None
        return [label for label in dict.fromkeys(value) if label != besides]
    if kind is float:
        return _number(tag, name, value)
    if type(value) is not kind:  # true is no 1
        raise Unreadable(f"the answer has no {name}")
    if name == tag.label and tag.kind == "label" and value not in tag.labels:
        raise Unreadable(f"unknown label {str(value)[:40]!r}")
    return value


def _number(tag: Tag, name: str, value: Any) -> float:
    """A number within its bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Unreadable(f"the answer has no {name}")
    low, high = tag.between or (-math.inf, math.inf)
    if not low <= value <= high:
        raise Unreadable(f"{name} is {value:g}, not between {low} and {high}")
    return float(value)
