"""What a reader must know beside a comparison's figures, as sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

from eval.comparing.differences import Row


def notes(
    arms: Mapping[str, Sequence[str]],
    scores: Sequence[Row],
    differences: Sequence[Row],
    deciding: tuple[str, str],
) -> list[str]:
    """What a reader must know beside the figures, as sentences."""
    said = [
        f"{deciding[0]} is the primary benchmark, declared beforehand, and its {deciding[1]} "
        "decides; every other figure is exploratory."
    ]
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
    families: dict[str, list[Row]] = {}
    for d in differences:
        families.setdefault(f"{d['benchmark']} {d['metric']}", []).append(d)
    for name, family in families.items():
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
    return said
