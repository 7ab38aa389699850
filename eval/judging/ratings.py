"""Rating a checkpoint's answers one by one: WildBench's WB-Score by checklists, MT-Bench by
single-answer grading of two turns.

Nothing is compared with a baseline. A rating is named by what the judge is shown and lives in a
column of the store keyed by who rated and how, with the journal, the purse and the shielding of
hostile text that pairwise judgments have (eval/judging/pairwise.py, eval/judging/templates.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import polars as pl

from core.servers import Servers
from core.store import Counts, digest
from core.tracking import Log
from eval.judging import settle, templates, wb_reward
from eval.judging.asking import texts
from eval.judging.asking.ask import SPENT, Fields, Means, Question, purse_of
from eval.prompt_sets import samples
from eval.prompt_sets.rated_tasks import SECOND, Task, tasks
from eval.protocols import JudgeConfig, RatedProtocol, WildBenchProtocol

VERSION = 2
"""Of the tables; how a judge is asked has its own, so that nothing is asked again for a column."""

FIELDS: Fields = {
    "rating": pl.Float64,
    "verdict": pl.String,
    **SPENT,
}
"""Value fields of a rating: from 1 to 10, null where the judge's text (`verdict`) does not end with
one."""

RATINGS = {
    "item": pl.String,
    "turn": pl.Int64,
    "category": pl.String,
    "tags": pl.List(pl.String),
    "whole": pl.Boolean,
    **FIELDS,
    **settle.STATUS,
}
"""Columns of ratings.parquet, one row a turn: `item` is the task or question; `whole` is false for
an answer that is empty or that the judge saw cut; `status` "ok" or "unjudged", `judgment` the
rating's id in the store (null when nobody was asked)."""
FORM = settle.Form("ratings", "protocol.json", RATINGS)


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
    against the answers in `inputs["reference/NAME"]`. `root` is the store's root, where ratings are
    kept for good. A turn that nobody could rate stays, with its reason.

    Counts: rows (turns), judged, unjudged and unjudged_reasons, cut (answers shortened), asked,
    from_store, prompt_tokens, tokens, money, models, fingerprints, and with references rewards (the
    counts of those; money is for both). Raises UserError when the budget ends the run, or when not
    one of the ratings asked for came back.
    """
    judge = protocol.judge
    means = Means(root, purse_of(judge, servers), servers, log)
    answers = texts.read_answers(inputs["answers"])
    listed = tasks(protocol.kind, str(inputs["prompts"]))
    wanted = samples.each(listed, protocol.answers.answers_per_prompt)
    cut = texts.shortened(answers.values(), judge)
    thoughts = texts.thinking(inputs["answers"])
    turns = settle.Wanted(_turns(wanted, protocol, answers), cut, thoughts)
    buy = partial(settle.buy, protocol, means=means, fields=FIELDS)
    how = settle.determines(judge, protocol)
    counts = settle.run(FORM, turns, buy, how, means.purse, out)
    if isinstance(protocol, WildBenchProtocol) and protocol.references:
        rewards = wb_reward.run(protocol, wanted, inputs, means, out)
        counts["money"] = round(counts["money"] + rewards.pop("money"), 6)
        counts["again"] += rewards["again"]
        counts["rewards"] = rewards
    settle.warn_of_change(counts, log)
    return counts


def _turns(
    wanted: list[Task], protocol: RatedProtocol, answers: texts.Answers
) -> list[settle.Item]:
    """What is rated, turn by turn; a template may show other slots in the second."""
    shapes: dict[tuple[str, ...], templates.Template] = {}
    turns = []
    for task in wanted:
        shown = SHOWN[protocol.kind](task, answers, protocol.judge)
        for number, values in enumerate(shown, 1):
            said = answers.get(task.id + (SECOND if number > 1 else ""), texts.NO_ANSWER)
            row = {
                "item": task.id,
                "turn": number,
                "category": task.category,
                "tags": list(task.tags),
                "whole": wb_reward.is_whole(said, protocol.judge),
            }
            if isinstance(values, str):
                turns.append(settle.Item(row, reason=f"no answer: {values}"))
                continue
            slots = tuple(values)
            if slots not in shapes:
                shapes[slots] = templates.template(protocol.prompt, slots=slots)
            name = digest([shapes[slots].text, values])
            turns.append(settle.Item(row, Question(name, shapes[slots], values)))
    return turns


Shown = list[dict[str, str] | str]
"""What fills the slots of a task's turns, or why there is no answer to show."""


def _of_wildbench(task: Task, answers: texts.Answers, judge: JudgeConfig) -> Shown:
    answer, why = answers.get(task.id, texts.NO_ANSWER)
    if answer is None:
        return [why]
    return [task.shown() | {"model_output": texts.shorten(answer, judge)}]


def _of_mtbench(task: Task, answers: texts.Answers, judge: JudgeConfig) -> Shown:
    """The second turn shows the first too, and the references of both."""
    shown: Shown = []
    slots: dict[str, str] = {}
    for number, (name, question) in enumerate(zip(("", SECOND), task.turns, strict=False), 1):
        answer, why = answers.get(task.id + name, texts.NO_ANSWER)
        if answer is None or (number == 2 and not slots):
            shown.append(why)
            continue
        slots |= {f"question_{number}": question, f"answer_{number}": texts.shorten(answer, judge)}
        known = enumerate(task.references[:number], 1)
        shown.append(slots | {f"reference_{n}": text for n, text in known if text.strip()})
    return shown


SHOWN: Mapping[str, Callable[[Task, texts.Answers, JudgeConfig], Shown]] = {
    "wildbench": _of_wildbench,
    "mtbench": _of_mtbench,
}
