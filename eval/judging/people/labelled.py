"""What people's labels of a recipe's own answers said, as `magpie label` keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.files import read_json
from eval.judging.people.prediction_powered import FEWEST

FILE = "people.json"
"""Below the recipe's folder: what the labels that were read last said."""


def sentences(said: Mapping[str, Any]) -> list[str]:
    """What the labels say, a line each."""
    lines = []
    for row in said["differences"]:
        both, alone = row["difference"], row["labels_alone"]
        if both is None:
            lines.append(
                f"{row['labelled']} labelled pairs of {row['a']} and {row['b']} say nothing of "
                f"their difference; label at least {FEWEST}"
            )
            continue
        lines.append(
            f"people prefer {row['a']} to {row['b']} by {both['value']:+.1f} points "
            f"[{both['lower']:+.1f}, {both['upper']:+.1f}] ({row['labelled']} labelled pairs and "
            f"the judge on {row['prompts']} prompts, worth {row['worth']:.0f} labels; the labels "
            f"alone: {alone['value']:+.1f} [{alone['lower']:+.1f}, {alone['upper']:+.1f}])"
        )
    judge = said["agreement"]
    if judge:
        lines.append(
            f"the judge takes the answer that people take in {judge['accuracy']:.3f} "
            f"[{judge['lower']:.3f}, {judge['upper']:.3f}] of {judge['n']} labelled pairs of this "
            "recipe's own answers"
        )
    if said["people"]:
        lines.append(f"people agree with each other in {said['people']['pairwise']:.3f}")
    return lines


def find(folder: Path) -> list[str]:
    """What labels of a recipe said, from its folder; nothing where there are none."""
    path = folder / FILE
    return sentences(read_json(path)) if path.is_file() else []
