"""What is known of metrics by name: which way is better, what a baseline scores by definition,
which one decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from core.errors import UserError, nearest

LOWER_IS_BETTER = {
    "loss", "foreign_loss", "heldout_loss", "log_perplexity", "perplexity", "bits_per_byte",
    "word_perplexity", "byte_perplexity", "brier_score", "ter", "mse", "mae", "rmse", "wer", "cer",
}  # fmt: skip
"""Metrics whose smaller value is the better one, where the scores do not say so themselves (lm-eval
does, of each metric of each task); every other metric is better when larger."""

AGAINST_BASELINE = {
    "win_rate": 50.0,
    "length_controlled_winrate": 50.0,
    "length_controlled_minimal": 50.0,
    "arena_score": 50.0,
}
"""What the baseline that others are judged against scores by definition (percent), so that it needs
no judgments of itself."""

RATINGS = {"wb_score": (1.0, 10.0), "mt_score": (1.0, 10.0), "wb_reward": (-1.0, 1.0)}
"""The smallest and the largest value that a judge's rating of an item, and so their mean, can
have."""

DECIDES = ("length_controlled_winrate",)
"""Metrics that decide for their benchmark when it is the primary one and has them; otherwise its
first metric does."""


@dataclass(frozen=True)
class Control:
    """An arm that is a control of the arm `of`: with a share of its answers `shuffled`, or (None)
    another random sample of the same size."""

    of: str
    shuffled: float | None


@dataclass(frozen=True)
class Declared:
    """What was declared before the first score."""

    primary: str
    """The benchmark (or "benchmark/metric") of which one metric decides; all others are
    exploratory."""
    baseline: str | None = None
    """The arm that others are compared with first, and that scores by definition where a benchmark
    judges against it."""
    controls: Mapping[str, Control] = field(default_factory=dict)
    """The arms that are controls, by name."""
    judged_against: Mapping[str, str | None] | None = None
    """The arm that each judged benchmark compares all others with, None where that is a file of
    answers; left out: `baseline`, in all of them."""

    equivalent: float | None = None
    """The smallest difference of the primary metric that would matter, in its unit: with it "equal
    within" and "no worse" are verdicts too."""
    planned: Mapping[str, int] = field(default_factory=dict)
    """Prompts (clusters) that each benchmark judged in steps would have gone through at most; none
    for those that judge all at once."""
    beforehand: bool = True
    """Whether the primary was declared before there were scores."""
    beside: int = 1
    """How many comparisons hold at once, this one among them: each is then made at the level that
    Bonferroni's inequality asks for."""

    def rival(self, benchmark: str) -> str | None:
        """The arm that a benchmark judges all others against; what a benchmark scores apart
        ("arena-creative_writing") counts as it unless it has an entry of its own."""
        known = self.judged_against
        if known is None:
            return self.baseline
        return known[benchmark] if benchmark in known else known.get(benchmark.partition("-")[0])


def deciding(primary: str, families: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """The one (benchmark, metric) that was declared beforehand."""
    own = [(b, m) for b, m in families if primary in (b, f"{b}/{m}")]
    if not own:
        names = {b for b, _ in families} | {f"{b}/{m}" for b, m in families}
        raise UserError(f"primary benchmark '{primary}' has no scores{nearest(primary, names)}.")
    return next((family for family in own if family[1] in DECIDES), own[0])


def trained_baseline(metric: str, seeds: Sequence[str]) -> tuple[str, ...]:
    """The baseline's training seeds where a metric compares with it: a run was judged against the
    baseline's of the same seed."""
    return tuple(seeds) if metric in AGAINST_BASELINE else ()


def lower_is_better(metric: str, higher_is_better: bool | None = None) -> bool:
    """Whether a metric's smaller value is the better one: as its scores say, else by its name, of
    which lm-eval's ("TASK METRIC,FILTER") count by their metric."""
    if higher_is_better is not None:
        return not higher_is_better
    return metric.split(" ")[-1].split(",")[0] in LOWER_IS_BETTER
