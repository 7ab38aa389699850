"""Instructions and responses: one request a row, streamed through an endpoint with no barrier,
yielded in small finished batches.

What the original did otherwise and why this does not (defects 2 to 6 and 12 of its code): it
stopped at the plain word "assistant" and at the first newline, kept empty and cut-off rows
unmarked, drew from unrecorded seeds, and waited for the slowest of every 200 samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars as pl

from core.columns import OK
from core.sending.chat import Said, chat_body
from core.servers import Endpoint
from core.wire import Reply, Request
from synth.chat.encoding import encode_question
from synth.chat.pre_query import PreQuery, ending
from synth.chat.thinking import Thinking, thinking_of
from synth.context import Served
from synth.generate.ask import (
    TOKENS,
    Fields,
    Frames,
    Row,
    Rows,
    Sampling,
    Unreadable,
    asked,
    chats,
    context_length,
    failed,
    first_choice,
    fitting,
    spent,
)
from synth.generate.first_token import Chain, FirstToken

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1
"""Part of every key of a generated column; raised when the same settings would give other text."""


RESPONSE_FIELDS: Fields = {
    "response": pl.String,
    "thinking": pl.String,
    "finish_reason": pl.String,
    **TOKENS,
}
"""What is stored of a response."""

_INSTRUCTION_FIELDS: Fields = {
    "instruction": pl.String,
    "thinking": pl.String,
    "finish_reason": pl.String,
    "tokens": pl.Int64,
}


def instructions(
    rows: pl.DataFrame,
    prompts: Sequence[PreQuery],
    samplings: Sequence[Sampling],
    endpoint: Endpoint,
    *,
    first: FirstToken | None = None,
    thinking: Thinking | None = None,
) -> Frames:
    """Instructions by the Magpie method: the model continues the pre-query template (arXiv
    2406.08464, section 2.1).

    `rows`: id, seed (i64; null: none of its own), and where there are several of them `prompt` and
    `cell`, which of `prompts` and which of `samplings` (vLLM's SamplingParams, verbatim) a row has.
    Yields frames [id, instruction, thinking, finish_reason, tokens (generated), status, reason] as
    rows finish.
    The text keeps its lines; only outer whitespace goes, and a think block that it opens with is
    stored apart. An empty instruction, a think block that is not closed and a request that failed
    are failed cells with their reason. `first`: the rule for the first token.
    """
    chain = Chain(first)

    def ask(row: Row) -> Request:
        template = prompts[row.get("prompt") or 0]
        sampling = samplings[row.get("cell") or 0]
        body = {
            **sampling,
            "prompt": list(template.token_ids),
            **ending(template.stop_token_ids, template.stop_strings, sampling),
        }
        if row["seed"] is not None:
            body["seed"] = row["seed"]
        return chain.begin(Request(row["id"], body))

    def read(reply: Reply) -> Row:
        # A user's message is never opened by a generation prompt: only a think block of the model's
        # own is one.
        return generated(chain.join(reply), "instruction", thinking, opened=False)

    return asked(rows, ask, read, endpoint, _INSTRUCTION_FIELDS, chain.then)


def responses(
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
    endpoint: Endpoint,
) -> Frames:
    """Responses to instructions, from the rendered conversation as token ids with exactly one BOS.

    `rows`: id, instruction, and optionally seed. `sampling`: SamplingParams verbatim. Where the
    recipe gives the server's `max_model_len` (tokens, prompt and answer), an answer gets at most
    what the prompt leaves of it, and a prompt that leaves nothing is a failed cell. Yields frames
    [id, response, thinking, finish_reason, tokens (thinking included), prompt_tokens, status,
    reason]; finish_reason "length" marks a cut-off answer. What a thinking model thought is in
    `thinking` alone; a thought that never ended is a failed cell.
    """
    limit = context_length(endpoint)
    thinking = thinking_of(tokenizer)
    fixed = {**(thinking.sampling if thinking else {}), **sampling}

    def ask(row: Row) -> Request | Row:
        body = {**fixed, "prompt": encode_question(tokenizer, row["instruction"])}
        if row.get("seed") is not None:
            body["seed"] = row["seed"]
        return fitting(Request(row["id"], body), limit)

    def read(reply: Reply) -> Row:
        return generated(reply, "response", thinking)

    return asked(rows, ask, read, endpoint, RESPONSE_FIELDS)


def answered(rows: Rows, sampling: Sampling, responder: Served) -> Frames:
    """Responses as `responses` or `chat_responses` gives them, by how the model is asked."""
    config = responder.config
    if config is not None and config.hosted:
        return chat_responses(rows, sampling, responder.endpoint)
    return responses(rows, responder.tokenizer, sampling, responder.endpoint)


def chat_responses(rows: Rows, sampling: Sampling, endpoint: Endpoint) -> Frames:
    """As `responses`, from a hosted model that only chats: the instruction is the user's message.

    `rows`: id, instruction, and optionally seed. `sampling`: the service's own parameters,
    verbatim. A refusal, an answer that a content filter stopped and an empty one are failed cells.
    """

    def body(row: Row) -> Row:
        seed = {} if row.get("seed") is None else {"seed": row["seed"]}
        question = {"role": "user", "content": row["instruction"]}
        return chat_body([question], {**sampling, **seed})

    def read(answer: Said) -> Row:
        return {
            "response": answer.text,
            "thinking": answer.thinking,
            "finish_reason": answer.finish_reason,
        }

    fields = {name: kind for name, kind in RESPONSE_FIELDS.items() if name not in TOKENS}
    return chats(rows, body, read, endpoint, fields)


def generated(
    reply: Reply, name: str, thinking: Thinking | None, opened: bool | None = None
) -> Row:
    """One row from a completion: its text as `name`, or failed with the reason; fields that a
    column does not have are left out when it is stored.

    `opened`: whether the prompt opened a think block, where that is not the generation prompt's own
    doing.
    """
    try:
        choice = first_choice(reply)
    except Unreadable as error:
        return failed(reply.key, str(error))
    thought, answer = None, choice["text"]
    if thinking:
        thought, answer = thinking.split(answer, opened=opened)
    ending = choice.get("finish_reason")
    values = {"thinking": thought, "finish_reason": ending, **spent(reply)}
    if answer is None:
        problem = f"the thinking is not closed (finish_reason {ending})"
        return failed(reply.key, problem, **values)
    if not answer.strip():
        return failed(reply.key, f"empty {name}", **values)
    return {"id": reply.key, **values, name: answer.strip(), "status": OK}
