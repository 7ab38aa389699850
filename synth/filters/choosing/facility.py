"""QDIT (Bukharin et al., arXiv 2311.14736): the greedy maximum of

    (1 - alpha) * sum over all i of max over chosen j of cosine(i, j)  +  alpha * sum of quality

over embeddings of the instructions. The first term is a facility location: how well the chosen
rows stand for all of them.

Where this departs: quality is its rank among the candidates, 0 to 1 (the paper takes the scores of
a reward model as they are, so that its alpha hangs on their scale); a cosine below 0 counts as 0;
the default alpha of 0.7 is ours. Gains are compared to the third decimal, so that rounding of
float32 products decides nothing.

A candidate gains by the rows that it is nearer to than everything taken before. At first those are
half of all pairs, too many to keep: candidates are compared with all rows in tiles, and the best of
them are kept with their likeness to every row and chosen from until one outside may be better. With
every row taken the pairs that still count grow fewer. Once they fit in memory they are listed, and
a gain is a sum over a short list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synth.filters.choosing.lazy import Gains, best_outside, highest, lazily
from synth.filters.orders import Positions
from synth.filters.orders import Vectors as Matrix

TILE = 2_048
"""Rows by candidates that are compared at once: 16 MB, so that what is done with them stays in a
processor's cache."""
HELD = 2**27
"""Numbers of the likeness of the best candidates to every row that are in memory (4 bytes each)."""
ENTRIES = 2**27
"""Pairs that count, at most, when they are listed (8 bytes each)."""
SAMPLE = 512
"""Candidates from which it is told how many pairs count."""
BLOCK = 64
"""Candidates that are measured anew at once."""
DECIMALS = 3
SLACK = 2 * 10.0**-DECIMALS
"""How far two ways of summing one gain may lie apart, at most."""


def qdit(vectors: Matrix, quality: NDArray[np.float64], alpha: float) -> Iterator[Positions]:
    """Positions by falling gain, in batches.

    `vectors`: unit, float32 [n, d], in the order that breaks ties; `quality` [n], 0 to 1. Costs
    n^2 d / 2 multiplications for each of a few passes over all pairs, on a GPU where torch sees
    one; never holds n x n.
    """
    facility = _Facility(vectors, quality, alpha)
    left = np.zeros(len(vectors))  # -inf: was taken
    while facility.pairs() > ENTRIES and not np.isneginf(left).all():
        for taken in facility.chosen(facility.bounds() + left):
            left[taken] = -np.inf
            yield taken
    if np.isneginf(left).all():
        return
    listed = facility.listed()
    first = listed.gains(np.arange(len(vectors)))
    yield from lazily(first + left, listed, BLOCK)


