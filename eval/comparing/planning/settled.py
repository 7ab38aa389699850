"""What would settle an open difference: how many prompts, seeds, answers a prompt or judges."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from eval import stats
from eval.comparing.errors import POWER, Errors, power
from eval.comparing.estimates import Estimate
from eval.comparing.planning.components import Components, Size, predicted

A_TRAINING = 10_000
"""What a training run costs, in judged answers, where the cheapest way is named: some GPU-hours of
an 8B model against about a second and a cent a judged answer."""
MOST = {"prompts": 100_000, "seeds": 50, "answers": 64, "judges": 16}
"""Beyond these nothing is proposed."""


def settled(one: Estimate, known: Components) -> dict[str, Any]:
    """What would find the difference that was seen 8 times in 10, were it the true one: for each
    of prompts, seeds, answers and judges the number needed in all, with everything else as it is
    (null: not by this alone, or its component was not measured); the `cheapest` of them; and a
    sentence."""
    now = size(one)
    found: dict[str, int | None] = {
        "prompts": _enough(one, known, now, "prompts"),
        "seeds": _enough(one, known, now, "seeds") if one.errors.seeds.variance else None,
        "answers": None,
        "judges": None,
    }
    if known.answers > 0:
        found["answers"] = _enough(one, known, now, "answers")
    if known.judges > 0:
        found["judges"] = _enough(one, known, now, "judges")
    prices = {
        name: _price(one, now, name, number) for name, number in found.items() if number is not None
    }
    cheapest = min(prices, key=lambda name: prices[name]) if prices else None
    return found | {"cheapest": cheapest, "sentence": _sentence(one, now, found, cheapest)}


def size(one: Estimate) -> Size:
    """What a pair has of everything."""
    pair = one.pair
    return Size(
        prompts=len(pair.part.sums),
        seeds=max(len(pair.x), len(pair.y)),
        answers=max(pair.a.answers.count, pair.b.answers.count),
        judges=max(pair.a.judges.count, pair.b.judges.count),
    )


def _enough(one: Estimate, known: Components, now: Size, name: str) -> int | None:
    """The smallest number of one thing that suffices, to 2 %; None above MOST."""
    have = getattr(now, name)

    def finds(number: int) -> bool:
        then = replace(now, **{name: number})
        errors = predicted(one, known, now, then)
        return power(abs(one.value), errors, criticals(one, errors)) >= POWER

    if not (one.value and one.errors.standard_error > 0 and finds(MOST[name])):
        return None
    return _smallest(finds, have, MOST[name])


def _smallest(finds: Callable[[int], bool], low: int, high: int) -> int:
    """By bisection: `finds` holds at `high`, not at `low`."""
    while high - low > max(1, 0.02 * low):
        middle = (low + high) // 2
        if finds(middle):
            high = middle
        else:
            low = middle
    return high


def criticals(one: Estimate, errors: Errors) -> tuple[float, float]:
    """The critical values of a family with other degrees of freedom: as many times as wide as those
    of a single pair as they are now. What widens the items' where fewer prompts than planned were
    judged (eval/comparing/sequential.py) falls with more of them."""
    of_items, of_seeds = (
        critical / stats.t_critical(before.df) * stats.t_critical(after.df)
        for critical, before, after in (
            (one.criticals[0], one.errors.items, errors.items),
            (one.criticals[1], one.errors.seeds, errors.seeds),
        )
    )
    stretch = math.sqrt(max(1.0, one.pair.planned / (errors.items.df + 1)))
    return of_items / one.pair.stretch * stretch, of_seeds


def _price(one: Estimate, now: Size, name: str, number: int) -> float:
    """What the additional ones cost, in judged answers of the two arms."""
    per_prompt = len(one.pair.clusters) / len(one.pair.part.sums)
    whole = 2 * now.prompts * per_prompt * now.seeds * now.answers * now.judges
    more = number / float(getattr(now, name)) - 1
    trained = 2 * (number - now.seeds) * A_TRAINING if name == "seeds" else 0.0
    return whole * more + trained


def _without_error(one: Estimate) -> str:
    """Why nothing can be proposed where the spread between prompts is unknown or 0."""
    if math.isnan(one.errors.standard_error):
        return (
            "The error of this difference is unknown: all its items are of one prompt (cluster), "
            "and what others would say needs at least two."
        )
    return (
        f"All {len(one.pair.part.sums)} prompts differ by the same amount: they are too few for "
        "the exact test, and how much others would differ is unknown."
    )


def _sentence(one: Estimate, now: Size, found: dict[str, int | None], cheapest: str | None) -> str:
    """What to buy, the cheapest first, or that nothing affordable helps."""
    seen = f"{abs(one.value):.3g}"
    if not one.value or not math.isfinite(one.value):
        return "No difference was seen at all: nothing would settle which is better."
    if not one.errors.standard_error > 0:
        return _without_error(one)
    if cheapest is None:
        return (
            f"If the true difference is the {seen} that was seen, no affordable number of prompts "
            "or seeds would show it."
        )
    names = {
        "prompts": "prompts",
        "seeds": "seeds an arm",
        "answers": "answers a prompt",
        "judges": "judges of each answer",
    }
    ways = [
        f"{found[name]:,} {names[name]} in place of {getattr(now, name):,}"
        for name in sorted(names, key=lambda name: name != cheapest)
        if found[name] is not None
    ]
    others = f" (or {', or '.join(ways[1:])})" if ways[1:] else ""
    return (
        f"If the true difference is the {seen} that was seen, {ways[0]} would show it 8 times in "
        f"10{others}."
    )
