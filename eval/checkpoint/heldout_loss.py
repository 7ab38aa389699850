"""Loss of a checkpoint on conversations that were kept out of training: the one figure that small
models give reliably.

Each conversation goes to the checkpoint's vLLM server as token ids, once; `prompt_logprobs` gives
the log-probability of every token given those before it. Only what the assistant says counts: its
words and the end-of-turn token, as in training on assistant tokens.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from core import models
from core.columns import Column
from core.errors import UserError
from core.servers import Servers
from core.store import Counts
from core.tracking import Log
from core.wire import Reply, Request, ServerSpec
from eval.checkpoint.answers import stop_ids
from eval.config import AnswersConfig, HeldoutConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1
FLUSH = 32


@dataclass(frozen=True)
class Scored:
    """A conversation as token ids, and which of them count: `spans` are [start, end) of the
    assistant's turns."""

    ids: list[int]
    spans: list[tuple[int, int]]


def run(
    config: HeldoutConfig,
    inputs: dict[str, Path],
    out: Path,
    *,
    model: str,
    servers: Servers,
    log: Log,
    answers: AnswersConfig | None = None,
) -> Counts:
    """Write `out`/losses.parquet: [id, loss (mean nats per assistant token, null when failed),
    tokens (those counted), status, reason].

    `inputs["heldout"]` is a Parquet file with `id` and `messages` (list of {role, content}).
    `model` is a folder, `embedded/NAME` or hub id; its own chat template renders the conversations.
    The server is `config.server`, else that of `answers`. A conversation that cannot be scored (no
    assistant turn, longer than the server's context) stays, failed and counted. Counts: rows,
    failed, failed_reasons, tokens, loss (mean over conversations), token_loss (mean over tokens).
    Raises UserError when no conversation could be scored, or when the file is not what it should
    be.
    """
    path = inputs["heldout"]
    try:
        conversations = pl.read_parquet(path, columns=["id", "messages"])
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(
            f"{path} cannot be read as held-out conversations ({error}); it needs the columns id and messages."
        ) from error
    if conversations.is_empty():
        raise UserError(f"{path} holds no conversations: keep some rows out of training.")
    found = models.resolve(model)
    tokenizer, stops = models.tokenizer(found.path), stop_ids(found.path)
    column = Column(out / "work", {"loss": pl.Float64(), "tokens": pl.Int64()})
    missing = set(column.missing(conversations["id"].to_list()))
    spans: dict[str, list[tuple[int, int]]] = {}
    failures: dict[str, str] = {}

    def requests() -> Iterator[Request]:
        for name, messages in conversations.iter_rows():
            if name in missing:
                try:
                    scored = spans_of(tokenizer, messages, stops)
                except (UserError, ValueError) as error:
                    failures[name] = str(error)
                    continue
                spans[name] = scored.spans
                yield Request(
                    name,
                    {"prompt": scored.ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0},
                )

    done = conversations.height - len(missing)
    log.progress(done, conversations.height, "conversations")
    server = (
        config.server
        if config.server is not None
        else (answers.server if answers is not None else {})
    )
    if missing:
        buffer: list[dict[str, Any]] = []
        try:
            for reply in servers.serve(ServerSpec(model=found.path, **server)).stream(requests()):
                row = _loss(reply, spans[reply.key])
                if isinstance(row, str):
                    failures[reply.key] = row
                else:
                    buffer.append(row)
                if len(buffer) >= FLUSH:
                    column.append(buffer)
                    buffer.clear()
                done += 1
                log.progress(done, conversations.height, "conversations")
        finally:
            column.append(buffer)
    lost = pl.DataFrame(
        {"id": list(failures), "lost": list(failures.values())},
        schema={"id": pl.String, "lost": pl.String},
    )
    rows = (
        conversations.select("id")
        .join(column.read(), on="id", how="left", maintain_order="left")
        .join(lost, on="id", how="left", maintain_order="left")
        .select(
            "id",
            "loss",
            "tokens",
            status=pl.col("status").fill_null("failed"),
            reason=pl.coalesce("reason", "lost"),
        )
    )
    failed = rows.filter(pl.col("status") == "failed")
    if failed.height == rows.height:
        raise UserError(
            f"{model} could be scored on none of the {rows.height} held-out conversations; the first reason: {failed['reason'][0]}"
        )
    rows.write_parquet(out / "losses.parquet")
    shutil.rmtree(out / "work")
    why = failed["reason"].value_counts().sort("reason")
    return {
        "rows": rows.height,
        "failed": failed.height,
        "failed_reasons": dict(zip(why["reason"], why["count"], strict=True)),
        "tokens": int(rows["tokens"].sum() or 0),
        "loss": rows["loss"].mean(),
        "token_loss": rows.select(
            (pl.col("loss") * pl.col("tokens")).sum() / pl.col("tokens").sum()
        ).item(),
    }


def spans_of(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], stops: Sequence[int]
) -> Scored:
    """Token ids of a conversation up to its last assistant turn, and where the assistant's turns
    lie in them.

    A turn begins where the template, asked for a generation prompt, hands over to the assistant,
    and ends with its last stop or control token; white space that a template writes after that is
    not counted. Raises ValueError when there is no assistant turn, or when the template renders a
    conversation's beginning otherwise than the whole (then nothing says which tokens are the
    assistant's).
    """
    spans: list[tuple[int, int]] = []
    whole: list[int] = []
    controls = {
        *stops,
        *(number for number, token in tokenizer.added_tokens_decoder.items() if token.special),
    }
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = models.render(tokenizer, messages[:number], add_generation_prompt=True)
        until = models.render(tokenizer, messages[: number + 1], add_generation_prompt=False)
        if until[: len(before)] != before or before[: len(whole)] != whole:
            raise ValueError(
                "the chat template renders the conversation's beginning otherwise than the whole"
            )
        ends = [i for i in range(len(before), len(until)) if until[i] in controls]
        end = ends[-1] + 1 if ends else len(until)
        spans.append((len(before), end))
        whole = until[:end]
    if not spans or not all(start < end for start, end in spans):
        raise ValueError("the conversation holds no words of the assistant")
    return Scored(whole, spans)


def _loss(reply: Reply, spans: list[tuple[int, int]]) -> dict[str, Any] | str:
    if reply.body is None:
        return reply.error or "no reply"
    try:
        given = reply.body["choices"][0]["prompt_logprobs"]
        # One mapping a position, from token id to {"logprob", …}; with prompt_logprobs=0 it holds
        # the token that is there and no other.
        values = [
            next(iter(given[i].values()))["logprob"]
            for start, end in spans
            for i in range(start, end)
        ]
    except (KeyError, IndexError, TypeError, AttributeError, StopIteration) as error:
        return f"malformed reply: {type(error).__name__} {error}"
    return {"id": reply.key, "loss": -sum(values) / len(values), "tokens": len(values)}
