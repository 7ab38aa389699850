"""Chosen rows of a data set, written in the order chosen: as the source holds them, or in another form.

The source is read once for every CHUNK chosen rows, so that memory holds those rows and one batch, whatever the size of the source.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import polars as pl

from core.errors import UserError
from core.store import fsync_folder
from synth import published, sources

CHUNK = 200_000
"""Chosen rows in memory at once."""

Form = Literal["same", "23", "25", "sharegpt", "messages"]


def write(source: str | Path, rows: pl.Series, path: Path, form: Form = "same") -> int:
    """Write rows (positions in the source, in the order of its files) to one Parquet or JSONL file; returns how many.

    "same": every column as it is; JSON Lines to JSON Lines copies the very lines. Other forms are those of `published.write`. The file appears when
    it is whole. Raises UserError for another ending, and when the source is not what it was.
    """
    if path.suffix not in (".parquet", ".jsonl"):
        raise UserError(f"cannot write {path}: the name must end in .parquet or .jsonl.")
    if form == "same" and path.suffix == ".jsonl" and _all_lines(source):
        return _copy_lines(Path(source).expanduser(), rows, path)
    with published.Writer(path, "magpie" if form == "same" else form) as writer:
        for top in range(0, max(len(rows), 1), CHUNK):
            frames = (part.frame for part in sources.parts(source, published.BATCH)) if form == "same" else published.read(source)
            writer.add(_gathered(frames, rows.slice(top, CHUNK), source))
        if writer.rows != len(rows):
            raise UserError(f"{len(rows) - writer.rows} of the {len(rows)} chosen rows of {source} have no text to write; use --form same.")
    return writer.rows


def texts(source: str | Path, rows: pl.Series, column: str = "instruction") -> Iterator[str | None]:
    """One text column of rows (rising positions), streamed."""
    done = 0
    for frame in published.read(source):
        yield from frame[column].gather(rows.filter((rows >= done) & (rows < done + len(frame))) - done)
        done += len(frame)


def _gathered(frames: Iterator[pl.DataFrame], rows: pl.Series, source: str | Path) -> pl.DataFrame:
    """The rows at these positions, in this order."""
    wanted = pl.DataFrame({"row": rows.cast(pl.Int64)}).with_row_index("rank").sort("row")
    found: list[pl.DataFrame] = []
    done = 0
    for frame in frames:
        here = wanted.filter((pl.col("row") >= done) & (pl.col("row") < done + len(frame)))
        if len(here) or not found:
            found.append(frame[(here["row"] - done).to_numpy()])
        done += len(frame)
    made = pl.concat(found, how="diagonal_relaxed") if found else pl.DataFrame()
    if len(made) != len(rows):
        raise UserError(f"{source} has fewer rows than when it was filtered; run the filter again.")
    return made[wanted["rank"].arg_sort().to_numpy()]


def _all_lines(source: str | Path) -> bool:
    path = Path(source).expanduser()
    return path.exists() and all(file.name.endswith((".jsonl", ".jsonl.gz")) for file in sources.files(path))


def _copy_lines(source: Path, rows: pl.Series, path: Path) -> int:
    def written(handle: BinaryIO) -> None:
        for top in range(0, len(rows), CHUNK):
            rank = {row: at for at, row in enumerate(rows.slice(top, CHUNK).to_list())}
            held: list[bytes] = [b""] * len(rank)
            for row, line in enumerate(_lines(source)):
                if row in rank:
                    held[rank[row]] = line.rstrip(b"\r\n") + b"\n"
            if not all(held):
                raise UserError(f"{source} has fewer rows than when it was filtered; run the filter again.")
            handle.writelines(held)

    _published(path, written)
    return len(rows)


def _lines(source: Path) -> Iterator[bytes]:
    """The lines that are rows, in the order of the files."""
    for file in sources.files(source):
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as handle:
            yield from (line for line in handle if not line.isspace())


def _published(path: Path, fill: Callable[[BinaryIO], None]) -> None:
    """Write a file under a temporary name; it appears when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as handle:
            fill(handle)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)
