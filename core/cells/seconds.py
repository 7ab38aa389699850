"""What it took to fill a column: the seconds of every process that filled it, and the cells that
came of them, in one small file a process beside the cells.

    with filling(column.folder) as made:
        made(len(cells))  # whenever some are finished

Seconds are those of the machine by the clock, whatever it holds, starting its servers included. A
block within a block counts for its own column only. They are kept every KEPT seconds, so that a
process that is killed loses no more.
"""

from __future__ import annotations

import functools
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from core.cells.damage import hurt, mends, set_aside
from core.cells.seals import CHANGED, seal_of, with_seal
from core.cells.whole import told
from core.errors import UserError
from core.files import read_json, write_atomic

KEPT = 60.0
"""Seconds of filling between two times that they are kept."""


@dataclass(frozen=True)
class Took:
    """Seconds, and how many cells came of them; one that was made twice counts twice."""

    seconds: float = 0.0
    cells: int = 0

    def __add__(self, other: Took) -> Took:
        return Took(self.seconds + other.seconds, self.cells + other.cells)


@dataclass
class _Clock:
    """What this process spends on a column, after what it had spent `before`."""

    folder: Path
    before: Took
    cells: int = 0
    elsewhere: float = 0.0
    """Seconds of blocks within this one."""
    began: float = field(default_factory=time.monotonic)
    kept: float = field(default_factory=time.monotonic)

    def made(self, cells: int) -> None:
        """Count finished cells."""
        self.cells += cells
        if time.monotonic() - self.kept >= KEPT:
            self.keep()

    def keep(self) -> None:
        """Write down what was spent until now."""
        self.kept = time.monotonic()
        if not self.folder.is_dir():  # nothing came of it
            return
        took = self.before + Took(self.kept - self.began - self.elsewhere, self.cells)
        said = {"column": told(self.folder), "seconds": took.seconds, "cells": took.cells}
        with suppress(OSError):  # a full disk is told of by who writes the cells
            write_atomic(_own(self.folder), json.dumps(with_seal(said)))


_running: ContextVar[_Clock | None] = ContextVar("_running", default=None)


@contextmanager
def filling(folder: Path) -> Iterator[Callable[[int], None]]:
    """Keep what the block takes, and the cells that it says were made, for the column in a folder;
    also where it ends by an exception."""
    outer = _running.get()
    clock = _Clock(folder, _read(_own(folder)))
    token = _running.set(clock)
    try:
        yield clock.made
    finally:
        _running.reset(token)
        clock.keep()
        if outer is not None:
            outer.elsewhere += clock.kept - clock.began


def took(folder: Path) -> Took | None:
    """What all processes spent on the column in a folder; None where nobody kept it. A damaged file
    is told of, and left out."""
    found = sorted(folder.glob("seconds-*.json"))
    return sum(map(_read, found), Took()) if found else None


def _own(folder: Path) -> Path:
    """The file of this process."""
    return folder / f"seconds-{_writer(os.getpid())}.json"


@functools.cache
def _writer(pid: int) -> str:
    """A name for the process of this number, which no other has: processes of other machines may
    have the same number."""
    return f"{pid}-{uuid.uuid4().hex[:12]}"


def _read(path: Path) -> Took:
    """What a file says; nothing where it is gone or damaged."""
    try:
        said = read_json(path)
        if said["seal"] == seal_of(said) and said["column"] == told(path.parent):
            return Took(float(said["seconds"]), int(said["cells"]))
    except FileNotFoundError:
        return Took()
    except (UserError, LookupError, TypeError, ValueError) as error:
        if isinstance(error.__cause__, OSError):
            raise
    hurt(path, f"{CHANGED}; the seconds that it says are left out of what the column cost")
    if mends():
        for root in (each for each in path.parents if each.name == "columns"):
            set_aside(path, root.parent)
    return Took()
