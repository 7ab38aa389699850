"""Who won, and what cannot be told, in one or two sentences: for the top of the page and the end of
a run."""

from __future__ import annotations

from collections.abc import Sequence

from recipes.report.verdicts import controls
from recipes.report.verdicts.outcome import CANNOT_TELL, Entry, deciding, headline, primary_pairs


def winner(comparison: Entry) -> str:
    """The arm that is better than every other one asked about, by the figure that decides; "" where
    none is. What is a control cannot win."""
    pairs = primary_pairs(comparison)
    asked = {str(pair[side]) for pair in pairs for side in ("a", "b")}
    asked -= set(controls.arms(comparison))
    for arm in sorted(asked):
        won = {other for pair in pairs if (other := _beaten(arm, pair))}
        if len(asked) > 1 and asked - {arm} <= won:
            return arm
    return ""


def answer(comparison: Entry) -> str:
    """The answer in words: who won, or that nobody did, and what was found of each pair."""
    said = str(headline(comparison)["sentence"])
    if not primary_pairs(comparison):
        return said
    first = winner(comparison)
    if first:
        return f"{first} won. {said}"
    verdicts = [str(pair["verdict"]) for pair in primary_pairs(comparison)]
    if all(verdict == CANNOT_TELL for verdict in verdicts):
        return f"Nobody won. {said}"
    return f"No arm won against all others. {said}"


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


def _beaten(arm: str, pair: Entry) -> str:
    """The other arm of a pair that `arm` won, else ""."""
    if pair["verdict"] != f"{arm} is better":
        return ""
    return str(pair["b"] if pair["a"] == arm else pair["a"])
