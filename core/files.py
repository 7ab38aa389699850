"""Files: written so that a reader sees all of one or nothing, and read with one sentence where one
is damaged.

    with replacing(path) as temporary:      # any writer: Parquet, gzip, a folder of weights
        frame.write_parquet(temporary)

Only this module makes temporary names.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import math
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from core.errors import UserError, of_system

if TYPE_CHECKING:
    import polars as pl

REMEDY = "remove that file and run again"
DEEP = "its values lie within one another deeper than can be read"


def cache_folder() -> Path:
    """Where converted models and remembered digests live: MAGPIE_CACHE, else ~/.cache/magpie."""
    return Path(os.environ.get("MAGPIE_CACHE") or Path.home() / ".cache" / "magpie")


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def remembered_digest(path: Path, memory: Path) -> str:
    """As `file_digest`, worked out once for a file: what it was is remembered below the folder
    `memory` by the file's path, size and times, so that 19 GB are read once.

    A file that changed within the last two seconds is not remembered: the clock of a file system
    may not tell its next change from this one.
    """
    stat = path.stat()
    where = str(path.resolve())
    is_now = {
        "path": where,
        "size": stat.st_size,
        "modified_ns": stat.st_mtime_ns,
        "changed_ns": stat.st_ctime_ns,
    }
    note = memory / f"{hashlib.sha256(where.encode()).hexdigest()[:16]}.json"
    with suppress(OSError, UserError, AttributeError):
        known = read_json(note)
        same = {name: known.get(name) for name in is_now} == is_now
        # a note of before there were checks has none
        if same and known.get("check", _check(known)) == _check(known) and known.get("sha256"):
            return str(known["sha256"])
    sha256 = file_digest(path)
    if time.time() - max(stat.st_mtime, stat.st_ctime) > 2 and path.stat() == stat:
        said = {**is_now, "sha256": sha256}
        with suppress(OSError):  # where nothing can be remembered it is worked out each time
            write_atomic(note, json.dumps({**said, "check": _check(said)}))
    return sha256


def _check(note: dict[str, Any]) -> str:
    """A digest of what a note says."""
    said = sorted((name, value) for name, value in note.items() if name != "check")
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader sees all of it or none: temporary name, fsync, rename."""
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def write_changed(path: Path, data: str) -> bool:
    """As `write_atomic`, where the file does not say just that; whether it was written."""
    with suppress(FileNotFoundError, UnicodeDecodeError):
        if path.read_text(encoding="utf-8") == data:
            return False
    write_atomic(path, data)
    return True


def link(file: Path, path: Path) -> None:
    """Make `path` another name of a file, in the place of whatever was there."""
    if path.is_file() and path.samefile(file):
        return
    with _beside(path) as temporary:
        os.link(file, temporary)
        temporary.replace(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write a file or a folder under, which becomes `path` when
    the block ends and is gone when it raises.

    It is synced first. A file replaces what was there; a folder must be new. What a killed process
    left under a temporary name is never read, and harms nothing; `clear_leftovers` removes it.
    """
    with _beside(path) as temporary:
        yield temporary
        fsync_tree(temporary)
        temporary.replace(path)


def add_named(folder: Path, write: Callable[[Path], object], name: Callable[[Path], str]) -> Path:
    """Write a new file of a folder, whose `name` follows from what was written; returns where it
    is. FileExistsError where there is one of that name."""
    with _beside(folder / "new") as temporary:
        write(temporary)
        fsync_tree(temporary)
        path = folder / name(temporary)
        os.link(temporary, path)
    return path


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A name for a neighbour of `path` that is gone after the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two machines may have a process of the same number, so a part of the name is random.
    mark = f"{_kernel()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    temporary = path.with_name(f".{path.name}.{mark}.tmp")
    try:
        yield temporary
    finally:
        remove(temporary)
    fsync_folder(path.parent)


def clear_leftovers(path: Path) -> None:
    """Remove what killed processes left of `path` under temporary names; for its only writer."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        remove(leftover)


@functools.cache
def boot() -> str:
    """Which start of this machine this is."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@functools.cache
def processes() -> str:
    """Where process numbers mean the same: this start of this machine, and this container of it."""
    return f"{boot()} {Path('/proc/self/ns/pid').readlink()}"


@functools.cache
def _kernel() -> str:
    """The same, short enough for the name of a file."""
    return hashlib.sha256(processes().encode()).hexdigest()[:8]


def sweep(folder: Path) -> None:
    """Remove what processes of this machine that have ended left in a folder under temporary
    names."""
    for leftover in folder.glob(".*.tmp"):
        kernel, _, rest = leftover.name.split(".")[-2].partition("-")
        pid = rest.partition("-")[0]
        if kernel == _kernel() and pid.isdigit() and _has_ended(int(pid)):
            remove(leftover)


def _has_ended(pid: int) -> bool:
    """Whether there is no such process; one of another user may be hidden, and lives."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def remove(path: Path) -> None:
    """Remove a file or a folder, should it be there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(path: Path) -> None:
    """Make the content of a file, or of every file below a folder, durable."""
    for file in [path, *path.rglob("*")]:
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


@contextmanager
def only_holder(lock: FileLock, complaint: str) -> Iterator[None]:
    """Hold `lock` for the length of the block. Raises UserError, saying `complaint`, where another
    holds it."""
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(complaint) from error
    try:
        yield
    finally:
        lock.release()


def read_json(path: Path, remedy: str = REMEDY) -> Any:
    """The value that a JSON file holds.

    Raises FileNotFoundError where there is none, which is the caller's to judge, and UserError,
    with `remedy` as the way out, where it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except RecursionError as error:
        raise UserError(f"{path} is not valid JSON ({DEEP}); {remedy}.") from error
    except OSError as error:
        raise UserError(str(of_system(error))) from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); {remedy}.") from error


def read_json_lines(path: Path, remedy: str = REMEDY) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of each line of a JSON Lines file that is not blank.

    Raises as `read_json`; the sentence names the line.
    """
    try:
        with path.open(encoding="utf-8") as handle:
            for number, line in enumerate(handle, 1):
                if line.strip():
                    yield number, _line(path, number, line, remedy)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text ({error}); {remedy}.") from error


class RepeatedKeyError(ValueError):
    """An object of JSON names a key twice: one of the values would silently count."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key!r} stands twice in one object")
        self.key = key


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The `object_pairs_hook` of a JSON parser: an object whose keys differ. Raises
    RepeatedKeyError."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise RepeatedKeyError(Counter(key for key, _ in pairs).most_common(1)[0][0])
    return made


def _line(path: Path, number: int, line: str, remedy: str) -> Any:
    try:
        return json.loads(line, object_pairs_hook=each_once)
    except (ValueError, RecursionError) as error:
        where, why = f"{path} line {number}", DEEP if isinstance(error, RecursionError) else error
        raise UserError(f"{where} is not valid JSON ({why}); {remedy}.") from error


def read_parquet(
    path: Path, columns: list[str] | None = None, remedy: str = REMEDY
) -> pl.DataFrame:
    """A Parquet file, or those `columns` of it. Raises as `read_json`, also for a column that it
    lacks."""
    import polars as pl

    try:
        return pl.read_parquet(path, columns=columns, glob=False)
    except FileNotFoundError:
        raise
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet ({error}); {remedy}.") from error


def finite(value: Any) -> Any:
    """For JSON: nan and infinities as null, at any depth of dicts, lists and tuples; all else as it
    is."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
