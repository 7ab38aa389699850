"""What items without a value could change: failures as losses, and bounds over whatever they could
have been (Manski 1990)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from eval.comparing.arms import Arm, Family
from eval.comparing.estimates import Estimate, estimates, verdicts
from eval.comparing.metrics import RATINGS

PERCENT = {"win_rate", "discrete_win_rate"}
"""Metrics whose items lie from 0 to 100. Not Arena-Hard's: its score is a rate, but its items are
what each prompt adds to it, which has no such bounds."""


def limits(family: Family) -> tuple[float, float] | None:
    """The lowest and highest value that an item can have; None where there is none (a loss), or it
    is not known."""
    if family.metric in PERCENT:
        return 0.0, 100.0
    if family.metric in RATINGS:
        return RATINGS[family.metric]
    if family.metric == "arena_score":
        return None
    seen = {float(x) for arm in family.members for x in np.unique(arm.values)}
    if seen and seen <= {0.0, 1.0}:
        return 0.0, 1.0
    return (0.0, 100.0) if seen and seen <= {0.0, 100.0} else None


def missing(
    family: Family,
    found: Sequence[Estimate],
    *,
    baseline: str | None,
    lower_is_better: bool = False,
    seed: int = 0,
) -> list[dict[str, Any] | None]:
    """For each difference of a family: how many cells of its arms have no value (`cells`), what it
    would be `as_losses`, and its `worst_case`: the outer ends of the simultaneous intervals when
    all missing values speak against the first arm, and when all speak for it, with the verdict
    that holds whatever they were. None for a pair that lacks nothing, and where the metric's range
    is not known."""
    range_of = limits(family)
    if range_of is None or all(arm.asked is None for arm in family.members):
        return [None] * len(found)
    low, high = range_of
    worst = high if lower_is_better else low
    lost = _by_pair(family, baseline, {arm.name: worst for arm in family.members}, seed)
    said = dict(
        zip(lost, verdicts(list(lost.values()), lower_is_better=lower_is_better), strict=True)
    )
    rows: list[dict[str, Any] | None] = []
    for one in found:
        a, b = one.pair.a, one.pair.b
        if a.asked is None and b.asked is None:
            rows.append(None)
            continue
        alone = replace(family, compared=frozenset([frozenset([a.name, b.name])]))
        ends = [
            # as wide as for all pairs of the family
            replace(filled[a.name, b.name], criticals=one.criticals)
            for filled in (
                _by_pair(alone, baseline, {a.name: low, b.name: high}, seed),
                _by_pair(alone, baseline, {a.name: high, b.name: low}, seed),
            )
        ]
        as_lost = lost[a.name, b.name]
        rows.append(
            {
                "cells": a.unjudged + b.unjudged,
                "as_losses": _figures(as_lost, said[a.name, b.name]),
                "worst_case": _worst(ends, lower_is_better),
            }
        )
    return rows


def _by_pair(
    family: Family, baseline: str | None, fills: dict[str, float], seed: int
) -> dict[tuple[str, str], Estimate]:
    """The estimates with missing values of some arms filled, by names."""
    members = [
        _filled(arm, fills[arm.name]) if arm.name in fills else arm for arm in family.members
    ]
    made = estimates(replace(family, members=members), baseline, seed=seed)
    return {(one.pair.a.name, one.pair.b.name): one for one in made}


def _filled(arm: Arm, value: float) -> Arm:
    if arm.asked is None:
        return arm
    values = np.where(np.isnan(arm.asked.values), value, arm.asked.values)
    return replace(
        arm,
        items=arm.asked.items,
        clusters=arm.asked.clusters,
        values=values,
        unjudged=0,
        seeds=arm.asked.seeds,
    )


def _figures(one: Estimate, verdict: str) -> dict[str, Any]:
    lower, upper = one.bounds
    return {
        "difference": one.value,
        "simultaneous_lower": lower,
        "simultaneous_upper": upper,
        "verdict": verdict,
    }


def _worst(ends: Sequence[Estimate], lower_is_better: bool) -> dict[str, Any]:
    """Of the two extremes: the range of the difference, and the verdict both agree in."""
    said = {verdicts([one], lower_is_better=lower_is_better)[0] for one in ends}
    return {
        "lowest": min(one.value for one in ends),
        "highest": max(one.value for one in ends),
        "simultaneous_lower": min(one.bounds[0] for one in ends),
        "simultaneous_upper": max(one.bounds[1] for one in ends),
        "verdict": said.pop() if len(said) == 1 else "cannot tell",
    }
