"""Buying from a hosted model: no request beyond the budget, every reply on disk when it arrives,
and nothing paid for twice.

A reply is written to a journal by the thread that received it, before anybody reads it. What a
killed run left there is taken in place of asking again; what has come to its column is forgotten.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout

from core.cells.lines import sealed_line, sealed_lines
from core.errors import UserError
from core.sending.chat import likely_tokens, most_tokens, usage
from core.sending.purse import Bill, Ledger, Purse
from core.store import digest
from core.wire import Request

SEGMENT = 500
"""Replies in one file of the journal, which is removed when all of them are in their columns."""


class Account:
    """What one experiment buys of one hosted model: `purse` and `ledger` are the experiment's;
    `folder` holds the journal, which experiments of one store share."""

    def __init__(self, model: str, purse: Purse, ledger: Ledger, folder: Path) -> None:
        self.model, self.purse, self.ledger = model, purse, ledger
        self.bought = Bill()
        """What this process bought."""
        self._journal = _Journal(folder)
        self._unsent: list[Request] = []

    @contextmanager
    def open(self) -> Iterator[None]:
        """The journal is at hand in the block, and the purse knows what others spent; the journal
        is removed when the block ends well, and kept for the next run when it does not."""
        self.purse.spent = self.ledger.spent(self.model, self.purse.budget)
        try:
            with self._journal.open():
                yield
        finally:
            self.ledger.close()

    def affordable(self, requests: Iterator[Request]) -> Iterator[Request]:
        """The requests up to the first that could pass the budget while others are in flight."""
        while (request := self._next(requests)) is not None:
            known = self._journal.known(request)
            size, most = likely_tokens(request.body), most_tokens(request.body)
            if not known and not self.purse.reserve(request.key, size, most):
                self._unsent.append(request)
                return
            yield request

    def _next(self, requests: Iterator[Request]) -> Request | None:
        return self._unsent.pop() if self._unsent else next(requests, None)

    def more(self) -> bool:
        """Whether requests are left that can be tried again, now that nothing is in flight. Raises
        UserError where the next one would pass the budget all the same."""
        if not self._unsent:
            return False
        body = self._unsent[0].body
        most = self.purse.cost(likely_tokens(body), most_tokens(body))
        budget = self.purse.budget or 0.0
        if self.purse.spent + most > budget:
            raise UserError(
                f"the budget of {self.model} is reached: {self.purse.spent:.4g} of {budget:g} is "
                f"spent and the next request may cost {most:.4g}; everything bought is kept: raise "
                "`budget`, and run again."
            )
        self.purse.stopped = False
        return True

    def recall(self, request: Request) -> dict[str, Any] | None:
        """The reply that a killed run has paid for and not stored."""
        return self._journal.recall(request)

    def record(self, request: Request, body: dict[str, Any]) -> None:
        """A reply arrived: write it down, and count what it cost."""
        self._journal.write(request, body)
        prompt_tokens, tokens = usage(body)
        if not isinstance(body.get("usage"), dict):  # then it counts as the most it may have cost
            prompt_tokens, tokens = likely_tokens(request.body), most_tokens(request.body)
        money = self.purse.settle(request.key, prompt_tokens, tokens)
        bill = Bill(1, prompt_tokens, tokens, money)
        self.bought = self.bought.plus(bill)
        self.ledger.add(self.model, bill)

    def release(self, request: Request) -> None:
        """A request failed for good, or was cancelled: its money is free again."""
        self.purse.settle(request.key, 0, 0)

    def stored(self, keys: Iterable[str]) -> None:
        """These requests' replies have come to their column."""
        self._journal.forget(keys)


class _Segment:
    """One file of the journal that this process writes, and the keys in it that are not stored."""

    def __init__(self, path: Path) -> None:
        self.path, self.keys, self.lines = path, set[str](), 0
        self.lock = _lock(path)
        self.lock.acquire()
        self.file: TextIO = path.open("a")

    def close(self, *, remove: bool) -> None:
        """End writing; with `remove`, the file is gone."""
        self.file.close()
        if remove:
            self.path.unlink(missing_ok=True)
        self.lock.release()
        if remove:
            Path(f"{self.path}.lock").unlink(missing_ok=True)


class _Journal:
    """Replies on disk between their arrival and their column. Written by the client's thread, read
    and trimmed by the caller's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._depth = 0
        self._segments: list[_Segment] = []
        self._left: list[tuple[Path, FileLock]] = []
        self._known: dict[str, dict[str, Any]] = {}

    @contextmanager
    def open(self) -> Iterator[None]:
        """Take over what killed runs left; inner blocks share the outermost one's journal."""
        if self._depth == 0:
            self._take_over()
        self._depth += 1
        finished = False
        try:
            yield
            finished = True
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._close(remove=finished)

    def _take_over(self) -> None:
        for path in sorted(self.folder.glob("replies-*.jsonl")):
            lock = _lock(path)
            with suppress(Timeout):
                lock.acquire(timeout=0)
                self._left.append((path, lock))
                self._known |= _replies(path)

    def _close(self, *, remove: bool) -> None:
        with self._lock:
            for segment in self._segments:
                segment.close(remove=remove)
            for path, lock in self._left:
                if remove:
                    path.unlink(missing_ok=True)
                lock.release()
                if remove:
                    Path(f"{path}.lock").unlink(missing_ok=True)
            self._segments, self._left, self._known = [], [], {}

    def known(self, request: Request) -> bool:
        """Whether the reply to a request is here."""
        return bool(self._known) and _name(request) in self._known

    def recall(self, request: Request) -> dict[str, Any] | None:
        """The reply to a request that a killed run left."""
        return self._known.get(_name(request)) if self._known else None

    def write(self, request: Request, body: dict[str, Any]) -> None:
        """One line, handed to the operating system at once (a killed process loses none)."""
        line = sealed_line({"name": _name(request), "body": body})
        with self._lock:
            if not self._segments or self._segments[-1].lines >= SEGMENT:
                self.folder.mkdir(parents=True, exist_ok=True)
                name = f"replies-{uuid.uuid4().hex[:12]}.jsonl"
                self._segments.append(_Segment(self.folder / name))
            segment = self._segments[-1]
            segment.file.write(f"\n{line}")
            segment.file.flush()
            segment.lines += 1
            segment.keys.add(request.key)

    def forget(self, keys: Iterable[str]) -> None:
        """Remove the full files of which every reply is stored."""
        stored = set(keys)
        with self._lock:
            kept = []
            for segment in self._segments:
                segment.keys -= stored
                if segment.lines >= SEGMENT and not segment.keys:
                    segment.close(remove=True)
                else:
                    kept.append(segment)
            self._segments = kept


def _lock(path: Path) -> FileLock:
    """Held by whoever writes or takes over a file: acquired and released in different threads."""
    return FileLock(f"{path}.lock", thread_local=False)


def _name(request: Request) -> str:
    """What a request is known by: its row and everything that it says."""
    return digest([request.key, request.path, request.body])[:32]


def _replies(path: Path) -> dict[str, dict[str, Any]]:
    """The replies of a journal's file; a line that a kill cut in two is left out."""
    found = {}
    for entry in sealed_lines(path, "that reply is asked for again"):
        with suppress(KeyError, TypeError, ValueError):
            found[str(entry["name"])] = dict(entry["body"])
    return found
