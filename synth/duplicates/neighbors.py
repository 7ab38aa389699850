"""Nearest neighbours of instructions in embedding space: the distance to the nearest, how many
repeats, the lowest similar id, and groups.

Distances are squared L2 of unit vectors, 2 - 2 cos, as in the original's FAISS index (gen_dis.py,
threshold 0.05). Every pair is compared, and reduced while it is in the cache
(synth/duplicates/all_pairs.py), so memory does not grow with the square of the rows; past a stated
size an inverted-file index looks only where neighbours are likely, and its recall is measured
(synth/duplicates/faiss_index.py).

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
from numpy.typing import NDArray

from core.columns import FAILED, OK
from core.errors import UserError
from synth.duplicates import all_pairs, faiss_index

VERSION = 2
"""Part of the column's key."""

ZERO = 1e-6
"""Distances below this are rounding and become 0."""
EXACT_UP_TO = 2_000_000
SLICE = 8192

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
    vectors: NDArray[np.float32],
    threshold: float = 0.05,
    *,
    exact_up_to: int = EXACT_UP_TO,
    probes: int = faiss_index.PROBES,
    device: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> pl.DataFrame:
    """Nearest neighbours among all rows of a pool.

    `vectors`: float32 [n, d] of unit length, row k belonging to `ids[k]`; a memory map is read in
    slices. Returns, in the order of `ids`, [id, min_neighbor_distance (squared L2, 0 to 4),
    repeat_count (others closer than `threshold`), min_similar_id (the first row in the order of
    `ids` that is closer than `threshold`, itself included), neighbor_group (the first row of those
    connected to it by such pairs), neighbor_group_size (rows), neighbor_group_duplicate (whether it
    is not that first row), neighbor_recall, status, reason]. More than `exact_up_to` distinct
    vectors are searched by an index with `probes` lists a row; what was measured of it goes to
    `say` in one line. A pool of one row is a failed cell. `device`: of torch, default a GPU where
    there is one. Raises UserError when a vector is not of unit length, or when the index is wanted
    and faiss is not installed.
    """
    n = len(ids)
    if vectors.ndim != 2 or len(vectors) != n:
        raise UserError(
            f"{n} ids came with vectors of shape {vectors.shape}; every row needs one vector."
        )
    for top in range(0, n, SLICE):
        part = vectors[top : top + SLICE]
        if not np.allclose(np.einsum("ij,ij->i", part, part), 1.0, atol=1e-3):
            raise UserError(
                "a vector is not of unit length (or not finite); normalise the embeddings first."
            )
    names = pl.Series("id", ids, dtype=pl.String)
    if n < 2:
        lone = names.to_frame().with_columns(
            pl.lit(None, dtype).alias(name) for name, dtype in FIELDS.items()
        )
        return lone.with_columns(
            pl.lit(FAILED).alias("status"), pl.lit("the pool has no other row").alias("reason")
        )
    group, first, size = _groups(vectors)

    def rows(at: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = np.asarray(vectors[at if len(first) == n else first[at]])
        return found

    recall, close = 1.0, 1 - threshold / 2
    if len(first) > exact_up_to:
        found = all_pairs.Found(size, first, close)
        measured = faiss_index.search(rows, vectors.shape[1], found, probes)
        recall = measured.nearest
        say(
            f"neighbours of {len(first):,} distinct rows by an index with {probes} lists a row: {measured}"
        )
    else:
        where = device or ("cuda" if _has_gpu() else "cpu")
        found = all_pairs.Found(size, first, close, where)
        all_pairs.search(rows, vectors.shape[1], found, device=where)
    distance = np.clip(2 - 2 * found.nearest.cpu().numpy().astype(np.float64), 0, 4)
    distance[(size > 1) | (distance < ZERO)] = 0.0
    own, label = np.arange(n), found.groups()
    near = threshold > 0  # at 0 nothing is closer, a copy included
    leader = first[label][group] if near else own
    columns = {
        "min_neighbor_distance": distance[group],
        "repeat_count": (found.repeats.cpu().numpy() + size - 1)[group]
        if near
        else np.zeros(n, np.int64),
        "min_similar_id": names.gather(found.lowest.cpu().numpy()[group] if near else own),
        "neighbor_group": names.gather(leader),
        "neighbor_group_size": np.bincount(label, size, len(first))[label][group].astype(np.int64)
        if near
        else np.ones(n, np.int64),
        "neighbor_group_duplicate": leader != own,
        "neighbor_recall": np.full(n, recall),
    }
    frame = pl.DataFrame({"id": names, **columns}, schema={"id": pl.String, **FIELDS})
    return frame.with_columns(pl.lit(OK).alias("status"), pl.lit(None, pl.String).alias("reason"))


def _groups(
    vectors: NDArray[np.float32],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(group of each row, first row of each group, rows in each group), where a group is bitwise
    equal vectors, in order of first rows."""
    digests = bytearray()
    for top in range(0, len(vectors), SLICE):
        part = vectors[top : top + SLICE] + np.float32(0)  # + 0: the two zeros are equal
        for vector in part:
            digests += hashlib.blake2b(vector.data, digest_size=16).digest()
    halves = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    # stable: the first row of a group comes first in it
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    begins = np.flatnonzero(
        np.concatenate([[True], (halves[order][1:] != halves[order][:-1]).any(axis=1)])
    )
    first = order[begins]
    size = np.diff(np.append(begins, len(order)))
    by_first = np.argsort(first)
    number = np.empty(len(first), np.int64)
    number[by_first] = np.arange(len(first))
    group = np.empty(len(order), np.int64)
    group[order] = np.repeat(number, size)
    return group, first[by_first], size[by_first]


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())
