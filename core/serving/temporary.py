"""Temporary folders that go with whoever made them, whatever killed it.

torch, vLLM, multiprocessing and W&B leave folders in the temporary folder when they are killed. So
a run has one of its own there, and so has every command that it starts; what lies in it is removed
with it. Its maker holds a lock on a file in it, which the kernel gives up for a process that was
killed: the next folder that is made removes those that nobody holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PREFIX = "magpie-"
_HELD = ".held"
_GIVEN = "MAGPIE_TMPDIR"
"""Where a run and its commands make their folders: the temporary folder that the run was given."""

LONGEST = 40
"""Characters of the name of that folder. A socket's whole name has 107 at most, and 60 of them are
made below it."""


@dataclass(frozen=True)
class Temporary:
    """A folder, and the lock on it (a file descriptor, to be handed to a child that holds it
    too)."""

    folder: Path
    lock: int

    def environment(self) -> dict[str, str]:
        """What a command needs to put what is temporary into the folder, and only that: caches that
        are worth keeping stay where they are without us."""
        caches = {
            "TORCHINDUCTOR_CACHE_DIR": str(base() / f"torchinductor_{getpass.getuser()}"),
            "RAY_TMPDIR": str(base()),
        }
        kept = {name: path for name, path in caches.items() if name not in os.environ}
        return {**kept, "TMPDIR": str(self.folder), _GIVEN: str(base())}

    def remove(self) -> None:
        """Remove the folder and give up the lock."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.close(self.lock)


def base() -> Path:
    """The folder that temporary folders are made in: the user's, or /tmp where its name leaves no
    room for those of sockets."""
    given = Path(os.environ.get(_GIVEN) or tempfile.gettempdir())
    return given if len(str(given)) <= LONGEST else Path("/tmp")


def make() -> Temporary:
    """A folder of this process's own; what killed processes left is removed first."""
    sweep()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base()))
    new = folder / ".new"
    lock = os.open(new, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    new.rename(folder / _HELD)  # nobody sees it before it is held
    return Temporary(folder, lock)


def sweep() -> None:
    """Remove the folders of this user's processes that were killed."""
    for held in base().glob(f"{PREFIX}*/{_HELD}"):
        with contextlib.suppress(OSError):
            if held.stat().st_uid != os.getuid():
                continue
            lock = os.open(held, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(held.parent, ignore_errors=True)
            finally:
                os.close(lock)


_OWN: list[Temporary] = []
"""This process's, while it has one."""


@contextlib.contextmanager
def own() -> Iterator[None]:
    """A temporary folder for this process and the children that it starts, for the length of the
    block; within another block, that one's."""
    if _OWN:
        yield
        return
    made = make()
    _OWN.append(made)
    before = {name: os.environ.get(name) for name in made.environment()}
    given = tempfile.tempdir
    os.environ.update(made.environment())
    tempfile.tempdir = str(made.folder)
    try:
        yield
    finally:
        tempfile.tempdir = given
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        _OWN.remove(made)
        made.remove()
