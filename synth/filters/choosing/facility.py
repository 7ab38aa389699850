"""QDIT (Bukharin et al., arXiv 2311.14736): the greedy maximum of

    (1 - alpha) * sum over all i of max over chosen j of cosine(i, j)  +  alpha * sum of quality

over embeddings of the instructions. The first term is a facility location: how well the chosen
rows stand for all of them.

Where this departs: quality is its rank among the candidates, 0 to 1 (the paper takes the scores of
a reward model as they are, so that its alpha hangs on their scale); a cosine below 0 counts as 0;
the default alpha of 0.7 is ours. Gains are compared to the third decimal, so that rounding of
float32 products decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synth.filters.choosing.lazy import Gains, lazily
from synth.filters.orders import Positions
from synth.filters.orders import Vectors as Matrix

ROWS = 16_384
"""Rows that a block of candidates is compared with at once."""
FIRST = 1_024
"""Candidates in a block of the first pass."""
BLOCK = 64
"""Candidates whose likeness to every row is in memory at once (4 bytes a row each)."""
DECIMALS = 3


def qdit(vectors: Matrix, quality: NDArray[np.float64], alpha: float) -> Iterator[Positions]:
    """Positions by falling gain, in batches.

    `vectors`: unit, float32 [n, d], in the order that breaks ties; `quality` [n], 0 to 1. Costs
    n^2 d multiplications for the first pass and n d for each candidate that is measured again, on a
    GPU where torch sees one; never holds n x n.
    """
    objective = _Facility(vectors, quality, alpha)
    return lazily(objective.first(), objective, BLOCK)


class _Facility:
    """The state of the choice: how near each row is to what was taken, and the likeness of the
    block of candidates that is looked at now."""

    def __init__(self, vectors: Matrix, quality: NDArray[np.float64], alpha: float) -> None:
        import torch

        self.torch: Any = torch
        device = "cuda" if torch.cuda.is_available() else "cpu"
        # a copy: a memory map of the store cannot be written to, which torch warns of
        self.vectors: Any = torch.from_numpy(np.array(vectors, np.float32)).to(device)
        self.near: Any = torch.zeros(len(vectors), device=device)
        self.quality, self.alpha = quality, alpha
        self._block: Positions = np.empty(0, np.int64)
        self._likeness: Any = None

    def first(self) -> Gains:
        """What each row would gain if it were taken first."""
        count = len(self.vectors)
        blocks = [np.arange(top, min(top + FIRST, count)) for top in range(0, count, FIRST)]
        sums = [self._summed(self.vectors[block[0] : block[-1] + 1]) for block in blocks]
        return self._weighed(np.concatenate([*sums, np.empty(0)]), np.arange(count))

    def gains(self, rows: Positions) -> Gains:
        """What each of these rows would add now."""
        if not np.array_equal(rows, self._block):
            places = self.torch.from_numpy(rows).to(self.vectors.device)
            self._block, self._likeness = rows, self.vectors @ self.vectors[places].T
        parts = zip(self._likeness.split(ROWS), self.near.split(ROWS), strict=True)
        sums = sum(self._beyond(part, near) for part, near in parts)
        return self._weighed(sums.cpu().numpy(), rows)

    def take(self, row: int) -> None:
        """Add a row of the block to what was taken."""
        place = int(np.searchsorted(self._block, row))
        self.torch.maximum(self.near, self._likeness[:, place], out=self.near)

    def _summed(self, candidates: Any) -> Gains:
        """How much nearer all rows would come to each candidate: the sum over rows."""
        parts = zip(self.vectors.split(ROWS), self.near.split(ROWS), strict=True)
        sums = sum(self._beyond(part @ candidates.T, near) for part, near in parts)
        summed: Gains = sums.cpu().numpy()
        return summed

    def _beyond(self, likeness: Any, near: Any) -> Any:
        return (likeness - near[:, None]).clamp_(min=0).sum(0, dtype=self.torch.float64)

    def _weighed(self, gain: Gains, rows: Positions) -> Gains:
        rounded = np.round(gain, DECIMALS)
        weighed: Gains = (1 - self.alpha) * rounded + self.alpha * self.quality[rows]
        return weighed
