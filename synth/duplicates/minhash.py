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

from synth.config.synthesis import SynthConfig
from synth.context import Context, Serving
from synth.duplicates.blocks import Ints, Truths, components, slices
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

WORD = r"[\p{Alphabetic}\p{M}\p{N}]+"

Signatures = NDArray[np.uint32]
Keys = NDArray[np.uint64]


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
    return pl.DataFrame(
        {
            "id": names,
            "minhash_group": names.gather(group),
            "minhash_duplicate": group != np.arange(len(ids)),
        }
    )


def cell(config: SynthConfig, context: Context) -> dict[str, Any]:
    """What determines a cell, the pool aside."""
    hashes = {name: version(name) for name in ("rensa", "polars")}
    return {**config.tags.minhash.model_dump(), **hashes, "VERSION": VERSION}


def compute(rows: pl.DataFrame, config: SynthConfig, context: Serving) -> Iterator[pl.DataFrame]:
    """The measure `minhash` of the whole pool's rows [id, ...]."""
    near = config.tags.minhash
    yield minhash(rows["id"].to_list(), context.instructions(rows), **near.model_dump())


def signatures(count: int, texts: Iterable[pl.Series], ngram: int, permutations: int) -> Signatures:
    """The signature of each text, [count, permutations]; `texts` in slices of any size, `count` in
    all."""
    signed = np.empty((count, permutations), np.uint32)
    done = 0
    for batch in texts:
        for part in slices(len(batch), SLICE):
            some = batch[part]
            end = done + len(some)
            signed[done:end] = _sketch(_shingles(some, ngram), len(some), permutations)
            done = end
    if done != count:
        raise ValueError(f"{count} ids came with {done} texts")
    return signed


def groups(signed: Signatures, threshold: float) -> Ints:
    """For each row, the first row of its connected component."""
    # equal signatures are one node: many copies of a text would meet in every band, each with each
    _, first, node = np.unique(_keys(signed), return_index=True, return_inverse=True)
    component = np.arange(len(first))
    permutations = signed.shape[1]
    width = _width(permutations, threshold)
    for band in range(0, permutations - width + 1, width):
        key = _keys(signed[:, band : band + width])[first]
        component = _met(signed, first, key, component, threshold)
    lowest = np.full(len(first), len(signed))
    np.minimum.at(lowest, component, first)
    group: Ints = lowest[component][node]
    return group


def _keys(signed: Signatures) -> Keys:
    """One 64-bit key of each row's hashes; by slices, since polars copies what it hashes."""
    keys = [pl.from_numpy(signed[part]).hash_rows() for part in slices(len(signed), SLICE)]
    return np.concatenate([np.empty(0, np.uint64), *keys])


def _met(signed: Signatures, first: Ints, key: Keys, component: Ints, threshold: float) -> Ints:
    """The components after one band: nodes of one key (a bucket) are compared, each with each, as
    long as their components differ.

    Sorted by key, a bucket is a run; step k compares each node with the k-th behind it, over all
    buckets at once, until none reaches that far within its bucket.
    """
    count = len(key)
    order = np.argsort(key, kind="stable")
    key, place, step = key[order], np.arange(count), 0
    while len(place):
        step += 1
        place = place[place + step < count]
        place = place[key[place] == key[place + step]]
        a, b = order[place], order[place + step]
        apart = component[a] != component[b]
        a, b = a[apart], b[apart]
        alike = _alike(signed, first[a], first[b], threshold)
        if alike.any():
            joined = components(count, component[a[alike]], component[b[alike]])
            component = joined[component]
        # A bucket that has become one component has nothing left to compare. Looked at seldom:
        # it costs as much as a step.
        if step.bit_count() == 1:
            place = place[_divided(key, component[order])[place]]
    return component


def _width(permutations: int, threshold: float) -> int:
    """Hashes a band: as many as leave RECALL of the pairs at the threshold together in some
    band."""

    def recall(width: int) -> float:
        return 1 - (1 - threshold**width) ** (permutations // width)

    widths = range(1, permutations + 1)
    return max((width for width in widths if recall(width) >= RECALL), default=1)


def _alike(signed: Signatures, a: Ints, b: Ints, threshold: float) -> Truths:
    """Whether two rows' signatures agree in at least the threshold's share of hashes."""
    needed = threshold * signed.shape[1] - 1e-9  # 0.7 of 10 is 7, whatever its rounding
    alike = np.empty(len(a), bool)
    for part in slices(len(a), PAIRS):
        alike[part] = (signed[a[part]] == signed[b[part]]).sum(axis=1) >= needed
    return alike


def _divided(key: Keys, component: Ints) -> Truths:
    """Whether the bucket (run of equal keys) of each place holds more than one component."""
    begins = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
    lowest = np.minimum.reduceat(component, begins)
    highest = np.maximum.reduceat(component, begins)
    sizes = np.diff(np.append(begins, len(key)))
    return np.repeat(lowest != highest, sizes)


def _shingles(texts: pl.Series, ngram: int) -> Grams:
    """Hashed n-grams; a text that has too few words for one counts as one n-gram, its words or else
    the text itself."""
    found = grams(words(texts, plain=True), ngram)
    without = np.setdiff1d(np.arange(len(texts)), found.row)
    short = texts.gather(without).fill_null("")
    plain = short.str.to_lowercase().str.extract_all(WORD).list.join(" ")
    whole = plain.zip_with(plain != "", short).hash().to_numpy()
    row = np.append(found.row, without)
    order = np.argsort(row, kind="stable")
    return Grams(row[order], np.append(found.hash, whole)[order])


def _sketch(shingles: Grams, count: int, permutations: int) -> Signatures:
    from rensa import RMinHash

    ends = np.searchsorted(shingles.row, np.arange(count + 1)).astype(np.uint64)
    hashes = np.ascontiguousarray(shingles.hash)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, ends, permutations, SEED)
    return np.array(matrix.to_rows(), np.uint32).reshape(count, permutations)
