"""`magpie filters` and `magpie filter`: named strategies, and one applied to any tagged data set,
ours or published."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import polars as pl

from core.errors import UserError, nearest
from recipes.exchange.free_columns import with_free
from recipes.exchange.import_data import spare
from recipes.exchange.likeness import NO_MODELS, Comparer, Embedder, Models
from recipes.verbs.terminal import say, table
from synth.config.rows import MOST_ROWS
from synth.filters.arm import ArmConfig
from synth.filters.choices import CHOICES
from synth.filters.choosing.candidates import Vectors
from synth.filters.rule import Rule, linked, resolve
from synth.filters.schedule import Selection, TokenCounter, Unfilled, remarks, select
from synth.filters.strategies import STRATEGIES, Param, Strategy
from synth.measures import SHIPPED, Measures
from synth.published import chosen_rows, tagged
from synth.tags.reward import REWARD_MODELS

EMBEDDING = "embedded/all-MiniLM-L6-v2"
UNNAMED = "filter"
"""What is stated without a strategy goes by this name."""
NOTHING = Strategy(None, "", None, "")
"""A strategy that states nothing."""

MOST = (MOST_ROWS, 10_000 * MOST_ROWS)
"""Rows and tokens of a budget, as recipes have it."""

Block = dict[str, Any]


# -- magpie filter ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """What the command line states of a filter; it replaces what the strategies state."""

    strategy: str | None = None
    """One, or several with commas."""
    params: Sequence[str] = ()
    """Thresholds, NAME=VALUE."""
    rows: int | None = None
    tokens: int | None = None
    where: str | None = None
    choose: str | None = None
    allow_short: bool = False
    allow_cut: bool | None = None

    @property
    def names(self) -> list[str]:
        """The strategies, or `UNNAMED` alone."""
        return [name.strip() for name in (self.strategy or UNNAMED).split(",")]

    def arm(self) -> Block:
        """The fields of an ArmConfig that are stated. Raises UserError for two budgets, and for a
        threshold that is none."""
        if self.rows is not None and self.tokens is not None:
            raise UserError("a budget is either --rows or --tokens; give one.")
        budget = {"rows": self.rows, "tokens": self.tokens}
        for (unit, amount), most in zip(budget.items(), MOST, strict=True):
            if amount is not None and not 1 <= amount <= most:
                raise UserError(f"--{unit} {amount}: give a number from 1 to {most:,}.")
        fields = {
            "where": self.where,
            "choose": self.choose,
            "budget": {unit: amount for unit, amount in budget.items() if amount is not None},
            "params": _params(self.params, self.names),
            "allow_short": self.allow_short,
        }
        stated = {name: value for name, value in fields.items() if value}
        return stated if self.allow_cut is None else stated | {"allow_cut": self.allow_cut}


@dataclass(frozen=True)
class Output:
    """Where the chosen rows go (a folder for several strategies), in which form, and how the
    funnels are printed."""

    path: Path | None = None
    form: str = "same"
    as_json: bool = False


@dataclass(frozen=True)
class Applied:
    """What the filters read of a data set, and what each chose."""

    data: tagged.Tagged
    chosen: dict[str, Selection]


def main(source: str, asked: Asked, output: Output, seed: int, models: Models) -> None:
    """Apply, write the chosen rows, print the funnels."""
    form = _form(output.form)
    if asked.where is not None and not asked.where.strip():
        raise UserError("--where is empty; leave it out to keep every row.")
    names, arm = asked.names, asked.arm()
    paths: dict[str, Path] = {}
    if output.path is not None and len(names) > 1:
        paths = {name: output.path / f"{name}.parquet" for name in names}
    elif output.path is not None:
        paths = {names[0]: output.path}
    for path in paths.values():
        spare(source, path)
    try:
        # Some libraries log to stdout when they are imported, where the table is read.
        with redirect_stdout(sys.stderr):
            applied = apply_all(source, names, seed, models, **arm)
    except Unfilled as error:
        raise UserError(f"{error.problem}, or add --allow-short.") from error
    for name, path in paths.items():
        chosen_rows.write(source, applied.chosen[name].rows, path, form)
    show = _print_json if output.as_json else _show
    show(source, applied, paths)


def _form(name: str) -> chosen_rows.Form:
    forms: tuple[chosen_rows.Form, ...] = get_args(chosen_rows.Form)
    for form in forms:
        if form == name:
            return form
    raise UserError(f"--form {name}: no such form{nearest(name, forms)}.")


def apply_all(
    source: str | Path,
    names: Sequence[str],
    seed: int = 0,
    models: Models = NO_MODELS,
    **arm: Any,
) -> Applied:
    """Apply several named strategies to one data set, which is read once; columns that it lacks and
    that need no model are computed.

    `arm`: fields of ArmConfig that replace each strategy's own (`where`, `choose`, `params`,
    `budget`, `allow_short`). Raises UserError as `resolve`, `tagged.read` and `select` do.
    """
    rules = rules_of(names, arm, models.measures)
    data = tagged.read(with_free(source, rules, models.embedding), rules)
    embedder = Embedder(source, data.frame["id"], models.embedding or EMBEDDING)
    vectors = Vectors(embedder, embedder.texts, Comparer(source, data.frame["id"], models))
    tokens = None
    if any(rule.budget and rule.budget.tokens for rule in rules):
        tokens = _counter(source, models)
    chosen = {rule.name: select(data.frame, rule, seed, tokens, vectors) for rule in data.rules}
    return Applied(data, chosen)


def rules_of(names: Sequence[str], arm: Block, measures: Measures = SHIPPED) -> list[Rule]:
    """The rules of several strategies over the columns of `measures`, with what `arm` replaces."""
    return list(linked({name: _rule(name, arm, names, measures) for name in names}).values())


def _rule(name: str, arm: Block, names: Sequence[str], measures: Measures) -> Rule:
    """The rule of one strategy, or of `arm` alone. A threshold goes to the strategies that have
    it."""
    strategy = STRATEGIES.get(name, NOTHING)
    elsewhere = _declared(names).keys() - strategy.params.keys()
    params = {key: value for key, value in arm.get("params", {}).items() if key not in elsewhere}
    stated = arm | {"params": params}
    at = name
    if name != UNNAMED:
        stated["strategy"] = name
        at = f"strategy {name}"
    chosen_by = (arm.get("choose") or strategy.choose).partition("(")[0]
    without = chosen_by == "all" or (chosen_by in CHOICES and CHOICES[chosen_by].controls)
    if not (arm.get("budget") or strategy.rows or without):
        if name in STRATEGIES or name == UNNAMED:
            raise UserError(f"{name} takes as much as it is told to: add --rows N or --tokens N.")
        at = "--strategy"
    return resolve(name, ArmConfig.model_validate(stated), at, measures)


def _declared(names: Sequence[str]) -> dict[str, Param]:
    """The thresholds that these strategies have."""
    declared: dict[str, Param] = {}
    for name in names:
        declared |= STRATEGIES.get(name, NOTHING).params
    return declared


def _params(given: Sequence[str], names: Sequence[str]) -> dict[str, Param]:
    """`tau1=-10` as numbers or texts, as the strategies declare them."""
    params: dict[str, Param] = {}
    declared = _declared(names)
    for each in given:
        key, equals, text = each.partition("=")
        if not equals:
            raise UserError(f"--param {each}: write NAME=VALUE, as in --param tau1=-10.")
        is_text = isinstance(declared.get(key, ""), str)
        params[key] = text if is_text else _number(each, key, text)
    return params


def _number(given: str, key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise UserError(f"--param {given}: {key} is a number.") from error
    if not math.isfinite(value):
        raise UserError(f"--param {given}: {key} must be finite.")
    return value


def _counter(source: str | Path, models: Models) -> TokenCounter:
    """Tokens of every row's conversation under the student's chat template; null where there is no
    response."""
    if models.student is None:
        raise UserError(
            "--tokens needs --student MODEL: "
            "tokens are counted with its chat template and tokenizer."
        )
    from core.models import resolve
    from recipes.stages.tokens import count_tokens
    from synth.published import rows
    from synth.published.to_published import to_form
    from train.config import TrainConfig

    config = TrainConfig(base=models.student, chat_template_path=models.chat_template_path)
    counts: dict[str, int] = {}

    def count(frame: pl.DataFrame) -> pl.Series:
        if not counts:
            base = resolve(config.base, None)
            for batch in rows.read(source):
                answered = to_form(batch, "messages")
                if len(answered):
                    counts.update(count_tokens(config, base, answered))
            if not counts:
                raise UserError(
                    f"--tokens: no row of {source} has a response whose tokens could be counted; "
                    "give the budget in --rows."
                )
        return pl.Series(map(counts.get, frame["id"]), dtype=pl.Int64)

    return count


def _print_json(source: str, applied: Applied, paths: Mapping[str, Path]) -> None:
    strategies = {}
    for name, chosen in applied.chosen.items():
        written = {"out": str(paths[name])} if name in paths else {}
        strategies[name] = chosen.funnel | written
    shown = {
        "source": source,
        "rows": len(applied.data.frame),
        "rows_without": applied.data.out,
        "failed_tags": applied.data.failed,
        "strategies": strategies,
    }
    print(json.dumps(shown, indent=1))


def _show(source: str, applied: Applied, paths: Mapping[str, Path]) -> None:
    """What was read, the tags that failed, and a funnel a strategy."""
    data = applied.data
    lost = "; ".join(f"{count:,} {reason}" for reason, count in data.out.items())
    say(f"{source}: {len(data.frame):,} rows{f' ({lost})' if lost else ''}")
    failed = [
        (column, reason, f"{count:,}")
        for column, reasons in data.failed.items()
        for reason, count in reasons.items()
    ]
    if failed:
        print()
        table(["column", "failed tags", "cells"], failed)
    for name, chosen in applied.chosen.items():
        print()
        table(["", "stopped", "left"], _funnel(chosen.funnel), name)
        for remark in remarks(chosen.funnel):
            say(remark)
        if name in paths:
            say(f"written to {paths[name]}")


def _funnel(funnel: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what stopped rows, how many, how many were left) from all rows to the chosen ones."""
    tokens = funnel["chosen_tokens"]
    size = "" if tokens is None else f"{tokens:,} tokens"
    left = funnel["pool"] - funnel["heldout"] - funnel["reserved_duplicates"]
    lines = [("rows", "", f"{left:,}")]
    stops = [*funnel["failed"].items()]
    stops += [(step["predicate"], step["stopped"]) for step in funnel["steps"]]
    beyond = left - sum(count for _, count in stops) - funnel["chosen"]
    stops.append((f"chosen: {funnel['choose']} {size}".strip(), beyond))
    for reason, count in stops:
        left -= count
        lines.append((reason, f"{count:,}", f"{left:,}"))
    return lines


