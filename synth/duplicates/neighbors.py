"""Nearest neighbours of instructions in embedding space: the distance to the nearest, how many
repeats, the lowest similar id, and groups.

Distances are squared L2 of unit vectors, 2 - 2 cos, as in the original's FAISS index (gen_dis.py,
threshold 0.05). Every pair is compared, and reduced while it is in the cache
(synth/duplicates/all_pairs.py), so memory does not grow with the square of the rows. Past a stated
size, where there is no GPU, an inverted-file index looks only where neighbours are likely, and its
recall is measured (synth/duplicates/faiss_index.py).

Bitwise equal vectors are grouped before any product, so their distance is exactly 0 and they are
counted whatever their number: in 32-bit products 4 of 10 exact duplicates come out above 0, and the
paper keeps what is `> 0`. That rule drops every copy; `NOT near_duplicate` (which is min_similar_id
= id) keeps one. "Closer than the threshold" is not transitive, so how many rows that keeps depends
on their order; `NOT neighbor_group_duplicate` keeps one row of each connected group, and the groups
are the same in any order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl

from core.columns import FAILED, OK
from core.errors import UserError
from synth.config.tags import NeighborsConfig
from synth.duplicates import all_pairs, faiss_index
from synth.duplicates.all_pairs import Found
from synth.duplicates.blocks import Floats, Ints, Vectors, slices

VERSION = 2
"""Part of the column's key."""

ZERO = 1e-6
"""Distances below this are rounding and become 0."""
SLICE = 8192
DEFAULTS = NeighborsConfig()

FIELDS: dict[str, Any] = {
    "min_neighbor_distance": pl.Float64,
    "repeat_count": pl.Int64,
    "min_similar_id": pl.String,
    "neighbor_group": pl.String,
    "neighbor_group_size": pl.Int64,
    "neighbor_group_duplicate": pl.Boolean,
    "neighbor_recall": pl.Float64,
}
"""Columns of the measure. `neighbor_recall` is 1 where the search was exact, else what was measured
of this search (the same for every row)."""


