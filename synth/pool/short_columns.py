"""A column read without its long texts: part by part, each file once, so that memory holds figures
and digests of a million rows, not their words; and its texts, found by those.

What is computed from the words of a large part (lengths, repetition, leaks) is remembered beside
it, so that the next run need not read them again.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from core.cells.content import first_of_each, frame_digest
from core.cells.damage import hurt
from core.cells.journal import is_journal
from core.cells.merging import merged
from core.cells.whole import complaint, named, told
from core.columns import MESSAGES, Column
from core.files import add_named
from core.store import digest
from synth.measures import COLUMNS, SHIPPED, Measures
from synth.tags import sanitize, text_figures

if TYPE_CHECKING:
    from numpy.typing import NDArray

_State = list[tuple[Path, int]]
"""The files of a column, each with its bytes."""
_CONVERSATION = ("id", "of_pair", "of_messages")
"""What tells a conversation in the pool's frame: its row, the digest of instruction and response,
and that of further turns."""
AT_ONCE = 4_096
"""Rows of which figures are worked out at once."""
REMEMBERED = 2_000
"""Rows from which a part's short form is remembered; smaller parts are soon merged."""


def digest_texts(texts: Iterable[str | None]) -> pl.Series:
    """A short digest of each text (what a cell is `of`)."""
    digests = [hashlib.sha256((text or "").encode()).hexdigest()[:16] for text in texts]
    return pl.Series(digests, dtype=pl.String)


def digest_pairs(first: pl.Series, second: pl.Series) -> pl.Series:
    """A digest of each pair of digests (what a cell of a conversation is `of`)."""
    return digest_texts(f"{a}\0{b}" for a, b in zip(first, second, strict=True))


def messages_digest(messages: pl.Series) -> pl.Series:
    """A short digest of each conversation (what a row with further turns is `of`)."""
    given = messages.cast(MESSAGES).to_list()
    digests = [None if each is None else digest(each)[:16] for each in given]
    return pl.Series("of_messages", digests, dtype=pl.String)


def conversations_digest(rows: pl.DataFrame) -> str:
    """Digest of an ordered list of rows of the pool's frame, which says all that their
    conversations hold."""
    return frame_digest(rows.select(name for name in _CONVERSATION if name in rows.columns))


