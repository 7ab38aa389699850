"""The answers of one checkpoint to MT-Bench's questions: the second turn is asked after the model's
own answer to the first."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import polars as pl

from core.columns import FAILED, OK
from core.files import write_atomic
from core.servers import Servers
from core.store import Counts
from core.tracking import Log
from eval.checkpoint import answers
from eval.checkpoint.asked import Asked, tally
from eval.prompt_sets.prompts import ANSWERS, Prompt, write_prompts
from eval.prompt_sets.rated_tasks import SECOND, tasks
from eval.protocols import AnswersConfig

VERSION = 1
NO_FIRST_TURN = {"status": FAILED, "reason": "the first turn has no answer"}


def run(
    config: AnswersConfig,
    inputs: dict[str, Path],
    out: Path,
    *,
    model: Asked,
    servers: Servers,
    log: Log,
) -> Counts:
    """Write `out`/answers.parquet for the questions in `inputs["prompts"]`: all first turns under
    their id, then all second turns as "ID#2".

    A second turn whose first has no answer is failed, with that reason. Arguments, columns, counts
    and errors are those of eval.checkpoint.answers.run. A finished first turn survives a kill.
    """
    questions = tasks("mtbench", str(inputs["prompts"]))
    ask = partial(_turn, config, inputs, model=model, servers=servers, log=log)
    openings = [Prompt(q.id, q.prompt, q.category) for q in questions]
    first, counts = ask((openings, out / "turn-1"))
    answered = dict(first.filter(pl.col("status") == OK).select("id", "answer").iter_rows())
    follow: list[Prompt] = []
    lost: list[dict[str, str]] = []
    for q in questions:
        for text in q.turns[1:]:
            name = q.id + SECOND
            if q.id in answered:
                history = (
                    {"role": "user", "content": q.prompt},
                    {"role": "assistant", "content": answered[q.id]},
                )
                follow.append(Prompt(name, text, q.category, history))
            else:
                lost.append({"id": name, "prompt": text, **NO_FIRST_TURN})
    frames = [first]
    if follow:
        second, more = ask((follow, out / "turn-2"))
        frames.append(second)
        counts |= {name: counts[name] + more[name] for name in ("tokens", "truncated", "again")}
    frame = pl.concat([*frames, pl.DataFrame(lost, schema=ANSWERS)])
    frame.write_parquet(out / "answers.parquet")
    for turn in ("turn-1", "turn-2"):
        shutil.rmtree(out / turn, ignore_errors=True)
    return counts | {**tally(frame), "again": counts["again"]}


def _turn(
    config: AnswersConfig,
    given: dict[str, Path],
    asked: tuple[list[Prompt], Path],
    *,
    model: Asked,
    servers: Servers,
    log: Log,
) -> tuple[pl.DataFrame, Counts]:
    """Answers to one turn; `asked`: its prompts and its folder, whose counts.json is written last
    and says that they are complete."""
    wanted, folder = asked
    finished = folder / "counts.json"
    if not finished.exists():
        folder.mkdir(parents=True, exist_ok=True)
        inputs = given | {"prompts": folder / "prompts.jsonl"}
        write_prompts(wanted, inputs["prompts"])
        counts = answers.run(config, inputs, folder, model=model, servers=servers, log=log)
        write_atomic(finished, json.dumps(counts))
    return pl.read_parquet(folder / "answers.parquet", glob=False), json.loads(finished.read_text())
