"""A rule is what an arm resolves to: `where` (row by row) plus `choose` (a set function) up to an
absolute budget.

`where` may leave a row undecided while a column that matters is unmeasured; `choose` ranks the rows
that `where` keeps. Held-out rows, and rows whose instruction equals a held-out one, are never
chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import polars as pl

from core.errors import UserError, nearest
from synth.filters import choices
from synth.filters.arm import ArmConfig, Budget
from synth.filters.choices import Choose
from synth.filters.strategies import STRATEGIES, Strategy
from synth.filters.where import Where, parse
from synth.measures import SHIPPED, Measures


@dataclass(frozen=True)
class Rule:
    """A resolved arm over the pool. `at` is where it is stated, for error sentences; `measures` are
    those whose columns it may read."""

    name: str
    at: str
    where: Where | None
    choose: Choose
    budget: Budget | None
    allow_short: bool
    measures: Measures = SHIPPED
    allow_cut: bool = True
    """Whether answers that were cut off may be chosen."""
    like: Rule | None = None
    """The rule that it controls: its choice is made like that one's."""

    @property
    def seeded(self) -> bool:
        """A training seed redraws the sample of `hash_order` (and of nothing else)."""
        return self.choose.choice.seeded

    @property
    def columns(self) -> frozenset[str]:
        """Every column that it reads."""
        return self.tested.union(self.choose.ranks)

    @property
    def tested(self) -> frozenset[str]:
        """The columns that `where` reads."""
        return self.where.columns if self.where else frozenset()

    @property
    def keeps(self) -> pl.Expr:
        """What `where` says of each row: true, false, or null while it is undecided."""
        return self.where.root.expr if self.where else pl.lit(True)


def resolve(name: str, arm: ArmConfig, at: str | None = None, measures: Measures = SHIPPED) -> Rule:
    """The rule of one arm: its strategy, with what the arm itself states on top. `at` names its
    place for the error sentence; `measures`: those whose columns the arm may name.

    Raises UserError for unknown strategies, parameters, columns and labels, a budget that is
    missing or given to `all`, and everything that `parse` refuses.
    """
    at = at or f"arms.{name}"
    base = _strategy(arm, at)
    _check_params(base, arm, at)
    text = arm.where if arm.where is not None else base.filled(base.where, arm.params)
    written = arm.choose or base.filled(base.choose, arm.params) or ""
    choose = choices.read(written, f"{at}.choose", measures.fields)
    budget = arm.budget or (Budget(rows=base.rows) if base.rows else None)
    if budget is None and choose.kind != "all" and not choose.choice.controls:
        raise UserError(
            f"{at}: no budget; add `budget: {{rows: N}}` or `{{tokens: N}}` "
            "(or `choose: all`, which answers and keeps every row)."
        )
    if arm.budget is not None and choose.kind == "all":
        raise UserError(
            f"{at}: `all` takes every row; leave the budget out, or choose hash_order/longest."
        )
    where = parse(text, measures.fields, f"{at}.where") if text else None
    kept = None if choose.kind == "all" else budget
    cut = _allows_cut(arm, base, choose)
    return Rule(name, at, where, choose, kept, arm.allow_short, measures, cut)


BY_LENGTH = frozenset({"response_length", "response_tokens"})
"""Who ranks by these prefers answers that did not come to an end."""


def _allows_cut(arm: ArmConfig, base: Strategy, choose: Choose) -> bool:
    """What the arm says, else its strategy, else its choice: one by length takes no cut answers."""
    for said in (arm.allow_cut, base.allow_cut):
        if said is not None:
            return said
    kind = choose.choice
    return kind.controls or kind.waits or not BY_LENGTH.intersection(choose.ranks)


def linked(rules: Mapping[str, Rule]) -> dict[str, Rule]:
    """The same rules; those that control another one know it, and have its budget where they state
    none. Raises UserError for one that there is not, and for the control of a control."""
    return {name: _linked(rule, rules) for name, rule in rules.items()}


def _linked(rule: Rule, rules: Mapping[str, Rule]) -> Rule:
    if not rule.choose.choice.controls:
        return rule
    name = rule.choose.arguments[0]
    if name not in rules:
        near = nearest(name, rules)
        raise UserError(f"{rule.at}: no arm over the same rows is called '{name}'{near}.")
    like = rules[name]
    if like.choose.choice.controls:
        raise UserError(f"{rule.at}: '{name}' is itself like another arm; name that one.")
    budget = rule.budget or like.budget
    if budget is None:
        raise UserError(f"{rule.at}: '{name}' has no budget to take over; add one.")
    return replace(rule, like=like, budget=budget, allow_cut=rule.allow_cut and like.allow_cut)


def _strategy(arm: ArmConfig, at: str) -> Strategy:
    """The published rule that the arm names, or what stands in for one."""
    if arm.strategy is None:
        longest = arm.choose is None and arm.where
        return Strategy(None, "longest" if longest else "hash_order", None, "")
    if arm.strategy not in STRATEGIES:
        near = nearest(arm.strategy, STRATEGIES)
        where = at if at.startswith("--") else f"{at}.strategy"
        raise UserError(f"{where}: unknown strategy '{arm.strategy}'{near}.")
    return STRATEGIES[arm.strategy]


def _check_params(base: Strategy, arm: ArmConfig, at: str) -> None:
    for key, default in base.params.items():
        if default == "" and not arm.params.get(key) and arm.choose is None:
            raise UserError(f"{at}.params: the strategy '{arm.strategy}' needs `{key}`.")
    for key, value in arm.params.items():
        if key not in base.params:
            near = nearest(key, base.params)
            raise UserError(f"{at}.params: '{key}' is no parameter of this strategy{near}.")
        if isinstance(value, str) != isinstance(base.params[key], str):
            kind = "a number" if isinstance(value, str) else "a text"
            raise UserError(f"{at}.params: {key} is {kind}; {value!r} is not.")


def columns_of(rules: Iterable[Rule]) -> frozenset[str]:
    """The columns that some rule reads."""
    return frozenset[str]().union(*(rule.columns for rule in rules))
