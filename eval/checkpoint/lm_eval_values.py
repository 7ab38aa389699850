"""What one sample of lm-eval scored: the metrics that are numbers, item by item."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

OWN = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"}
"""Fields of a sample that are no metrics, beside the digests."""

LOG_LIKELIHOOD = "perplexity"
"""lm-eval's perplexity is exp(-mean) of what its samples hold, which are log-likelihoods: of those
more is better, of the perplexity less."""
PER_ITEM = "log_perplexity"
"""What an item of it is called here: the negative log-likelihood, in nats."""


def scalars(sample: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(metric, value) of each metric of a sample that is a number; a filter other than "none" is
    part of the metric's name, as in lm-eval's own tables."""
    chosen = sample.get("filter", "none")
    suffix = "" if chosen == "none" else f",{chosen}"
    named = sample.get("metrics")
    if named is None:  # an older lm-eval
        named = [name for name in sample if name not in OWN and not name.endswith("_hash")]
    for metric in named:
        value = sample.get(metric)
        if not isinstance(value, (bool, int, float)):
            continue
        if metric == LOG_LIKELIHOOD:
            yield PER_ITEM + suffix, -_number(value)
        else:
            yield metric + suffix, _number(value)


def _number(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond all floating-point numbers
        return math.inf if value > 0 else -math.inf


def direction(said: Mapping[str, Any], task: str, metric: str) -> bool | None:
    """Whether more of a metric is better, as lm-eval says (`higher_is_better`: {task: {metric:
    bool}}); None where it does not."""
    higher = (said.get(task) or {}).get(metric.partition(",")[0])
    return higher if isinstance(higher, bool) else None
