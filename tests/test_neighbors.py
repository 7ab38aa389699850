"""Nearest neighbours: exact against all pairs in 64 bit, exact zeros for duplicates, counts and lowest ids."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from core.errors import UserError
from core.models import resolve
from synth.neighbors import _groups, _on_cpu, _on_gpu, embed, neighbors


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def vectors(n: int, d: int = 48, seed: int = 0) -> NDArray[np.float32]:
    return unit(np.random.default_rng(seed).normal(size=(n, d)))


def names(n: int) -> list[str]:
    return [f"row-{(i * 7919) % n:05d}" for i in range(n)]  # not in the order of the rows


def all_pairs(ids: list[str], rows: NDArray[np.float32], threshold: float) -> pl.DataFrame:
    """The definition, in float64 over every pair."""
    exact = rows.astype(np.float64)
    distance = ((exact[:, None, :] - exact[None, :, :]) ** 2).sum(axis=2)
    np.fill_diagonal(distance, np.inf)
    nearest, close = distance.min(axis=1), distance < threshold
    np.fill_diagonal(close, True)
    lowest = [ids[int(row.argmax())] for row in close]
    return pl.DataFrame({"id": ids, "d": nearest, "n": close.sum(axis=1) - 1, "low": lowest})


@pytest.mark.parametrize("block", [64, 100, 1000])
def test_distances_counts_and_lowest_ids_are_those_of_all_pairs(block: int) -> None:
    rows = vectors(400)
    rows[50:80] = unit(rows[7] + 0.01 * np.random.default_rng(1).normal(size=(30, 48)))  # a cluster of near duplicates across blocks
    ids = names(400)
    found, exact = neighbors(ids, rows, 0.05, block=block), all_pairs(ids, rows, 0.05)
    assert found["id"].to_list() == ids
    assert np.abs(found["min_neighbor_distance"].to_numpy() - exact["d"].to_numpy()).max() < 1e-5
    assert found["repeat_count"].to_list() == exact["n"].to_list()
    assert found["min_similar_id"].to_list() == exact["low"].to_list()
    assert set(found["status"]) == {"ok"}


def test_torch_blocks_agree_with_numpys() -> None:
    rows = vectors(300)
    rows[50:80] = unit(rows[7] + 0.01 * np.random.default_rng(1).normal(size=(30, 48)))
    rows[200:220] = rows[3]
    _, first, size = _groups(rows)
    by_numpy, by_torch = _on_cpu(rows[first], first, size, 0.975, 64), _on_gpu(rows[first], first, size, 0.975, 100, "cpu")
    assert np.abs(by_numpy[0] - by_torch[0]).max() < 1e-6
    assert (by_numpy[1] == by_torch[1]).all() and (by_numpy[2] == by_torch[2]).all()


def test_none_of_500_duplicates_passes_a_distance_above_zero() -> None:
    rows = vectors(2000)
    copies = np.random.default_rng(2).permutation(2000)[:500]
    rows[copies] = rows[copies[0]]
    ids = names(2000)
    found = neighbors(ids, rows, 0.05, block=256)
    kept = found.filter(pl.col("min_neighbor_distance") > 0)
    assert not set(kept["id"]) & {ids[i] for i in copies}
    assert len(kept) == 1500
    copied = found.filter(pl.col("id").is_in([ids[i] for i in copies]))
    assert copied["min_neighbor_distance"].unique().to_list() == [0.0]
    assert copied["repeat_count"].unique().to_list() == [499]
    assert copied["min_similar_id"].unique().to_list() == [ids[copies.min()]]


def test_rounding_above_zero_is_zero_and_the_two_zeros_are_equal() -> None:
    rows = vectors(4)
    rows[1] = np.nextafter(rows[0], 1)
    rows[3] = rows[2] = np.eye(48, dtype=np.float32)[0]
    rows[3, 1] = -0.0
    assert neighbors(names(4), rows)["min_neighbor_distance"].to_list() == [0.0] * 4


def test_lowest_similar_id_is_always_filled() -> None:
    ids = names(50)
    found = neighbors(ids, vectors(50))
    assert found["min_similar_id"].to_list() == ids and found["repeat_count"].to_list() == [0] * 50


def test_opposite_vectors_are_four_apart() -> None:
    one = vectors(1)
    assert neighbors(["a", "b"], np.concatenate([one, -one]))["min_neighbor_distance"].to_list() == pytest.approx([4.0, 4.0], abs=1e-5)


def test_a_row_alone_is_a_failed_cell_and_no_row_is_no_cell() -> None:
    assert neighbors(["a"], vectors(1))["reason"].to_list() == ["the pool has no other row"]
    assert neighbors([], vectors(0)).is_empty()


def test_vectors_that_are_not_unit_length_or_not_finite_are_one_sentence() -> None:
    for bad in (vectors(3) * 2, np.full((3, 4), np.nan, np.float32)):
        with pytest.raises(UserError, match="not of unit length"):
            neighbors(list("abc"), bad)
    with pytest.raises(UserError, match="2 ids came with"):
        neighbors(["a", "b"], vectors(3))


def test_real_embeddings_of_equal_texts_are_bitwise_equal_and_close_for_paraphrases() -> None:
    texts = ["How do I boil an egg?", "Prove that 2 is prime.", "How do I boil an egg?", "How do I boil eggs?"]
    texts += [f"Filler {i} " * i for i in range(1, 40)]
    made = embed(texts, resolve("embedded/all-MiniLM-L6-v2").path)
    assert made.dtype == np.float32 and made.shape == (len(texts), 384)
    assert np.allclose(np.linalg.norm(made, axis=1), 1, atol=1e-6)
    assert made[0].tobytes() == made[2].tobytes()
    found = neighbors([str(i) for i in range(len(texts))], made, 0.2)
    assert found["min_neighbor_distance"].to_list()[0] == 0.0
    assert 0 < found["min_neighbor_distance"].to_list()[3] < 0.2 < found["min_neighbor_distance"].to_list()[1]
    assert found["min_similar_id"].to_list()[:4] == ["0", "1", "0", "0"]


def test_embedding_model_that_is_none_is_one_sentence(tmp_path: object) -> None:
    with pytest.raises(UserError, match="cannot be loaded"):
        embed(["a"], f"{tmp_path}/nothing")
