"""A measure's cells joined to rows: what each holds, and whether it is unmeasured, ok or failed."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import polars as pl

from core.cells.content import beside, first_of_each
from core.columns import FAILED, OK, STATUS
from synth.measures import TOKENS, Field_, Measure
from synth.pool.columns import PoolColumns
from synth.published.cells.derived import DERIVED, inputs, ranks

if TYPE_CHECKING:
    from synth.measures import PolarsType, PolarsTypes

_UNREAD = ("reason", "all_tokens", *TOKENS)
"""Of a cell what no frame holds."""
_NO_VALUES = ("of", "status", *_UNREAD)
_VERDICT = pl.col("llama_guard_2").str.strip_chars().str.extract(r"^(safe|unsafe)\b")
"""What a guard's raw answer says."""


def join(
    rows: pl.DataFrame, columns: PoolColumns, measure: str, asked: Collection[str]
) -> pl.DataFrame:
    """Rows with the short columns of a measure beside, null where unmeasured or failed, and its
    `status:MEASURE`. `asked`: the columns that filters read."""
    declared = columns.measures.table[measure]
    pooled = declared.reads == "pool"  # of this very pool, or imported with it
    on = ["id"] if pooled else ["id", declared.of]
    found = _cells(rows, columns, measure, asked)
    cells = _checked(found if pooled else found.rename({"of": declared.of}), measure, on)
    del found  # or it lies in memory beside what was made of it
    new = [name for name in cells.columns if name in on or name not in rows.columns]
    if len(cells):
        rows = beside(rows, cells.select(new), on)
    else:  # nulls that take no memory
        kinds = {name: cells.schema[name] for name in new if name not in on}
        rows = rows.with_columns(pl.lit(None, kind).alias(name) for name, kind in kinds.items())
    if measure == "turns" and columns.config.turns == 1:
        rows = _one_turn(rows)
    derived = {
        name: DERIVED[name]
        for name, each in declared.columns.items()
        if each.source == "reading" and name in DERIVED and {*inputs(name)} <= {*rows.columns}
    }
    rows = rows.with_columns(**derived)
    absent = {
        name: pl.lit(None, _unmeasured(each))
        for name, each in declared.columns.items()
        if not each.long and name not in rows.columns
    }
    return rows.with_columns(**absent)


def _cells(
    rows: pl.DataFrame, columns: PoolColumns, measure: str, asked: Collection[str]
) -> pl.DataFrame:
    """Every cell of a measure that counts, those that count more first."""
    declared = columns.measures.table[measure]
    frames = []
    if declared.reads == "pool" and (own := columns.of(measure, rows)) is not None:
        frames.append(columns.lean(own, measure).read(_UNREAD))
    for lean in columns.sources(measure):
        cells = _completed(columns.counted(lean, measure, _UNREAD), measure, declared)
        of_these = [i for c in asked if c in declared.columns for i in (c, *inputs(c))]
        read = [c for c in of_these if c in cells.columns]
        lacking = any(cells[c].null_count() == len(cells) for c in read)
        # What was imported is taken as it is, unless a filter asks for what it lacks and this
        # recipe can measure it.
        imported = columns.imports.get(measure) is lean.column
        if not (imported and lacking and measure in columns.determines):
            frames.append(cells)
    empty = pl.DataFrame(schema=dict.fromkeys(("id", "of", "status"), pl.String))
    return pl.concat(frames, how="diagonal") if frames else empty


def _completed(cells: pl.DataFrame, measure: str, declared: Measure) -> pl.DataFrame:
    """What cells do not say but follows from what they say: the rank of a label, the verdict in a
    guard's raw answer."""
    of_labels = ranks(declared.columns).items()
    cells = cells.with_columns(pl.coalesce(rank, expr).alias(rank) for rank, expr in of_labels)
    if measure != "safety":
        return cells
    verdict = _VERDICT.cast(declared.columns["safety"].stored)
    return cells.with_columns(safety=pl.coalesce("safety", verdict))


def _checked(cells: pl.DataFrame, measure: str, on: list[str]) -> pl.DataFrame:
    """One cell for each row and text: [*on, status:MEASURE, values]. NaN is a failure, and a failed
    cell has no value."""
    cells = first_of_each(cells, on)
    values = [name for name in cells.columns if name not in on and name not in _NO_VALUES]
    numbers = [name for name in values if cells.schema[name] == pl.Float64]
    odd = pl.any_horizontal(pl.lit(False), *(pl.col(n).is_nan().fill_null(False) for n in numbers))
    status = pl.when(odd).then(pl.lit(FAILED)).otherwise("status")
    good = status == OK
    return cells.select(
        *on,
        status.cast(STATUS).alias(f"status:{measure}"),
        *(pl.when(good).then(name).alias(name) for name in values),
    )


def _one_turn(rows: pl.DataFrame) -> pl.DataFrame:
    """A row that nobody continues has one turn."""
    status, one = pl.col("status:turns"), pl.lit(1, pl.Int64)
    turns = one
    if "turns" in rows.columns:
        turns = pl.when(status.is_null()).then(one).otherwise("turns")
    return rows.with_columns(status.fill_null(OK), turns=turns)


def _unmeasured(declared: Field_) -> PolarsType:
    """The type of a column that nothing measured: a filter compares it all the same."""
    plain: PolarsTypes = {"number": pl.Float64, "label": pl.String}
    return plain.get(declared.kind, declared.stored)


def without_nulls(rows: pl.DataFrame) -> pl.DataFrame:
    """The same rows: a column that holds nothing is one null in memory, not a null a row."""
    nulls = rows.null_count().row(0, named=True)
    empty = [name for name, count in nulls.items() if count == len(rows)]
    return rows.with_columns(pl.lit(None, rows.schema[name]).alias(name) for name in empty)
