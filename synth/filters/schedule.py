"""Which column to measure next, for which rows: never pay for a row that no arm can keep. Once
nothing is wanted, each arm selects.

A cell is wanted when it can still decide some arm's `where`, when some arm's `choose` ranks by it,
or when it is the response of a row that some arm is about to take. Wants are united over arms and
seeds, and the cheapest measure is bought first; then everything is looked at again. Answers were 97
% of the paper's GPU-hours (section 3.4), so a row that every arm refuses is never answered.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from core.errors import UserError
from synth.filters.choosing.candidates import NO_VECTORS, Vectors
from synth.filters.choosing.listed import read_listed
from synth.filters.ranking import LIVE, Standing
from synth.filters.rule import Rule
from synth.filters.verdicts import (
    ALLOWED,
    CUT,
    FAILED,
    REFUSED,
    RESERVED,
    UNANSWERED,
    UNDECIDED,
    UNFINISHED,
    cut_off,
    first_true,
    needs,
    verdicts,
)
from synth.filters.where import Node
from synth.measures import SHIPPED, Measures

SOUNDING = 200
"""Rows that are answered before a budget in tokens is translated into rows."""
GUESS = 256
"""Tokens of a row before the first answer."""

TokenCounter = Callable[[pl.DataFrame], pl.Series]
"""Counts the student's non-pad tokens of rows [id, messages]; handed over by the graph, because
only the student's template knows."""


def wanted(
    frame: pl.DataFrame,
    rules: Sequence[tuple[Rule, Sequence[int]]],
    tokens: TokenCounter | None = None,
    complete: Sequence[str] = ("response",),
    vectors: Vectors = NO_VECTORS,
) -> dict[str, list[str]]:
    """Cells to measure now: measure -> ids, cheapest measure first; empty when every arm can
    choose.

    `frame` is `Pool.frame()`; each rule comes with the seeds it is drawn for. `complete` are the
    measures that a chosen row must have besides (its conversation). `vectors` embeds instructions,
    for the arms that choose by them. Rows that are held out want their response as well.
    """
    unanswered = pl.col("reserved") & pl.col("heldout") & pl.col("status:response").is_null()
    rows: defaultdict[str, set[int]] = defaultdict(set)
    rows["response"].update(frame.select(unanswered.arg_true()).to_series())
    for rule, seeds in rules:
        standing = _standing(frame, rule, tokens)
        for seed in seeds if rule.seeded else seeds[:1]:
            ordered = standing.order(seed, vectors)
            for measure, numbers in _wanted_by(standing, ordered, complete):
                rows[measure].update(numbers)
    ids = frame["id"]
    table = next((rule.measures for rule, _ in rules), SHIPPED)  # one recipe has one table
    return {m: ids.gather(sorted(rows[m])).to_list() for m in table.by_cost() if rows[m]}


def _standing(frame: pl.DataFrame, rule: Rule, tokens: TokenCounter | None) -> Standing:
    by_tokens = rule.budget and rule.budget.tokens
    counted = _token_estimates(frame, tokens) if by_tokens else None
    like = _standing(frame, rule.like, tokens) if rule.like else None
    return Standing(frame, rule, verdicts(frame, rule), counted, like)


def _token_estimates(frame: pl.DataFrame, tokens: TokenCounter | None) -> pl.Series:
    """Student tokens per row: counted where there is a response, else the mean of those counted."""
    if tokens is None:
        raise UserError(
            "a budget in tokens needs the student's tokenizer and chat template; "
            "give the budget in rows instead."
        )
    counted = tokens(frame)
    mean = counted.mean()
    guess = round(mean) if isinstance(mean, int | float) else GUESS
    return counted.fill_null(guess).cast(pl.Int64)


