"""Arms that a recipe has without writing them: random ones of equal size, and controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.errors import UserError
from synth.filters.arm import ArmConfig, Budget
from synth.filters.strategies import STRATEGIES

Named = Mapping[str, ArmConfig]

SHUFFLED = {"shuffled-10": 0.1, "shuffled-30": 0.3, "shuffled-100": 1.0}
"""Positive controls: a random arm's rows with this share of the answers moved."""
AGAIN = "again"
"""The second sample that the negative control draws."""


def random_arms(arms: Named) -> dict[str, ArmConfig]:
    """Random arms of the same size as others ("Chasing Random", arXiv 2410.15225).

    Of the pool: one for each distinct budget that has none. Of someone else's data: one of the same
    data beside each arm that filters it, for each distinct budget. A mixture has none of its own:
    its control is a mixture of its parts' random arms, which a recipe states where it is wanted.
    """
    sizes = dict.fromkeys(_size(arm) for arm in arms.values() if _is_sized(arm))
    taken = {_size(arm) for arm in arms.values() if is_random(arm) and arm.kind == "pool"}
    missing = [size for size in sizes if size is not None and size not in taken]
    allow_short = any(arm.allow_short for arm in arms.values())
    alone = len(missing) == 1 and "random" not in arms
    added = {}
    for unit, amount in missing:
        name = "random" if alone else f"random-{amount}-{unit}"
        given = {"choose": "hash_order", "budget": {unit: amount}, "allow_short": allow_short}
        added[name] = ArmConfig.model_validate(given)
    return added | _random_of_data(arms)


def _random_of_data(arms: Named) -> dict[str, ArmConfig]:
    """A random arm of the same data and size beside each arm that filters someone else's data, but
    one only for each data and size."""
    of_data = {name: arm for name, arm in arms.items() if arm.kind == "data"}
    taken = [_drawn_from(arm) for arm in of_data.values() if is_random(arm)]
    added: dict[str, ArmConfig] = {}
    for name, arm in of_data.items():
        size = _size(arm)
        if is_random(arm) or size is None or _drawn_from(arm) in taken:
            continue
        taken.append(_drawn_from(arm))
        unit, amount = size
        bare: dict[str, Any] = {"strategy": None, "where": None, "params": {}}
        sized = {"choose": "hash_order", "budget": Budget.model_validate({unit: amount})}
        added[f"random-of-{name}"] = arm.model_copy(update={**bare, **sized})
    return added


def control_arms(arms: Named, baseline: str | None) -> dict[str, ArmConfig]:
    """The controls of an experiment, made of one random arm: `baseline` where it is one, else the
    first of the pool, else the first of someone else's data.

    A second random sample, which must tie with the first (none of an arm that takes all rows: there
    is no second), and the first with answers moved between instructions, which must lose. An arm
    that is called so already stays as it is written. Raises UserError where no arm is random.
    """
    drawn = [name for name, arm in arms.items() if is_random(arm)]
    if not drawn:
        raise UserError(
            "controls: they are made of a random arm, and this recipe has none; take "
            "`random_arm: false` out, or add an arm {choose: hash_order, budget: ...}."
        )
    drawn.sort(key=lambda name: (name != baseline, arms[name].kind != "pool"))
    first = arms[drawn[0]]
    added: dict[str, ArmConfig] = {}
    if _size(first) is not None:
        update = {"choose": f"hash_order({AGAIN})"}
        added[f"{drawn[0]}-{AGAIN}"] = first.model_copy(update=update)
    for name, share in SHUFFLED.items():
        added[name] = ArmConfig(of=drawn[0], shuffled=share)
    return {name: arm for name, arm in added.items() if name not in arms}


def negative_controls(arms: Named) -> dict[str, str]:
    """Arms that are further samples of the very rows that a random arm samples, and that arm: they
    must tie."""
    found = {}
    for name, arm in arms.items():
        if not (arm.choose or "").startswith("hash_order("):
            continue
        for other, first in arms.items():
            if is_random(first) and _sampled(first) == _sampled(arm):
                found[name] = other
                break
    return found


def made_of(arms: Named) -> dict[str, str]:
    """The controls among arms, and the arm that each is made of."""
    moved = {name: arm.of for name, arm in arms.items() if arm.of is not None}
    return negative_controls(arms) | moved


def _sampled(arm: ArmConfig) -> object:
    """What an arm samples, whichever sample of it: its strategy's parts as its own."""
    strategy = STRATEGIES.get(arm.strategy or "")
    cut = arm.allow_cut
    if cut is None and strategy is not None:
        cut = strategy.allow_cut
    effective = {"where": _predicate(arm), "allow_cut": cut, "budget": _size(arm)}
    return {**arm.model_dump(), **effective, "choose": None, "strategy": None, "params": {}}


def _predicate(arm: ArmConfig) -> str | None:
    """The SQL that decides which rows an arm may choose: its own, or its strategy's."""
    if arm.where is not None:
        return arm.where or None
    strategy = STRATEGIES.get(arm.strategy or "")
    return None if strategy is None else strategy.filled(strategy.where, arm.params)


def _drawn_from(arm: ArmConfig) -> tuple[object, ...]:
    """The data of an arm, how it is read, and how much is taken."""
    return arm.data, arm.answers, arm.spec(), _size(arm)


def _is_sized(arm: ArmConfig) -> bool:
    """Whether an arm asks for a random arm of the pool of its size: one of the pool, and one that
    takes someone else's data as it comes."""
    return arm.kind == "pool" or (arm.kind == "data" and not arm.filtered)


def _size(arm: ArmConfig) -> tuple[str, int] | None:
    """(unit, amount) of an arm's budget: its own, or its strategy's."""
    if arm.budget is not None:
        ((unit, amount),) = arm.budget.model_dump(exclude_none=True).items()
        return unit, amount
    strategy = STRATEGIES.get(arm.strategy or "")
    return ("rows", strategy.rows) if strategy is not None and strategy.rows else None


def is_random(arm: ArmConfig) -> bool:
    """Whether an arm is the random sample of the pool or of someone else's data, and not a further
    one. A strategy's predicate filters, whatever chooses from what it keeps."""
    if _predicate(arm) or arm.kind not in ("pool", "data"):
        return False
    by_chance = (arm.choose or arm.strategy) in ("hash_order", "random")
    return by_chance or (arm.kind == "data" and not arm.filtered)
