"""Errors that are sentences.

Anything a user can cause (a typo, a missing file, a full disk, a refused endpoint) is raised as
`UserError` with one sentence that says what is wrong, where, and what to do. The command line
prints that sentence and exits with 2; `--debug` shows the traceback. What the system, a decoder or
a parser of JSON raises beside that becomes a sentence in one place, `of_system`.
"""

from __future__ import annotations

import difflib
import errno
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType


class UserError(Exception):
    """One clear sentence for the user: what, where (file, row, field), and what to do."""

    def __init__(self, sentence: str = "") -> None:
        """A sentence that ends with a hint (`did you mean 'x'?`) ends there, and what follows one
        is a sentence of its own."""
        ended = sentence.replace("'?.", "'?")
        super().__init__(re.sub(r"(?<='\?); (\w)", lambda next_: f" {next_[1].upper()}", ended))


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
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; valid names are {', '.join(names)}" if names else ""


def near(name: str, valid: Iterable[str]) -> str:
    """The hint alone, "" where no name is close: of names too many to list."""
    hint = nearest(name, valid)
    return hint if "did you mean" in hint else ""


def json_kind(value: object) -> str:
    """What a value is called in JSON: null, a number, a list ..."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "a text"}
    more = {type(None): "null", list: "a list", dict: "an object"}
    return (names | more).get(type(value), "another value")


_STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


LONGEST = 2_000
"""Characters of a line for a terminal: a sentence may quote what somebody wrote."""


def shown(text: str) -> str:
    """Text for a terminal, its lines as they are: characters that steer one, which the name of a
    file may hold, are spelled out."""
    lines = (line if len(line) <= LONGEST else f"{line[:LONGEST]} ..." for line in text.split("\n"))
    return _STEERS.sub(lambda found: found[0].encode("unicode_escape").decode(), "\n".join(lines))


def brief(value: object) -> str:
    """A value as it is written, not too long."""
    told = repr(value)
    return told if len(told) <= 80 else f"{told[:77]}..."


def first_line(error: BaseException) -> str:
    """What an exception says, on one line; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# -- what the system says --------------------------------------------------------------------------

_AGAIN = "the same command continues from what is finished"
_REMEDIES: Mapping[int, str] = {
    errno.ENOSPC: f"there is no room left for {{path}}{{room}}; free some, and {_AGAIN}.",
    errno.EDQUOT: f"your quota is used up where {{path}} lies; free some, and {_AGAIN}.",
    errno.EFBIG: "{path} would be larger than its file system or `ulimit -f` allows; use another.",
    errno.EROFS: "{path} lies on a file system that can only be read; name another folder "
    "(of a recipe: store=FOLDER), or have it mounted for writing.",
    errno.EACCES: "no permission for {path}; have it granted (`ls -ld` shows whose it is), or name "
    "another place.",
    errno.EPERM: "the system does not allow that of {path}; look at its owner and attributes, or "
    "name another place.",
    errno.ENOENT: "{path} does not exist; check the path, and run again if something else removed "
    "it meanwhile.",
    errno.EISDIR: "{path} is a folder where a file belongs; name a file, or move the folder away.",
    errno.ENOTDIR: "{path} lies below something that is no folder; name another place.",
    errno.EEXIST: "{path} exists already; move it away, or name another place.",
    errno.ENOTEMPTY: "{path} is a folder that holds something; move it away, or name another.",
    errno.ENAMETOOLONG: "{path} is a longer name than a file system allows; choose a shorter one.",
    errno.ELOOP: "{path} is a link that leads back to itself; repair the link.",
    errno.EMFILE: "too many files are open in this process; raise the limit (`ulimit -n 65536`) "
    "and run again.",
    errno.ENFILE: "too many files are open on this machine; end what holds them, and run again.",
    errno.EIO: "the disk or the network file system failed at {path}; look at the machine's log, "
    f"and {_AGAIN}.",
    errno.ESTALE: f"the network file system has lost {{path}}; mount it anew, and {_AGAIN}.",
    errno.ENOTCONN: f"the file system of {{path}} is not connected; mount it anew, and {_AGAIN}.",
    errno.EBUSY: "{path} is in use by another process; end that, and run again.",
    errno.ETXTBSY: "{path} is being run by another process; end that, and run again.",
    errno.ENOMEM: "the machine has no memory left; give the run more, or smaller batches, and "
    f"{_AGAIN}.",
    errno.EAGAIN: "no more processes or threads are allowed; end some, or raise `ulimit -u`.",
    errno.ENOEXEC: "{path} cannot be run on this machine; install it for this one.",
    errno.EADDRINUSE: "a port is taken by another process; end that, and run again.",
    errno.EADDRNOTAVAIL: "an address is not this machine's; check the host that you name.",
}
"""Error number -> a sentence about {path}."""

