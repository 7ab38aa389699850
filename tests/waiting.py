"""Waiting for what happens, however slow the machine is: the stop is a guard against hanging, and
far beyond anything a working test needs."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

GUARD = 3000.0
"""Seconds after which something hangs."""


def until(
    happened: Callable[[], Any], what: str, process: subprocess.Popen[bytes] | None = None
) -> None:
    """Wait until `happened()` is true; fails when `process` ends before, with what it said."""
    stop = time.monotonic() + GUARD
    while not happened():
        if process is not None and process.poll() is not None:
            raise AssertionError(
                f"{what}: the process ended with {process.returncode} before: {last_words(process)}"
            )
        assert time.monotonic() < stop, f"{what}: waited {GUARD:g} s"
        time.sleep(0.05)


def exit_code(process: subprocess.Popen[Any]) -> int:
    """The exit code of a process, when it has ended."""
    return process.wait(timeout=GUARD)


def last_words(process: subprocess.Popen[bytes]) -> str:
    """What an ended process wrote on its error pipe, if it has one."""
    return process.stderr.read().decode() if process.stderr else ""
