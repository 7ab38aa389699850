"""One request a row to a language model, and what its answer says: what LLM tags, guards and base
answers have in common."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import polars as pl

from core.columns import FAILED, OK
from core.servers import Endpoint
from core.wire import Reply, Request

STATUS: dict[str, Any] = {
    "tokens": pl.Int64,
    "prompt_tokens": pl.Int64,
    "status": pl.String,
    "reason": pl.String,
}
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
    """Ask once for each row, with no barrier; frames [id, *fields, tokens, prompt_tokens, status,
    reason] as the answers arrive.

    `rows`: id and whatever `body` reads of a row to make the request: `prompt` (token ids) and
    sampling parameters. `read` turns the first choice into the values of `fields`, or raises
    Unreadable (or json.JSONDecodeError): a failed cell with that reason, as is a request that
    failed. Where the endpoint's own `max_model_len` (tokens) is known, `max_tokens` is lowered to
    what the prompt leaves of it, and a prompt that leaves nothing is a failed cell that is never
    sent.
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
    """Tokens that the endpoint's servers take, prompt and answer, where the recipe says so in
    figures (`server.args.max_model_len`)."""
    given = endpoint.spec.args.get("max_model_len")
    return given if isinstance(given, int) and given > 0 else None


def too_long(key: str, tokens: int, limit: int) -> Row:
    """The failed cell of a prompt that a server cannot take (both in tokens)."""
    return failed(
        key,
        f"a prompt of {tokens} tokens leaves no room for an answer in max_model_len {limit}",
        prompt_tokens=tokens,
    )


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


BATCH_ROWS = 32


BATCH_SECONDS = 5.0


Row = dict[str, Any]


def completion(reply: Reply) -> tuple[dict[str, Any] | None, str]:
    """The first choice of a completion that has a text, or None and the reason why there is
    none."""
    if reply.error is not None or reply.body is None:
        return None, f"request failed: {reply.error or 'empty reply'}"
    choices = reply.body.get("choices")
    if (
        not isinstance(choices, list)
        or not choices
        or not isinstance(choices[0], dict)
        or not isinstance(choices[0].get("text"), str)
    ):
        return None, "request failed: the reply holds no completion text"
    return choices[0], ""


def failed(key: str, reason: str, **values: Any) -> Row:
    """A failed cell: its id, its reason, and whatever was measured all the same."""
    return {"id": key, **values, "status": FAILED, "reason": reason}


def batched(
    rows: Iterable[Row], schema: Mapping[str, Any], clock: Callable[[], float] = time.monotonic
) -> Iterator[pl.DataFrame]:
    """Rows as frames of `schema`, each at most BATCH_ROWS long and BATCH_SECONDS old when a row
    arrives, so that a kill loses little.

    An error in between (a server that went down) comes after the rows that were finished before it.
    """
    held: list[Row] = []
    since = clock()
    try:
        for row in rows:
            held.append({name: row.get(name) for name in schema})
            if len(held) >= BATCH_ROWS or clock() - since >= BATCH_SECONDS:
                yield pl.DataFrame(held, schema=dict(schema), strict=False)
                held, since = [], clock()
    except Exception:
        if held:
            yield pl.DataFrame(held, schema=dict(schema), strict=False)
        raise
    if held:
        yield pl.DataFrame(held, schema=dict(schema), strict=False)
