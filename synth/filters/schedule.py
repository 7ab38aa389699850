"""Which column to measure next, for which rows: never pay for a row that no arm can keep.

A cell is wanted when it can still decide some arm's `where`, when some arm's `choose` ranks by it,
or when it is the response of a row that some arm is about to take. Wants are united over arms and
seeds, and the cheapest measure is bought first; then everything is looked at again. Answers were 97
% of the paper's GPU-hours (section 3.4), so a row that every arm refuses is never answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from core.errors import UserError
from synth.filters.rule import (
    ALLOWED,
    FAILED,
    REFUSED,
    RESERVED,
    UNANSWERED,
    UNDECIDED,
    UNFINISHED,
    Filter,
    Vectors,
    measures_of,
    needs,
    order,
    prefix,
    verdicts,
)
from synth.measures import by_cost, prerequisites

SOUNDING = 200
"""Rows that are answered before a budget in tokens is translated into rows."""

TokenCounter = Callable[[pl.DataFrame], pl.Series]
"""Counts the student's non-pad tokens of rows [id, messages]; handed over by the graph, because
only the student's template knows."""


def wanted(
    frame: pl.DataFrame,
    rules: Sequence[tuple[Filter, Sequence[int]]],
    tokens: TokenCounter | None = None,
    complete: Sequence[str] = ("response",),
    vectors: Vectors | None = None,
) -> dict[str, list[str]]:
    """Cells to measure now: measure -> ids, cheapest measure first; empty when every arm can
    choose.

    `frame` is `Pool.frame()`; each rule comes with the seeds it is drawn for. `complete` are the
    measures that a chosen row must have besides (its conversation). `vectors` embeds instructions,
    for the arms that choose by them. Rows that are held out want their response as well.
    """
    rows: dict[str, set[int]] = {}
    reserved = frame.with_row_index("row").filter(
        pl.col("reserved") & pl.col("heldout") & pl.col("status:response").is_null()
    )
    rows.setdefault("response", set()).update(reserved["row"].to_list())
    for rule, seeds in rules:
        verdict = verdicts(frame, rule)
        for seed in seeds if rule.seeded else seeds[:1]:
            for measure, found in _wanted_by(frame, rule, verdict, seed, tokens, complete, vectors):
                rows.setdefault(measure, set()).update(found)
    ids = frame["id"].to_list()
    return {m: [ids[r] for r in sorted(rows[m])] for m in by_cost() if rows.get(m)}


def _wanted_by(
    frame: pl.DataFrame,
    rule: Filter,
    verdict: pl.Series,
    seed: int,
    tokens: TokenCounter | None,
    complete: Sequence[str],
    vectors: Vectors | None,
) -> Iterable[tuple[str, list[int]]]:
    """What one rule wants: (measure, row numbers)."""
    counted = _token_estimates(frame, tokens) if rule.budget and rule.budget.tokens else None
    ranked = order(frame, rule, verdict, seed, vectors, counted)
    if (
        ranked is None
    ):  # some ranking column is unmeasured: every row not refused is decided, and ranked, first
        candidates = verdict.is_in([ALLOWED, UNDECIDED])
    else:
        taken = prefix(ranked, rule.budget, counted)
        if counted is not None and frame["status:response"].is_not_null().sum() < SOUNDING:
            taken = taken.head(
                SOUNDING
            )  # the mean of those then says how many more fit into the budget
        candidates = pl.Series(range(len(frame)), dtype=pl.UInt32).is_in(taken.implode())
    numbered = (
        frame.with_row_index("row")
        .with_columns(candidates.alias("candidate"), verdict.alias("verdict"))
        .filter("candidate")
    )
    if rule.where is not None:
        open_rows = numbered.filter(pl.col("verdict") == UNDECIDED)
        for measure in measures_of(rule.where.columns):
            yield from _chain(measure, open_rows.filter(needs(rule.where, measure)))
    allowed = numbered.filter(pl.col("verdict") == ALLOWED)
    for measure in measures_of(rule.ranks) if ranked is None else ():
        yield from _chain(measure, allowed)
    for measure in complete if ranked is not None else ():
        yield from _chain(measure, allowed)


def _chain(measure: str, rows: pl.DataFrame) -> Iterable[tuple[str, list[int]]]:
    """The unmeasured cells of a measure, and before them those that it needs first; a row in which
    one of those failed wants nothing more."""
    for first in prerequisites(measure):
        yield from _chain(first, rows)
        rows = rows.filter(pl.col(f"status:{first}") == "ok")
    yield measure, rows.filter(pl.col(f"status:{measure}").is_null())["row"].to_list()


def _token_estimates(frame: pl.DataFrame, tokens: TokenCounter | None) -> pl.Series:
    """Student tokens per row: counted where there is a response, else the mean of those counted
    (256 before the first answer)."""
    if tokens is None:
        raise UserError(
            "a budget in tokens needs the student's tokenizer and chat template; give the budget in rows instead."
        )
    counted = tokens(frame)
    mean = counted.mean()
    return counted.fill_null(round(mean) if isinstance(mean, (int, float)) else 256).cast(pl.Int64)


