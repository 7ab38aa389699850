"""Never paying for a judgment twice: the journal of what came back.

A judgment's journal line is written when its reply arrives, before anything else, so that a killed
run never pays for it again.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from core.cells.damage import is_hurt, set_aside
from core.cells.lines import sealed_line, sealed_lines
from core.columns import Column

Turn = Literal["first", "continue", "constrain"]
Cell = dict[str, Any]
Row = Mapping[str, Any]
"""Values by field: of a judgment, a table, a reply."""


@dataclass
class Draft:
    """What is known of a judgment that is not settled: the judge's text so far and what it has
    cost."""

    turn: Turn = "first"
    text: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    tries: int = 0


class Journal:
    """Append-only lines beside a column's parts: settled judgments and first turns, each on disk
    before the next reply is read.

    A context manager. Entering takes over what killed runs left (any journal that nobody holds):
    their judgments go to the column, their first turns to `drafts`. A clean exit removes the
    journal, unless `keep` is set: its judgments are in the column by then. Any other exit keeps it
    for the next run.
    """

    def __init__(self, column: Column) -> None:
        self.column = column
        self.path = column.folder / f"journal-{uuid.uuid4().hex[:12]}.jsonl"
        self.drafts: dict[str, Draft] = {}
        self.keep = False
        self._lock = FileLock(f"{self.path}.lock")

    def __enter__(self) -> Journal:
        self.column.folder.mkdir(parents=True, exist_ok=True)
        left = sorted(self.column.folder.glob("journal-*.jsonl"))
        self._lock.acquire()
        self._file = self.path.open("a")
        for path in left:
            with suppress(Timeout), FileLock(f"{path}.lock", timeout=0):
                self._take_over(path)
                Path(f"{path}.lock").unlink(missing_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        done = kind is None and not self.keep
        if done:
            self.path.unlink()
        self._lock.release()
        if done:
            Path(f"{self.path}.lock").unlink(missing_ok=True)

    def write(self, record: Row) -> None:
        """One line, handed to the operating system at once (a killed process loses none)."""
        self._file.write(f"\n{sealed_line(record)}")
        self._file.flush()

    def _take_over(self, path: Path) -> None:
        """Keep what the journal at `path` holds: here and in the column, without that file."""
        if not path.exists():  # another run was quicker
            return
        cells: dict[str, Cell] = {}
        for record in sealed_lines(path, "what it says is asked again"):
            if "draft" in record:
                self.drafts[record["id"]] = Draft(**record["draft"])
                self.write(record)
            else:
                cells[record["id"]] = record
        self.column.append([cells[name] for name in self.column.missing(list(cells))])
        if is_hurt(path):
            set_aside(path, self.column.root)
        else:
            path.unlink()
