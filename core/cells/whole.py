"""Which parts of a column hold what was written, and which there must be.

A part's name ends in a digest of its column and its bytes, so a part needs no file beside it to be
known by. Each is read once, then known by size and times (`core/cells/seals.py`). A part of before
there were digests is looked at its ends, and read once it was sealed by `magpie verify`.

That there is a part is noted by an empty file of its name in `STORE/verified/columns/NAME/KEY`,
beside a copy of what determines the cells: so one that was removed since is missed. Whoever removes
one that others replace removes its note before it and once more behind it, and whoever notes one
looks whether it is there still: so no two writers leave the note of a part that was merged away.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any

from core.cells import seals
from core.cells.damage import damaged, hurt, left_out, mends
from core.cells.seals import Memory

_NAMED = re.compile(r"-([0-9a-f]{32})\.parquet")
_ENDS = b"PAR1"
ABOUT = "column.json"
"""What determines a column's cells."""
LOST = f"{seals.GONE}; its cells count as unmeasured, and a run that needs them measures them again"
_BLOCK = 2**20

_seen: dict[Path, list[int]] = {}
"""Parts that this process found whole, as they were then."""


def told(folder: Path) -> str:
    """What a column is known by: its name and its key."""
    return f"{folder.parent.name}/{folder.name}"


def named(path: Path, column: str) -> str:
    """The digest that ends the name of a part that holds these bytes."""
    return part_digest(path, column)[:32]


def part_digest(path: Path, column: str) -> str:
    """sha256 (hex) of a column's name and key and the bytes of a file."""
    seen = hashlib.sha256(f"{column}\0".encode())
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            seen.update(block)
    return seen.hexdigest()


def whole(folder: Path, parts: list[Path], root: Path | None) -> list[Path]:
    """Those of a column's parts that count; of the others it is said what is wrong with them (see
    core/cells/damage.py). `root` is the store's folder, where the column is in one.

    Raises UserError for a part that cannot be read.
    """
    new = [path for path in parts if not _was_seen(path)]
    if not new:
        return [path for path in parts if not left_out(path)]
    memory = memory_of(folder, root)
    good: seals.Seals = {}
    bad: set[Path] = set()
    for path in new:
        try:
            why = _wrong(path, memory, told(folder), good)
        except FileNotFoundError:
            continue  # merged away meanwhile, which its reader finds out
        except OSError as error:
            raise seals.unreadable(path, error) from error
        if why:
            bad.add(path)
            spoiled(path, why, root)
    if good and memory is not None:
        memory.remember(folder, good, only=[path.name for path in parts])
    return [path for path in parts if path not in bad and not left_out(path)]


# -- the parts that there must be -----------------------------------------------------------------


def notes_of(folder: Path, root: Path) -> Path:
    """The folder that notes which parts a column has."""
    return root / seals.VERIFIED / "columns" / told(folder)


def about_of(folder: Path, root: Path) -> Path:
    """The copy of what determines a column's cells."""
    return notes_of(folder, root) / "about"  # what ends in .json is remembered of a file


def note(path: Path, root: Path | None) -> None:
    """Note that a column has a part. `root` is the store's folder, where the column is in one."""
    if root is None:
        return
    kept = notes_of(path.parent, root) / path.name
    with suppress(OSError):  # a store that cannot be written to is known less well
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.touch()
        if not path.exists():
            kept.unlink(missing_ok=True)


def forget(path: Path, root: Path | None) -> None:
    """Note that a column has a part no more."""
    if root is not None:
        (notes_of(path.parent, root) / path.name).unlink(missing_ok=True)


def replaced(path: Path, root: Path | None) -> None:
    """Remove a part whose cells others hold."""
    forget(path, root)
    path.unlink(missing_ok=True)
    forget(path, root)


def spoiled(path: Path, why: str, root: Path | None) -> None:
    """Deal with a damaged part (core/cells/damage.py)."""
    damaged(path, why, root)
    if mends():
        forget(path, root)


