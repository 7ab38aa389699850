"""The answers of one checkpoint to a prompt set, through its vLLM server.

Prompts are rendered by the checkpoint's own chat template and sent as token ids, so there is
exactly one BOS. Finished answers go to a column inside the result folder as they arrive; a killed
run that is started again asks for the rest.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from core import models
from core.columns import Column
from core.errors import UserError
from core.servers import Servers
from core.store import Counts
from core.tracking import Log
from core.wire import Reply, Request, ServerSpec
from eval.config import AnswersConfig
from eval.prompt_sets.prompts import ANSWERS, prompts

VERSION = 1
FLUSH = 32
"""Answers between two parts on disk: what a kill can lose at most, besides what was in flight."""


def run(
    config: AnswersConfig,
    inputs: dict[str, Path],
    out: Path,
    *,
    model: str,
    servers: Servers,
    log: Log,
) -> Counts:
    """Write `out`/answers.parquet: one row a prompt of `inputs["prompts"]`, in that file's order,
    with the columns of `benchmarks.ANSWERS`.

    `model` is a folder, `embedded/NAME` or hub id. A request that failed for good leaves a row with
    status "failed" and the reason. Counts: rows, failed, tokens (generated), truncated
    (finish_reason "length"), failed_reasons. Raises UserError when not one prompt was answered.
    """
    wanted = prompts(str(inputs["prompts"]))
    found = models.resolve(model)
    tokenizer = models.tokenizer(found.path)
    stops = stop_ids(found.path)
    work = out / "work"
    column = Column(
        work, {"answer": pl.String(), "finish_reason": pl.String(), "tokens": pl.Int64()}
    )
    missing = set(column.missing([prompt.id for prompt in wanted]))

    def requests() -> Iterator[Request]:
        for prompt in wanted:
            if prompt.id in missing:
                system = (
                    [{"role": "system", "content": config.system}]
                    if config.system is not None
                    else []
                )
                ids = models.render(
                    tokenizer,
                    [*system, *prompt.history, {"role": "user", "content": prompt.prompt}],
                    add_generation_prompt=True,
                )
                yield Request(
                    prompt.id, {"prompt": ids, "stop_token_ids": stops, **config.sampling}
                )

    failures: dict[str, str] = {}
    done = len(wanted) - len(missing)
    log.progress(done, len(wanted), "answers")
    if missing:
        buffer: list[dict[str, Any]] = []
        try:
            for reply in servers.serve(ServerSpec(model=found.path, **config.server)).stream(
                requests()
            ):
                answer = _answer(reply)
                if isinstance(answer, str):
                    failures[reply.key] = answer
                else:
                    buffer.append(answer)
                if len(buffer) >= FLUSH:
                    column.append(buffer)
                    buffer.clear()
                done += 1
                log.progress(done, len(wanted), "answers")
        finally:
            column.append(buffer)
    rows = pl.DataFrame({"id": [p.id for p in wanted], "prompt": [p.prompt for p in wanted]}).join(
        column.read(), on="id", how="left"
    )
    lost = pl.DataFrame(
        {"id": list(failures), "lost": list(failures.values())},
        schema={"id": pl.String, "lost": pl.String},
    )
    rows = rows.join(lost, on="id", how="left", maintain_order="left").with_columns(
        status=pl.col("status").fill_null("failed"), reason=pl.coalesce("reason", "lost")
    )
    failed = rows.filter(pl.col("status") == "failed")
    if failed.height == rows.height:
        raise UserError(
            f"{model} answered none of the {rows.height} prompts; the first reason: {failed['reason'][0]}"
        )
    rows.select(pl.col(name).cast(kind) for name, kind in ANSWERS.items()).write_parquet(
        out / "answers.parquet"
    )
    shutil.rmtree(work)
    reasons = failed["reason"].value_counts()
    return {
        "rows": rows.height,
        "failed": failed.height,
        "tokens": int(rows["tokens"].sum() or 0),
        "truncated": rows.filter(pl.col("finish_reason") == "length").height,
        "failed_reasons": dict(zip(reasons["reason"], reasons["count"], strict=True)),
    }


def _answer(reply: Reply) -> dict[str, Any] | str:
    """A row of the column, or why there is none."""
    if reply.body is None:
        return reply.error or "no reply"
    try:
        choice = reply.body["choices"][0]
        return {
            "id": reply.key,
            "answer": str(choice["text"]),
            "finish_reason": str(choice["finish_reason"]),
            "tokens": int(reply.body["usage"]["completion_tokens"]),
        }
    except (KeyError, IndexError, TypeError, ValueError) as error:
        return f"malformed reply: {type(error).__name__} {error}"


def stop_ids(path: str) -> list[int]:
    """The token ids at which this model's turn ends: eos of its generation_config.json (one or
    several) and of its tokenizer, ascending.

    Sent with each request, since a server told to ignore generation_config.json would stop only at
    the tokenizer's own.
    """
    ids: set[int] = set()
    own = models.tokenizer(path).eos_token_id
    if own is not None:
        ids.add(int(own))
    file = Path(path) / "generation_config.json"
    if not file.is_file() and not Path(path).is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(path, "generation_config.json")
        file = Path(cached) if isinstance(cached, str) else file
    if file.is_file():
        listed = json.loads(file.read_text()).get("eos_token_id") or []
        ids.update(listed if isinstance(listed, list) else [listed])
    return sorted(ids)
