"""Which instructions are to be drawn: the entries of the sampling grid, and each row's id, seed and
replacement, all fixed before generation.

A row's id is a hash of what determines the pool's text, the entry's own sampling and the row's
index within the entry. So more rows of one entry, or one more entry, draw nothing anew, and a pool
without a grid is a grid of one entry whose ids are the same as ever. Frames call an entry's number
`cell`, as recipes do.

An instruction that failed (empty, a thought that never ended) stays visible as a failed row, and
another is drawn for its place: whoever asks for 1,000 instructions gets 1,000. Which one depends on
the place alone, not on what else was drawn, so any number of machines agree.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import polars as pl

from core.cells.content import beside
from core.columns import FAILED
from core.errors import UserError
from core.store import canonical
from synth.config.synthesis import SynthConfig
from synth.generate.ask import Row, Sampling

PRESETS: dict[str, list[tuple[int, float, float]]] = {
    "magpie-pro": [
        (300, 1.0, 1.0),
        (300, 1.1, 0.995),
        (300, 1.2, 0.995),
        (100, 1.25, 0.99),
    ],
    "magpie-air": [
        (300, 1.0, 1.0),
        (300, 1.0, 0.995),
        (300, 1.0, 0.99),
        (300, 1.1, 1.0),
        (300, 1.1, 0.995),
        (300, 1.1, 0.99),
        (300, 1.2, 1.0),
        (300, 1.2, 0.995),
        (300, 1.2, 0.99),
        (100, 1.25, 1.0),
        (100, 1.25, 0.995),
        (100, 1.25, 0.99),
    ],
}
"""The paper's grids (arXiv 2406.08464, Table 7): thousands of rows, temperature, top_p of each
entry."""

_PLACES = {"id": pl.String, "cell": pl.Int64, "index": pl.Int64, "seed": pl.Int64}
_AT_ONCE = 50_000
"""Places that are in memory as Python's own objects."""

DRAWS = 5
"""How often a place is drawn at most: a teacher of which one instruction in three fails still fills
996 places of 1,000."""


@dataclass(frozen=True)
class Entry:
    """One entry of the grid: its share of the rows, and what its sampling changes in the common one
    (SamplingParams, verbatim)."""

    rows: int
    sampling: Sampling


def entries(config: SynthConfig) -> list[Entry]:
    """The entries of a recipe whose instructions are drawn; one where it has no grid. Their rows
    sum to `rows` exactly."""
    assert isinstance(config.rows, int), "imported rows are not drawn"
    if config.grid is None:
        return [Entry(config.rows, {})]
    if isinstance(config.grid, str):
        preset = PRESETS[config.grid]
        counts = apportion(config.rows, [weight for weight, _, _ in preset])
        return [
            Entry(count, {"temperature": temperature, "top_p": top_p})
            for count, (_, temperature, top_p) in zip(counts, preset, strict=True)
        ]
    return [Entry(entry.rows, dict(entry.sampling)) for entry in config.grid]


def apportion(rows: int, weights: list[int]) -> list[int]:
    """`rows` split by `weights` in whole numbers that sum to it, by largest remainder (ties: the
    first)."""
    total = sum(weights)
    counts = [rows * weight // total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: -(rows * weights[i] % total))
    for i in by_remainder[: rows - sum(counts)]:
        counts[i] += 1
    return counts


class Plan:
    """All places of one pool. `base` is what determines the text of one instruction besides the
    entry's own sampling (the pool's key)."""

    def __init__(self, base: Row, config: SynthConfig) -> None:
        self.entries = entries(config)
        self._prefixes = [
            hashlib.sha256(canonical({**base, "sampling": sampling}).encode())
            for sampling in self.sampling(base["sampling"])
        ]
        names = [prefix.hexdigest() for prefix in self._prefixes]
        for number, name in enumerate(names):
            same = names.index(name)
            if same != number:
                raise UserError(
                    f"synth.grid: cell {number + 1} has the sampling of cell {same + 1}; "
                    "give their rows to one cell."
                )
        self.places = self._places()

    def sampling(self, common: Sampling) -> list[Row]:
        """The whole sampling of each entry."""
        return [{**common, **entry.sampling} for entry in self.entries]

    def _places(self) -> pl.DataFrame:
        """Every place, in order: [id (of its first draw), cell (which entry), index (within the
        entry), seed]."""
        parts = [pl.DataFrame(schema=_PLACES)]
        for number, entry in enumerate(self.entries):
            for start in range(0, entry.rows, _AT_ONCE):
                indices = range(start, min(start + _AT_ONCE, entry.rows))
                drawn = [self._draw(number, str(index)) for index in indices]
                part = pl.DataFrame(drawn, {"id": pl.String, "seed": pl.Int64}, orient="row")
                index = pl.Series("index", indices, dtype=pl.Int64)
                parts.append(
                    part.select("id", pl.lit(number, pl.Int64).alias("cell"), index, "seed")
                )
        return pl.concat(parts, rechunk=True)

    def _draw(self, entry: int, name: str) -> tuple[str, int]:
        """(id, sampling seed) of a draw: "7" is the first one for index 7, "7.2" the one after its
        second failure."""
        row = self._prefixes[entry].copy()
        row.update(name.encode())
        drawn = row.digest()
        return drawn[:10].hex(), int.from_bytes(drawn[-4:]) % 2**31

    def draws(self, status: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """(draws that were made, draws that are due), each [id, place (id of its first draw), cell,
        index, seed], in the order of the places.

        `status`: [id, status] of what the column holds, rows of other pools among them.
        """
        status = status.select("id", "status")
        now = self.places.with_row_index("order").with_columns(place="id")
        rounds: list[pl.DataFrame] = []
        for draw in range(1, DRAWS + 1):
            rounds.append(beside(now, status, ["id"]))
            failed = rounds[-1].filter(status=FAILED).drop("status")
            if failed.is_empty():
                break
            again = [
                self._draw(entry, f"{index}.{draw}")
                for entry, index in failed.select("cell", "index").iter_rows()
            ]
            schema = {"id": pl.String, "seed": pl.Int64}
            now = failed.with_columns(pl.DataFrame(again, schema, orient="row"))
        every = pl.concat(rounds)
        if len(rounds) > 1:
            every = every.sort("order", maintain_order=True)
        every = every.drop("order")
        drawn = pl.col("status").is_not_null()
        return every.filter(drawn).drop("status"), every.filter(~drawn).drop("status")
