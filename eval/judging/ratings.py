"""Rating a checkpoint's answers one by one: WildBench's WB-Score by checklists, MT-Bench by
single-answer grading of two turns.

Nothing is compared with a baseline. A rating is named by what the judge is shown and lives in a
column of the store keyed by who rated and how, with the journal, the purse and the shielding of
hostile text that pairwise judgments have (eval/judging/pairwise.py, eval/judging/templates.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from core.columns import OK
from core.files import write_atomic
from core.servers import Servers
from core.store import Counts, digest
from core.tracking import Log
from eval.config import JudgeConfig, RatedProtocol, WildBenchProtocol
from eval.judging import settle, templates, wb_reward
from eval.judging.ask import Question
from eval.judging.journal import Purse
from eval.prompt_sets.rated_tasks import SECOND, Task, tasks

FIELDS: dict[str, pl.DataType | type[pl.DataType]] = {
    "rating": pl.Float64,
    "verdict": pl.String,
    "prompt_tokens": pl.Int64,
    "tokens": pl.Int64,
    "model": pl.String,
    "fingerprint": pl.String,
}
"""Value fields of a rating: from 1 to 10, null where the judge's text (`verdict`) does not end with
one."""

RATINGS = {
    "item": pl.String,
    "turn": pl.Int64,
    "category": pl.String,
    "tags": pl.List(pl.String),
    **FIELDS,
    "judgment": pl.String,
    "status": pl.String,
    "reason": pl.String,
}
"""Columns of ratings.parquet, one row a turn: `item` is the task or question, `status` "ok" or
"unjudged", `judgment` the rating's id in the store (null when nobody was asked)."""


@dataclass(frozen=True)
class Turn:
    """One answer to be rated (`question`), or that cannot be (`reason`)."""

    task: Task
    number: int
    question: Question | None = None
    reason: str | None = None


def run(
    protocol: RatedProtocol,
    inputs: Mapping[str, Path],
    root: Path,
    out: Path,
    *,
    servers: Servers,
    log: Log,
) -> Counts:
    """Rate `inputs["answers"]` (an answers folder) to the tasks in `inputs["prompts"]`; write
    `out`/ratings.parquet and `out`/protocol.json.

    A WildBench protocol with `references` also has WB-Reward judged (eval/judging/wb_reward.py)
    against the answers in `inputs["reference/NAME"]`. `protocol` is `EvalConfig.rating(benchmark)`,
    whose judge is set. `root` is the store's root, where ratings are kept for good. A turn that
    nobody could rate stays, with its reason.

    Counts: rows (turns), judged, unjudged and unjudged_reasons, cut (answers shortened), asked,
    from_store, prompt_tokens, tokens, money, models, fingerprints, and with references rewards (the
    counts of those; money is for both). Raises UserError when the budget ends the run, or when not
    one of the ratings asked for came back.
    """
    judge = protocol.judge
    answers = settle.read_answers(inputs["answers"])
    wanted = tasks(protocol.kind, str(inputs["prompts"]))
    shapes: dict[tuple[str, ...], templates.Template] = {}
    turns = [turn for task in wanted for turn in _turns(task, protocol, judge, answers, shapes)]
    questions = {turn.question.id: turn.question for turn in turns if turn.question is not None}
    purse = Purse(judge.prices, judge.budget)
    stored, reasons, asked, known = settle.buy(
        protocol, judge, list(questions.values()), root, purse, servers, log, FIELDS
    )
    settle.within_budget(judge, purse, stored.height, len(questions))
    out.mkdir(parents=True, exist_ok=True)
    frame = _table(turns, stored, reasons)
    frame.write_parquet(out / "ratings.parquet")
    write_atomic(out / "protocol.json", json.dumps(settle.determines(judge, protocol), indent=2))
    compared: Counts = {}
    if isinstance(protocol, WildBenchProtocol) and protocol.references:
        compared = {
            "rewards": wb_reward.run(
                protocol, wanted, inputs, root, out, purse=purse, servers=servers, log=log
            )
        }
    cut = sum(
        answer is not None and len(answer) > judge.max_answer_characters
        for answer, _ in answers.values()
    )
    counts = (
        _counts(frame)
        | {"cut": cut, "asked": asked, "from_store": known, "money": round(purse.spent, 6)}
        | compared
    )
    settle.warn_of_change(counts, log)
    return counts


