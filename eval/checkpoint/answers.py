"""The answers of one checkpoint to a prompt set, through its vLLM server.

Prompts are rendered by the checkpoint's own chat template and sent as token ids, so there is
exactly one BOS. Finished answers go to a column inside the result folder as they arrive; a killed
run that is started again asks for the rest.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from core import models
from core.servers import Servers
from core.store import Counts
from core.tracking import Log
from core.wire import Request
from eval.checkpoint.asked import Asked, Questions, folder_of, named, server_of, settle, tally
from eval.prompt_sets import samples
from eval.prompt_sets.prompts import ANSWERS, prompts
from eval.protocols import AnswersConfig

VERSION = 1


def run(
    config: AnswersConfig,
    inputs: dict[str, Path],
    out: Path,
    *,
    model: Asked,
    servers: Servers,
    log: Log,
) -> Counts:
    """Write `out`/answers.parquet: one row a prompt of `inputs["prompts"]` (or so many as
    `answers_per_prompt` says: eval/prompt_sets/samples.py), in that file's order, with the columns
    of `benchmarks.ANSWERS`.

    `model` is a folder, `embedded/NAME`, hub id, or a checkpoint with an adapter.
    `inputs["earlier"]`, an answers folder, has what need not be asked for. A request that failed
    for good leaves a row with status "failed" and the reason. Counts: rows, failed, again (failed
    by the server's fault), failed_reasons, tokens (generated), truncated (finish_reason "length").
    Raises UserError when not one prompt was answered.
    """
    several = config.answers_per_prompt
    asked = samples.each(prompts(str(inputs["prompts"])), several)
    wanted = {prompt.id: prompt for prompt in asked}
    path = folder_of(model)
    tokenizer = models.tokenizer(path)
    stops = stop_ids(path)
    system = [] if config.system is None else [{"role": "system", "content": config.system}]

    def ask(name: str) -> Request:
        prompt = wanted[name]
        messages = [*system, *prompt.history, {"role": "user", "content": prompt.prompt}]
        ids = models.render(tokenizer, messages, add_generation_prompt=True)
        body = {"prompt": ids, "stop_token_ids": stops, **named(model), **config.sampling}
        if several > 1:
            body["seed"] = int(config.sampling.get("seed") or 0) + samples.number(name)
        return Request(name, body)

    questions = Questions(
        ids=list(wanted),
        unit="answers",
        fields={"answer": pl.String(), "finish_reason": pl.String(), "tokens": pl.Int64()},
        ask=ask,
        read=_answer,
        nothing=f"{path} answered none of the {len(wanted)} prompts",
    )
    endpoint = servers.serve(server_of(model, path, config.server))
    earlier = inputs["earlier"] / "answers.parquet" if "earlier" in inputs else None
    rows = settle(questions, endpoint, out / "work", log, earlier).with_columns(
        prompt=pl.Series([prompt.prompt for prompt in wanted.values()])
    )
    columns = [pl.col(name).cast(kind) for name, kind in ANSWERS.items()]
    rows.select(columns).write_parquet(out / "answers.parquet")
    shutil.rmtree(out / "work")
    return tally(rows) | {
        "tokens": int(rows["tokens"].sum() or 0),
        "truncated": rows.filter(pl.col("finish_reason") == "length").height,
    }


def _answer(_: str, body: Mapping[str, Any]) -> dict[str, Any]:
    choice = body["choices"][0]
    return {
        "answer": str(choice["text"]),
        "finish_reason": str(choice["finish_reason"]),
        "tokens": int(body["usage"]["completion_tokens"]),
    }


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
    if file.is_file():
        listed = json.loads(file.read_text()).get("eos_token_id") or []
        ids.update(listed if isinstance(listed, list) else [listed])
    return sorted(ids)
