"""What the parts of a mixture offer: rows in the order in which the part takes them, read no
further than the share needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from core.store import digest
from recipes.stages.session import Session
from recipes.stages.sets import beside
from recipes.stages.sets.data_arms import first_asked, with_licence, without_heldout
from recipes.stages.sets.data_sets import DataSet, measured
from recipes.stages.tokens import Conversations
from recipes.stages.walk import Selections
from synth.filters.arm import Budget
from synth.filters.schedule import select
from synth.pool.short_columns import digest_texts

BATCH = 10_000
"""Conversations in memory at once, besides those that are taken."""
COUNTED = 1_000
"""Rows whose tokens are counted at once: hardly more than the share needs."""
SLACK = 100
"""Rows beyond a share, and a twentieth of it, that data is measured for at first: what other parts
hold as well is passed over."""

CountTokens = Callable[[pl.DataFrame], dict[str, int]]
"""Tokens of conversations [id, messages], by id."""


class Waits(Exception):
    """In a plan: rows that are not there yet. The text says which step they wait for."""


@dataclass(frozen=True)
class Part:
    """Rows of an arm, of data or of another recipe, for a mixture to take from."""

    called: str
    """As a person knows it: the arm, the data set, the other recipe's arm."""
    content: Any
    """What determines which rows it offers, in a key."""
    batches: Callable[[int], Iterator[pl.DataFrame]]
    """Its rows [id, text (digest of the instruction), licence, perhaps source], in its order; the
    argument is how many are wanted, which is no limit."""
    messages: Callable[[pl.Series], pl.DataFrame]
    """[id, messages] of some of its rows, in the order of their ids."""

    def counted(self, rows: int, count: CountTokens) -> Iterator[pl.DataFrame]:
        """The batches with the tokens of each row."""
        for batch in self.batches(rows):
            for some in batch.iter_slices(COUNTED):
                known = count(self.messages(some["id"]))
                tokens = [known[name] for name in some["id"]]
                yield some.with_columns(tokens=pl.Series(tokens, dtype=pl.Int64))


def of_selection(called: str, content: Any, path: Path, folder: Path, licence: str | None) -> Part:
    """What was selected before: by an arm of this recipe or of another one.

    `path`: its selection.parquet; `folder`: where what is known of its rows lies; `licence`: of all
    of them, where it is stated.
    """
    known = beside.rows_of(folder)
    told = pl.DataFrame(schema={"id": pl.String})
    if known is not None:
        told = known.select("id", *(n for n in ("licence", "source") if n in known.columns))

    def batches(_: int) -> Iterator[pl.DataFrame]:
        for rows in _read(path):
            text = digest_texts(rows.select(first_asked()).to_series())
            given = rows.select("id", text=text)
            given = given.join(told, on="id", how="left", maintain_order="left")
            own = pl.col("licence") if "licence" in given.columns else pl.lit(None, pl.String)
            yield given.with_columns(licence=pl.coalesce(pl.lit(licence, pl.String), own))

    def messages(ids: pl.Series) -> pl.DataFrame:
        wanted = ids.alias("id").to_frame()
        found = pl.concat([some.join(wanted, on="id", how="semi") for some in _read(path)])
        return wanted.join(found, on="id", how="left", maintain_order="left")

    return Part(called, content, batches, messages)


def of_data(session: Session, one: DataSet, name: str, seed: int, selections: Selections) -> Part:
    """Someone else's data as a part of a mixture ("MIXTURE/PART"): it is measured for as many rows
    as the share wants, and for more where those were taken by other parts."""
    rule = one.rules[name]
    frames: list[pl.DataFrame] = []

    def batches(rows: int) -> Iterator[pl.DataFrame]:
        """More and more of its order, each row once."""
        size, seen = rows + rows // 20 + SLACK, 0
        everything = rule.choose.kind == "all"
        while True:
            asked = rule if everything else replace(rule, budget=Budget(rows=size))
            frame = measured(session, one, [(asked, [seed])])
            if frame is None:
                raise Waits(f"measure/{one.name}")
            frames[:] = [frame]
            usable = without_heldout(frame, selections)
            places = select(usable, asked, seed, None, one.pool.vectors).rows
            fresh = with_licence(session, one, name, frame[places[seen:]])
            yield fresh.select("id", "licence", text="of")
            if everything or len(places) < size:
                return
            seen, size = len(places), 2 * size

    def messages(ids: pl.Series) -> pl.DataFrame:
        return pl.concat(Conversations.of(one.pool, frames[0], ids.to_list()).slices())

    where = rule.where.text if rule.where else None
    content = digest([one.pool.cells, where, str(rule.choose), rule.allow_cut, seed])
    return Part(one.source, content, batches, messages)


def _read(path: Path) -> Iterator[pl.DataFrame]:
    """[id, messages] of a selection, some rows at a time."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH, columns=["id", "messages"]):
            yield pl.DataFrame(pl.from_arrow(batch))
