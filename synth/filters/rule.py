"""A filter is `where` (row by row) plus `choose` (a set function) up to an absolute budget.

`where` may leave a row undecided while a column that matters is unmeasured; `choose` ranks the rows
that `where` keeps. Held-out rows, and rows whose instruction equals a held-out one, are never
chosen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from core.errors import UserError, nearest
from core.store import digest
from synth.filters import orders as choices
from synth.filters.arm import ArmConfig, Budget
from synth.filters.orders import hash_rank
from synth.filters.strategies import CHOICES, STRATEGIES, Strategy
from synth.filters.where import Where, parse
from synth.measures import COLUMNS, MEASURES, by_cost, prerequisites

FIELDS = {
    name: declared for name, (_, declared) in COLUMNS.items() if name != "messages"
}  # a list of turns: nothing that SQL compares

ALLOWED, REFUSED, UNDECIDED, FAILED, RESERVED = (
    "allowed",
    "refused",
    "undecided",
    "failed",
    "held out",
)
UNANSWERED, UNFINISHED = "response failed", "turns failed"
VERDICT = pl.Enum([ALLOWED, REFUSED, UNDECIDED, FAILED, RESERVED, UNANSWERED, UNFINISHED])

GREEDY = ("diverse", "deita")
"""Choices in which one row decides about the next: they wait until `where` is decided
everywhere."""


class Vectors:
    """Unit vectors of instructions, by ids; and the greedy orders that were made of them, which the
    schedule asks for several times."""

    def __init__(self, embed: Callable[[pl.Series], NDArray[np.float32]]) -> None:
        self.embed = embed
        """Unit vectors of the instructions of these ids, float32 [n, d]."""
        self._orders: dict[str, choices.Replayed] = {}

    def order(
        self, key: object, make: Callable[[], Iterator[choices.Positions]]
    ) -> choices.Replayed:
        """The batches of an order that `key` determines; made once."""
        return self._orders.setdefault(digest(key), choices.Replayed(make))


@dataclass(frozen=True)
class Filter:
    """A resolved filter over the pool. `ranks` are the columns that `choose` goes by, `setting` its
    label or threshold."""

    name: str
    where: Where | None
    choose: str
    ranks: tuple[str, ...]
    budget: Budget | None
    allow_short: bool = False
    setting: str = ""
    at: str = ""
    """Where it is stated, for error sentences."""

    @property
    def embeds(self) -> bool:
        """Whether `choose` needs the embeddings of the instructions."""
        return self.choose in GREEDY

    @property
    def taking(self) -> str:
        """What it chooses by, in words of the recipe."""
        shown = {"top": self.ranks, "balanced": self.ranks}.get(
            self.choose, (self.setting,) if self.setting else ()
        )
        return f"{self.choose}({', '.join(shown)})" if shown else self.choose

    @property
    def seeded(self) -> bool:
        """A training seed redraws the sample of `hash_order` (and of nothing else)."""
        return self.choose == "hash_order"

    @property
    def columns(self) -> frozenset[str]:
        """Every column that it reads."""
        return (self.where.columns if self.where else frozenset()) | frozenset(self.ranks)


def resolve(name: str, arm: ArmConfig, at: str | None = None) -> Filter:
    """The filter of one arm: its strategy, with what the arm itself states on top. `at` names its
    place for the error sentence.

    Raises UserError for unknown strategies, parameters, columns and labels, a budget that is
    missing or given to `all`, and everything that `parse` refuses.
    """
    at = at or f"arms.{name}"
    base = Strategy(None, "longest" if arm.choose is None and arm.where else "hash_order", None, "")
    if arm.strategy is not None:
        if arm.strategy not in STRATEGIES:
            raise UserError(
                f"{at}.strategy: unknown strategy '{arm.strategy}'{nearest(arm.strategy, STRATEGIES)}."
            )
        base = STRATEGIES[arm.strategy]
    for key, value in arm.params.items():
        if key not in base.params:
            raise UserError(
                f"{at}.params: '{key}' is no parameter of this strategy{nearest(key, base.params)}."
            )
        if isinstance(value, str) != isinstance(base.params[key], str):
            raise UserError(
                f"{at}.params: {key} is {'a text' if isinstance(base.params[key], str) else 'a number'}; {value!r} is not."
            )
    text = arm.where if arm.where is not None else base.filled(base.where, arm.params)
    choose, ranks, setting = _choice(
        arm.choose or base.filled(base.choose, arm.params) or "", f"{at}.choose"
    )
    budget = arm.budget or (Budget(rows=base.rows) if base.rows else None)
    if budget is None and choose != "all":
        raise UserError(
            f"{at}: no budget; add `budget: {{rows: N}}` or `{{tokens: N}}` (or `choose: all`, which answers and keeps every row)."
        )
    if arm.budget is not None and choose == "all":
        raise UserError(
            f"{at}: `all` takes every row; leave the budget out, or choose hash_order/longest."
        )
    where = parse(text, FIELDS, f"{at}.where") if text else None
    return Filter(
        name,
        where,
        choose,
        ranks,
        None if choose == "all" else budget,
        arm.allow_short,
        setting,
        at,
    )


def _choice(text: str, at: str) -> tuple[str, tuple[str, ...], str]:
    """A choice taken apart: its name, the columns that it ranks by, and its setting (a label, a
    threshold)."""
    written = re.fullmatch(r"(\w+)(?:\(([^()]*)\))?", text.strip())
    name, given = (
        (written[1], [a.strip() for a in (written[2] or "").split(",") if a.strip()])
        if written
        else (text, [])
    )
    if name not in CHOICES:
        raise UserError(
            f"{at}: unknown choice '{text}'{nearest(name, CHOICES)}; there are {', '.join(c.usage for c in CHOICES.values())}."
        )
    takes = {"top": (1, 1), "balanced": (1, 2), "difficulty_mix": (0, 1), "deita": (0, 1)}.get(
        name, (0, 0)
    )
    if not takes[0] <= len(given) <= takes[1]:
        raise UserError(f"{at}: '{text}' should read {CHOICES[name].usage}.")
    if name == "top":
        return name, (_ranking(given[0], at),), ""
    if name == "balanced":
        if FIELDS.get(given[0]) is not None and (
            FIELDS[given[0]].kind == "number" or FIELDS[given[0]].long
        ):
            raise UserError(
                f"{at}: `{given[0]}` has no groups to balance; name a label, such as task_category."
            )
        return name, (_known(given[0], at), *(_ranking(g, at) for g in given[1:])), ""
    if name == "difficulty_mix":
        label = given[0] if given else "easy"
        if label not in FIELDS["difficulty"].labels[:-1]:
            raise UserError(
                f"{at}: '{label}' does not part the difficulties in two{nearest(label, FIELDS['difficulty'].labels[:-1])}."
            )
        return name, ("difficulty", "response_length"), label
    if name == "deita":
        cosine = given[0] if given else "0.9"
        if not re.fullmatch(r"[01]?\.?\d+", cosine) or not 0 < float(cosine) <= 1:
            raise UserError(f"{at}: '{cosine}' is no cosine between 0 and 1; write deita(0.9).")
        return name, ("difficulty_rank", "difficulty", "pair_score_rank", "pair_score"), cosine
    return name, ("response_length",) if name == "longest" else (), ""


def _known(column: str, at: str) -> str:
    if column not in FIELDS:
        raise UserError(f"{at}: unknown column `{column}`{nearest(column, FIELDS)}.")
    return column


def _ranking(column: str, at: str) -> str:
    if FIELDS[_known(column, at)].kind not in ("number", "ordered"):
        raise UserError(
            f"{at}: `{column}` has no order, so there is no top of it; choose by a number or an ordered label."
        )
    return column


def held_out(ids: pl.Series, share: float) -> pl.Series:
    """Which rows are held out: by hash of id, so a pool that grows never moves a row."""
    return (
        (hash_rank(ids, "heldout") < int(share * 2**64)).alias("heldout")
        if share
        else pl.Series("heldout", [False] * len(ids))
    )


def verdicts(frame: pl.DataFrame, rule: Filter) -> pl.Series:
    """What `where` says of each row: allowed, refused, undecided, failed (null and nothing left to
    measure), held out, or response failed.

    `frame` has every column the filter reads (null unless measured and ok), `status:MEASURE` for
    each measure, and `reserved`.
    """
    settled = (
        pl.when("reserved")
        .then(_said(RESERVED))
        .when(pl.col("status:response") == "failed")
        .then(_said(UNANSWERED))
        .when(pl.col("status:turns") == "failed")
        .then(_said(UNFINISHED))
    )
    if rule.where is None:
        return frame.select(settled.otherwise(_said(ALLOWED)).alias("verdict"))["verdict"]
    value = rule.where.root.expr
    unmeasured = [m for m in measures_of(rule.where.columns) if frame[f"status:{m}"].null_count()]
    open_cells = pl.any_horizontal(
        [pl.lit(False), *(needs(rule.where, measure) for measure in unmeasured)]
    )
    verdict = (
        settled.when(value)
        .then(_said(ALLOWED))
        .when(value.not_())
        .then(_said(REFUSED))
        .when(open_cells)
        .then(_said(UNDECIDED))
        .otherwise(_said(FAILED))
    )
    return frame.select(verdict.alias("verdict"))["verdict"]


def _said(verdict: str) -> pl.Expr:
    return pl.lit(verdict, VERDICT)


def measures_of(columns: Iterable[str]) -> list[str]:
    """The measures that fill these columns, cheapest first; what the text itself shows needs no
    measuring."""
    wanted = {COLUMNS[c][0] for c in columns} - {"text"}
    return [m for m in by_cost() if m in wanted]


def needs(where: Where, measure: str) -> pl.Expr:
    """Rows for which a cell of `measure` is unmeasured and could still decide the predicate."""
    return where.root.needs(frozenset(MEASURES[measure].columns)) & open_cell(measure)


def open_cell(measure: str) -> pl.Expr:
    """Rows whose cell of `measure` is unmeasured and can still be measured: nothing that it needs
    first has failed."""
    blocked = pl.lit(False)
    for first in _before(measure):
        blocked = blocked | (pl.col(f"status:{first}") == "failed").fill_null(False)
    return pl.col(f"status:{measure}").is_null() & ~blocked


def _before(measure: str) -> list[str]:
    """Everything that a cell of `measure` needs first."""
    direct = prerequisites(measure)
    return [*direct, *(m for first in direct for m in _before(first))]


def columns_of(rules: Iterable[Filter]) -> frozenset[str]:
    """The columns that some filter reads."""
    return frozenset(c for rule in rules for c in rule.columns)


def order(
    frame: pl.DataFrame,
    rule: Filter,
    verdict: pl.Series,
    seed: int,
    vectors: Vectors | None = None,
    tokens: pl.Series | None = None,
) -> pl.Series | None:
    """Row numbers in the order `choose` takes them (refused rows left out), or None while something
    that it goes by is unmeasured somewhere.

    Not always all of them, but at least those that fill the budget. `tokens`: per row of the frame,
    where the budget is in tokens. Ties are ordered by hash of id; rows whose ranking cell failed
    come last (in a mix of difficulties they are in neither half).
    """
    greedy = rule.choose in GREEDY
    if greedy and (verdict == UNDECIDED).any():
        return None
    keep = verdict.is_in([ALLOWED, UNDECIDED])
    # a row without a response is passed over, but stays in the way of others: what is chosen must
    # not hang on which answers failed
    if greedy:
        value = (
            frame.select(rule.where.root.expr.fill_null(False).alias("value"))["value"]
            if rule.where
            else pl.Series([True])
        )
        keep = keep | (verdict.is_in([UNANSWERED, UNFINISHED]) & value)
    unranked = pl.any_horizontal([pl.lit(False), *map(open_cell, measures_of(rule.ranks))]).alias(
        "unranked"
    )
    kept = frame.with_row_index("row").select("row", "id", *rule.ranks, unranked).filter(keep)
    if kept["unranked"].any():
        return None
    limit = rule.budget.rows if rule.budget else None
    ids, row = kept["id"], kept["row"]
    if rule.choose == "all":
        return row
    if rule.choose == "hash_order":
        return row.gather(choices.by_hash(ids, seed))
    if greedy:
        assert vectors is not None, f"{rule.choose} without embeddings"
        batches = _greedy(kept, rule, vectors)
        spent = tokens.gather(row).to_numpy() if tokens is not None else np.zeros(len(kept))
        return row.gather(
            _filled(batches, verdict.gather(row).is_in([ALLOWED]).to_numpy(), spent, rule.budget)
        )
    if rule.choose == "balanced":
        ranked = (
            choices.by_rank(kept[rule.ranks[1]], ids)
            if len(rule.ranks) > 1
            else choices.by_hash(ids, "ties")
        )
        groups = kept[rule.ranks[0]].gather(ranked)
        numbers = (
            groups.to_physical()
            if groups.dtype == pl.Enum
            else groups.cast(pl.String).rank("dense")
        )
        return row.gather(
            ranked[choices.round_robin(numbers.cast(pl.Int64).fill_null(-1).to_numpy())]
        )
    if rule.choose == "difficulty_mix":
        # Filter6: half "easy" (<= easy), half above; the longest within each half (paper Table 5).
        # Interleaved, so any prefix is half and half.
        ranked = choices.by_rank(kept["response_length"], ids)
        above = (kept["difficulty"] > rule.setting).cast(pl.Int64).fill_null(-1).gather(ranked)
        mixed = choices.round_robin(above.to_numpy(), even=2)
        return row.gather(ranked[mixed])
    return row.gather(choices.by_rank(kept[rule.ranks[-1]], ids, limit))


def _greedy(kept: pl.DataFrame, rule: Filter, vectors: Vectors) -> Iterator[choices.Positions]:
    """Places of `kept` in batches, by a greedy choice."""
    if rule.choose == "diverse":
        first = choices.by_hash(kept["id"], "ties")
        ids = kept["id"].gather(first)
        order = vectors.order(
            ["diverse", ids.to_list()], lambda: choices.farthest_first(vectors.embed(ids))
        )
        return (first[batch] for batch in order)
    difficulty = pl.coalesce("difficulty_rank", pl.col("difficulty").to_physical() + 1)
    score = kept.select((difficulty * pl.coalesce("pair_score_rank", "pair_score")).alias("score"))[
        "score"
    ]
    best = choices.by_rank(score, kept["id"])
    best = best[: len(score) - score.null_count()]  # a row without a score is never taken
    ids = kept["id"].gather(best)
    order = vectors.order(
        ["deita", rule.setting, ids.to_list()],
        lambda: choices.unlike(
            lambda top, end: vectors.embed(ids[top:end]), len(ids), float(rule.setting)
        ),
    )
    return (best[batch] for batch in order)


def _filled(
    batches: Iterable[choices.Positions],
    usable: NDArray[np.bool_],
    tokens: NDArray[np.float64],
    budget: Budget | None,
) -> choices.Positions:
    """The usable places of the batches until the budget is full."""
    taken: list[choices.Positions] = [np.empty(0, np.int64)]
    rows, spent = 0, 0.0
    for batch in batches:
        taken.append(batch[usable[batch]])
        rows, spent = rows + len(taken[-1]), spent + float(tokens[taken[-1]].sum())
        if budget is not None and (
            rows >= budget.rows if budget.rows is not None else spent > (budget.tokens or 0)
        ):
            break
    return np.concatenate(taken)


def prefix(rows: pl.Series, budget: Budget | None, tokens: pl.Series | None) -> pl.Series:
    """The rows (in order) that fill the budget: so many rows, or as many as fit into so many tokens
    (`tokens` is per row of the frame)."""
    if budget is None:
        return rows
    if budget.rows is not None:
        return rows.head(budget.rows)
    assert tokens is not None and budget.tokens is not None
    return rows.filter(tokens.gather(rows).cum_sum() <= budget.tokens)
