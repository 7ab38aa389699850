"""Every pair of vectors once, by symmetric blocks: what is known of each vector after a block is
all that is kept of it.

On a processor with fast 8-bit products a block is first computed in those, and only pairs that
could be a vector's nearest or closer than the threshold are computed in 32 bit
(synth/duplicates/int8_bounds.py); a block with many such pairs, and every block elsewhere, is
computed in 32 bit whole. The result is that of 32-bit products either way. Each thread works on
blocks of its own with single-threaded products, so none waits for another at every block.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING

import numpy as np

from synth.duplicates.blocks import Ints, Rows, Truths, Vectors, components, slices
from synth.duplicates.int8_bounds import Codes, Products, rates

if TYPE_CHECKING:
    import torch

BLOCK = 1024
"""Rows and columns of a block: 4 MB of products, which a core's cache holds. Larger with many
threads, which Python would hold up between blocks."""
GPU_BLOCK = 16384
GPU_HELD = 64
"""Blocks of vectors that stay on a GPU (3 GB of 768 dimensions); others are sent again."""
FEW = 4096
"""Rows up to which the rotation costs more than it saves."""
MANY, MANY_RUNS = 0.02, 0.5
"""Share of a block's pairs, or of its runs, that matter to its rows or to its columns, above which
it is computed whole in 32 bit."""
NONE = -2.0
"""Below every cosine."""
HELD = 2**20
"""Candidate pairs that a thread holds before it looks again which of them still matter."""
RUN, COLUMN_RUN = 32, 16
"""Products of a row, and of a column, whose largest is looked at first."""
EDGES = 2**18
"""Close pairs held before they are merged into groups (and as many as there are vectors): pairs
inside a known group are then not held."""
PAIRS = 512
"""Pairs computed in 32 bit at a time: their vectors fit in the cache."""

Pairs = tuple[Ints, Ints, Products]
"""Vectors i, vectors j, and the products of their codes."""


def search(
    rows: Rows,
    width: int,
    found: Found,
    *,
    block: int | None = None,
    device: str = "cpu",
    sieve: bool | None = None,
) -> None:
    """Fold every pair of vectors into `found`. `rows` reads vectors, float32 [m, `width`]; `block`:
    rows and columns of a block.

    `sieve`: whether to go by 8-bit products first; default where they are exact and at least twice
    as fast as 32-bit ones, and the rows many.
    """
    import torch

    count, threads = len(found.rank), torch.get_num_threads()
    # whole runs, so that a block divides into them
    side = -(-min(block or _block(device, threads), count) // RUN) * RUN
    if sieve is None:
        sieve = device == "cpu" and count > FEW and rates()["int8"] > 2 * rates()["float32"]
    work = _Whole(rows, found, side, device)
    if sieve:
        work = _Sieved(rows, found, side, Codes(rows, count, width, side))
    if device != "cpu":
        return work.run()
    try:
        with ThreadPoolExecutor(threads) as pool:
            try:
                for done in as_completed([pool.submit(work.run) for _ in range(threads)]):
                    done.result()
            finally:
                work.stop()  # after an interrupt the threads end with their present blocks
    finally:
        torch.set_num_threads(threads)


def _block(device: str, threads: int) -> int:
    if device != "cpu":
        return GPU_BLOCK
    return BLOCK if threads <= 4 else 2 * BLOCK


def cosines_of(rows: Rows, i: Ints, j: Ints) -> Vectors:
    """The 32-bit cosine of each pair."""
    cosines = np.empty(len(i), np.float32)
    for part in slices(len(i), PAIRS):
        np.einsum("ij,ij->i", rows(i[part]), rows(j[part]), out=cosines[part])
    return cosines


class Found:
    """What is known so far of each of n distinct vectors: the largest cosine to another
    (`nearest`), how many rows have a cosine above `close` (`repeats`, without its own copies), and
    the lowest row of those and its own (`lowest`); and the groups that those pairs join.

    `size` [n]: rows that hold each vector; `rank` [n]: the first of them, ascending. Threads may
    fold at once.
    """

    def __init__(self, size: Ints, rank: Ints, close: float, device: str = "cpu") -> None:
        import torch

        count = len(size)
        self.size = torch.from_numpy(size).to(device)
        self.rank = torch.from_numpy(rank).to(device)
        self.close = close
        self.nearest = torch.full((count,), NONE, device=device)
        self.repeats = torch.zeros_like(self.size)
        self.lowest = self.rank.clone()
        self.label = np.arange(count)
        self.edges: list[tuple[Ints, Ints]] = []
        self.lock = threading.Lock()

    def pairs(self, i: Ints, j: Ints, cosines: Vectors, *, counted: bool = True) -> None:
        """Fold vectors `j` as neighbours of vectors `i` (for each i the same j once). `counted`
        false leaves `repeats` alone. Not on a GPU."""
        import torch

        near = np.flatnonzero(cosines > self.close)
        at, other = torch.from_numpy(i[near]), torch.from_numpy(j[near])
        with self.lock:
            self.nearest.scatter_reduce_(0, torch.from_numpy(i), torch.from_numpy(cosines), "amax")
            self.lowest.scatter_reduce_(0, at, self.rank[other], "amin")
            if counted:
                self.repeats.index_add_(0, at, self.size[other])
            self._join(i[near], j[near])

    def block(self, cosines: torch.Tensor, a: slice, b: slice) -> None:
        """Fold a whole block, in both directions where its rows and columns differ."""
        if a == b:
            cosines.fill_diagonal_(NONE)
        with self.lock:
            self._rows(cosines, a, b)
            if a != b:
                self._rows(cosines.T, b, a)

    def _rows(self, cosines: torch.Tensor, a: slice, b: slice) -> None:
        """Fold vectors `b` as neighbours of vectors `a`."""
        import torch

        best = cosines.amax(dim=1)
        torch.maximum(self.nearest[a], best, out=self.nearest[a])
        # few rows have a repeat in a given block: only those are looked at again
        hit = (best > self.close).nonzero().squeeze(1)
        if not len(hit):
            return
        near = (cosines if len(hit) == len(cosines) else cosines[hit]) > self.close
        at = hit + a.start
        # whole numbers below 2**53 are exact
        self.repeats[at] += (near.double() @ self.size[b].double()).long()
        # ranks ascend, so the first is the lowest
        self.lowest[at] = torch.minimum(self.lowest[at], self.rank[b][_first(near)])
        if a.start <= b.start:  # the other direction has the same pairs
            rows = at.cpu().numpy()
            news = near.cpu().numpy() & (self.label[rows][:, None] != self.label[b])
            i, j = news.nonzero()
            self._join(rows[i], j + b.start)

    def _join(self, i: Ints, j: Ints) -> None:
        if len(i):
            self.edges.append((i, j))
        if sum(len(i) for i, _ in self.edges) > max(EDGES, len(self.label)):
            self.groups()

    def groups(self) -> Ints:
        """The group of each vector, numbered by whichever of its vectors comes first: connected by
        close pairs, in any order."""
        if self.edges:
            i, j = (np.concatenate(side) for side in zip(*self.edges, strict=True))
            # what was joined before stays joined: an edge from each vector to its group's first
            known = np.arange(len(self.label))
            i, j = np.append(i, known), np.append(j, self.label)
            component = components(len(known), i, j)
            _, first = np.unique(component, return_index=True)
            self.label, self.edges = first[component], []
        return self.label


def _first(near: torch.Tensor) -> torch.Tensor:
    """The first true column of each row of a truth table."""
    import torch

    if near.device.type == "cpu":  # numpy stops at the first, torch looks at all
        return torch.from_numpy(near.numpy().argmax(axis=1))
    return near.byte().argmax(dim=1)


class _Whole:
    """The blocks still to be done, shared by the threads; each is computed in 32 bit."""

    def __init__(self, rows: Rows, found: Found, side: int, device: str = "cpu") -> None:
        self.rows, self.found, self.side, self.device = rows, found, side, device
        self.count = len(found.rank)
        starts = range(0, self.count, side)
        # every pair of blocks once: those left of the diagonal, and the diagonal itself
        self.left: Iterator[tuple[int, int]] = (
            (a, b) for b in starts for a in range(0, b + 1, side)
        )
        self.lock = threading.Lock()
        held = GPU_HELD if device != "cpu" else 0
        self.vectors = functools.lru_cache(maxsize=held)(self._vectors)

    def _vectors(self, start: int) -> torch.Tensor:
        import torch

        part = slice(start, min(start + self.side, self.count))
        # a copy: torch warns of a memory map of the store, which cannot be written to
        return torch.from_numpy(np.array(self.rows(part))).to(self.device)

    def run(self) -> None:
        """Do blocks until none is left, or until one fails in any thread."""
        import torch

        if self.device == "cpu":
            torch.set_num_threads(1)
        try:
            self.work()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Let every thread end with its present block."""
        self.left = iter(())

    def work(self) -> None:
        """Fold blocks as long as any is left."""
        for a, b in self.blocks():
            self.fold(a, b)

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Blocks for this thread, as long as any is left; the last ones reach behind the end."""
        while True:
            with self.lock:
                starts = next(self.left, None)
            if starts is None:
                return
            a, b = starts
            yield slice(a, a + self.side), slice(b, b + self.side)

    def fold(self, a: slice, b: slice) -> None:
        """Fold a block from 32-bit products."""
        a, b = (slice(s.start, min(s.stop, self.count)) for s in (a, b))
        self.found.block(self.vectors(a.start) @ self.vectors(b.start).T, a, b)


class _Sieved(_Whole):
    """The same by 8-bit products first, and the bounds that say which pairs still matter."""

    def __init__(self, rows: Rows, found: Found, side: int, codes: Codes) -> None:
        super().__init__(rows, found, side)
        self.codes = codes
        # No cosine below this is a vector's largest. Threads raise it without a lock: a lost update
        # only leaves it lower, so more pairs are looked at. It reaches over whole blocks.
        self.bound = np.full(len(codes.lost), NONE)
        # how far a 32-bit product of so many coordinates may be from the true one
        self.rounding = codes.width * 2.0**-23

    def work(self) -> None:
        """Sieve blocks, and settle the pairs that remain whenever many are held.

        They are held because the bounds rise with every block: most of what could matter when it
        was found no longer does a few blocks later.
        """
        import torch

        room = torch.empty((self.side, self.side), dtype=torch.int32)
        held: list[Pairs] = []
        for a, b in self.blocks():
            pairs = self._candidates(self.codes.products(a, b, room), a, b)
            if pairs is None:
                self.fold(a, b)
                continue
            held += pairs
            if sum(len(i) for i, _, _ in held) > HELD:
                held = [self._matter(held)]
                if len(held[0][0]) > HELD // 2:
                    self._settle(held.pop())
        if held:
            self._settle(self._matter(held))

    def fold(self, a: slice, b: slice) -> None:
        """Fold a block from 32-bit products, which raise the bounds too."""
        super().fold(a, b)
        for part in (a, b):
            self._raise(slice(part.start, min(part.stop, self.count)))

    def _raise(self, part: slice) -> None:
        least = self.found.nearest[part].numpy() - self.rounding
        np.maximum(self.bound[part], least, out=self.bound[part])

    def _candidates(self, products: Products, a: slice, b: slice) -> list[Pairs] | None:
        """The pairs of a block that could matter to its rows or to its columns; None where they are
        many."""
        by_row = self._by_row(products, a, b)
        if by_row is None:
            return None
        if a == b:  # has each pair in both directions
            return [by_row]
        by_column = self._by_column(products, a, b)
        return None if by_column is None else [by_row, by_column]

    def _by_row(self, products: Products, a: slice, b: slice) -> Pairs | None:
        """Pairs (i of `a`, j of `b`) where j could be the nearest of i or closer than the
        threshold, by what is known so far; None where they are many.

        Only runs of products whose largest is high enough are looked at: torch finds the largest of
        a run several times as fast as numpy compares all of it.
        """
        import torch

        runs = torch.from_numpy(products).view(self.side, -1, RUN)
        largest = runs.amax(dim=2).numpy()
        floor = self._floor(a, b, largest.max(axis=1))
        high = np.flatnonzero(largest >= floor[:, None])
        if len(high) > largest.size * MANY_RUNS:
            return None
        row, run = np.divmod(high, largest.shape[1])
        values = products.reshape(-1, RUN).take(high, axis=0)
        places = _places(values >= floor[row][:, None], products.size)
        if places is None:
            return None
        which, within = places
        i, j = row[which], run[which] * RUN + within
        return i + a.start, j + b.start, values[places]

    def _by_column(self, products: Products, a: slice, b: slice) -> Pairs | None:
        """The same for the columns: pairs (i of `b`, j of `a`).

        A run stands below each other here: numpy's largest over an outer axis goes along memory,
        and shorter runs cost it nothing.
        """
        runs = products.reshape(-1, COLUMN_RUN, self.side)
        largest = runs.max(axis=1)
        floor = self._floor(b, a, largest.max(axis=0))
        high = np.flatnonzero(largest >= floor)
        if len(high) > largest.size * MANY_RUNS:
            return None
        run, column = np.divmod(high, self.side)
        starts = run * COLUMN_RUN * self.side + column
        values = products.reshape(-1).take(starts[:, None] + np.arange(COLUMN_RUN) * self.side)
        places = _places(values >= floor[column][:, None], products.size)
        if places is None:
            return None
        which, within = places
        i, j = column[which], run[which] * COLUMN_RUN + within
        return i + b.start, j + a.start, values[places]

    def _floor(self, of: slice, others: slice, largest: Products) -> Products:
        """The product from which a pair of each vector in `of` could matter, after its bound was
        raised to what its `largest` product in this block proves."""
        error = self.codes.error(of, others)
        bound = self.bound[of]
        np.maximum(bound, largest * self.codes.unit - error, out=bound)
        least = np.minimum(bound, self.found.close) - error
        floor: Products = np.floor(least / self.codes.unit).astype(np.int32)
        return floor

    def _matter(self, held: list[Pairs]) -> Pairs:
        """Those of the held pairs that still could, by what is known now."""
        i, j, product = (np.concatenate(parts) for parts in zip(*held, strict=True))
        at_most = product * self.codes.unit + self.codes.errors(i, j)
        kept = at_most >= np.minimum(self.bound[i], self.found.close)
        return i[kept], j[kept], product[kept]

    def _settle(self, pairs: Pairs) -> None:
        """Fold pairs from 32-bit products."""
        i, j, _ = pairs
        self.found.pairs(i, j, cosines_of(self.rows, i, j))
        self._raise(slice(self.count))


def _places(high: Truths, pairs: int) -> tuple[Ints, Ints] | None:
    """Where a table of runs is true: (run, place in it); None where that is many of a block's
    `pairs`."""
    places = np.flatnonzero(high)
    if len(places) > pairs * MANY:
        return None
    return np.divmod(places, high.shape[1])