class Lean:
    """One column. `shorten` makes of a part's cells what is kept in memory, row by row: digests and
    figures in place of long texts; of the fields it reads those in `reads`.

    `version` names what `shorten` computes, where that is worth remembering on disk; another
    version is computed afresh.
    """

    def __init__(
        self,
        column: Column,
        shorten: Callable[[pl.DataFrame], pl.DataFrame],
        version: str | None = None,
        reads: Sequence[str] | None = None,
    ) -> None:
        self.column = column
        self._shorten, self._version, self._reads = shorten, version, reads
        self._kept: dict[tuple[Path, int], pl.DataFrame] = {}
        self._before: pl.DataFrame | None = None
        self._found: dict[tuple[str, ...], _Index] = {}

    def read(self, without: Collection[str] = ()) -> pl.DataFrame:
        """Every cell, shortened, one row for each id and text that it is of; `without` some of its
        fields. In memory stays only what was worked out of words and is not remembered on disk."""
        remembered = list(self.column.folder.glob("short/part-*.parquet"))
        files = self.column.each(lambda path: self._short(path, without))
        self._before = None
        self._kept = {at: short for at, short in self._kept.items() if at[0] in files}
        self._forget(remembered, files)
        empty = self._shorten(self.column.schema.to_frame()).drop(without, strict=False)
        return first_of_each(pl.concat([empty, *files.values()]), self.column.key)

    def _state(self) -> _State:
        """The files with their sizes: a journal grows."""
        sized: _State = []
        for path in self.column.files():
            with suppress(FileNotFoundError):
                sized.append((path, path.stat().st_size))
        return sized

    @staticmethod
    def _forget(remembered: list[Path], parts: Iterable[Path]) -> None:
        """Drop what is remembered of parts that were merged into others."""
        stems = tuple(f"{part.stem}-" for part in parts)
        for path in remembered:
            if not path.name.startswith(stems):
                with suppress(OSError):  # a store that cannot be written to
                    path.unlink(missing_ok=True)

    def _short(self, path: Path, without: Collection[str]) -> pl.DataFrame:
        """One file's cells, shortened, `without` some fields; remembered beside it where there are
        many, else in memory."""
        if self._version is None:
            return self._shorten(self.column.part(path, self._reads)).drop(without, strict=False)
        at = (path, path.stat().st_size)
        if at in self._kept:
            return self._kept[at].drop(without, strict=False)
        for remembered in self._short_forms(glob.escape(path.stem)):
            # Merged meanwhile: computed again.
            with suppress(FileNotFoundError, pl.exceptions.PolarsError):
                held = [
                    name
                    for name in pl.scan_parquet(remembered, glob=False).collect_schema()
                    if name not in without
                ]
                return pl.read_parquet(remembered, columns=held, glob=False)
        return self._made(path, at).drop(without, strict=False)

    def _short_forms(self, stem: str) -> list[Path]:
        """The files that hold the short form of parts of such names; damaged ones are told of, and
        removed."""
        found = []
        for path in self.column.folder.glob(f"short/{stem}-{self._version}-*.parquet"):
            wrong = complaint(path, self.column.root)
            if wrong is None:
                found.append(path)
                continue
            hurt(path, f"{wrong}; it is computed again")
            with suppress(OSError):
                path.unlink(missing_ok=True)
        return found

    def _made(self, path: Path, at: tuple[Path, int]) -> pl.DataFrame:
        """One file's cells, shortened, and kept: in a file beside it or in memory."""
        short = self._of_merged(path)
        if short is None:
            whole = self.column.part(path, self._reads)
            # Figures of words take many times the memory of the words.
            some = [whole.clear(), *whole.iter_slices(AT_ONCE)]
            short = pl.concat([self._shorten(rows) for rows in some])
        # A store that cannot be written to is read all the same.
        with suppress(OSError):
            if len(short) >= REMEMBERED and not is_journal(path):
                folder = path.parent / "short"
                begins = f"{path.stem}-{self._version}"
                add_named(
                    folder,
                    short.write_parquet,
                    lambda new: f"{begins}-{named(new, told(folder))}.parquet",
                )
                return short
        self._kept[at] = short
        return short

    def _of_merged(self, path: Path) -> pl.DataFrame | None:
        """The short form of a merged part, put together of those of the parts before it; None where
        one of its cells is in none of them."""
        if not merged(path):
            return None
        if self._before is None:
            held = self._short_forms("part-*")
            held.sort(key=lambda each: (not merged(each), each.name))  # as their parts count
            parts = []
            for each in held:
                with suppress(OSError, pl.exceptions.PolarsError):
                    parts.append(pl.read_parquet(each, glob=False))
            empty = self._shorten(self.column.schema.to_frame())
            self._before = pl.concat([empty, *parts]).unique(
                self.column.key, keep="first", maintain_order=True
            )
        keys = self.column.part(path, self.column.key)
        short = keys.join(
            self._before, on=self.column.key, how="left", nulls_equal=True, maintain_order="left"
        )
        return None if short["status"].null_count() else short.select(self._before.columns)

    def texts(self, rows: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
        """[id, *names] as stored, of the rows [id] or, where a row may have been made anew, [id,
        of]; each part is read once, and of a part little but those rows."""
        key = rows.columns
        wanted = list(dict.fromkeys([*key, *names]))
        empty = self.column.schema.to_frame().select(wanted)
        while True:
            index = self._index(key)
            with suppress(FileNotFoundError):  # merged, or cut, since it was listed
                found = [self.column.rows(path, places, wanted) for path, places in index.of(rows)]
                # Two keys may have one hash.
                cells = pl.concat([empty, *found]).join(rows, on=key, how="semi")
                return cells.unique("id", keep="first", maintain_order=True).select("id", *names)

    def _index(self, key: list[str]) -> _Index:
        """Where the cells of these keys lie; kept until a file changes."""
        state = self._state()
        known = self._found.get(tuple(key))
        if known is None or known.state != state:
            hashes = self.column.each(lambda path: _hashes(self.column.part(path, key)))
            known = _Index.of_files(state, hashes, key)
            self._found[tuple(key)] = known
        return known


@dataclass(frozen=True)
class _Index:
    """Where each cell of a column lies, by the hash of its key: the hashes in rising order, and of
    each the number of its place when all files are laid end to end.

    `state`: the files when they were listed; `lengths`: of each that was read, its cells.
    """

    key: list[str]
    state: _State
    lengths: Mapping[Path, int]
    hashes: NDArray[np.uint64]
    places: NDArray[np.int64]

    @classmethod
    def of_files(
        cls, state: _State, files: Mapping[Path, NDArray[np.uint64]], key: list[str]
    ) -> _Index:
        """The index of these files' cells, given the hashes of their keys."""
        lengths = {path: len(hashes) for path, hashes in files.items()}
        hashes = np.concatenate([np.empty(0, np.uint64), *files.values()])
        places = np.argsort(hashes, kind="stable")  # of equal ones, the first that counts is first
        return cls(key, state, lengths, hashes[places], places)

    def of(self, rows: pl.DataFrame) -> Iterator[tuple[Path, NDArray[np.int64]]]:
        """(file, rising places in it) of each file that holds cells of these rows."""
        asked = _hashes(rows.select(self.key))
        first = np.searchsorted(self.hashes, asked, "left")
        last = np.searchsorted(self.hashes, asked, "right")
        counts = last - first
        # Every place of an equal hash: of one row there is one, almost always.
        starts = np.repeat(first - (np.cumsum(counts) - counts), counts)
        places = np.unique(self.places[starts + np.arange(counts.sum())])
        ends = np.cumsum([*self.lengths.values()])
        cuts = np.searchsorted(places, ends)
        start = 0
        for (path, length), end, cut in zip(self.lengths.items(), ends, cuts, strict=True):
            if cut > start:
                yield path, places[start:cut] - (end - length)
            start = cut


def _hashes(keys: pl.DataFrame) -> NDArray[np.uint64]:
    return keys.hash_rows(seed=0).to_numpy()


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
        return Lean(
            column, _short_responses, digest([[text_figures.VERSION, "of_pair"], *known])[:12]
        )
    if measure == "turns":
        return Lean(column, _short_turns, digest(["turns", *known])[:12])
    long = measures.long_columns(n for n in column.schema if n in measures.columns)
    kept = [name for name in column.schema if name not in long]
    return Lean(column, partial(_short, measures=measures), reads=kept)


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
    """Of a response: its digest, that of the pair, its length and the like."""
    figures = text_figures.response_columns(part.select("id", "response", "finish_reason"))
    part = part.with_columns(
        response_finish_reason="finish_reason",
        response_tokens="tokens",
        response_prompt_tokens="prompt_tokens",
        of_response=digest_texts(part["response"]),
    )
    part = part.with_columns(of_pair=digest_pairs(part["of"], part["of_response"]))
    return _short(_beside(part, figures)).drop("finish_reason")


def _short_turns(part: pl.DataFrame) -> pl.DataFrame:
    """Of a conversation: its digest, which tells it from another that begins alike."""
    return _short(part.with_columns(messages_digest(part["messages"])))


def _beside(part: pl.DataFrame, figures: pl.DataFrame) -> pl.DataFrame:
    """Cells with the figures of their texts, in the same order: an id may be there twice, with two
    texts."""
    new = [c for c in figures.columns if c in COLUMNS and c not in part.columns]
    return part.hstack(figures.select(new))
