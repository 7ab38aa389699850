"""Rows as files and hub data sets hold them: Parquet, JSON and JSON Lines, read in batches, by
columns.

No Python object is made for a cell, so a million rows take seconds, and memory is bounded by the
batch (a `.json` file, which cannot be cut, is read whole).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import polars as pl

from core.errors import UserError

ENDINGS = (".parquet", ".jsonl", ".jsonl.gz", ".json")


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
            yield from _hub(str(each), batch)


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


def _parquet(path: Path, batch: int) -> Iterator[Part]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    done = 0
    try:
        with pq.ParquetFile(path) as file:
            for table in file.iter_batches(batch_size=batch):
                frame = pl.DataFrame(pl.from_arrow(table))
                yield Part(
                    frame,
                    path.name,
                    "row",
                    pl.int_range(done + 1, done + len(frame) + 1, eager=True),
                )
                done += len(frame)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}"
        ) from error


def _json(path: Path, batch: int) -> Iterator[Part]:
    if path.suffix == ".json":
        rows = _whole(path)
        for at in range(0, len(rows), batch):
            frame = rows.slice(at, batch)
            yield Part(
                frame, path.name, "row", pl.int_range(at + 1, at + len(frame) + 1, eager=True)
            )
        return
    # Types follow from the whole file: the first batch may hold nothing but nulls where a later one
    # holds text.
    seen: pl.DataFrame | None = None
    for lines, places in _lines(path, batch):
        found = _frame(lines, places, path).clear()
        seen = (
            found
            if seen is None
            else seen
            if seen.schema == found.schema
            else _joined(seen, found, path)
        )
    for lines, places in _lines(path, batch):
        assert seen is not None
        yield Part(_frame(lines, places, path, seen.schema), path.name, "line", places)


def _lines(path: Path, batch: int) -> Iterator[tuple[list[bytes], pl.Series]]:
    """Non-empty lines of a JSON Lines file with their numbers."""
    number = 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
        while lines := list(islice(handle, batch)):
            held = [(n, line) for n, line in enumerate(lines, number + 1) if not line.isspace()]
            number += len(lines)
            if held:
                yield [line for _, line in held], pl.Series([n for n, _ in held], dtype=pl.Int64)


def _frame(
    lines: list[bytes], places: pl.Series, path: Path, schema: pl.Schema | None = None
) -> pl.DataFrame:
    """Lines of JSON objects as a frame, of `schema` where given."""
    try:
        frame = pl.read_ndjson(
            b"\n".join(line.rstrip(b"\r\n") for line in lines),
            schema=schema,
            infer_schema_length=None,
        )
        if len(frame) == len(lines):
            return frame
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        pass  # the sentence below says which line; what is odd but valid is read by Python
    rows = []
    for line, number in zip(lines, places, strict=True):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"{path} is not valid JSON Lines: line {number}: {error}; repair or remove that line."
            ) from error
        if not isinstance(row, dict):
            raise UserError(
                f"{path} line {number} is JSON but no object; every line must be one row."
            )
        rows.append(row)
    return _from_objects(rows, path, schema)


def _whole(path: Path) -> pl.DataFrame:
    text = path.read_bytes()
    try:
        if not text.lstrip().startswith(b"["):
            json.loads(text)
            raise UserError(
                f"{path} is JSON but no list; give a list of rows, or name a file of one object a line .jsonl."
            )
        return pl.read_json(text, infer_schema_length=None)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError):
        pass
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}; repair the file.") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise UserError(
                f"{path} row {number} is JSON but no object; every entry must be one row."
            )
    return _from_objects(rows, path, None)


def _from_objects(
    rows: list[dict[str, object]], path: Path, schema: pl.Schema | None
) -> pl.DataFrame:
    try:
        return pl.from_dicts(rows, schema=schema, infer_schema_length=None)
    except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: one column holds values of different kinds ({str(error).splitlines()[0][:200]}); make them alike."
        ) from error


def _joined(one: pl.DataFrame, other: pl.DataFrame, path: Path) -> pl.DataFrame:
    try:
        return pl.concat([one, other], how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        raise UserError(
            f"{path}: one column holds values of different kinds ({str(error).splitlines()[0][:200]}); make them alike."
        ) from error


def _hub(name: str, batch: int) -> Iterator[Part]:
    from datasets import load_dataset

    done = 0
    try:
        rows = load_dataset(name, split="train", streaming=True).with_format("arrow")
        for table in rows.iter(batch_size=batch):
            frame = pl.DataFrame(pl.from_arrow(table))
            yield Part(
                frame, name, "row", pl.int_range(done + 1, done + len(frame) + 1, eager=True)
            )
            done += len(frame)
    except Exception as error:  # the hub client's many ways to say that it cannot be reached
        raise UserError(
            f"data set {name} is neither a file here nor to be had from the hub: {str(error).splitlines()[0][:200]}"
        ) from error
