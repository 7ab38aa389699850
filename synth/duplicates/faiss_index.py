"""Neighbours by an inverted-file index: for pools past what comparing every pair can do, with what
it finds measured against exact search.

FAISS clusters the vectors into lists, each row looks only into the few lists whose centres are
nearest to it, at vectors of 8 bits a coordinate, and the cosines of what it finds there are
computed afresh in 32 bit. So distances are exact, but a nearest neighbour in another list is
missed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import UserError
from synth.duplicates.all_pairs import PAIRS, Found, Ints
from synth.duplicates.int8_bounds import Rows

PROBES = 32
"""Lists that a row looks into."""
NEIGHBORS = 32
"""Neighbours that the index gives for a row; a row with that many repeats is asked again for all of
them."""
TRAINED = 64
"""Vectors a list that the centres are trained on."""
SAMPLE = 1000
"""Rows whose exact neighbours are computed to measure recall."""
MARGIN = 0.02
"""How far a cosine of 8-bit coordinates may be from the true one; candidates further below the
threshold are not asked for."""
SLICE = 8192


@dataclass(frozen=True)
class Recall:
    """What the index found of a sample's exact neighbours. `nearest`: share of rows whose distance
    is the exact one (to 1e-5); `close`: share of the rows with a neighbour under the threshold for
    which one was found (1 when there are none); `repeats`: share of the neighbours under the
    threshold that were found; `error`: mean of found less exact distance."""

    rows: int
    nearest: float
    close: float
    repeats: float
    error: float

    def __str__(self) -> str:
        return (
            f"of {self.rows:,} rows compared with exact search, {self.nearest:.1%} have their exact distance (mean error {self.error:.2g}),"
            f" {self.close:.1%} of those with a repeat are known to have one, and {self.repeats:.1%} of all repeats were counted"
        )


def search(rows: Rows, width: int, found: Found, probes: int = PROBES) -> Recall:
    """Fold each vector's neighbours that the index finds. `rows` reads vectors, float32 [m,
    `width`]; `probes`: lists a row looks into.

    Raises UserError when faiss is not installed.
    """
    n = len(found.rank)
    index = _index(rows, width, n, probes)
    for top in range(0, n, SLICE):
        own = np.arange(top, min(top + SLICE, n))
        asked = np.ascontiguousarray(rows(slice(top, top + len(own))))
        _, places = index.search(asked, min(NEIGHBORS + 1, n))
        i, j = np.repeat(own, places.shape[1]), places.reshape(-1).astype(np.int64)
        real = (j >= 0) & (j != i)
        i, j = i[real], j[real]
        cosines = _cosines(rows, i, j)
        near = np.bincount(i[cosines > found.close] - top, minlength=len(own))
        full = np.flatnonzero(near >= NEIGHBORS)
        if len(full):
            kept = near[i - top] < NEIGHBORS
            limits, _, places = index.range_search(asked[full], found.close - MARGIN)
            more, other = (
                np.repeat(own[full], np.diff(limits.astype(np.int64))),
                places.astype(np.int64),
            )
            more, other = more[other != more], other[other != more]
            i, j, cosines = (
                np.concatenate([i[kept], more]),
                np.concatenate([j[kept], other]),
                np.append(cosines[kept], _cosines(rows, more, other)),
            )
        found.pairs(i, j, cosines)
        found.pairs(j, i, cosines, counted=False)
    return _recall(rows, found)


def _index(rows: Rows, width: int, n: int, probes: int) -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            f"the pool has {n:,} distinct instructions, more than synth.tags.neighbors.exact_up_to; install faiss (pip install faiss-cpu) for an"
            " approximate search, or raise that limit for an exact one."
        ) from error
    lists = max(1, min(int(4 * n**0.5), n // 39))  # FAISS wants 39 vectors a list to train on
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(width),
        width,
        lists,
        faiss.ScalarQuantizer.QT_8bit,
        faiss.METRIC_INNER_PRODUCT,
        False,
    )
    sample = np.random.default_rng(0).choice(n, min(n, lists * TRAINED), replace=False)
    index.train(np.ascontiguousarray(rows(np.sort(sample))))
    for top in range(0, n, SLICE):
        index.add(np.ascontiguousarray(rows(slice(top, min(top + SLICE, n)))))
    index.nprobe = min(probes, lists)
    return index


def _cosines(rows: Rows, i: Ints, j: Ints) -> NDArray[np.float32]:
    cosines = np.empty(len(i), np.float32)
    for top in range(0, len(i), PAIRS):
        part = slice(top, top + PAIRS)
        np.einsum("ij,ij->i", rows(i[part]), rows(j[part]), out=cosines[part])
    return cosines


def _recall(rows: Rows, found: Found) -> Recall:
    """Compare a sample of rows with every row."""
    n = len(found.rank)
    sample = np.sort(np.random.default_rng(1).choice(n, min(SAMPLE, n), replace=False))
    asked, size = rows(sample), found.size.numpy()
    nearest, repeats = np.full(len(sample), -2.0, np.float32), np.zeros(len(sample), np.int64)
    for top in range(0, n, SLICE):
        part = slice(top, min(top + SLICE, n))
        cosines = asked @ rows(part).T
        inside = np.flatnonzero((sample >= top) & (sample < part.stop))
        cosines[inside, sample[inside] - top] = -2
        np.maximum(nearest, cosines.max(axis=1), out=nearest)
        repeats += (cosines > found.close) @ size[part]
    error = 2 * (nearest - found.nearest.numpy()[sample]).astype(np.float64)
    counted = found.repeats.numpy()[sample]
    close = repeats > 0
    return Recall(
        len(sample),
        float((error < 1e-5).mean()),
        float((counted[close] > 0).mean()) if close.any() else 1.0,
        float(np.minimum(counted, repeats).sum() / repeats.sum()) if close.any() else 1.0,
        float(np.maximum(error, 0).mean()),
    )
