"""Overlap of instructions with the prompts that the models will be evaluated on: shared word n-grams, and distance in embedding space.

A row that repeats an evaluation prompt would make its arm look better than it is. The measures are columns like any other: the filter says what
is too much (Tulu 3 drops rows that share 8-grams covering more than half of a test prompt's words).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from core.columns import OK

VERSION = 1
"""Part of the column's key, with the digest of the prompts."""

NGRAM = 8
SLICE = 4096

_WORD = re.compile(r"[^\W_]+")


def overlap(rows: pl.DataFrame, prompts: Sequence[str], n: int = NGRAM) -> pl.DataFrame:
    """How much of some evaluation prompt an instruction repeats.

    `rows`: id, instruction. Words are compared without case and punctuation; a prompt of fewer than `n` words counts as one n-gram of its length.
    Returns [id, eval_overlap (the largest share of one prompt's words that lies in n-grams shared with the instruction, 0 to 1),
    eval_overlap_prompt (that prompt's place in `prompts`, or null), status].
    """
    lengths = [len(_words(prompt)) for prompt in prompts]
    index: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
    for at, prompt in enumerate(prompts):
        for place, gram in _grams(_words(prompt), n):
            index[gram].append((at, place))
    sizes = sorted({len(gram) for gram in index})
    shares: list[float] = []
    which: list[int | None] = []
    for text in rows["instruction"].fill_null("").to_list():
        words = _words(text)
        covered: dict[int, set[int]] = defaultdict(set)
        for size in sizes:
            for gram in {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}:
                for at, place in index.get(gram, ()):
                    covered[at].update(range(place, place + size))
        best = max(covered, key=lambda at: (len(covered[at]) / lengths[at], -at), default=None)
        shares.append(len(covered[best]) / lengths[best] if best is not None else 0.0)
        which.append(best)
    columns = {"id": rows["id"], "eval_overlap": pl.Series(shares, dtype=pl.Float64), "eval_overlap_prompt": pl.Series(which, dtype=pl.Int64)}
    return pl.DataFrame(columns).with_columns(pl.lit(OK).alias("status"))


def distance(ids: Sequence[str], vectors: NDArray[np.float32], prompts: NDArray[np.float32]) -> pl.DataFrame:
    """Squared L2 distance of each instruction to the nearest evaluation prompt, both as unit vectors of one model (`neighbors.embed`).

    `vectors` [n, d] and `prompts` [m, d], float32. Returns [id, eval_distance (0 to 4; null without prompts), status].
    """
    nearest = np.full(len(vectors), np.nan)
    for top in range(0, len(vectors) if len(prompts) else 0, SLICE):
        nearest[top : top + SLICE] = np.clip(2 - 2 * (vectors[top : top + SLICE] @ prompts.T).max(axis=1).astype(np.float64), 0, 4)
    return pl.DataFrame({"id": list(ids), "eval_distance": pl.Series(nearest).fill_nan(None)}).with_columns(pl.lit(OK).alias("status"))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _grams(words: list[str], n: int) -> list[tuple[int, tuple[str, ...]]]:
    size = min(n, len(words))
    return [(i, tuple(words[i : i + size])) for i in range(len(words) - size + 1)] if size else []
