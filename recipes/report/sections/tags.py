"""How each tag is distributed in the pool and in what each arm selected: one card a tag, labels as
bars, numbers as histograms."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from core.columns import FAILED
from recipes.report.drawing.figures import Shares, bars, histogram
from recipes.report.drawing.marks import number, percent
from recipes.report.sources import Record
from synth.measures import SHIPPED, Filled

BINS = 20
MOST_LABELS = 16
TEXTS = ("instruction", "response")
Columns = Mapping[str, Filled]
"""What is declared of each column."""


@dataclass(frozen=True)
class Group:
    """The pool, or the rows of it that one arm selected; `css` is its colour class."""

    name: str
    css: str
    rows: pl.DataFrame


def cards(
    pool: pl.DataFrame,
    selections: Mapping[str, tuple[str, Sequence[str] | pl.DataFrame]],
    columns: Columns = SHIPPED.columns,
) -> tuple[list[Record], list[str]]:
    """One card a tag, and sentences about the columns that have no figure.

    `pool`: one row an id; those of its columns that `columns` declares are tags (null = unmeasured,
    or failed where `status:MEASURE` says so); the others, such as a row's index and seed, are
    passed over. `selections`: arm -> (colour class, the ids it selected, of which those outside the
    pool are left out, or its rows, where it chose from other data). An arm without such rows has no
    figure. A card: name, figure, note (measured, failed and unmeasured rows), head and rows of its
    table of numbers.
    """
    groups = [Group("pool", "pool", pool)]
    for arm, (css, selected) in selections.items():
        rows = _rows(pool, selected)
        if len(rows):
            groups.append(Group(arm, css, rows))
    found: list[Record] = []
    never: list[str] = []
    constants: list[str] = []
    for name in pool.columns:
        if name not in columns or name in TEXTS:
            continue
        values = _values(pool[name])
        note = _measured(pool, name, f"status:{columns[name].measure}", len(values))
        shown = groups
        if columns[name].field.kind == "labels":
            shown = [replace(each, rows=each.rows.select(name).explode(name)) for each in groups]
            values = _values(shown[0].rows[name])
        labels = _labels(columns[name].field.labels, values)
        if values.is_empty():
            never.append(f"{name} ({note})" if "failed" in note else name)
        elif values.n_unique() == 1:
            rare = f" ({note})" if len(values) < len(pool) else ""
            constants.append(f"{name} = {_label(values[0])}{rare}")
        elif values.dtype.is_numeric():
            found.append(_numbers(name, shown) | {"name": name, "note": note})
        elif labels:
            found.append(_bars(name, labels, shown) | {"name": name, "note": note})
    sentences = [f"The same for every row: {', '.join(constants)}."] if constants else []
    sentences += [f"Without a value in this pool: {', '.join(never)}."] if never else []
    return found, sentences


def _rows(pool: pl.DataFrame, selected: Sequence[str] | pl.DataFrame) -> pl.DataFrame:
    """The rows that an arm selected, with the pool's columns (null where its data has none)."""
    if isinstance(selected, pl.DataFrame):
        lacking = [c for c in pool.columns if c not in selected.columns]
        return selected.with_columns(pl.lit(None, pool.schema[c]).alias(c) for c in lacking)
    chosen = pl.DataFrame({"id": selected}, schema={"id": pl.String})
    return pool.join(chosen, on="id", how="semi")


def _values(column: pl.Series) -> pl.Series:
    values = column.drop_nulls()
    return values.drop_nans() if values.dtype.is_float() else values


def _measured(pool: pl.DataFrame, name: str, status: str, measured: int) -> str:
    """How many rows hold this tag, how many failed and how many were never measured."""
    failed = 0
    if status in pool.columns:
        lost = pool.filter(pl.col(status) == FAILED)
        failed = len(lost) - len(_values(lost[name]))
    unmeasured = len(pool) - measured - failed
    parts = [f"measured on {measured:,} of {len(pool):,} rows"]
    parts += [f"{failed:,} failed"] if failed else []
    parts += [f"{unmeasured:,} not measured"] if unmeasured else []
    return ", ".join(parts)


