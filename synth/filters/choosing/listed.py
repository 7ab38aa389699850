"""A choice that someone else computed (LESS, NUGGETS, SelectIT, QuRating, AlpaGasus ...): a file of
ids, with scores where there are any."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from core.errors import UserError, brief
from core.files import read_json_lines

SCHEMA = {"id": pl.String, "score": pl.Float64}
ENDINGS = (".parquet", ".csv", ".jsonl", ".json", ".txt")
_WRITE = 'write one object a line: {"id": ..., "score": ...}'


def read_listed(path: Path) -> pl.DataFrame:
    """[id, score (null without)] of a file, in its order, each id once (the first).

    Parquet or CSV with a column `id` (and `score`), JSON Lines with objects or ids, or a text file
    with an id a line. Raises UserError for a file that is not there or holds no ids, and for a line
    that has none or a score that is no finite number.
    """
    if not path.is_file():
        raise UserError(f"the file of ids {path} does not exist; check its name.")
    readers = {".parquet": _table, ".csv": _table, ".txt": _text}
    rows = readers.get(path.suffix, _lines)(path)
    if rows.is_empty():
        raise UserError(f"{path} holds no ids.")
    return rows.unique("id", keep="first", maintain_order=True)


def _table(path: Path) -> pl.DataFrame:
    try:
        read = pl.read_parquet if path.suffix == ".parquet" else pl.read_csv
        frame = read(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if "id" not in frame.columns:
        raise UserError(f"{path} has no column `id` (it has {', '.join(frame.columns)}).")
    scores = frame["score"] if "score" in frame.columns else [None] * len(frame)
    rows = zip(frame["id"].cast(pl.String), scores, strict=True)
    return _frame((name, _score(s, path, at)) for at, (name, s) in enumerate(rows, 1))


def _text(path: Path) -> pl.DataFrame:
    return _frame((line.strip(), None) for line in path.read_text().splitlines() if line.strip())


def _lines(path: Path) -> pl.DataFrame:
    return _frame(_listed(path))


def _listed(path: Path) -> Iterator[tuple[str | None, float | None]]:
    for number, record in _records(path):
        fields = record if isinstance(record, dict) else {"id": record}
        name = fields.get("id")
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise UserError(f"{path}, line {number}: no `id`; {_WRITE}.")
        yield str(name), _score(fields.get("score"), path, number)


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, record) of JSON Lines, or of a JSON list."""
    for number, record in read_json_lines(path, _WRITE):
        for each in record if isinstance(record, list) else [record]:
            yield number, each


def _score(value: Any, path: Path, number: int) -> float | None:
    if value is None:
        return None
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score) or isinstance(value, bool):
        raise UserError(f"{path}, row {number}: the score {brief(value)} is no finite number.")
    return score


def _frame(rows: Any) -> pl.DataFrame:
    frame = pl.DataFrame(list(rows), schema=SCHEMA, orient="row")
    return frame.filter(pl.col("id").is_not_null())
