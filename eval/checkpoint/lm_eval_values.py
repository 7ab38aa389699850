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


NO_FILTER = "none"


def scalars(sample: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(metric, value) of each metric of a sample that is a number; a filter other than "none" is
    part of the metric's name, as in lm-eval's own tables."""
    found = sample.get("metrics")
    if found is None:  # an older lm-eval
        found = [name for name in sample if name not in OWN and not name.endswith("_hash")]
    for metric in found:
        value = sample.get(metric)
        if not isinstance(value, (bool, int, float)):
            continue
        negative = metric == LOG_LIKELIHOOD
        yield _name(sample, metric), -_number(value) if negative else _number(value)


def named(sample: Mapping[str, Any]) -> list[str]:
    """The metrics that a sample says it has, numbers or not, by the names that `scalars` gives
    them; none of an older lm-eval's."""
    return [_name(sample, metric) for metric in sample.get("metrics") or ()]


def _name(sample: Mapping[str, Any], metric: str) -> str:
    chosen = sample.get("filter", NO_FILTER)
    suffix = "" if chosen == NO_FILTER else f",{chosen}"
    return (PER_ITEM if metric == LOG_LIKELIHOOD else metric) + suffix


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
