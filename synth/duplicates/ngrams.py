"""Word n-grams of many texts at once, as 64-bit hashes in flat arrays: what repetition, MinHash and
decontamination count.

Hashes are polars' and hold within one process only; two different n-grams share one with
probability 2^-64 a pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from synth.duplicates.blocks import Ints

# Writing without spaces between words: every character counts as a word.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_BETWEEN = (
    r"(?:[^\p{Alphabetic}\p{M}\p{N}]|[\x{FE00}-\x{FE0F}\x{20E3}])+"  # emoji carry those marks
)
_SPACES = ["\n", "\t", "\r", "\u00a0", "\u3000"]
_MULTIPLY, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
"""Odd, so that no bit of a hash is lost."""


@dataclass(frozen=True)
class Grams:
    """Hashes of words or n-grams, text after text: `row` is the text's place (int64), `hash` its
    hash (uint64), in reading order."""

    row: Ints
    hash: NDArray[np.uint64]

    def lengths(self, texts: int) -> Ints:
        """How many each of so many texts has."""
        return np.bincount(self.row, minlength=texts)


def words(texts: pl.Series, *, plain: bool = False) -> Grams:
    """The words of each text, without case. A null text has none.

    Words are what stands between spaces; with `plain`, runs of letters, marks and digits (so
    punctuation and markup do not count).
    """
    lower = texts.fill_null("").str.to_lowercase()
    spaced = (
        lower.str.replace_all(_BETWEEN, " ") if plain else lower.str.replace_many(_SPACES, [" "])
    )
    unspaced = spaced.str.contains(_UNSPACED)
    if unspaced.any():
        apart = spaced.filter(unspaced).str.replace_all(f"({_UNSPACED})", " $1 ")
        spaced = spaced.scatter(unspaced.arg_true(), apart)
    return _flat(spaced.str.split(" "))


def characters(texts: pl.Series) -> Grams:
    """The characters of each text in place of its words, without case."""
    return _flat(texts.fill_null("").str.to_lowercase().str.split(""))


def _flat(split: pl.Series) -> Grams:
    rows = pl.DataFrame({"word": split}).select(pl.int_range(pl.len()).alias("row"), "word")
    flat = rows.explode("word").filter(pl.col("word") != "")
    return Grams(flat["row"].to_numpy(), flat["word"].hash().to_numpy())


def grams(of: Grams, n: int) -> Grams:
    """All runs of `n` consecutive words of one text; a text of fewer words has none."""
    if n == 1:
        return of
    count = max(len(of.row) - n + 1, 0)
    row = of.row[:count]
    within = row == of.row[n - 1 :]  # the run ends in the text where it begins
    mixed = of.hash[:count].copy()
    for k in range(1, n):
        mixed *= _MULTIPLY
        mixed += of.hash[k : count + k]
    # a polynomial alone would leave like runs alike in their low bits
    mixed ^= mixed >> np.uint64(32)
    mixed *= _MIX
    return Grams(row[within], mixed[within])
