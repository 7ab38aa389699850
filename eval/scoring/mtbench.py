"""MT-Bench, single-answer grading: 80 two-turn questions, each turn rated 1 to 10.

Rules: FastChat llm_judge/common.py and show_result.py. The two turns of a question are one cluster:
they share the conversation.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from eval import stats


def figures(ratings: pl.DataFrame) -> dict[str, Any]:
    """The mean rating over both turns with its cluster-robust error, and the mean of each turn:
    value, n, standard_error, lower, upper, unjudged, turn_1, turn_2.

    `ratings` has item, turn (1 or 2) and rating (1 to 10, null where unjudged), one row a turn.
    """
    rated = ratings.drop_nulls("rating")
    mean = stats.NOTHING
    if rated.height:
        mean = stats.mean_interval(rated["rating"], rated["item"])
    turns = {turn: rated.filter(pl.col("turn") == turn)["rating"] for turn in (1, 2)}
    return {
        "value": mean.value,
        "n": rated.height,
        **mean.bounds(),
        "unjudged": ratings.height - rated.height,
        **{f"turn_{turn}": values.mean() for turn, values in turns.items()},
    }
