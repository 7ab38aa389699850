"""Rows as files and hub data sets hold them: Parquet, JSON, JSON Lines and CSV, read in batches, by
columns.

No Python object is made for a cell, so a million rows take seconds, and memory is bounded by the
batch, whatever the file.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from core.errors import UserError, nearest
from core.pretrained.hub import (
    HubError,
    check_access,
    commit_of,
    endpoint,
    out_of_reach,
    refusal,
)
from synth.config.rows import Reading
from synth.published import json_rows
from synth.published.cells.texts import Untold, without_bytes
from synth.published.forms import KNOWN
from synth.published.layouts import text_names

if TYPE_CHECKING:
    import pyarrow as pa

_KINDS = ("parquet", "jsonl", "ndjson", "json", "csv", "tsv")
_PACKED = ("", ".gz", ".zst")
ENDINGS = (".parquet", *(f".{kind}{packed}" for kind in _KINDS[1:] for packed in _PACKED))
AS_IT_IS = Reading()
"""Data is read as it is recognised."""
_CSV_BLOCK = 1 << 24


@dataclass(frozen=True)
class Part:
    """Some rows of one file: `name` of the file, what its places are called ("row" or "line"), the
    place of each row, the places whose texts hold half a character (`json_rows.spelled`), those
    that name a key twice, with that key, and what stands in place of texts
    (`cells.texts.untold`)."""

    frame: pl.DataFrame
    name: str
    unit: str
    places: pl.Series
    halves: frozenset[int] = frozenset()
    repeated: Mapping[int, str] = field(default_factory=dict)
    untold: Untold = field(default_factory=dict)

    def head(self, rows: int) -> Part:
        """The first rows only."""
        return replace(self, frame=self.frame.head(rows), places=self.places.head(rows))

    @property
    def twice(self) -> pl.Series:
        """Why a row is refused that names a key twice; null for the others."""
        keys = [self.repeated.get(place) for place in self.places] if self.repeated else []
        told = [
            key and f"the key `{key}` stands twice ({self.name} {self.unit} {place})"
            for key, place in zip(keys, self.places, strict=False)
        ]
        return pl.Series(told or [None] * len(self.places), dtype=pl.String)


@dataclass
class Notes:
    """What was found out about data while it was read."""

    layouts: dict[str, str] = field(default_factory=dict)
    """How rows were taken, in a line -> the first file that is read so."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """File of a folder that could not be read -> why."""
    remarks: Counter[str] = field(default_factory=Counter)
    """What was done to rows -> to how many."""


def sources(source: str | Path | Sequence[str | Path]) -> list[Path | str]:
    """The files of a source in order, or hub ids (str).

    `source`: a file, a folder of files (in order of name), several of either, or a hub id. Raises
    UserError for what does not exist.
    """
    held: list[Path | str] = []
    for each in [source] if isinstance(source, (str, Path)) else source:
        if not str(each).strip():  # a variable of a script that is not set: not all files here
            raise UserError("the name of the data is empty; give a file, a folder or a hub id.")
        path = Path(each).expanduser()
        if path.exists():
            held += files(path)
        elif isinstance(each, Path) or each.count("/") != 1 or each.startswith((".", "~", "/")):
            raise UserError(f"data file {each} does not exist; check the path.")
        else:
            held.append(each)
    return held


def parts_of(
    source: Path | str, batch: int, how: Reading = AS_IT_IS, first: int | None = None
) -> Iterator[Part]:
    """Batches of at most `batch` rows of one of `sources`; all of them have the same columns and
    types. `first`: how many rows are wanted; some more may come. Raises UserError for what cannot
    be read, with file and line."""
    if isinstance(source, str):
        yield from map(partial(_without_bytes, how=how), hub(source, batch, how))
        return
    try:
        for part in _file(source, batch, first, text_names(how)):
            _check_names(part.frame.schema, source)
            yield _without_bytes(part, how)
    except UserError:
        raise
    except Exception as error:  # how a packed file is damaged: zstandard has errors of its own
        if source.suffix not in _PACKED and not isinstance(error, (OSError, UnicodeError)):
            raise
        raise UserError(
            f"{source} cannot be read: {first_line(error)}; repair it, or get it again."
        ) from error


def _without_bytes(part: Part, how: Reading) -> Part:
    """The same rows, where what may be read as texts or tags holds none but UTF-8 texts."""
    frame, found = without_bytes(part.frame, part.places, text_names(how) | KNOWN)
    return part if frame is part.frame else replace(part, frame=frame, untold=found)


def _check_names(schema: Mapping[str, pl.DataType], source: Path) -> None:
    """Raise UserError for a column, or a field in one, whose name no table can have."""
    for column, kind in schema.items():
        for name in (column, *_fields(kind)):
            if "\x00" in name:
                what = "column" if name == column else f"field of `{column}`"
                raise UserError(f"{source}: the name of the {what} {name!r} holds NUL; rename it.")


def _fields(kind: pl.DataType) -> Iterator[str]:
    """The names of all fields in a column of this type."""
    if isinstance(kind, (pl.List, pl.Array)):
        yield from _fields(kind.inner)  # type: ignore[arg-type]
    elif isinstance(kind, pl.Struct):
        for field in kind.fields:
            yield field.name
            yield from _fields(field.dtype)  # type: ignore[arg-type]


def parts(
    source: str | Path | Sequence[str | Path], batch: int, how: Reading = AS_IT_IS
) -> Iterator[Part]:
    """Batches of every one of `sources`, in order."""
    for each in sources(source):
        yield from parts_of(each, batch, how)


def files(path: Path) -> list[Path]:
    """The data files of a path: itself, or every data file below it."""
    if path.is_file():
        return [path]
    found = sorted(
        p for p in path.rglob("*") if p.name.endswith(ENDINGS) and not p.name.startswith(".")
    )
    if not found:
        raise UserError(f"folder {path} holds no .parquet, .jsonl, .json or .csv file.")
    return found


def holds_lines(path: Path) -> bool:
    """Whether a file is JSON Lines by its name."""
    return path.name.endswith(tuple(e for e in ENDINGS if "jsonl" in e or "ndjson" in e))


def first_line(error: Exception) -> str:
    """What an error says, as far as it fits into a sentence."""
    return (str(error) or type(error).__name__).splitlines()[0]


def _file(path: Path, batch: int, first: int | None, texts: frozenset[str]) -> Iterator[Part]:
    if path.name.endswith(".parquet"):
        yield from _parquet(path, batch)
    elif path.name.endswith(tuple(e for e in ENDINGS if e.startswith((".csv", ".tsv")))):
        yield from _csv(path, batch)
    else:
        for held in json_rows.frames(path, batch, first, texts):
            told = (held.halves, held.repeated, held.untold)
            yield Part(held.rows, path.name, held.unit, held.places, *told)


def _rows(tables: Iterable[pa.RecordBatch | pa.Table], name: str, batch: int) -> Iterator[Part]:
    done = 0
    for table in tables:
        for frame in pl.DataFrame(pl.from_arrow(table)).iter_slices(batch):
            places = pl.int_range(done + 1, done + len(frame) + 1, eager=True)
            yield Part(frame, name, "row", places)
            done += len(frame)


def _parquet(path: Path, batch: int) -> Iterator[Part]:
    """Rows of a Parquet file; checksums, encodings and the number of rows are checked."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    done = 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for part in _rows(whole(file.iter_batches(batch_size=batch)), path.name, batch):
                yield part
                done += len(part.frame)
            told = file.metadata.num_rows
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as Parquet: {first_line(error)}; repair it, or get it again."
        ) from error
    if done != told:
        raise UserError(f"{path} holds {done:,} rows and says {told:,}; get it again.")


