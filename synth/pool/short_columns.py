"""A column read without its long texts: part by part, each file once, so that memory holds figures
and digests of a million rows, not their words.

What is computed from the words of a large part (lengths, repetition, leaks) is remembered beside
it, so that the next run need not read them again.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import polars as pl

from core.columns import Column, merging_read

REMEMBERED = 2_000
"""Rows from which a part's short form is remembered; smaller parts are soon merged."""


def digest_texts(texts: Sequence[str | None]) -> pl.Series:
    """A short digest of each text (what a cell is `of`)."""
    return pl.Series(
        [hashlib.sha256((t or "").encode()).hexdigest()[:16] for t in texts], dtype=pl.String
    )


def digest_pairs(first: pl.Series, second: pl.Series) -> pl.Series:
    """A digest of each pair of digests (what a cell of a conversation is `of`)."""
    return digest_texts(
        [f"{a}\0{b}" for a, b in zip(first.to_list(), second.to_list(), strict=True)]
    )


class Lean:
    """One column. `shorten` makes of a part's cells what is kept in memory: digests and figures in
    place of long texts.

    `version` names what `shorten` computes, where that is worth remembering on disk; another
    version is computed afresh.
    """

    def __init__(
        self,
        column: Column,
        shorten: Callable[[pl.DataFrame], pl.DataFrame],
        version: str | None = None,
    ) -> None:
        self.column = column
        self._shorten, self._version = shorten, version
        self._kept: dict[Path, pl.DataFrame] = {}

    def read(self) -> pl.DataFrame:
        """Every cell, shortened, one row for each id and text that it is of; what was read before
        is not read again."""
        frames = list(merging_read(self._parts).values())
        if not frames:
            return self._shorten(self.column.schema.to_frame())
        return pl.concat(frames).unique(self.column.key, keep="first", maintain_order=True)

    def _parts(self) -> dict[Path, pl.DataFrame]:
        held = self._kept
        remembered = list(
            self.column.folder.glob("short/part-*.parquet")
        )  # listed before the parts
        parts = self.column.parts()
        self._kept = {path: held[path] if path in held else self._short(path) for path in parts}
        self._forget(remembered, parts)
        return self._kept

    @staticmethod
    def _forget(remembered: list[Path], parts: list[Path]) -> None:
        """Drop what is remembered of parts that were merged into others."""
        stems = tuple(f"{part.stem}-" for part in parts)
        for path in remembered:
            if not path.name.startswith(stems):
                with suppress(OSError):  # a store that cannot be written to
                    path.unlink(missing_ok=True)

    def _short(self, path: Path) -> pl.DataFrame:
        if self._version is None:
            return self._shorten(self.column.part(path))
        remembered = path.parent / "short" / f"{path.stem}-{self._version}.parquet"
        with suppress(
            FileNotFoundError, pl.exceptions.PolarsError
        ):  # not there, or damaged: computed again
            return pl.read_parquet(remembered)
        short = self._shorten(self.column.part(path))
        if len(short) >= REMEMBERED:
            with suppress(OSError):  # a store that cannot be written to is read all the same
                remembered.parent.mkdir(exist_ok=True)
                temporary = remembered.with_name(f".{uuid.uuid4().hex}.tmp")
                short.write_parquet(temporary)
                temporary.replace(remembered)
        return short

    def texts(self, rows: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
        """[id, *names] as stored, of the rows [id] or, where a row may have been made anew, [id,
        of]; only the parts that hold them are read."""
        key = rows.columns

        def read() -> list[pl.DataFrame]:
            parts = [
                path
                for path, kept in self._parts().items()
                if len(kept.join(rows, on=key, how="semi"))
            ]
            return [
                self.column.part(path).select(*key, *names).join(rows, on=key, how="semi")
                for path in parts
            ]

        frames = merging_read(read) or [self.column.schema.to_frame().select(*key, *names)]
        return (
            pl.concat(frames).unique("id", keep="first", maintain_order=True).select("id", *names)
        )
