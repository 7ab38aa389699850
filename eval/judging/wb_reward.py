"""Judging WB-Reward: a checkpoint's answers to WildBench's tasks against those of reference models,
one question a task and reference.

The judge has the task's checklist and chooses among A++, A+, A=B, B+ and B++. Which answer is A is
drawn once a task, alike for every arm and reference. Choices live in the store like every judgment,
by who judged, how, and what was shown (eval/judging/pairwise.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from core.columns import OK
from core.files import write_atomic
from core.servers import Servers
from core.store import Counts, digest
from core.tracking import Log
from eval.config import JudgeConfig, WildBenchProtocol
from eval.judging import settle, templates, verdicts
from eval.judging.ask import Question
from eval.judging.journal import Purse
from eval.prompt_sets.rated_tasks import Task

SLOTS = ("history", "user_query", "candidate_A", "candidate_B", "checklist")

REWARDS = {
    "item": pl.String,
    "reference": pl.String,
    "order": pl.String,
    "choice": pl.String,
    "reward": pl.Float64,
    "model_characters": pl.Int64,
    "reference_characters": pl.Int64,
    "verdict": pl.String,
    "prompt_tokens": pl.Int64,
    "tokens": pl.Int64,
    "model": pl.String,
    "fingerprint": pl.String,
    "judgment": pl.String,
    "status": pl.String,
    "reason": pl.String,
}
"""Columns of rewards.parquet, one row a task and reference. `order` says whose answer is A ("model"
or "reference"); `choice` is the judge's own word; `reward` is the model's, from -1 to 1, after the
margin; `judgment` the id in the store (null when nobody was asked)."""


@dataclass(frozen=True)
class Pair:
    """Two answers to one task: to be judged (`question`), settled without a judge (`identical`), or
    impossible (`reason`)."""

    item: str
    reference: str
    model_first: bool
    lengths: tuple[int | None, int | None]
    question: Question | None = None
    identical: bool = False
    reason: str | None = None


def run(
    protocol: WildBenchProtocol,
    wanted: Iterable[Task],
    inputs: Mapping[str, Path],
    root: Path,
    out: Path,
    *,
    purse: Purse,
    servers: Servers,
    log: Log,
) -> Counts:
    """Judge `inputs["answers"]` against `inputs["reference/NAME"]` (answers folders) for every
    reference of `protocol`; write `out`/rewards.parquet and `out`/rewards.json (how it was asked).

    Identical answers are a tie without a call. A pair that nobody could judge stays, with its
    reason. `purse` is that of the ratings: one budget for both. Counts: rows, judged, unjudged and
    unjudged_reasons, identical, cut (references' answers shortened), asked, from_store,
    prompt_tokens, tokens, models, fingerprints. Raises UserError when the budget ends the run, or
    when not one of the judgments asked for came back.
    """
    judge = protocol.judge
    shape = templates.template(protocol.reward_prompt, slots=SLOTS)
    answers = settle.read_answers(inputs["answers"])
    others = {
        name: settle.read_answers(inputs[f"reference/{name}"]) for name in protocol.references
    }
    nothing = (None, "no answer")
    pairs = [
        _pair(task, name, answers.get(task.id, nothing), theirs.get(task.id, nothing), shape, judge)
        for task in wanted
        for name, theirs in others.items()
    ]
    questions = {pair.question.id: pair.question for pair in pairs if pair.question is not None}
    stored, reasons, asked, known = settle.buy(
        protocol.reward, judge, list(questions.values()), root, purse, servers, log
    )
    settle.within_budget(judge, purse, stored.height, len(questions))
    frame = _table(pairs, stored, reasons, protocol.margin)
    frame.write_parquet(out / "rewards.parquet")
    how = {
        **settle.determines(judge, protocol.reward),
        "margin": protocol.margin,
        "references": list(protocol.references),
    }
    write_atomic(out / "rewards.json", json.dumps(how, indent=2))
    cut = sum(
        text is not None and len(text) > judge.max_answer_characters
        for theirs in others.values()
        for text, _ in theirs.values()
    )
    counts = _counts(frame) | {"cut": cut, "asked": asked, "from_store": known}
    settle.warn_of_change(counts, log)
    return counts


def _pair(
    task: Task,
    reference: str,
    mine: tuple[str | None, str],
    theirs: tuple[str | None, str],
    shape: templates.Template,
    judge: JudgeConfig,
) -> Pair:
    model_first = settle.model_shown_first(task.id)
    lengths = (
        None if mine[0] is None else len(mine[0]),
        None if theirs[0] is None else len(theirs[0]),
    )
    if mine[0] is None or theirs[0] is None:
        whose, why = (
            ("the model", mine[1]) if mine[0] is None else (f"the reference {reference}", theirs[1])
        )
        return Pair(
            task.id, reference, model_first, lengths, reason=f"{whose} has no answer: {why}"
        )
    if mine[0] == theirs[0]:
        return Pair(task.id, reference, model_first, lengths, identical=True)
    first, second = (mine[0], theirs[0]) if model_first else (theirs[0], mine[0])
    values = task.shown() | {
        "candidate_A": settle.shorten(first, judge),
        "candidate_B": settle.shorten(second, judge),
    }
    return Pair(
        task.id,
        reference,
        model_first,
        lengths,
        Question(digest([shape.text, values]), shape, values),
    )


def _table(
    pairs: list[Pair], stored: pl.DataFrame, reasons: Mapping[str, str], margin: int | None
) -> pl.DataFrame:
    cells = {row["id"]: row for row in stored.iter_rows(named=True)}
    rows = []
    for pair in pairs:
        row: dict[str, Any] = {
            "item": pair.item,
            "reference": pair.reference,
            "order": "model" if pair.model_first else "reference",
            "model_characters": pair.lengths[0],
            "reference_characters": pair.lengths[1],
            "status": "unjudged",
            "reason": pair.reason,
        }
        if pair.identical:
            row |= {"choice": "A=B", "reward": 0.0, "verdict": "identical answers", "status": OK}
        elif pair.question is not None:
            row["judgment"] = pair.question.id
            cell = cells.get(pair.question.id)
            if cell is None:
                row["reason"] = reasons.get(pair.question.id, "not asked")
            else:
                row |= {
                    name: cell[name]
                    for name in (
                        "verdict",
                        "prompt_tokens",
                        "tokens",
                        "model",
                        "fingerprint",
                        "reason",
                    )
                }
                found = verdicts.choice(cell["label"], model_is_a=pair.model_first)
                if cell["status"] == OK and found is not None:
                    ours, theirs = pair.lengths[0] or 0, pair.lengths[1] or 0
                    row |= {
                        "choice": cell["label"],
                        "reward": verdicts.worth(*found, ours, theirs, margin),
                        "status": OK,
                    }
        rows.append(row)
    return pl.DataFrame(rows, schema=REWARDS)


def _counts(frame: pl.DataFrame) -> Counts:
    unjudged = frame.filter(pl.col("status") != OK)
    why = unjudged["reason"].value_counts().sort("reason")
    bought = frame.filter(pl.col("judgment").is_not_null()).unique("judgment")
    return {
        "rows": frame.height,
        "judged": frame.height - unjudged.height,
        "unjudged": unjudged.height,
        "unjudged_reasons": dict(zip(why["reason"], why["count"], strict=True)),
        "identical": frame.filter((pl.col("status") == OK) & pl.col("judgment").is_null()).height,
        **{name: int(bought[name].sum() or 0) for name in ("prompt_tokens", "tokens")},
        "models": bought["model"].drop_nulls().unique().sort().to_list(),
        "fingerprints": bought["fingerprint"].drop_nulls().unique().sort().to_list(),
    }
