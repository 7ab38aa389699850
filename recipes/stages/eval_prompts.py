"""The prompts that a recipe evaluates on, as one file that synthesis compares instructions with:
the stages meet in files only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from core.errors import UserError
from core.files import write_atomic
from core.store import digest
from eval.config import rated_benchmarks
from synth.measures import MEASURES

if TYPE_CHECKING:
    from eval.prompt_sets.prompts import Prompt
    from recipes.stages.graph import Stages

COLUMNS = frozenset(MEASURES["overlap"].columns) | frozenset(MEASURES["eval_distance"].columns)


def eval_prompts(graph: Stages) -> Path | None:
    """JSONL {id, prompt, benchmark} of every prompt of the recipe's judged benchmarks, under the
    store, named by its content.

    All prompts of a set, whatever `limit` says, so that an evaluation may grow; of a conversation
    each of the user's messages. Tasks of lm-eval are not among them. None when no filter asks for a
    column of it, when the recipe has no such benchmark, or, in a plan, when the file was not
    written yet. Raises UserError when a set cannot be read.
    """
    config = graph.recipe.eval
    if config is None or not any(rule.columns & COLUMNS for rule in graph.filters.values()):
        return None
    from eval.prompt_sets import prompts, rated_tasks

    fetch = not graph.session.planning
    lines: list[dict[str, str]] = []
    try:
        pairwise: list[Literal["alpaca", "arena"]] = [
            b for b in ("alpaca", "arena") if getattr(config, b) is not None
        ]
        for benchmark in pairwise:
            for prompt in prompts.prompts(str(config.protocol(benchmark).prompts), fetch=fetch):
                lines += _lines(prompt, benchmark)
        for rated in rated_benchmarks(config):
            for task in rated_tasks.tasks(rated, config.rating(rated).prompts, fetch=fetch):
                lines += _lines(task, rated, task.turns[1:])
    except UserError:
        if graph.session.planning:
            return None
        raise
    lines = list({(line["id"], line["prompt"]): line for line in reversed(lines)}.values())[
        ::-1
    ]  # two benchmarks may ask the same prompts
    if not lines:
        return None
    file = graph.session.store.root / "eval-prompts" / f"{digest(lines)[:16]}.jsonl"
    if not file.exists():
        if graph.session.planning:
            return None
        write_atomic(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return file


def _lines(prompt: Prompt, benchmark: str, more: tuple[str, ...] = ()) -> list[dict[str, str]]:
    texts = [prompt.prompt, *more, *(m["content"] for m in prompt.history if m["role"] == "user")]
    return [
        {"id": prompt.id, "prompt": text, "benchmark": benchmark} for text in texts if text.strip()
    ]