def count(folder: Path, root: Path) -> list[Path]:
    """Tell of the parts that a column had and has no more, and note those that it has; returns
    those that are gone. Where damage is mended they are told of once."""
    noted = {path.name for path in notes_of(folder, root).glob("part-*.parquet")}
    here = {path.name for path in folder.glob("part-*.parquet")}  # listed after what was noted
    gone = [folder / name for name in sorted(noted - here) if _is_missed(folder / name, root)]
    for path in gone:
        hurt(path, LOST)
        if mends():
            forget(path, root)
    for name in here - noted:
        note(folder / name, root)
    return gone


def _is_missed(path: Path, root: Path) -> bool:
    """Whether a part is gone and noted still: of one that was merged the note goes first."""
    return not path.exists() and (notes_of(path.parent, root) / path.name).exists()


# -- what parts hold -------------------------------------------------------------------------------


def complaint(path: Path, root: Path | None) -> str | None:
    """What is wrong with one file whose name ends in its digest; None where nothing is. Raises
    FileNotFoundError where there is none."""
    if _was_seen(path):
        return None
    good: seals.Seals = {}
    memory = memory_of(path.parent, root)
    try:
        why = _wrong(path, memory, told(path.parent), good)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise seals.unreadable(path, error) from error
    if good and memory is not None:
        memory.remember(path.parent, good)
    return why


def memory_of(folder: Path, root: Path | None) -> Memory | None:
    """What is remembered of a column's parts; None outside a store."""
    if root is None:
        return None
    return Memory(root / seals.VERIFIED / "columns" / f"{told(folder)}.json")


def _was_seen(path: Path) -> bool:
    try:
        return not left_out(path) and _seen.get(path) == seals.identity(path.stat())
    except OSError:
        return False


def _wrong(path: Path, memory: Memory | None, column: str, good: seals.Seals) -> str | None:
    """What is wrong with a part; None where nothing is known to be. One that was read now and
    stood still is put among the `good`."""
    if left_out(path):
        return None
    stat = path.stat()
    ends = _NAMED.search(path.name)
    known: Any = ends.group(1) if ends else memory and memory.digest(path.name)
    if not S_ISREG(stat.st_mode):
        return seals.FOLDER
    if not stat.st_size:
        return seals.EMPTIED
    if not _is_parquet(path):
        return "is no Parquet file"
    if known and not (memory and memory.knows(path.name, known, stat)):
        if part_digest(path, column)[: len(known)] != known:
            return seals.CHANGED
        if seals.settled(path, stat):
            good[path.name] = {"sha256": known}
    _seen[path] = seals.identity(stat)
    return None


def _is_parquet(path: Path) -> bool:
    """Whether a file begins and ends as Parquet files do."""
    with path.open("rb") as handle:
        begins = handle.read(len(_ENDS))
        handle.seek(0, os.SEEK_END)
        if handle.tell() < 3 * len(_ENDS):
            return False
        handle.seek(-len(_ENDS), os.SEEK_END)
        return begins == _ENDS == handle.read()


def is_known(path: Path, root: Path) -> bool:
    """Whether there is a digest to compare a part with: in its name, or remembered."""
    memory = memory_of(path.parent, root)
    remembered = memory is not None and memory.digest(path.name) is not None
    return remembered or _NAMED.search(path.name) is not None


def read_anew(path: Path, root: Path) -> str | None:
    """What is wrong with a part that is read whatever is remembered of it; None where nothing is.
    The digest of one of before there were digests is remembered from now on."""
    folder = path.parent
    memory = memory_of(folder, root)
    _seen.pop(path, None)
    if not path.is_file():
        return seals.FOLDER
    stat, sha256 = path.stat(), part_digest(path, told(folder))
    ends = _NAMED.search(path.name)
    known: Any = ends.group(1) if ends else memory and memory.digest(path.name)
    if known and sha256[: len(known)] != known:
        return seals.CHANGED if stat.st_size else seals.EMPTIED
    if memory is not None:
        memory.remember(folder, {path.name: {"sha256": known or sha256}})
    return None
