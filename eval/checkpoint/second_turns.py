"""The answers of one checkpoint to MT-Bench's questions: the second turn is asked after the model's
own answer to the first."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl

from core.files import write_atomic
from core.servers import Servers
from core.store import Counts
from core.tracking import Log
from eval.checkpoint import answers
from eval.config import AnswersConfig
from eval.prompt_sets.prompts import ANSWERS, Prompt, write_prompts
from eval.prompt_sets.rated_tasks import SECOND, tasks

VERSION = 1


def run(
    config: AnswersConfig,
    inputs: dict[str, Path],
    out: Path,
    *,
    model: str,
    servers: Servers,
    log: Log,
) -> Counts:
    """Write `out`/answers.parquet for the questions in `inputs["prompts"]`: all first turns under
    their id, then all second turns as "ID#2".

    A second turn whose first has no answer is failed, with that reason. Arguments, columns, counts
    and errors are those of eval.answers.run. A finished first turn survives a kill.
    """
    questions = tasks("mtbench", str(inputs["prompts"]))
    first, done = _turn(
        config,
        [Prompt(q.id, q.prompt, q.category) for q in questions],
        out / "turn-1",
        model=model,
        servers=servers,
        log=log,
    )
    said = {
        name: answer
        for name, answer, status in first.select("id", "answer", "status").iter_rows()
        if status == "ok"
    }
    two = [q for q in questions if len(q.turns) == 2]
    frames, counts = [first], [done]
    follow = [
        Prompt(
            q.id + SECOND,
            q.turns[1],
            q.category,
            ({"role": "user", "content": q.prompt}, {"role": "assistant", "content": said[q.id]}),
        )
        for q in two
        if q.id in said
    ]
    if follow:
        second, done = _turn(config, follow, out / "turn-2", model=model, servers=servers, log=log)
        frames.append(second)
        counts.append(done)
    lost = [
        {
            "id": q.id + SECOND,
            "prompt": q.turns[1],
            "status": "failed",
            "reason": "the first turn has no answer",
        }
        for q in two
        if q.id not in said
    ]
    frames.append(pl.DataFrame(lost, schema=ANSWERS))
    frame = pl.concat(frames)
    frame.write_parquet(out / "answers.parquet")
    for turn in ("turn-1", "turn-2"):
        shutil.rmtree(out / turn, ignore_errors=True)
    failed = frame.filter(pl.col("status") == "failed")["reason"].value_counts()
    return {
        "rows": frame.height,
        "failed": int(failed["count"].sum()),
        **{name: sum(c[name] for c in counts) for name in ("tokens", "truncated")},
        "failed_reasons": dict(zip(failed["reason"], failed["count"], strict=True)),
    }


def _turn(
    config: AnswersConfig,
    wanted: list[Prompt],
    folder: Path,
    *,
    model: str,
    servers: Servers,
    log: Log,
) -> tuple[pl.DataFrame, Counts]:
    """Answers to one turn; `folder`/counts.json is written last and says that they are complete."""
    finished = folder / "counts.json"
    if not finished.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_prompts(wanted, folder / "prompts.jsonl")
        counts = answers.run(
            config,
            {"prompts": folder / "prompts.jsonl"},
            folder,
            model=model,
            servers=servers,
            log=log,
        )
        write_atomic(finished, json.dumps(counts))
    return pl.read_parquet(folder / "answers.parquet"), json.loads(finished.read_text())
