"""MT-Bench, single-answer grading: 80 two-turn questions, each turn rated 1 to 10 by a text that
ends in [[rating]].

Rules: FastChat llm_judge/common.py and show_result.py (judgment files with question_id, model,
turn, score or judgment). The two turns of a question are one cluster: they share the conversation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from core.errors import UserError
from eval import stats

_RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))


def rating(text: str) -> float | None:
    """The first [[rating]] of a judgment, or the first [rating] when none is in double brackets;
    None when neither is from 1 to 10."""
    for pattern in _RATINGS:
        if match := pattern.search(text):
            value = float(match[1])
            return value if 1 <= value <= 10 else None
    return None


def score(rows: Iterable[Mapping[str, Any]], where: str = "judgments") -> list[dict[str, Any]]:
    """MT-Bench score of each model: the mean rating over both turns, its cluster-robust error, and
    the means of each turn.

    Rows: question_id, model, turn (1 or 2), and score or, without one, judgment (the judge's text).
    A missing, negative (FastChat's mark for failures) or unreadable rating counts as unjudged.
    Raises UserError, naming `where` and the row, for a missing field or a turn rated twice.
    """
    models: dict[str, dict[tuple[str, int], float | None]] = {}
    for number, row in enumerate(rows, 1):
        if (
            not {"question_id", "model", "turn"} <= row.keys()
            or not {"score", "judgment"} & row.keys()
        ):
            raise UserError(
                f"{where}, row {number}: an MT-Bench judgment needs question_id, model, turn, and score or judgment."
            )
        value = row["score"] if "score" in row else rating(str(row["judgment"]))
        own, key = (
            models.setdefault(str(row["model"]), {}),
            (str(row["question_id"]), int(row["turn"])),
        )
        if key in own:
            raise UserError(
                f"{where}, row {number}: turn {key[1]} of question {key[0]} for {row['model']} is rated a second time; keep one."
            )
        own[key] = float(value) if isinstance(value, (int, float)) and 1 <= value <= 10 else None
    found = []
    for model, turns in models.items():
        rated = {key: value for key, value in turns.items() if value is not None}
        mean = (
            stats.mean_interval(list(rated.values()), [question for question, _ in rated])
            if rated
            else None
        )
        each = {turn: [v for (_, t), v in rated.items() if t == turn] for turn in (1, 2)}
        found.append(
            {
                "model": model,
                "score": mean.value if mean else None,
                "standard_error": mean.standard_error if mean else None,
                "lower": mean.lower if mean else None,
                "upper": mean.upper if mean else None,
                **{
                    f"turn_{turn}": sum(values) / len(values) if values else None
                    for turn, values in each.items()
                },
                "total": len(rated),
                "unjudged": len(turns) - len(rated),
            }
        )
    return found
