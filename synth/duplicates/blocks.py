"""Vectors and other long arrays by blocks, and the groups that pairs of rows join."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Ints = NDArray[np.int64]
Truths = NDArray[np.bool_]
Floats = NDArray[np.float64]

Rows = Callable[[slice | Ints], Vectors]
"""Reads vectors of a slice or of places."""


def slices(count: int, size: int) -> Iterator[slice]:
    """Slices of `size` that cover `count` rows; the last may be shorter."""
    for top in range(0, count, size):
        yield slice(top, min(top + size, count))


def components(count: int, i: Ints, j: Ints) -> Ints:
    """The component of each of `count` nodes, numbered from 0, where the pairs (i, j) connect."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(i), bool), (i, j)), shape=(count, count))
    component = connected_components(graph, directed=False)[1]
    return component.astype(np.int64)
