"""What speaks against the answer, what could be told and what could not: for the end of a run."""

from __future__ import annotations

from collections.abc import Sequence

from recipes.report.verdicts import controls
from recipes.report.verdicts.outcome import CANNOT_TELL, Entry, deciding, primary_pairs


def doubts(comparison: Entry) -> list[str]:
    """What speaks against believing the answer: controls that came out otherwise than they must."""
    family = deciding(comparison)
    return [
        f"{' '.join(family)}: {line['text']}"
        for shown in comparison.get("controls", [])
        if family is not None and family == (shown["benchmark"], shown["metric"])
        for line in controls.lines(shown)
        if line["against"]
    ]


def smallest(comparison: Entry) -> float | None:
    """The smallest difference of the figure that decides that is found 8 times in 10, of the pair
    where it is largest; None where that is not known."""
    known = [pair["detectable"] for pair in primary_pairs(comparison) if pair.get("detectable")]
    return max(known, default=None)


def told(comparison: Entry) -> tuple[Sequence[str], Sequence[str]]:
    """The pairs that the figure that decides tells apart, and those that it cannot: "a is better
    than b", "a and b"."""
    found, untold = [], []
    for pair in primary_pairs(comparison):
        a, b, verdict = str(pair["a"]), str(pair["b"]), str(pair["verdict"])
        if verdict == CANNOT_TELL:
            untold.append(f"{a} and {b}")
        elif verdict.endswith(" is better"):
            found.append(f"{verdict} than {b if verdict.startswith(f'{a} is') else a}")
        else:
            found.append(f"{a} and {b}: {verdict}")
    return found, untold
