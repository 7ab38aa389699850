"""Instruction-following difficulty (IFD): how much an instruction helps a model to foresee the
answer.

    IFD = PPL(answer | instruction) / PPL(answer) = exp(mean NLL(answer | instruction) - mean
    NLL(answer))

as Superfiltering defines it (arXiv 2402.00530; Cherry LLM, arXiv 2308.12032, has the ratio of the
mean losses themselves in its code). Near 0: the instruction says it all; 1 and above: it helps not
at all, and such rows are usually dropped. NLL is in nats, the mean over the answer's tokens, the
same tokens in both. The condition is the conversation up to the assistant's turn by the model's own
chat template; the answer alone stands after BOS where the tokenizer puts one before a text, else
its first token, which nothing precedes, is left out of both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from core.columns import OK
from core.servers import Endpoint
from core.wire import Reply, Request
from synth.chat.templates import encode_conversation, encode_text, text_start
from synth.generate.ask import (
    STATUS,
    Row,
    Unreadable,
    batched,
    completion,
    context,
    failed,
    spent,
    too_long,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1
"""Part of every key of an IFD; raised when the same model would give other values."""


@dataclass
class _Halves:
    """One row's two prompts as token ids, each with the place from which on it is scored, and what
    is known of it so far."""

    given: tuple[list[int], int]
    alone: tuple[list[int], int]
    loss: float | None = None
    tokens: int = 0
    prompt_tokens: int = 0


def ifd(
    rows: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, endpoint: Endpoint
) -> Iterator[pl.DataFrame]:
    """IFD of responses by prompt log-probabilities: two requests of one token a row, the second at
    once in the first's place.

    `rows`: id, instruction, response. Yields [id, ifd, tokens, prompt_tokens, status, reason]; a
    conversation longer than the server's `max_model_len` (where the recipe gives it), and an answer
    with no token that can be scored are failed cells.
    """
    start = text_start(tokenizer)
    limit = context(endpoint)
    halves: dict[str, _Halves] = {}
    refused: list[Row] = []

    def requests() -> Iterator[Request]:
        for row in rows.iter_rows(named=True):
            before = encode_conversation(
                tokenizer,
                [{"role": "user", "content": row["instruction"]}],
                add_generation_prompt=True,
            )
            answer = encode_text(tokenizer, row["response"])
            given = (before + answer, len(before) + (0 if start else 1))
            if limit is not None and len(given[0]) >= limit:
                refused.append(too_long(row["id"], len(given[0]), limit))
            elif len(given[0]) <= given[1]:
                refused.append(
                    failed(
                        row["id"], f"an answer of {len(answer)} tokens has none that can be scored"
                    )
                )
            else:
                halves[row["id"]] = _Halves(given, (start + answer, 1))
                yield _request(row["id"], given[0])

    def then(reply: Reply) -> Request | None:
        half = halves[reply.key]
        if half.loss is not None:
            return None
        try:
            half.loss = mean_loss(reply, *half.given)
        except Unreadable:
            return None
        _count(half, reply)
        return _request(reply.key, half.alone[0])

    def finished() -> Iterator[Row]:
        for reply in endpoint.answers(requests(), then):
            yield _ratio(reply, halves.pop(reply.key))
            while refused:
                yield refused.pop()
        yield from refused

    return batched(finished(), {"id": pl.String, "ifd": pl.Float64, **STATUS})


def mean_loss(reply: Reply, ids: list[int], place: int) -> float:
    """Mean NLL (nats) of `ids[place:]`, each given all before it, from a reply with
    `prompt_logprobs`. Raises Unreadable when it holds none."""
    choice, problem = completion(reply)
    if choice is None:
        raise Unreadable(problem)
    try:
        # One mapping a position, from token id to {"logprob", ...}; the token that is there is
        # always in it.
        given = choice["prompt_logprobs"]
        losses = [-float(given[at][str(ids[at])]["logprob"]) for at in range(place, len(ids))]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise Unreadable(
            f"no log-probabilities of the prompt in the reply: {type(error).__name__} {error}"
        ) from error
    return math.fsum(losses) / len(losses)


def _ratio(reply: Reply, half: _Halves) -> Row:
    _count(half, reply)
    cost = {"tokens": half.tokens, "prompt_tokens": half.prompt_tokens}
    try:
        given = mean_loss(reply, *half.given) if half.loss is None else half.loss
        value = math.exp(given - mean_loss(reply, *half.alone))
    except (Unreadable, OverflowError) as error:
        return failed(reply.key, str(error), **cost)
    return (
        {"id": reply.key, "ifd": value, **cost, "status": OK}
        if math.isfinite(value)
        else failed(reply.key, "the IFD is not finite", **cost)
    )


def _request(key: str, ids: list[int]) -> Request:
    return Request(key, {"prompt": ids, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0})


def _count(half: _Halves, reply: Reply) -> None:
    cost = spent(reply)
    half.tokens += cost["tokens"] or 0
    half.prompt_tokens += cost["prompt_tokens"] or 0
