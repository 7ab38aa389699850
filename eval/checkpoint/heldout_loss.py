"""Loss of a checkpoint on conversations that were kept out of training: the one figure that small
models give reliably.

Each conversation goes to the checkpoint's vLLM server as token ids, once; `prompt_logprobs` gives
the log-probability of every token given those before it. Only what the assistant says counts: its
words and the end-of-turn token, as in training on assistant tokens.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from core import models
from core.errors import UserError
from core.servers import Servers
from core.store import Counts
from core.tracking import Log
from core.wire import Request, prompt_losses, scoring_request
from eval.checkpoint.answers import stop_ids
from eval.checkpoint.asked import Asked, Questions, folder_of, named, server_of, settle, tally

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1


@dataclass(frozen=True)
class Scored:
    """A conversation as token ids, and which of them count: `spans` are [start, end) of the
    assistant's turns."""

    ids: list[int]
    spans: list[tuple[int, int]]


def run(
    server: Mapping[str, Any],
    inputs: dict[str, Path],
    out: Path,
    *,
    model: Asked,
    servers: Servers,
    log: Log,
) -> Counts:
    """Write `out`/losses.parquet: [id, loss (mean nats per assistant token, null when failed),
    tokens (those counted), status, reason].

    `inputs["heldout"]` is a Parquet file with `id` and `messages` (list of {role, content}).
    `model` is a folder, `embedded/NAME`, hub id, or a checkpoint with an adapter; its own chat
    template renders the conversations.
    `server` is its `server:` block. A conversation that cannot be scored (no
    assistant turn, longer than the server's context) stays, failed and counted. Counts: rows,
    failed, failed_reasons, tokens, loss (mean over conversations), token_loss (mean over tokens).
    Raises UserError when no conversation could be scored, or when the file is not what it should
    be.
    """
    conversations = _conversations(inputs["heldout"])
    path = folder_of(model)
    tokenizer = models.tokenizer(path)
    stops = stop_ids(path)
    asked: dict[str, Scored] = {}

    def ask(name: str) -> Request | str:
        try:
            asked[name] = spans_of(tokenizer, conversations[name], stops)
        except (UserError, ValueError) as error:
            return str(error)
        return scoring_request(name, asked[name].ids, named(model))

    def read(name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        scored = asked.pop(name)
        choice = body["choices"][0]
        losses: list[float] = []
        for start, end in scored.spans:
            losses += prompt_losses(choice, scored.ids, start, end)
        return {"loss": sum(losses) / len(losses), "tokens": len(losses)}

    n = len(conversations)
    questions = Questions(
        ids=list(conversations),
        unit="conversations",
        fields={"loss": pl.Float64(), "tokens": pl.Int64()},
        ask=ask,
        read=read,
        nothing=f"{path} could be scored on none of the {n} held-out conversations",
    )
    endpoint = servers.serve(server_of(model, path, server))
    earlier = inputs["earlier"] / "losses.parquet" if "earlier" in inputs else None
    rows = settle(questions, endpoint, out / "work", log, earlier)
    rows.drop("again").write_parquet(out / "losses.parquet")
    shutil.rmtree(out / "work")
    tokens = int(rows["tokens"].sum())
    return tally(rows) | {
        "tokens": tokens,
        "loss": rows["loss"].mean(),
        "token_loss": (rows["loss"] * rows["tokens"]).sum() / tokens,
    }


def _conversations(path: Path) -> dict[str, list[dict[str, str]]]:
    """Messages by id, in the file's order."""
    try:
        frame = pl.read_parquet(path, columns=["id", "messages"], glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(
            f"{path} cannot be read as held-out conversations ({error}); "
            "it needs the columns id and messages."
        ) from error
    if frame.is_empty():
        raise UserError(f"{path} holds no conversations: keep some rows out of training.")
    return dict(frame.select("id", "messages").iter_rows())


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
    special = [number for number, token in tokenizer.added_tokens_decoder.items() if token.special]
    controls = {*stops, *special}
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = models.render(tokenizer, messages[:number], add_generation_prompt=True)
        until = models.render(tokenizer, messages[: number + 1], add_generation_prompt=False)
        if until[: len(before)] != before or before[: len(whole)] != whole:
            raise ValueError(
                "the chat template renders the conversation's beginning otherwise than the whole"
            )
        ends = [at for at in range(len(before), len(until)) if until[at] in controls]
        opened = models.render(tokenizer, messages[: number + 1], add_generation_prompt=True)
        if opened == until:  # a template that always opens the next turn (early Llama-3's)
            ends = ends[:1]
        end = ends[-1] + 1 if ends else len(until)
        spans.append((len(before), end))
        whole = until[:end]
    if not spans or not all(start < end for start, end in spans):
        raise ValueError("the conversation holds no words of the assistant")
    return Scored(whole, spans)
