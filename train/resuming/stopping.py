"""Stopping a training without losing a step: save at the next step boundary, then end with an exit
code of its own.

Who asks: SIGTERM and SIGUSR1 to any rank (Slurm sends the latter before the time is up), or whoever
removes the file `listening`, which rank 0 keeps while it trains. The file reaches every machine
that shares the folder, needs no process id, and tells the supervisor whether waiting is worth it:
without it there is nothing yet to be saved, or nothing any more.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from core.files import read_json, write_atomic

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def listening(out: Path) -> Path:
    """The file that rank 0 of the training in `out` keeps while it can stop and save."""
    return out / "scratch" / "listening"


def _note(out: Path) -> Path:
    return out / "scratch" / "stopped.json"


def note(out: Path, step: int, total: int) -> None:
    """Say for the launcher that the training in `out` is saved and stopped after `step`."""
    write_atomic(_note(out), json.dumps({"step": step, "total": total}))


def noted(out: Path) -> tuple[int, int] | None:
    """(step, steps in all) of a training that stopped as asked, None for any other."""
    try:
        said = read_json(_note(out))
    except FileNotFoundError:
        return None
    return said["step"], said["total"]


def forget(out: Path) -> None:
    """Before a new attempt: drop what the last one noted."""
    _note(out).unlink(missing_ok=True)


@contextmanager
def noticing() -> Iterator[Callable[[], bool]]:
    """Notice SIGTERM and SIGUSR1 inside the block in place of ending by them; yields a function
    that says whether one came. Outside a main thread, where Python allows no handlers, none is
    noticed."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number in SIGNALS:
            signal.signal(number, lambda number, _frame: came.append(number))
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
