"""Which results and columns of a store a recipe refers to, so that what nothing refers to is known.

with columns_opened() as columns:      # "NAME/KEY" of every column that is opened in the block
    ...
references = References(STORE/recipes/NAME/refers.json)
references.note("train/magpie/0", STORE/results/train/KEY)
references.write(columns, whole=True)  # the recipe was walked to its end: these and no others
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path

from core.cells.seals import seal_of, with_seal
from core.errors import UserError
from core.files import read_json, write_changed

REFERS = "refers.json"
"""The file in a recipe's folder that says what it refers to."""


class References:
    """What one recipe refers to: results by the name of their stage, and columns."""

    def __init__(self, path: Path) -> None:
        """Reads what was noted before. A missing or damaged file says nothing, and `known` is
        False; the next run writes it anew."""
        self.path = path
        self.known = False
        self.results: dict[str, str] = {}
        """STAGE/KEY by the name of the stage, as noted before."""
        self.columns: set[str] = set()
        """NAME/KEY of columns, as noted before."""
        self.ever: set[str] = set()
        """The same and those that it referred to before that, and does no more."""
        self._now: dict[str, str] = {}
        with suppress(OSError, UserError, KeyError, TypeError, AttributeError):
            noted = read_json(path)
            if noted.get("seal", seal_of(noted)) != seal_of(noted):
                raise UserError("what a recipe refers to was changed after it was noted")
            results = {str(name): str(at) for name, at in noted["results"].items()}
            self.results, self.columns = results, set(map(str, noted["columns"]))
            self.ever = self.columns | set(map(str, noted["dropped"]))
            self.known = True

    def note(self, name: str, folder: Path) -> None:
        """The stage of this name is, or is to be, the result in this folder; of what is no result
        (a column) nothing is noted."""
        if folder.parts[-3] == "results":
            self._now[name] = "/".join(folder.parts[-2:])

    def write(self, columns: Set[str], *, whole: bool = False) -> None:
        """Keep what was noted, beside what was noted before; in its place where this is the
        `whole`."""
        results = self._now if whole else {**self.results, **self._now}
        kept = columns if whole else self.columns | columns
        dropped = sorted(self.ever - kept)
        noted = {"results": results, "columns": sorted(kept), "dropped": dropped}
        write_changed(self.path, json.dumps(with_seal(noted), indent=1))


_opened: set[str] | None = None
"""What is opened in this process now goes there."""


@contextmanager
def columns_opened() -> Iterator[set[str]]:
    """Collects every column that is opened in the block, also by its threads; blocks may stand
    inside each other."""
    global _opened
    before, _opened = _opened, set()
    here = _opened
    try:
        yield here
    finally:
        if before is not None:
            before |= here
        _opened = before


def opened(folder: Path) -> None:
    """Called for every column of a store that is opened: `folder` is STORE/columns/NAME/KEY."""
    if _opened is not None:
        _opened.add("/".join(folder.parts[-2:]))