def _label(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, (int, float)) else str(value)


def _labels(declared: Sequence[str], values: pl.Series) -> list[str]:
    """Labels in their declared order (the column's enum, else synth's declaration, else the most
    frequent first); none for free text."""
    if values.dtype == pl.Boolean:
        return ["yes", "no"]
    if isinstance(values.dtype, pl.Enum):
        return values.dtype.categories.to_list()
    if declared:
        return list(declared)
    if not isinstance(values.dtype, (pl.String, pl.Categorical)):
        return []
    counts = values.cast(pl.String).value_counts(sort=True)
    shown = counts.head(MOST_LABELS)
    # An explanation, an intent: nearly every row has its own text, and no label says much.
    if 2 * len(counts) > len(values) or shown["count"].sum() < 0.8 * len(values):
        return []
    return shown[:, 0].to_list()


def _bars(name: str, labels: list[str], groups: Sequence[Group]) -> Record:
    """Bars and a table of numbers; values that are none of the labels count as "(other)"."""
    counted = []
    for group in groups:
        pairs = group.rows[name].drop_nulls().value_counts().iter_rows()
        counts = Counter({_label(value): count for value, count in pairs})
        named = [counts[label] for label in labels]
        counted.append([*named, counts.total() - sum(named)])
    if any(counts[-1] for counts in counted):
        labels = [*labels, "(other)"]
    series = []
    for group, counts_of in zip(groups, counted, strict=True):
        series.append(Shares(group.name, group.css, counts_of[: len(labels)]))
    rows = []
    for place, label in enumerate(labels):
        cells = [f"{one.counts[place]:,} ({percent(one.share(place))})" for one in series]
        rows.append([label, *cells])
    return {
        "figure": bars(labels, series, f"{name}: share of rows by label, pool and arms"),
        "head": ["", *(one.name for one in series)],
        "rows": rows,
    }


def _numbers(name: str, groups: Sequence[Group]) -> Record:
    """A histogram with the pool's bins, and a table of quartiles, of the finite values."""
    finite = [_finite(group.rows[name]) for group in groups]
    edges, open_ended = bin_edges(finite[0])
    series, rows = [], []
    for group, values in zip(groups, finite, strict=True):
        series.append(Shares(group.name, group.css, _count(values, edges)))
        points = [values.quantile(share, "linear") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
        rows.append([group.name, f"{len(values):,}", *map(number, points)])
    label = f"{name}: share of rows by value, pool and arms"
    return {
        "figure": histogram(edges, series, label, open_ended),
        "head": ["", "rows", "min", "25 %", "median", "75 %", "max"],
        "rows": rows,
    }


def _finite(column: pl.Series) -> pl.Series:
    numbers = column.drop_nulls().cast(pl.Float64)
    return numbers.filter(numbers.is_finite())


def bin_edges(values: pl.Series) -> tuple[list[float], bool]:
    """Edges of at most `BINS` equal bins over finite `values`, and whether the last bin holds
    everything above it.

    Lengths have long tails: where the largest value is more than twice the 99th percentile, the
    last bin ends there and is open. Whole numbers get bins of whole width.
    """
    if values.is_empty():
        return [0.0, 1.0], False
    low, tail, high = (values.quantile(share, "linear") or 0.0 for share in (0.0, 0.99, 1.0))
    open_ended = high - low > 2 * (tail - low) > 0
    span = (tail if open_ended else high) - low
    count, width = BINS, span / BINS or 1.0
    if (values == values.round()).all():
        width = max(1.0, math.ceil((span + 1) / BINS))
        count = max(1, math.ceil((span + 1) / width))
    return [low + width * place for place in range(count + 1)], open_ended


def _count(values: pl.Series, edges: Sequence[float]) -> list[int]:
    """How many values fall into each bin; both ends are closed, and what lies beyond an end counts
    in its outer bin."""
    bins = len(edges) - 1
    places = ((values - edges[0]) / (edges[1] - edges[0])).floor().clip(0, bins - 1)
    counts: list[int] = np.bincount(places.cast(pl.Int64).to_numpy(), minlength=bins).tolist()
    return counts
