"""Judging WB-Reward: a checkpoint's answers to WildBench's tasks against those of reference models,
one question a task and reference.

The judge has the task's checklist and chooses among A++, A+, A=B, B+ and B++. Which answer is A is
drawn once a task, alike for every arm and reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import polars as pl

from core.store import Counts, digest
from eval.judging import settle, templates, verdicts
from eval.judging.asking import texts
from eval.judging.asking.ask import SPENT, Means, Question
from eval.judging.asking.journal import Cell, Row
from eval.prompt_sets import samples
from eval.prompt_sets.rated_tasks import Task
from eval.protocols import JudgeConfig, WildBenchProtocol

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
    **SPENT,
    **settle.STATUS,
}
"""Columns of rewards.parquet, one row a task and reference. `order` says whose answer is A ("model"
or "reference"); `choice` is the judge's own word; `reward` is the model's, from -1 to 1, after the
margin; `judgment` the id in the store (null when nobody was asked)."""

TIE = {"choice": "A=B", "reward": 0.0}
EMPTY_OR_CUT = {"reward": 0.0, "verdict": "an answer is empty or cut"}
"""Such a pair counts 0 whatever a judge says, as published, so nobody is asked."""


def run(
    protocol: WildBenchProtocol,
    wanted: Iterable[Task],
    inputs: Mapping[str, Path],
    means: Means,
    out: Path,
) -> Counts:
    """Judge `inputs["answers"]` against `inputs["reference/NAME"]` (answers folders) for every
    reference of `protocol`; write `out`/rewards.parquet and `out`/rewards.json (how it was asked).

    Identical answers are a tie without a call; where either answer is empty or longer than the
    judge is shown, the reward is 0 without a call (the official code skips those and keeps them in
    the denominator). A pair that nobody could judge stays, with its reason. `means` are those of
    the ratings: one budget for both. Counts: rows, judged, unjudged and unjudged_reasons,
    identical, empty_or_cut, cut (references' answers shortened), asked, from_store,
    prompt_tokens, tokens, models, fingerprints. Raises UserError when the budget ends the run, or
    when not one of the judgments asked for came back.
    """
    judge, asked = protocol.judge, protocol.reward
    how = settle.determines(judge, asked) | {
        "margin": protocol.margin,
        "references": list(protocol.references),
    }
    form = settle.Form(
        "rewards",
        "rewards.json",
        REWARDS,
        partial(_reward, protocol.margin),
        _more,
    )
    pairs = _pairs(protocol, wanted, inputs)
    counts = settle.run(form, pairs, partial(settle.buy, asked, means=means), how, means.purse, out)
    settle.warn_of_change(counts, means.log)
    return counts


def _pairs(
    protocol: WildBenchProtocol, wanted: Iterable[Task], inputs: Mapping[str, Path]
) -> settle.Wanted:
    """Every task's answer beside that of each reference."""
    judge = protocol.judge
    shape = templates.template(protocol.reward_prompt, slots=SLOTS)
    answers = texts.read_answers(inputs["answers"])
    others = {name: texts.read_answers(inputs[f"reference/{name}"]) for name in protocol.references}
    pairs = []
    for task in wanted:
        mine = answers.get(task.id, texts.NO_ANSWER)
        order = "model" if texts.model_shown_first(task.id) else "reference"
        ask = partial(_question, judge, shape, task)
        for name in others:
            theirs = others[name].get(samples.prompt_of(task.id), texts.NO_ANSWER)
            row = {
                "item": task.id,
                "reference": name,
                "order": order,
                "model_characters": texts.length(mine),
                "reference_characters": texts.length(theirs),
            }
            rival = f"the reference {name}"
            item = settle.compared(row, mine, theirs, rival, TIE, ask)
            whole = is_whole(mine, judge) and is_whole(theirs, judge)
            if item.question is not None and not whole:
                item = settle.Item(row, settled=EMPTY_OR_CUT)
            pairs.append(item)
    cut = sum(texts.shortened(theirs.values(), judge) for theirs in others.values())
    return settle.Wanted(pairs, cut)


def is_whole(answer: texts.Answer, judge: JudgeConfig) -> bool:
    """Whether a judge can see all of an answer: there is one, not empty, not too long."""
    text = answer[0]
    return text is not None and bool(text.strip()) and len(text) <= judge.max_answer_characters


def _more(table: pl.DataFrame) -> Counts:
    nobody = table.filter(pl.col("judgment").is_null())
    broken = nobody.filter(pl.col("verdict") == EMPTY_OR_CUT["verdict"]).height
    return {"identical": settle.identical(table) - broken, "empty_or_cut": broken}


def _question(
    judge: JudgeConfig, shape: templates.Template, task: Task, first: str, second: str
) -> Question:
    values = task.shown() | {
        "candidate_A": texts.shorten(first, judge),
        "candidate_B": texts.shorten(second, judge),
    }
    return Question(digest([shape.text, values]), shape, values)


def _reward(margin: int | None, pair: Row, judgment: Row) -> Cell:
    label, lengths = judgment["label"], (pair["model_characters"], pair["reference_characters"])
    # A settled label is one of the five that there are.
    sign, extent = verdicts.choice(label, model_is_a=pair["order"] == "model") or (0, 0)
    return {"choice": label, "reward": verdicts.worth(sign, extent, *lengths, margin)}
