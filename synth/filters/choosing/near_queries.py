"""RDS+ (Ivison et al., arXiv 2503.01807): the rows most like the queries, in turns.

Each query ranks the rows by cosine; the first of every query is taken, in the order of the queries,
then the second of every query, and so on. A row that an earlier turn took is passed over and its
query waits for the next round, as in the published code (get_top_influences.py, `max`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from synth.filters.orders import Positions
from synth.filters.orders import Vectors as Matrix

QUERIES = 64
"""Queries whose likeness to every row is in memory at once (4 bytes a row each)."""
ROWS = 65_536


def in_turns(rows: Matrix, queries: Matrix, limit: int | None) -> Iterator[Positions]:
    """Positions in the order in which the queries take them, in batches; ends when all are taken.

    `rows` [n, d], in the order that breaks ties, and `queries` [q, d]: unit vectors, float32.
    Memory holds as many ranks of each query as the `limit` (rows wanted) needs, at first four times
    its share, and then more.
    """
    count = len(rows)
    wanted = min(limit or count, count)
    depth, done = min(4 * -(-wanted // max(len(queries), 1)), count), 0
    taken = np.zeros(count, bool)
    while done < count:
        ranked = _ranked(rows, queries, depth)[:, done:]
        # rank by rank, within a rank query by query
        turns = ranked.T.ravel()
        _, first = np.unique(turns, return_index=True)
        fresh = turns[np.sort(first)]
        fresh = fresh[~taken[fresh]]
        taken[fresh] = True
        yield fresh
        done, depth = depth, min(4 * depth, count)


def _ranked(rows: Matrix, queries: Matrix, depth: int) -> Positions:
    """The rows nearest to each query, the nearest first, of equal ones the first: [q, depth]."""
    ranked = np.empty((len(queries), depth), np.int64)
    for top in range(0, len(queries), QUERIES):
        some = queries[top : top + QUERIES]
        likeness = np.empty((len(some), len(rows)), np.float32)
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS]
            likeness[:, start : start + ROWS] = some @ part.T
        for number, each in enumerate(likeness):
            ranked[top + number] = _nearest(each, depth)
    return ranked


def _nearest(likeness: NDArray[np.float32], depth: int) -> Positions:
    edge = np.partition(likeness, len(likeness) - depth)[len(likeness) - depth]
    above = np.flatnonzero(likeness > edge)
    at_edge = np.flatnonzero(likeness == edge)[: depth - len(above)]
    places = np.concatenate([above, at_edge])
    nearest: Positions = places[np.argsort(-likeness[places], kind="stable")]
    return nearest
