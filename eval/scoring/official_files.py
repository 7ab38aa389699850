"""Our judgments in the forms of the official tools: AlpacaEval annotations and Arena-Hard judgment
files.

Both are what `alpaca_eval` 0.6.6 and arena-hard-auto's show_result.py read, and what `magpie score`
reads back (eval/scoring/alpaca.py, eval/scoring/arena.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from core.errors import UserError
from eval.prompt_sets.prompts import Prompt


def alpaca(
    prompts: Sequence[Prompt],
    outputs: tuple[pl.DataFrame, pl.DataFrame],
    generators: tuple[str, str],
    judgments: pl.DataFrame,
    *,
    annotator: str,
) -> list[dict[str, Any]]:
    """One AlpacaEval annotation a prompt, in the prompts' order, which is the position that
    official length control joins difficulty by.

    `outputs` (id and answer) and `generators` (names) are the baseline's and the model's, which
    become output_1 and output_2; `judgments` has the columns of eval.judging.pairwise.JUDGMENTS.
    `preference` is 1 + P(the model's answer is better), averaged over both orders where both were
    asked, null where a game is unjudged. `dataset` is the prompt's category. A prompt that nobody
    answered keeps its row with a null output. Raises UserError for prompts without a judgment.
    """
    theirs, mine = (dict(frame.select("id", "answer").iter_rows()) for frame in outputs)
    judged = ~pl.col("preference").is_null().any()
    games = judgments.group_by("item").agg(pl.when(judged).then(pl.col("preference").mean()))
    preferences = dict(games.with_columns(pl.col("preference") + 1).iter_rows())
    rows = []
    for prompt in prompts:
        if prompt.id not in preferences:
            raise UserError(
                f"the judgments hold none for the prompt {prompt.id}; "
                "give the prompt set that was judged."
            )
        rows.append(
            {
                "instruction": prompt.prompt,
                "output_1": theirs.get(prompt.id),
                "generator_1": generators[0],
                "dataset": prompt.category,
                "output_2": mine.get(prompt.id),
                "generator_2": generators[1],
                "annotator": annotator,
                "preference": preferences[prompt.id],
            }
        )
    return rows


def arena(
    judgments: pl.DataFrame,
    *,
    model: str,
    baseline_model: str | Mapping[str, str],
    judge: str,
    version: str,
) -> Iterator[dict[str, Any]]:
    """One Arena-Hard judgment a question: two games, the baseline shown first and then the model,
    `score` null where there is no verdict.

    `baseline_model`: one name, or names by category. `version`: "v0.1" (question_id, model, judge,
    games) or "v2.0" (uid, category and baseline too). Raises UserError where a question does not
    have its two games.
    """
    columns = ("item", "category", "game", "order", "label", "verdict", "status")
    for (item,), games in judgments.select(columns).group_by(["item"], maintain_order=True):
        played = games.sort("game")
        if played["order"].to_list() != ["baseline", "model"]:
            raise UserError(
                f"question {item} has {played.height} games; Arena-Hard judges two, "
                "the baseline first and then the model first."
            )
        category = str(played["category"][0] or "")
        scored = [
            {"judgment": verdict or "", "score": label if status == "ok" else None}
            for label, verdict, status in played.select("label", "verdict", "status").iter_rows()
        ]
        if version == "v0.1":
            yield {
                "question_id": item,
                "model": model,
                "judge": judge,
                "games": scored,
            }
        else:
            name = baseline_model if isinstance(baseline_model, str) else baseline_model[category]
            yield {
                "uid": item,
                "category": category,
                "judge": judge,
                "model": model,
                "baseline": name,
                "games": scored,
            }
