"""Which vectors of a folder are what was written, and where each text's lies.

    index = Index(STORE/vectors/KEY, STORE)
    index.read()
    index.places[digest of a text]        # its row in vectors.f32

`rows-PLACE-DIGEST.parquet` holds the digests of the texts whose vectors begin at row PLACE of
`vectors.f32`; beside them, as metadata, the sha256 of those vectors and their length. DIGEST is
that of the part itself, as in the names of a column's parts (core/cells/whole.py). A part that was
changed, or whose vectors were, is set aside: its texts are embedded again, and no others.
What has no DIGEST is of before there were any: it is taken as it is, and sealed by `magpie verify`.

The vectors themselves are read once for the size, times and inode of their file.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from core.cells import seals
from core.cells.damage import damaged, hurt, mends, set_aside
from core.cells.seals import READERS, VERIFIED, Memory, identity
from core.cells.whole import named, part_digest, told
from core.errors import UserError
from core.files import add_named, read_json, read_parquet
from core.store import digest
from synth.duplicates.blocks import Vectors

FILE, INFO = "vectors.f32", "model.json"
FLOAT = 4
"""Bytes of a number."""
_ROWS = re.compile(r"rows-(\d{12})(?:-([0-9a-f]{32}))?\.parquet")
_BLOCK = 2**20

Frame = pl.DataFrame | str
"""What a file holds, or what is wrong with it."""


@dataclass(frozen=True, eq=False)
class Part:
    """A part that names vectors: those from row `place` to before row `end`."""

    path: Path
    seen: list[int]
    """What its file is known by."""
    digests: pl.Series
    place: int
    sealed: bool
    width: int | None
    """Dimensions of its vectors; None where it does not say so."""
    sha256: str | None
    """Of its vectors."""

    @property
    def end(self) -> int:
        """The row after its last."""
        return self.place + len(self.digests)


class Index:
    """Where a folder holds the vector of each text, by the text's digest."""

    def __init__(self, folder: Path, root: Path) -> None:
        """Nothing is read yet. `root`: the store's folder."""
        self.folder, self.root, self.file = folder, root, folder / FILE
        self._memory = Memory(root / VERIFIED / "vectors" / f"{folder.name}.json")
        self.parts: list[Part] = []
        self._places: dict[bytes, int] = {}
        self._placed = 0
        """Parts whose texts are among them."""
        self.width = 0
        """Dimensions of a vector; 0 where there is none yet."""
        self._whole: list[Any] | None = None
        """The file of vectors and the parts as they were when they were found to fit."""

    @property
    def places(self) -> dict[bytes, int]:
        """The row of each text's vector, by the text's digest. A million take seconds, and whoever
        knows the texts by names needs none."""
        for part in self.parts[self._placed :]:
            self._places.update(zip(part.digests, itertools.count(part.place)))
        self._placed = len(self.parts)
        return self._places

    @property
    def count(self) -> int:
        """Rows of the file that parts reach to."""
        return self.parts[-1].end if self.parts else 0

    # -- reading -----------------------------------------------------------------------------------

    def read(self, *, anew: bool = False) -> None:
        """Read what was added since, by whichever process; what is damaged is dealt with as
        core/cells/damage.py says. `anew`: read the vectors too, though they are known by size and
        times."""
        self._memory = Memory(self._memory.path)
        held = {part.path: part for part in self.parts}
        bad: dict[Path, str] = {}
        parts: list[Part] = []
        for path, match in matching(self.folder, "rows", _ROWS):
            with suppress(FileNotFoundError):  # another set it aside meanwhile
                part = self._part(path, match, None if anew else held.get(path))
                if isinstance(part, Part):
                    parts.append(part)
                else:
                    bad[path] = part
        self.width = self._dimensions(parts)
        bad |= self._without_vectors(parts, anew)
        self._keep_to([part for part in parts if part.path not in bad])
        if bad:
            self._put_aside(bad)

    def _part(self, path: Path, match: re.Match[str], held: Part | None) -> Part | str:
        """A part, or what is wrong with it."""
        stat = path.stat()
        if held is not None and held.seen == identity(stat):
            return held
        if not stat.st_size:
            return seals.EMPTIED
        of_part, of_vectors = match[2], None
        if not of_part:
            of_part, of_vectors = self._of_before.get(path.name, (None, None))
        frame = frame_of(path, of_part, {"digest": pl.Binary})
        if isinstance(frame, str):
            return frame
        place, digests = int(match[1]), frame["digest"]
        if not match[2]:
            return Part(path, identity(stat), digests, place, False, None, of_vectors)
        about = pl.read_parquet_metadata(path)
        if about["place"] != str(place):
            return "is of other vectors"
        width, of_vectors = int(about["dimensions"]), about["vectors"]
        return Part(path, identity(stat), digests, place, True, width, of_vectors)

    @property
    def _of_before(self) -> dict[str, list[str]]:
        """The digests of parts of before there were any in their names, and of their vectors."""
        held = self._memory.held.get("before")
        return held if isinstance(held, dict) else {}

    def _dimensions(self, parts: Sequence[Part]) -> int:
        """Dimensions of the vectors that the parts name: as sealed parts say, else as the file
        beside them does, else as many as make up the file of vectors."""
        sealed = next((part.width for part in parts if part.width), None)
        info, said = self.folder / INFO, None
        with suppress(FileNotFoundError):
            said = _dimensions_in(info, sealed=bool(parts and parts[0].sealed))
            if parts and (said is None or sealed not in (None, said)):
                hurt(info, "was changed after it was made; the vectors are there without it")
                if mends():
                    set_aside(info, self.root)
        if sealed or said or not parts:
            return sealed or said or 0
        numbers, rest = divmod(_size(self.file), FLOAT * max(part.end for part in parts))
        return 0 if rest else numbers

    # -- what fits ---------------------------------------------------------------------------------

    def _without_vectors(self, parts: Sequence[Part], anew: bool) -> dict[Path, str]:
        """What is wrong with parts whose vectors are not what was written."""
        try:
            stat = self.file.stat()
        except FileNotFoundError:
            return {part.path: f"its vectors are gone with {self.file}" for part in parts}
        mark = _mark(stat, parts)
        if not anew and mark in (self._whole, self._memory.held.get("vectors")):
            self._whole = mark
            return {}
        wrong = dict(self._unfit(parts, stat.st_size))
        if seals.settled(self.file, stat):
            self._whole = _mark(stat, [part for part in parts if part.path not in wrong])
            self.remember()
        return wrong

    def _unfit(self, parts: Sequence[Part], size: int) -> Iterator[tuple[Path, str]]:
        """Parts that do not fit to the vectors, which are read."""
        row = self.width * FLOAT
        ends = [part.place for part in parts[1:]]
        rows = {part: f"its vectors, rows {part.place:,} to {part.end:,}" for part in parts}
        readable: list[Part] = []
        for part, end in itertools.zip_longest(parts, ends):
            if not row or part.width not in (None, self.width):
                yield part.path, "does not say how long its vectors are"
            elif part.end * row > size:
                yield part.path, f"{rows[part]} of {FILE}, are not there any more"
            elif part.sha256 is not None:
                readable.append(part)
            elif end is not None and part.end > end:
                yield part.path, "names more texts than it has vectors"
        for part, sha256 in zip(readable, self._digests(readable), strict=True):
            if sha256 != part.sha256:
                yield part.path, f"{rows[part]} of {FILE}, were changed after they were made"

    def _digests(self, parts: Sequence[Part]) -> list[str]:
        """sha256 of the vectors of each part, as they are now."""
        row = self.width * FLOAT
        if not parts:
            return []
        try:
            with self.file.open("rb") as handle, ThreadPoolExecutor(READERS) as readers:
                read = functools.partial(_digest_of, handle.fileno())
                return list(
                    readers.map(read, (p.place * row for p in parts), (p.end * row for p in parts))
                )
        except OSError as error:
            raise seals.unreadable(self.file, error) from error

    def _keep_to(self, parts: list[Part]) -> None:
        """Know these parts, and no others."""
        if self.parts != parts[: len(self.parts)]:
            self._places, self._placed = {}, 0
        self.parts = parts

    def _put_aside(self, bad: Mapping[Path, str]) -> None:
        """Deal with damaged parts: one sentence, however many they are."""
        (first, why), *rest = sorted(bad.items())
        more = f" (and {len(rest)} more parts)" if rest else ""
        damaged(first, f"{why}{more}", self.root)
        for path, _ in rest:
            if mends():
                set_aside(path, self.root)

    # -- writing -----------------------------------------------------------------------------------

    def add(self, digests: Sequence[bytes], vectors: Vectors) -> None:
        """Publish vectors of texts, float32 [n, d]: first the rows on disk, then the part that
        names them. For whoever holds the folder's lock."""
        self.width = self.width or vectors.shape[1]
        place, data = self.count, vectors.tobytes()
        whole = self._whole == _mark(self.file.stat(), self.parts) if self.parts else True
        with self.file.open("r+b" if self.file.exists() else "w+b") as handle:
            # over what a killed run left behind the last part
            handle.seek(place * self.width * FLOAT)
            handle.write(data)
            handle.truncate()
            handle.flush()
            os.fsync(handle.fileno())
        about = {"place": str(place), "dimensions": str(self.width)}
        about["vectors"] = hashlib.sha256(data).hexdigest()
        names = pl.Series("digest", digests, pl.Binary)
        path = written(self.folder, f"rows-{place:012d}", names.to_frame(), about)
        seen = identity(path.stat())
        self.parts.append(Part(path, seen, names, place, True, self.width, about["vectors"]))
        self._whole = _mark(self.file.stat(), self.parts) if whole else None

    def remember(self) -> None:
        """Remember that the vectors are what was written, so that the next process need not read
        them."""
        if self._whole is not None:
            self._memory.remember(self.folder, {}, {"vectors": self._whole})

    def texts(self) -> pl.DataFrame:
        """[place, digest] of every text that has a vector."""
        schema = {"place": pl.Int64, "digest": pl.Binary}
        frames = [
            pl.DataFrame({"place": range(part.place, part.end), "digest": part.digests}, schema)
            for part in self.parts
        ]
        return pl.concat([pl.DataFrame(schema=schema), *frames])

    # -- verifying ---------------------------------------------------------------------------------

    def seal(self) -> list[Path]:
        """Remember what parts of before there were seals hold, and their vectors; which they
        are."""
        parts = [part for part in self.parts if part.sha256 is None]
        pairs = zip(parts, self._digests(parts), strict=True)
        column = told(self.folder)
        new = {part.path.name: [part_digest(part.path, column), sha256] for part, sha256 in pairs}
        if new:
            self._memory.remember(self.folder, {}, {"before": {**self._of_before, **new}})
        return [part.path for part in parts]


