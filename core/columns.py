"""Measurements: append-only columns keyed by what determines one cell.

A column is a folder of Parquet parts, `ROOT/columns/NAME/KEY/part-*.parquet`, each holding `id`,
the value fields, `status` ("ok" or "failed") and `reason` (why it failed, else null). A cell that
no part holds is unmeasured; a null value is never "failed". Row counts, recipes and the set of ids
never enter the key, so a pool of 100 rows grows to 300 and two recipes share what is measured.

A column with a field `of` holds measurements of texts: its cells are told apart by id and `of` (the
digest of the text that was measured), so what is measured of a row's new text stands beside what
was measured of its old one.

A part is published with a no-replace link. Should two parts hold one cell, the first part by name
counts.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
from filelock import FileLock, Timeout

from core.errors import UserError
from core.files import fsync_folder, write_atomic
from core.store import canonical, digest

OK = "ok"
FAILED = "failed"
MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
"""The type of a conversation: turns in order, each with who speaks and what is said."""


class Column:
    """One append-only column: `fields` are its value fields with their polars types; ids are any
    strings."""

    def __init__(self, folder: Path, fields: Mapping[str, pl.DataType | type[pl.DataType]]) -> None:
        self.folder = folder
        self.fields = dict(fields)
        self.schema = pl.Schema(
            {"id": pl.String(), **self.fields, "status": pl.String(), "reason": pl.String()}
        )
        self.key = ["id", "of"] if "of" in self.fields else ["id"]
        self._lock: FileLock | None = None

    @classmethod
    def open(
        cls,
        root: Path,
        name: str,
        cell: Mapping[str, Any],
        fields: Mapping[str, pl.DataType | type[pl.DataType]],
    ) -> Column:
        """The column `name` under store root `root`, for cells determined by `cell` (model
        revision, prompt hash, sampling, VERSION)."""
        return cls(root / "columns" / name / digest(dict(cell))[:16], fields).describe(cell)

    def describe(self, cell: Mapping[str, Any]) -> Column:
        """Remember, beside the parts, what determines a cell of this column (written once, on the
        first part)."""
        self._cell = json.loads(canonical(dict(cell)))
        return self

    def append(
        self, rows: pl.DataFrame | Iterable[Mapping[str, Any]], order: str = "9"
    ) -> Path | None:
        """Publish finished cells as one part; returns its path, or None when `rows` is empty.

        `rows` needs `id` and the value fields; `status` defaults to "ok", `reason` to null. `order`
        sorts the part among others.
        """
        frame = self._frame(rows)
        if frame.is_empty():
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        spec = self.folder / "column.json"
        if not spec.exists():
            write_atomic(spec, json.dumps(getattr(self, "_cell", {}), indent=2))
        return self._publish(
            frame,
            f"part-{order}-{digest(frame['id'].to_list())[:12]}-{uuid.uuid4().hex[:6]}.parquet",
        )

    @contextmanager
    def filling(self, rows: int = 256) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """Keep finished cells one by one: `add(cell)` publishes a part each time `rows` are there, and
        what is left when the block ends, also by an exception."""
        held: list[Mapping[str, Any]] = []

        def add(cell: Mapping[str, Any]) -> None:
            held.append(cell)
            if len(held) >= rows:
                self.append(held)
                held.clear()

        try:
            yield add
        finally:
            self.append(held)

    def _publish(self, frame: pl.DataFrame, name: str) -> Path:
        temporary = self.folder / f".{name}.tmp"
        frame.write_parquet(temporary)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        os.link(temporary, self.folder / name)  # never replaces, unlike rename
        temporary.unlink()
        fsync_folder(self.folder)
        return self.folder / name

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold this column for one run on this machine. Raises UserError while another run holds
        it: both would buy the same cells."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = self._lock or FileLock(
            str(self.folder / ".lock")
        )  # may be taken again by who holds it
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"another run is filling {self.folder} right now; wait for it, or stop it first."
            ) from error
        try:
            yield
        finally:
            self._lock.release()

    def parts(self) -> list[Path]:
        """The files that hold cells now, in the order in which they count."""
        return sorted(self.folder.glob("part-*.parquet")) if self.folder.exists() else []

    def part(self, path: Path) -> pl.DataFrame:
        """The cells of one file, cast to the declared types.

        Raises FileNotFoundError when it was merged away meanwhile, UserError when it is damaged.
        """
        try:
            written = pl.read_parquet_schema(path)
            absent = [
                n for n in self.fields if n not in written
            ]  # a field that is younger than this part
            return (
                pl.read_parquet(path, columns=[n for n in self.schema if n not in absent])
                .with_columns([pl.lit(None, self.fields[n]).alias(n) for n in absent])
                .select(list(self.schema))
                .cast(self.schema)
            )
        except FileNotFoundError:
            raise
        except (pl.exceptions.PolarsError, OSError) as error:
            raise UserError(
                f"{path} cannot be read as a part of this column ({error}); remove that file and run again."
            ) from error

    def read(self, ids: Sequence[str] | pl.Series | None = None) -> pl.DataFrame:
        """Measured cells (all, or those of `ids`, in no promised order), one row a cell, cast to
        the declared types."""
        frames = merging_read(lambda: [self.part(path) for path in self.parts()])
        if not frames:
            return self.schema.to_frame()
        frame = pl.concat(frames).unique(self.key, keep="first", maintain_order=True)
        if ids is not None:
            frame = frame.join(
                pl.DataFrame({"id": pl.Series(ids, dtype=pl.String)}).unique(), on="id", how="semi"
            )
        return frame

    def compact(self, rows: int = 100_000, files: int = 64) -> None:
        """Merge small parts, neighbours in order, into parts of up to `rows` cells, once there are
        more than `files`; for a single writer.

        A kill in between leaves cells in two parts, which changes nothing: the first part by name
        counts, and the merged one sorts there. Does nothing while another run fills or merges this
        column: two recipes may share it.
        """
        if len(self.parts()) > files:
            with suppress(UserError, FileNotFoundError), self.alone():
                self._compact(rows)

    def _compact(self, rows: int) -> None:
        import pyarrow.parquet as pq

        parts = self.parts()
        group: list[Path] = []
        held = 0
        for path, size in [*((p, pq.read_metadata(p).num_rows) for p in parts), (None, rows)]:
            if group and held + size > rows:
                if len(group) > 1:
                    self._merge(group)
                group, held = [], 0
            if path is not None:
                group.append(path)
                held += size

    def _merge(self, group: list[Path]) -> None:
        merged = pl.concat([self.part(p) for p in group]).unique(
            self.key, keep="first", maintain_order=True
        )
        self._publish(merged, f"{group[0].stem}m{uuid.uuid4().hex[:6]}.parquet")
        for path in group:
            path.unlink(missing_ok=True)
            for remembered in (self.folder / "short").glob(f"{path.stem}-*"):
                remembered.unlink(missing_ok=True)

    def missing(self, ids: Sequence[str]) -> list[str]:
        """Those of `ids` that no part holds, in the given order."""
        held = set(self.read(ids)["id"].to_list())
        return [i for i in ids if i not in held]

    def _frame(self, rows: pl.DataFrame | Iterable[Mapping[str, Any]]) -> pl.DataFrame:
        frame = (
            rows
            if isinstance(rows, pl.DataFrame)
            else pl.from_dicts(list(rows) or [{"id": None}], infer_schema_length=None).drop_nulls(
                "id"
            )
        )
        if "status" not in frame.columns:
            frame = frame.with_columns(pl.lit(OK).alias("status"))
        if "reason" not in frame.columns:
            frame = frame.with_columns(pl.lit(None, dtype=pl.String).alias("reason"))
        for name, dtype in self.fields.items():
            if name not in frame.columns:
                frame = frame.with_columns(pl.lit(None, dtype=dtype).alias(name))
        return frame.select(list(self.schema)).cast(self.schema)


T = TypeVar("T")


def merging_read(read: Callable[[], T]) -> T:
    """Run `read`, which lists a column's parts and reads them; once more where a part was merged
    into another in between."""
    for _ in range(5):
        try:
            return read()
        except FileNotFoundError:
            continue
    return read()
