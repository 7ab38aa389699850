"""Rows as files and hub data sets hold them: Parquet, JSON and JSON Lines, read in batches, by
columns.

No Python object is made for a cell, so a million rows take seconds, and memory is bounded by the
batch (a `.json` file, which cannot be cut, is read whole).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import polars as pl

from core.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

ENDINGS = (".parquet", ".jsonl", ".jsonl.gz", ".json")
_POLARS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)


@dataclass(frozen=True)
class Part:
    """Some rows of one file: `name` of the file, what its places are called ("row" or "line"), and
    the place of each row."""

    frame: pl.DataFrame
    name: str
    unit: str
    places: pl.Series

    def head(self, rows: int) -> Part:
        """The first rows only."""
        return Part(self.frame.head(rows), self.name, self.unit, self.places.head(rows))


def parts(source: str | Path | Sequence[str | Path], batch: int) -> Iterator[Part]:
    """Batches of at most `batch` rows, in the order of the files; all batches of one file have the
    same columns and types.

    `source`: a file, a folder of files (in order of name), several of either, or a hub id (its
    train split, streamed). Raises UserError for what does not exist or cannot be read, with file
    and line.
    """
    for each in [source] if isinstance(source, (str, Path)) else source:
        path = Path(each).expanduser()
        if path.exists():
            for file in files(path):
                yield from (
                    _parquet(file, batch) if file.suffix == ".parquet" else _json(file, batch)
                )
        elif isinstance(each, Path) or each.count("/") != 1 or each.startswith((".", "~", "/")):
            raise UserError(f"data file {each} does not exist; check the path.")
        else:
            yield from hub(each, batch)


def files(path: Path) -> list[Path]:
    """The data files of a path: itself, or every data file below it."""
    if path.is_file():
        return [path]
    found = sorted(
        p for p in path.rglob("*") if p.name.endswith(ENDINGS) and not p.name.startswith(".")
    )
    if not found:
        raise UserError(f"folder {path} holds no .parquet, .jsonl or .json file.")
    return found


def lines(path: Path, batch: int) -> Iterator[list[tuple[int, bytes]]]:
    """The lines of a JSON Lines file that are not blank, with their numbers from 1."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
        numbered = ((number, line.rstrip(b"\r\n")) for number, line in enumerate(handle, 1))
        rows = ((number, line) for number, line in numbered if line and not line.isspace())
        while held := list(islice(rows, batch)):
            yield held


def hub(name: str, batch: int) -> Iterator[Part]:
    """Rows of a data set's train split, streamed from the hub."""
    from datasets import load_dataset

    try:
        rows = load_dataset(name, split="train", streaming=True).with_format("arrow")
        yield from _rows(rows.iter(batch_size=batch), name)
    except Exception as error:  # the hub client's many ways to say that it cannot be reached
        raise UserError(
            f"data set {name} is neither a file here nor to be had from the hub: "
            f"{first_line(error)[:200]}"
        ) from error


def first_line(error: Exception) -> str:
    """What an error says, as far as it fits into a sentence."""
    return str(error).splitlines()[0]


def _rows(tables: Iterable[pa.RecordBatch | pa.Table], name: str) -> Iterator[Part]:
    done = 0
    for table in tables:
        yield _numbered(pl.DataFrame(pl.from_arrow(table)), name, done)
        done += len(table)


def _numbered(frame: pl.DataFrame, name: str, done: int) -> Part:
    """Rows that follow `done` others of their file."""
    return Part(frame, name, "row", pl.int_range(done + 1, done + len(frame) + 1, eager=True))


def _parquet(path: Path, batch: int) -> Iterator[Part]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield from _rows(file.iter_batches(batch_size=batch), path.name)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet: {first_line(error)}") from error


def _json(path: Path, batch: int) -> Iterator[Part]:
    """A list of rows (.json), or one row a line."""
    if path.suffix == ".json":
        rows = _list(path)
        for done in range(0, len(rows), batch):
            yield _numbered(rows.slice(done, batch), path.name, done)
        return
    # Types follow from the whole file: the first batch may hold nothing but nulls where a later one
    # holds text.
    seen: pl.DataFrame | None = None
    for held in lines(path, batch):
        empty = _frame(held, path).clear()
        if seen is None:
            seen = empty
        elif seen.schema != empty.schema:
            try:
                seen = pl.concat([seen, empty], how="diagonal_relaxed")
            except pl.exceptions.PolarsError as error:
                _unlike(path, error)
    for held in lines(path, batch):
        places = pl.Series([number for number, _ in held], dtype=pl.Int64)
        yield Part(_frame(held, path, seen), path.name, "line", places)


def _frame(
    held: Sequence[tuple[int, bytes]], path: Path, like: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Numbered lines of JSON objects as a frame, with the columns and types of `like` where
    given."""
    schema = None if like is None else like.schema
    try:
        text = b"\n".join(line for _, line in held)
        frame = pl.read_ndjson(text, schema=schema, infer_schema_length=None)
        if len(frame) == len(held):
            return frame
    except _POLARS:
        pass  # the sentence below says which line; what is odd but valid is read by Python
    rows = []
    for number, line in held:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"{path} is not valid JSON Lines: line {number}: {error}; "
                "repair or remove that line."
            ) from error
        if not isinstance(row, dict):
            raise UserError(
                f"{path} line {number} is JSON but no object; every line must be one row."
            )
        rows.append(row)
    return _from_objects(rows, path, schema)


def _list(path: Path) -> pl.DataFrame:
    """A JSON file that holds a list of objects."""
    text = path.read_bytes()
    with suppress(*_POLARS, ValueError):
        if text.lstrip().startswith(b"["):
            return pl.read_json(text, infer_schema_length=None)
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}; repair the file.") from error
    if not isinstance(rows, list):
        raise UserError(
            f"{path} is JSON but no list; give a list of rows, "
            "or name a file of one object a line .jsonl."
        )
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise UserError(
                f"{path} row {number} is JSON but no object; every entry must be one row."
            )
    return _from_objects(rows, path, None)


def _from_objects(rows: list[dict[str, Any]], path: Path, schema: pl.Schema | None) -> pl.DataFrame:
    try:
        return pl.from_dicts(rows, schema=schema, infer_schema_length=None)
    except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
        _unlike(path, error)


def _unlike(path: Path, error: Exception) -> NoReturn:
    raise UserError(
        f"{path}: one column holds values of different kinds ({first_line(error)[:200]}); "
        "make them alike."
    ) from error
