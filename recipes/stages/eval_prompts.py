"""The prompts that a recipe evaluates on, as one file that synthesis compares instructions with:
the floors meet in files only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import UserError
from core.files import write_atomic
from core.store import digest
from eval.config import EvalConfig, pairwise_benchmarks, rated_benchmarks
from recipes.stages.walk import Arms
from synth.measures import MEASURES

if TYPE_CHECKING:
    from eval.prompt_sets.prompts import Prompt

COLUMNS = frozenset(MEASURES["overlap"].columns) | frozenset(MEASURES["eval_distance"].columns)


def eval_prompts(
    config: EvalConfig | None, arms: Arms, root: Path, *, planning: bool
) -> Path | None:
    """JSONL {id, prompt, benchmark} of every prompt of the recipe's benchmarks, under the
    store `root`, named by its content.

    All prompts of a set, whatever `limit` says, so that an evaluation may grow; of a conversation
    each of the user's messages. Tasks of lm-eval are not among them. None when no arm asks for a
    column of it, when the recipe has no such benchmark, or, in a plan, when the file was not
    written yet. Raises UserError when a set cannot be read.
    """
    rules = [*arms.rules.values(), *arms.data.values()]
    asked = any(rule.columns & COLUMNS or rule.choose.kind == "rds" for rule in rules)
    if config is None or not asked:
        return None
    return prompts_file(config, root, planning=planning)


def prompts_file(config: EvalConfig, root: Path, *, planning: bool = False) -> Path | None:
    """As `eval_prompts`, whoever asks."""
    try:
        lines = list(_lines(config, fetch=not planning))
    except UserError:
        if planning:
            return None
        raise
    # Two benchmarks may ask the same prompts: the first of them keeps its name.
    first = {(line["id"], line["prompt"]): line for line in reversed(lines)}
    lines = list(first.values())[::-1]
    file = root / "eval-prompts" / f"{digest(lines)[:16]}.jsonl"
    if not lines or file.exists():
        return file if lines else None
    if planning:
        return None
    write_atomic(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return file


def _lines(config: EvalConfig, *, fetch: bool) -> Iterator[dict[str, str]]:
    from eval.prompt_sets import checked_prompts, prompts, rated_tasks

    for benchmark in pairwise_benchmarks(config):
        for prompt in prompts.prompts(str(config.protocol(benchmark).prompts), fetch=fetch):
            yield from _of_prompt(prompt, benchmark)
    for rated in rated_benchmarks(config):
        for task in rated_tasks.tasks(rated, config.rating(rated).prompts, fetch=fetch):
            yield from _of_prompt(task, rated, task.turns[1:])
    if config.checks is not None:
        for checked in checked_prompts.checked_prompts(config.checks.prompts):
            yield from _of_prompt(checked, "checks")


def _of_prompt(
    prompt: Prompt, benchmark: str, more: tuple[str, ...] = ()
) -> Iterator[dict[str, str]]:
    earlier = [turn["content"] for turn in prompt.history if turn["role"] == "user"]
    for text in (prompt.prompt, *more, *earlier):
        if text.strip():
            yield {"id": prompt.id, "prompt": text, "benchmark": benchmark}
