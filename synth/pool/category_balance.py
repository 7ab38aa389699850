"""Category balance while instructions are drawn: shares of a labelled sample, so that a lopsided
teacher shows after minutes, not after the last row.

Without steering a strong model's instructions can be mostly mathematics (Magpie-Ultra's card). The
labels are cells of the category column in label mode, one token each, which a filter that asks for
them later finds there.
"""

from __future__ import annotations

import hashlib
from collections import Counter

import polars as pl

from core.columns import OK
from core.tracking import Log
from synth.context import Serving
from synth.measures import CATEGORY, MEASURES
from synth.pool.columns import open_column
from synth.pool.computed import compute_tag, tag_determines
from synth.pool.pool import Pool

SAMPLE = 100
"""Instructions that are labelled for one report."""


class Balance:
    """Counts what is drawn, and labels and reports after every `every` instructions."""

    def __init__(self, pool: Pool, context: Serving, log: Log, every: int) -> None:
        self.pool, self.context, self.log, self.every = pool, context, log, every
        determines = tag_determines("category", pool.config, context, "label")
        self.column = open_column(pool.root, "category", determines, MEASURES["category"])
        self.counts: Counter[str] = Counter()
        self.unread = self.seen = 0
        self._recent: list[str] = []

    def drawn(self, part: pl.DataFrame) -> None:
        """Take note of finished draws; label and report when enough have come."""
        self._recent += part.filter(pl.col("status") == OK)["id"].to_list()
        while len(self._recent) >= self.every:
            labels = self._labels(sorted(self._recent[: self.every], key=_rank)[:SAMPLE])
            self.counts.update(labels.drop_nulls().to_list())
            self.unread += labels.null_count()
            self.seen += self.every
            self._recent = self._recent[self.every :]
            self._report()

    def _labels(self, ids: list[str]) -> pl.Series:
        """The category of each of these instructions, asked for where it is not known; null where
        it could not be read."""
        drawn = self.pool.drawn().join(pl.DataFrame({"id": ids}), on="id", how="semi")
        rows = self.pool.with_texts(drawn.select("id", "of"), ["instruction"])
        new = rows.join(self.column.read(rows["id"]), on=["id", "of"], how="anti")
        for cells in compute_tag("category", new, self.pool.config, self.context, "label"):
            self.column.append(cells.join(new.select("id", "of"), on="id", how="left"))
        cells = self.column.read(rows["id"])
        return cells.join(rows, on=["id", "of"], how="semi")["task_category"]

    def _report(self) -> None:
        labelled = self.counts.total()
        shares = {name: self.counts[name] / max(labelled, 1) for name in CATEGORY}
        by_share = sorted(shares.items(), key=lambda share: -share[1])
        listed = ", ".join(f"{name} {share:.0%}" for name, share in by_share if share)
        unread = f", {self.unread} could not be labelled" if self.unread else ""
        self.log.say(f"categories of {labelled} of {self.seen} instructions: {listed}{unread}")
        self.log.metrics({f"category/{name}": share for name, share in shares.items()})


def _rank(name: str) -> bytes:
    """The sample is those of the smallest hash."""
    return hashlib.sha256(f"category {name}".encode()).digest()