def _wanted_by(
    standing: Standing, ordered: pl.Series | None, complete: Sequence[str]
) -> Iterable[tuple[str, list[int]]]:
    """What one rule wants, given its order for one seed: (measure, row numbers)."""
    frame, rule = standing.frame, standing.rule
    if ordered is None:
        # a column that it ranks by is unmeasured: every row not refused is decided and ranked first
        candidates = standing.verdict.is_in(LIVE)
        to_take = rule.measures.filling(rule.choose.ranks)
    else:
        taken = standing.within_budget(ordered)
        answered = len(frame) - frame["status:response"].null_count()
        if standing.tokens is not None and answered < SOUNDING:
            # the mean of those then says how many more fit into the budget
            taken = taken.head(SOUNDING)
        candidates = standing.among(taken)
        to_take = list(complete)
    verdict = standing.verdict.alias("verdict")
    rows = frame.with_row_index("row").with_columns(verdict).filter(candidates)
    if rule.where:
        undecided = rows.filter(pl.col("verdict") == UNDECIDED)
        for measure in rule.measures.filling(rule.tested):
            yield from _chain(measure, undecided.filter(needs(rule, measure)), rule.measures)
    allowed = rows.filter(pl.col("verdict") == ALLOWED)
    for measure in to_take:
        yield from _chain(measure, allowed, rule.measures)


def _chain(measure: str, rows: pl.DataFrame, measures: Measures) -> Iterable[tuple[str, list[int]]]:
    """The unmeasured cells of a measure, and before them those that it needs first; a row in which
    one of those failed wants nothing more."""
    for first in measures.prerequisites(measure):
        yield from _chain(first, rows, measures)
        rows = rows.filter(pl.col(f"status:{first}") == "ok")
    yield measure, rows.filter(pl.col(f"status:{measure}").is_null())["row"].to_list()


@dataclass(frozen=True)
class Selection:
    """What one arm chose: ids in order, the funnel, and why every other row was not chosen."""

    ids: list[str]
    funnel: dict[str, Any]
    dropped: pl.DataFrame
    rows: pl.Series
    """Their places in the frame."""
    scores: pl.DataFrame | None = None
    """[id, score] of what a file of ids says of them, where one chose."""


