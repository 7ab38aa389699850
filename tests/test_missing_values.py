"""Items without a value: what they could change at most, against filling them in by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from eval import stats
from eval.comparing.arms import Arm, Asked, Family
from eval.comparing.differences import differences
from eval.comparing.estimates import CANNOT_TELL, estimates
from eval.comparing.missing import limits, missing
from eval.comparing.shown import scales
from eval.comparing.shown.notes import without_bounds

NAN = math.nan


def arm(name: str, values: list[list[float]]) -> Arm:
    """An arm of (seeds, items) values, nan where an item has none: it then counts nowhere."""
    asked = np.array(values)
    names = [f"q{k}" for k in range(asked.shape[1])]
    seeds = tuple(str(k) for k in range(len(asked)))
    kept = np.flatnonzero(~np.isnan(asked).any(axis=0))
    items = [names[k] for k in kept]
    holes = int(np.isnan(asked).sum())
    lacking = Asked(names, names, asked, seeds) if holes else None
    return Arm(name, items, items, asked[:, kept], seeds, holes, asked=lacking)


def row(a: Arm, b: Arm, metric: str = "wb_score", **options: Any) -> dict[str, Any]:
    (found,) = differences(Family("bench", metric, [a, b]), None, **options)
    beside: dict[str, Any] = found["missing"]
    return beside


A = [[4.0, 7.0, NAN, 9.0, 6.0, 7.0, 8.0, 5.0], [5.0, 8.0, 6.0, NAN, 7.0, 8.0, 8.0, 6.0]]
B = [[3.0, NAN, 5.0, 6.0, 6.0, 6.0, 5.0, 4.0], [2.0, 5.0, 4.0, 5.0, 5.0, 6.0, 6.0, 4.0]]


def filled(values: list[list[float]], by: float) -> np.ndarray:
    own = np.array(values)
    return np.where(np.isnan(own), by, own)


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_a_failure_is_a_loss_and_the_worst_case_speaks_for_one_arm_and_against_the_other(
    lower_is_better: bool,
) -> None:
    found = row(arm("a", A), arm("b", B), lower_is_better=lower_is_better)
    assert found["cells"] == 3
    loss = 10.0 if lower_is_better else 1.0
    lost = filled(A, loss).mean() - filled(B, loss).mean()
    assert found["as_losses"]["difference"] == pytest.approx(lost)
    worst = found["worst_case"]
    assert worst["lowest"] == pytest.approx(filled(A, 1.0).mean() - filled(B, 10.0).mean())
    assert worst["highest"] == pytest.approx(filled(A, 10.0).mean() - filled(B, 1.0).mean())
    assert worst["simultaneous_lower"] < worst["lowest"] < worst["highest"]
    assert worst["simultaneous_upper"] > worst["highest"]


def test_the_intervals_of_both_ends_are_those_of_the_filled_values() -> None:
    a, b = arm("a", A[:1]), arm("b", B[:1])
    worst = row(a, b)["worst_case"]
    ends = []
    for of_a, of_b in ((1.0, 10.0), (10.0, 1.0)):
        whole = Family("bench", "wb_score", [arm("a", filled(A[:1], of_a).tolist())])
        whole.members.append(arm("b", filled(B[:1], of_b).tolist()))
        (one,) = estimates(whole, None)
        # as wide as the interval of the items that both have
        (short,) = estimates(Family("bench", "wb_score", [a, b]), None)
        half = short.criticals[0] * math.sqrt(one.pair.part.variance)
        ends += [one.value - half, one.value + half]
    assert worst["simultaneous_lower"] == pytest.approx(min(ends))
    assert worst["simultaneous_upper"] == pytest.approx(max(ends))
    assert stats.t_critical(5) <= short.criticals[0]


def test_a_verdict_holds_whatever_the_missing_values_were_only_where_both_ends_say_it() -> None:
    high, low = [9.0, 8.5, 9.5, 9.0, 9.2, 8.8], [2.0, 2.5, 1.5, 2.0, 2.2, 1.8]
    sure = row(arm("a", [[*high * 5, NAN]]), arm("b", [[*low * 5, 2.0]]))
    assert sure["worst_case"]["verdict"] == "a is better" == sure["as_losses"]["verdict"]
    turned = row(arm("a", [[*low * 5, NAN]]), arm("b", [[*high * 5, 9.0]]), lower_is_better=True)
    assert turned["worst_case"]["verdict"] == "a is better"
    open_ = row(arm("a", [[*high, *[NAN] * 8]]), arm("b", [[*low, *[5.0] * 8]]))
    assert open_["worst_case"]["verdict"] == CANNOT_TELL


def test_pairs_that_lack_nothing_have_no_worst_case() -> None:
    whole = [[5.0, 6.0, 7.0]]
    members = [arm("a", whole), arm("b", [[4.0, 6.0, 9.0]]), arm("c", [[5.0, NAN, 6.0]])]
    family = Family("bench", "wb_score", members)
    found = estimates(family, None)
    said = missing(family, found, baseline=None)
    names = [one.pair.a.name + one.pair.b.name for one in found]
    lacking = {name: one is not None for name, one in zip(names, said, strict=True)}
    assert lacking == {"ab": False, "ac": True, "bc": True}
    assert {one["cells"] for one in said if one is not None} == {1}


def test_a_rating_has_one_range_wherever_it_is_shown_or_filled_in() -> None:
    for metric in ("wb_score", "mt_score", "wb_reward"):
        of_items = limits(Family("bench", metric, [arm("a", [[1.0]])]))
        assert scales.scale(metric) == of_items, metric
    assert scales.scale("wb_reward") == (-1.0, 1.0)
    shown = scales.shown({"metric": "wb_reward", "value": -0.9, "lower": -1.2, "upper": -0.6})
    assert (shown["lower"], shown["upper"]) == (-1.0, -0.6)


@pytest.mark.parametrize(
    ("metric", "values", "expected"),
    [
        ("win_rate", [3.0], (0.0, 100.0)),
        ("discrete_win_rate", [3.0], (0.0, 100.0)),
        ("wb_score", [3.0], (1.0, 10.0)),
        ("mt_score", [3.0], (1.0, 10.0)),
        ("wb_reward", [0.0], (-1.0, 1.0)),
        ("arena_score", [0.0, 100.0], None),
        ("accuracy", [0.0, 1.0], (0.0, 1.0)),
        ("accuracy", [0.0], (0.0, 1.0)),
        ("accuracy", [0.0, 100.0], (0.0, 100.0)),
        ("accuracy", [0.0, 1.0, 100.0], None),
        ("loss", [0.5, 1.0], None),
        ("loss", [], None),
    ],
)
def test_the_range_of_a_metric_is_known_or_there_is_none(
    metric: str, values: list[float], expected: tuple[float, float] | None
) -> None:
    assert limits(Family("bench", metric, [arm("a", [values])])) == expected


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        ("length_controlled_winrate", "win_rate's bounds stand among the exploratory figures"),
        ("arena_score", "one fit over all games"),
        ("loss", "a value can be of any size"),
    ],
)
def test_a_figure_that_decides_without_bounds_is_named(metric: str, says: str) -> None:
    names = {"benchmark": "bench", "metric": metric}
    scores = [
        names | {"arm": arm, "unjudged": holes, "primary": True}
        for arm, holes in (("a", 3), ("b", 0))
    ]
    lacking = {"scores": scores, "differences": [names | {"a": "a", "b": "b", "missing": None}]}
    (said,) = without_bounds(lacking)
    assert said.startswith(f"bench {metric}, which decides, has no bounds for its 3 missing values")
    assert says in said
    bounded = [names | {"a": "a", "b": "b", "missing": {"cells": 3}}]
    assert without_bounds(lacking | {"differences": bounded}) == []
    whole = [score | {"unjudged": 0} for score in scores]
    assert without_bounds(lacking | {"scores": whole}) == without_bounds({}) == []


def test_a_length_controlled_win_rate_and_an_arena_score_have_no_range() -> None:
    for metric in ("length_controlled_winrate", "arena_score"):
        assert limits(Family("bench", metric, [arm("a", [[-3.0, 104.0]])])) is None