_IN_WORDS = re.compile(
    r"\(os error (\d+)\)|\[?[Ee]rrno:? (\d+)\]?|(No space left on device)|(Read-only file system)"
)
"""How libraries in Rust and C++ name the system's error in what they say."""


def of_system(error: BaseException) -> str | None:
    """A sentence for what the system, a decoder, a decompressor or a parser of JSON raised, with
    the path and what to do; None where `error` is none of these, which is a defect."""
    for each in _behind(error):
        if isinstance(each, UserError):
            return str(each)
        if isinstance(each, (UnicodeError, json.JSONDecodeError, zlib.error, EOFError)):
            return _unreadable(each)
        if isinstance(each, MemoryError):
            return _REMEDIES[errno.ENOMEM]
        if isinstance(each, RuntimeError) and str(each).startswith("Symlink loop from"):
            return _REMEDIES[errno.ELOOP].format(path=str(each).removeprefix("Symlink loop from "))
        if isinstance(each, (ConnectionError, TimeoutError)):
            return f"a connection failed ({first_line(each)}); check the network, and {_AGAIN}."
        if (number := _number(each)) is not None:
            return _system(each, number)
        if isinstance(each, OSError):  # without a number: a library's own
            said, where = first_line(each).rstrip("."), _in_hand(each)
            return f"{where}: {said}; repair or replace that." if where else f"{said}."
    return None


def _behind(error: BaseException) -> Iterator[BaseException]:
    """The exception, those of a group, and what each was raised from."""
    seen: list[BaseException] = []
    left = [error]
    while left:
        each = left.pop(0)
        if any(each is other for other in seen):
            continue
        seen.append(each)
        yield each
        if isinstance(each, BaseExceptionGroup):
            left += each.exceptions
        left += [behind for behind in (each.__cause__,) if behind is not None]


def _number(error: BaseException) -> int | None:
    """The system's number of an error, also where a library only says it in words."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    said = _IN_WORDS.search(str(error))
    if said is None:
        # what polars' writer of Parquet says where the end of a file had no room
        silent = "thrift: transport error" in str(error)
        return errno.ENOSPC if silent and _is_full(_in_hand(error)) else None
    rust, c, full, read_only = said.groups()
    if full or read_only:
        return errno.ENOSPC if full else errno.EROFS
    return int(rust or c)


def _system(error: BaseException, number: int) -> str:
    """The sentence of a system's error number."""
    named = [getattr(error, "filename2", None), getattr(error, "filename", None)]
    path = next((each for each in named if isinstance(each, (str, bytes, os.PathLike))), None)
    shown = os.fsdecode(path) if path is not None else _in_hand(error)
    if number in _REMEDIES and (shown or "{path}" not in _REMEDIES[number]):
        return _REMEDIES[number].format(path=shown, room=_room(shown))
    if number in _REMEDIES:
        return _REMEDIES[number].format(path="what is written or read", room="")
    where = f"{shown}: " if shown else ""
    return f"{where}{os.strerror(number)} (error {number}); put that right, and {_AGAIN}."


def _room(path: str) -> str:
    """How much is left on the file system of a path, in words."""
    left = _left(path)
    return "" if left is None else f" ({left / 2**20:,.0f} MiB free)"


def _is_full(path: str) -> bool:
    left = _left(path) if path else None
    return left is not None and left < 2**20


def _left(path: str) -> int | None:
    """Bytes that are free on the file system of a path; None where that cannot be known."""
    folder = Path(path)
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        return shutil.disk_usage(folder).free
    except (OSError, ValueError):  # of a name that is too long, too
        return None


def _unreadable(error: BaseException) -> str:
    """A sentence for content that is not what its reader expects."""
    where = _in_hand(error)
    if isinstance(error, UnicodeEncodeError):
        shown = f"a text holds {error.object[error.start : error.start + 1]!r}"
        return f"{shown}, which is no character that can be written; remove it from its source."
    if isinstance(error, UnicodeError):
        what = f"is no UTF-8 text ({first_line(error)})"
    elif isinstance(error, json.JSONDecodeError):
        what = f"is not valid JSON ({first_line(error)})"
    else:
        what = f"is cut off or damaged ({first_line(error)})"
    return f"{where or 'a file'} {what}; repair it, or remove it and run again."


def _in_hand(error: BaseException) -> str:
    """The file that was being read or written when an error arose: the innermost open file, or
    path, that the functions on the way hold; "" where there is none.

    Decoders and parsers do not know what their bytes are of.
    """
    frames: list[TracebackType] = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    for each in reversed(frames):
        for value in reversed(each.tb_frame.f_locals.values()):
            name = value if isinstance(value, Path) else _name(value)
            with suppress(OSError, ValueError):  # a name that no file can have
                if isinstance(name, (str, Path)) and Path(name).exists():
                    return str(name)
    return ""


def _name(value: object) -> object:
    """The name of an open file; None of anything else."""
    has = hasattr(type(value), "read") or hasattr(type(value), "write")
    return getattr(value, "name", None) if has else None
