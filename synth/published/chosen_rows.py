"""Chosen rows of a data set, written in the order chosen: as the source holds them, or in another
form.

The source is read once. Its chosen rows go to buckets on disk, each of rows that stand together in
the result, and each bucket is then put in order: memory holds one batch or one bucket, whatever the
size of the source and of the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from core.errors import UserError
from core.files import replacing
from synth.published.files import files, first_line, holds_lines, parts, whole
from synth.published.json_rows import lines
from synth.published.rows import Writer, checked_ending, parquet_file, read

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
    Lines copies the very lines. Other forms are those of `rows.write`. The file appears when
    it is whole. Needs as much disk again, uncompressed, beside the file while it works. Raises
    UserError for another ending, and when the source is not what it was.
    """
    ending = checked_ending(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(source).expanduser()
    held = files(folder) if folder.exists() and form == "same" else []
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as buckets:
        ordered = partial(_ordered, rows=rows, folder=Path(buckets), source=source)
        if held and ending == ".parquet" and all(file.suffix == ".parquet" for file in held):
            _write_parquet(path, ordered(_parquet(held)))
        elif held and ending == ".jsonl" and all(holds_lines(file) for file in held):
            _write_lines(path, ordered(_lines(held)))
        else:
            with Writer(path, "magpie" if form == "same" else form) as writer:
                for table in ordered(_frames(source, form)):
                    writer.add(pl.DataFrame(pl.from_arrow(table)))
                if writer.rows != len(rows):
                    raise UserError(
                        f"{len(rows) - writer.rows} of the {len(rows)} chosen rows of {source} "
                        "have no text to write; use --form same."
                    )
    return len(rows)


def texts(source: str | Path, rows: pl.Series, column: str = "instruction") -> Iterator[str | None]:
    """One text column of rows (rising positions), streamed."""
    done = 0
    for frame in read(source):
        here = rows.filter((rows >= done) & (rows < done + len(frame)))
        yield from frame[column].gather(here - done)
        done += len(frame)


def _ordered(
    pieces: Iterator[Piece], rows: pl.Series, folder: Path, source: str | Path
) -> Iterator[pa.Table]:
    """The rows at these positions, in this order, a bucket at a time."""
    import pyarrow as pa

    places = rows.to_numpy().astype(np.int64)
    ranks = np.argsort(places)
    rising = places[ranks]
    writers: dict[tuple[int, str], pa.RecordBatchStreamWriter] = {}
    done = found = 0
    with ExitStack() as opened:
        for size, take in pieces:
            first, end = np.searchsorted(rising, [done, done + size])
            bucket_of = ranks[first:end] // BUCKET
            for bucket in np.unique(bucket_of):
                mine = first + np.flatnonzero(bucket_of == bucket)
                table = take(rising[mine] - done).append_column("_rank", pa.array(ranks[mine]))
                # Batches of one bucket may differ in their types; a stream has one.
                key = (int(bucket), str(table.schema))
                if key not in writers:
                    file = folder / f"{bucket}-{len(writers)}.arrows"
                    writers[key] = opened.enter_context(pa.ipc.new_stream(file, table.schema))
                writers[key].write_table(table)
            done, found = done + size, found + int(end - first)
    if found != len(rows):
        raise UserError(f"{source} has fewer rows than when it was filtered; run the filter again.")
    for bucket in sorted({bucket for bucket, _ in writers}):
        streams = sorted(folder.glob(f"{bucket}-*.arrows"))
        tables = [pa.ipc.open_stream(pa.memory_map(str(file))).read_all() for file in streams]
        whole = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
        yield whole.take(np.argsort(whole["_rank"].to_numpy())).drop_columns("_rank")


def _parquet(held: list[Path]) -> Iterator[Piece]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in held:
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                for batch in whole(file.iter_batches(BATCH)):
                    yield len(batch), partial(_taken, batch)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{path} cannot be read as Parquet: {first_line(error)}; get it again."
            ) from error


def _taken(batch: pa.RecordBatch, places: NDArray[np.int64]) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_batches([batch.take(places)])


def _lines(held: list[Path]) -> Iterator[Piece]:
    """The lines that are rows, as a column of bytes."""
    import pyarrow as pa

    for file in held:
        for rows in lines(file, BATCH):
            table = pa.table({"line": pa.array([line for _, line in rows], pa.large_binary())})
            yield len(table), table.take


def _frames(source: str | Path, form: Form) -> Iterator[Piece]:
    plain = (part.frame for part in parts(source, BATCH))
    for frame in plain if form == "same" else read(source, batch=BATCH):
        yield len(frame), partial(_copied, frame)


def _copied(frame: pl.DataFrame, places: NDArray[np.int64]) -> pa.Table:
    """Rows of a frame as Arrow, copied out: polars' own would keep the whole batch in memory."""
    return frame[places].to_arrow(compat_level=pl.CompatLevel.oldest())


def _write_parquet(path: Path, tables: Iterator[pa.Table]) -> None:
    first = next(tables, None)
    if first is None:
        raise UserError("no row was chosen, so there is nothing to write.")
    with parquet_file(path, "zstd", checksums=True) as add:
        add(first)
        for table in tables:
            add(table)


def _write_lines(path: Path, tables: Iterator[pa.Table]) -> None:
    with replacing(path) as temporary, temporary.open("wb") as handle:
        for table in tables:
            handle.writelines(line + b"\n" for line in table["line"].to_pylist())
