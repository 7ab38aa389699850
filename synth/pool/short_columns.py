"""A column read without its long texts: part by part, each file once, so that memory holds figures
and digests of a million rows, not their words.

What is computed from the words of a large part (lengths, repetition, leaks) is remembered beside
it, so that the next run need not read them again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import polars as pl

from core.columns import Column, merging_read
from core.files import replacing
from core.store import digest
from synth.measures import COLUMNS, SHIPPED, Measures
from synth.tags import sanitize, text_figures

REMEMBERED = 2_000
"""Rows from which a part's short form is remembered; smaller parts are soon merged."""


def digest_texts(texts: Iterable[str | None]) -> pl.Series:
    """A short digest of each text (what a cell is `of`)."""
    digests = [hashlib.sha256((text or "").encode()).hexdigest()[:16] for text in texts]
    return pl.Series(digests, dtype=pl.String)


def digest_pairs(first: pl.Series, second: pl.Series) -> pl.Series:
    """A digest of each pair of digests (what a cell of a conversation is `of`)."""
    return digest_texts(f"{a}\0{b}" for a, b in zip(first, second, strict=True))


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
        """One part's cells, shortened; remembered beside it where there are many."""
        if self._version is None:
            return self._shorten(self.column.part(path))
        remembered = path.parent / "short" / f"{path.stem}-{self._version}.parquet"
        # Not there, or damaged: computed again.
        with suppress(FileNotFoundError, pl.exceptions.PolarsError):
            return pl.read_parquet(remembered)
        short = self._shorten(self.column.part(path))
        if len(short) >= REMEMBERED:
            # A store that cannot be written to is read all the same.
            with suppress(OSError), replacing(remembered) as temporary:
                short.write_parquet(temporary)
        return short

    def texts(self, rows: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
        """[id, *names] as stored, of the rows [id] or, where a row may have been made anew, [id,
        of]; only the parts that hold them are read."""
        key = rows.columns

        def asked(cells: pl.DataFrame) -> pl.DataFrame:
            return cells.join(rows, on=key, how="semi")

        def read() -> list[pl.DataFrame]:
            parts = [path for path, short in self._parts().items() if len(asked(short))]
            return [asked(self.column.part(path).select(*key, *names)) for path in parts]

        frames = merging_read(read) or [self.column.schema.to_frame().select(*key, *names)]
        cells = pl.concat(frames).unique("id", keep="first", maintain_order=True)
        return cells.select("id", *names)


def lean_of(column: Column, measure: str, rules: sanitize.Rules | None, measures: Measures) -> Lean:
    """A column of a pool without its long texts; what is worked out of instructions and responses
    is remembered. `rules`: those by which instructions are sanitized; `measures`: what may
    be measured."""
    known = [sorted(COLUMNS), sorted(column.fields)]
    if measure == "instruction":
        versions = [text_figures.VERSION, rules and sanitize.VERSION, rules]
        shorten = partial(_short_instructions, rules=rules)
        return Lean(column, shorten, digest([versions, *known])[:12])
    if measure == "response":
        return Lean(column, _short_responses, digest([[text_figures.VERSION], *known])[:12])
    return Lean(column, partial(_short, measures=measures))


def _short(part: pl.DataFrame, measures: Measures = SHIPPED) -> pl.DataFrame:
    """Cells without their long texts."""
    return part.drop(measures.long_columns(n for n in part.columns if n in measures.columns))


def _short_instructions(part: pl.DataFrame, rules: sanitize.Rules | None) -> pl.DataFrame:
    """Of an instruction, as it is answered and tagged: its digest, length and the like."""
    part = sanitize.with_raw(part, rules)
    part = part.with_columns(of=digest_texts(part["instruction"]))
    figures = text_figures.instruction_columns(part.select("id", "instruction", "finish_reason"))
    return _short(_beside(part, figures))


def _short_responses(part: pl.DataFrame) -> pl.DataFrame:
    """Of a response: its digest, length and the like."""
    figures = text_figures.response_columns(part.select("id", "response", "finish_reason"))
    part = part.with_columns(
        response_finish_reason="finish_reason",
        response_tokens="tokens",
        response_prompt_tokens="prompt_tokens",
        of_response=digest_texts(part["response"]),
    )
    return _short(_beside(part, figures)).drop("finish_reason")


def _beside(part: pl.DataFrame, figures: pl.DataFrame) -> pl.DataFrame:
    """Cells with the figures of their texts, in the same order: an id may be there twice, with two
    texts."""
    new = [c for c in figures.columns if c in COLUMNS and c not in part.columns]
    return part.hstack(figures.select(new))
