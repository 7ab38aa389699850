"""What is done about a damaged file of a store.

    damage = Damage(log.say, moves=True)
    with damage.noted():
        ...                      # whatever reads the store

A run sets what is damaged aside, under `STORE/aside`, and so makes it again; a plan goes on as if
it were not there. Both name it. Everything else (export, why ...) ends with a sentence.
"""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from core.errors import UserError, shown
from core.files import write_atomic

ASIDE = "aside"
"""The folder of a store that holds what was set aside, under the paths that it had."""


@dataclass
class Damage:
    """What is found damaged in one walk."""

    say: Callable[[str], None]
    moves: bool
    """Whether it is set aside; else it is left where it is, and left out."""
    found: dict[Path, str] = field(default_factory=dict)
    """What is wrong, by path."""

    @contextmanager
    def noted(self) -> Iterator[None]:
        """What is found in the block is noted here."""
        global _noting
        before, _noting = _noting, self
        try:
            yield
        finally:
            _noting = before

    def of(self, path: Path) -> str | None:
        """What is wrong with a file or folder; None where nothing is."""
        return self.found.get(path)


_noting: Damage | None = None
"""Who notes what is damaged in this process now."""
_told: dict[Path, str] = {}
"""What was said where nobody notes it."""


def damaged(path: Path, why: str, root: Path | None) -> None:
    """Deal with a damaged file or folder of the store at `root` (None: of no store's): what is
    wrong with it is `why`, which ends its sentence. On return it does not count.

    Raises UserError where nobody notes damage.
    """
    noting = _noting
    if noting is None:
        remedy = "remove it and run again"
        if root is not None:
            remedy = f"`magpie verify {root} --repair` sets it aside, and a run makes it again"
        raise UserError(f"{path}: {why}; {remedy}.")
    if path in noting.found and not noting.moves:
        return
    if noting.moves:
        place = set_aside(path, root)
        moved = f"; it is now {place}" if place else ""
        noting.say(shown(f"damaged: {path}: {why}{moved}"))
    elif path not in noting.found:
        noting.say(shown(f"damaged: {path}: {why}; a run sets it aside and makes it again"))
    noting.found[path] = why


def hurt(path: Path, why: str) -> None:
    """Say of a file that it is damaged where nothing needs to be made again for it, once."""
    found = _told if _noting is None else _noting.found
    if path not in found:
        found[path] = why
        text = shown(f"damaged: {path}: {why}")
        print(text, file=sys.stderr, flush=True) if _noting is None else _noting.say(text)


def is_hurt(path: Path) -> bool:
    """Whether it was said of a file that it is damaged."""
    return path in _told or (_noting is not None and path in _noting.found)


def mends() -> bool:
    """Whether what is damaged may be put right now."""
    return _noting is not None and _noting.moves


def put_right(path: Path, data: bytes | str, root: Path) -> None:
    """Where that may be now: move a file out of the way and write what it should say."""
    if not mends():
        return
    if path.exists():
        set_aside(path, root)
    write_atomic(path, data)


def left_out(path: Path) -> bool:
    """Whether a file was found damaged and is left where it is."""
    return _noting is not None and not _noting.moves and path in _noting.found


def set_aside(path: Path, root: Path | None) -> Path | None:
    """Move a file or folder out of the way; returns where it lies now, None where another was
    quicker."""
    mark = f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06d}"
    if root is not None and path.is_relative_to(root):
        place = root / ASIDE / path.relative_to(root)
        place = place.with_name(f"{place.name}.{mark}")
    else:
        place = path.with_name(f"damaged-{path.name}.{mark}")
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.rename(place)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.EXDEV:  # a folder of the store lies on another disk
            raise
        place = path.with_name(f"damaged-{path.name}.{mark}")
        path.rename(place)
    return place
