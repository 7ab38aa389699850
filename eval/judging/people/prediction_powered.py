"""A mean that people labelled for some items, sharpened by a prediction that exists for all of them
(tuned prediction-powered inference, PPI++: Angelopoulos, Duchi and Zrnic 2023, arXiv 2311.01453).

    estimate = mean of the labels - w * (mean prediction of the labelled - that of the others)

is right for any weight w and any prediction, however bad, as long as the labelled items were drawn
at random; w = cov(label, prediction) / (var(prediction) * (1 + n/N)) makes it as sharp as the
prediction allows. A judge that sees nothing of what people see gets w near 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from core.errors import UserError
from eval import stats
from eval.stats import Floats, Interval

FEWEST = 10
"""Labels below which no weight can be tuned, and no interval be believed."""


@dataclass(frozen=True)
class Powered:
    """The estimate with a 95 % interval; `weight` of the prediction; what the labels say alone; and
    how many labels alone would be as good."""

    estimate: Interval
    weight: float
    labels_alone: Interval
    worth: float


def powered(labels: Floats, predicted: Floats, others: Floats) -> Powered:
    """The mean label over all items, from `labels` (n,), the predictions of the same items (n,) and
    of the items that nobody labelled (N,). Raises UserError below `FEWEST` labels."""
    n, more = len(labels), len(others)
    if n < FEWEST:
        raise UserError(
            f"{n} labelled pairs say nothing of a difference; label at least {FEWEST} of them."
        )
    alone = stats.mean_interval(labels)
    spread = float(predicted.var(ddof=1))
    if not more or not spread:
        return Powered(alone, 0.0, alone, float(n))
    together = float(np.cov(labels, predicted, ddof=1)[0, 1])
    weight = max(0.0, together / (spread * (1 + n / more)))
    value = alone.value - weight * float(predicted.mean() - others.mean())
    # The weight was fitted to the same labels, which costs a degree of freedom.
    left = labels - weight * predicted
    residual = float(((left - left.mean()) ** 2).sum()) / (n - 2)
    variance = residual / n + weight**2 * float(others.var(ddof=1) if more > 1 else spread) / more
    error = math.sqrt(variance)
    estimate = stats.t_interval(value, error, n - 2, n)
    worth = float(labels.var(ddof=1)) / variance if variance else float(n)
    return Powered(estimate, weight, alone, worth)
