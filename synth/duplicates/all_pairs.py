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
from numpy.typing import NDArray

from synth.duplicates.int8_bounds import Codes, Rows, rates

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
HELD = 2**20
"""Candidate pairs that a thread holds before it looks again which of them still matter."""
RUN = 32
"""Products of a row whose largest is looked at first; half as many of a column."""
EDGES = 2**18
"""Close pairs held before they are merged into groups (and as many as there are vectors): pairs
inside a known group are then not held."""
PAIRS = 512
"""Pairs computed in 32 bit at a time: their vectors fit in the cache."""

Ints = NDArray[np.int64]


class Found:
    """What is known so far of each of n distinct vectors: the largest cosine to another
    (`nearest`), how many rows have a cosine above `close` (`repeats`, without its own copies), and
    the lowest row of those and its own (`lowest`); and the groups that those pairs join.

    `size` [n]: rows that hold each vector; `rank` [n]: the first of them, ascending. Threads may
    fold at once.
    """

    def __init__(self, size: Ints, rank: Ints, close: float, device: str = "cpu") -> None:
        import torch

        n = len(size)
        self.size, self.rank, self.close = (
            torch.from_numpy(size).to(device),
            torch.from_numpy(rank).to(device),
            close,
        )
        self.nearest = torch.full((n,), -2.0, device=device)
        self.repeats, self.lowest = (
            torch.zeros(n, dtype=torch.int64, device=device),
            self.rank.clone(),
        )
        self.label = np.arange(n)
        self.edges: list[tuple[Ints, Ints]] = []
        self.lock = threading.Lock()

    def pairs(
        self, i: Ints, j: Ints, cosines: NDArray[np.float32], *, counted: bool = True
    ) -> None:
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
            cosines.fill_diagonal_(-2.0)
        with self.lock:
            self._rows(cosines, a, b)
            if a != b:
                self._rows(cosines.T, b, a)

    def _rows(self, cosines: torch.Tensor, a: slice, b: slice) -> None:
        import torch

        best = cosines.amax(dim=1)
        torch.maximum(self.nearest[a], best, out=self.nearest[a])
        # few rows have a repeat in a given block: only those are looked at again
        hit = (best > self.close).nonzero().squeeze(1)
        if not len(hit):
            return
        near, at = (
            (cosines if len(hit) == len(cosines) else cosines[hit]) > self.close,
            hit + a.start,
        )
        # whole numbers below 2**53 are exact
        self.repeats[at] += (near.double() @ self.size[b].double()).long()
        # ranks ascend, so the first is the lowest
        self.lowest[at] = torch.minimum(self.lowest[at], self.rank[b][_first(near)])
        if a.start <= b.start:
            rows, found = at.cpu().numpy(), near.cpu().numpy()
            found &= self.label[rows][:, None] != self.label[b]
            i, j = found.nonzero()
            self._join(rows[i], j + b.start)

    def _join(self, i: Ints, j: Ints) -> None:
        if len(i):
            self.edges.append((i, j))
        if sum(len(i) for i, _ in self.edges) > max(EDGES, len(self.label)):
            self.groups()

    def groups(self) -> Ints:
        """The group of each vector, numbered by whichever of its vectors comes first: connected by
        close pairs, in any order."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        if self.edges:
            i, j = (np.concatenate(side) for side in zip(*self.edges, strict=True))
            n, known = len(self.label), np.arange(len(self.label))
            i, j = np.concatenate([i, known]), np.concatenate([j, self.label])
            _, component = connected_components(
                coo_array((np.ones(len(i), bool), (i, j)), shape=(n, n)), directed=False
            )
            _, first = np.unique(component, return_index=True)
            self.label, self.edges = first[component], []
        return self.label


def _first(near: torch.Tensor) -> torch.Tensor:
    """The first true column of each row of a truth table."""
    import torch

    return (
        torch.from_numpy(near.numpy().argmax(axis=1))
        if near.device.type == "cpu"
        else near.byte().argmax(dim=1)
    )


def search(
    rows: Rows,
    width: int,
    found: Found,
    *,
    block: int | None = None,
    device: str = "cpu",
    sieve: bool | None = None,
) -> None:
    """Fold every pair of vectors. `rows` reads vectors, float32 [m, `width`]; `block`: rows and
    columns of a block.

    `sieve`: whether to go by 8-bit products first; default where they are exact and at least twice
    as fast as 32-bit ones, and the rows many.
    """
    import torch

    n, threads = len(found.rank), torch.get_num_threads()
    block = block or (GPU_BLOCK if device != "cpu" else BLOCK if threads <= 4 else 2 * BLOCK)
    side = -(-min(block, n) // RUN) * RUN
    if sieve is None:
        sieve = device == "cpu" and n > FEW and rates()["int8"] > 2 * rates()["float32"]
    work = _Work(rows, found, Codes(rows, n, width, side) if sieve else None, width, side, device)
    if device != "cpu":
        return work.run()
    try:
        with ThreadPoolExecutor(threads) as pool:
            try:
                for done in as_completed([pool.submit(work.run) for _ in range(threads)]):
                    done.result()
            finally:
                work.left = iter(())  # after an interrupt the threads end with their present blocks
    finally:
        torch.set_num_threads(threads)


class _Work:
    """The blocks still to be done, shared by the threads, and the bounds that they find."""

    def __init__(
        self, rows: Rows, found: Found, codes: Codes | None, width: int, side: int, device: str
    ) -> None:
        self.rows, self.found, self.codes, self.side, self.device = rows, found, codes, side, device
        self.n = len(found.rank)
        # no cosine below this is a vector's largest; a lost update only leaves it lower
        self.bound = np.full(-(-self.n // side) * side, -2.0)
        self.rounding = width * 2.0**-23
        self.left = self._blocks()
        self.vectors = functools.lru_cache(maxsize=GPU_HELD if device != "cpu" else 0)(
            self._vectors
        )
        self.lock = threading.Lock()

    def _blocks(self) -> Iterator[tuple[slice, slice]]:
        for top in range(0, self.n, self.side):
            for left in range(0, top + 1, self.side):
                yield slice(left, left + self.side), slice(top, top + self.side)

    def _vectors(self, start: int) -> torch.Tensor:
        import torch

        return torch.from_numpy(
            np.ascontiguousarray(self.rows(slice(start, min(start + self.side, self.n))))
        ).to(self.device)

    def run(self) -> None:
        """Do blocks until none is left, or until one fails in any thread."""
        try:
            self._run()
        except BaseException:
            self.left = iter(())
            raise

    def _run(self) -> None:
        import torch

        if self.device == "cpu":
            torch.set_num_threads(1)
        room = torch.empty((self.side, self.side), dtype=torch.int32) if self.codes else None
        held: list[Pairs] = []
        while True:
            with self.lock:
                block = next(self.left, None)
            if block is None:
                break
            a, b = block
            if self.codes is None or room is None:
                self._whole(a, b)
                continue
            products = self.codes.products(a, b, room)
            by_row = self._candidates(products, True, a, b)
            by_column = self._candidates(products, False, b, a) if by_row and a != b else by_row
            if by_row is None or by_column is None:
                self._whole(a, b)
                continue
            held.extend([by_row] if a == b else [by_row, by_column])
            if sum(len(i) for i, _, _ in held) > HELD:
                held = [self._matter(held)]
                if len(held[0][0]) > HELD // 2:
                    held = self._settle(held[0])
        if held:
            self._settle(self._matter(held))

    def _whole(self, a: slice, b: slice) -> None:
        """Fold a block from 32-bit products."""
        a, b = (slice(s.start, min(s.stop, self.n)) for s in (a, b))
        self.found.block(self.vectors(a.start) @ self.vectors(b.start).T, a, b)
        if self.codes is not None:
            for s in (a, b):
                np.maximum(
                    self.bound[s], self.found.nearest[s].numpy() - self.rounding, out=self.bound[s]
                )

    def _candidates(
        self, products: NDArray[np.int32], across: bool, a: slice, b: slice
    ) -> Pairs | None:
        """Pairs (i of `a`, j of `b`, their product) where j could be the nearest of i or closer
        than the threshold, by what is known so far.

        `across`: the rows of `products` are those of `a`, else its columns. Only runs of products
        whose largest is high enough are looked at. None where they are many.
        """
        import torch

        assert self.codes is not None
        side, error = self.side, self.codes.error(a, b)
        if across:
            run = RUN
            largest = torch.from_numpy(products).view(side, side // run, run).amax(dim=2).numpy()
        else:
            run = RUN // 2
            largest = products.reshape(side // run, run, side).max(axis=1)
        np.maximum(
            self.bound[a],
            largest.max(axis=int(across)) * self.codes.unit - error,
            out=self.bound[a],
        )
        floor = np.floor(
            (np.minimum(self.bound[a], self.found.close) - error) / self.codes.unit
        ).astype(np.int32)
        runs = np.flatnonzero(largest >= (floor[:, None] if across else floor))
        if len(runs) > largest.size * MANY_RUNS:
            return None
        if across:
            at, start = runs // (side // run), runs * run
            values = products.reshape(-1, run).take(runs, axis=0)
        else:
            above, at = np.divmod(runs, side)
            start = above * run
            values = products.reshape(-1).take((start * side + at)[:, None] + np.arange(run) * side)
        high = np.flatnonzero(values >= floor[at][:, None])
        if len(high) > products.size * MANY:
            return None
        which, place = np.divmod(high, run)
        return (
            at[which] + a.start,
            (start[which] % side if across else start[which]) + place + b.start,
            values.reshape(-1)[high],
        )

    def _matter(self, held: list[Pairs]) -> Pairs:
        """Those of the held pairs that still could, by what is known now."""
        assert self.codes is not None
        i, j, product = (np.concatenate(parts) for parts in zip(*held, strict=True))
        kept = product * self.codes.unit + self.codes.errors(i, j) >= np.minimum(
            self.bound[i], self.found.close
        )
        return i[kept], j[kept], product[kept]

    def _settle(self, pairs: Pairs) -> list[Pairs]:
        """Fold pairs from 32-bit products; leaves none."""
        i, j, _ = pairs
        cosines = np.empty(len(i), np.float32)
        for top in range(0, len(i), PAIRS):
            part = slice(top, top + PAIRS)
            np.einsum("ij,ij->i", self.rows(i[part]), self.rows(j[part]), out=cosines[part])
        self.found.pairs(i, j, cosines)
        np.maximum(
            self.bound[: self.n],
            self.found.nearest.numpy() - self.rounding,
            out=self.bound[: self.n],
        )
        return []


Pairs = tuple[Ints, Ints, NDArray[np.int32]]
