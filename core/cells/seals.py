"""What files hold, so that one that was changed since is noticed.

A seal is a file's size and sha256, kept by whoever wrote it. Which files were read and found to
hold what their seals say is remembered by size, times and inode: 19 GB are read once, and after
that a look at a folder is a `stat` a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any, TypeGuard

from core.errors import UserError
from core.files import file_digest, read_json, write_atomic

Seals = dict[str, dict[str, Any]]
"""Seals by the name of the file below a folder: {"bytes": its size, "sha256": hex}."""

VERIFIED = "verified"
"""The folder of a store that remembers which files were read and found whole, and notes what there
is; it may be removed at the cost of reading them once more, and of not missing what is gone."""

CHANGED = "was changed after it was made"
GONE = "is gone"
EMPTIED = "is empty and was not"
FOLDER = "is no file any more"
SETTLED = 2.0
"""Seconds after which a file that is read is taken for finished: the clock of a file system may
not tell a change within them from the one before."""
READERS = 8
"""Files that are read at once."""


def names_below(folder: Path, without: Iterable[str] = ()) -> list[str]:
    """The names of all files below a folder, in order, those `without` aside."""
    left = {*without}
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name not in left)


def sealed(folder: Path, names: Iterable[str]) -> Seals:
    """Read these files of a folder, and seal them."""
    listed = list(names)
    sizes = [(folder / name).stat().st_size for name in listed]
    digests = _digests([folder / name for name in listed])
    pairs = zip(listed, sizes, digests, strict=True)
    return {name: {"bytes": size, "sha256": sha256} for name, size, sha256 in pairs}


@dataclass
class Memory:
    """Which files of a folder were found to hold what their seals say; kept in one file, which may
    be lost at the cost of reading once more."""

    path: Path

    def __post_init__(self) -> None:
        self.held: dict[str, Any] = {}
        with suppress(OSError, UserError):
            held = read_json(self.path)
            self.held = held if isinstance(held, dict) else {}

    def remember(
        self,
        folder: Path,
        seals: Seals,
        about: Mapping[str, Any] | None = None,
        only: Iterable[str] | None = None,
    ) -> None:
        """Remember that these files hold what their seals say now, and whatever else is said
        `about` them; of other files, `only` of these (none: of all)."""
        files = dict(self._files)
        if only is not None:
            files = {name: files[name] for name in only if name in files}
        for name, seal in seals.items():
            with suppress(OSError):
                files[name] = [seal["sha256"], *identity((folder / name).stat())]
        held = {**self.held, **(about or {}), "files": files}
        if held == self.held:
            return
        self.held = held
        with suppress(OSError):  # a store that cannot be written to is read again each time
            write_atomic(self.path, json.dumps(held))

    def knows(self, name: str, sha256: str, stat: os.stat_result) -> bool:
        """Whether a file of this size and these times was found to have this digest."""
        return bool(self._files.get(name) == [sha256, *identity(stat)])

    def sealed(self, folder: Path, names: Iterable[str]) -> Seals:
        """As the function `sealed`, without reading what is known by size and times; and remember
        them."""
        stats = {name: (folder / name).stat() for name in names}
        known = {
            name: str(self.digest(name))
            for name, stat in stats.items()
            if self.knows(name, str(self.digest(name)), stat)
        }
        new = sealed(folder, [name for name in stats if name not in known])
        old = {name: {"bytes": stats[name].st_size, "sha256": known[name]} for name in known}
        return {**old, **new}

    def digest(self, name: str) -> str | None:
        """The digest that a file was found to have; None where none is remembered."""
        known = self._files.get(name)
        return str(known[0]) if isinstance(known, list) and known else None

    @property
    def _files(self) -> dict[str, Any]:
        files = self.held.get("files")
        return files if isinstance(files, dict) else {}


def broken(
    folder: Path,
    seals: Mapping[str, Mapping[str, Any]],
    memory: Memory,
    *,
    anew: bool = False,
) -> dict[str, str]:
    """What is wrong with files of a folder by name; {} where all hold what their seals say.

    Files are read that the memory does not know as they are now, or all `anew`. Raises UserError
    for one that cannot be read.
    """
    wrong: dict[str, str] = {}
    unread: dict[str, os.stat_result] = {}
    for name, seal in seals.items():
        try:
            stat = (folder / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            wrong[name] = GONE
            continue
        except OSError as error:
            raise unreadable(folder / name, error) from error
        at_once = _unlike(stat, seal["bytes"])
        if at_once is not None:
            wrong[name] = at_once
        elif anew or not memory.knows(name, str(seal["sha256"]), stat):
            unread[name] = stat
    good: Seals = {}
    digests = _digests([folder / name for name in unread])
    for (name, stat), sha256 in zip(unread.items(), digests, strict=True):
        if sha256 != seals[name]["sha256"]:
            wrong[name] = CHANGED
        elif settled(folder / name, stat):
            good[name] = dict(seals[name])
    if good:
        memory.remember(folder, good)
    return wrong


def _unlike(stat: os.stat_result, size: int) -> str | None:
    """What is wrong with a file of which nothing but the size is looked at; None where nothing
    is."""
    if not S_ISREG(stat.st_mode):
        return FOLDER
    if stat.st_size == size:
        return None
    return CHANGED if stat.st_size else EMPTIED


def with_seal(said: Mapping[str, Any]) -> dict[str, Any]:
    """What a JSON file says, with the seal of it."""
    return {**said, "seal": seal_of(said)}


def seal_of(said: Mapping[str, Any]) -> str:
    """What a JSON file says, as a digest."""
    held = {name: value for name, value in said.items() if name != "seal"}
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()


def is_seals(value: Any) -> TypeGuard[Seals]:
    """Whether this has the form of seals."""
    return isinstance(value, dict) and all(
        isinstance(seal, dict) and {"bytes", "sha256"} <= {*seal} for seal in value.values()
    )


def settled(path: Path, stat: os.stat_result) -> bool:
    """Whether a file stood still for a while before it was read, and while it was."""
    still = time.time() - max(stat.st_mtime, stat.st_ctime) > SETTLED
    return still and identity(path.stat()) == identity(stat)


def identity(stat: os.stat_result) -> list[int]:
    """What a file is known by without reading it."""
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _digests(paths: list[Path]) -> list[str]:
    """sha256 of each file, several read at once."""
    if len(paths) < 2:
        return [_digest(path) for path in paths]
    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(_digest, paths))


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> UserError:
    """The sentence for a file that the system does not let us read."""
    why = error.strerror or type(error).__name__
    return UserError(
        f"{path} cannot be read ({why.lower()}); see to its permissions and its disk, then run "
        "again: nothing was changed."
    )
