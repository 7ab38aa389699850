"""Journals: files that finished cells are appended to at once, one a writer, until there are enough
of them for a part.

A journal is a row of frames, each a header (magic, length, CRC-32) and an Arrow IPC stream, so that
cells keep their types; behind the stream stands of which column it is. Each frame is handed to the
operating system in one piece before `append` returns: a process that is killed loses none. It is
synced to the disk every SYNC_SECONDS of writing, so that a machine that loses power, and readers on
another machine, lag by that much. A last frame that is torn is ignored; one that was changed since
is told of, and frames behind it count.

Its writer holds the file (flock) as long as it lives. A journal that nobody holds is a dead
writer's, and the next writer of the column takes it up.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import struct
import time
import uuid
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import polars as pl

from core.cells.damage import hurt
from core.cells.seals import CHANGED
from core.files import fsync_folder

SYNC_SECONDS = 5.0
"""Seconds of writing between two syncs: what a power cut may lose."""

_HEAD = struct.Struct("<4sII")
_MAGIC = b"cell"
_MARK = b"of column "
_MARK_SIZE = len(_MARK) + 16
_ENDING = ".cells"


class Journal:
    """A new journal in a folder, held by this process until `end`, or until it is dropped."""

    def __init__(self, folder: Path, column: str = "") -> None:
        """Makes the file; `column` is what its frames say that they are of."""
        self._column = column
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            self.path = folder / f"journal-{uuid.uuid4().hex[:16]}{_ENDING}"
            self._file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND, 0o666)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(self._file, fcntl.LOCK_EX)
            if os.fstat(self._file).st_nlink:
                break
            os.close(self._file)  # another writer took up the newborn before it was held
        self._close = weakref.finalize(self, os.close, self._file)
        self.rows = self.size = 0
        self._synced = time.monotonic()
        fsync_folder(folder)

    def append(self, cells: pl.DataFrame) -> None:
        """Add a frame. Raises OSError, with the file as it was, where the disk is full."""
        data = _framed(cells, self._column)
        try:
            written = os.write(self._file, data)
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            os.ftruncate(self._file, self.size)  # frames behind a torn one would not be read
            raise
        self.size += len(data)
        self.rows += len(cells)
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            os.fsync(self._file)
            self._synced = time.monotonic()

    def end(self) -> None:
        """Remove the file, whose cells are in a part by now."""
        self.path.unlink(missing_ok=True)
        self._close()


def journals(folder: Path) -> list[Path]:
    """The journals in a folder, dead writers' included."""
    return sorted(folder.glob(f"journal-*{_ENDING}"))


def is_journal(path: Path) -> bool:
    """Whether a file of a column is a journal and not a part."""
    return path.suffix == _ENDING


def frames(path: Path, column: str = "") -> list[pl.DataFrame]:
    """What a journal of a column holds so far, up to a frame that is torn or still being written,
    in as few frames as its types allow. A damaged frame is told of, and left out. Raises
    FileNotFoundError when it has become a part meanwhile."""
    import io

    data = path.read_bytes()
    found: list[pl.DataFrame] = []
    at = lost = 0
    while at < len(data):
        body = _body(data, at, column)
        if body is not None:
            found.append(pl.read_ipc_stream(io.BytesIO(body)))
            at += _HEAD.size + len(body)
            continue
        further = _next(data, at + 1, column)
        if further < 0 and _is_torn(data, at):
            break
        lost += (len(data) if further < 0 else further) - at
        at = len(data) if further < 0 else further
    if lost:
        hurt(path, f"{lost} bytes of it {CHANGED}; the cells that they held are measured again")
    alike = itertools.groupby(found, lambda frame: frame.schema)
    return [pl.concat(run, rechunk=True) for _, run in alike]


def _body(data: bytes, at: int, column: str) -> bytes | None:
    """The body of the frame that begins at a place; None where no whole frame of the column
    does."""
    if at + _HEAD.size > len(data):
        return None
    magic, length, check = _HEAD.unpack_from(data, at)
    body = data[at + _HEAD.size : at + _HEAD.size + length]
    if magic != _MAGIC or len(body) < length or zlib.crc32(body) != check:
        return None
    marked = body[-_MARK_SIZE:].startswith(_MARK)
    return None if marked and column and not body.endswith(_mark(column)) else body


def _next(data: bytes, at: int, column: str) -> int:
    """Where the next whole frame begins; -1 where none does."""
    at = data.find(_MAGIC, at)
    while at >= 0 and _body(data, at, column) is None:
        at = data.find(_MAGIC, at + 1)
    return at


def _is_torn(data: bytes, at: int) -> bool:
    """Whether what begins at a place, which is the last frame, was not written to its end."""
    left = len(data) - at
    if left < _HEAD.size:
        return data[at:].startswith(_MAGIC[:left])
    magic, length, _ = _HEAD.unpack_from(data, at)
    return bool(magic == _MAGIC and left < _HEAD.size + length)


@contextmanager
def taken_up(path: Path) -> Iterator[bool]:
    """Hold a dead writer's journal for the block, and say whether it could be had: its writer may
    live, or another may be quicker."""
    try:
        file = os.open(path, os.O_RDWR)  # on a network file system only a writer may hold it
    except OSError:
        yield False
        return
    try:
        yield _held(file)
    finally:
        os.close(file)


def _held(file: int) -> bool:
    """Hold an open file that is still there; false where another process does, or where this file
    system knows no locks: then nobody's journal is ever taken for a dead one's."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return os.fstat(file).st_nlink > 0


def _mark(column: str) -> bytes:
    """The end of a frame that is of a column."""
    return _MARK + hashlib.sha256(column.encode()).hexdigest()[:16].encode()


def _framed(cells: pl.DataFrame, column: str) -> bytes:
    import io

    stream = io.BytesIO()
    cells.write_ipc_stream(stream, compression="lz4")
    body = stream.getvalue() + (_mark(column) if column else b"")
    return _HEAD.pack(_MAGIC, len(body), zlib.crc32(body)) + body
