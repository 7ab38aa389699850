"""What an order is given: the rows that may be chosen, and the vectors of whatever it compares."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from core.store import digest
from synth.filters.orders import Positions
from synth.filters.orders import Vectors as Matrix

Embed = Callable[[pl.Series], Matrix]
"""Unit vectors of rows by their ids, float32 [n, d]."""
EmbedTexts = Callable[[Sequence[str]], Matrix]
"""Unit vectors of texts, float32 [n, d]."""
Compare = Callable[[pl.Series, Path], tuple[Matrix, Matrix]]
"""Unit vectors of rows by their ids, and of the queries in a file, by one model."""


def _no_rows(ids: pl.Series) -> Matrix:
    raise ValueError("this choice needs the embeddings of the instructions")


def _no_texts(texts: Sequence[str]) -> Matrix:
    raise ValueError("this choice needs the embeddings of labels")


def _no_queries(ids: pl.Series, queries: Path) -> tuple[Matrix, Matrix]:
    raise ValueError("this choice needs the hidden states of conversations and queries")


class Vectors:
    """Where vectors come from; and the orders that were made of them, which the schedule asks for
    several times."""

    def __init__(
        self, embed: Embed, texts: EmbedTexts = _no_texts, compare: Compare = _no_queries
    ) -> None:
        self.embed, self.texts, self.compare = embed, texts, compare
        self._orders: dict[str, Iterator[Positions]] = {}

    def order(self, key: object, make: Callable[[], Iterator[Positions]]) -> Iterator[Positions]:
        """The batches of the order that `key` determines, from the first; each is made once."""
        name = digest(key)
        if name not in self._orders:
            self._orders[name] = itertools.tee(make(), 1)[0]
        return copy.copy(self._orders[name])


NO_VECTORS = Vectors(_no_rows)
"""Where no rule chooses by likeness."""


@dataclass(frozen=True)
class Candidates:
    """The rows to be ordered, [id] and what they are ranked by.

    `columns` are those it is ranked by, `arguments` what the arm states. `limit`: how many are
    wanted, where the budget is in rows; `seed` counts for random choices alone; `like`: the
    response lengths (characters) of the rows that a controlled arm chose.
    """

    rows: pl.DataFrame
    columns: tuple[str, ...]
    arguments: tuple[str, ...]
    seed: int
    limit: int | None
    vectors: Vectors
    like: pl.Series | None = None

    @property
    def ids(self) -> pl.Series:
        """Their ids."""
        return self.rows["id"]
