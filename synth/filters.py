"""A filter is `where` (row by row) plus `choose` (a set function) up to an absolute budget; and the strategies that have names.

`where` may leave a row undecided while a column that matters is unmeasured; `choose` ranks the rows that `where` keeps. Held-out rows,
and rows whose instruction equals a held-out one, are never chosen.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import polars as pl

from core.errors import UserError, nearest
from synth.config import ArmConfig, Budget
from synth.measures import COLUMNS, MEASURES, by_cost, long_columns, prerequisites
from synth.where import Where, parse

FIELDS = {name: declared for name, (_, declared) in COLUMNS.items()}
CHOICES = ("longest", "hash_order", "difficulty_mix", "all")

ALLOWED, REFUSED, UNDECIDED, FAILED, RESERVED = "allowed", "refused", "undecided", "failed", "held out"
UNANSWERED, UNFINISHED = "response failed", "turns failed"


@dataclass(frozen=True)
class Strategy:
    """A named filter: SQL with {thresholds}, what to choose, how many, and where the rule comes from."""

    where: str | None
    choose: str
    rows: int | None
    source: str
    params: Mapping[str, float | str] = field(default_factory=dict)


_TAU1 = {"tau1": -12.0}
_TAU2 = {"tau2": 0.0}
_PAPER = "paper Table 5"
STRATEGIES: dict[str, Strategy] = {
    "magpie-air": Strategy("input_quality >= 'good' AND difficulty >= 'medium' AND min_neighbor_distance > 0 AND reward_difference > {tau2}",
                           "longest", 300_000, f"{_PAPER}, Air Filter", _TAU2),
    "magpie-pro": Strategy("input_quality >= 'average' AND min_neighbor_distance > 0 AND instruct_reward > {tau1}", "longest", 300_000,
                           f"{_PAPER}, Pro Filter", _TAU1),
    "magpie-pro-2": Strategy("input_quality >= 'good' AND difficulty >= 'easy' AND min_neighbor_distance > 0 AND instruct_reward > {tau1}",
                             "longest", 300_000, f"{_PAPER}, Filter2", _TAU1),
    "magpie-pro-3": Strategy("min_neighbor_distance > 0 AND instruct_reward > {tau1}", "longest", 300_000, f"{_PAPER}, Filter3", _TAU1),
    "magpie-pro-4": Strategy("input_quality >= 'good' AND difficulty >= 'easy' AND min_neighbor_distance > 0 AND reward_difference > {tau2}",
                             "longest", 300_000, f"{_PAPER}, Filter4", _TAU2),
    "magpie-pro-5": Strategy("input_quality >= 'good' AND difficulty >= 'easy' AND min_neighbor_distance > 0 AND instruct_reward > {tau1}",
                             "hash_order", 338_000, f"{_PAPER}, Filter5", _TAU1),
    "magpie-pro-6": Strategy("min_neighbor_distance > 0 AND instruct_reward > {tau1}", "difficulty_mix", 200_000, f"{_PAPER}, Filter6", _TAU1),
    "magpie-pro-300k-card": Strategy("input_quality >= 'average' AND instruct_reward >= {tau1} AND min_neighbor_distance > 0 AND NOT incomplete",
                                     "longest", 300_000, "card of Magpie-Pro-300K-Filtered", {"tau1": -10.0}),
    "magpie-notebook": Strategy("input_quality >= 'good' AND instruct_reward > {tau1} AND NOT incomplete AND NOT near_duplicate",
                                "longest", 300_000, "data_filter.ipynb of the original", {"tau1": -10.0}),
    "longest": Strategy(None, "longest", None, "longest responses, no other rule"),
    "reward-top": Strategy(None, "top(instruct_reward)", None, "highest reward, no other rule"),
    "random": Strategy(None, "hash_order", None, "the pool at equal size"),
    "all": Strategy(None, "all", None, "every row, so every row is answered"),
}  # fmt: skip


@dataclass(frozen=True)
class Filter:
    """A resolved filter over the pool. `ranks` are the columns that `choose` sorts by."""

    name: str
    where: Where | None
    choose: str
    ranks: tuple[str, ...]
    budget: Budget | None
    allow_short: bool = False

    @property
    def seeded(self) -> bool:
        """A training seed redraws the sample of `hash_order` (and of nothing else)."""
        return self.choose == "hash_order"

    @property
    def columns(self) -> frozenset[str]:
        """Every column that it reads."""
        return (self.where.columns if self.where else frozenset()) | frozenset(self.ranks)


def resolve(name: str, arm: ArmConfig) -> Filter:
    """The filter of one arm: its strategy, with what the arm itself states on top.

    Raises UserError for unknown strategies, parameters, columns and labels, a missing budget, and everything `parse` refuses.
    """
    at = f"arms.{name}"
    base = Strategy(None, "longest" if arm.choose is None and arm.where else "hash_order", None, "")
    if arm.strategy is not None:
        if arm.strategy not in STRATEGIES:
            raise UserError(f"{at}.strategy: unknown strategy '{arm.strategy}'{nearest(arm.strategy, STRATEGIES)}.")
        base = STRATEGIES[arm.strategy]
    for key in arm.params:
        if key not in base.params:
            raise UserError(f"{at}.params: '{key}' is no parameter of this strategy{nearest(key, base.params)}.")
    text = arm.where if arm.where is not None else base.where and base.where.format(**{**base.params, **arm.params})
    choose, ranks = _choice(arm.choose or base.choose, f"{at}.choose")
    budget = arm.budget or (Budget(rows=base.rows) if base.rows else None)
    if budget is None and choose != "all":
        raise UserError(f"{at}: no budget; add `budget: {{rows: N}}` or `{{tokens: N}}` (or `choose: all`, which answers and keeps every row).")
    where = parse(text, FIELDS, f"{at}.where") if text else None
    return Filter(name, where, choose, ranks, None if choose == "all" else budget, arm.allow_short)


def _choice(text: str, at: str) -> tuple[str, tuple[str, ...]]:
    top = re.fullmatch(r"top\(\s*(\w+)\s*\)", text)
    if top:
        column = top[1]
        if column not in FIELDS:
            raise UserError(f"{at}: unknown column `{column}`{nearest(column, FIELDS)}.")
        if FIELDS[column].kind not in ("number", "ordered"):
            raise UserError(f"{at}: `{column}` has no order, so there is no top of it; choose by a number or an ordered label.")
        return "top", (column,)
    if text not in CHOICES:
        raise UserError(f"{at}: unknown choice '{text}'{nearest(text, [*CHOICES, 'top(COLUMN)'])}.")
    return text, {"longest": ("response_length",), "difficulty_mix": ("difficulty", "response_length")}.get(text, ())


def hash_rank(ids: Iterable[str], seed: int | str) -> pl.Series:
    """A fixed pseudo-random number per id (u64), the same on every machine and for every pool that holds the id."""
    prefix = f"{seed}:".encode()
    return pl.Series([int.from_bytes(hashlib.blake2b(prefix + i.encode(), digest_size=8).digest()) for i in ids], dtype=pl.UInt64)


def held_out(ids: pl.Series, share: float) -> pl.Series:
    """Which rows are held out: by hash of id, so a pool that grows never moves a row."""
    return (hash_rank(ids, "heldout") < int(share * 2**64)).alias("heldout") if share else pl.Series("heldout", [False] * len(ids))


def verdicts(frame: pl.DataFrame, rule: Filter) -> pl.Series:
    """What `where` says of each row: allowed, refused, undecided, failed (null and nothing left to measure), held out, or response failed.

    `frame` has every column the filter reads (null unless measured and ok), `status:MEASURE` for each measure, and `reserved`.
    """
    settled = (
        pl.when("reserved").then(pl.lit(RESERVED))
        .when(pl.col("status:response") == "failed").then(pl.lit(UNANSWERED))
        .when(pl.col("status:turns") == "failed").then(pl.lit(UNFINISHED))
    )  # fmt: skip
    if rule.where is None:
        return frame.select(settled.otherwise(pl.lit(ALLOWED)).alias("verdict"))["verdict"]
    value = rule.where.root.expr
    open_cells = pl.any_horizontal([needs(rule.where, measure) for measure in measures_of(rule.where.columns)])
    verdict = (
        settled
        .when(value).then(pl.lit(ALLOWED))
        .when(value.not_()).then(pl.lit(REFUSED))
        .when(open_cells).then(pl.lit(UNDECIDED))
        .otherwise(pl.lit(FAILED))
    )  # fmt: skip
    return frame.select(verdict.alias("verdict"))["verdict"]


def measures_of(columns: Iterable[str]) -> list[str]:
    """The measures that fill these columns, cheapest first."""
    wanted = {COLUMNS[c][0] for c in columns}
    return [m for m in by_cost() if m in wanted]


def needs(where: Where, measure: str) -> pl.Expr:
    """Rows for which a cell of `measure` is unmeasured and could still decide the predicate."""
    return where.root.needs(frozenset(MEASURES[measure].columns)) & open_cell(measure)


def open_cell(measure: str) -> pl.Expr:
    """Rows whose cell of `measure` is unmeasured and can still be measured: nothing that it needs first has failed."""
    before, blocked = list(prerequisites(measure)), pl.lit(False)
    while before:
        first = before.pop()
        blocked = blocked | (pl.col(f"status:{first}") == "failed").fill_null(False)
        before += prerequisites(first)
    return pl.col(f"status:{measure}").is_null() & ~blocked


def long_texts(rules: Iterable[Filter]) -> frozenset[str]:
    """The long texts that some filter reads."""
    return frozenset(c for rule in rules for c in long_columns(rule.columns))


def order(frame: pl.DataFrame, rule: Filter, verdict: pl.Series, seed: int) -> pl.Series | None:
    """Row numbers in the order `choose` takes them (refused rows left out), or None while a ranking column is unmeasured somewhere.

    Ties, and rows whose ranking cell failed (they come last), are ordered by hash of id.
    """
    live = frame.with_row_index("row").with_columns(verdict.alias("verdict")).filter(pl.col("verdict").is_in([ALLOWED, UNDECIDED]))
    if rule.choose == "all":
        return live["row"]
    if rule.choose == "hash_order":
        return live.with_columns(hash_rank(live["id"], seed).alias("hash")).sort("hash", "id")["row"]
    if any(len(live.filter(open_cell(COLUMNS[column][0]))) for column in rule.ranks):
        return None
    live = live.with_columns(hash_rank(live["id"], "ties").alias("hash"))
    ranked = live.sort([rule.ranks[-1], "hash"], descending=[True, False], nulls_last=True)
    if rule.choose != "difficulty_mix":
        return ranked["row"]
    # Filter6: half "easy" (<= easy), half above; the longest within each half (paper Table 5). Interleaved, so any prefix is half and half.
    easy = ranked.filter(pl.col("difficulty") <= "easy")["row"].to_list()
    hard = ranked.filter(pl.col("difficulty") > "easy")["row"].to_list()
    half = min(len(easy), len(hard))
    return pl.Series([row for pair in zip(easy[:half], hard[:half], strict=True) for row in pair], dtype=pl.UInt32)


def prefix(rows: pl.Series, budget: Budget | None, tokens: pl.Series | None) -> pl.Series:
    """The rows (in order) that fill the budget: so many rows, or as many as fit into so many tokens (`tokens` is per row of the frame)."""
    if budget is None:
        return rows
    if budget.rows is not None:
        return rows.head(budget.rows)
    assert tokens is not None and budget.tokens is not None
    return rows.filter(tokens.gather(rows).cum_sum() <= budget.tokens)
