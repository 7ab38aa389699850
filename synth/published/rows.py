"""The published Magpie sets, and ShareGPT and TRL files, in and out.

Two namings are in use (input/output or instruction/response, uuid or conversation_id,
gen_input_config or gen_input_configs) and two ways to write a conversation (from/value or
role/content); all are read, and nothing is lost. A label that is no label and a null in a tag's
column are that row's failed tag; a row without an instruction or a response is a failed row.
Neither is dropped.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from core.columns import FAILED
from core.errors import UserError
from core.files import fsync_folder
from synth.published import files
from synth.published.forms import TAGS, Form, is_ours
from synth.published.to_ours import to_ours
from synth.published.to_published import to_form

__all__ = ["BATCH", "Counted", "Form", "failed_tags", "is_ours", "read", "write"]

BATCH = 10_000
"""Rows in memory at once."""


def read(
    source: str | Path | Sequence[str | Path], limit: int | None = None, *, batch: int = BATCH
) -> Iterator[pl.DataFrame]:
    """Rows of a published set in our names, in batches, in the order of the file.

    `source`: Parquet, JSONL or JSON files, a folder of them, or a hub id (streamed); in a published
    form or in ours. Yields frames with id, instruction, response, messages (the whole conversation;
    null when it is just that pair), every known column that the file has, every other column under
    its own name, `status` and `reason` of the row, and failed_tags (list of {column, reason,
    value}: unknown labels, which are null in their column). A row without an id gets one from its
    content. Memory: one batch, and 70 bytes an id. Raises UserError for a missing file, one that
    cannot be read, or one in which no instruction is to be found.
    """
    seen: set[int] = set()
    left = limit
    for part in files.parts(source, batch):
        if left is not None and left <= 0:
            return
        frame = to_ours(part if left is None else part.head(left), seen)
        left = None if left is None else left - len(frame)
        if len(frame):
            yield frame


def write(rows: pl.DataFrame | Iterable[pl.DataFrame], path: Path, form: Form) -> int:
    """Write rows to one Parquet or JSONL file (by its ending) in a form; returns how many rows were
    written.

    `form`: "23" (Llama-3 v0.1 sets: input, output, base_*), "25" (later sets: instruction,
    response, *_generator, language), "sharegpt" (conversations of from/value), "messages" (TRL), or
    "magpie" (ours, failed rows too; the others leave them out). The file appears when it is whole.
    Raises UserError when later rows have columns that the first rows have not.
    """
    with Writer(path, form) as writer:
        for frame in [rows] if isinstance(rows, pl.DataFrame) else rows:
            writer.add(frame)
    return writer.rows


class Writer:
    """One file of a form, written batch by batch: `with Writer(path, form) as writer:
    writer.add(frame)`."""

    def __init__(self, path: Path, form: Form) -> None:
        if path.suffix not in (".parquet", ".jsonl"):
            raise UserError(f"cannot write {path}: the name must end in .parquet or .jsonl.")
        self.path, self.form, self.rows = path, form, 0
        self.temporary = path.with_name(f".{path.name}.tmp")
        self._schema: pl.Schema | None = None
        self._parquet: Any = None

    def __enter__(self) -> Writer:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = self.temporary.open("wb")
        return self

    def add(self, frame: pl.DataFrame) -> int:
        """Write the rows of a frame in our form; returns how many were written."""
        made = self._aligned(to_form(frame, self.form))
        self.rows += len(made)
        if self.path.suffix == ".jsonl":
            made.write_ndjson(self._handle)
            return len(made)
        import pyarrow.parquet as pq

        table = made.to_arrow()
        table = table.cast(_plain_types(table.schema))
        if self._parquet is None:
            self._parquet = pq.ParquetWriter(self._handle, table.schema, compression="zstd")
        self._parquet.write_table(table)
        return len(made)

    def _aligned(self, made: pl.DataFrame) -> pl.DataFrame:
        """A later batch with the columns and types of the first."""
        if self._schema is None:
            self._schema = made.schema
        if made.schema == self._schema:
            return made
        new = [c for c in made.columns if c not in self._schema]
        if new:
            raise UserError(
                f"{self.path.name}: later files hold columns that the first lacks ({', '.join(new)}); write to a folder, or each file by itself."
            )
        try:
            return made.select(
                [
                    pl.col(n).cast(t) if n in made.columns else pl.lit(None, t).alias(n)
                    for n, t in self._schema.items()
                ]
            )
        except pl.exceptions.PolarsError as error:
            raise UserError(
                f"{self.path.name}: later rows have another type ({str(error).splitlines()[0]}); write to a folder."
            ) from error

    def __exit__(self, kind: Any, *_: object) -> None:
        try:
            if kind is not None and self._parquet is not None:
                self._parquet.close()
            if kind is None:
                if self._parquet is None and self.path.suffix == ".parquet":
                    raise UserError(f"{self.path} would hold no row at all; nothing was written.")
                if self._parquet is not None:
                    self._parquet.close()
                self._handle.flush()
                os.fsync(self._handle.fileno())
                self.temporary.replace(self.path)
                fsync_folder(self.path.parent)
        finally:
            self._handle.close()
            self.temporary.unlink(missing_ok=True)


def _plain_types(schema: Any) -> Any:
    """An Arrow schema with string in place of large_string, list in place of large_list: what the
    hub's viewer and `datasets` expect."""
    import pyarrow as pa

    def plain(kind: Any) -> Any:
        if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            return pa.string()
        if pa.types.is_large_list(kind) or pa.types.is_list(kind):
            return pa.list_(plain(kind.value_type))
        if pa.types.is_struct(kind):
            return pa.struct([pa.field(f.name, plain(f.type)) for f in kind])
        return pa.string() if pa.types.is_dictionary(kind) else kind

    return pa.schema([pa.field(f.name, plain(f.type)) for f in schema])


def failed_tags(frame: pl.DataFrame) -> Counter[tuple[str, str]]:
    """How many cells of each tag column are failed, by (column, reason): unknown labels, and
    nulls."""
    named = frame.select(
        pl.col("failed_tags").explode(empty_as_null=False).struct.unnest()
    ).drop_nulls("column")
    found: Counter[tuple[str, str]] = Counter(
        zip(named["column"].to_list(), named["reason"].to_list(), strict=True)
    )
    for column in TAGS:
        if column in frame.columns and (
            nulls := frame[column].null_count() - int((named["column"] == column).sum())
        ):
            found[column, "null"] += nulls
    return found


class Counted:
    """Counts of what was read: `rows`, `failed` rows by reason, failed `tags` by column and
    reason."""

    def __init__(self) -> None:
        self.rows = 0
        self.failed: Counter[str] = Counter()
        self.tags: Counter[tuple[str, str]] = Counter()
        self.examples: dict[str, str] = {}
        """The first place of each reason."""

    def watch(self, frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """The same frames, counted as they pass."""
        for frame in frames:
            self.rows += len(frame)
            self.tags += failed_tags(frame)
            for text in frame.filter(pl.col("status") == FAILED)["reason"].to_list():
                reason, _, place = text.rpartition(" (")
                reason = "an id occurs twice" if reason.startswith("the id ") else reason
                self.failed[reason] += 1
                self.examples.setdefault(reason, place.removesuffix(")"))
            yield frame