def neighbors(
    ids: Sequence[str],
    vectors: Vectors,
    settings: NeighborsConfig = DEFAULTS,
    *,
    device: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> pl.DataFrame:
    """Nearest neighbours among all rows of a pool.

    `vectors`: float32 [n, d] of unit length, row k belonging to `ids[k]`; a memory map is read in
    slices. Returns, in the order of `ids`, [id, min_neighbor_distance (squared L2, 0 to 4),
    repeat_count (others closer than `threshold`), min_similar_id (the first row in the order of
    `ids` that is closer than `threshold`, itself included), neighbor_group (the first row of those
    connected to it by such pairs), neighbor_group_size (rows), neighbor_group_duplicate (whether it
    is not that first row), neighbor_recall, status, reason]. On the processor, more than
    `exact_up_to` distinct vectors are searched by an index with `probes` lists a row; what was
    measured of it goes to `say` in one line. A pool of one row is a failed cell. `device`: of
    torch, default a GPU where there is one, which compares every pair whatever their number. Raises
    UserError when a vector is not of unit length, or when the index is wanted and faiss is not
    installed.
    """
    _check(len(ids), vectors)
    names = pl.Series("id", ids, dtype=pl.String)
    if len(ids) < 2:
        empty = [pl.lit(None, dtype).alias(name) for name, dtype in FIELDS.items()]
        lone = names.to_frame().with_columns(empty)
        return _with_status(lone, FAILED, "the pool has no other row")
    group, first, size = _groups(vectors)

    def rows(at: slice | Ints) -> Vectors:
        return np.asarray(vectors[at if len(first) == len(ids) else first[at]])

    close = 1 - settings.threshold / 2  # as a cosine
    recall = 1.0
    device = device or default_device()
    if by_index(len(first), settings, device):
        found = Found(size, first, close)
        measured = faiss_index.search(rows, vectors.shape[1], found, settings.probes)
        recall = measured.nearest
        lists = f"by an index with {settings.probes} lists a row"
        say(f"neighbours of {len(first):,} distinct rows {lists}: {measured}")
    else:
        found = Found(size, first, close, device)
        all_pairs.search(rows, vectors.shape[1], found, device=device)
    own, ones = np.arange(len(ids)), np.ones(len(ids), np.int64)
    repeats, lowest, leader, members = ones - 1, own, own, ones
    if settings.threshold > 0:  # at 0 nothing is closer, a copy included
        label = found.groups()
        repeats = (found.repeats.cpu().numpy() + size - 1)[group]
        lowest = found.lowest.cpu().numpy()[group]
        leader = first[label][group]
        members = np.bincount(label, size, len(first)).astype(np.int64)[label][group]
    columns = {
        "id": names,
        "min_neighbor_distance": _distances(found, size)[group],
        "repeat_count": repeats,
        "min_similar_id": names.gather(lowest),
        "neighbor_group": names.gather(leader),
        "neighbor_group_size": members,
        "neighbor_group_duplicate": leader != own,
        "neighbor_recall": np.full(len(ids), recall),
    }
    return _with_status(pl.DataFrame(columns, schema={"id": pl.String, **FIELDS}), OK, None)


def _check(count: int, vectors: Vectors) -> None:
    if vectors.ndim != 2 or len(vectors) != count:
        raise UserError(
            f"{count} ids came with vectors of shape {vectors.shape}; every row needs one vector."
        )
    for part in slices(count, SLICE):
        lengths = np.einsum("ij,ij->i", vectors[part], vectors[part])
        if not np.allclose(lengths, 1.0, atol=1e-3):
            raise UserError(
                "a vector is not of unit length (or not finite); normalise the embeddings first."
            )


def _with_status(frame: pl.DataFrame, status: str, reason: str | None) -> pl.DataFrame:
    return frame.with_columns(
        pl.lit(status).alias("status"), pl.lit(reason, pl.String).alias("reason")
    )


def _distances(found: Found, size: Ints) -> Floats:
    """Squared L2 distance of each distinct vector to its nearest; 0 where several rows hold it."""
    cosines = found.nearest.cpu().numpy().astype(np.float64)
    distances = np.clip(2 - 2 * cosines, 0, 4)
    distances[(size > 1) | (distances < ZERO)] = 0.0
    return distances


def _groups(vectors: Vectors) -> tuple[Ints, Ints, Ints]:
    """(group of each row, first row of each group, rows in each group), where a group is bitwise
    equal vectors, in order of first rows."""
    digests = bytearray()
    for part in slices(len(vectors), SLICE):
        for vector in vectors[part] + np.float32(0):  # + 0: the two zeros are equal
            digests += hashlib.blake2b(vector.data, digest_size=16).digest()
    # 16 bytes as two columns: Python's own bytes objects would take four times the memory
    halves = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    rows = pl.DataFrame(halves, schema=["high", "low"]).with_row_index("row")
    by_digest = rows.group_by("high", "low", maintain_order=True)
    groups = by_digest.agg(pl.first("row"), pl.len()).with_row_index("group")
    numbered = groups.drop("row", "len")
    group = rows.join(numbered, on=["high", "low"], how="left", maintain_order="left")["group"]
    return _ints(group), _ints(groups["row"]), _ints(groups["len"])


def _ints(series: pl.Series) -> Ints:
    return series.cast(pl.Int64).to_numpy(writable=True)  # as torch wants them


def by_index(distinct: int, settings: NeighborsConfig, device: str) -> bool:
    """Whether so many distinct vectors are searched by an index: on a GPU every pair is compared in
    seconds (1M x 768), on the processor in hours."""
    return device == "cpu" and distinct > settings.exact_up_to


def check_index(distinct: int, settings: NeighborsConfig, device: str | None = None) -> None:
    """Raise UserError where so many distinct texts need an index that is not installed: before they
    are embedded."""
    if distinct <= settings.exact_up_to or faiss_index.installed():
        return
    if by_index(distinct, settings, device or default_device()):
        raise faiss_index.absent(distinct)


def default_device() -> str:
    """The device of torch that the search runs on: a GPU where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
