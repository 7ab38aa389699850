"""What can be said of a score from its metric alone: the scale that no interval leaves, and the
scores that hold by definition."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from eval.comparing.metrics import AGAINST_BASELINE, RATINGS, lower_is_better

PERCENT, SHARE = (0.0, 100.0), (0.0, 1.0)
SHARES = (
    "followed all_followed stopped acc acc_norm acc_bytes exact_match em f1 mc1 mc2 pass@1 "
    "prompt_level_strict_acc prompt_level_loose_acc inst_level_strict_acc inst_level_loose_acc"
)
SCALES = {
    **dict.fromkeys([*AGAINST_BASELINE, "discrete_win_rate"], PERCENT),
    **dict.fromkeys(SHARES.split(), SHARE),
    **RATINGS,
    "brier_score": (0.0, 2.0),
}
"""Ends of the scale of each metric that has one; lm-eval's ("TASK METRIC,FILTER") by their
metric."""


def scale(metric: str) -> tuple[float, float]:
    """The smallest and the largest value that a metric can have, infinite where it has no end."""
    name = metric.split(" ")[-1].split(",")[0]
    if name in SCALES:
        return SCALES[name]
    # Losses, perplexities and error rates have no largest value, and none is negative.
    return (0.0 if lower_is_better(metric) else -math.inf), math.inf


def by_definition(score: Mapping[str, Any]) -> bool:
    """Whether a score was never measured: what others are judged against scores 50."""
    known = AGAINST_BASELINE.get(str(score["metric"]))
    measured = [score.get(end) for end in ("value", "lower", "upper")]
    return known is not None and score.get("standard_error") == 0 and measured == [known] * 3


def shown(score: Mapping[str, Any]) -> dict[str, Any]:
    """A score as people see it: `lower` and `upper` inside its scale (an interval around a rate
    near its end reaches beyond it), and `reference`: whether it holds by definition. A value that
    is outside itself keeps its interval: its scale is another one."""
    low, high = scale(str(score["metric"]))
    value, lower, upper = (score.get(end) for end in ("value", "lower", "upper"))
    told = {**score, "reference": by_definition(score)}
    if value is None or not low <= value <= high:
        return told
    if lower is not None:
        told["lower"] = max(low, lower)
    if upper is not None:
        told["upper"] = min(high, upper)
    return told
