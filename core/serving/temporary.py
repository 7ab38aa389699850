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
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core.files import boot

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
    lock = os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    os.write(lock, _machine().encode())
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    new.rename(folder / _HELD)  # nobody sees it before it is held
    return Temporary(folder, lock)


def sweep() -> None:
    """Remove the folders of this user's processes that were killed.

    Anybody may write into a shared temporary folder: no link is followed, and what is not this
    user's own is left alone. Where machines share the folder, a lock may not reach from one to
    another: each removes its own.
    """
    with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
        shared = _opened(opened, str(base()), os.O_DIRECTORY)
        for name in sorted(path.name for path in base().glob(f"{PREFIX}*")):
            with contextlib.suppress(OSError), contextlib.ExitStack() as inside:
                folder = _opened(inside, name, os.O_DIRECTORY | os.O_NOFOLLOW, shared)
                held = _opened(inside, _HELD, os.O_RDWR | os.O_NOFOLLOW, folder)
                if _is_own(folder) and _is_own(held) and _was_here(os.read(held, 200)):
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(name, ignore_errors=True, dir_fd=shared)


def _opened(stack: contextlib.ExitStack, name: str, flags: int, folder: int | None = None) -> int:
    """A descriptor of a file in a folder (a descriptor too), closed with the stack."""
    descriptor = os.open(name, flags | os.O_CLOEXEC, dir_fd=folder)
    stack.callback(os.close, descriptor)
    return descriptor


def _is_own(descriptor: int) -> bool:
    return os.fstat(descriptor).st_uid == os.getuid()


def _was_here(said: bytes) -> bool:
    """Whether the maker of a folder ran on this machine, since it started or before; one of a
    version that did not say so counts as here."""
    host, _, start = said.decode(errors="replace").partition(" ")
    return not said or start == boot() or host == socket.gethostname()


def _machine() -> str:
    """This machine, and which of its starts this is; of containers on it the second alone."""
    return f"{socket.gethostname()} {boot()}"


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
