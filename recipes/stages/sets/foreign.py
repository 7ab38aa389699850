"""Conversations that no arm was drawn from (`eval.heldout.foreign`): another teacher's rows, or
people's. The held-out rows of a pool favour its random arm, which is a sample of the same; these
favour none."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from pydantic import ValidationError

from core.columns import OK
from core.errors import UserError
from core.store import Counts, Result, content_of_files
from core.tracking import Log
from eval.config import ForeignConfig
from recipes.blocks.refusals import sentence
from recipes.stages.session import Session, Stage
from recipes.stages.tokens import as_messages, rows_digest
from synth.config.rows import Reading
from synth.filters.orders import hash_rank
from synth.published import files
from synth.published.rows import read

VERSION = 1
FILE = "heldout.parquet"
AT = "eval.heldout.foreign"


def foreign_rows(session: Session, config: ForeignConfig) -> Result | None:
    """The rows as `heldout.parquet` [id, messages]. Raises UserError for data that is not there or
    that does not say how it is read."""
    try:
        how = Reading.model_validate(config.reading)
        files.sources(config.data)
    except ValidationError as error:
        raise UserError(f"{AT}.reading: {sentence(error, config.reading)}.") from error
    except UserError as error:
        raise UserError(f"{AT}.data: {error}") from error

    def make(out: Path, log: Log, _: dict[str, Path]) -> Counts:
        rows, seen = sample(config.data, how, config.limit)
        if rows.is_empty():
            raise UserError(f"{AT}.data: {config.data} has no usable row among {seen}.")
        rows.write_parquet(out / FILE)
        return {"rows": len(rows), "of": seen}

    spec = {
        "data": content_of_files(config.data),
        "reading": how.spec(),
        "limit": config.limit,
        "VERSION": VERSION,
    }
    stage = Stage(
        "foreign",
        spec,
        {},
        make,
        content=lambda out: rows_digest(pl.read_parquet(out / FILE, glob=False)),
    )
    return session.result(stage)


def sample(data: str, how: Reading, limit: int) -> tuple[pl.DataFrame, int]:
    """[id, messages] of the first `limit` usable rows of a data set in a hash order of their ids,
    and how many rows it has. Memory: one batch and the sample."""
    kept = pl.DataFrame()
    seen = 0
    for frame in read(data, how=how):
        seen += len(frame)
        rows = as_messages(frame.filter(pl.col("status") == OK))
        ranked = rows.with_columns(rank=pl.Series(hash_rank(rows["id"], "foreign")))
        kept = pl.concat([kept, ranked]) if len(kept) else ranked
        kept = kept.sort("rank").head(limit)
    return (kept.drop("rank") if len(kept) else kept), seen
