"""The rows of a pool under one rule: which may be chosen, in which order, and how far the budget
reaches."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl

from synth.filters.choosing.candidates import Candidates, Vectors
from synth.filters.orders import Positions
from synth.filters.rule import Rule
from synth.filters.verdicts import (
    ALLOWED,
    CUT,
    UNANSWERED,
    UNDECIDED,
    UNFINISHED,
    any_of,
    open_cell,
)

LIVE = [ALLOWED, UNDECIDED]


@dataclass(frozen=True)
class Standing:
    """How each row of a pool's frame stands: its verdict, and its tokens where the rule's budget is
    in tokens."""

    frame: pl.DataFrame
    rule: Rule
    verdict: pl.Series
    tokens: pl.Series | None
    like: Standing | None = None
    """How the rows stand under the rule that this one controls."""

    def order(self, seed: int, vectors: Vectors) -> pl.Series | None:
        """Row numbers in the order `choose` takes them (refused rows left out), or None while
        something that it goes by is unmeasured somewhere.

        Not always all of them, but at least those that fill the budget. Ties are ordered by hash of
        id; rows whose ranking cell failed come last (in a mix of difficulties they are in neither
        half).
        """
        choose, verdict = self.rule.choose, pl.col("verdict")
        keep = verdict.is_in(LIVE)
        waits = choose.choice.greedy or choose.choice.waits
        if waits and (self.verdict == UNDECIDED).any():
            return None
        like = self._lengths_like(seed, vectors)
        if self.like and like is None:
            return None
        if choose.choice.greedy:
            # a row without a response is passed over, but stays in the way of others: what is
            # chosen must not hang on which answers failed
            keep |= verdict.is_in([UNANSWERED, UNFINISHED, CUT]) & self.rule.keeps.fill_null(False)
        measures = self.rule.measures
        ranked = measures.filling(choose.ranks)
        unranked = any_of(open_cell(measure, measures) for measure in ranked)
        numbered = self.frame.with_row_index("row").with_columns(self.verdict.alias("verdict"))
        kept = numbered.select(
            "row", "id", *choose.ranks, unranked.alias("unranked"), keep.alias("keep")
        ).filter("keep")
        if kept["unranked"].any():
            return None
        limit = self.rule.budget.rows if self.rule.budget else None
        arguments = choose.arguments
        candidates = Candidates(kept, choose.ranks, arguments, seed, limit, vectors, like)
        places = self._until_full(choose.choice.order(candidates), kept["row"])
        return kept["row"].gather(places)

    def chosen(self, seed: int, vectors: Vectors) -> pl.Series | None:
        """Row numbers of what the rule takes, or None while it cannot be said."""
        ordered = self.order(seed, vectors)
        return None if ordered is None else self.within_budget(ordered)

    def _lengths_like(self, seed: int, vectors: Vectors) -> pl.Series | None:
        """The response lengths of what the controlled rule takes; None without one, and while some
        are unknown."""
        taken = self.like.chosen(seed, vectors) if self.like else None
        if taken is None:
            return None
        lengths = self.frame["response_length"].gather(taken)
        return None if lengths.null_count() else lengths

    def _until_full(self, batches: Iterable[Positions], rows: pl.Series) -> Positions:
        """The places in `rows` that may be chosen, batch by batch until the budget is full."""
        usable = self.verdict.gather(rows).is_in(LIVE).to_numpy()
        tokens = np.zeros(len(rows)) if self.tokens is None else self.tokens.gather(rows).to_numpy()
        budget = self.rule.budget
        most_rows = (budget and budget.rows) or math.inf
        most_tokens = (budget and budget.tokens) or math.inf
        taken = [np.empty(0, np.int64)]
        count, spent = 0, 0.0
        for batch in batches:
            places = batch[usable[batch]]
            taken.append(places)
            count += len(places)
            spent += float(tokens[places].sum())
            if count >= most_rows or spent > most_tokens:
                break
        return np.concatenate(taken)

    def within_budget(self, ordered: pl.Series) -> pl.Series:
        """The first of these rows: so many, or as many as fit into so many tokens."""
        budget = self.rule.budget
        if budget and budget.rows:
            return ordered.head(budget.rows)
        if budget and budget.tokens and self.tokens is not None:
            return ordered.filter(self.tokens.gather(ordered).cum_sum() <= budget.tokens)
        return ordered

    def among(self, rows: pl.Series) -> pl.Series:
        """Which rows of the frame are among these row numbers."""
        numbers = pl.int_range(len(self.frame), dtype=pl.UInt32, eager=True)
        return numbers.is_in(rows.implode())
