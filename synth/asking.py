"""One request a row to a language model, and what its answer says: what LLM tags, guards and base answers have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import polars as pl

from core.columns import OK
from core.endpoint import Endpoint, Reply, Request
from synth.generate import Row, batched, completion, failed

STATUS: dict[str, Any] = {"tokens": pl.Int64, "prompt_tokens": pl.Int64, "status": pl.String, "reason": pl.String}
"""What every frame of answers ends with: tokens generated and read, then the cell's status."""


class Unreadable(Exception):
    """An answer that does not say what was asked; its text is the reason of the failed cell."""


def answers(
    rows: pl.DataFrame,
    body: Callable[[Row], dict[str, Any]],
    read: Callable[[dict[str, Any]], Row],
    endpoint: Endpoint,
    fields: Mapping[str, Any],
) -> Iterator[pl.DataFrame]:
    """Ask once for each row, with no barrier; frames [id, *fields, tokens, prompt_tokens, status, reason] as the answers arrive.

    `rows`: id and whatever `body` reads of a row to make the request: `prompt` (token ids) and sampling parameters. `read` turns the first
    choice into the values of `fields`, or raises Unreadable (or json.JSONDecodeError): a failed cell with that reason, as is a request that
    failed. Where the endpoint's own `max_model_len` (tokens) is known, `max_tokens` is lowered to what the prompt leaves of it, and a
    prompt that leaves nothing is a failed cell that is never sent.
    """
    refused: list[Row] = []
    limit = context(endpoint)

    def requests() -> Iterator[Request]:
        for row in rows.iter_rows(named=True):
            made = body(row)
            if limit is not None:
                left = limit - len(made["prompt"])
                if left < 1:
                    refused.append(too_long(row["id"], len(made["prompt"]), limit))
                    continue
                made["max_tokens"] = min(int(made.get("max_tokens") or left), left)
            yield Request(row["id"], made)

    def finished() -> Iterator[Row]:
        for reply in endpoint.answers(requests()):
            yield _read(reply, read)
            while refused:
                yield refused.pop()
        yield from refused

    return batched(finished(), {"id": pl.String, **fields, **STATUS})


def context(endpoint: Endpoint) -> int | None:
    """Tokens that the endpoint's servers take, prompt and answer, where the recipe says so in figures (`server.args.max_model_len`)."""
    given = endpoint.spec.args.get("max_model_len")
    return given if isinstance(given, int) and given > 0 else None


def too_long(key: str, tokens: int, limit: int) -> Row:
    """The failed cell of a prompt that a server cannot take (both in tokens)."""
    return failed(key, f"a prompt of {tokens} tokens leaves no room for an answer in max_model_len {limit}", prompt_tokens=tokens)


def spent(reply: Reply) -> Row:
    """Tokens that a reply cost, null where the server does not say."""
    usage = (reply.body or {}).get("usage") or {}
    return {"tokens": usage.get("completion_tokens"), "prompt_tokens": usage.get("prompt_tokens")}


def _read(reply: Reply, read: Callable[[dict[str, Any]], Row]) -> Row:
    choice, problem = completion(reply)
    if choice is None:
        return failed(reply.key, problem, **spent(reply))
    try:
        return {"id": reply.key, **spent(reply), **read(choice), "status": OK}
    except json.JSONDecodeError as error:
        return failed(reply.key, f"no JSON: {error.msg}", **spent(reply))
    except Unreadable as error:
        return failed(reply.key, str(error), **spent(reply))
