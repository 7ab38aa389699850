"""Controls of an experiment: what it can see is shown by arms of which the answer is known.

A second random sample must tie with the first (negative control); a random sample with answers
moved to other instructions must lose to it (positive controls). Their pairs are a family of their
own: they say whether the experiment works, and widen no interval of the arms that are in question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from math import isfinite
from typing import Any

from eval.comparing.arms import Family
from eval.comparing.estimates import IS_BETTER
from eval.comparing.metrics import Control

Row = dict[str, Any]

KEPT = (
    "difference",
    "standard_error",
    "simultaneous_lower",
    "simultaneous_upper",
    "detectable",
    "p_holm",
    "n",
    "verdict",
    "scope",
)
"""What is said of a control's pair."""


def families(family: Family, controls: Mapping[str, Control]) -> tuple[Family, Family | None]:
    """The family of the arms that are in question, and that of the controls, each with the arm that
    it is made of (None where no control was scored). Both know all arms, so that the variance
    between seeds is pooled over all of them."""
    there = {arm.name for arm in family.members}
    scored = {name: c.of for name, c in controls.items() if name in there and c.of in there}
    if not scored:
        return family, None
    asked = [arm.name for arm in family.members if arm.name not in controls]
    among = frozenset(map(frozenset, combinations(asked, 2)))
    beside = frozenset(frozenset(pair) for pair in scored.items())
    return replace(family, compared=among), replace(family, compared=beside)


def shown(family: Family, differences: Sequence[Row], controls: Mapping[str, Control]) -> Row:
    """What the controls of one metric show, from the differences of their family.

    negative: the second samples, each with its interval, and whether it `ties`. shuffled: by rising
    share, each with whether it lost (`detected`). smallest_detected: the smallest share that lost
    as did every larger one, else null. sees_nothing: not even the largest share lost. sentences:
    the same in words.
    """
    by_arm = {}
    for found in differences:
        arm, turned = (
            (found["a"], found) if found["a"] in controls else (found["b"], _turned(found))
        )
        by_arm[arm] = {"arm": arm, "of": controls[arm].of} | {key: turned[key] for key in KEPT}
    negative = [
        row | {"ties": not row["verdict"].endswith(IS_BETTER)}
        for arm, row in by_arm.items()
        if controls[arm].shuffled is None
    ]
    moved = sorted((share, arm) for arm in by_arm if (share := controls[arm].shuffled) is not None)
    shuffled = []
    for share, arm in moved:
        row = by_arm[arm]
        lost = row["verdict"] == f"{row['of']} is better"
        shuffled.append(row | {"share": share, "detected": lost})
    smallest = None
    for row in reversed(shuffled):
        if not row["detected"]:
            break
        smallest = row["share"]
    found = {
        "benchmark": family.benchmark,
        "metric": family.metric,
        "primary": family.primary,
        "negative": negative,
        "shuffled": shuffled,
        "smallest_detected": smallest,
        "sees_nothing": bool(shuffled) and smallest is None,
    }
    return found | {"sentences": sentences(found)}


def _turned(row: Row) -> Row:
    """The same difference, seen from the other arm."""
    low, high = row["simultaneous_lower"], row["simultaneous_upper"]
    return row | {
        "difference": -row["difference"],
        "simultaneous_lower": -high,
        "simultaneous_upper": -low,
    }


def sentences(found: Row) -> list[str]:
    """What a reader must know before the first verdict."""
    where = f"{found['benchmark']} {found['metric']}"
    return [f"{where}: {text}" for text, _ in said(found)]


def said(found: Row) -> list[tuple[str, bool]]:
    """What the controls of a metric show, and of each sentence whether it speaks against the
    experiment: a second sample that is not a tie, wrong answers that win, or nothing seen."""
    told = []
    for row in found.get("negative", []):
        low, high = row["simultaneous_lower"], row["simultaneous_upper"]
        interval = f"{low:+.3g} to {high:+.3g}" if _known(low, high) else "no interval"
        pair = f"{row['arm']}, a second random sample, differs from {row['of']} by"
        size = f"{pair} {row['difference']:+.3g} ({interval})"
        if row["ties"]:
            told.append((f"{size}, as it should: 0.", False))
        else:
            why = "though both are samples of the same rows: other differences of this size may be"
            told.append((f"{size}, {why} chance as well.", True))
    return told + _of_shuffled(found)


def _known(low: float | None, high: float | None) -> bool:
    return low is not None and high is not None and isfinite(low + high)


def _of_shuffled(found: Row) -> list[tuple[str, bool]]:
    """Which shares of wrong answers were detected, and what it means where none was."""
    shuffled = found.get("shuffled", [])
    if not shuffled:
        return []
    told = [
        (
            f"{row['arm']} is better than {row['of']}, whose rows it has with {row['share']:.0%} "
            "wrong answers: this figure does not measure what was learnt.",
            True,
        )
        for row in shuffled
        if row["verdict"] == f"{row['arm']} is better"
    ]
    largest = max(row["share"] for row in shuffled)
    smallest = found["smallest_detected"]
    if smallest is None:
        nothing = (
            f"not even {largest:.0%} wrong answers are told from right ones: this design can see "
            "nothing here, and that it cannot tell other arms apart says nothing of them."
        )
        return [*told, (nothing, True)]
    missed = [f"{row['share']:.0%}" for row in shuffled if row["share"] < smallest]
    unseen = f"; {' and '.join(missed)} were not" if missed else ""
    return [*told, (f"{smallest:.0%} wrong answers are detected{unseen}.", False)]
