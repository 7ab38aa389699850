"""Names by which callers know texts whose vectors are kept, so that no text is read to find them.

`known-N-DIGEST.parquet` in the folder of the vectors holds names, each with the digest of its text
and the row of its vector; DIGEST is that of the file itself. One of before there were digests
holds for the vectors of then.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import polars as pl

from core.cells.damage import damaged
from core.cells.seals import identity
from synth.duplicates.blocks import Ints
from synth.duplicates.kept_vectors import Index, Part, frame_of, matching, written

_KNOWN = re.compile(r"known-(\d{6})(?:-([0-9a-f]{32}))?\.parquet")

Seen = tuple[Path, list[int]]
"""A file, and what it is known by without reading it."""


class Known:
    """The names of the texts whose vectors an index finds."""

    def __init__(self, index: Index) -> None:
        """Nothing is read yet."""
        self.index = index
        self._named: dict[Path, tuple[list[int], pl.DataFrame]] = {}
        self._of: list[Seen | Part] = []
        """The files and parts that `_valid` was made of."""
        self._valid = pl.DataFrame()

    def places(self, names: Sequence[str]) -> Ints | None:
        """The places of vectors that were kept under these names; None where one was not."""
        valid = self._names()
        if valid.is_empty():
            return None
        asked = pl.DataFrame({"name": pl.Series(names, dtype=pl.String)})
        found = asked.join(valid, on="name", how="left", maintain_order="left")["place"]
        return None if found.null_count() else found.to_numpy()

    def keep(self, names: Sequence[str], places: Ints) -> None:
        """Remember under which names vectors lie where; for whoever holds the folder's lock."""
        folder, before = self.index.folder, self._names()
        new = pl.DataFrame({"name": pl.Series(names, dtype=pl.String), "place": places})
        new = new.join(before, on=["name", "place"], how="anti").unique("name")
        new = new.join(self.index.texts(), on="place", how="inner")
        if len(new):
            numbers = [int(match[1]) for _, match in matching(folder, "known", _KNOWN)]
            written(folder, f"known-{max(numbers, default=-1) + 1:06d}", new, {})

    def _names(self) -> pl.DataFrame:
        """[name, place] of every text that was kept under a name and whose vector is there."""
        self._named = dict(self._read())
        of: list[Seen | Part] = [(path, seen) for path, (seen, _) in self._named.items()]
        of += self.index.parts
        if of != self._of:
            self._of, self._valid = of, self._that_fit()
        return self._valid

    def _read(self) -> Iterator[tuple[Path, tuple[list[int], pl.DataFrame]]]:
        """Every file that is what was written; those that were read before are not read again."""
        for path, match in matching(self.index.folder, "known", _KNOWN):
            with suppress(FileNotFoundError):
                seen, before = identity(path.stat()), self._named.get(path)
                if before is not None and before[0] == seen:
                    yield path, before
                    continue
                sealed = {"digest": pl.Binary} if match[2] else {}
                frame = frame_of(path, match[2], {"name": pl.String, "place": pl.Int64} | sealed)
                if isinstance(frame, str):
                    damaged(path, f"{frame}; its texts are looked up anew", self.index.root)
                else:
                    yield path, (seen, frame)

    def _that_fit(self) -> pl.DataFrame:
        """Names whose text the part at their place names too. Those of before there were digests
        say no text: they hold for the parts of then."""
        schema = {"name": pl.String, "place": pl.Int64, "digest": pl.Binary}
        frames = [frame for _, frame in self._named.values()]
        names = pl.concat([pl.DataFrame(schema=schema), *frames], how="diagonal")
        texts, parts = self.index.texts(), self.index.parts
        then = min((part.place for part in parts if part.sealed), default=self.index.count)
        of_before = names.filter(pl.col("digest").is_null(), pl.col("place") < then)
        fit = names.join(texts, on=["place", "digest"], how="semi")
        both = pl.concat([fit, of_before.join(texts, on="place", how="semi")])
        return both.select("name", "place").unique("name")
