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
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
from filelock import FileLock

from core.errors import UserError
from core.files import adding, only_holder, write_atomic
from core.store import canonical, digest

OK = "ok"
FAILED = "failed"
MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
"""The type of a conversation: turns in order, each with who speaks and what is said."""


Fields = Mapping[str, pl.DataType | type[pl.DataType]]
"""The value fields of a column with their types."""


class Column:
    """One append-only column: `fields` are its value fields with their polars types; ids are any
    strings. `determines` is what a cell depends on, remembered beside the first part."""

    def __init__(
        self,
        folder: Path,
        fields: Fields,
        determines: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.fields = dict(fields)
        self.schema = pl.Schema(
            {"id": pl.String(), **self.fields, "status": pl.String(), "reason": pl.String()}
        )
        self.key = ["id", "of"] if "of" in self.fields else ["id"]
        self._determines = canonical(dict(determines or {}))
        self._lock = FileLock(folder / ".lock")  # who holds it may take it again

    @classmethod
    def open(
        cls,
        root: Path,
        name: str,
        determines: Mapping[str, Any],
        fields: Fields,
    ) -> Column:
        """The column `name` under store root `root`, for cells that follow from `determines`
        (model revision, prompt hash, sampling, VERSION)."""
        key = digest(dict(determines))[:16]
        return cls(root / "columns" / name / key, fields, determines)

    def append(
        self, rows: pl.DataFrame | Iterable[Mapping[str, Any]], order: str = "9"
    ) -> Path | None:
        """Publish finished cells as one part; returns its path, or None when `rows` is empty.

        `rows` needs `id` and the value fields; `status` defaults to "ok", `reason` to null. `order`
        sorts the part among others.
        """
        if not isinstance(rows, pl.DataFrame):
            rows = pl.DataFrame(list(rows), infer_schema_length=None)
        if rows.is_empty():
            return None
        spec = self.folder / "column.json"
        if not spec.exists():
            write_atomic(spec, json.dumps(json.loads(self._determines), indent=2))
        cells = self._declared(rows)
        ids = digest(cells["id"].to_list())[:12]
        return self._publish(cells, f"part-{order}-{ids}-")

    @contextmanager
    def filling(self, rows: int = 256) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """Keep finished cells one by one: `add(cell)` publishes a part each time `rows` are there,
        and what is left when the block ends, also by an exception."""
        unpublished: list[Mapping[str, Any]] = []

        def add(cell: Mapping[str, Any]) -> None:
            unpublished.append(cell)
            if len(unpublished) >= rows:
                self.append(unpublished)
                unpublished.clear()

        try:
            yield add
        finally:
            self.append(unpublished)

    def alone(self) -> AbstractContextManager[None]:
        """Hold this column for one run on this machine. Raises UserError while another run holds
        it: both would buy the same cells."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return only_holder(
            self._lock,
            f"another run is filling {self.folder} right now; wait for it, or stop it first.",
        )

    def parts(self) -> list[Path]:
        """The files that hold cells now, in the order in which they count."""
        return sorted(self.folder.glob("part-*.parquet"))

    def part(self, path: Path) -> pl.DataFrame:
        """The cells of one file, cast to the declared types; null in a field that is younger.

        Raises FileNotFoundError when it was merged away meanwhile, UserError when it is damaged.
        """
        try:
            written = pl.read_parquet_schema(path)
            known = [name for name in self.schema if name in written]
            return self._declared(pl.read_parquet(path, columns=known))
        except FileNotFoundError:
            raise
        except (pl.exceptions.PolarsError, OSError) as error:
            raise UserError(
                f"{path} cannot be read as a part of this column ({error}); "
                "remove that file and run again."
            ) from error

    def read(self, ids: Sequence[str] | pl.Series | None = None) -> pl.DataFrame:
        """Measured cells (all, or those of `ids`, in no promised order), one row a cell, cast to
        the declared types."""
        parts = merging_read(lambda: [self.part(path) for path in self.parts()])
        if not parts:
            return self.schema.to_frame()
        cells = self._first_of_each(parts)
        if ids is None:
            return cells
        wanted = pl.DataFrame({"id": pl.Series(ids, dtype=pl.String)}).unique()
        return cells.join(wanted, on="id", how="semi")

    def missing(self, ids: Sequence[str]) -> list[str]:
        """Those of `ids` that no part holds, in the given order."""
        measured = set(self.read(ids)["id"].to_list())
        return [i for i in ids if i not in measured]

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

        neighbours: list[Path] = []
        cells = 0
        for path in self.parts():
            size = pq.read_metadata(path).num_rows
            if cells + size > rows:
                self._merge(neighbours)
                neighbours, cells = [], 0
            neighbours.append(path)
            cells += size
        self._merge(neighbours)

    def _merge(self, parts: list[Path]) -> None:
        if len(parts) < 2:
            return
        merged = self._first_of_each([self.part(path) for path in parts])
        self._publish(merged, f"{parts[0].stem}m")
        for path in parts:
            path.unlink(missing_ok=True)

    def _first_of_each(self, parts: list[pl.DataFrame]) -> pl.DataFrame:
        return pl.concat(parts).unique(self.key, keep="first", maintain_order=True)

    def _publish(self, cells: pl.DataFrame, stem: str) -> Path:
        path = self.folder / f"{stem}{uuid.uuid4().hex[:6]}.parquet"
        with adding(path) as temporary:
            cells.write_parquet(temporary)
        return path

    def _declared(self, cells: pl.DataFrame) -> pl.DataFrame:
        """All declared fields and no others, cast to their types; the status is ok, and any other
        field null, where it is absent."""
        absent = [
            pl.lit(OK if name == "status" else None, dtype).alias(name)
            for name, dtype in self.schema.items()
            if name not in cells.columns and name != "id"
        ]
        return cells.with_columns(absent).select(list(self.schema)).cast(self.schema)


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
