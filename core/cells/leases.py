"""Leases: what one process of all machines that share a file system holds.

    with leased(path, "another run ({holder}) is making it; wait for it", waiting=None): ...

flock does not reach from one machine to another on every such file system (NFS without its lock
daemon, Lustre with `localflock`); there two holders would write into one folder. A lease is a file
that only one can create, and that its holder touches every BEAT seconds. One whose process is gone
on this machine is taken over at once, one on another machine after PATIENCE seconds without a sign
of life. Whoever finds that it was taken over itself (frozen so long) ends at once.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import processes

BEAT = 30.0
"""Seconds between two signs of life of whoever holds a lease."""

PATIENCE = 180.0
"""Seconds without a sign of life, by the file system's own clock, after which a holder on another
machine is taken for dead: six beats, and more than a network file system may show old times."""


class Lease:
    """The right to make what a path stands for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._token = ""
        self._file = -1
        self._released = threading.Event()

    def acquire(self) -> str | None:
        """Take it; returns None, or who has it ("process 12 on n1, Slurm job 7") where another
        does. One that a dead holder left is taken over."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while not self._create():
            left = _lease(self.path)
            if left is None:
                continue  # released meanwhile
            if not _is_dead(left):
                return _who(left)
            self._bury(left)
        threading.Thread(target=self._beat, name=f"lease-{self.path.name}", daemon=True).start()
        return None

    def release(self) -> None:
        """Give it back."""
        self._released.set()
        with suppress(OSError):
            if self._is_mine():
                self.path.unlink()
        os.close(self._file)

    def _create(self) -> bool:
        """Whether the file could be created; it names this process then."""
        try:
            self._file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        self._token = uuid.uuid4().hex
        job = os.environ.get("SLURM_JOB_ID", "")
        holder = {"token": self._token, "pid": os.getpid(), "machine": _machine(), "job": job}
        holder |= {"host": socket.gethostname(), "since": _began(os.getpid())}
        os.write(self._file, json.dumps(holder).encode())
        os.fsync(self._file)
        return True

    def _bury(self, left: dict[str, Any]) -> None:
        """Remove what a dead holder left. Of several that found it dead one does: the one that
        creates a file of the dead one's name, and then still finds its lease."""
        grave = self.path.with_name(f".{self.path.name}.{left['token'] or 'unsigned'}.grave")
        try:
            os.close(os.open(grave, os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError:
            if _age(grave) > PATIENCE:  # that one died as well
                grave.unlink(missing_ok=True)
            time.sleep(0.05)
            return
        now = _lease(self.path)
        if now is not None and now["token"] == left["token"] and _is_dead(now):
            self.path.unlink(missing_ok=True)
        grave.unlink(missing_ok=True)

    def _is_mine(self) -> bool:
        found = _lease(self.path)
        return found is not None and found["token"] == self._token

    def _beat(self) -> None:
        """Give signs of life; end this process where another has taken over."""
        while not self._released.wait(BEAT):
            # apart: a network file system knows the file no more once another has taken over
            with suppress(OSError):
                os.utime(self._file)
            with suppress(OSError):
                if not self._is_mine() and not self._released.is_set():
                    print(
                        f"magpie: {self.path} was taken over by another run, because this one gave "
                        f"no sign of life for {PATIENCE:.0f} s; this one ends, so that two do not "
                        "write into one folder.",
                        file=sys.stderr,
                        flush=True,
                    )
                    os._exit(1)


@contextmanager
def leased(path: Path, complaint: str, waiting: Callable[[str], None] | None) -> Iterator[None]:
    """Hold the lease `path` for the length of the block.

    Where another has it: wait, telling `waiting` so once; without `waiting` raises UserError,
    saying `complaint` with the holder in place of {holder}.
    """
    lease = Lease(path)
    told = False
    while (holder := lease.acquire()) is not None:
        if waiting is None:
            raise UserError(complaint.replace("{holder}", holder))
        if not told:
            waiting(f"waiting for {holder}, which has {path}")
            told = True
        time.sleep(1)
    try:
        yield
    finally:
        lease.release()


def _lease(path: Path) -> dict[str, Any] | None:
    """What a lease says of its holder, and its `age` in seconds; None where nobody has it. One that
    was not signed yet has an empty token."""
    try:
        # opening asks a network file system for the file as it is now
        with path.open(errors="replace") as file:
            text, modified = file.read(), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    return {**_signed(text), "age": _clock(path.parent) - modified}


def _signed(text: str) -> dict[str, Any]:
    """What the text of a lease says of its holder; of a damaged one, as of one that was not signed
    yet, that nobody is known."""
    nobody = {"token": "", "pid": 0, "host": "a machine", "machine": "", "job": "", "since": None}
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return nobody
    if not isinstance(said, dict) or not isinstance(said.get("since", ""), int | float | None):
        return nobody
    held = {name: said.get(name, value) for name, value in nobody.items()}
    texts = all(isinstance(held[name], str) for name in ("token", "host", "machine", "job"))
    return held if texts and type(held["pid"]) is int and held["token"].isalnum() else nobody


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder of a lease is gone, as far as it can be known from here."""
    if holder["machine"] != _machine():
        return bool(holder["age"] > PATIENCE)
    # A process of another user may be hidden from us: what is not to be seen gives signs of life.
    began = _began(holder["pid"])
    hidden = began is None and not os.access("/proc/1/stat", os.R_OK)
    return bool(holder["age"] > PATIENCE) if hidden else began != holder["since"]


def _began(pid: int) -> int | None:
    """When a process of this machine began, in clock ticks since the machine did, which no change
    of the clock moves; None where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # the name may hold spaces and brackets
    return int(text.rpartition(")")[2].split()[19])


def _who(holder: dict[str, Any]) -> str:
    job = f", Slurm job {holder['job']}" if holder["job"] else ""
    return f"process {holder['pid']} on {holder['host']}{job}"


def _age(path: Path) -> float:
    """Seconds since a file was touched; 0 where there is none."""
    with suppress(FileNotFoundError):
        return _clock(path.parent) - path.stat().st_mtime
    return 0.0


def _clock(folder: Path) -> float:
    """The time by the clock of the folder's file system, which need not be this machine's."""
    probe = folder / f".clock.{uuid.uuid4().hex[:8]}.tmp"
    with probe.open("w") as file:
        now = os.fstat(file.fileno()).st_mtime
    probe.unlink(missing_ok=True)
    return now


@cache
def _machine() -> str:
    """This machine since it started, and this container: where process numbers mean the same."""
    return f"{socket.gethostname()} {processes()}"
