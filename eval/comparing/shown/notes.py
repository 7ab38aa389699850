"""What a reader must know beside a comparison's figures, as sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from eval.comparing.arms import Family, shared_items
from eval.comparing.differences import Row
from eval.comparing.estimates import IS_BETTER

UNBOUNDED = {
    "length_controlled_winrate": "they come from one fit over all items; win_rate's bounds stand "
    "among the exploratory figures",
    "length_controlled_minimal": "they come from one fit over all items; win_rate's bounds stand "
    "among the exploratory figures",
    "arena_score": "a prompt's value is what it adds to one fit over all games",
}
"""Why the missing values of a metric have no bounds (eval/comparing/missing.py)."""


def of_primary(deciding: tuple[str, str], *, beforehand: bool) -> str:
    """Which benchmark and metric decide, and whether they were declared before there were
    scores."""
    benchmark, metric = deciding
    if beforehand:
        return (
            f"{benchmark} is the primary benchmark, declared beforehand, and its {metric} decides; "
            "every other figure is exploratory."
        )
    return (
        f"{benchmark} is the primary benchmark, declared when scores existed already, and its "
        f"{metric} decides; it is exploratory, like every other figure."
    )


def notes(
    arms: Mapping[str, Sequence[str]],
    scores: Sequence[Row],
    differences: Sequence[Row],
    families: Sequence[Family] = (),
) -> list[str]:
    """What a reader must know beside the figures, as sentences. `families`: all that was to be
    compared, also pairs that could not be."""
    said = []
    if any(d["scope"].startswith("these two checkpoints") for d in differences):
        said.append(
            "Arms with one training seed are compared as checkpoints: their intervals cover other "
            "prompts, not another training run, so they say nothing about the filters themselves."
        )
    if any(len(seeds) > 1 for seeds in arms.values()):
        said.append(
            "The variance between training seeds is pooled over the arms and part of every "
            "interval; a seed also redraws the random arm."
        )
    said += _unequal_seeds(arms, scores)
    by_metric: dict[str, list[Row]] = {}
    for d in differences:
        by_metric.setdefault(f"{d['benchmark']} {d['metric']}", []).append(d)
    for name, family in by_metric.items():
        smallest = [d["detectable"] for d in family if isfinite(d["detectable"])]
        if smallest:
            said.append(
                f"{name}: intervals hold for all {len(family)} differences at once (95 %); "
                f"with {min(d['n'] for d in family)} items the smallest difference found 8 times "
                f"in 10 is {min(smallest):.3g} to {max(smallest):.3g}."
            )
    for s in scores:
        if s["unjudged"]:
            said.append(
                f"{s['arm']}: {s['unjudged']} unjudged items in {s['benchmark']} {s['metric']}, "
                "left out of its score and of every pair."
            )
    for compared in families:
        said += _few_items(compared)
    return said + _open(differences) + _turned_by_missing(differences)


def without_bounds(comparison: Mapping[str, Any]) -> list[str]:
    """That the figure which decides lacks values, and that nobody knows how far these could change
    it. Of a comparison as comparison.json has it."""
    scores = [s for s in comparison.get("scores", []) if s.get("primary")]
    names = [(s["benchmark"], s["metric"]) for s in scores]
    lacking = {s["arm"]: s["unjudged"] for s in scores if s.get("unjudged")}
    pairs = [
        d
        for d in comparison.get("differences", [])
        if (d["benchmark"], d["metric"]) in names
        and not lacking.keys().isdisjoint((d["a"], d["b"]))
    ]
    if not pairs or any(d.get("missing") for d in pairs):
        return []
    benchmark, metric = names[0]
    cells = sum(lacking.values())
    why = UNBOUNDED.get(metric, "a value can be of any size")
    return [
        f"{benchmark} {metric}, which decides, has no bounds for its {cells} missing values "
        f"({why}): its verdicts speak of the items that have values."
    ]


def _few_items(family: Family) -> list[str]:
    """Which pairs of a metric are not compared, and which on fewer items than their arms have."""
    none, fewer, said = [], [], []
    for a, b, shared, of in shared_items(family):
        if shared:
            fewer.append(f"{a} and {b} {shared} of {of}")
        else:
            none.append(f"{a} and {b}")
    where = f"{family.benchmark} {family.metric}"
    if none:
        said.append(f"{where}: arms that share no item are not compared: {', '.join(none)}.")
    if fewer:
        said.append(f"{where}: compared on the items that both have only: {', '.join(fewer)}.")
    return said


def _unequal_seeds(arms: Mapping[str, Sequence[str]], scores: Sequence[Row]) -> list[str]:
    """Where arms have other numbers of seeds than each other, or a score has fewer than its arm."""
    said = []
    counts = {name: len(seeds) for name, seeds in arms.items() if seeds}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        said.append(f"Arms have unequal numbers of seeds ({listed}): each counts with what it has.")
    return said + [
        f"{s['arm']} has {s['seeds']} of its {counts[s['arm']]} seeds in {s['benchmark']} "
        f"{s['metric']}: it counts with those."
        for s in scores
        if 0 < s.get("seeds", 0) < counts.get(s["arm"], 0)
    ]


def _open(differences: Sequence[Row]) -> list[str]:
    """What would settle the differences that the primary metric leaves open."""
    return [
        f"{d['a']} and {d['b']}: {d['settled']['sentence']}"
        for d in differences
        if d.get("settled") and not d["scope"].endswith("exploratory")
    ]


def _turned_by_missing(differences: Sequence[Row]) -> list[str]:
    """Verdicts that missing values could take back."""
    return [
        f"{d['a']} and {d['b']} ({d['benchmark']} {d['metric']}): the verdict does not hold for "
        f"whatever the {d['missing']['cells']} missing values could have been; with failures as "
        f"losses it is: {d['missing']['as_losses']['verdict']}."
        for d in differences
        if d.get("missing")
        and d["verdict"].endswith(IS_BETTER)  # the worst case is asked for no other
        and d["missing"]["worst_case"]["verdict"] != d["verdict"]
    ]
