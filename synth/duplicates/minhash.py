"""Near-duplicates by words: MinHash signatures of the instructions' word n-grams, compared where
locality-sensitive hashing lets them meet.

Signatures are rensa's (R-MinHash): measured here against datasketch on the same n-grams 35 to 60
times as fast, and with a smaller error. Every pair that meets in a band is checked on its whole
signatures, so a group never depends on the order of the rows, and no similarity below the threshold
joins two rows. Groups are the connected components: a chain of near-duplicates is one group, also
where its ends differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from synth.config import SynthConfig
from synth.context import Context
from synth.duplicates.ngrams import Grams, grams, words

VERSION = 1
"""Part of the column's key, with the versions of rensa and polars, whose hashes go in."""

SLICE = 20_000
"""Texts whose words are in memory at once."""
RECALL = 0.99
"""At least this share of the pairs at the threshold itself meet in some band; of more similar
pairs, more."""
PAIRS = 50_000
"""Pairs whose signatures are compared at once."""
SEED = 1

Signatures = NDArray[np.uint32]
Places = NDArray[np.int64]


def minhash(
    ids: Sequence[str],
    texts: Iterable[pl.Series],
    *,
    threshold: float,
    ngram: int,
    permutations: int,
) -> pl.DataFrame:
    """Groups of near-duplicates among all rows of a pool.

    `texts`: the instructions in the order of `ids`, in slices of any size. Two rows are
    near-duplicates when the Jaccard similarity of their word n-grams, estimated from `permutations`
    hashes (standard error at most sqrt(s (1 - s) / permutations)), is at least `threshold`; words
    are compared without case and punctuation, and a text of fewer than `ngram` words counts as one
    n-gram. Returns, in the order of `ids`, [id, minhash_group (the id of the group's first row, its
    own where it is alone), minhash_duplicate (it is not its group's first)]. Memory: 4 *
    permutations + 60 bytes a row (570 for 128), besides one slice of texts.
    """
    group = groups(signatures(len(ids), texts, ngram, permutations), threshold)
    names = pl.Series("id", list(ids), dtype=pl.String)
    duplicate = pl.Series(group != np.arange(len(ids)), dtype=pl.Boolean)
    return pl.DataFrame(
        {"id": names, "minhash_group": names.gather(group), "minhash_duplicate": duplicate}
    )


def cell(config: SynthConfig, context: Context) -> dict[str, Any]:
    """What determines a cell, the pool aside."""
    hashes = {name: version(name) for name in ("rensa", "polars")}
    return {**config.tags.minhash.model_dump(), **hashes, "VERSION": VERSION}


def compute(rows: pl.DataFrame, config: SynthConfig, context: Context) -> Iterator[pl.DataFrame]:
    """The measure `minhash` of the whole pool's rows [id, ...]."""
    near = config.tags.minhash
    yield minhash(
        rows["id"].to_list(),
        context.instructions(rows),
        threshold=near.threshold,
        ngram=near.ngram,
        permutations=near.permutations,
    )


def signatures(count: int, texts: Iterable[pl.Series], ngram: int, permutations: int) -> Signatures:
    """The signature of each text, [count, permutations]; `texts` in slices of any size, `count` in
    all."""
    made = np.empty((count, permutations), np.uint32)
    done = 0
    for batch in texts:
        for top in range(0, len(batch), SLICE):
            part = batch.slice(top, SLICE)
            made[done : done + len(part)] = _sketch(_shingles(part, ngram), len(part), permutations)
            done += len(part)
    if done != count:
        raise ValueError(f"{count} ids came with {done} texts")
    return made


def groups(signed: Signatures, threshold: float) -> NDArray[np.int64]:
    """For each row, the first row of its connected component."""
    # equal signatures are one node: many copies of a text would meet in every band, each with each
    _, first, node = np.unique(
        _mixed(signed, 0, signed.shape[1]), return_index=True, return_inverse=True
    )
    component = np.arange(len(first))
    width = _width(signed.shape[1], threshold)
    for band in range(0, signed.shape[1] - width + 1, width):
        component = _met(signed, first, _mixed(signed, band, width)[first], component, threshold)
    lowest = np.full(len(first), len(signed), np.int64)
    np.minimum.at(lowest, component, first)
    found: NDArray[np.int64] = lowest[component][node]
    return found