class _Facility:
    """The state of the choice: how near each row is to what was taken."""

    def __init__(self, vectors: Matrix, quality: NDArray[np.float64], alpha: float) -> None:
        import torch

        self.torch: Any = torch
        device = "cuda" if torch.cuda.is_available() else "cpu"
        # a copy: a memory map of the store cannot be written to, which torch warns of
        self.vectors: Any = torch.from_numpy(np.array(vectors, np.float32)).to(device)
        self.near: Any = torch.zeros(len(vectors), device=device)
        self.quality, self.alpha = quality, alpha

    def pairs(self) -> int:
        """About how many pairs count: a candidate is nearer to a row than all that were taken."""
        count = len(self.vectors)
        some = self.vectors[:: max(count // SAMPLE, 1)]
        tops = range(0, count, TILE)
        pairs = sum(self._counting(some, top) for top in tops)
        return int(pairs * count / max(len(some), 1))

    def _counting(self, candidates: Any, top: int) -> int:
        """How many pairs of candidates with the rows of a tile count."""
        part = slice(top, top + TILE)
        counts = self.vectors[part] @ candidates.T > self.near[part, None]
        return int(counts.count_nonzero())

    def bounds(self) -> Gains:
        """What each row would gain now, and a little more: by one pass over all pairs, each product
        of two rows computed once for both."""
        count, torch = len(self.vectors), self.torch
        sums = torch.zeros(count, dtype=torch.float64, device=self.vectors.device)
        for top in range(0, count, TILE):
            one = slice(top, top + TILE)
            for left in range(top, count, TILE):
                other = slice(left, left + TILE)
                likeness = self.vectors[one] @ self.vectors[other].T
                sums[other] += (likeness - self.near[one, None]).clamp_(min=0).sum(0)
                if left > top:
                    sums[one] += likeness.sub_(self.near[other]).clamp_(min=0).sum(1)
        every = np.arange(count)
        return self.weighed(sums.cpu().numpy(), every) + (1 - self.alpha) * SLACK

    def chosen(self, bounds: Gains) -> Iterator[Positions]:
        """Positions by falling gain until so many may be better than the best that was measured
        that another pass is due. `bounds` then say what was measured, -inf of what was taken."""
        some = False
        while not np.isneginf(bounds).all():
            best = self._best(bounds)
            mine = bounds[best.rows]
            taken = self._taken(best, mine, best_outside(bounds, best.rows))
            bounds[best.rows] = mine
            if len(taken):
                some = True
                yield best.rows[taken]
            # Of many that are alike each is measured once: then their bounds are exact.
            if some and (bounds > mine.max()).sum() > len(best.rows):
                return

    def _best(self, bounds: Gains) -> _Held:
        """The rows with the highest bounds."""
        held = max(HELD // len(bounds), BLOCK)
        rows = highest(bounds, min(held, int((~np.isneginf(bounds)).sum())))
        places = self.torch.from_numpy(rows).to(self.vectors.device)
        return _Held(rows, self.vectors[places] @ self.vectors.T)

    def _taken(self, best: _Held, bounds: Gains, outside: tuple[float, int]) -> Positions:
        """Places among the best of what is taken of them, in order, until one outside may be
        better. `bounds` of them are measured anew as they are needed, -inf once they are taken."""
        fresh = np.zeros(len(bounds), bool)
        taken: list[int] = []
        while not np.isneginf(bounds).all():
            first = int(bounds.argmax())
            if (bounds[first], outside[1]) <= (outside[0], int(best.rows[first])):
                break
            if fresh[first]:
                taken.append(first)
                self.torch.maximum(self.near, best.likeness[first], out=self.near)
                bounds[first] = -np.inf
                fresh[:] = False
                continue
            stale = np.flatnonzero(~fresh & ~np.isneginf(bounds))
            stale = stale[np.argsort(-bounds[stale], kind="stable")[:BLOCK]]
            bounds[stale] = self._measured(best, stale)
            fresh[stale] = True
        return np.array(taken, np.int64)

    def _measured(self, best: _Held, places: Positions) -> Gains:
        """What rows at these places of the best would gain now."""
        rows = best.likeness[self.torch.from_numpy(places).to(self.near.device)]
        sums = rows.sub_(self.near).clamp_(min=0).sum(1, dtype=self.torch.float64)
        return self.weighed(sums.cpu().numpy(), best.rows[places])

    def weighed(self, gain: Gains, rows: Positions) -> Gains:
        """What these rows would add, given how much nearer they bring all rows."""
        rounded = np.round(gain, DECIMALS)
        weighed: Gains = (1 - self.alpha) * rounded + self.alpha * self.quality[rows]
        return weighed

    def listed(self) -> _Listed:
        """The pairs that still count, by candidate."""
        count = len(self.vectors)
        lists: list[_List] = []
        for top in range(0, count, TILE):
            candidates = self.vectors[top : top + TILE]
            found = [self._pairs(candidates, left) for left in range(0, count, TILE)]
            whose, rows, values = (np.concatenate(each) for each in zip(*found, strict=True))
            order = np.argsort(whose, kind="stable")
            ends = np.bincount(whose, minlength=len(candidates)).cumsum()[:-1]
            split = (np.split(each[order], ends) for each in (rows, values))
            lists += zip(*split, strict=True)
        return _Listed(lists, self.near.cpu().numpy().copy(), self.weighed)

    def _pairs(self, candidates: Any, left: int) -> tuple[NDArray[Any], ...]:
        """(number of the candidate, row, likeness) of the pairs with the rows of a tile that
        count."""
        part = slice(left, left + TILE)
        likeness = candidates @ self.vectors[part].T
        places = np.flatnonzero((likeness > self.near[part]).cpu().numpy())
        whose, rows = np.divmod(places, likeness.shape[1])
        values = likeness.cpu().numpy().ravel()[places]
        return whose.astype(np.int16), (rows + left).astype(np.int32), values


@dataclass(frozen=True)
class _Held:
    """Rows, rising, with their likeness to every row, float32 [rows, n]."""

    rows: Positions
    likeness: Any


_List = tuple[NDArray[np.int32], NDArray[np.float32]]
"""Of a candidate the rows that it is nearer to than all that were taken, and how near."""


@dataclass(frozen=True)
class _Listed:
    """The state of the choice once few pairs count: the list of each candidate, and how near each
    row is to what was taken, float32 [n]."""

    lists: list[_List]
    near: NDArray[np.float32]
    weighed: Callable[[Gains, Positions], Gains]

    def gains(self, rows: Positions) -> Gains:
        """What each of these rows would add now."""
        sums = [self._gain(*self.lists[row]) for row in rows]
        return self.weighed(np.array(sums, np.float64), rows)

    def _gain(self, rows: NDArray[np.int32], values: NDArray[np.float32]) -> float:
        return float(np.maximum(values - self.near[rows], 0).sum(dtype=np.float64))

    def take(self, row: int) -> None:
        """Add a row to what was taken."""
        rows, values = self.lists[row]
        self.near[rows] = np.maximum(self.near[rows], values)
