"""Errors that are sentences.

Anything a user can cause (a typo, a missing file, a full disk, a refused endpoint) is raised as
`UserError` with one sentence that says what is wrong, where, and what to do. The command line
prints that sentence and exits with 2; `--debug` shows the traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """One clear sentence for the user: what, where (file, row, field), and what to do."""


class Stopped(Exception):
    """A run that was asked to stop (SIGTERM, SIGUSR1), saved what it had and ended: the same
    command continues it. The command line exits with `code`, so that a job script knows to
    requeue."""

    code = 75
    """EX_TEMPFAIL of sysexits.h: try again."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint to append to a sentence about an unknown name: "; did you mean 'x'?", or the valid
    names when none is close."""
    names = sorted(set(valid))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; valid names are {', '.join(names)}" if names else ""


def first_line(error: BaseException) -> str:
    """What an exception says, on one line; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
