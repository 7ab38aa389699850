"""Preference pairs that exist already: the `data` of arms that go on from another arm's
checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from core.columns import MESSAGES, OK
from core.errors import UserError
from core.store import Counts, content_of_files, digest
from core.tracking import Log
from recipes.stages.session import Session, Stage
from recipes.stages.walk import Arms, Selections
from synth.filters.arm import ArmConfig
from synth.published import pairs as published
from synth.published.files import Notes, sources

VERSION = 1
FILE = "train.parquet"
_SCHEMA: dict[str, Any] = {
    "id": pl.String,
    "prompt": MESSAGES,
    "chosen": MESSAGES,
    "rejected": MESSAGES,
}


def from_files(session: Session, arms: Arms) -> Selections:
    """The pairs of every arm that goes on with someone else's, by seed (`preferences/ARM`)."""
    found: Selections = {}
    for name, arm in arms.configs.items():
        if arm.kind != "dpo" or arm.data is None:
            continue
        try:
            sources(arm.data)
        except UserError as error:
            raise UserError(f"arms.{name}.data: {error}") from error
        spec = {"data": content_of_files(arm.data), "reading": arm.spec(), "VERSION": VERSION}
        stage = Stage(f"preferences/{name}", spec, {}, _Reading(name, arm).make)
        pairs = session.result(stage)
        found |= {(name, seed): pairs for seed in arms.seeds}
    return found


class _Reading:
    """How an arm's pairs are read."""

    def __init__(self, name: str, arm: ArmConfig) -> None:
        self.name, self.arm = name, arm

    def make(self, out: Path, log: Log, _: dict[str, Path]) -> Counts:
        """Write the pairs in TRL's form; failed rows are left out and counted by reason. Raises
        UserError for data that holds no pairs."""
        import pyarrow.parquet as pq

        out.mkdir(parents=True, exist_ok=True)
        notes, failed, rows = Notes(), Counter[str](), 0
        schema = pl.DataFrame(schema=_SCHEMA).to_arrow().schema
        with pq.ParquetWriter(out / FILE, schema) as writer:
            for frame in self._frames(notes):
                good = frame.filter(pl.col("status") == OK)
                # "no prompt (pairs.jsonl line 7)": every row has a place of its own
                bad = frame.filter(pl.col("status") != OK)["reason"]
                failed.update(bad.str.replace(r" \([^()]*\)$", ""))
                writer.write_table(_in_our_form(good).to_arrow().cast(schema))
                rows += len(good)
                log.progress(rows, None, "pairs")
        for line in notes.layouts:
            log.say(f"preferences/{self.name}: {line}")
        if not rows:
            why = ", ".join(f"{n} x {reason}" for reason, n in failed.items()) or "it is empty"
            raise UserError(f"arms.{self.name}.data: {self.arm.data} holds no pair ({why}).")
        return {"pairs": rows, "train": rows, "failed": dict(failed)}

    def _frames(self, notes: Notes) -> Iterator[pl.DataFrame]:
        for frame in published.read(str(self.arm.data), None, self.arm, notes):
            if "rejected" not in frame.columns:
                raise UserError(
                    f"arms.{self.name}.data: {self.arm.data} holds rated answers, not pairs of "
                    "a chosen and a rejected one."
                )
            yield frame


def _in_our_form(frame: pl.DataFrame) -> pl.DataFrame:
    """[id, prompt, chosen, rejected]; a pair without an id is known by its content."""
    if "id" not in frame.columns:
        frame = frame.with_columns(id=pl.lit(None, pl.String))
    kept = frame.select(pl.col(name).cast(kind) for name, kind in _SCHEMA.items())
    if not kept["id"].null_count():
        return kept
    texts = kept.select("prompt", "chosen", "rejected").to_dicts()
    named = pl.Series([digest(text)[:16] for text in texts], dtype=pl.String)
    return kept.with_columns(id=pl.col("id").fill_null(named))
