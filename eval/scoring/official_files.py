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
    answers: pl.DataFrame,
    baseline: pl.DataFrame,
    judgments: pl.DataFrame,
    *,
    model: str,
    baseline_model: str,
    annotator: str,
) -> list[dict[str, Any]]:
    """One AlpacaEval annotation a prompt, in the prompts' order, which is the position that
    official length control joins difficulty by.

    `answers` and `baseline` have id and answer, `judgments` the columns of eval.judges.JUDGMENTS.
    output_1 is the baseline's; `preference` is 1 + P(the model's answer is better), averaged over
    both orders where both were asked, null where a game is unjudged. `dataset` is the prompt's
    category. A prompt that nobody answered keeps its row with a null output. Raises UserError for
    prompts without a judgment.
    """
    texts = [dict(zip(frame["id"], frame["answer"], strict=True)) for frame in (baseline, answers)]
    preferences: dict[str, list[float | None]] = {}
    for item, preference in judgments.select("item", "preference").iter_rows():
        preferences.setdefault(item, []).append(preference)
    rows = []
    for prompt in prompts:
        found = preferences.get(prompt.id)
        if found is None:
            raise UserError(
                f"the judgments hold none for the prompt {prompt.id}; give the prompt set that was judged."
            )
        judged = [p for p in found if p is not None]
        rows.append(
            {
                "instruction": prompt.prompt,
                "output_1": texts[0].get(prompt.id),
                "generator_1": baseline_model,
                "dataset": prompt.category,
                "output_2": texts[1].get(prompt.id),
                "generator_2": model,
                "annotator": annotator,
                "preference": 1 + sum(judged) / len(judged) if len(judged) == len(found) else None,
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
                f"question {item} has {played.height} games; Arena-Hard judges two, the baseline first and then the model first."
            )
        category = str(played["category"][0] or "")
        scored = [
            {"judgment": verdict or "", "score": label if status == "ok" else None}
            for label, verdict, status in played.select("label", "verdict", "status").iter_rows()
        ]
        if version == "v0.1":
            yield {"question_id": item, "model": model, "judge": judge, "games": scored}
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
