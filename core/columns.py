"""Measurements: append-only columns keyed by what determines one cell.

A column is a folder, `ROOT/columns/NAME/KEY/`, of Parquet parts (`part-*.parquet`) and journals
(`journal-*.cells`), each holding `id`, the value fields, `status` ("ok" or "failed") and `reason`
(why it failed, else null). A cell that neither holds is unmeasured; a null value is never "failed".
Row counts, recipes and the set of ids never enter the key, so a pool of 100 rows grows to 300 and
two recipes share what is measured.

A column with a field `of` holds measurements of texts: its cells are told apart by id and `of` (the
digest of the text that was measured), so what is measured of a row's new text stands beside what
was measured of its old one.

Finished cells go to the writer's journal at once (`core/cells/journal.py`), of which a part is cut
at PART_ROWS; several writers, on several machines, may fill one column. Parts are merged into few
large ones in the order of the pool (`core/cells/merging.py`). A file is removed only when another
holds its cells, so a reader in between misses none.

Should two files hold one cell, the first in the order of `Column.files` counts: merged parts, which
hold a cell once, then parts as they were cut, then journals.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import polars as pl
from filelock import FileLock

from core.cells import merging, references
from core.cells.damage import is_hurt, mends, set_aside
from core.cells.journal import Journal, frames, is_journal, journals, taken_up
from core.cells.merging import FILES, GROUP, ROWS, merged
from core.cells.whole import ABOUT, about_of, named, note, spoiled, told, whole
from core.errors import UserError, first_line
from core.files import add_named, only_holder, write_atomic
from core.store import canonical, check_version, digest, mark_version

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OK = "ok"
FAILED = "failed"
STATUS = pl.Enum([OK, FAILED])
"""The type of a status in memory: a byte a row."""
MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
"""The type of a conversation: turns in order, each with who speaks and what is said."""

PART_ROWS = 8192
"""Cells of which a part is cut."""
PART_BYTES = 2**26
"""Bytes of a journal of which a part is cut, should its cells be long."""

Fields = Mapping[str, pl.DataType | type[pl.DataType]]
"""The value fields of a column with their types."""
T = TypeVar("T")


class Column:
    """One append-only column: `fields` are its value fields with their polars types; ids are any
    strings. `determines` is what a cell depends on, remembered beside the first part; `root` is the
    store's folder, where the column is in one."""

    def __init__(
        self,
        folder: Path,
        fields: Fields,
        determines: Mapping[str, Any] | None = None,
        root: Path | None = None,
    ) -> None:
        """Reads and writes nothing."""
        self.folder = folder
        self.fields = dict(fields)
        ends = {"status": pl.String(), "reason": pl.String()}
        self.schema = pl.Schema({"id": pl.String(), **self.fields, **ends})
        self.key = ["id", "of"] if "of" in self.fields else ["id"]
        self._determines = canonical(dict(determines or {}))
        self.root = root
        self._lock = FileLock(folder / ".lock")  # who holds it may take it again
        self._journal: Journal | None = None
        self._mark = told(folder) if root is not None else ""

    @classmethod
    def open(
        cls,
        root: Path,
        name: str,
        determines: Mapping[str, Any],
        fields: Fields,
    ) -> Column:
        """The column `name` under store root `root`, for cells that follow from `determines`
        (model revision, prompt hash, sampling, VERSION). Raises UserError for a store that a newer
        version of this program wrote."""
        check_version(root)
        key = digest(dict(determines))[:16]
        folder = root / "columns" / name / key
        references.opened(folder)
        column = cls(folder, fields, determines, root)
        if mends() and folder.is_dir():
            column._say_what_it_is()
        return column

    # -- writing -----------------------------------------------------------------------------------

    def append(self, rows: pl.DataFrame | Iterable[Mapping[str, Any]]) -> None:
        """Keep finished cells: they are in this writer's journal when it returns, and readers see
        them. A journal of PART_ROWS becomes a part, as do so many rows that come at once.

        `rows` needs `id` and the value fields; `status` defaults to "ok", `reason` to null.
        """
        if not isinstance(rows, pl.DataFrame):
            rows = pl.DataFrame(list(rows), infer_schema_length=None)
        if rows.is_empty():
            return
        cells = self._declared(rows)
        if self._journal is None:
            self._say_what_it_is()
        if len(cells) >= PART_ROWS:
            self.publish(cells)
            return
        if self._journal is None:
            self.take_up()
        self._journal = self._journal or Journal(self.folder, self._mark)
        self._journal.append(cells)
        if self._journal.rows >= PART_ROWS or self._journal.size >= PART_BYTES:
            self.cut()

    @contextmanager
    def filling(self) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """Keep finished cells one by one: `add(cell)` puts each into the journal, of which a part
        is cut when the block ends, also by an exception."""
        try:
            yield lambda cell: self.append([cell])
        finally:
            self.cut()

    def cut(self) -> None:
        """Make a part of this writer's journal, should it have one."""
        journal, self._journal = self._journal, None
        if journal is None:
            return
        if journal.rows:
            self.publish(self.first_of_each([self.part(journal.path)]))
        journal.end()

    def publish(self, cells: pl.DataFrame, stem: str | None = None) -> Path:
        """Write cells of this column as one part, whose name begins with `stem` (none: with the
        time, so that parts sort as they were cut), and ends in the digest of what it holds."""
        begins = f"{stem or f'part-t{time.time_ns():020d}'}-{uuid.uuid4().hex[:6]}"
        column = told(self.folder)
        part = add_named(
            self.folder,
            lambda path: cells.write_parquet(path, row_group_size=GROUP),
            lambda path: f"{begins}-{named(path, column)}.parquet",
        )
        note(part, self.root)
        return part

    def alone(self) -> AbstractContextManager[None]:
        """Hold this column for one run on this machine. Raises UserError while another run holds
        it: both would buy the same cells."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return only_holder(
            self._lock,
            f"another run is filling {self.folder} right now; wait for it, or stop it first.",
        )

    def _say_what_it_is(self) -> None:
        places = [self.folder / ABOUT]
        if self.root is not None:
            places.append(about_of(self.folder, self.root))
            mark_version(self.root)
        for place in places:
            if not place.exists():
                write_atomic(place, json.dumps(json.loads(self._determines), indent=2))

    def take_up(self) -> None:
        """Move what dead writers left in their journals, and no part holds, to this writer's."""
        for path in journals(self.folder):
            # a journal that cannot be read was set aside
            with taken_up(path) as ours, suppress(FileNotFoundError):
                cells = self.first_of_each([self.part(path)]) if ours else self.schema.to_frame()
                for part in self.parts() if len(cells) else ():
                    there = self.part(part, self.key)
                    cells = cells.join(there, on=self.key, how="anti", nulls_equal=True)
                if len(cells):
                    self._journal = self._journal or Journal(self.folder, self._mark)
                    self._journal.append(cells)
                if ours and is_hurt(path):
                    set_aside(path, self.root)
                elif ours:
                    path.unlink(missing_ok=True)

    def compact(
        self,
        order: pl.Series | None = None,
        say: Callable[[str], None] = lambda line: None,
        *,
        files: int = FILES,
        rows: int = ROWS,
    ) -> None:
        """Merge parts, once there are more than `files` of them, into parts of `rows` cells in the
        `order` of these ids (none: as they count); cells of other ids come last.

        First this writer's journal, and those of dead writers, become parts. Merged parts are
        merged again when that at most triples the work. What is done, and the disk that it needs,
        is told to `say`. A kill in between leaves cells in two parts, which changes nothing. Does
        nothing while another run fills or merges this column: two recipes may share it.
        """
        if self.folder.is_dir():
            with suppress(UserError), self.alone():
                self.take_up()
                self.cut()
                merging.merge(self, order, say, files, rows)

    def loose(self, files: int = FILES) -> bool:
        """Whether there is anything that `compact` would see to."""
        parts = self.parts()
        new = [path for path in parts if not merged(path)]
        # Parts of the layout before may lie in no order.
        old = any(not path.name.startswith("part-t") for path in new)
        return old or len(new) > files or len(self.files()) > len(parts)

    # -- reading -----------------------------------------------------------------------------------

    def parts(self) -> list[Path]:
        """The Parquet files that hold cells now, in the order in which they count; of damaged ones
        it is said that they are (core/cells/damage.py)."""
        found = sorted(self.folder.glob("part-*.parquet"), key=lambda p: (not merged(p), p.name))
        return whole(self.folder, found, self.root)

    def files(self) -> list[Path]:
        """All files that hold cells now, in the order in which they count."""
        waiting = journals(self.folder)  # listed before the parts that may be cut of them
        return [*self.parts(), *waiting]

    def each(self, read: Callable[[Path], T]) -> dict[Path, T]:
        """What `read` makes of each file that holds cells, in the order in which they count.

        `read` may raise FileNotFoundError: of a journal, which has become a part; of a part, which
        was merged into another, and then the parts are listed again and `read` is asked again,
        also for files that it has read.
        """
        while True:
            taken: dict[Path, T] = {}
            waiting = journals(self.folder)
            for path in waiting:  # before the parts that may be cut of them meanwhile
                with suppress(FileNotFoundError):
                    taken[path] = read(path)
            parts = self.parts()
            with suppress(FileNotFoundError):
                for path in parts:
                    taken[path] = read(path)
                # A listing that ran beside a merge may lack both the old file and the new one.
                if {*filter(merged, self.parts())} <= {*parts}:
                    return {path: taken[path] for path in [*parts, *waiting] if path in taken}

    def part(self, path: Path, names: Sequence[str] | None = None) -> pl.DataFrame:
        """The cells of one file (or those fields of them), cast to the declared types; null in a
        field that is younger.

        Raises FileNotFoundError when it was merged away meanwhile, UserError when it is damaged.
        """
        return self._read(path, names)

    def rows(self, path: Path, places: NDArray[np.int64], names: Sequence[str]) -> pl.DataFrame:
        """The cells at `places` (rising) of one file, [*names], decoding little else. Raises as
        `part`."""
        if is_journal(path):
            return self.part(path, names)[places]
        # Rows further apart than two groups are read apart.
        gaps = (places[1:] - places[:-1] > 2 * GROUP).nonzero()[0] + 1
        ends = [*gaps.tolist(), len(places)]
        found = []
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            near = places[start:end]
            first, length = int(near[0]), int(near[-1] - near[0]) + 1
            run = self._read(path, names, (first, length))
            found.append(run if length == len(near) else run[near - first])
        return pl.concat(found)

    def _read(
        self,
        path: Path,
        names: Sequence[str] | None,
        run: tuple[int, int] | None = None,
    ) -> pl.DataFrame:
        """As `part`, of a part only the rows of a `run`: (the first, how many)."""
        wanted = list(self.schema) if names is None else list(names)
        try:
            if is_journal(path):
                held = [self._declared(frame) for frame in frames(path, self._mark)]
                return pl.concat([self.schema.to_frame(), *held]).select(wanted)
            if not path.exists():
                raise FileNotFoundError(path)
            written = pl.scan_parquet(path, glob=False).collect_schema()
            scan = pl.scan_parquet(path, glob=False)
            scan = scan.slice(*run) if run else scan
            known = [name for name in wanted if name in written]
            return self._declared(scan.select(known).collect(), wanted)
        except FileNotFoundError:
            raise
        except (pl.exceptions.PolarsError, OSError) as error:
            why = f"cannot be read as a part of this column ({first_line(error)})"
            spoiled(path, why, self.root)
            raise FileNotFoundError(path) from error

    def read(
        self,
        ids: pl.DataFrame | Sequence[str] | pl.Series | None = None,
        names: Sequence[str] | None = None,
    ) -> pl.DataFrame:
        """Measured cells, one row a cell, cast to the declared types: all, or those of `ids` (in no
        promised order); with those value fields `names` or all.

        `ids` may be a frame: then cells are those that have a row of its columns.
        """
        kept = [n for n in self.schema if names is None or n in (*self.key, *names)]
        if ids is not None and not isinstance(ids, pl.DataFrame):
            ids = pl.DataFrame({"id": pl.Series(ids, dtype=pl.String)})

        def take(path: Path) -> pl.DataFrame:
            cells = self.part(path, kept)
            return cells if ids is None else cells.join(ids, on=ids.columns, how="semi")

        return self.first_of_each([*self.each(take).values()], kept)

    def missing(self, ids: Sequence[str] | pl.Series) -> list[str]:
        """Those of `ids` that no file holds, in the given order."""
        asked = pl.DataFrame({"id": pl.Series(ids, dtype=pl.String)})
        held = self.read(asked, ["id"])
        return asked.join(held, on="id", how="anti", maintain_order="left")["id"].to_list()

    def first_of_each(
        self, cells: Sequence[pl.DataFrame], names: Sequence[str] | None = None
    ) -> pl.DataFrame:
        """Cells of several files in one frame, the first of each that is there twice."""
        empty = self.schema.to_frame()
        whole = pl.concat([empty if names is None else empty.select(names), *cells])
        return whole.unique(self.key, keep="first", maintain_order=True)

    def _declared(self, cells: pl.DataFrame, names: Sequence[str] | None = None) -> pl.DataFrame:
        """All declared fields (or `names` of them) and no others, cast to their types; the status
        is ok, and any other field null, where it is absent."""
        schema = pl.Schema({n: self.schema[n] for n in (self.schema if names is None else names)})
        absent = [
            pl.lit(OK if name == "status" else None, dtype).alias(name)
            for name, dtype in schema.items()
            if name not in cells.columns and name != "id"
        ]
        return cells.with_columns(absent).select(list(schema)).cast(schema)
