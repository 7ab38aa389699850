"""Measurements: append-only columns keyed by what determines one cell.

A column is a folder of Parquet parts, `ROOT/columns/NAME/KEY/part-*.parquet`, each holding `id`, the value fields, `status`
("ok" or "failed") and `reason` (why it failed, else null). A cell that no part holds is unmeasured; a null value is never "failed".
Row counts, recipes and the set of ids never enter the key, so a pool of 100 rows grows to 300 and two recipes share what is measured.

A part is published with a no-replace link. Should two parts hold one cell, the first part by name counts.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from filelock import FileLock, Timeout

from core.errors import UserError
from core.store import canonical, digest, fsync_folder, write_atomic

OK = "ok"
FAILED = "failed"


class Column:
    """One append-only column: `fields` are its value fields with their polars types; ids are any strings."""

    def __init__(self, folder: Path, fields: Mapping[str, pl.DataType | type[pl.DataType]]) -> None:
        self.folder = folder
        self.fields = dict(fields)
        self.schema = pl.Schema({"id": pl.String(), **self.fields, "status": pl.String(), "reason": pl.String()})

    @classmethod
    def open(cls, root: Path, name: str, cell: Mapping[str, Any], fields: Mapping[str, pl.DataType | type[pl.DataType]]) -> Column:
        """The column `name` under store root `root`, for cells determined by `cell` (model revision, prompt hash, sampling, VERSION)."""
        return cls(root / "columns" / name / digest(dict(cell))[:16], fields).describe(cell)

    def describe(self, cell: Mapping[str, Any]) -> Column:
        """Remember, beside the parts, what determines a cell of this column (written once, on the first part)."""
        self._cell = json.loads(canonical(dict(cell)))
        return self

    def append(self, rows: pl.DataFrame | Iterable[Mapping[str, Any]], order: str = "9") -> Path | None:
        """Publish finished cells as one part; returns its path, or None when `rows` is empty.

        `rows` needs `id` and the value fields; `status` defaults to "ok", `reason` to null. `order` sorts the part among others.
        """
        frame = self._frame(rows)
        if frame.is_empty():
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        spec = self.folder / "column.json"
        if not spec.exists():
            write_atomic(spec, json.dumps(getattr(self, "_cell", {}), indent=2))
        name = f"part-{order}-{digest(frame['id'].to_list())[:12]}-{uuid.uuid4().hex[:6]}.parquet"
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
        """Hold this column for one run on this machine. Raises UserError while another run holds it: both would buy the same cells."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(self.folder / ".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(f"another run is filling {self.folder} right now; wait for it, or stop it first.") from error
        try:
            yield
        finally:
            lock.release()

    def read(self, ids: Sequence[str] | pl.Series | None = None) -> pl.DataFrame:
        """Measured cells (all, or those of `ids`, in no promised order), one row an id, cast to the declared types."""
        parts = sorted(self.folder.glob("part-*.parquet")) if self.folder.exists() else []
        if not parts:
            return self.schema.to_frame()
        frames = []
        for part in parts:
            try:
                frames.append(pl.read_parquet(part, columns=list(self.schema)))
            except (pl.exceptions.PolarsError, OSError) as error:
                raise UserError(f"{part} cannot be read as a part of this column ({error}); remove that file and run again.") from error
        frame = pl.concat(frames, how="vertical_relaxed").unique("id", keep="first", maintain_order=True).cast(self.schema)
        if ids is not None:
            frame = frame.join(pl.DataFrame({"id": pl.Series(ids, dtype=pl.String)}).unique(), on="id", how="semi")
        return frame

    def missing(self, ids: Sequence[str]) -> list[str]:
        """Those of `ids` that no part holds, in the given order."""
        held = set(self.read(ids)["id"].to_list())
        return [i for i in ids if i not in held]

    def _frame(self, rows: pl.DataFrame | Iterable[Mapping[str, Any]]) -> pl.DataFrame:
        frame = rows if isinstance(rows, pl.DataFrame) else pl.from_dicts(list(rows) or [{"id": None}], infer_schema_length=None).drop_nulls("id")
        if "status" not in frame.columns:
            frame = frame.with_columns(pl.lit(OK).alias("status"))
        if "reason" not in frame.columns:
            frame = frame.with_columns(pl.lit(None, dtype=pl.String).alias("reason"))
        for name, dtype in self.fields.items():
            if name not in frame.columns:
                frame = frame.with_columns(pl.lit(None, dtype=dtype).alias(name))
        return frame.select(list(self.schema)).cast(self.schema)
