"""What frames of figures, labels and digests hold: as one digest, and without what is there
twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl


def frame_digest(frame: Iterable[pl.Series]) -> str:
    """Digest of a frame's columns, their names and types, and every value in order. The same with
    every version of polars and on every machine."""
    seen = hashlib.sha256()
    for column in frame:
        seen.update(f"{column.name}\0{column.dtype}\0{len(column)}\0".encode())
        for values in _plain(column):
            seen.update(values)
    return seen.hexdigest()


def first_of_each(frame: pl.DataFrame, key: Sequence[str]) -> pl.DataFrame:
    """The first row of each key, in order; nothing is copied where every key is there once."""
    # Keys of different hashes are different: a number a row, not the words again.
    if frame.select(key).hash_rows().n_unique() == len(frame):
        return frame
    return frame.unique(key, keep="first", maintain_order=True)


def beside(rows: pl.DataFrame, cells: pl.DataFrame, key: Sequence[str]) -> pl.DataFrame:
    """`rows.join(cells, key, "left")` in the order of `rows`; `cells` has every key once. Nothing
    is copied where both hold the same keys in the same order, as cells of merged parts do."""
    if len(rows) == len(cells) and all(
        rows[name].equals(cells[name], null_equal=False) for name in key
    ):
        return rows.hstack(cells.drop(key))
    return rows.join(cells, on=list(key), how="left", maintain_order="left")


def _plain(column: pl.Series) -> list[bytes]:
    """The values of a column as bytes: which are null, then numbers, or the lengths of texts and
    the texts."""
    nulls = np.packbits(column.is_null().to_numpy()).tobytes()
    kind = column.dtype
    if kind.is_nested() or kind.is_temporal() or kind.is_decimal():
        return [nulls, repr(column.to_list()).encode()]
    if kind == pl.Boolean:
        return [nulls, np.packbits(column.fill_null(False).to_numpy()).tobytes()]
    if kind.is_numeric():
        numbers = column.fill_null(0).to_numpy()
        return [nulls, numbers.astype(numbers.dtype.newbyteorder("<")).tobytes()]
    texts = column.cast(pl.String).fill_null("")
    lengths = texts.str.len_bytes().to_numpy().astype("<u4").tobytes()
    return [nulls, lengths, texts.str.join("").item().encode()]
