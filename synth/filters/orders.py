"""Set functions of `choose`, on arrays: which rows are taken first. Each gives positions, best
first; a budget takes from the front.

What is greedy (`farthest_first`, `unlike`) comes in batches, so that a budget stops it; memory is a
few numbers a row besides the vectors, which are read in blocks. Ties go by a hash of the id that is
the same on every machine (`hash_rank`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

Positions = NDArray[np.int64]
Vectors = NDArray[np.float32]

BLOCK = 8192
"""Rows whose products with the chosen ones are in memory at once."""
CANDIDATES = 2048
"""Farthest rows among which the next centers are looked for before every row is measured again."""
ZERO = 1e-6
"""Squared distances below this are rounding and count as 0 (as in
synth/duplicates/neighbors.py)."""

_GAMMA, _FIRST, _SECOND = (
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xBF58476D1CE4E5B9),
    np.uint64(0x94D049BB133111EB),
)


def hash_rank(ids: Iterable[str], seed: int | str) -> pl.Series:
    """A fixed pseudo-random number per id (u64), the same on every machine and for every pool that
    holds the id.

    splitmix64 (Steele et al. 2014) chained over the 8-byte little-endian words of the UTF-8 text,
    zeros behind the end, then its length in bytes; it starts from the same of the seed's text. Not
    polars' own hash, which may change between versions.
    """
    start = _chained(pl.Series([str(seed)], dtype=pl.String), np.zeros(1, np.uint64))
    series = ids if isinstance(ids, pl.Series) else pl.Series(list(ids), dtype=pl.String)
    return pl.Series(_chained(series, np.repeat(start, len(series))))


def _chained(texts: pl.Series, hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64 over the words of each text, from the given start."""
    lengths = texts.str.len_bytes().to_numpy().astype(np.int64)
    joined = texts.str.join("").item() if len(texts) else ""
    data = np.frombuffer(joined.encode() + bytes(8), np.uint8)
    words: NDArray[np.uint64] = np.ndarray(
        (len(data) - 7,), "<u8", data, strides=(1,)
    )  # the word that begins at each byte
    starts = np.cumsum(lengths) - lengths
    for at in range(0, int(lengths.max(initial=0)), 8):
        alive = lengths > at
        left = lengths[alive] - at
        word = words[starts[alive] + at]
        short = left < 8
        word[short] &= (np.uint64(1) << (8 * left[short]).astype(np.uint64)) - np.uint64(1)
        hashes[alive] = _mixed(hashes[alive] ^ word)
    return _mixed(hashes ^ lengths.astype(np.uint64))


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + _GAMMA
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


def by_hash(ids: pl.Series, seed: int | str) -> Positions:
    """Every position, in the pseudo-random order of this seed."""
    return _sorted(hash_rank(ids, seed).to_numpy())


def by_rank(values: pl.Series, ids: pl.Series, limit: int | None = None) -> Positions:
    """Positions by falling value (the first `limit`); nulls come last, ties go by hash of id.
    Ordered labels rank by their place."""
    numbers = values.to_physical().cast(pl.Float64).fill_null(-np.inf).to_numpy()
    places = np.arange(len(numbers))
    if limit is not None and 0 < limit < len(numbers):
        places = np.flatnonzero(
            numbers >= np.partition(numbers, len(numbers) - limit)[len(numbers) - limit]
        )
    ties = hash_rank(ids.gather(places), "ties").to_numpy()
    best: Positions = places[_sorted(ties, -numbers[places])][:limit]
    return best


def _sorted(*keys: NDArray[Any]) -> Positions:
    """Positions by rising keys, the last key first (`np.lexsort`)."""
    order: Positions = np.lexsort(keys)
    return order


def round_robin(groups: NDArray[Any], *, even: int = 0) -> Positions:
    """Positions so that every prefix holds equally many of each group, each group in the order
    given.

    `groups`: a number per row, ordering the groups within a round; rows below 0 belong to none and
    come last. A group that is used up leaves its share to the others; with `even` groups (0, 1,
    ...) everything ends as soon as one of them is used up.
    """
    grouped = np.argsort(groups, kind="stable")
    _, firsts, sizes = np.unique(groups[grouped], return_index=True, return_counts=True)
    nth = np.empty(len(groups), np.int64)
    nth[grouped] = np.arange(len(groups)) - np.repeat(firsts, sizes)
    outside = groups < 0
    nth[outside] += len(groups)
    order = _sorted(groups, nth)
    if even:
        order = order[: int(np.bincount(groups[~outside], minlength=even).min()) * even]
    return order


