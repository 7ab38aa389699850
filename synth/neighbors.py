"""Exact nearest neighbours of instructions in embedding space: the distance to the nearest, how many repeats, and the lowest similar id.

Distances are squared L2 of unit vectors, 2 - 2 cos, as in the original's FAISS index (gen_dis.py, threshold 0.05). Every pair is compared, by
symmetric blocks of 32-bit matrix products, and a block is reduced while it is in the cache: memory does not grow with the square of the rows.

Bitwise equal vectors are grouped before any product, so their distance is exactly 0 and they are counted whatever their number: in 32-bit
products 4 of 10 exact duplicates come out above 0, and the paper keeps what is `> 0`. That rule drops every copy; `min_similar_id = id` keeps one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from core.columns import FAILED, OK
from core.errors import UserError
from synth.embeddings import embed as embed

if TYPE_CHECKING:
    import torch

VERSION = 1
"""Part of the column's key."""

BLOCK = 1024
"""Rows and columns of one block on a CPU (4 MB of products, which stay in the cache); larger on a GPU."""
GPU_BLOCK = 16384
ZERO = 1e-6
"""Distances below this are rounding and become 0."""


def neighbors(
    ids: Sequence[str], vectors: NDArray[np.float32], threshold: float = 0.05, *, gpu: bool | None = None, block: int | None = None
) -> pl.DataFrame:
    """Nearest neighbours among all rows of a pool.

    `vectors`: float32 [n, d] of unit length, row k belonging to `ids[k]`. Returns, in the order of `ids`, [id, min_neighbor_distance (squared L2,
    0 to 4), repeat_count (others closer than `threshold`), min_similar_id (the first row in the order of `ids` that is closer than `threshold`,
    itself included), status, reason]. A pool of one row is a failed cell. `gpu`: default whether there is one.
    Raises UserError when a vector is not of unit length.
    """
    n = len(ids)
    if vectors.ndim != 2 or len(vectors) != n:
        raise UserError(f"{n} ids came with vectors of shape {vectors.shape}; every row needs one vector.")
    if n and not np.allclose(np.einsum("ij,ij->i", vectors, vectors), 1.0, atol=1e-3):
        raise UserError("a vector is not of unit length (or not finite); normalise the embeddings first.")
    if n < 2:
        lone = pl.DataFrame([(i, None, 0, i) for i in ids], schema=_SCHEMA, orient="row")
        return lone.with_columns(pl.lit(FAILED).alias("status"), pl.lit("the pool has no other row").alias("reason"))
    group, first, size = _groups(vectors)
    close = 1 - threshold / 2
    if gpu if gpu is not None else _has_gpu():
        nearest, repeats, lowest = _on_gpu(vectors[first], first, size, close, block or GPU_BLOCK, "cuda")
    else:
        nearest, repeats, lowest = _on_cpu(vectors[first], first, size, close, block or BLOCK)
    distance = np.clip(2 - 2 * nearest.astype(np.float64), 0, 4)
    distance[(size > 1) | (distance < ZERO)] = 0.0
    columns = {
        "id": list(ids),
        "min_neighbor_distance": distance[group],
        "repeat_count": (repeats + size - 1)[group] if threshold > 0 else np.zeros(n, np.int64),
        "min_similar_id": pl.Series(list(ids), dtype=pl.String).gather(lowest[group]),
    }
    return pl.DataFrame(columns, schema=_SCHEMA).with_columns(pl.lit(OK).alias("status"), pl.lit(None, pl.String).alias("reason"))


_SCHEMA: dict[str, Any] = {"id": pl.String, "min_neighbor_distance": pl.Float64, "repeat_count": pl.Int64, "min_similar_id": pl.String}


def _groups(vectors: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(group of each row, first row of each group, rows in each group), where a group is bitwise equal vectors, in order of first rows."""
    seen: dict[bytes, int] = {}
    group = np.empty(len(vectors), np.int64)
    for at, vector in enumerate(vectors + np.float32(0)):  # + 0: the two zeros are equal
        group[at] = seen.setdefault(vector.tobytes(), len(seen))
    _, first, size = np.unique(group, return_index=True, return_counts=True)
    return group, first.astype(np.int64), size.astype(np.int64)


Found = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]
"""For each distinct vector: the largest cosine to another, how many rows have a cosine above `close`, and the lowest row of those and its own."""


def _on_cpu(vectors: NDArray[np.float32], first: NDArray[np.int64], size: NDArray[np.int64], close: float, side: int) -> Found:
    """Blocks by numpy: its OpenBLAS beats torch's MKL on AMD, and torch's threads, which spin, would stand in its way."""
    n = len(vectors)
    nearest, repeats, lowest = np.full(n, -2, np.float32), np.zeros(n, np.int64), first.copy()
    room = np.empty(side * side, np.float32)

    def fold(cosines: NDArray[np.float32], a: slice, b: slice) -> None:
        best = cosines.max(axis=1)
        np.maximum(nearest[a], best, out=nearest[a])
        hit = np.flatnonzero(best > close)  # few rows have a repeat in a given block: only those are looked at again
        if len(hit):
            near = cosines[hit] > close
            repeats[hit + a.start] += near @ size[b]
            lowest[hit + a.start] = np.minimum(lowest[hit + a.start], np.where(near, first[b], n * 2**31).min(axis=1))

    for top in range(0, n, side):
        a = slice(top, min(top + side, n))
        for left in range(top, n, side):
            b = slice(left, min(left + side, n))
            cosines = room[: (a.stop - a.start) * (b.stop - b.start)].reshape(a.stop - a.start, -1)
            np.matmul(vectors[a], vectors[b].T, out=cosines)
            if top == left:
                np.fill_diagonal(cosines, -2)
            else:
                fold(cosines.T, b, a)
            fold(cosines, a, b)
    return nearest, repeats, lowest


def _on_gpu(vectors: NDArray[np.float32], first: NDArray[np.int64], size: NDArray[np.int64], close: float, side: int, device: str) -> Found:
    """The same blocks by torch. 32-bit products stay 32-bit: TF32 is off unless someone turned it on."""
    import torch

    n = len(vectors)
    held = torch.from_numpy(np.ascontiguousarray(vectors)).to(device)
    rows, rank = torch.from_numpy(size).to(device), torch.from_numpy(first).to(device)
    nearest, repeats, lowest = torch.full((n,), -2.0, device=device), torch.zeros(n, dtype=torch.int64, device=device), rank.clone()

    def fold(cosines: torch.Tensor, a: slice, b: slice) -> None:
        best = cosines.amax(dim=1)
        torch.maximum(nearest[a], best, out=nearest[a])
        hit = (best > close).nonzero().squeeze(1)
        if len(hit):
            near = cosines[hit] > close
            repeats[hit + a.start] += (near * rows[b]).sum(dim=1)
            lowest[hit + a.start] = torch.minimum(lowest[hit + a.start], torch.where(near, rank[b], n * 2**31).amin(dim=1))

    for top in range(0, n, side):
        a = slice(top, min(top + side, n))
        for left in range(top, n, side):
            b = slice(left, min(left + side, n))
            cosines = held[a] @ held[b].T
            if top == left:
                cosines.fill_diagonal_(-2.0)
            else:
                fold(cosines.T, b, a)
            fold(cosines, a, b)
    return nearest.cpu().numpy(), repeats.cpu().numpy(), lowest.cpu().numpy()


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())
