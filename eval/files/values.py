"""JSON Lines with `item` and `value`, and scores files of ours."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from core.errors import UserError, brief
from core.files import read_parquet
from eval.files.parts import Part, frame
from eval.prompt_sets.records import located

CLUSTER = "cluster"
BENCHMARK, METRIC = "values", "value"
"""What figures are called of a file that names neither."""


def of_values(path: Path, *, lower_is_better: bool = False) -> Part:
    """Rows with `item` (a text or a number), `value` (a number, true or false; null where there is
    none) and, where items belong together, `cluster`. Other fields are passed over. Raises
    UserError, naming the row, for anything else."""
    items: dict[str, tuple[float | None, str]] = {}
    for where, row in located(path):
        if not items:
            _check_fields(row, where)
        item = _label(row, "item", where)
        if item in items:
            raise UserError(
                f"{where}: the item {item} comes a second time; give each its own name and share "
                "the `cluster`."
            )
        cluster = item if row.get("cluster") is None else _label(row, "cluster", where)
        items[item] = (_number(row, where), cluster)
    if not items:
        raise UserError(f"{path} holds no rows.")
    values, clusters = zip(*items.values(), strict=True)
    rows = frame(list(items), values, clusters=clusters)
    name = path.name.removesuffix(".gz").rpartition(".")[0]
    return Part(name, BENCHMARK, METRIC, rows, path, not lower_is_better)


def _check_fields(row: dict[str, Any], where: str) -> None:
    """Raise UserError for a field that is nearly `cluster`, where there is none: without clusters
    the intervals are too narrow."""
    if CLUSTER in row:
        return
    names = {name.lower(): name for name in row}
    near = difflib.get_close_matches(CLUSTER, names, cutoff=0.75)
    if near:
        raise UserError(
            f"{where}: no `{CLUSTER}`, but `{names[near[0]]}`; rename it if it says which items "
            "belong together, else leave it out."
        )


def _label(row: dict[str, Any], field: str, where: str) -> str:
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UserError(
            f"{where}: `{field}` is {brief(value)}; it names an item: a text or a number."
        )
    return str(value)


def _number(row: dict[str, Any], where: str) -> float | None:
    """The value of a row. Raises UserError for what is no finite number, true, false or null."""
    if "value" not in row:
        raise UserError(f"{where}: no `value`; a row has item, value and, if wanted, cluster.")
    value = row["value"]
    if value is None:
        return None
    if not isinstance(value, (bool, int, float)):
        raise UserError(
            f"{where}: the value {brief(value)} is no number (null where there is none)."
        )
    try:
        number = float(value)
    except OverflowError:  # an integer beyond all floating-point numbers
        number = math.inf
    if math.isinf(number):
        raise UserError(f"{where}: the value is infinite, and so would be the mean.")
    return number


def of_scores(path: Path) -> Iterator[Part]:
    """Every metric of a scores.parquet of ours (a result of the stage `score`)."""
    scores = read_parquet(path, remedy="give another file")
    if "higher_is_better" not in scores.columns:
        scores = scores.with_columns(higher_is_better=pl.lit(None, pl.Boolean))
    for (benchmark, metric), rows in scores.group_by("benchmark", "metric", maintain_order=True):
        items, clusters, values = (rows[name].to_list() for name in ("item", "cluster", "value"))
        higher = rows["higher_is_better"][0]
        part = frame(items, values, clusters=clusters)
        yield Part(path.parent.name, str(benchmark), str(metric), part, path, higher)
