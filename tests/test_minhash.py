"""Near-duplicates by MinHash: who is grouped, independently of order, and as exact as comparing
every pair."""

from __future__ import annotations

import random
import string
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.sparse.csgraph import connected_components

from synth.duplicates import minhash as rooms
from synth.duplicates.minhash import groups, minhash, signatures

SETTINGS: dict[str, Any] = {"threshold": 0.7, "ngram": 3, "permutations": 128}
TEXT = (
    "Write a short story about a lighthouse keeper who finds an old map in the attic of his house "
    "and sets out to sea."
)


def grouped(texts: list[str | None], **changes: Any) -> list[str]:
    ids = [f"r{at}" for at in range(len(texts))]
    made = minhash(ids, [pl.Series(texts, dtype=pl.String)], **{**SETTINGS, **changes})
    assert made["id"].to_list() == ids
    assert (made["minhash_duplicate"] == (made["minhash_group"] != made["id"])).all()
    return made["minhash_group"].to_list()


def sentences(count: int, seed: int = 0) -> list[str]:
    """Random sentences of 20 words; every third is an earlier one with one word changed."""
    dice = random.Random(seed)
    made: list[str] = []
    for at in range(count):
        words = ["".join(dice.choices(string.ascii_lowercase, k=5)) for _ in range(20)]
        if at % 3 == 2:
            words = dice.choice(made).split()
            words[dice.randrange(20)] = "changed"
        made.append(" ".join(words))
    return made


def test_one_changed_word_in_a_long_instruction_is_a_near_duplicate_and_another_text_is_none() -> (
    None
):
    assert grouped(
        [TEXT, "What is rain?", TEXT.replace("old map", "old chart"), "What is snow?"]
    ) == ["r0", "r1", "r0", "r3"]


def test_case_and_punctuation_make_no_difference_and_missing_texts_are_alike() -> None:
    assert grouped(
        ["What is rain", "WHAT is... rain?!", "Hi!", "hi", "??", "!!", "??", None, ""]
    ) == [
        "r0",
        "r0",
        "r2",
        "r2",
        "r4",
        "r5",
        "r4",
        "r7",
        "r7",
    ]


def test_a_chain_of_near_duplicates_is_one_group_named_by_its_first_row() -> None:
    far = " ".join(["alpha", *TEXT.split()[1:]])
    chain = [TEXT]
    for word in ("lighthouse", "attic", "house"):
        chain.append(chain[-1].replace(word, "garden", 1))
    assert grouped(["other words", *chain, far]) == ["r0", "r1", "r1", "r1", "r1", "r1"]
    ends = signatures(2, [pl.Series([chain[0], chain[-1]])], 3, 128)
    assert (ends[0] == ends[1]).mean() < 0.7


def test_groups_do_not_depend_on_the_order_of_the_rows_or_on_the_slices() -> None:
    texts = sentences(600)
    whole = groups(signatures(600, [pl.Series(texts)], 3, 128), 0.7)
    order = np.random.default_rng(1).permutation(600)
    parts = [pl.Series([texts[at] for at in order[top : top + 77]]) for top in range(0, 600, 77)]
    shuffled = groups(signatures(600, parts, 3, 128), 0.7)
    as_sets = {frozenset(np.flatnonzero(whole == g).tolist()) for g in set(whole)}
    again = {frozenset(order[shuffled == g].tolist()) for g in set(shuffled)}
    assert as_sets == again and len(as_sets) < 600


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_groups_are_those_of_comparing_every_pair(threshold: float) -> None:
    signed = signatures(600, [pl.Series(sentences(600, seed=3))], 3, 128)
    alike = (signed[:, None, :] == signed[None, :, :]).mean(axis=2) >= threshold - 1e-9
    _, wanted = connected_components(alike, directed=False)
    found = groups(signed, threshold)
    pairs = {(a, b) for a, b in np.argwhere(wanted[:, None] == wanted[None, :]).tolist() if a < b}
    met = {(a, b) for a, b in np.argwhere(found[:, None] == found[None, :]).tolist() if a < b}
    assert met <= pairs and len(met) >= 0.98 * len(pairs)
    assert (found <= np.arange(600)).all()


def test_rows_that_share_a_band_but_are_not_alike_stay_apart() -> None:
    dice = np.random.default_rng(0)
    signed = dice.integers(0, 2**32, (300, 128), np.uint32)
    signed[:, :64] = signed[
        0, :64
    ]  # all meet in half of the bands, with half of their hashes equal
    signed[100:200, 64:] = signed[100, 64:]
    signed[100:200, 127] = dice.integers(0, 2**32, 100, np.uint32)  # these are alike
    found = groups(signed, 0.7)
    assert found.tolist() == [*range(100), *[100] * 100, *range(200, 300)]


def test_many_copies_of_a_text_are_one_group_without_comparing_each_with_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[int] = []
    monkeypatch.setattr(
        rooms, "_alike", lambda s, a, b, t: compared.append(len(a)) or np.ones(len(a), bool)
    )
    assert set(grouped([TEXT] * 5000)) == {"r0"}
    assert sum(compared) == 0


def test_estimated_similarity_is_near_the_true_one() -> None:
    words = ["".join(random.Random(at).choices(string.ascii_lowercase, k=6)) for at in range(300)]
    a, b = " ".join(words[:200]), " ".join(words[50:250])
    signed = signatures(2, [pl.Series([a, b])], 3, 512)
    true = 148 / (198 + 198 - 148)
    assert (signed[0] == signed[1]).mean() == pytest.approx(true, abs=0.08)


def test_no_rows_and_one_row() -> None:
    assert grouped([]) == []
    assert grouped(["alone"]) == ["r0"]