def matching(
    folder: Path, kind: str, pattern: re.Pattern[str]
) -> Iterator[tuple[Path, re.Match[str]]]:
    """The files of a kind in a folder, in order, with what their names say."""
    for path in sorted(folder.glob(f"{kind}-*.parquet")):
        if match := pattern.fullmatch(path.name):
            yield path, match


def frame_of(path: Path, seal: str | None, schema: Mapping[str, type[pl.DataType]]) -> Frame:
    """The columns of a part whose digest begins with `seal`, or what is wrong with it. Raises
    UserError for one that the system does not let us read."""
    try:
        if seal and not part_digest(path, told(path.parent)).startswith(seal):
            return seals.CHANGED
        return read_parquet(path).select(pl.col(name).cast(kind) for name, kind in schema.items())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise seals.unreadable(path, error) from error
    except (UserError, pl.exceptions.PolarsError) as error:
        if isinstance(error.__cause__, OSError):
            raise
        return "cannot be read as what it was"


def written(folder: Path, stem: str, frame: pl.DataFrame, about: dict[str, str]) -> Path:
    """Write a part whose name begins with `stem`; `about` are its metadata."""

    def name(path: Path) -> str:
        new = f"{stem}-{named(path, told(folder))}.parquet"
        (folder / new).unlink(missing_ok=True)  # one that is damaged, and was left there
        return new

    return add_named(folder, lambda path: frame.write_parquet(path, metadata=about), name)


def _mark(stat: os.stat_result, parts: Sequence[Part]) -> list[Any]:
    """The file of vectors, and the parts that name them."""
    return [*identity(stat), digest([part.path.name for part in parts])]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _dimensions_in(info: Path, *, sealed: bool) -> int | None:
    """What the file beside the vectors says of them; None where it cannot be believed: one that was
    written with `sealed` parts has a seal too. Raises FileNotFoundError where there is none."""
    with suppress(UserError):
        held = read_json(info)
        if not isinstance(held, dict):
            return None
        seal = seals.seal_of(held)
        if held.get("seal", None if sealed else seal) == seal:
            width = held.get("dimensions")
            return width if type(width) is int and width > 0 else None
    return None


def _digest_of(file: int, start: int, end: int) -> str:
    """sha256 of a piece of an open file."""
    seen = hashlib.sha256()
    while start < end and (block := os.pread(file, min(end - start, _BLOCK), start)):
        seen.update(block)
        start += len(block)
    return seen.hexdigest()
