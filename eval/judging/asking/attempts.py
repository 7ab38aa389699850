"""Attempts at one question: a judgment without a verdict stays, and a further attempt stands beside
it under a name of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import polars as pl

from core.columns import OK, Column
from eval.judging.asking.ask import Question

MOST = 9
"""Further attempts at one question."""


def question_of(name: str) -> str:
    """The question of an attempt's name."""
    return name.partition("~")[0]


@dataclass(frozen=True)
class Attempts:
    """Reads the attempts at questions; with `retry`, those that all failed are missing."""

    names: Sequence[str]
    retry: bool

    def read(
        self, column: Column, questions: Sequence[Question]
    ) -> tuple[pl.DataFrame, list[Question]]:
        """(judgments, one a question: its first verdict, else its last failure; the questions that
        are to be asked, under the names of new attempts)."""
        further = [f"{name}~{number}" for name in self.names for number in range(1, MOST + 1)]
        cells = column.read([*self.names, *further])
        parts = pl.col("id").str.split_exact("~", 1)
        numbered = cells.with_columns(
            question=parts.struct.field("field_0"),
            attempt=parts.struct.field("field_1").cast(pl.Int64).fill_null(0),
            lost=pl.col("status") != OK,
        )
        tries = dict(numbered.group_by("question").agg(pl.col("attempt").max()).iter_rows())
        last = pl.when("lost").then(-pl.col("attempt")).otherwise("attempt")
        best = numbered.sort("lost", last).unique("question", keep="first", maintain_order=True)
        settled = set(best.filter(~pl.col("lost"))["question"])
        missing = []
        for question in questions:
            if question.id not in tries:
                missing.append(question)
            elif self.retry and question.id not in settled and tries[question.id] < MOST:
                name = f"{question.id}~{tries[question.id] + 1}"
                missing.append(replace(question, id=name))
        judgments = best.with_columns(id="question").select(cells.columns)
        return judgments, missing
