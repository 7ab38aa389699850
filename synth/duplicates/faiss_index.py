"""Neighbours by an inverted-file index: for pools past what comparing every pair can do, with what
it finds measured against exact search.

FAISS clusters the vectors into lists, each row looks only into the few lists whose centres are
nearest to it, at vectors of 8 bits a coordinate, and the cosines of what it finds there are
computed afresh in 32 bit. So distances are exact, but a nearest neighbour in another list is
missed.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.errors import UserError
from synth.duplicates.all_pairs import NONE, Found, cosines_of
from synth.duplicates.blocks import Ints, Rows, slices

NEIGHBORS = 32
"""Neighbours that the index gives for a row; a row with that many repeats is asked again for all of
them."""
TRAINED = 64
"""Vectors a list that the centres are trained on."""
FEWEST = 39
"""Vectors a list below which FAISS warns that it cannot train."""
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
            f"of {self.rows:,} rows compared with exact search, {self.nearest:.1%} have their "
            f"exact distance (mean error {self.error:.2g}), {self.close:.1%} of those with a "
            f"repeat are known to have one, and {self.repeats:.1%} of all repeats were counted"
        )


def search(rows: Rows, width: int, found: Found, probes: int) -> Recall:
    """Fold each vector's neighbours that the index finds into `found`. `rows` reads vectors,
    float32 [m, `width`]; `probes`: lists a row looks into.

    Raises UserError when faiss is not installed.
    """
    count = len(found.rank)
    index = _index(rows, width, count, probes)
    for part in slices(count, SLICE):
        own = np.arange(part.start, part.stop)
        asked = np.ascontiguousarray(rows(part))
        _, places = index.search(asked, min(NEIGHBORS + 1, count))
        i, j = _others(np.repeat(own, places.shape[1]), places.reshape(-1))
        cosines = cosines_of(rows, i, j)
        close = i[cosines > found.close] - part.start
        repeats = np.bincount(close, minlength=len(own))
        full = np.flatnonzero(repeats >= NEIGHBORS)
        if len(full):
            # there may be more than were given: those rows are asked again for all within reach
            limits, _, places = index.range_search(asked[full], found.close - MARGIN)
            more, others = _others(np.repeat(own[full], np.diff(limits.astype(int))), places)
            kept = repeats[i - part.start] < NEIGHBORS
            i, j = np.append(i[kept], more), np.append(j[kept], others)
            cosines = np.append(cosines[kept], cosines_of(rows, more, others))
        found.pairs(i, j, cosines)
        # the other row may not have found this one; it is nearer than what it did find, or is it
        found.pairs(j, i, cosines, counted=False)
    return _recall(rows, found)


def _others(i: Ints, places: Ints) -> tuple[Ints, Ints]:
    """Pairs with what was found for each; not with itself, nor with the -1 of a list too short."""
    real = (places >= 0) & (places != i)
    return i[real], places[real].astype(np.int64)


def installed() -> bool:
    """Whether faiss is there; it is not imported."""
    return importlib.util.find_spec("faiss") is not None


def absent(count: int) -> UserError:
    """What to do about so many distinct vectors without faiss."""
    return UserError(
        f"the pool has {count:,} distinct instructions, more than "
        "synth.tags.neighbors.exact_up_to, and there is no GPU to compare them all on; install "
        "faiss (pip install faiss-cpu) for an approximate search, or raise that limit for an exact "
        "one."
    )


def _index(rows: Rows, width: int, count: int, probes: int) -> Any:
    """The index over all vectors. Raises UserError when faiss is not installed."""
    if not installed():
        raise absent(count)
    import faiss

    lists = max(1, min(int(4 * count**0.5), count // FEWEST))
    by_residual = False
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(width),
        width,
        lists,
        faiss.ScalarQuantizer.QT_8bit,
        faiss.METRIC_INNER_PRODUCT,
        by_residual,
    )
    sample = np.random.default_rng(0).choice(count, min(count, lists * TRAINED), replace=False)
    index.train(np.ascontiguousarray(rows(np.sort(sample))))
    for part in slices(count, SLICE):
        index.add(np.ascontiguousarray(rows(part)))
    index.nprobe = min(probes, lists)
    return index


def _recall(rows: Rows, found: Found) -> Recall:
    """Compare a sample of rows with every row."""
    count, size = len(found.rank), found.size.numpy()
    draw = np.random.default_rng(1)  # not that of the training sample
    sample = np.sort(draw.choice(count, min(SAMPLE, count), replace=False))
    asked = rows(sample)
    nearest = np.full(len(sample), NONE, np.float32)
    repeats = np.zeros(len(sample), np.int64)
    for part in slices(count, SLICE):
        cosines = asked @ rows(part).T
        inside = np.flatnonzero((sample >= part.start) & (sample < part.stop))
        cosines[inside, sample[inside] - part.start] = NONE  # with itself
        np.maximum(nearest, cosines.max(axis=1), out=nearest)
        repeats += (cosines > found.close) @ size[part]
    error = 2 * (nearest - found.nearest.numpy()[sample]).astype(np.float64)
    counted = found.repeats.numpy()[sample]
    close = repeats > 0
    known_close = known_repeats = 1.0
    if close.any():
        known_close = float((counted[close] > 0).mean())
        known_repeats = float(np.minimum(counted, repeats).sum() / repeats.sum())
    exact = float((error < 1e-5).mean())
    mean_error = float(np.maximum(error, 0).mean())
    return Recall(len(sample), exact, known_close, known_repeats, mean_error)
