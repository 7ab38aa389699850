"""The published Magpie sets, and ShareGPT and TRL files, in and out.

Two namings are in use (input/output or instruction/response, uuid or conversation_id,
gen_input_config or gen_input_configs) and two ways to write a conversation (from/value or
role/content); all are read, and nothing is lost. A label that is no label and a null in a tag's
column are that row's failed tag; a row without an instruction or a response is a failed row.
Neither is dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import polars as pl

from core.columns import FAILED
from core.errors import UserError
from core.files import replacing
from synth.config.rows import Reading
from synth.published import files
from synth.published.files import AS_IT_IS, Notes
from synth.published.forms import TAGS, Form, or_null
from synth.published.to_ours import Seen, to_ours
from synth.published.to_published import to_form

if TYPE_CHECKING:
    import pyarrow as pa
    from polars._typing import PolarsDataType as PolarsType

_BARE = pl.Struct([])
BATCH = 10_000
"""Rows in memory at once."""


def read(
    source: str | Path | Sequence[str | Path],
    limit: int | None = None,
    *,
    batch: int = BATCH,
    how: Reading = AS_IT_IS,
    prompts: bool | None = False,
    notes: Notes | None = None,
) -> Iterator[pl.DataFrame]:
    """Rows of a data set in our names, in batches, in the order of the file.

    `source`: Parquet, JSON Lines, JSON or CSV files (also .gz and .zst), a folder of them, or a hub
    id (streamed); in a published form, in ours, or in any layout of synth/published/layouts.py.
    `how`: what of that the user states. `prompts`: a row without a response is no failed row (None:
    in a file that has no place for responses).

    Yields frames with id, instruction, response, messages (the whole conversation; null when it is
    just that pair), every known column that the file has, every other column under its own name,
    `status` and `reason` of the row, and failed_tags (list of {column, reason, value}: unknown
    labels, which are null in their column). A row without an id gets one from its content. Memory:
    one batch, and 70 bytes an id.

    With `notes`, the layout of each file is told there, and a file of a folder that cannot be read
    is named there and does not end the rest. Raises UserError for a missing file, one that cannot
    be read, a layout that is not known or may be two, preference data without `how.as_`, and where
    no file could be read.
    """
    seen, left = Seen(), limit
    held = files.sources(source)
    for each in held:
        if left is not None and left <= 0:
            return
        try:
            for part in files.parts_of(each, batch, how, left):
                if left is not None and left <= 0:
                    return
                rows = part if left is None else part.head(left)
                frame = to_ours(rows, seen, how, prompts=prompts, notes=notes)
                left = None if left is None else left - len(rows.frame)
                if len(frame):
                    yield frame
        except UserError as error:
            if notes is None or len(held) == 1:
                raise
            notes.unreadable[str(each)] = str(error)
    if notes is not None and len(notes.unreadable) == len(held):
        first = next(iter(notes.unreadable.values()))
        raise UserError(f"none of the {len(held)} files could be read; the first: {first}")


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
    writer.add(frame)`; it appears when it is whole."""

    def __init__(self, path: Path, form: Form) -> None:
        self.path, self.form, self.rows = path, form, 0
        self._write = {".parquet": _parquet, ".jsonl": _lines}[checked_ending(path)](path)
        self._schema: pl.Schema | None = None
        self._open = ExitStack()

    def __enter__(self) -> Writer:
        self._append = self._open.enter_context(self._write)
        return self

    def add(self, frame: pl.DataFrame) -> int:
        """Write the rows of a frame in our form; returns how many were written."""
        rows = self._aligned(to_form(frame, self.form))
        self._append(rows)
        self.rows += len(rows)
        return len(rows)

    def _aligned(self, rows: pl.DataFrame) -> pl.DataFrame:
        """A later batch with the columns and types of the first."""
        bare = [n for n, kind in rows.schema.items() if kind == _BARE]
        rows = rows.with_columns(map(_braces, bare))
        if self._schema is None:
            self._schema = pl.Schema({n: _typed(kind) for n, kind in rows.schema.items()})
        new = [c for c in rows.columns if c not in self._schema]
        if new:
            raise UserError(
                f"{self.path.name}: later files hold columns that the first lacks "
                f"({', '.join(new)}); write to a folder, or each file by itself."
            )
        try:
            return rows.select(or_null(n, rows.columns, kind) for n, kind in self._schema.items())
        except pl.exceptions.PolarsError as error:
            raise UserError(
                f"{self.path.name}: later rows have another type ({files.first_line(error)}); "
                "write to a folder."
            ) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)


