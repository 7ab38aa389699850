"""Category balance while instructions are drawn: shares of a labelled sample, so that a lopsided
teacher shows after minutes, not after the last row.

Without steering a strong model's instructions can be mostly mathematics (Magpie-Ultra's card). The
labels are cells of the category column in label mode, one token each, which a filter that asks for
them later finds there.
"""

from __future__ import annotations

import hashlib

import polars as pl

from core.columns import OK, Column
from core.tracking import Log
from synth.context import Context
from synth.measures import CATEGORY
from synth.pool.computed import COMPUTED, compute_tag, tag_cell
from synth.pool.pool import Pool

SAMPLE = 100
"""Instructions that are labelled for one report."""


class Balance:
    """Counts what is drawn, and labels and reports after every `every` instructions."""

    def __init__(self, pool: Pool, context: Context, log: Log, every: int) -> None:
        self.pool, self.context, self.log, self.every = pool, context, log, every
        cell = tag_cell("category", pool.config, context, "label")
        self.column = Column.open(
            pool.root, "category", cell, {"of": pl.String, **COMPUTED["category"].fields}
        )
        self.counts = dict.fromkeys(CATEGORY, 0)
        self.unread = self.seen = 0
        self._recent: list[str] = []

    def drawn(self, part: pl.DataFrame) -> None:
        """Take note of finished draws; label and report when enough have come."""
        self._recent += part.filter(pl.col("status") == OK)["id"].to_list()
        while len(self._recent) >= self.every:
            self._report(self._recent[: self.every])
            self._recent = self._recent[self.every :]

    def _report(self, ids: list[str]) -> None:
        sample = sorted(ids, key=lambda i: hashlib.sha256(f"category {i}".encode()).digest())[
            :SAMPLE
        ]
        rows = self.pool.drawn().join(pl.DataFrame({"id": sample}), on="id", how="semi")
        rows = self.pool.with_texts(rows.select("id", "of"), ["instruction"])
        held = self.column.read(rows["id"])
        new = rows.join(held, on=["id", "of"], how="anti")
        for cells in compute_tag("category", new, self.pool.config, self.context, "label"):
            self.column.append(cells.join(new.select("id", "of"), on="id", how="left"))
        labelled = self.column.read(rows["id"]).join(rows, on=["id", "of"], how="semi")
        for label in labelled["task_category"].to_list():
            if label is None:
                self.unread += 1
            else:
                self.counts[label] += 1
        self.seen += len(ids)
        total = max(sum(self.counts.values()), 1)
        shares = {name: n / total for name, n in self.counts.items()}
        told = ", ".join(
            f"{name} {share:.0%}"
            for name, share in sorted(shares.items(), key=lambda s: -s[1])
            if share
        )
        unread = f", {self.unread} could not be labelled" if self.unread else ""
        self.log.say(
            f"categories of {sum(self.counts.values())} of {self.seen} instructions: {told}{unread}"
        )
        self.log.metrics({f"category/{name}": share for name, share in shares.items()})
