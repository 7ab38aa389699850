"""JSON Lines and JSON files as numbered rows of bytes, and as frames whose types follow from the
whole file.

A `.json` file is cut into its rows by a look at quotes and brackets, so that memory holds one batch
however large the file is. (ijson refuses NaN, Infinity and whole numbers of more than 64 bits,
which Python's json writes and reads.)
"""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, NoReturn

import polars as pl

from core.errors import UserError
from synth.published.cells.alike import (
    CONTENTS,
    as_held,
    differ,
    levelled,
    truths_apart,
    with_truths_told,
)
from synth.published.cells.repeated import repeated
from synth.published.cells.texts import Untold, untold

Numbered = tuple[int, bytes]
"""A row of a file, with its line or its number from 1."""

CHUNK = 1 << 22
"""Bytes of a `.json` file that are looked at at once."""

_POLARS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{}]', re.DOTALL)
"""A whole text, a bracket, or a quote that opens a text which is not all there yet."""


def opened(path: Path) -> IO[bytes]:
    """A file's bytes, decompressed where its name ends in .gz or .zst."""
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.open(path), CHUNK)
    if path.suffix == ".zst":
        return io.BufferedReader(_Zstandard(path), CHUNK)
    return path.open("rb")


class _Zstandard(io.RawIOBase):
    """The content of a .zst file. (zstandard's own reader takes a file that is cut off for one that
    ends there.) Raises EOFError for that, and zstandard's error for a damaged one."""

    def __init__(self, path: Path) -> None:
        self._file, self._begun = path.open("rb"), False
        self._held = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._held and (more := self._more()) is not None:
            self._held = memoryview(more)
        size = min(len(buffer), len(self._held))
        buffer[:size], self._held = self._held[:size], self._held[size:]
        return size

    def _more(self) -> bytes | None:
        """What the next bytes of the file hold; None at its end."""
        import zstandard

        packed = self._file.read(zstandard.DECOMPRESSION_RECOMMENDED_INPUT_SIZE)
        if not packed:
            if self._begun:
                raise EOFError("the compressed file is cut off before its end")
            return None
        told = []
        while packed:
            if not self._begun:  # a file may hold several frames
                self._frame, self._begun = zstandard.ZstdDecompressor().decompressobj(), True
            told.append(self._frame.decompress(packed))
            packed = self._frame.unused_data if self._frame.eof else b""
            self._begun = not self._frame.eof
        return b"".join(told)

    def close(self) -> None:
        self._file.close()
        super().close()


def lines(path: Path, batch: int) -> Iterator[list[Numbered]]:
    """The lines of a JSON Lines file that are not blank, with their numbers from 1."""
    with opened(path) as handle:
        numbered = ((number, line.rstrip(b"\r\n")) for number, line in enumerate(handle, 1))
        rows = ((number, line) for number, line in numbered if line and not line.isspace())
        while held := list(islice(rows, batch)):
            yield held


def entries(path: Path, batch: int) -> Iterator[list[Numbered]]:
    """The rows of a JSON file that holds a list, each on one line, with their numbers from 1.
    Raises UserError for a file that is cut off or has something between its rows."""
    with opened(path) as handle:
        rows = enumerate(_entries(handle, path), 1)
        while held := list(islice(rows, batch)):
            yield held


def _entries(handle: IO[bytes], path: Path) -> Iterator[bytes]:
    """The texts of a list's entries. What stands inside one is checked by whoever parses it."""
    text, begin, at, depth, done = b"", 0, 0, 0, 0
    while chunk := handle.read(CHUNK):
        text, at, begin = text[begin:] + chunk, at - begin, 0
        for token in _TOKEN.finditer(text, at):
            mark = token[0]
            if mark == b'"':
                break  # the rest of this text is still to come
            at = token.end()
            if depth >= 2:
                depth += _DEEPER.get(mark, 0)
            else:
                depth = _outside(text[begin : token.start()], mark, depth, done, path)
                begin = token.start() if depth == 2 else at
                continue
            if depth == 1:
                done += 1
                yield text[begin:at].translate(_ONE_LINE)
                begin = at
    if depth != _CLOSED:
        _broken(path, f"it ends within row {done + 1}")
    _outside(text[begin:], b"", depth, done, path)