def _typed(kind: PolarsType, listed: bool = False) -> PolarsType:
    """The same type, text in place of fields `listed` in rows of a list that hold nothing but null:
    Polars hands Arrow such a field shorter than its neighbours."""
    if listed and kind == pl.Null:
        return pl.String()
    if isinstance(kind, pl.List):
        return pl.List(_typed(kind.inner, listed=True))
    if isinstance(kind, pl.Struct):
        return pl.Struct([pl.Field(each.name, _typed(each.dtype, listed)) for each in kind.fields])
    return kind


def _braces(column: str) -> pl.Expr:
    """A column of objects without fields, which Parquet cannot hold, as text."""
    return pl.when(pl.col(column).is_not_null()).then(pl.lit("{}")).alias(column)


def checked_ending(path: Path) -> str:
    """The ending of a file to write. Raises UserError for one that is none of ours."""
    if path.suffix not in (".parquet", ".jsonl"):
        raise UserError(f"cannot write {path}: the name must end in .parquet or .jsonl.")
    return path.suffix


@contextmanager
def parquet_file(
    path: Path, compression: str, *, checksums: bool = False
) -> Iterator[Callable[[pa.Table], None]]:
    """Write one Parquet file, table by table, in the types of the first; it appears when it is
    whole. `checksums`: each page with its own, so that whoever reads it sees a flipped bit. Raises
    UserError when it would hold no table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    how = {"compression": compression, "write_page_checksum": checksums}
    writers: list[pq.ParquetWriter] = []
    with replacing(path) as temporary, ExitStack() as opened:

        def add(table: pa.Table) -> None:
            if not writers:
                try:
                    writer = pq.ParquetWriter(temporary, table.schema, **how)
                except pa.ArrowNotImplementedError as error:
                    raise _unheld(path, error) from error
                writers.append(opened.enter_context(writer))
            writers[0].write_table(table.cast(writers[0].schema))

        yield add
        if not writers:
            raise UserError(f"{path} would hold no row at all; nothing was written.")


def _unheld(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path.name}: Parquet cannot hold this ({files.first_line(error)}); write a .jsonl file, "
        "or leave that field out."
    )


@contextmanager
def _parquet(path: Path) -> Iterator[Callable[[pl.DataFrame], None]]:
    with parquet_file(path, "zstd", checksums=True) as add:
        yield lambda rows: add(_plain(rows.to_arrow()))


@contextmanager
def _lines(path: Path) -> Iterator[Callable[[pl.DataFrame], None]]:
    with replacing(path) as temporary, temporary.open("wb") as handle:
        yield lambda rows: rows.write_ndjson(handle)


def _plain(table: pa.Table) -> pa.Table:
    """A table with string in place of large_string, list in place of large_list: what the hub's
    viewer and `datasets` expect."""
    import pyarrow as pa

    def plain(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_large_list(kind) or pa.types.is_list(kind):
            return pa.list_(plain(kind.value_type))
        if pa.types.is_struct(kind):
            return pa.struct([pa.field(each.name, plain(each.type)) for each in kind])
        if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            return pa.string()
        return pa.string() if pa.types.is_dictionary(kind) else kind

    return table.cast(pa.schema([pa.field(each.name, plain(each.type)) for each in table.schema]))


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
        if column in frame.columns:
            told = int((named["column"] == column).sum())
            found[column, "null"] += frame[column].null_count() - told
    return +found


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
