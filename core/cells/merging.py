"""Merging a column's parts into few large ones that lie in the order of the pool, so that a pass
over the pool reads each once, and a slice of it only its own rows.

A window of rows in order is gathered at a time, so memory is bounded. A part goes as soon as all
its cells are in merged ones, so a kill loses nothing, a reader misses nothing, and the disk needs
room for what is being merged once more at most.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from core.cells.whole import replaced

if TYPE_CHECKING:
    from numpy.typing import NDArray


FILES = 64
"""Parts that a column may have before they are merged."""
ROWS = 65_536
"""Cells of a merged part."""
WINDOW_BYTES = 2**28
"""Bytes of cells in memory at once while parts are merged."""
OLD_ROWS = 20_000
"""Cells in parts of the layout before, which lie in no order, from which they are merged at any
rate."""


GROUP = 2048
"""Rows of a part that are decoded together: a slice of a pool reads no others."""


class Parts(Protocol):
    """What merging needs of a column (core/columns.py has one)."""

    folder: Path
    schema: pl.Schema
    key: list[str]
    root: Path | None

    def parts(self) -> list[Path]:
        """The Parquet files that hold cells now, in the order in which they count."""

    def part(self, path: Path, names: Sequence[str] | None = None) -> pl.DataFrame:
        """The cells of one file, or those fields of them."""

    def rows(self, path: Path, places: NDArray[np.int64], names: Sequence[str]) -> pl.DataFrame:
        """The cells at `places` (rising) of one file, [*names]."""

    def publish(self, cells: pl.DataFrame, stem: str | None = None) -> Path:
        """Write cells as one part, whose name begins with `stem`."""


def merged(path: Path) -> bool:
    """Whether a part is one that others were merged into, in the order of the pool."""
    return path.name.startswith("part-m")


@dataclass(frozen=True)
class _Part:
    """A part, the cells in it, and their bytes once decoded and on disk."""

    path: Path
    cells: int
    decoded: int
    stored: int


def _measured(path: Path) -> _Part:
    about = pq.read_metadata(path)
    groups = (about.row_group(number) for number in range(about.num_row_groups))
    decoded = sum(group.total_byte_size for group in groups)
    return _Part(path, about.num_rows, decoded, path.stat().st_size)


def _to_merge(column: Parts, files: int, rows: int) -> list[_Part]:
    """The parts that are to be merged now, in the order in which they count; none: all are well."""
    parts = [_measured(path) for path in column.parts()]
    loose = [part for part in parts if not merged(part.path)]
    old = [part for part in loose if not part.path.name.startswith("part-t")]
    if len(loose) <= files and sum(part.cells for part in old) < OLD_ROWS:
        return []
    whole = [part for part in parts if merged(part.path)]
    many = sum(part.cells for part in loose) * 2 >= sum(part.cells for part in whole)
    if many or len(whole) > files:
        return parts
    # What was merged before is left alone, but for its small last part.
    return [part for part in whole if part.cells * 2 < rows] + loose


def merge(
    column: Parts, order: pl.Series | None, say: Callable[[str], None], files: int, rows: int
) -> None:
    """What `Column.compact` does with parts."""
    parts = _to_merge(column, files, rows)
    if not parts:
        return
    cells = _places(column, parts, order)
    size = sum(part.stored for part in parts)
    decoded = sum(part.decoded for part in parts) / max(len(cells), 1)
    fitting = int(WINDOW_BYTES / max(decoded, 1.0)) // GROUP * GROUP
    rows = max(min(rows, fitting), GROUP) if fitting < rows else rows
    window = max(fitting // rows * rows, rows)
    free = shutil.disk_usage(column.folder).free
    name = f"{column.folder.parent.name}/{column.folder.name}"
    needs = f"which needs up to {size / 2**20:,.0f} MiB of disk until it is done"
    if free < size:
        say(f"{name}: {len(parts)} parts are not merged, {needs}: {free / 2**20:,.0f} are free")
        return
    say(f"{name}: merging {len(parts)} parts of {len(cells):,} cells, {needs}")
    last = cells.with_row_index("at").group_by("part").agg(pl.col("at").max())
    ends = dict(last.iter_rows())
    for start in range(0, len(cells), window):
        gathered = _gathered(column, parts, cells.slice(start, window))
        for number, piece in enumerate(gathered.iter_slices(rows)):
            column.publish(piece, f"part-m{start + number * rows:012d}")
        for number, part in enumerate(parts):
            if ends.get(number, -1) < start + window:
                replaced(part.path, column.root)


def _places(column: Parts, parts: list[_Part], order: pl.Series | None) -> pl.DataFrame:
    """Which cells are merged, in their new order: [part (number), row (in it)]. Of one that is
    there twice, the first; none that a merged part, which stays, holds already."""
    held = []
    for number, part in enumerate(parts):
        keys = column.part(part.path, column.key).with_row_index("row")
        held.append(keys.with_columns(pl.lit(number, pl.UInt32).alias("part")))
    cells = pl.concat(held).unique(column.key, keep="first", maintain_order=True)
    staying = {*filter(merged, column.parts())} - {part.path for part in parts}
    for path in staying:
        there = column.part(path, column.key)
        cells = cells.join(
            there, on=column.key, how="anti", nulls_equal=True, maintain_order="left"
        )
    if order is not None:
        places = order.rename("id").to_frame().unique(keep="first", maintain_order=True)
        places = places.with_row_index("place")
        cells = cells.join(places, on="id", how="left", maintain_order="left")
        cells = cells.sort("place", nulls_last=True, maintain_order=True)
    return cells.select("part", "row")


def _gathered(column: Parts, parts: list[_Part], cells: pl.DataFrame) -> pl.DataFrame:
    """The cells of one window, in order; each part is read once."""
    found, places = [], []
    numbered = cells.with_row_index("at").sort("part", "row")
    for (number,), held in numbered.group_by("part", maintain_order=True):
        path = parts[int(str(number))].path
        rows = held["row"].to_numpy().astype(np.int64)
        found.append(column.rows(path, rows, list(column.schema)))
        places.append(held["at"].to_numpy())
    order = np.argsort(np.concatenate(places), kind="stable")
    return pl.concat(found)[order]
