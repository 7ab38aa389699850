"""MIG (Chen et al., arXiv 2504.13835): maximise the information in the space of labels.

    E(D) = sum over labels of phi((P sum of v_i)_label),   phi(x) = (x + 1e-6)^0.8

v_i holds score_i / |labels_i| at each label of row i. P spreads it over the label graph: labels
whose embeddings have a cosine of at least `cosine` (0.9) are joined by it, every label with itself
by 1, and each column of P sums to 1, as the published code has it.

Two gains. `exact`: E(D + i) - E(D). `gradient`: phi'(P v of D) . P v_i, which the published sampler
ranks by; it prefers labels that nothing chosen has far more (phi' is 12.7 at 0).

Where this departs from the published code: it embeds only labels that are on a list of valid ones,
here links are looked for among the MOST_LABELS most frequent labels, rarer ones are linked to
themselves alone; it divides by the number of labels with `--norm` only, here always; a text in
place of a list is taken apart at commas, semicolons and lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from core.errors import UserError
from synth.filters.choosing.candidates import EmbedTexts
from synth.filters.choosing.lazy import Gains, lazily
from synth.filters.orders import Positions
from synth.filters.orders import Vectors as Matrix

Gain = Literal["exact", "gradient"]
GAINS: tuple[Gain, ...] = ("exact", "gradient")
POWER, OFFSET = 0.8, 1e-6
MOST_LABELS = 50_000
"""Labels among which links are looked for."""
ROWS = 4_096
"""Labels that are compared with all others at once."""
BLOCK = 256
"""Candidates that are measured at once."""

_APART = r"[,;\n]+"
_AROUND = " \t\r.:-*•\"'`"
_OPENING = (
    r"(?i)^\s*(to \w+ (this|the) \w+, )?(the |one )?(models? |user |assistant )?"
    r"(needs? to|must) know:?"
)
"""What may stand before the first label ("To solve this problem, the model needs to know")."""
_BEFORE_LAST = r"(?i)^(and|or)\s"


def labels_of(column: pl.Series) -> pl.Series:
    """The labels of each row, list[str], without case, each once, in reading order; null or empty:
    none. A text is taken apart at commas, semicolons and lines."""
    lists = column
    if not isinstance(column.dtype, pl.List):
        said = column.cast(pl.String).str.replace(_OPENING, "")
        apart = said.str.replace_all(_APART, "\n").str.split("\n")
        each = pl.element().str.strip_chars(_AROUND).str.replace(_BEFORE_LAST, "")
        lists = apart.to_frame("labels").select(pl.col("labels").list.eval(each)).to_series()
    clean = pl.element().cast(pl.String).str.strip_chars(_AROUND).str.to_lowercase()
    kept = pl.element().filter(pl.element() != "").unique(maintain_order=True)
    frame = lists.to_frame("labels").select(pl.col("labels").list.eval(clean).list.eval(kept))
    return frame.to_series().fill_null([])


def mig(
    labels: pl.Series, scores: NDArray[np.float64], embed: EmbedTexts, cosine: float, gain: Gain
) -> Iterator[Positions]:
    """Positions by falling gain, in batches; rows without labels come last.

    `labels`: list[str] a row, in the order that breaks ties; `scores` [n], at least 0; `embed`
    gives unit vectors of labels. Raises UserError where no row has a label.
    """
    graph = label_graph(labels, embed, cosine)
    spread = _spread(labels, scores, graph)
    objective = _Information(spread, gain)
    return lazily(objective.gains(np.arange(len(labels))), objective, BLOCK)


class LabelGraph:
    """The labels, the most frequent first (ties by text), and their links `weights` [L, L], sparse:
    1 on the diagonal, the cosine of two labels where it is high enough."""

    def __init__(self, names: list[str], weights: Any) -> None:
        self.names, self.weights = names, weights

    @property
    def spreading(self) -> Any:
        """The links with columns that sum to 1."""
        sums = np.asarray(self.weights.sum(axis=0)).ravel()
        return (self.weights.multiply(1 / sums)).tocsr()


def label_graph(labels: pl.Series, embed: EmbedTexts, cosine: float) -> LabelGraph:
    """The graph of all labels of the rows. Raises UserError where there are none."""
    counts = labels.explode().drop_nulls().alias("label").value_counts(name="rows")
    names = counts.sort("rows", "label", descending=[True, False])["label"].to_list()
    if not names:
        raise UserError(
            "mig: no row has a label; name a list column, or `knowledge` or `intent` with "
            "`synth.tags.difficulty: {mode: explain}`."
        )
    return LabelGraph(names, _linked(embed(names[:MOST_LABELS]), len(names), cosine))


def _linked(vectors: Matrix, count: int, cosine: float) -> Any:
    """The links of `count` labels, of which the first have vectors."""
    from scipy.sparse import coo_array

    own = np.arange(count)
    places, others, weights = [own], [own], [np.ones(count)]
    for top in range(0, len(vectors), ROWS):
        products = vectors[top : top + ROWS] @ vectors.T
        row, other = np.nonzero(products >= cosine)
        apart = row + top != other
        row, other = row[apart], other[apart]
        places.append(row + top)
        others.append(other)
        weights.append(np.minimum(products[row, other], 1).astype(np.float64))
    links = np.concatenate(places), np.concatenate(others)
    return coo_array((np.concatenate(weights), links), shape=(count, count)).tocsr()


def _spread(labels: pl.Series, scores: NDArray[np.float64], graph: LabelGraph) -> Any:
    """What each row holds of each label: P v_i, sparse [n, L]."""
    from scipy.sparse import csr_array

    place = pl.DataFrame({"label": graph.names}).with_row_index("place")
    flat = pl.DataFrame({"label": labels}).with_row_index("row").explode("label").drop_nulls()
    flat = flat.join(place, on="label", how="left", maintain_order="left")
    row = flat["row"].to_numpy().astype(np.int64)
    each = (scores / np.maximum(labels.list.len().to_numpy(), 1))[row]
    shape = (len(labels), len(graph.names))
    held = csr_array((each, (row, flat["place"].to_numpy().astype(np.int64))), shape=shape)
    return (held @ graph.spreading).tocsr()


class _Information:
    """The state of the choice: how much of each label was taken."""

    def __init__(self, spread: Any, gain: Gain) -> None:
        self.spread = spread
        self.taken = np.zeros(spread.shape[1])
        self._gain: Callable[[Gains, Gains], Gains] = _difference
        if gain == "gradient":
            self._gain = _first_order

    def gains(self, rows: Positions) -> Gains:
        """What each of these rows would add now."""
        held = self.spread[rows]
        each = self._gain(self.taken[held.indices], held.data)
        row = np.repeat(np.arange(len(rows)), np.diff(held.indptr))
        return np.bincount(row, weights=each, minlength=len(rows)).astype(np.float64)

    def take(self, row: int) -> None:
        """Add a row to what was taken."""
        first, end = self.spread.indptr[row : row + 2]
        self.taken[self.spread.indices[first:end]] += self.spread.data[first:end]


def _difference(before: Gains, added: Gains) -> Gains:
    gained: Gains = (before + added + OFFSET) ** POWER - (before + OFFSET) ** POWER
    return gained


def _first_order(before: Gains, added: Gains) -> Gains:
    gained: Gains = POWER * (before + OFFSET) ** (POWER - 1) * added
    return gained
