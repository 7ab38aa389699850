"""What `where` says of each row, and which unmeasured cells could still change it."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from synth.filters.orders import hash_rank
from synth.filters.rule import Rule
from synth.measures import Measures

ALLOWED = "allowed"
REFUSED = "refused"
UNDECIDED = "undecided"
FAILED = "failed"
RESERVED = "held out"
UNANSWERED = "response failed"
UNFINISHED = "turns failed"
CUT = "answer cut off"
VERDICT = pl.Enum([ALLOWED, REFUSED, UNDECIDED, FAILED, RESERVED, UNANSWERED, UNFINISHED, CUT])


def held_out(ids: pl.Series, share: float) -> pl.Series:
    """Which rows are held out: by hash of id, so a pool that grows never moves a row."""
    if not share:
        return pl.Series("heldout", [False] * len(ids), dtype=pl.Boolean)
    return (hash_rank(ids, "heldout") < int(share * 2**64)).alias("heldout")


def verdicts(frame: pl.DataFrame, rule: Rule) -> pl.Series:
    """What `where` says of each row: allowed, refused, undecided, failed (null and nothing left to
    measure), held out, response failed, or answer cut off where the rule takes none such.

    `frame` has every column the rule reads (null unless measured and ok), `status:MEASURE` for
    each measure, and `reserved`.
    """
    still_open = pl.lit(False)
    if rule.where:
        measures = rule.measures.filling(rule.tested)
        unmeasured = [m for m in measures if frame[f"status:{m}"].null_count()]
        still_open = any_of(needs(rule, measure) for measure in unmeasured)
    cases = [
        (pl.col("reserved"), RESERVED),
        (pl.col("status:response") == "failed", UNANSWERED),
        (pl.col("status:turns") == "failed", UNFINISHED),
        (pl.lit(not rule.allow_cut) & cut_off(frame), CUT),
        (rule.keeps, ALLOWED),
        (rule.keeps.not_(), REFUSED),
        (still_open, UNDECIDED),
    ]
    return frame.select(first_true(cases, FAILED, VERDICT).alias("verdict"))["verdict"]


def cut_off(frame: pl.DataFrame) -> pl.Expr:
    """Rows whose answer ended at max_tokens; where nobody knows, it did not."""
    if "response_finish_reason" not in frame.columns:
        return pl.lit(False)
    return (pl.col("response_finish_reason").cast(pl.String) == "length").fill_null(False)


def first_true(cases: Iterable[tuple[pl.Expr, str]], otherwise: str, labels: pl.Enum) -> pl.Expr:
    """The label of the first case that is true of a row."""
    held = [pl.when(case).then(pl.lit(label, labels)) for case, label in cases]
    return pl.coalesce(*held, pl.lit(otherwise, labels))


def any_of(tests: Iterable[pl.Expr]) -> pl.Expr:
    """Whether some test is true; false where there are none."""
    return pl.any_horizontal(pl.lit(False), *tests)


def needs(rule: Rule, measure: str) -> pl.Expr:
    """Rows for which a cell of `measure` is unmeasured and could still decide `where`."""
    if rule.where is None:
        return pl.lit(False)
    columns = frozenset(rule.measures.table[measure].columns)
    return rule.where.root.needs(columns) & open_cell(measure, rule.measures)


def open_cell(measure: str, measures: Measures) -> pl.Expr:
    """Rows whose cell of `measure` is unmeasured and can still be measured: nothing that it needs
    first has failed."""
    before = _before(measure, measures)
    blocked = any_of(pl.col(f"status:{m}").eq_missing(pl.lit("failed")) for m in before)
    return pl.col(f"status:{measure}").is_null() & ~blocked


def _before(measure: str, measures: Measures) -> list[str]:
    """Everything that a cell of `measure` needs first."""
    direct = measures.prerequisites(measure)
    return [*direct, *(m for first in direct for m in _before(first, measures))]