@dataclass(frozen=True)
class Selection:
    """What one arm chose: ids in order, the funnel, and why every other row was not chosen."""

    ids: list[str]
    funnel: dict[str, object]
    dropped: pl.DataFrame
    rows: pl.Series
    """Their places in the frame."""


class Unfilled(UserError):
    """A budget that the rows do not fill. `problem` is the sentence without the setting that takes
    fewer: a recipe and a command line call it by other names."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}, or say `allow_short: true`.")
        self.problem = problem


def select(
    frame: pl.DataFrame,
    rule: Filter,
    seed: int,
    tokens: TokenCounter | None = None,
    vectors: Vectors | None = None,
) -> Selection:
    """Choose, once nothing is wanted any more.

    The funnel attributes a refused row to the first predicate (in the order written) that is false
    for it. Raises UserError when the budget cannot be filled and the arm does not say
    `allow_short`.
    """
    verdict = verdicts(frame, rule)
    counted = _token_estimates(frame, tokens) if rule.budget and rule.budget.tokens else None
    ranked = order(frame, rule, verdict, seed, vectors, counted)
    assert ranked is not None, "select() before measuring was done"
    taken = prefix(ranked, rule.budget, counted)
    reasons, steps = _reasons(frame, rule, verdict)
    allowed = int((verdict == ALLOWED).sum())
    sums = int(counted.gather(taken).sum()) if counted is not None else None
    funnel: dict[str, object] = {
        "pool": len(frame),
        "heldout": int(frame["heldout"].sum()),
        "reserved_duplicates": int((frame["reserved"] & ~frame["heldout"]).sum()),
        "steps": steps,
        "failed": {
            reason: n
            for reason, n in reasons.value_counts(sort=True).iter_rows()
            if reason in (UNANSWERED, UNFINISHED, "tag failed")
        },
        "allowed": allowed,
        "chosen": len(taken),
        "chosen_tokens": sums,
        "choose": rule.taking,
        "budget": rule.budget.model_dump(exclude_none=True) if rule.budget else None,
    }
    budget = rule.budget
    short = (
        budget is not None
        and len(taken) == len(ranked)
        and (len(taken) < budget.rows if budget.rows else (sums or 0) < (budget.tokens or 0))
    )
    if not taken.len() and len(ranked) and budget and budget.tokens:
        raise UserError(
            f"arms.{rule.name}: the first row alone has more than the budget's {budget.tokens} tokens; raise the budget."
        )
    if short and budget and not rule.allow_short:
        stopped = ", ".join(f"{s['stopped']} by {s['predicate']}" for s in steps if s["stopped"])
        asked = f"{budget.rows} rows" if budget.rows else f"{budget.tokens} tokens"
        raise Unfilled(
            f"{rule.at or rule.name}: the budget asks for {asked} but only {len(taken)} rows "
            f"of {len(frame)} can be chosen (stopped: {stopped or 'none'}; held out: {funnel['heldout']}); draw more rows, loosen `where`, "
            "lower the budget"
        )
    left = np.ones(len(frame), bool)
    left[taken.to_numpy()] = False
    dropped = (
        pl.DataFrame({"id": frame["id"], "reason": reasons})
        .filter(pl.Series(left))
        .with_columns(pl.col("reason").cast(pl.String))
    )
    return Selection(frame["id"].gather(taken).to_list(), funnel, dropped, taken)


def _reasons(
    frame: pl.DataFrame, rule: Filter, verdict: pl.Series
) -> tuple[pl.Series, list[dict[str, object]]]:
    """Why each row is out (rows that could be chosen read "not chosen"), and how many rows each
    predicate stopped."""
    predicates = rule.where.predicates() if rule.where else []
    held, same, tag, rest = "held out", "equals a held-out instruction", "tag failed", "not chosen"
    said = pl.Enum(
        list(
            dict.fromkeys(
                [held, same, UNANSWERED, UNFINISHED, tag, rest, *(p.text for p in predicates)]
            )
        )
    )
    reason = (
        pl.when(pl.col("verdict") == RESERVED)
        .then(pl.when("heldout").then(pl.lit(held, said)).otherwise(pl.lit(same, said)))
        .when(pl.col("verdict") == UNANSWERED)
        .then(pl.lit(UNANSWERED, said))
        .when(pl.col("verdict") == UNFINISHED)
        .then(pl.lit(UNFINISHED, said))
        .when(pl.col("verdict") == FAILED)
        .then(pl.lit(tag, said))
    )
    for predicate in predicates:
        reason = reason.when((pl.col("verdict") == REFUSED) & predicate.expr.not_()).then(
            pl.lit(predicate.text, said)
        )
    reasons = frame.with_columns(verdict.alias("verdict")).select(
        reason.otherwise(pl.lit(rest, said)).alias("reason")
    )["reason"]
    counts = dict(reasons.value_counts().iter_rows())
    left = len(frame) - int(frame["reserved"].sum())
    steps: list[dict[str, object]] = []
    for predicate in predicates:
        stopped = int(counts.get(predicate.text, 0))
        left -= stopped
        steps.append({"predicate": predicate.text, "stopped": stopped, "left": left})
    return reasons, steps