_DEEPER = {b"{": 1, b"[": 1, b"}": -1, b"]": -1}
_CLOSED = -1
"""The depth after the list."""
_NEXT = {
    (0, b"["): 1,
    (1, b"{"): 2,
    (1, b"["): 2,
    (1, b"]"): _CLOSED,
    (_CLOSED, b""): _CLOSED,
}
"""(Depth, mark outside the entries) -> the depth after it."""
_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")


def _outside(before: bytes, mark: bytes, depth: int, done: int, path: Path) -> int:
    """The depth after a mark outside the entries. Raises UserError where it, or what stands before
    it, does not belong there."""
    comma = b"," if depth == 1 and done and mark != b"]" else b""
    after = _NEXT.get((depth, mark))
    if after is None or before.strip(b" \t\r\n\xef\xbb\xbf") != comma:
        _broken(path, f"unexpected {(before.strip() or mark)[:20]!r} after row {done}")
    return after


def _broken(path: Path, why: str) -> NoReturn:
    raise UserError(f"{path} is not valid JSON: {why}; repair the file.")


@dataclass(frozen=True)
class Frame:
    """Some rows of a file: what their places are called, the place of each, those places whose
    texts hold half a character (see `spelled`), those that name a key twice, with that key, and
    those that hold something else in a text (`cells.texts.untold`)."""

    rows: pl.DataFrame
    unit: str
    places: pl.Series
    halves: frozenset[int]
    repeated: Mapping[int, str]
    untold: Untold


def frames(
    path: Path, batch: int, first: int | None = None, texts: frozenset[str] = frozenset()
) -> Iterator[Frame]:
    """The rows of a JSON or JSON Lines file, in batches that all have the columns and types that
    follow from the whole file, or from those `first` rows that are wanted of it. `texts`: the names
    of columns that may be read as texts.

    The file is read twice: a first batch may hold nothing but nulls where a later one holds texts.
    Raises UserError with the line or row of what is not valid, and for a column of values that no
    type holds.
    """
    unit, numbered = _numbered(path)

    def batches() -> Iterator[list[Numbered]]:
        return _first(numbered(path, batch), first)

    schema, level = _schema(path, unit, lambda: map(_spelled, batches()))
    for held in batches():
        places = pl.Series([number for number, _ in held], dtype=pl.Int64)
        whole = _spelled(held)
        pairs = zip(held, whole, strict=True)
        halves = frozenset(number for (number, line), (_, now) in pairs if now is not line)
        rows = _frame(whole, path, unit, schema, level)
        yield Frame(rows, unit, places, halves, repeated(whole), untold(rows, whole, texts))


def _spelled(held: Sequence[Numbered]) -> list[Numbered]:
    return [(number, spelled(line)) for number, line in held]


def spelled(line: bytes) -> bytes:
    """The same JSON, where a text holds half of a surrogate pair (\\ud83d without the other) with
    its escape spelled out as text: no UTF-8 text holds it, and polars reads NUL."""
    if not _HALF.search(line):
        return line
    told = _ESCAPE.sub(_whole, line)
    return line if told == line else told


_HALF = re.compile(
    rb"\\u[dD](?:[89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..\\u[dD])[c-fC-F])"
)
"""What may be half of a pair."""
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2}|u[dD][89a-fA-F][\da-fA-F]{2}|.)",
    re.DOTALL,
)
"""One escape of a text, a pair of surrogates as one."""


def _whole(escape: re.Match[bytes]) -> bytes:
    """An escape, with one more backslash where it is half of a pair."""
    text = escape[0]
    return b"\\" + text if len(text) == 6 and text[2] in b"dD" else text


def _first(batches: Iterator[list[Numbered]], rows: int | None) -> Iterator[list[Numbered]]:
    for held in batches:
        yield held if rows is None else held[:rows]
        rows = None if rows is None else rows - len(held)
        if rows is not None and rows <= 0:
            return


def _numbered(path: Path) -> tuple[str, Callable[[Path, int], Iterator[list[Numbered]]]]:
    """What a row's place is called, and how the file is cut into rows. Many a `.json` file holds
    one object a line."""
    if ".json" not in path.suffixes[-2:]:
        return "line", lines
    with opened(path) as handle:
        head = handle.read(CHUNK).lstrip(b" \t\r\n\xef\xbb\xbf")
        first, _, rest = head.partition(b"\n")
    if head.startswith(b"["):
        return "row", entries
    try:
        if isinstance(json.loads(first), dict) and rest.strip().startswith(b"{"):
            return "line", lines
    except (ValueError, RecursionError):
        first = head
    try:
        json.loads(path.read_bytes() if len(head) < CHUNK else head)
    except (ValueError, RecursionError) as error:
        _broken(path, _said(error))
    raise UserError(
        f"{path} is JSON but no list; give a list of rows, "
        "or name a file of one object a line .jsonl."
    )