def whole(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same batches. Raises Arrow's error where a text is no UTF-8, which it reads unseen."""
    for batch in batches:
        batch.validate(full=True)
        yield batch


def _csv(path: Path, batch: int) -> Iterator[Part]:
    """Rows of a CSV file (.tsv: tab separated), every cell a text; an empty one is null."""
    import pyarrow as pa
    from pyarrow import csv as pa_csv

    mark = "\t" if ".tsv" in path.suffixes[-2:] else ","
    with json_rows.opened(path) as handle:
        text = io.TextIOWrapper(handle, encoding="utf-8-sig", newline="")
        header = next(csv.reader(text, delimiter=mark), [])
    if len({*header}) < len(header) or not header:
        raise UserError(f"{path}: the first line of a CSV file must name its columns, each once.")
    # Arrow reads ahead in a thread of its own. Where that reads a Python file it can outlive the
    # interpreter, and abort it; a file of Arrow's own needs no Python.
    packed = path.suffix in (".gz", ".zst")
    try:
        with json_rows.opened(path) if packed else pa.OSFile(str(path)) as handle:
            reader = pa_csv.open_csv(
                handle,
                pa_csv.ReadOptions(block_size=_CSV_BLOCK),
                pa_csv.ParseOptions(delimiter=mark, newlines_in_values=True),
                pa_csv.ConvertOptions(
                    column_types=dict.fromkeys(header, pa.string()),
                    null_values=[""],
                    strings_can_be_null=True,
                ),
            )
            yield from _rows(reader, path.name, batch)
    except (pa.ArrowException, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path} cannot be read as CSV: {first_line(error)}; repair it.") from error


def hub(name: str, batch: int, how: Reading = AS_IT_IS) -> Iterator[Part]:
    """Rows of a split of a hub data set, streamed, at the commit that its revision is now. Raises
    UserError where it cannot be had, and where several splits or configurations leave open which is
    meant."""
    at = how.model_copy(update={"revision": commit(name, how.revision)})
    try:
        from datasets import config, load_dataset_builder

        # The hub's client tries each request six times itself.
        config.STREAMING_OPEN_MAX_RETRIES = config.STREAMING_READ_MAX_RETRIES = 3
        builder = _builder(load_dataset_builder, name, at)
        rows = builder.as_streaming_dataset(split=_split(name, builder, how)).with_format("arrow")
        yield from _rows(rows.iter(batch_size=batch), name, batch)
    except UserError:
        raise
    except Exception as error:  # the hub client's many ways to say that it cannot be reached
        raise _not_had(name, refusal(error, name, "dataset")) from error


def commit(name: str, revision: str | None) -> str:
    """The commit that a revision of a hub data set is (None: the newest). Raises UserError where
    the hub cannot be asked, knows none, or does not let us have it."""
    if (why := out_of_reach()) is not None:
        raise _not_had(name, f"{endpoint()} cannot be reached ({why})")
    try:
        found = commit_of(name, revision, "dataset") or "main"
        check_access(name, found, "dataset")
    except HubError as error:
        raise _not_had(name, str(error)) from error
    return found


def _not_had(name: str, why: str) -> UserError:
    return UserError(
        f"data set {name} is neither a file here nor to be had from the hub: {why.rstrip('.')}."
    )


def _builder(load: Callable[..., Any], name: str, how: Reading) -> Any:
    """What `datasets` reads a configuration with."""
    try:
        return load(name, how.config, revision=how.revision)
    except ValueError as error:  # it lists the configurations, in words of its own
        known = re.search(r"(?:configs|Available): (\[.*?\])", str(error))
        if known is None:
            raise
        names = ", ".join(re.findall(r"'([^']*)'", known[1]))
        what = f"no configuration {how.config}" if how.config else "several configurations"
        raise UserError(
            f"{name} has {what}; say which with --config (in a recipe: `config`): {names}."
        ) from error


def _split(name: str, builder: Any, how: Reading) -> str:
    """The split to read: the one that is asked for, `train`, or the only one."""
    given = builder.info.splits or builder.config.data_files or {}
    known = [str(split) for split in given]
    wanted = how.split or ("train" if "train" in known or not known else known[0])
    if known and wanted not in known:
        raise UserError(f"{name} has no split {wanted}{nearest(wanted, known)}.")
    if how.split is None and wanted != "train" and len(known) > 1:
        raise UserError(
            f"{name} has the splits {', '.join(known)} and no `train`; say which with --split "
            "(in a recipe: `split`)."
        )
    return wanted
