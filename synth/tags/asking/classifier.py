"""A recipe's own columns by sequence-classification models behind a vLLM pooling server, as reward
models are: `synth.tags.own: {x: {classifier: ...}}`.

What is sent is the text as the model's tokenizer writes it: a conversation where it has a chat
template, else the instruction (and, below it, the response). What comes back are logits, one an
output of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from core.columns import OK
from core.errors import UserError, nearest
from core.files import read_json
from core.servers import Endpoint
from core.wire import Reply, Request, reward_request, rewards
from synth.chat.encoding import encode_conversation, encode_text, pair
from synth.config.tags import OwnConfig
from synth.generate.ask import (
    Frames,
    Row,
    Rows,
    Unreadable,
    asked,
    context_length,
    failed,
    replied,
    spent,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1
"""Part of every key of such a cell; raised when the same model would give other values."""
HALF = 0.5
"""The probability from which a label of several is one of a row's."""


def classified(
    name: str,
    own: OwnConfig,
    rows: Rows,
    model: str,
    tokenizer: PreTrainedTokenizerBase,
    endpoint: Endpoint,
) -> Frames:
    """The column `name` of each row, by a classifier.

    `rows`: id, instruction, and where it reads responses also response; `model`: its folder or hub
    id. Yields [id, NAME, NAME_rank of ordered labels, prompt_tokens, status, reason]. A text longer
    than the server takes, another number of outputs than there are labels, and a score that is not
    finite are failed cells. Raises UserError for labels that are not the model's.
    """
    limit, outputs = context_length(endpoint), outputs_of(model)
    read = _reader(name, own, outputs)
    encode = _encoder(tokenizer)

    def ask(row: Row) -> Request | Row:
        ids = encode(row["instruction"], row.get("response"))
        if limit is not None and len(ids) > limit and own.truncate:
            ids = ids[:limit]
        if limit is None or len(ids) <= limit:
            return reward_request(row["id"], ids)
        return failed(row["id"], f"longer than max_model_len {limit} (`truncate: true` cuts it)")

    def cell(reply: Reply) -> Row:
        try:
            values = read(_scores(reply))
        except Unreadable as error:
            return failed(reply.key, str(error), **spent(reply))
        return {"id": reply.key, **values, **spent(reply), "status": OK}

    return asked(rows, ask, cell, endpoint, {**fields(name, own), "prompt_tokens": pl.Int64})


def fields(name: str, own: OwnConfig) -> dict[str, Any]:
    """The value columns with their polars types."""
    kinds: dict[str, Any] = {"number": pl.Float64, "labels": pl.List(pl.String)}
    ranked = own.kind == "label" and own.ordered
    return {
        name: kinds.get(own.kind, pl.String),
        **({f"{name}_rank": pl.Float64} if ranked else {}),
    }


def outputs_of(model: str) -> list[str]:
    """What a model's configuration calls its outputs, in order; none where it is not at hand or
    only numbers them."""
    file = Path(model) / "config.json"
    named = read_json(file).get("id2label") if file.is_file() else None
    if not isinstance(named, dict):
        return []
    names = [str(named[key]) for key in sorted(named, key=int)]
    return [] if all(name.upper().startswith("LABEL_") for name in names) else names


def _reader(name: str, own: OwnConfig, outputs: Sequence[str]) -> Callable[[Sequence[float]], Row]:
    """What makes a cell of the logits."""
    if own.kind == "number":
        return lambda logits: {name: _number(logits, own.output, outputs)}
    order = _order(own.labels, outputs)

    def of_labels(logits: Sequence[float]) -> Row:
        if len(logits) != len(order):
            raise Unreadable(f"the classifier has {len(logits)} outputs, not {len(order)}")
        ordered = [logits[at] for at in order]
        if own.kind == "labels":
            chances = [1 / (1 + math.exp(-logit)) for logit in ordered]
            held = zip(own.labels, chances, strict=True)
            return {name: [label for label, chance in held if chance >= HALF]}
        shares = softmax(ordered)
        row: Row = {name: own.labels[max(range(len(shares)), key=shares.__getitem__)]}
        if own.ordered:
            row[f"{name}_rank"] = sum(rank * share for rank, share in enumerate(shares, 1))
        return row

    return of_labels


def _order(labels: Sequence[str], outputs: Sequence[str]) -> list[int]:
    """The place of each label among the model's outputs: by name, or as they come where the model
    names none. Raises UserError for a label that the model has not."""
    if not outputs:
        return list(range(len(labels)))
    places = {output.casefold(): at for at, output in enumerate(outputs)}
    for label in labels:
        if label.casefold() not in places:
            raise UserError(
                f"synth.tags.own: the classifier has no label '{label}'{nearest(label, outputs)}; "
                f"it has {', '.join(outputs)}."
            )
    return [places[label.casefold()] for label in labels]


def _number(logits: Sequence[float], output: str | int | None, outputs: Sequence[str]) -> float:
    """The logit of a model with one output; of one with several the probability of `output`."""
    if output is None:
        if len(logits) != 1:
            raise Unreadable(f"the classifier has {len(logits)} outputs; say which with `output`")
        return logits[0]
    place = outputs.index(output) if output in outputs else output
    if not isinstance(place, int) or place >= len(logits):
        raise Unreadable(f"the classifier has no output {output!r}")
    return softmax(logits)[place]


def softmax(logits: Sequence[float]) -> list[float]:
    """Logits as probabilities."""
    highest = max(logits)
    weights = [math.exp(logit - highest) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def _scores(reply: Reply) -> list[float]:
    """The logits of a reply. Raises Unreadable where there are none."""
    body: Mapping[str, Any] = replied(reply)
    try:
        logits = rewards(body)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise Unreadable("request failed: the reply holds no score") from error
    if not logits or not all(map(math.isfinite, logits)):
        raise Unreadable("the score is not a finite number")
    return logits


def _encoder(
    tokenizer: PreTrainedTokenizerBase,
) -> Callable[[str, str | None], list[int]]:
    """What makes token ids of a row's texts, in which spelled control tokens are plain text."""
    if tokenizer.chat_template:
        return lambda instruction, response: encode_conversation(
            tokenizer,
            pair(instruction, response or "")[: 1 if response is None else 2],
            add_generation_prompt=False,
        )
    mark = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    first = next(at for at in range(len(whole)) if whole[at : at + len(mark)] == mark)
    before, after = whole[:first], whole[first + len(mark) :]

    def encode(instruction: str, response: str | None) -> list[int]:
        text = instruction if response is None else f"{instruction}\n\n{response}"
        return [*before, *encode_text(tokenizer, text), *after]

    return encode