def _schema(
    path: Path, unit: str, batches: Callable[[], Iterator[list[Numbered]]]
) -> tuple[pl.Schema | None, bool]:
    """Columns and types of the whole file, and whether its values have to be made alike first."""
    try:
        plain = (_frame(held, path, unit) for held in batches())
        return _common(path, (_alike(frame, path).clear() for frame in plain)), False
    except _UnlikeError:
        levelled = (_frame(held, path, unit, level=True).clear() for held in batches())
        return _common(path, levelled), True


def _alike(frame: pl.DataFrame, path: Path) -> pl.DataFrame:
    """The same frame. Raises where texts and lists of parts, or lists of texts and of parts, seem
    to stand in one column of contents: polars spells the parts out then."""
    for column, kind in frame.schema.items():
        turn = kind.inner if isinstance(kind, pl.List) else None
        fields = turn.fields if isinstance(turn, pl.Struct) else []
        for name, given in ((f.name, f.dtype) for f in fields if f.name in CONTENTS):
            content = pl.element().struct.field(name)
            if given == pl.String:
                spelled = content.str.starts_with('[{"')
            elif given == pl.List(pl.String):
                spelled = content.list.eval(pl.element().str.starts_with('{"')).list.any()
            else:
                continue
            if frame.select(pl.col(column).list.eval(spelled).list.any().any()).item():
                raise _unlike(path, ValueError(f"{column}: texts and lists of parts"))
    return frame


def _common(path: Path, parts: Iterator[pl.DataFrame]) -> pl.Schema | None:
    """Columns and types that hold those of every part; None where there is none."""
    seen: pl.DataFrame | None = None
    for empty in parts:
        if seen is None:
            seen = empty
        elif seen.schema != empty.schema:
            try:
                seen = pl.concat(truths_apart(seen, empty), how="diagonal_relaxed")
            except (pl.exceptions.PolarsError, TypeError) as error:
                raise _unlike(path, error) from error
    if seen is None:
        return None
    return pl.Schema({name: as_held(kind) for name, kind in seen.schema.items()})


def _frame(
    held: Sequence[Numbered],
    path: Path,
    unit: str,
    schema: pl.Schema | None = None,
    level: bool = False,
) -> pl.DataFrame:
    """Numbered JSON objects as a frame, with these columns and types where given. `level`: texts
    and lists of parts stand in one column of contents; make parts of all."""
    try:
        if not level:
            text = b"\n".join(line for _, line in held)
            frame = pl.read_ndjson(text, schema=schema, infer_schema_length=None)
            if len(frame) == len(held):
                return frame
    except _POLARS:
        pass  # the sentence below says which row; what is odd but valid is read by Python
    rows = [_object(line, f"{path} {unit} {number}", path) for number, line in held]
    try:
        alike = with_truths_told([levelled(row) for row in rows] if level else rows, schema)
        return pl.from_dicts(alike, schema=schema, infer_schema_length=None)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as error:
        raise _unlike(path, error, differ(rows, held, unit)) from error


def _object(line: bytes, where: str, path: Path) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        kind = "JSON" if where.split()[-2] == "row" else "JSON Lines"
        raise UserError(
            f"{path} is not valid {kind}: {where.removeprefix(f'{path} ')}: {_said(error)}; "
            "repair or remove it."
        ) from error
    if not isinstance(row, dict):
        raise UserError(f"{where} is JSON but no object; every one must be a row.")
    return row


def _said(error: ValueError | RecursionError) -> str:
    """Why JSON cannot be read, in a reader's words."""
    if isinstance(error, RecursionError):
        return "its values lie within one another deeper than can be read"
    if isinstance(error, UnicodeDecodeError):  # json guesses UTF-16 where there are zeros
        return f"no UTF-8 text (byte {error.object[error.start]:#04x} at {error.start})"
    return str(error)


class _UnlikeError(UserError):
    """A column holds values of different kinds."""


def _unlike(path: Path, error: Exception, where: str = "") -> _UnlikeError:
    told = where or str(error).splitlines()[0][:200]
    return _UnlikeError(
        f"{path}: one column holds values of different kinds ({told}); make them alike."
    )
