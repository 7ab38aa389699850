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

# Writing without spaces between words: every character counts as a word.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_BETWEEN = (
    r"(?:[^\p{Alphabetic}\p{M}\p{N}]|[\x{FE00}-\x{FE0F}\x{20E3}])+"  # emoji carry those marks
)
_SPACES = ["\n", "\t", "\r", "\u00a0", "\u3000"]
_MIX = [np.uint64(odd) for odd in (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93)]


@dataclass(frozen=True)
class Grams:
    """Hashes of words or n-grams, text after text: `row` is the text's place (int64), `hash` its
    hash (uint64), in reading order."""

    row: NDArray[np.int64]
    hash: NDArray[np.uint64]


def words(texts: pl.Series, *, plain: bool = False) -> Grams:
    """The words of each text, without case. A null text has none.

    Words are what stands between spaces; with `plain`, runs of letters, marks and digits (so
    punctuation and markup do not count).
    """
    lower = texts.fill_null("").str.to_lowercase()
    lower = (
        lower.str.replace_all(_BETWEEN, " ") if plain else lower.str.replace_many(_SPACES, [" "])
    )
    unspaced = lower.str.contains(_UNSPACED)
    if unspaced.any():
        lower = lower.scatter(
            unspaced.arg_true(), lower.filter(unspaced).str.replace_all(f"({_UNSPACED})", " $1 ")
        )
    return _flat(lower.str.split(" "))


def characters(texts: pl.Series) -> Grams:
    """The characters of each text in place of its words, without case."""
    return _flat(texts.fill_null("").str.to_lowercase().str.split(""))


def _flat(split: pl.Series) -> Grams:
    flat = (
        pl.DataFrame({"row": pl.int_range(len(split), dtype=pl.Int64, eager=True), "word": split})
        .explode("word")
        .filter(pl.col("word") != "")
    )
    return Grams(flat["row"].to_numpy(), flat["word"].hash().to_numpy())


def grams(of: Grams, n: int) -> Grams:
    """All runs of `n` consecutive words of one text; a text of fewer words has none."""
    if n == 1 or len(of.row) < n:
        return Grams(of.row[:0], of.hash[:0]) if len(of.row) < n else of
    size = len(of.row) - n + 1
    whole = of.row[:size] == of.row[n - 1 :]
    mixed = of.hash[:size].copy()
    for k in range(1, n):
        mixed *= _MIX[0]
        mixed += of.hash[k : size + k]
    mixed ^= mixed >> np.uint64(32)
    mixed *= _MIX[1]
    return Grams(of.row[:size][whole], mixed[whole])