class Replayed:
    """Batches that are made once, as they are asked for, and can be read again from the first."""

    def __init__(self, make: Callable[[], Iterator[Positions]]) -> None:
        self._make = make
        self._made: list[Positions] = []
        self._rest: Iterator[Positions] | None = None

    def __iter__(self) -> Iterator[Positions]:
        self._rest = self._rest or self._make()
        for at in itertools.count():
            if at == len(self._made):
                fresh = next(self._rest, None)
                if fresh is None:
                    return
                self._made.append(fresh)
            yield self._made[at]


def farthest_first(vectors: Vectors, candidates: int = CANDIDATES) -> Iterator[Positions]:
    """Greedy k-center: the first row, then always the row that is farthest from all that were
    taken. Ends when every row is taken.

    `vectors`: unit, float32 [n, d], in the order that breaks ties. Exact, though not every row is
    measured at every step: taking a row only brings others nearer, so among the `candidates`
    farthest the next is right while it is farther than all others were (n k d products as one
    matrix product a round). Rows that are left at distance 0 come last, in order.
    """
    count = len(vectors)
    near = np.full(
        count, np.inf, np.float32
    )  # squared distance to the nearest that was taken; -1: taken
    taken = np.zeros(min(count, 1), np.int64)
    while len(taken):
        yield taken
        _approach(near, vectors, vectors[taken])
        near[taken] = -1
        some = _farthest(near, candidates)
        outside = np.ones(count, bool)
        outside[some] = False
        bound = near[outside].max(initial=-1)
        group, local = vectors[some], near[some].copy()
        if local.max(initial=-1) <= 0:
            rest = np.flatnonzero(near >= 0)
            if len(rest):
                yield rest
            return
        picked: list[int] = []
        best = int(local.argmax())
        while local[best] > 0 and (not picked or local[best] > bound):
            picked.append(best)
            np.minimum(local, _squared(group @ group[best]), out=local)
            local[best] = -1
            best = int(local.argmax())
        taken = some[picked]


def _approach(near: NDArray[np.float32], vectors: Vectors, centers: Vectors) -> None:
    """Lower every row's distance to that of the nearest of the new centers."""
    for top in range(0, len(vectors), BLOCK):
        part = near[top : top + BLOCK]
        for first in range(0, len(centers), CANDIDATES):
            products = vectors[top : top + BLOCK] @ centers[first : first + CANDIDATES].T
            np.minimum(part, _squared(products.max(axis=1)), out=part)


def _squared(cosine: NDArray[np.float32]) -> NDArray[np.float32]:
    distance = 2 - 2 * cosine
    return np.where(distance < ZERO, np.float32(0), distance)


def _farthest(near: NDArray[np.float32], count: int) -> Positions:
    """The `count` farthest rows in rising order of position; of equal ones the first."""
    if count >= len(near):
        return np.arange(len(near))
    edge = np.partition(near, len(near) - count)[len(near) - count]
    above = np.flatnonzero(near > edge)
    return np.sort(np.concatenate([above, np.flatnonzero(near == edge)[: count - len(above)]]))


def unlike(
    vectors: Callable[[int, int], Vectors], count: int, threshold: float
) -> Iterator[Positions]:
    """DEITA's greedy choice: rows in their order, each kept when its cosine to the nearest kept row
    is below `threshold`.

    `vectors(first, end)` gives the unit vectors of a slice of the rows, float32; only as many
    slices are asked for as are taken from.
    """
    kept: list[Vectors] = []
    top, size = 0, 1024
    while top < count:
        part = vectors(top, min(top + size, count))
        for first in range(0, len(part), 1024):
            block = part[first : first + 1024]
            alive = np.ones(len(block), bool)
            for other in kept:
                alive &= (block @ other.T).max(axis=1) < threshold
            products = block @ block.T
            for row in range(len(block)):
                if alive[row]:
                    alive[row + 1 :] &= products[row, row + 1 :] < threshold
            kept.append(np.ascontiguousarray(block[alive]))
            if len(kept) > 1 and len(kept[-2]) < BLOCK:
                kept[-2:] = [np.concatenate(kept[-2:])]
            yield top + first + np.flatnonzero(alive)
        top, size = top + size, min(2 * size, 16 * BLOCK)