def _met(
    signed: Signatures, first: Places, key: NDArray[np.uint64], component: Places, threshold: float
) -> Places:
    """The components after one band: nodes of one key are compared, each with each, as long as
    their components differ."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    held = len(key)
    order = np.argsort(key, kind="stable")
    key, place, step = key[order], np.arange(held), 0
    while len(place):
        step += 1
        place = place[place + step < held]
        place = place[key[place] == key[place + step]]
        a, b = order[place], order[place + step]
        apart = component[a] != component[b]
        alike = _alike(signed, first[a[apart]], first[b[apart]], threshold)
        if alike.any():
            edges = (component[a[apart][alike]], component[b[apart][alike]])
            graph = coo_array((np.ones(len(edges[0]), bool), edges), shape=(held, held))
            component = connected_components(graph, directed=False)[1].astype(np.int64)[component]
        if (
            step & (step - 1) == 0
        ):  # a bucket that has become one component has nothing left to compare
            place = place[_divided(key, component[order])[place]]
    return component


def _width(permutations: int, threshold: float) -> int:
    """Hashes a band: as many as leave RECALL of the pairs at the threshold together in some
    band."""
    chance = [
        1 - (1 - threshold**width) ** (permutations // width)
        for width in range(1, permutations + 1)
    ]
    return max([width for width, met in enumerate(chance, 1) if met >= RECALL], default=1)


def _mixed(signed: Signatures, band: int, width: int) -> NDArray[np.uint64]:
    """One 64-bit key of `width` hashes a row."""
    key = np.zeros(len(signed), np.uint64)
    for column in range(band, band + width):
        key += signed[:, column]
        key *= np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    return key


def _alike(signed: Signatures, a: Places, b: Places, threshold: float) -> NDArray[np.bool_]:
    need = threshold * signed.shape[1] - 1e-9
    found = [
        (signed[a[top : top + PAIRS]] == signed[b[top : top + PAIRS]]).sum(axis=1) >= need
        for top in range(0, len(a), PAIRS)
    ]
    return np.concatenate(found) if found else np.zeros(0, bool)


def _divided(key: NDArray[np.uint64], component: Places) -> NDArray[np.bool_]:
    """Whether the bucket (run of equal keys) of each place holds more than one component."""
    bucket = np.cumsum(np.concatenate([[0], key[1:] != key[:-1]]))
    low, high = np.full(bucket[-1] + 1, len(key)), np.full(bucket[-1] + 1, -1)
    np.minimum.at(low, bucket, component)
    np.maximum.at(high, bucket, component)
    divided: NDArray[np.bool_] = (low != high)[bucket]
    return divided


def _shingles(texts: pl.Series, ngram: int) -> Grams:
    """Hashed n-grams; a text that has too few words for one counts as one n-gram, its words or else
    the text itself."""
    of = words(texts, plain=True)
    found = grams(of, ngram)
    without = np.setdiff1d(np.arange(len(texts)), found.row)
    plain = (
        texts.gather(without)
        .fill_null("")
        .str.to_lowercase()
        .str.extract_all(r"[\p{Alphabetic}\p{M}\p{N}]+")
        .list.join(" ")
    )
    whole = (
        pl.select(pl.when(plain == "").then(texts.gather(without).fill_null("")).otherwise(plain))
        .to_series()
        .hash()
        .to_numpy()
    )
    row = np.concatenate([found.row, without])
    order = np.argsort(row, kind="stable")
    return Grams(row[order], np.concatenate([found.hash, whole])[order])


def _sketch(shingles: Grams, count: int, permutations: int) -> Signatures:
    from rensa import RMinHash

    ends = np.searchsorted(shingles.row, np.arange(count + 1)).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        np.ascontiguousarray(shingles.hash), ends, permutations, SEED
    )
    return np.array(matrix.to_rows(), np.uint32).reshape(count, permutations)
