"""Chosen rows of a data set, written in the order chosen: as the source holds them, or in another
form.

The source is read once. Its chosen rows go to buckets on disk, each of rows that stand together in
the result, and each bucket is then put in order: memory holds one batch or one bucket, whatever the
size of the source and of the choice.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from core.errors import UserError
from core.files import fsync_folder
from synth.published import files as sources
from synth.published import rows as published

if TYPE_CHECKING:
    import pyarrow as pa

BUCKET = 20_000
"""Chosen rows that are put in order at once."""
BATCH = 10_000
"""Rows of the source in memory at once."""

Form = Literal["same", "23", "25", "sharegpt", "messages"]
Piece = tuple[int, Callable[[NDArray[np.int64]], "pa.Table"]]
"""Some rows of the source: how many, and how to take some of them."""


def write(source: str | Path, rows: pl.Series, path: Path, form: Form = "same") -> int:
    """Write rows (positions in the source, in the order of its files) to one Parquet or JSONL file;
    returns how many.

    "same": every column as it is; Parquet to Parquet keeps the Arrow schema, JSON Lines to JSON
    Lines copies the very lines. Other forms are those of `published.write`. The file appears when
    it is whole. Needs as much disk again, uncompressed, beside the file while it works. Raises
    UserError for another ending, and when the source is not what it was.
    """
    if path.suffix not in (".parquet", ".jsonl"):
        raise UserError(f"cannot write {path}: the name must end in .parquet or .jsonl.")
    path.parent.mkdir(parents=True, exist_ok=True)
    files = sources.files(Path(source).expanduser()) if Path(source).expanduser().exists() else []
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        buckets = Path(folder)
        if (
            form == "same"
            and path.suffix == ".parquet"
            and files
            and all(file.suffix == ".parquet" for file in files)
        ):
            _whole(path, _parquet_writer(_ordered(_parquet(files), rows, buckets, source)))
        elif (
            form == "same"
            and path.suffix == ".jsonl"
            and files
            and all(file.name.endswith((".jsonl", ".jsonl.gz")) for file in files)
        ):
            _whole(path, _line_writer(_ordered(_lines(files), rows, buckets, source)))
        else:
            with published.Writer(path, "magpie" if form == "same" else form) as writer:
                for table in _ordered(_frames(source, form), rows, buckets, source):
                    writer.add(pl.DataFrame(pl.from_arrow(table)))
                if writer.rows != len(rows):
                    raise UserError(
                        f"{len(rows) - writer.rows} of the {len(rows)} chosen rows of {source} have no text to write; use --form same."
                    )
    return len(rows)


def texts(source: str | Path, rows: pl.Series, column: str = "instruction") -> Iterator[str | None]:
    """One text column of rows (rising positions), streamed."""
    done = 0
    for frame in published.read(source):
        yield from frame[column].gather(
            rows.filter((rows >= done) & (rows < done + len(frame))) - done
        )
        done += len(frame)


def _ordered(
    pieces: Iterator[Piece], rows: pl.Series, folder: Path, source: str | Path
) -> Iterator[pa.Table]:
    """The rows at these positions, in this order, a bucket at a time."""
    import pyarrow as pa

    places = rows.to_numpy().astype(np.int64)
    ranks = np.argsort(places)
    rising = places[ranks]
    writers: dict[tuple[int, str], Any] = {}
    done = found = 0
    for size, take in pieces:
        first, end = np.searchsorted(rising, [done, done + size])
        for bucket in np.unique(ranks[first:end] // BUCKET):
            mine = first + np.flatnonzero(ranks[first:end] // BUCKET == bucket)
            table = take(rising[mine] - done).append_column("_rank", pa.array(ranks[mine]))
            key = (int(bucket), str(table.schema))
            if key not in writers:
                writers[key] = pa.ipc.new_stream(
                    str(folder / f"{bucket}-{len(writers)}.arrows"), table.schema
                )
            writers[key].write_table(table)
        done, found = done + size, found + int(end - first)
    for writer in writers.values():
        writer.close()
    if found != len(rows):
        raise UserError(f"{source} has fewer rows than when it was filtered; run the filter again.")
    for bucket in sorted({bucket for bucket, _ in writers}):
        parts = [
            pa.ipc.open_stream(pa.memory_map(str(part))).read_all()
            for part in sorted(folder.glob(f"{bucket}-*.arrows"))
        ]
        whole = pa.concat_tables(parts, promote_options="permissive").combine_chunks()
        yield whole.take(np.argsort(whole["_rank"].to_numpy())).drop_columns("_rank")


def _parquet(files: list[Path]) -> Iterator[Piece]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in files:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH):
                yield len(batch), lambda at, batch=batch: pa.Table.from_batches([batch.take(at)])  # type: ignore[misc]


def _lines(files: list[Path]) -> Iterator[Piece]:
    """The lines that are rows, as a column of bytes."""
    import pyarrow as pa

    def piece(held: list[bytes]) -> Piece:
        return len(held), lambda at: pa.table(
            {"line": pa.array([held[i] for i in at], pa.large_binary())}
        )

    for file in files:
        held: list[bytes] = []
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as handle:
            for line in handle:
                if not line.isspace():
                    held.append(line.rstrip(b"\r\n"))
                if len(held) == BATCH:
                    yield piece(held)
                    held = []
        yield piece(held)


def _frames(source: str | Path, form: Form) -> Iterator[Piece]:
    frames = (
        (part.frame for part in sources.parts(source, BATCH))
        if form == "same"
        else published.read(source, batch=BATCH)
    )
    for frame in frames:
        yield len(frame), partial(_copied, frame)


def _copied(frame: pl.DataFrame, places: NDArray[np.int64]) -> pa.Table:
    """Rows of a frame as Arrow, copied out: polars' own rows would keep the whole batch in memory."""
    return frame[places].to_arrow(compat_level=pl.CompatLevel.oldest())


def _parquet_writer(tables: Iterator[pa.Table]) -> Callable[[BinaryIO], None]:
    import pyarrow.parquet as pq

    def fill(handle: BinaryIO) -> None:
        writer: Any = None
        for table in tables:
            writer = writer or pq.ParquetWriter(handle, table.schema, compression="zstd")
            writer.write_table(table.cast(writer.schema))
        if writer is None:
            raise UserError("no row was chosen, so there is nothing to write.")
        writer.close()

    return fill


def _line_writer(tables: Iterator[pa.Table]) -> Callable[[BinaryIO], None]:
    def fill(handle: BinaryIO) -> None:
        for table in tables:
            handle.writelines(line + b"\n" for line in table["line"].to_pylist())

    return fill


def _whole(path: Path, fill: Callable[[BinaryIO], None]) -> None:
    """Write a file under a temporary name; it appears when it is whole."""
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
