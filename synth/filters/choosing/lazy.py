"""The greedy choice by a gain that never grows as more is taken (submodular): the exact order,
without measuring every row at every step.

A gain that was measured before bounds what it is now (Minoux 1978, "lazy greedy"), so only a block
of the rows with the highest bounds is measured anew, until the best of it is beyond every bound
outside.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from synth.filters.orders import Positions

Gains = NDArray[np.float64]


class Objective(Protocol):
    """What is to be gained, given what was taken so far."""

    def gains(self, rows: Positions) -> Gains:
        """What each of these rows would add now."""

    def take(self, row: int) -> None:
        """Add a row to what was taken."""


def lazily(bounds: Gains, objective: Objective, block: int) -> Iterator[Positions]:
    """Positions by falling gain, each given those before it, in batches; of equal gains the first
    position. Ends when all are taken.

    `bounds` [n]: what each row would gain first, or more. Memory is a few numbers a row besides
    the objective's.
    """
    bounds = bounds.astype(np.float64, copy=True)
    left = len(bounds)
    while left:
        some = highest(bounds, min(block, left))
        outside, first = best_outside(bounds, some)
        measured = objective.gains(some)
        taken: list[int] = []
        while len(taken) < len(some):
            best = int(measured.argmax())
            row, gain = int(some[best]), measured[best]
            if gain < outside or (gain == outside and first < row):
                break
            taken.append(row)
            objective.take(row)
            done = np.isneginf(measured)
            measured = objective.gains(some)
            measured[done] = -np.inf
            measured[best] = -np.inf
        bounds[some] = measured
        bounds[taken] = -np.inf
        left -= len(taken)
        if taken:
            yield np.array(taken, np.int64)


def highest(bounds: Gains, count: int) -> Positions:
    """Positions of the `count` highest bounds in rising order; of equal ones the first."""
    edge = np.partition(bounds, len(bounds) - count)[len(bounds) - count]
    above = np.flatnonzero(bounds > edge)
    at_edge = np.flatnonzero(bounds == edge)[: count - len(above)]
    return np.sort(np.concatenate([above, at_edge]))


def best_outside(bounds: Gains, some: Positions) -> tuple[float, int]:
    """The highest bound beyond these positions, and the first position that has it."""
    kept = bounds[some]
    bounds[some] = -np.inf
    first = int(bounds.argmax())
    highest = float(bounds[first])
    bounds[some] = kept
    return highest, first
