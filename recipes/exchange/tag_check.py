"""`magpie tag --check`: a tagger against the labels that a file has already, on a sample of its
rows.

The sample is the rows with the smallest hash of their ids among those that have every label, so a
larger one contains a smaller, and what was measured is not measured again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from core.columns import OK
from core.errors import UserError
from core.store import digest
from recipes.exchange.tag_data import Asked, Tagger, measured
from synth.config.rows import Reading
from synth.config.synthesis import SynthConfig
from synth.filters.orders import hash_rank
from synth.measures import Field_
from synth.pool.mode_agreement import agreement
from synth.published.files import AS_IT_IS
from synth.published.rows import read, write
from synth.tags.asking import own


@dataclass(frozen=True)
class Compared:
    """One column of a file against ours: its labels, how often each met each (`confusion`: theirs
    down, ours across), the share of rows at least as high as each label (ordered ones), and the
    figures of their agreement. `failed`: rows that ours could not be read of."""

    column: str
    labels: Sequence[str]
    ordered: bool
    figures: dict[str, Any]
    confusion: list[list[int]]
    failed: int

    @property
    def at_least(self) -> dict[str, tuple[float, float]]:
        """Label -> (their share of rows that reach it, ours); none without an order."""
        if not self.ordered:
            return {}
        met = np.asarray(self.confusion, dtype=float)
        total = max(met.sum(), 1.0)
        return {
            label: (float(met[at:].sum() / total), float(met[:, at:].sum() / total))
            for at, label in enumerate(self.labels)
            if at
        }


def compared(
    source: str, columns: str, tagger: Tagger, root: Path, how: Reading, rows: int
) -> list[Compared]:
    """The labels of a file against those of a tagger, on at most so many rows.

    Raises UserError for a column that holds no labels, and where the file has none of it.
    """
    asked = tagger.config(source, how, None)
    known = own.measures(asked.tags)
    mains = [next(iter(known.table[name].columns)) for name in Asked.of(columns, known).measures]
    kinds = {column: _labels(column, known.columns[column].field, asked) for column in mains}
    sample = _sample(source, mains, how, rows)
    file = root / "samples" / f"{digest([source, how.spec(), mains, rows])[:16]}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    write(sample, file, "magpie")
    config = tagger.config(str(file), AS_IT_IS, None)
    tagged = measured(config, columns, tagger, root)
    found = []
    for column in mains:
        ours = tagged.values(sample["id"], [column])[column]
        theirs = sample[column].cast(pl.String, strict=False)
        found.append(_compared(column, kinds[column], theirs, ours.cast(pl.String)))
    return found


def _labels(column: str, declared: Field_, config: SynthConfig) -> tuple[list[str], bool]:
    """What a column may hold, the lowest first, and whether that is an order. Raises UserError for
    one that holds no labels."""
    asked = [tag for tag in own.tags(config.tags).values() if tag.label == column]
    labels = [*map(str, declared.labels or [label for tag in asked for label in tag.labels])]
    if not labels or declared.kind == "labels" or (asked and asked[0].kind != "label"):
        raise UserError(f"--check compares labels, and `{column}` is a {declared.kind}.")
    return labels, declared.kind != "label"


def _sample(source: str, columns: Sequence[str], how: Reading, rows: int) -> pl.DataFrame:
    """The rows of the smallest hashes that have a value in each of these columns."""
    kept: pl.DataFrame | None = None
    for frame in read(source, how=how, prompts=None):
        lacking = [c for c in columns if c not in frame.columns]
        if lacking:
            raise UserError(f"{source} has no column `{lacking[0]}` to compare with.")
        usable = frame.filter(pl.col("status") == OK).drop_nulls(columns)
        usable = usable.with_columns(_hash=hash_rank(usable["id"], "check"))
        both = usable if kept is None else pl.concat([kept, usable], how="diagonal_relaxed")
        kept = both.sort("_hash").head(rows)
    if kept is None or kept.is_empty():
        raise UserError(f"{source} has no row with a label in {', '.join(columns)}.")
    return kept.drop("_hash")


def _compared(
    column: str, kind: tuple[list[str], bool], theirs: pl.Series, ours: pl.Series
) -> Compared:
    """Their labels against ours, row by row."""
    labels, ordered = kind
    place = {label: at for at, label in enumerate(labels)}
    pairs = [
        (place[a], place[b]) for a, b in zip(theirs, ours, strict=True) if a in place and b in place
    ]
    confusion = np.zeros((len(labels), len(labels)), dtype=int)
    for a, b in pairs:
        confusion[a, b] += 1
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    ranks = [float(a + 1) for a in first] if ordered else None
    figures = agreement(first, second, len(labels), ranks)
    return Compared(column, labels, ordered, figures, confusion.tolist(), ours.null_count())
