"""Which instructions are to be drawn: the cells of the sampling grid, and each row's id, seed and
replacement, all fixed before generation.

A row's id is a hash of what determines the pool's text, the cell's own sampling and the row's index
within the cell. So more rows of one cell, or one more cell, draw nothing anew, and a pool without a
grid is a grid of one cell whose ids are the same as ever.

An instruction that failed (empty, a thought that never ended) stays visible as a failed row, and
another is drawn for its place: whoever asks for 1,000 instructions gets 1,000. Which one depends on
the place alone, not on what else was drawn, so any number of machines agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from core.columns import FAILED
from core.errors import UserError
from core.store import canonical
from synth.config import SynthConfig

PRESETS: dict[str, tuple[tuple[int, float, float], ...]] = {
    "magpie-pro": ((300, 1.0, 1.0), (300, 1.1, 0.995), (300, 1.2, 0.995), (100, 1.25, 0.99)),
    "magpie-air": (
        *(
            (300, temperature, top_p)
            for temperature in (1.0, 1.1, 1.2)
            for top_p in (1.0, 0.995, 0.99)
        ),
        *((100, 1.25, top_p) for top_p in (1.0, 0.995, 0.99)),
    ),
}
"""The paper's grids (arXiv 2406.08464, Table 7): thousands of rows, temperature, top_p of each
cell."""

DRAWS = 5
"""How often a place is drawn at most: a teacher of which one instruction in three fails still fills
996 places of 1,000."""


@dataclass(frozen=True)
class Cell:
    """One cell: its share of the rows, and what its sampling changes in the common one
    (SamplingParams, verbatim)."""

    rows: int
    sampling: dict[str, Any]


def cells(config: SynthConfig) -> list[Cell]:
    """The cells of a recipe whose instructions are drawn; one cell where it has no grid. Their rows
    sum to `rows` exactly."""
    assert isinstance(config.rows, int)
    if config.grid is None:
        return [Cell(config.rows, {})]
    if isinstance(config.grid, str):
        preset = PRESETS[config.grid]
        counts = apportion(config.rows, [weight for weight, _, _ in preset])
        return [
            Cell(n, {"temperature": t, "top_p": p})
            for n, (_, t, p) in zip(counts, preset, strict=True)
        ]
    return [Cell(cell.rows, dict(cell.sampling)) for cell in config.grid]


def apportion(rows: int, weights: list[int]) -> list[int]:
    """`rows` split by `weights` in whole numbers that sum to it, by largest remainder (ties: the
    first)."""
    total = sum(weights)
    counts = [rows * weight // total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(rows * weights[i] % total), i))
    for i in by_remainder[: rows - sum(counts)]:
        counts[i] += 1
    return counts


class Plan:
    """All places of one pool. `base` is what determines the text of one instruction besides the
    cell's own sampling (the pool's key)."""

    def __init__(self, base: Mapping[str, Any], config: SynthConfig) -> None:
        self.cells = cells(config)
        common = dict(base["sampling"])
        self._prefixes = [
            hashlib.sha256(canonical({**base, "sampling": {**common, **cell.sampling}}).encode())
            for cell in self.cells
        ]
        names = [p.hexdigest() for p in self._prefixes]
        twice = next((i for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            raise UserError(
                f"synth.grid: cell {twice + 1} has the sampling of cell {names.index(names[twice]) + 1}; give their rows to one cell."
            )
        self.places = self._places()

    def sampling(self, common: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The whole sampling of each cell."""
        return [{**common, **cell.sampling} for cell in self.cells]

    def _places(self) -> pl.DataFrame:
        """Every place, in order: [id (of its first draw), cell, index (within the cell), seed]."""
        found = [
            (*self._row(cell, str(index)), cell, index)
            for cell, count in enumerate(self.cells)
            for index in range(count.rows)
        ]
        ids, seeds, numbers, indices = zip(*found, strict=True) if found else ((), (), (), ())
        schema = {"id": pl.String, "cell": pl.Int64, "index": pl.Int64, "seed": pl.Int64}
        return pl.DataFrame(
            {"id": ids, "cell": numbers, "index": indices, "seed": seeds}, schema=schema
        )

    def _row(self, cell: int, name: str) -> tuple[str, int]:
        """(id, sampling seed) of a draw: "7" is the first one for index 7, "7.2" the one after its
        second failure."""
        row = self._prefixes[cell].copy()
        row.update(name.encode())
        return row.hexdigest()[:20], int.from_bytes(row.digest()[-4:]) % 2**31

    def draws(self, status: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """(draws that were made, draws that are due), each [id, place (id of its first draw), cell,
        index, seed], in the order of the places.

        `status`: [id, status] of what the column holds, rows of other pools among them.
        """
        now = self.places.with_row_index("order").with_columns(pl.col("id").alias("place"))
        frames: list[pl.DataFrame] = []
        for draw in range(1, DRAWS + 1):
            frames.append(
                now.join(status.select("id", "status"), on="id", how="left", maintain_order="left")
            )
            failed = frames[-1].filter(pl.col("status") == FAILED)
            if failed.is_empty() or draw == DRAWS:
                break
            again = [
                self._row(cell, f"{index}.{draw}")
                for cell, index in failed.select("cell", "index").iter_rows()
            ]
            ids, seeds = zip(*again, strict=True)
            now = failed.drop("status").with_columns(pl.Series("id", ids), pl.Series("seed", seeds))
        every = pl.concat(frames).sort("order", maintain_order=True).drop("order")
        made = pl.col("status").is_not_null()
        return every.filter(made).drop("status"), every.filter(~made).drop("status")