# -- magpie filters --------------------------------------------------------------------------------


def show_filters(*, as_json: bool) -> None:
    """Print the named strategies, what they choose by, and reward models with the threshold that
    belongs to each."""
    if as_json:
        print(json.dumps({name: _fields(each) for name, each in STRATEGIES.items()}, indent=2))
        return
    table(
        ["strategy", "where", "choose", "rows", "parameters", "source", "cost"],
        [_cells(name, each) for name, each in STRATEGIES.items()],
    )
    print()
    table(
        ["choose", "takes", "responses that it needs"],
        [(choice.usage, choice.takes, choice.answers) for choice in CHOICES.values()],
    )
    print()
    table(
        ["reward model", "tau1", "server args", "note"],
        [(model.name, model.tau1 or "", model.args or "", model.note) for model in REWARD_MODELS],
    )


def _fields(strategy: Strategy) -> Block:
    answers = CHOICES[strategy.choose.partition("(")[0]].answers
    return asdict(strategy) | {"params": dict(strategy.params), "answers": answers}


def _cells(name: str, strategy: Strategy) -> list[str | None]:
    params = [
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in strategy.params.items()
    ]
    return [
        name,
        strategy.filled(strategy.where, {}),
        strategy.filled(strategy.choose, {}),
        f"{strategy.rows:,}" if strategy.rows else "",
        " ".join(params),
        strategy.source,
        strategy.cost,
    ]
