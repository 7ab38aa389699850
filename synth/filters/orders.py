"""Set functions of `choose`, on arrays: which rows are taken first. Each gives positions, best
first; a budget takes from the front.

What is greedy (`farthest_first`, `unlike`) comes in batches, so that a budget stops it; memory is a
few numbers a row besides the vectors, which are read in blocks. Ties go by a hash of the id that is
the same on every machine (`hash_rank`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

Positions = NDArray[np.int64]
Vectors = NDArray[np.float32]
Hashes = NDArray[np.uint64]

BLOCK = 8192
"""Rows whose products with the chosen ones are in memory at once."""
CANDIDATES = 2048
"""Farthest rows among which the next centers are looked for before every row is measured again."""
STEP = 1024
"""Rows of a greedy choice that are compared with each other at once."""
ZERO = 1e-6
"""Squared distances below this are rounding and count as 0 (as in
synth/duplicates/neighbors.py)."""

BINS = 20
"""Bins of value that a control is matched by."""

GAMMA, FIRST, SECOND = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], "u8")
"""The constants of splitmix64."""
WORD = 8
"""Bytes in a word that is hashed at once."""


def hash_rank(ids: Iterable[str], seed: int | str) -> pl.Series:
    """A fixed pseudo-random number per id (u64), the same on every machine and for every pool that
    holds the id.

    splitmix64 (Steele et al. 2014) chained over the 8-byte little-endian words of the UTF-8 text,
    zeros behind the end, then its length in bytes; it starts from the same of the seed's text. Not
    polars' own hash, which may change between versions.
    """
    start = _chained(pl.Series([str(seed)]), np.zeros(1, np.uint64))
    texts = ids if isinstance(ids, pl.Series) else pl.Series("id", list(ids), dtype=pl.String)
    return pl.Series(_chained(texts, np.repeat(start, len(texts))))


def _chained(texts: pl.Series, hashes: Hashes) -> Hashes:
    """splitmix64 over the words of each text, from the given start."""
    lengths = texts.str.len_bytes().to_numpy().astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    data = texts.str.join("").item().encode() + bytes(WORD)
    # the word that begins at each byte
    words: Hashes = np.ndarray((len(data) - WORD + 1,), "<u8", data, strides=(1,))
    for at in range(0, int(lengths.max(initial=0)), WORD):
        alive = lengths > at
        left = lengths[alive] - at
        word = words[starts[alive] + at]
        # a last word that is short reaches into the next text: those bytes become zeros
        short = left < WORD
        bits = (8 * left[short]).astype(np.uint64)
        word[short] &= (np.uint64(1) << bits) - np.uint64(1)
        hashes[alive] = _mixed(hashes[alive] ^ word)
    return _mixed(hashes ^ lengths.astype(np.uint64))


def _mixed(x: Hashes) -> Hashes:
    x = x + GAMMA
    x = (x ^ (x >> np.uint64(30))) * FIRST
    x = (x ^ (x >> np.uint64(27))) * SECOND
    x ^= x >> np.uint64(31)
    return x


def by_hash(ids: pl.Series, seed: int | str) -> Positions:
    """Every position, in the pseudo-random order of this seed."""
    return np.argsort(hash_rank(ids, seed).to_numpy(), kind="stable")


def by_rank(values: pl.Series, ids: pl.Series, limit: int | None = None) -> Positions:
    """Positions by falling value (the first `limit`); nulls come last, ties go by hash of id.
    Ordered labels rank by their place."""
    numbers = values.to_physical().cast(pl.Float64).fill_null(-np.inf).to_numpy()
    places = np.arange(len(numbers))
    if limit and limit < len(numbers):
        # only those that can be among the first are hashed and sorted
        places = np.flatnonzero(numbers >= _nth_largest(numbers, limit))
    ties = hash_rank(ids.gather(places), "ties").to_numpy()
    best: Positions = places[np.lexsort((ties, -numbers[places]))]
    return best[:limit]


def _nth_largest(numbers: NDArray[np.floating], n: int) -> np.floating:
    place = len(numbers) - n
    nth: np.floating = np.partition(numbers, place)[place]
    return nth


def round_robin(groups: Positions, *, even: int = 0) -> Positions:
    """Positions so that every prefix holds equally many of each group, each group in the order
    given.

    `groups`: a number per row, ordering the groups within a round; rows below 0 belong to none and
    come last. A group that is used up leaves its share to the others; with `even` groups (0, 1,
    ...) everything ends as soon as one of them is used up.
    """
    numbered = pl.DataFrame({"group": groups}).select(pl.int_range(pl.len()).over("group"))
    outside = groups < 0
    turn = numbered.to_series().to_numpy() + outside * len(groups)
    order: Positions = np.lexsort((groups, turn))
    if even:
        fewest = np.bincount(groups[~outside], minlength=even).min()
        order = order[: fewest * even]
    return order


def by_nearness(values: pl.Series, ids: pl.Series) -> Positions:
    """Positions by how near their rank is to the middle of all ranks, the nearest first; of two as
    near the higher value, ties by hash of id; nulls come last."""
    ranked = by_rank(values, ids)
    known = len(values) - values.null_count()
    away = np.abs(2 * np.arange(known) - (known - 1))
    return np.concatenate([ranked[np.argsort(away, kind="stable")], ranked[known:]])


def matched(values: NDArray[np.float64], like: NDArray[np.float64], bins: int = BINS) -> Positions:
    """Positions so that every prefix is spread over bins of value as `like` is, each bin in the
    order given.

    Bins are bounded by quantiles of `like`; a value beyond them, or none (NaN), is in no bin and
    left out. The first len(like) positions hold exactly as many of each bin as `like`. Everything
    ends as soon as a bin is used up: what comes after would not be spread so.
    """
    edges = np.unique(np.quantile(like, np.linspace(0, 1, bins + 1))) if len(like) else like
    inner = edges[1:-1]
    last = max(len(edges) - 2, 0)
    shares = np.bincount(np.searchsorted(inner, like, side="right"), minlength=last + 1)
    inside = (values >= edges[0]) & (values <= edges[-1]) if len(edges) else values != values
    places = np.flatnonzero(inside)
    bin_ = np.searchsorted(inner, values[places], side="right")
    within = pl.DataFrame({"bin": bin_}).select(pl.int_range(pl.len()).over("bin"))
    with np.errstate(divide="ignore"):
        turn = (within.to_series().to_numpy() + 0.5) / shares[bin_]
        there = np.bincount(bin_, minlength=len(shares))
        full = ((there + 0.5) / shares)[shares > 0].min(initial=np.inf)
    kept = np.flatnonzero(turn < full)
    order: Positions = places[kept[np.lexsort((bin_[kept], turn[kept]))]]
    return order


def farthest_first(vectors: Vectors, candidates: int = CANDIDATES) -> Iterator[Positions]:
    """Greedy k-center: the first row, then always the row that is farthest from all that were
    taken. Ends when every row is taken.

    `vectors`: unit, float32 [n, d], in the order that breaks ties. Exact, though not every row is
    measured at every step: taking a row only brings others nearer, so among the `candidates`
    farthest the next is right while it is farther than all others were (n k d products as one
    matrix product a round). Rows that are left at distance 0 come last, in order.
    """
    count = len(vectors)
    # squared distance to the nearest that was taken; -1: taken
    near = np.full(count, np.inf, np.float32)
    taken = np.zeros(min(count, 1), np.int64)
    while len(taken):
        yield taken
        _approach(near, vectors, vectors[taken])
        near[taken] = -1
        if near.max() <= 0:
            rest = np.flatnonzero(near == 0)
            if len(rest):
                yield rest
            return
        some = _farthest(near, candidates)
        # what every row that is not among the candidates is within
        bound = np.delete(near, some).max(initial=-1)
        taken = some[_next_centers(vectors[some], near[some], bound)]


def _next_centers(vectors: Vectors, near: Vectors, bound: np.float32) -> list[int]:
    """Places of the rows to take next, farthest first, as long as each is farther than `bound`
    (the first is taken in any case)."""
    picked: list[int] = []
    best = int(near.argmax())
    while near[best] > 0 and (not picked or near[best] > bound):
        picked.append(best)
        np.minimum(near, _squared(vectors @ vectors[best]), out=near)
        near[best] = -1
        best = int(near.argmax())
    return picked


def _approach(near: Vectors, vectors: Vectors, centers: Vectors) -> None:
    """Lower every row's distance to that of the nearest of the new centers; by blocks, because all
    products at once would not fit in memory."""
    for top in range(0, len(vectors), BLOCK):
        rows, part = vectors[top : top + BLOCK], near[top : top + BLOCK]
        for first in range(0, len(centers), CANDIDATES):
            products = rows @ centers[first : first + CANDIDATES].T
            np.minimum(part, _squared(products.max(axis=1)), out=part)


def _squared(cosine: Vectors) -> Vectors:
    distance = 2 - 2 * cosine
    return np.where(distance < ZERO, np.float32(0), distance)


def _farthest(near: Vectors, count: int) -> Positions:
    """The `count` farthest rows in rising order of position; of equal ones the first."""
    if count >= len(near):
        return np.arange(len(near))
    edge = _nth_largest(near, count)
    above = np.flatnonzero(near > edge)
    at_edge = np.flatnonzero(near == edge)[: count - len(above)]
    return np.sort(np.concatenate([above, at_edge]))


def unlike(
    vectors: Callable[[int, int], Vectors], count: int, threshold: float
) -> Iterator[Positions]:
    """DEITA's greedy choice: rows in their order, each kept when its cosine to the nearest kept row
    is below `threshold`.

    `vectors(first, end)` gives the unit vectors of a slice of the rows, float32; only as many
    slices are asked for as are taken from.
    """
    kept: list[Vectors] = []
    top, size = 0, STEP
    while top < count:
        slice_ = vectors(top, min(top + size, count))
        for first in range(0, len(slice_), STEP):
            block = slice_[first : first + STEP]
            alive = _unlike_all(block, kept, threshold)
            if alive.any():
                kept.append(block[alive])
            # few large products are faster than many small ones
            if len(kept) > 1 and len(kept[-2]) < BLOCK:
                kept[-2:] = [np.concatenate(kept[-2:])]
            yield top + first + np.flatnonzero(alive)
        top += size
        size = min(2 * size, 16 * BLOCK)


def _unlike_all(block: Vectors, kept: list[Vectors], threshold: float) -> NDArray[np.bool_]:
    """Which rows of a block are unlike everything kept before and every kept row before them in the
    block."""
    alive = np.ones(len(block), bool)
    for others in kept:
        alive &= (block @ others.T).max(axis=1) < threshold
    apart = block @ block.T < threshold
    for row in range(len(block)):
        if alive[row]:
            alive[row + 1 :] &= apart[row, row + 1 :]
    return alive