class Unfilled(UserError):
    """A budget that the rows do not fill. `problem` is the sentence without the setting that takes
    fewer: a recipe and a command line call it by other names."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}, or say `allow_short: true`.")
        self.problem = problem


def select(
    frame: pl.DataFrame,
    rule: Rule,
    seed: int,
    tokens: TokenCounter | None = None,
    vectors: Vectors = NO_VECTORS,
) -> Selection:
    """Choose, once nothing is wanted any more.

    The funnel attributes a refused row to the first predicate (in the order written) that is false
    for it. Raises UserError when the budget cannot be filled and the arm does not say
    `allow_short`, and ValueError while something is wanted.
    """
    standing = _standing(frame, rule, tokens)
    ordered = standing.order(seed, vectors)
    if ordered is None:
        raise ValueError("select() before measuring was done")
    taken = standing.within_budget(ordered)
    reasons = _reasons(standing)
    funnel = _funnel(standing, reasons, taken) | _shared(standing, taken, seed, vectors)
    if len(taken) == len(ordered) or taken.is_empty():
        _check_filled(rule, funnel, len(ordered))
    left = ~standing.among(taken)
    dropped = pl.DataFrame({"id": frame["id"], "reason": reasons.cast(pl.String)}).filter(left)
    ids = frame["id"].gather(taken)
    return Selection(ids.to_list(), funnel, dropped, taken, _scores(rule, ids))


def _scores(rule: Rule, ids: pl.Series) -> pl.DataFrame | None:
    """The scores that a file of ids gives these rows; None where none chose."""
    if rule.choose.kind != "ids":
        return None
    listed = read_listed(Path(rule.choose.arguments[0]).expanduser())
    return ids.to_frame("id").join(listed, on="id", how="left", maintain_order="left")


def _reasons(standing: Standing) -> pl.Series:
    """Why each row is out; rows that could be chosen read "not chosen"."""
    verdict = pl.col("verdict")
    reserved = verdict == RESERVED
    cases = [
        (reserved & pl.col("heldout"), "held out"),
        (reserved, "equals a held-out instruction"),
        (verdict == UNANSWERED, UNANSWERED),
        (verdict == UNFINISHED, UNFINISHED),
        (verdict == CUT, CUT),
        (verdict == FAILED, "tag failed"),
    ]
    predicates = _predicates(standing.rule)
    texts = [*(text for _, text in cases), "not chosen", *(p.text for p in predicates)]
    cases += [((verdict == REFUSED) & p.expr.not_(), p.text) for p in predicates]
    reason = first_true(cases, "not chosen", pl.Enum(list(dict.fromkeys(texts))))
    frame = standing.frame.with_columns(standing.verdict.alias("verdict"))
    return frame.select(reason.alias("reason"))["reason"]


def _predicates(rule: Rule) -> list[Node]:
    return rule.where.predicates() if rule.where else []


def _funnel(standing: Standing, reasons: pl.Series, taken: pl.Series) -> dict[str, Any]:
    """How many rows each predicate stopped, failed or were held out, and what was chosen."""
    frame, rule, tokens = standing.frame, standing.rule, standing.tokens
    counts = dict(reasons.value_counts(sort=True).iter_rows())
    heldout, reserved = int(frame["heldout"].sum()), int(frame["reserved"].sum())
    left = len(frame) - reserved
    steps = []
    for predicate in _predicates(rule):
        stopped = counts.get(predicate.text, 0)
        left -= stopped
        steps.append({"predicate": predicate.text, "stopped": stopped, "left": left})
    cut = frame.select("id", cut=cut_off(frame))
    failures = (UNANSWERED, UNFINISHED, CUT, "tag failed")
    budget = rule.budget.model_dump(exclude_none=True) if rule.budget else None
    return {
        "pool": len(frame),
        "heldout": heldout,
        "reserved_duplicates": reserved - heldout,
        "steps": steps,
        "failed": {reason: n for reason, n in counts.items() if reason in failures},
        "allowed": int((standing.verdict == ALLOWED).sum()),
        "chosen": len(taken),
        "cut_off": int(cut["cut"].gather(taken).sum()),
        "chosen_tokens": None if tokens is None else int(tokens.gather(taken).sum()),
        "choose": str(rule.choose),
        "budget": budget,
    }


def _shared(standing: Standing, taken: pl.Series, seed: int, vectors: Vectors) -> dict[str, Any]:
    """How many of its rows a control has in common with the arm that it controls."""
    like = standing.like
    others = like.chosen(seed, vectors) if like else None
    if like is None or others is None:
        return {}
    return {"like": {"arm": like.rule.name, "shared": int(taken.is_in(others.implode()).sum())}}


def remarks(funnel: Mapping[str, Any]) -> list[str]:
    """What a person should know of a choice that filled its budget, in sentences."""
    chosen, cut, like = funnel["chosen"], funnel["cut_off"], funnel.get("like")
    said = []
    if cut:
        said.append(
            f"{cut:,} of {chosen:,} chosen answers were cut off (finish_reason length); "
            "`allow_cut: false` leaves such rows out"
        )
    if like and chosen:
        said.append(
            f"{like['shared']:,} of {chosen:,} rows are those of '{like['arm']}' itself; the more "
            "there are, the less this control can show"
        )
    return said


def _check_filled(rule: Rule, funnel: Mapping[str, Any], orderable: int) -> None:
    """Raise UserError where all that can be chosen does not fill the budget, or where its first row
    alone is too much for it."""
    budget = rule.budget
    if budget is None:
        return
    if budget.tokens and orderable and not funnel["chosen"]:
        raise UserError(
            f"arms.{rule.name}: the first row alone has more than the budget's {budget.tokens} "
            "tokens; raise the budget."
        )
    kind, asked = ("rows", budget.rows) if budget.rows else ("tokens", budget.tokens)
    chosen = funnel["chosen"] if budget.rows else funnel["chosen_tokens"]
    if chosen < (asked or 0) and not rule.allow_short:
        steps = [step for step in funnel["steps"] if step["stopped"]]
        stopped = ", ".join(f"{step['stopped']} by {step['predicate']}" for step in steps)
        raise Unfilled(
            f"{rule.at}: the budget asks for {asked} {kind} but only {funnel['chosen']} rows "
            f"of {funnel['pool']} can be chosen (stopped: {stopped or 'none'}; "
            f"held out: {funnel['heldout']}); draw more rows, loosen `where`, "
            "lower the budget"
        )
