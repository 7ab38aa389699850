"""Tokenising by several processes: parts of a selection as files, each finished or absent.

    python -m train.data.parts FOLDER RANK PROCESSES

tokenises the parts RANK, RANK + PROCESSES ... of FOLDER/rows.arrow as FOLDER/how.json says. A part
is an Arrow file [id: str, input_ids: list[int32], labels: list[int32]] of the rows that are trained
on; what all its rows count for stands in its metadata.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from core.errors import UserError
from core.files import read_json, replacing, write_atomic
from core.models import without_torch
from train.data.rows import Rendering, cut_rows
from train.encoding import Ids

ROOT = Path(__file__).parents[2]
PART = 2000  # rows
WORTH_A_PROCESS = 10_000  # rows; its start takes the time of 3,000 to 4,000
FEWEST_PROCESSES = 6  # one process makes use of about five cores
MOST_PROCESSES = 32  # each has a tokenizer of about 200 MB, and the disk is shared
POLL = 0.2  # seconds between looks at the processes
_LIST = pa.list_(pa.int32())
SCHEMA = pa.schema([("id", pa.string()), ("input_ids", _LIST), ("labels", _LIST)])


@dataclass(frozen=True)
class Documents:
    """Tokenised rows, mapped from their parts; `counts` is over all rows, by the ledger's names."""

    ids: list[str]
    input_ids: list[Ids]
    labels: list[Ids]
    counts: Counter[str]
    longest: int


def processes_for(rows: int) -> int:
    """How many processes tokenise so many rows: all cores that this process may use, as far as each
    has enough to do. One where those are few: its tokenizer works on all cores by itself, and only
    what Python does is left to a single one."""
    cores = min(len(os.sched_getaffinity(0)), MOST_PROCESSES, rows // WORTH_A_PROCESS)
    return cores if cores >= FEWEST_PROCESSES else 1


def tokenise(
    frame: pl.DataFrame,
    how: Rendering,
    folder: Path,
    processes: int,
    report: Callable[[int], None] = lambda rows: None,
) -> Documents:
    """The rows [id, messages] of `frame` tokenised by `processes` processes; `report` is told how
    many rows are done.

    Parts in `folder` that an earlier, killed call of the same rows and settings finished are kept.
    Raises UserError for a row that is refused, and when a process ends without a word.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = _paths(folder, len(frame))
    if processes == 1:
        for number, path in enumerate(paths):
            _write(frame.slice(number * PART, PART), how, path)
            report(min((number + 1) * PART, len(frame)))
    elif not all(path.exists() for path in paths):
        _write_rows(frame, folder / "rows.arrow")
        write_atomic(folder / "how.json", json.dumps(dataclasses.asdict(how)))
        _in_processes(folder, processes, paths, report)
    return _read(paths)


def _write_rows(frame: pl.DataFrame, path: Path) -> None:
    """Rows as processes map them: a batch a part."""
    table = frame.to_arrow()
    with (
        replacing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        for first in range(0, len(table), PART):
            (batch,) = table.slice(first, PART).combine_chunks().to_batches()
            writer.write_batch(batch)


def _paths(folder: Path, rows: int) -> list[Path]:
    return [folder / f"part-{number:06d}.arrow" for number in range(-(-rows // PART))]


def _write(frame: pl.DataFrame, how: Rendering, path: Path, wanted: Any = lambda: True) -> None:
    """Tokenise rows to a part, unless it is there; nothing is left behind once `wanted` says no."""
    if path.exists():
        return
    trained, counts, longest = [], Counter[str](), 0
    for batch in cut_rows(frame, how):
        if not wanted():
            sys.exit(1)
        trained += [row for row, _ in batch if row is not None]
        for _, each in batch:
            longest = max(longest, each["tokens"])
            counts.update(each)
    columns = [pa.array([row.id for row in trained], pa.string())]
    columns += [lists([row.input_ids for row in trained]), lists([row.labels for row in trained])]
    metadata = {"counts": json.dumps(counts), "longest": str(longest)}
    schema = SCHEMA.with_metadata(metadata)
    with (
        replacing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def lists(arrays: Sequence[Ids]) -> pa.Array:
    """An Arrow list of int32 for each array."""
    offsets = np.zeros(len(arrays) + 1, dtype=np.int32)
    np.cumsum([len(each) for each in arrays], out=offsets[1:])
    flat = np.concatenate(arrays).astype(np.int32, copy=False) if arrays else np.empty(0, np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))


def _read(paths: Sequence[Path]) -> Documents:
    """All parts, mapped in order."""
    ids: list[str] = []
    tokens: list[Ids] = []
    labels: list[Ids] = []
    counts, longest = Counter[str](), 0
    for path in paths:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            (batch,) = (reader.get_batch(i) for i in range(reader.num_record_batches))
            counts.update(json.loads(reader.schema.metadata[b"counts"]))
            longest = max(longest, int(reader.schema.metadata[b"longest"]))
        ids += batch.column("id").to_pylist()
        tokens += _views(batch.column("input_ids"))
        labels += _views(batch.column("labels"))
    return Documents(ids, tokens, labels, counts, longest)


def _views(column: Any) -> Iterator[Ids]:
    """Each list of a column, without a copy."""
    offsets, values = column.offsets.to_numpy().tolist(), column.values.to_numpy()
    for start, end in itertools.pairwise(offsets):
        yield values[start:end]


def _in_processes(
    folder: Path, processes: int, paths: Sequence[Path], report: Callable[[int], None]
) -> None:
    """Run this module's command once for each process, to the end of all or of the first that
    fails."""
    for old in folder.glob("error-*.json"):
        old.unlink()
    env = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    env["TRANSFORMERS_VERBOSITY"] = "error"  # they say that they find no torch
    # Numbers are worked out by one thread in each.
    env |= {"POLARS_MAX_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "train.data.parts", str(folder.resolve())]
    running = [
        # A folder named train/ in the user's working directory would shadow this package.
        subprocess.Popen([*command, str(rank), str(processes)], env=env, cwd=ROOT)
        for rank in range(processes)
    ]
    try:
        while None in (codes := [process.poll() for process in running]):
            if any(codes):
                break
            report(sum(path.exists() for path in paths) * PART)
            time.sleep(POLL)
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
            process.wait()
    for path in sorted(folder.glob("error-*.json")):
        raise UserError(read_json(path)["error"])
    if failed := [code for code in codes if code]:
        raise UserError(
            f"a process that tokenises ended with exit code {failed[0]} (-9: killed, most likely "
            "for memory); free memory and run again, what is done is kept."
        )


def main(folder: Path, rank: int, processes: int) -> None:
    """Tokenise every `processes`-th part from `rank` on; ends when the process that started this is
    gone."""
    parent = os.getppid()
    without_torch()
    how = Rendering(**read_json(folder / "how.json"))
    rows = pa.ipc.open_file(pa.memory_map(str(folder / "rows.arrow")))
    paths = _paths(folder, rows.num_record_batches * PART)
    try:
        for number in range(rank, len(paths), processes):
            frame = pl.DataFrame(pa.Table.from_batches([rows.get_batch(number)]))
            _write(frame, how, paths[number], wanted=lambda: os.getppid() == parent)
    except UserError as error:
        write_atomic(folder / f"error-{rank}.json", json.dumps({"error": str(error)}))
        sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
