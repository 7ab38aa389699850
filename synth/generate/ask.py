"""One request a row to a language model, and what its answer says: what instructions, responses,
further turns, LLM tags, guards, rewards and base answers have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import polars as pl

from core.columns import FAILED, OK
from core.sending.chat import Said, Unsaid, chat_request, refused, said, without
from core.servers import Endpoint
from core.wire import Reply, Request

Row = dict[str, Any]
Fields = dict[str, Any]
"""Columns with their polars types."""
Frames = Iterator[pl.DataFrame]
Rows = pl.DataFrame | Iterable[pl.DataFrame]
"""Rows to ask about: one frame, or frames one after the other, of which the next is taken while the
last is still being answered."""
Sampling = Mapping[str, Any]
"""SamplingParams, verbatim."""
Then = Callable[[Reply], Request | None]
T = TypeVar("T")
R = TypeVar("R")

TOKENS: Fields = {"tokens": pl.Int64, "prompt_tokens": pl.Int64}
"""Tokens generated and read."""

BATCH_ROWS = 32
BATCH_SECONDS = 5.0


class Unreadable(Exception):
    """An answer that does not say what was asked; its text is the reason of the failed cell."""


def only(rows: Rows, names: Iterable[str]) -> Rows:
    """The rows with these columns and no others."""
    if isinstance(rows, pl.DataFrame):
        return rows.select(names)
    names = list(names)
    return (frame.select(names) for frame in rows)


def answers(
    rows: Rows,
    body: Callable[[Row], Row],
    read: Callable[[Row], Row],
    endpoint: Endpoint,
    fields: Fields,
) -> Frames:
    """Ask once for each row, with no barrier; frames [id, *fields, tokens, prompt_tokens, status,
    reason] as the answers arrive.

    `rows`: id and whatever `body` reads of a row to make the request: `prompt` (token ids) and
    sampling parameters. `read` turns the first choice into the values of `fields`, or raises
    Unreadable: a failed cell with that reason, as is a request that failed. Where the endpoint's
    own `max_model_len` (tokens) is known, `max_tokens` is lowered to what the prompt leaves of it,
    and a prompt that leaves nothing is a failed cell that is never sent.
    """
    limit = context_length(endpoint)

    def ask(row: Row) -> Request | Row:
        return fitting(Request(row["id"], body(row)), limit)

    def cell(reply: Reply) -> Row:
        try:
            values = read(first_choice(reply))
        except Unreadable as error:
            return failed(reply.key, str(error), **spent(reply))
        return {"id": reply.key, **spent(reply), **values, "status": OK}

    return asked(rows, ask, cell, endpoint, {**fields, **TOKENS})


def chats(
    rows: Rows,
    body: Callable[[Row], Row],
    read: Callable[[Said], Row],
    endpoint: Endpoint,
    fields: Fields,
) -> Frames:
    """As `answers`, through `/v1/chat/completions` of any OpenAI-compatible service: one chat a
    row, what it costs counted by the endpoint's account; frames [id, *fields, tokens,
    prompt_tokens, status, reason].

    `endpoint` is that of `context.serve(config)` for a model with `api: chat` (`config.hosted`).
    `body` makes a row's request with `core.sending.chat.chat_body(messages, sampling, schema)`;
    where a service offers no structured outputs, or shows no log-probabilities, the request goes
    out again without them, so `read` must not rely on them. `read` turns what was said (text,
    finish_reason, thinking, and the whole first choice with its log-probabilities) into the values
    of `fields` (with `status` and `reason` where the cell failed all the same), or raises
    Unreadable. Refusals, content filters, empty answers and failed requests are failed cells with
    those reasons, never shown to `read`; an answer that was cut off is (finish_reason "length").
    UserError when the budget is reached: what was bought is yielded before.
    """
    sent: dict[str, Request] = {}
    lacking: set[str] = set()  # what the service does not offer

    def ask(row: Row) -> Request | Row:
        request = without(chat_request(row["id"], body(row)), lacking)
        sent[request.key] = request
        return request

    def then(reply: Reply) -> Request | None:
        request = sent.pop(reply.key, None)
        fields = refused(request, reply) if request else []
        if request is None or not fields:
            return None
        lacking.update(fields)
        sent[reply.key] = again = without(request, fields)
        return again

    def cell(reply: Reply) -> Row:
        try:
            values = read(said(reply))
        except (Unreadable, Unsaid) as error:
            return failed(reply.key, str(error), **spent(reply))
        return {"id": reply.key, "status": OK, **spent(reply), **values}

    return asked(rows, ask, cell, endpoint, {**fields, **TOKENS}, then)


def asked(
    rows: Rows,
    ask: Callable[[Row], Request | Row],
    read: Callable[[Reply], Row],
    endpoint: Endpoint,
    fields: Fields,
    then: Then | None = None,
) -> Frames:
    """Frames [id, *fields, status, reason] of what `exchanged` gives for the rows. What a hosted
    model was paid for stays in its account's journal until the caller comes back for more, which
    means that the frame before is stored."""
    account = endpoint.account
    given = [rows] if isinstance(rows, pl.DataFrame) else rows
    each = (row for frame in given for row in frame.iter_rows(named=True))
    behind = 0

    def heard(reply: Reply) -> Row:
        nonlocal behind
        behind = reply.behind
        return read(reply)

    replies = exchanged(each, ask, heard, endpoint, then)
    frames = batched(replies, fields, lambda: behind > 0)
    if account is None:
        yield from frames
        return
    with account.open():
        for frame in frames:
            yield frame
            account.stored(frame["id"])


def exchanged(
    items: Iterable[T],
    ask: Callable[[T], Request | R],
    read: Callable[[Reply], R],
    endpoint: Endpoint,
    then: Then | None = None,
) -> Iterator[R]:
    """What became of each item, in the order in which the answers arrive.

    `ask` gives an item's request, or at once what becomes of an item that is never sent; `read`
    turns the last reply of an item into what became of it; `then` continues as in
    `Endpoint.answers`.
    """
    refused: list[R] = []

    def requests() -> Iterator[Request]:
        for item in items:
            request = ask(item)
            if isinstance(request, Request):
                yield request
            else:
                refused.append(request)

    for reply in endpoint.answers(requests(), then):
        yield read(reply)
        while refused:
            yield refused.pop()
    yield from refused


def context_length(endpoint: Endpoint) -> int | None:
    """Tokens that the endpoint's servers take, prompt and answer, where the recipe says so in
    figures (`server.args.max_model_len`)."""
    given = endpoint.spec.args.get("max_model_len")
    return given if isinstance(given, int) and given > 0 else None


def fitting(request: Request, limit: int | None) -> Request | Row:
    """The request with `max_tokens` lowered as by `fit`, or the failed cell of one that cannot be
    sent."""
    problem = fit(request.body, limit, "for an answer ")
    if problem is None:
        return request
    return failed(request.key, problem, prompt_tokens=len(request.body["prompt"]))


def fit(body: Row, limit: int | None, purpose: str = "") -> str | None:
    """Lower `max_tokens` of a request to what its prompt leaves of `limit` (tokens; None: not
    known), or say why it cannot be sent: there is no room left, for whatever `purpose` names."""
    if limit is None:
        return None
    tokens = len(body["prompt"])
    left = limit - tokens
    if left < 1:
        return f"a prompt of {tokens} tokens leaves no room {purpose}in max_model_len {limit}"
    body["max_tokens"] = min(int(body.get("max_tokens") or left), left)
    return None


def spent(reply: Reply) -> Row:
    """Tokens that a reply cost, null where the server does not say."""
    usage = (reply.body or {}).get("usage") or {}
    return {"tokens": usage.get("completion_tokens"), "prompt_tokens": usage.get("prompt_tokens")}


def replied(reply: Reply) -> Row:
    """The body of a reply. Raises Unreadable for a request that failed."""
    if reply.error is not None or reply.body is None:
        raise Unreadable(f"request failed: {reply.error or 'empty reply'}")
    return reply.body


def first_choice(reply: Reply) -> Row:
    """The first choice of a completion. Raises Unreadable where there is none that has a text."""
    match replied(reply).get("choices"):
        case [{"text": str()} as choice, *_]:
            return dict(choice)
    raise Unreadable("request failed: the reply holds no completion text")


def failed(key: str, reason: str, **values: Any) -> Row:
    """A failed cell: its id, its reason, and whatever was measured all the same."""
    return {"id": key, **values, "status": FAILED, "reason": reason}


class Batch:
    """Rows on their way to a frame of `schema`, so that a kill loses little: it is `due` when it is
    BATCH_ROWS long or BATCH_SECONDS old."""

    def __init__(self, schema: Fields) -> None:
        self._schema = schema
        self.clear()

    def add(self, row: Row) -> None:
        """Keep a row's values; what the schema does not name is left out."""
        self._rows.append({name: row.get(name) for name in self._schema})

    @property
    def due(self) -> bool:
        """Whether the rows should be handed on now."""
        old = time.monotonic() - self._since >= BATCH_SECONDS
        return old or len(self._rows) >= BATCH_ROWS

    def frame(self) -> pl.DataFrame:
        """The rows that are kept."""
        return pl.DataFrame(self._rows, schema=self._schema, strict=False)

    def clear(self) -> None:
        """Begin anew."""
        self._rows: list[Row] = []
        self._since = time.monotonic()


def batched(rows: Iterable[Row], fields: Fields, more: Callable[[], bool] = lambda: True) -> Frames:
    """Rows as frames [id, *fields, status, reason], each as long and as old as a `Batch` may be
    when a row arrives, and at once when no `more` rows wait: what has arrived is never held back
    for what has not.

    An error in between (a server that went down) comes after the rows that were finished before it.
    """
    batch = Batch({"id": pl.String, **fields, "status": pl.String, "reason": pl.String})
    error: Exception | None = None
    try:
        for row in rows:
            batch.add(row)
            if batch.due or not more():
                yield batch.frame()
                batch.clear()
    except Exception as raised:
        error = raised
    rest = batch.frame()
    if len(rest):
        yield rest
    if error is not None:
        raise error
