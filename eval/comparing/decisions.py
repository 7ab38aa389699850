"""Decision accuracy: how often a cheap comparison of arms comes out like a dear one of the same
arms (DataDecide, arXiv 2504.11393: the share of pairs that both order alike)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from eval import stats
from eval.comparing.estimates import IS_BETTER

Comparison = Mapping[str, Any]
"""What comparison.json holds."""


@dataclass(frozen=True)
class Decisions:
    """How the pairs of one metric came out in a pilot and in the full run."""

    benchmark: str
    metric: str
    arms: int
    pairs: int
    alike: float
    """Pairs that both order alike, whatever the verdicts; a difference of exactly 0 counts half."""
    decision_accuracy: float
    lower: float
    """Of a 95 % interval for other such arms."""
    upper: float
    decided: int
    """Pairs that the full run told apart."""
    same: int
    """Of those: the pilot gave the same verdict."""
    untold: int
    """Of those: the pilot did not tell them apart."""
    opposite: int
    """Of those: the pilot gave the other verdict."""

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def decisions(pilot: Comparison, full: Comparison) -> Iterator[Decisions]:
    """The decision accuracy of every metric that both comparisons have, over the arms that both
    trained; none of a metric that has fewer than two such arms."""
    arms = set(trained(pilot)) & set(trained(full))
    cheap, dear = _by_metric(pilot, arms), _by_metric(full, arms)
    for metric, pairs in dear.items():
        of_pilot = cheap.get(metric, {})
        both = {names: (of_pilot[names], pairs[names]) for names in pairs if names in of_pilot}
        if both:
            yield _of_metric(metric, both)


def trained(comparison: Comparison) -> list[str]:
    """The arms that were trained. A finished model is the same in a pilot and in the full run, so
    its pairs would say little of what a pilot is worth."""
    return [arm["name"] for arm in comparison["arms"] if arm["seeds"]]


Row = Mapping[str, Any]
Names = tuple[str, str]


def _by_metric(comparison: Comparison, arms: set[str]) -> dict[Names, dict[Names, Row]]:
    """Differences by metric and by their two arms, turned so that the arms are in order."""
    found: dict[Names, dict[Names, Row]] = {}
    for d in comparison["differences"]:
        if {d["a"], d["b"]} <= arms:
            first, second = sorted((d["a"], d["b"]))
            sign = 1 if d["a"] == first else -1
            turned = {"difference": sign * d["difference"], "verdict": d["verdict"]}
            found.setdefault((d["benchmark"], d["metric"]), {})[first, second] = turned
    return found


def _of_metric(metric: Names, both: Mapping[Names, tuple[Row, Row]]) -> Decisions:
    """The decisions of one metric."""
    alike = sum(_agreement(*rows) for rows in both.values())
    decided = [rows for rows in both.values() if _tells(rows[1])]
    same = sum(cheap["verdict"] == dear["verdict"] for cheap, dear in decided)
    untold = sum(not _tells(cheap) for cheap, _ in decided)
    arms = len({arm for names in both for arm in names})
    share = alike / len(both)
    lower, upper = interval(share, arms)
    return Decisions(
        benchmark=metric[0],
        metric=metric[1],
        arms=arms,
        pairs=len(both),
        alike=alike,
        decision_accuracy=share,
        lower=lower,
        upper=upper,
        decided=len(decided),
        same=same,
        untold=untold,
        opposite=len(decided) - same - untold,
    )


def _tells(row: Row) -> bool:
    """Whether a verdict says which of two arms is better; no worse or equal is no such order."""
    return str(row["verdict"]).endswith(IS_BETTER)


def _agreement(cheap: Row, dear: Row) -> float:
    """1 where both order a pair alike, 0 where not, a half where one says neither."""
    product = cheap["difference"] * dear["difference"]
    return 0.5 if product == 0 else float(product > 0)


def interval(share: float, arms: int) -> tuple[float, float]:
    """Wilson's interval as if there were `arms` - 1 pairs: the pairs of A arms are A (A - 1) / 2,
    but hang together, since each arm is in A - 1 of them. Counting them as independent covers 68 to
    97 % where 95 is promised; this covers 96 % and more with 3 to 15 arms (simulated,
    tests/test_pilots.py)."""
    n = arms - 1
    return stats.wilson(share * n, n)
