"""Category balance while instructions are drawn: shares of a labelled sample, so that a lopsided
teacher shows after minutes, not after the last row.

Without steering a strong model's instructions can be mostly mathematics (Magpie-Ultra's card). The
labels are cells of the category column in label mode, one token each, which a filter that asks for
them later finds there.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from functools import cached_property

import polars as pl

from core.cells.seconds import filling
from core.columns import OK
from core.tracking import Log
from synth.context import Serving
from synth.measures import CATEGORY, MEASURES
from synth.pool.columns import open_column
from synth.pool.computed import compute_tag, tag_determines
from synth.pool.pool import Pool
from synth.pool.short_columns import Lean, digest_texts
from synth.tags import sanitize

SAMPLE = 100
"""Instructions that are labelled for one report."""


class Balance:
    """Counts what is drawn, and labels and reports after every `every` instructions. Nothing is
    read from the pool: a report costs the same, however many rows there are."""

    def __init__(self, pool: Pool, context: Serving, log: Log, every: int) -> None:
        self.config, self.context, self.log, self.every = pool.config, context, log, every
        determines = tag_determines("category", pool.config, context, "label")
        self.column = open_column(pool.root, "category", determines, MEASURES["category"])
        self.counts: Counter[str] = Counter()
        self.unread = self.seen = 0
        self._recent: list[pl.DataFrame] = []

    def drawn(self, part: pl.DataFrame) -> None:
        """Take note of finished draws; label and report when enough have come."""
        good = part.filter(pl.col("status") == OK)
        self._recent.append(good.select("id", "instruction", "status", "reason"))
        while sum(map(len, self._recent)) >= self.every:
            recent = pl.concat(self._recent)
            self._recent = [recent[self.every :]]
            self._sampled(recent[: self.every])
            self.seen += self.every
            self._report()

    def _sampled(self, drawn: pl.DataFrame) -> None:
        """Count the categories of a sample of these draws."""
        ranked = sorted(drawn["id"], key=_rank)[:SAMPLE]
        rows = drawn.join(pl.DataFrame({"id": ranked}), on="id", how="semi")
        usable = sanitize.with_raw(rows, self.config.sanitize).filter(pl.col("status") == OK)
        cells = self._labels(usable)
        labels = cells["task_category"]
        self.counts.update(labels.drop_nulls().to_list())
        self.unread += labels.null_count()

    def _labels(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Cells with the category of each of these instructions, asked for where it is not known;
        null where it could not be read."""
        rows = rows.select("id", "instruction", of=digest_texts(rows["instruction"]))
        known = self._known.join(rows, on=["id", "of"], how="semi")
        new = rows.join(known, on=["id", "of"], how="anti")
        found = [known]
        with filling(self.column.folder) as made:
            for cells in compute_tag("category", new, self.config, self.context, "label"):
                labelled = cells.join(new.select("id", "of"), on="id", how="left")
                self.column.append(labelled)
                made(len(labelled))
                found.append(labelled.select(known.columns).cast(known.schema))
        return pl.concat(found)

    @cached_property
    def _known(self) -> pl.DataFrame:
        """The labels that were there before anything was drawn here: [id, of, task_category]."""
        lean = Lean(self.column, lambda part: part.select("id", "of", "task_category"))
        return lean.read()

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
