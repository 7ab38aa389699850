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

if TYPE_CHECKING:
    import torch

VERSION = 1
"""Part of the column's key."""

BLOCK = 2048
"""Rows and columns of one block on a CPU (16 MB of products); larger on a GPU."""
GPU_BLOCK = 16384
ZERO = 1e-6
"""Distances below this are rounding and become 0."""


def embed(texts: Sequence[str], model_path: str, batch: int = 64, device: str | None = None) -> NDArray[np.float32]:
    """Unit vectors of texts, float32 [len(texts), dimensions], by a sentence-transformers model (a folder or hub id).

    Equal texts are embedded once, so their vectors are bitwise equal. `batch` is texts at a time; the model cuts texts at its own
    max_seq_length in tokens (256 for MiniLM, 384 for mpnet). Raises UserError when the model cannot be loaded.
    """
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(model_path, device=device, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"the embedding model {model_path} cannot be loaded: {str(error).splitlines()[0]}") from error
    distinct = list(dict.fromkeys(texts))
    raw = model.encode(distinct, batch_size=batch, convert_to_numpy=True, show_progress_bar=False).astype(np.float64)
    raw /= np.linalg.norm(raw, axis=1, keepdims=True)
    place = {text: at for at, text in enumerate(distinct)}
    vectors: NDArray[np.float32] = raw.astype(np.float32)[[place[text] for text in texts]]
    return vectors


def neighbors(
    ids: Sequence[str], vectors: NDArray[np.float32], threshold: float = 0.05, *, device: str | None = None, block: int | None = None
) -> pl.DataFrame:
    """Nearest neighbours among all rows of a pool.

    `vectors`: float32 [n, d] of unit length, row k belonging to `ids[k]`. Returns, in the order of `ids`, [id, min_neighbor_distance (squared L2,
    0 to 4), repeat_count (others closer than `threshold`), min_similar_id (the first row in the order of `ids` that is closer than `threshold`,
    itself included), status, reason]. A pool of one row is a failed cell. `device`: a torch device; default a GPU where there is one.
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
    nearest, repeats, lowest = _blocks(vectors[first], first, size, 1 - threshold / 2, device, block)
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


def _blocks(
    vectors: NDArray[np.float32], first: NDArray[np.int64], size: NDArray[np.int64], close: float, device: str | None, block: int | None
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """For each distinct vector: the largest cosine to another, how many rows have a cosine above `close`, and the lowest row of those and its own."""
    import torch

    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    side = block or (BLOCK if where.type == "cpu" else GPU_BLOCK)
    n = len(vectors)
    all_ = torch.from_numpy(np.ascontiguousarray(vectors)).to(where)
    rows_of = torch.from_numpy(size).to(where)
    rank = torch.from_numpy(first).to(where)
    nearest = torch.full((n,), -2.0, device=where)
    repeats = torch.zeros(n, dtype=torch.int64, device=where)
    lowest = rank.clone()
    room = torch.empty(side * side, device=where)
    for top in range(0, n, side):
        a = slice(top, min(top + side, n))
        for left in range(top, n, side):
            b = slice(left, min(left + side, n))
            shape = (a.stop - a.start, b.stop - b.start)
            cosines = room[: shape[0] * shape[1]].view(shape)
            torch.mm(all_[a], all_[b].T, out=cosines)
            if top == left:
                cosines.fill_diagonal_(-2.0)
            _reduce(cosines, a, b, nearest, repeats, lowest, rows_of, rank, close)
            if top != left:
                _reduce(cosines.T, b, a, nearest, repeats, lowest, rows_of, rank, close)
    return nearest.cpu().numpy(), repeats.cpu().numpy(), lowest.cpu().numpy()


def _reduce(
    cosines: torch.Tensor, a: slice, b: slice, nearest: torch.Tensor, repeats: torch.Tensor, lowest: torch.Tensor,
    rows_of: torch.Tensor, rank: torch.Tensor, close: float,
) -> None:  # fmt: skip
    """Fold one block of cosines (rows `a` against rows `b`) into what is known of rows `a`."""
    import torch

    best = cosines.amax(dim=1)
    torch.maximum(nearest[a], best, out=nearest[a])
    hit = (best > close).nonzero().squeeze(1)  # few rows have a repeat in a given block: only those are looked at again
    if len(hit) == 0:
        return
    near = cosines[hit] > close
    at = hit + a.start
    repeats[at] += (near * rows_of[b]).sum(dim=1)
    lowest[at] = torch.minimum(lowest[at], torch.where(near, rank[b], torch.iinfo(torch.int64).max).amin(dim=1))
