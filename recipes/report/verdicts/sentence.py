"""The answer in one sentence, by the figure that decides: who won, what was found of the others.

Never more than the comparison's own verdicts say, and as short for twelve arms as for three.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from recipes.report.verdicts import controls
from recipes.report.verdicts.outcome import (
    CANNOT_TELL,
    Entry,
    asked,
    deciding,
    lower,
    primary_pairs,
)

SAYS = ("better", "worse", "other", CANNOT_TELL)
"""In this order the sentence says what is known."""
MOST_PAIRS = 3
"""More pairs that cannot be told apart are counted, not named."""
MOST_ARMS = 4
"""Of more arms that nobody is the baseline of, only the first is said, with counts; of more names
in one place the rest are counted."""
NOBODY, NO_ARM = "nobody won", "no arm won against all others"
NOTHING = "No difference between arms was measured on a primary benchmark."


def answer(comparison: Entry, unusable: Mapping[str, str] | None = None) -> str:
    """The answer in one sentence. Where a control of the figure that decides came out otherwise
    than it must, or its judge goes by the order of the answers, it begins with that.

    `unusable`: benchmark -> why its scores say nothing, as `outcome.unusable` has it.
    """
    pairs = asked(comparison)
    if not pairs:
        return NOTHING
    who, found = _found(comparison, pairs)
    judge = (unusable or {}).get(str(pairs[0]["benchmark"]))
    doubts = [*controls.doubts(comparison), *filter(None, [judge])]
    if doubts:
        who = f"Not to be believed ({'; '.join(doubts)}): {who}"
    elif who in (NOBODY, NO_ARM):
        who = who.capitalize()
    where = f"{pairs[0]['benchmark']} ({pairs[0]['metric']}), the primary benchmark"
    return f"{who} on {where}: {found}{_scope(pairs)}."


def winner(comparison: Entry) -> str:
    """The arm that is better than every other one asked about, by the figure that decides; "" where
    none is. What is a control cannot win."""
    pairs = primary_pairs(comparison)
    named = _names(pairs) - set(controls.arms(comparison))
    for arm in sorted(named):
        won = {other for pair in pairs if (other := _beaten(arm, pair))}
        if len(named) > 1 and named - {arm} <= won:
            return arm
    return ""


def _found(comparison: Entry, pairs: Sequence[Entry]) -> tuple[str, str]:
    """Who won, and what was found of the others."""
    baseline = comparison.get("baseline")
    primary = primary_pairs(comparison)
    first = winner(comparison)
    if any(baseline in (pair["a"], pair["b"]) for pair in pairs):
        told = "; ".join(_verdicts(pairs, baseline))
    elif len(_names(pairs)) > MOST_ARMS:
        return _leading(comparison, pairs, first)
    else:
        told = "; ".join(_verdicts(pairs, None))
    if first:
        return f"{first} won", told
    untold = all(str(pair["verdict"]) == CANNOT_TELL for pair in primary)
    return (NOBODY if untold else NO_ARM), told


def _leading(comparison: Entry, pairs: Sequence[Entry], first: str) -> tuple[str, str]:
    """Of many arms the one that no other is better than and that is better than most: than how
    many of them it is, and whom it cannot be told from."""
    others = len(_names(pairs)) - 1
    if first:
        return f"{first} won", f"it is better than all {others} others"
    leader = _leader(comparison, pairs)
    if not leader:
        untold = sum(pair["verdict"] == CANNOT_TELL for pair in pairs)
        return NOBODY, f"{untold} of {len(pairs)} pairs cannot be told apart, and no arm is better"
    mine = [pair for pair in pairs if leader in _names([pair])]
    won = sum(bool(_beaten(leader, pair)) for pair in mine)
    said = [f"it is better than {won} of {others} others"]
    untold_from = [_other_of(leader, pair) for pair in mine if pair["verdict"] == CANNOT_TELL]
    if untold_from:
        said.append(f"cannot be told from {_join(untold_from)}")
    if len(mine) > won + len(untold_from):
        said.append(f"is as good as {len(mine) - won - len(untold_from)}")
    return f"{leader} leads", _join(said)


def _leader(comparison: Entry, pairs: Sequence[Entry]) -> str:
    """Of the arms that no other is better than, the one that is better than most, and of several
    such the one with the best score; "" where no arm is better than another."""
    won, lost = Counter[str](), set[str]()
    for pair in pairs:
        for arm in sorted(_names([pair])):
            if _beaten(arm, pair):
                won[arm] += 1
                lost.add(_beaten(arm, pair))
    family = deciding(comparison)
    own = [s for s in comparison.get("scores", []) if family == (s["benchmark"], s["metric"])]
    sign = -1 if family is not None and lower(family, [*own, *pairs]) else 1
    scores = {str(s["arm"]): sign * s["value"] for s in own if s["value"] is not None}
    ranked = sorted(won, key=lambda arm: (-won[arm], -scores.get(arm, float("-inf")), arm))
    return next((arm for arm in ranked if arm not in lost), next(iter(ranked), ""))


def _verdicts(pairs: Sequence[Entry], baseline: str | None) -> list[str]:
    """Who is better than whom, who is worse than the baseline, then who cannot be told apart."""
    told: dict[tuple[str, str], list[str]] = {}
    for pair in pairs:
        one, says, other = _told(pair, baseline)
        told.setdefault((says, other), []).append(one)
    parts = []
    untold = []
    for (says, other), ones in sorted(told.items(), key=lambda entry: SAYS.index(entry[0][0])):
        are = "are" if len(ones) > 1 else "is"
        if says in ("better", "worse"):
            parts.append(f"{_join(ones)} {are} {says} than {other}")
        elif says == CANNOT_TELL and other == baseline:
            parts.append(f"{_join(ones)} cannot be told from {other}")
        elif says == CANNOT_TELL:
            untold += [f"{one} and {other}" for one in ones]
        else:
            parts += ones
    if len(untold) > MOST_PAIRS:
        parts.append(f"{len(untold)} of {len(pairs)} pairs cannot be told apart")
    elif untold:
        parts.append(f"{_join(untold)} cannot be told apart")
    return parts


def _told(pair: Entry, baseline: str | None) -> tuple[str, str, str]:
    """(arm, what is said of it, of whom): of the arm beside the baseline, else of the better one. A
    verdict of another kind stands as it is."""
    a, b = str(pair["a"]), str(pair["b"])
    verdict = str(pair["verdict"])
    says = CANNOT_TELL if verdict == CANNOT_TELL else "better"
    winner = a if verdict == f"{a} is better" else b
    if says == "better" and verdict != f"{winner} is better":
        return _other(pair), "other", ""
    loser = b if winner == a else a
    if says == "better":
        return (loser, "worse", winner) if winner == baseline else (winner, says, loser)
    return (b, says, a) if a == baseline else (a, says, b)


def _other(pair: Entry) -> str:
    """A verdict of another kind with both arms: "equal within 2" is said of the two, "x is no
    worse" of x."""
    a, b = str(pair["a"]), str(pair["b"])
    verdict = str(pair["verdict"])
    for arm, other in ((a, b), (b, a)):
        if verdict == f"{arm} is no worse":
            return f"{verdict} than {other}"
    return f"{a} and {b} are {verdict}" if verdict.startswith("equal") else verdict


def _scope(pairs: Sequence[Entry]) -> str:
    """What the sentence is about, where that is not the filters."""
    scopes = [str(pair.get("scope", "")) for pair in pairs]
    if any(scope.startswith("these two checkpoints") for scope in scopes):
        return " (one training seed: about these checkpoints, not about the filters)"
    return ""


def _names(pairs: Sequence[Entry]) -> set[str]:
    return {str(pair[side]) for pair in pairs for side in ("a", "b")}


def _other_of(arm: str, pair: Entry) -> str:
    return str(pair["b"] if pair["a"] == arm else pair["a"])


def _beaten(arm: str, pair: Entry) -> str:
    """The other arm of a pair that `arm` won, else ""."""
    return _other_of(arm, pair) if pair["verdict"] == f"{arm} is better" else ""


def _join(parts: Sequence[str]) -> str:
    """One, two and three; of many the first, and how many more."""
    if len(parts) > MOST_ARMS + 1:
        parts = [*parts[:MOST_ARMS], f"{len(parts) - MOST_ARMS} more"]
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last
