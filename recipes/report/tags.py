"""How each tag is distributed in the pool and in what each arm selected: one card a tag, labels as
bars, numbers as histograms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from recipes.report.figures import Shares, bars, histogram, number
from synth.measures import COLUMNS

BINS = 20
MOST_LABELS = 16


def cards(
    pool: pl.DataFrame, selections: Mapping[str, tuple[str, Sequence[str]]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """One card a tag, and sentences about the columns that have no figure.

    `pool`: one row an id; of its columns, those that synth declares are tags (null = unmeasured, or
    failed where `status:MEASURE` or `NAME_status` says so); the others, such as a row's index and
    seed, are passed over. `selections`: arm -> (colour class, the ids it selected; ids outside the
    pool are left out). A card: name, figure, note (measured, failed and unmeasured rows), head and
    rows of its table of numbers.
    """
    groups = [("pool", "pool", pool)]
    for arm, (css, ids) in selections.items():
        groups.append(
            (
                arm,
                css,
                pool.join(
                    pl.DataFrame({"id": pl.Series(ids, dtype=pl.String)}).unique(),
                    on="id",
                    how="semi",
                ),
            )
        )
    found: list[dict[str, Any]] = []
    never: list[str] = []
    constants: list[str] = []
    for name in (c for c in pool.columns if c in COLUMNS and c not in ("instruction", "response")):
        column = pool[name]
        values = column.drop_nulls().drop_nans() if column.dtype.is_float() else column.drop_nulls()
        if values.is_empty():
            note = _measured(pool, name)
            never.append(f"{name} ({note})" if "failed" in note else name)
        elif values.n_unique() == 1 and values.len() == pool.height:
            constants.append(f"{name} = {_label(values[0])}")
        elif column.dtype.is_numeric():
            found.append(_numbers(name, groups) | {"note": _measured(pool, name)})
        elif (labels := _labels(name, values)) is not None:
            found.append(_bars(name, labels, groups) | {"note": _measured(pool, name)})
    sentences = [f"The same for every row: {', '.join(constants)}."] if constants else []
    sentences += [f"Without a value in this pool: {', '.join(never)}."] if never else []
    return found, sentences


def _measured(pool: pl.DataFrame, name: str) -> str:
    """How many rows hold this tag, how many failed and how many were never measured."""
    column = pool[name]
    good = (
        column.is_not_null() & column.is_not_nan()
        if column.dtype.is_float()
        else column.is_not_null()
    )
    failed = 0
    for status in (f"status:{COLUMNS[name][0]}", f"{name}_status", f"{COLUMNS[name][0]}_status"):
        if status in pool.columns:
            failed = int((~good & (pool[status] == "failed").fill_null(False)).sum())
            break
    measured = int(good.sum())
    unmeasured = pool.height - measured - failed
    parts = [f"measured on {measured:,} of {pool.height:,} rows"]
    parts += [f"{failed:,} failed"] if failed else []
    parts += [f"{unmeasured:,} not measured"] if unmeasured else []
    return ", ".join(parts)


def _label(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, (int, float)) else str(value)


def _labels(name: str, values: pl.Series) -> list[str] | None:
    """Labels in their declared order (the column's enum, else synth's declaration, else the most
    frequent first); None for free text."""
    if values.dtype == pl.Boolean:
        return ["yes", "no"]
    if isinstance(values.dtype, pl.Enum):
        return values.dtype.categories.to_list()
    if COLUMNS[name][1].labels:
        return list(COLUMNS[name][1].labels)
    if not isinstance(values.dtype, (pl.String, pl.Categorical)):
        return None
    counts = values.cast(pl.String).value_counts(sort=True)
    if 2 * counts.height > values.len() or counts["count"][:MOST_LABELS].sum() < 0.8 * values.len():
        return None  # an explanation, an intent: nearly every row its own text
    return [str(v) for v in counts[:, 0][:MOST_LABELS]]


def _bars(
    name: str, labels: list[str], groups: Sequence[tuple[str, str, pl.DataFrame]]
) -> dict[str, Any]:
    series = []
    for group, css, frame in groups:
        column = frame[name].drop_nulls()
        text = (
            pl.Series([_label(v) for v in column], dtype=pl.String)
            if column.dtype == pl.Boolean
            else column.cast(pl.String)
        )
        counts = dict(text.value_counts().iter_rows())
        others = sum(c for label, c in counts.items() if label not in labels)
        series.append(
            (Shares(group, css, [int(counts.get(label, 0)) for label in labels] + [others]), others)
        )
    shown = [*labels, "(other)"]
    if not any(others for _, others in series):
        shown = labels
        series = [(Shares(s.name, s.css, s.counts[:-1]), 0) for s, _ in series]
    drawn = [s for s, _ in series]
    return {
        "name": name,
        "figure": bars(shown, drawn, f"{name}: share of rows by label, pool and arms"),
        "head": ["", *[s.name for s in drawn]],
        "rows": [
            [label, *[f"{s.counts[i]:,} ({s.share(i) * 100:.1f} %)" for s in drawn]]
            for i, label in enumerate(shown)
        ],
    }


def _numbers(name: str, groups: Sequence[tuple[str, str, pl.DataFrame]]) -> dict[str, Any]:
    values = [(group, css, _finite(frame[name])) for group, css, frame in groups]
    edges, open_ended = bin_edges(values[0][2])
    series = [Shares(group, css, _count(column, edges)) for group, css, column in values]
    rows = []
    for group, _, column in values:
        points = [column.quantile(q, "linear") for q in (0.0, 0.25, 0.5, 0.75, 1.0)]
        rows.append([group, f"{column.len():,}", *[number(p) for p in points]])
    return {
        "name": name,
        "figure": histogram(
            edges, series, f"{name}: share of rows by value, pool and arms", open_ended
        ),
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
    low, high = float(values.min()), float(values.max())  # type: ignore[arg-type]
    tail = float(values.quantile(0.99, "linear") or 0.0)
    open_ended = high - low > 2 * (tail - low) > 0
    high = tail if open_ended else high
    if (values == values.round()).all():
        width = max(1.0, math.ceil((high - low + 1) / BINS))
        count = max(1, math.ceil((high - low + 1) / width))
    else:
        count = BINS
        width = (high - low) / count or 1.0
    return [low + width * i for i in range(count + 1)], open_ended


def _count(values: pl.Series, edges: Sequence[float]) -> list[int]:
    """How many values fall into each bin; both ends are closed, and what lies beyond an end counts
    in its outer bin."""
    width = edges[1] - edges[0]
    places = ((values - edges[0]) / width).floor().clip(0, len(edges) - 2).cast(pl.Int64)
    counts = dict(places.value_counts().iter_rows())
    return [int(counts.get(i, 0)) for i in range(len(edges) - 1)]