def _turns(
    task: Task,
    protocol: RatedProtocol,
    judge: JudgeConfig,
    answers: Mapping[str, tuple[str | None, str]],
    shapes: dict[tuple[str, ...], templates.Template],
) -> list[Turn]:
    """What is rated of one task; `shapes` remembers the template for each set of slots."""
    first, why = answers.get(task.id, (None, "no answer"))
    shown: list[dict[str, str] | str] = []  # the slots of each turn, or why it has none
    if isinstance(protocol, WildBenchProtocol):
        shown = [
            f"no answer: {why}"
            if first is None
            else task.shown() | {"model_output": settle.shorten(first, judge)}
        ]
    else:
        references = [
            (f"reference_{n}", text)
            for n, text in enumerate(task.references[:2], 1)
            if text.strip()
        ]
        said = (
            None
            if first is None
            else {"question_1": task.prompt, "answer_1": settle.shorten(first, judge)}
        )
        shown = [
            f"no answer: {why}"
            if said is None
            else said | {n: text for n, text in references if n == "reference_1"}
        ]
        if len(task.turns) == 2:
            second, why = answers.get(task.id + SECOND, (None, "no answer"))
            shown.append(
                f"no answer: {why}"
                if said is None or second is None
                else said
                | {"question_2": task.turns[1], "answer_2": settle.shorten(second, judge)}
                | dict(references)
            )
    found = []
    for number, values in enumerate(shown, 1):
        if isinstance(values, str):
            found.append(Turn(task, number, reason=values))
            continue
        slots = tuple(values)
        if slots not in shapes:
            shapes[slots] = templates.template(protocol.prompt, slots=slots)
        found.append(
            Turn(
                task, number, Question(digest([shapes[slots].text, values]), shapes[slots], values)
            )
        )
    return found


def _table(turns: list[Turn], stored: pl.DataFrame, reasons: Mapping[str, str]) -> pl.DataFrame:
    cells = {row["id"]: row for row in stored.iter_rows(named=True)}
    rows = []
    for turn in turns:
        row: dict[str, Any] = {
            "item": turn.task.id,
            "turn": turn.number,
            "category": turn.task.category,
            "tags": list(turn.task.tags),
            "status": "unjudged",
            "reason": turn.reason,
        }
        if turn.question is not None:
            row["judgment"] = turn.question.id
            cell = cells.get(turn.question.id)
            if cell is None:
                row["reason"] = reasons.get(turn.question.id, "not asked")
            else:
                row |= {name: cell[name] for name in FIELDS} | {
                    "reason": cell["reason"],
                    "status": OK if cell["status"] == OK else "unjudged",
                }
        rows.append(row)
    return pl.DataFrame(rows, schema=RATINGS)


def _counts(frame: pl.DataFrame) -> Counts:
    unjudged = frame.filter(pl.col("status") != OK)
    why = unjudged["reason"].value_counts().sort("reason")
    bought = frame.filter(pl.col("judgment").is_not_null()).unique("judgment")
    return {
        "rows": frame.height,
        "judged": frame.height - unjudged.height,
        "unjudged": unjudged.height,
        "unjudged_reasons": dict(zip(why["reason"], why["count"], strict=True)),
        **{name: int(bought[name].sum() or 0) for name in ("prompt_tokens", "tokens")},
        "models": bought["model"].drop_nulls().unique().sort().to_list(),
        "fingerprints": bought["fingerprint"].drop_nulls().unique().sort().to_list(),
    }
