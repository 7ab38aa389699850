"""Nearest neighbours: exact against all pairs in 64 bit, by either kind of product; exact zeros for
duplicates; groups; the index and its recall."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray

from core.errors import UserError
from core.models import Model, resolve
from core.servers import Servers
from core.tracking import Log
from synth.config.synthesis import SynthConfig
from synth.config.tags import NeighborsConfig
from synth.context import Context
from synth.duplicates import all_pairs as blocks
from synth.duplicates import embeddings
from synth.duplicates.int8_bounds import Codes, rates
from synth.duplicates.neighbors import neighbors
from synth.filters.arm import ArmConfig
from synth.filters.rule import resolve as resolve_filter
from synth.pool.measure import Task, measure
from synth.pool.pool import Pool

CLOSE = 1 - 0.05 / 2


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def vectors(n: int, d: int = 48, seed: int = 0) -> NDArray[np.float32]:
    return unit(np.random.default_rng(seed).normal(size=(n, d)))


def around(centre: NDArray[np.float32], n: int, noise: float, seed: int = 1) -> NDArray[np.float32]:
    return unit(centre + noise * np.random.default_rng(seed).normal(size=(n, len(centre))))


def names(n: int) -> list[str]:
    return [f"row-{(i * 7919) % n:05d}" for i in range(n)]  # not in the order of the rows


def all_pairs(ids: list[str], rows: NDArray[np.float32], threshold: float) -> pl.DataFrame:
    """The definition, in float64 over every pair."""
    from scipy.sparse.csgraph import connected_components

    exact = rows.astype(np.float64)
    distance = np.maximum(2 - 2 * exact @ exact.T, 0)
    np.fill_diagonal(distance, np.inf)
    nearest, close = distance.min(axis=1), distance < threshold
    np.fill_diagonal(close, True)
    lowest = [ids[int(row.argmax())] for row in close]
    _, group = connected_components(close, directed=False)
    first = [ids[int((group == g).argmax())] for g in group]
    return pl.DataFrame(
        {
            "id": ids,
            "d": nearest,
            "n": close.sum(axis=1) - 1,
            "low": lowest,
            "group": first,
            "size": np.bincount(group)[group],
        }
    )


def agree(found: pl.DataFrame, exact: pl.DataFrame) -> None:
    assert found["id"].to_list() == exact["id"].to_list()
    assert np.abs(found["min_neighbor_distance"].to_numpy() - exact["d"].to_numpy()).max() < 2e-6
    assert found["repeat_count"].to_list() == exact["n"].to_list()
    assert found["min_similar_id"].to_list() == exact["low"].to_list()
    assert found["neighbor_group"].to_list() == exact["group"].to_list()
    assert found["neighbor_group_size"].to_list() == exact["size"].to_list()
    assert found["neighbor_group_duplicate"].to_list() == (exact["group"] != exact["id"]).to_list()


POOLS = {
    "random": vectors(700),
    "with near duplicates across blocks": np.concatenate(
        [vectors(300), around(vectors(9)[7], 40, 0.01), vectors(300, seed=5)]
    ),
    "clustered": np.concatenate([around(c, 90, 0.1, seed) for seed, c in enumerate(vectors(8))]),
    "around the threshold": np.concatenate(
        [around(c, 90, 0.0225, seed) for seed, c in enumerate(vectors(8))]
    ),
    "nearly one vector": around(vectors(1)[0], 600, 0.001),
    "near ties": np.concatenate(
        [np.repeat(vectors(20), 35, axis=0) + np.float32(1e-4) * vectors(700, seed=3)]
    ),
    "wide": vectors(500, 768),
}
"""Pools of distinct vectors that differ in how many pairs are near to a row's nearest or to the
threshold."""


def need_8_bit() -> None:
    if not rates()["int8"]:
        pytest.skip(
            "8-bit products are not exact on this processor, so nothing is computed by them"
        )


def folded(rows: NDArray[np.float32], block: int, sieve: bool) -> blocks.Found:
    if sieve:
        need_8_bit()
    found = blocks.Found(np.ones(len(rows), np.int64), np.arange(len(rows)), CLOSE)
    blocks.search(lambda at: rows[at], rows.shape[1], found, block=block, sieve=sieve)
    return found


@pytest.mark.parametrize("sieve", [True, False], ids=["8-bit first", "32-bit"])
@pytest.mark.parametrize("block", [64, 224, 1024])
@pytest.mark.parametrize("pool", POOLS)
def test_every_kind_of_pool_gives_what_all_pairs_in_64_bit_give(
    pool: str, block: int, sieve: bool
) -> None:
    rows = unit(POOLS[pool].astype(np.float64))
    ids = [f"{i:04d}" for i in range(len(rows))]
    found, exact = folded(rows, block, sieve), all_pairs(ids, rows, 0.05)
    assert np.abs(2 - 2 * found.nearest.numpy() - exact["d"].to_numpy()).max() < 2e-6
    assert found.repeats.tolist() == exact["n"].to_list()
    assert [ids[i] for i in found.lowest.tolist()] == exact["low"].to_list()
    assert [ids[i] for i in found.groups().tolist()] == exact["group"].to_list()


@pytest.mark.parametrize("n", [2, 31, 32, 33, 127, 128, 129, 257])
def test_pools_that_end_at_before_and_behind_a_blocks_edge(n: int) -> None:
    rows = vectors(n, seed=n)
    rows[-1] = around(rows[0], 1, 0.01)[0]
    found, exact = folded(rows, 64, True), all_pairs(names(n), rows, 0.05)
    assert np.abs(2 - 2 * found.nearest.numpy() - exact["d"].to_numpy()).max() < 2e-6
    assert found.repeats.tolist() == exact["n"].to_list()


def test_candidates_held_and_close_pairs_merged_in_small_portions_give_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = unit(POOLS["with near duplicates across blocks"].astype(np.float64))
    whole = folded(rows, 64, True)
    for name, value in {"HELD": 50, "EDGES": 0, "PAIRS": 7}.items():
        monkeypatch.setattr(blocks, name, value)
    portions = folded(rows, 64, True)
    assert (whole.nearest - portions.nearest).abs().max() < 1e-6 and (
        whole.repeats == portions.repeats
    ).all()
    assert (whole.groups() == portions.groups()).all()


def test_a_reader_that_fails_ends_every_thread_and_leaves_torchs_threads_as_they_were() -> None:
    rows, reads, threads = vectors(4000), list[int](), torch.get_num_threads()

    def read(at: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        reads.append(1)
        if len(reads) == 20:
            raise OSError("the disk is gone")
        return rows[at]

    with pytest.raises(OSError, match="the disk is gone"):
        blocks.search(
            read,
            48,
            blocks.Found(np.ones(4000, np.int64), np.arange(4000), CLOSE),
            block=64,
            sieve=False,
        )
    assert len(reads) < 100, "of 4,032"
    assert torch.get_num_threads() == threads


def turned_axes(d: int) -> NDArray[np.float32]:
    """Vectors that the rotation lays along one coordinate each, where they are cut off at the
    grid's end."""
    return np.linalg.qr(np.random.default_rng(0).normal(size=(d, d)))[0].T.astype(np.float32)


@pytest.mark.parametrize(
    "rows",
    [
        vectors(200),
        np.eye(48, dtype=np.float32),
        turned_axes(48),
        -around(turned_axes(48)[3], 100, 0.05),
    ],
)
def test_no_cosine_is_further_from_its_codes_than_the_proven_error(
    rows: NDArray[np.float32],
) -> None:
    need_8_bit()
    codes = Codes(lambda at: rows[at], len(rows), 48, 256)
    block = slice(0, 256)
    rough = (
        codes.products(block, block, torch.empty((256, 256), dtype=torch.int32))[
            : len(rows), : len(rows)
        ]
        * codes.unit
    )
    i, j = np.triu_indices(len(rows), 1)
    off = np.abs(rough[i, j] - (rows.astype(np.float64) @ rows.T.astype(np.float64))[i, j])
    assert (off <= codes.errors(i, j)).all()
    assert (codes.errors(i, j) <= codes.error(block, block)[i] + 1e-12).all()


def test_pools_along_the_axes_of_the_rotation_are_exact_too() -> None:
    rows = np.concatenate([turned_axes(48), around(turned_axes(48)[5], 200, 0.02)])
    found, exact = folded(rows, 64, True), all_pairs(names(len(rows)), rows, 0.05)
    assert np.abs(2 - 2 * found.nearest.numpy() - exact["d"].to_numpy()).max() < 2e-6
    assert found.repeats.tolist() == exact["n"].to_list()


def test_a_pool_large_enough_for_8_bit_products_by_itself_is_exact_with_copies_in_it() -> None:
    rows = np.concatenate([around(c, 250, 0.1, seed) for seed, c in enumerate(vectors(20))])
    rows[4000:4040] = rows[17]
    ids = names(5000)
    found, exact = neighbors(ids, rows), all_pairs(ids, rows, 0.05)
    agree(found, exact)
    assert found["neighbor_recall"].unique().to_list() == [1.0] and set(found["status"]) == {"ok"}


def test_the_processors_rates_are_measured() -> None:
    assert rates()["float32"] > 0 and rates()["int8"] >= 0


@pytest.mark.parametrize(
    "device",
    [
        "cpu:0",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
        ),
    ],
)
def test_the_way_of_a_gpu_gives_the_same(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cpu:0` is a device of torch that goes the way of a GPU: one thread, large blocks held on the
    device."""
    rows, ids = np.concatenate([*POOLS.values()][:3], axis=0), names(2060)
    rows[700:720] = rows[3]
    monkeypatch.setattr(blocks, "GPU_BLOCK", 300)
    monkeypatch.setattr(blocks, "GPU_HELD", 2)
    assert len(rows) == 2060
    agree(neighbors(ids, rows, device=device), all_pairs(ids, rows, 0.05))


def test_vectors_in_a_file_give_what_vectors_in_memory_give(tmp_path: Path) -> None:
    rows = np.concatenate([vectors(500), vectors(20)])
    np.save(tmp_path / "v.npy", rows)
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    assert neighbors(names(520), mapped).equals(neighbors(names(520), rows))


def test_none_of_500_duplicates_passes_a_distance_above_zero() -> None:
    rows = vectors(2000)
    copies = np.random.default_rng(2).permutation(2000)[:500]
    rows[copies] = rows[copies[0]]
    ids = names(2000)
    found = neighbors(ids, rows)
    kept = found.filter(pl.col("min_neighbor_distance") > 0)
    assert not set(kept["id"]) & {ids[i] for i in copies}
    assert len(kept) == 1500
    copied = found.filter(pl.col("id").is_in([ids[i] for i in copies]))
    assert copied["min_neighbor_distance"].unique().to_list() == [0.0]
    assert copied["repeat_count"].unique().to_list() == [499]
    assert copied["neighbor_group_size"].unique().to_list() == [500]
    assert (
        copied["min_similar_id"].unique().to_list()
        == copied["neighbor_group"].unique().to_list()
        == [ids[copies.min()]]
    )


def test_a_chain_is_one_group_though_its_ends_are_apart_and_in_any_order() -> None:
    angles = np.arange(6) * 0.2  # neighbours 0.04 apart, the next but one 0.16
    rows = unit(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    ids = list("abcdef")
    for order in ([0, 1, 2, 3, 4, 5], [5, 0, 4, 1, 3, 2], [3, 5, 1, 0, 2, 4]):
        found = neighbors([ids[i] for i in order], rows[order])
        assert (
            found["neighbor_group"].to_list() == [ids[order[0]]] * 6
            and found["neighbor_group_size"].to_list() == [6] * 6
        )
    assert neighbors(ids, rows).filter(pl.col("min_similar_id") == pl.col("id"))[
        "id"
    ].to_list() == ["a"]
    apart = neighbors([ids[i] for i in [0, 2, 4, 1, 3, 5]], rows[[0, 2, 4, 1, 3, 5]])
    assert apart.filter(pl.col("min_similar_id") == pl.col("id"))["id"].to_list() == ["a", "c", "e"]


def test_at_threshold_zero_nothing_is_a_repeat_and_copies_still_have_distance_zero() -> None:
    rows = vectors(10)
    rows[4] = rows[2]
    found = neighbors(names(10), rows, NeighborsConfig(threshold=0.0))
    assert found["repeat_count"].to_list() == [0] * 10 and found[
        "min_similar_id"
    ].to_list() == found["neighbor_group"].to_list() == names(10)
    assert found["min_neighbor_distance"].to_list()[4] == 0.0


def test_rounding_above_zero_is_zero_and_the_two_zeros_are_equal() -> None:
    rows = vectors(4)
    rows[1] = np.nextafter(rows[0], 1)
    rows[3] = rows[2] = np.eye(48, dtype=np.float32)[0]
    rows[3, 1] = -0.0
    assert neighbors(names(4), rows)["min_neighbor_distance"].to_list() == [0.0] * 4


def test_lowest_similar_id_and_group_are_always_filled() -> None:
    ids = names(50)
    found = neighbors(ids, vectors(50))
    assert found["min_similar_id"].to_list() == found["neighbor_group"].to_list() == ids
    assert (
        found["repeat_count"].to_list() == [0] * 50
        and found["neighbor_group_size"].to_list() == [1] * 50
    )


def test_opposite_vectors_are_four_apart() -> None:
    one = vectors(1)
    assert neighbors(["a", "b"], np.concatenate([one, -one]))[
        "min_neighbor_distance"
    ].to_list() == pytest.approx([4.0, 4.0], abs=1e-5)


def test_a_row_alone_is_a_failed_cell_and_no_row_is_no_cell() -> None:
    assert neighbors(["a"], vectors(1))["reason"].to_list() == ["the pool has no other row"]
    assert neighbors([], vectors(0)).is_empty()


def test_vectors_that_are_not_unit_length_or_not_finite_are_one_sentence() -> None:
    for bad in (vectors(3) * 2, np.full((3, 4), np.nan, np.float32)):
        with pytest.raises(UserError, match="not of unit length"):
            neighbors(list("abc"), bad)
    with pytest.raises(UserError, match="2 ids came with"):
        neighbors(["a", "b"], vectors(3))


def test_real_embeddings_of_equal_texts_are_bitwise_equal_and_close_for_paraphrases(
    tmp_path: Path,
) -> None:
    texts = [
        "How do I boil an egg?",
        "Prove that 2 is prime.",
        "How do I boil an egg?",
        "How do I boil eggs?",
    ]
    texts += [f"Filler {i} " * i for i in range(1, 40)]
    minilm = resolve("embedded/all-MiniLM-L6-v2")
    made = embeddings.vectors(tmp_path, names(len(texts)), texts, minilm)
    assert made.dtype == np.float32 and made.shape == (len(texts), 384)
    assert np.allclose(np.linalg.norm(made, axis=1), 1, atol=1e-6)
    assert made[0].tobytes() == made[2].tobytes()
    found = neighbors([str(i) for i in range(len(texts))], made, NeighborsConfig(threshold=0.2))
    assert found["min_neighbor_distance"].to_list()[0] == 0.0
    assert (
        0
        < found["min_neighbor_distance"].to_list()[3]
        < 0.2
        < found["min_neighbor_distance"].to_list()[1]
    )
    assert found["min_similar_id"].to_list()[:4] == ["0", "1", "0", "0"]


def clustered() -> NDArray[np.float32]:
    """6,000 rows in clusters, of which 100 near duplicates of one row, 300 near pairs and 40 exact
    copies."""
    rows = np.concatenate([around(c, 60, 0.12, seed) for seed, c in enumerate(vectors(100))])
    rows = rows[np.random.default_rng(4).permutation(6000)]
    rows[1000:1100] = around(rows[0], 100, 0.003)
    for at in range(300):
        rows[2000 + at] = around(rows[3000 + at], 1, 0.005, at)[0]
    rows[5000:5040] = rows[7]
    return rows


def test_past_the_limit_an_index_finds_neighbours_and_its_recall_is_measured() -> None:
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    rows, ids, lines = clustered(), names(6000), list[str]()
    found = neighbors(ids, rows, NeighborsConfig(exact_up_to=5000, probes=8), say=lines.append)
    exact = neighbors(ids, rows)
    recall = found["neighbor_recall"][0]
    truly = (found["min_neighbor_distance"] - exact["min_neighbor_distance"]).abs() < 1e-5
    assert 0.9 < recall <= 1 and abs(recall - float(truly.mean() or 0)) < 0.03
    assert ((found["min_neighbor_distance"] - exact["min_neighbor_distance"]) > -1e-6).all()
    assert len(lines) == 1 and "of 1,000 rows compared with exact search" in lines[0]
    assert (
        found["repeat_count"][1050] == exact["repeat_count"][1050] >= 100
    )  # more than one answer of the index holds
    assert (
        found["repeat_count"][7] == exact["repeat_count"][7]
        and found["neighbor_group_size"][7] >= 41
    )
    near = exact["repeat_count"] > 0
    assert (found["repeat_count"].filter(near) > 0).mean() > 0.95
    worse = neighbors(ids, rows, NeighborsConfig(exact_up_to=5000, probes=1))
    assert worse["neighbor_recall"][0] < recall


def test_a_pool_past_the_limit_without_faiss_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"exact_up_to, and there is no GPU .*install faiss"):
        neighbors(names(20), vectors(20), NeighborsConfig(exact_up_to=10))


def test_a_gpu_compares_every_pair_past_the_limit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cpu:0` goes the way of a GPU."""
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(blocks, "GPU_BLOCK", 700)
    rows, ids = clustered()[:2000], names(2000)
    found = neighbors(ids, rows, NeighborsConfig(exact_up_to=10), device="cpu:0")
    agree(found, all_pairs(ids, rows, 0.05))
    assert found["neighbor_recall"].unique().to_list() == [1.0]


def test_faiss_is_missed_before_anything_is_embedded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(embeddings, "_load", lambda path: pytest.fail("a text was embedded"))
    made, log = recipe_pool(tmp_path, 10), Log()
    arm = resolve_filter(
        "far", ArmConfig.model_validate({"where": "min_neighbor_distance > 0", "choose": "all"})
    )
    with pytest.raises(UserError, match=r"59 distinct instructions"):
        measure(made, [(arm, (0,))], Servers(log, tmp_path / "logs"), log)


def recipe_pool(root: Path, limit: int) -> Pool:
    """A pool of 60 instructions: 50 of their own, 9 that repeat one of those in other words, one
    exact copy."""
    config = {
        "teacher": {"model": "m"},
        "rows": 60,
        "tags": {"neighbors": {"threshold": 0.25, "exact_up_to": limit}},
    }
    models = {
        "m": Model("m", "m", "r1"),
        "embedded/all-MiniLM-L6-v2": resolve("embedded/all-MiniLM-L6-v2"),
    }
    made = Pool(
        SynthConfig.model_validate(config), Context(root, lambda name, revision: models[name])
    )
    subjects = [
        "rust",
        "bread",
        "tides",
        "jazz",
        "taxes",
        "chess",
        "bees",
        "steel",
        "Rome",
        "fever",
    ]
    asks = [
        "How is {} made?",
        "Write a poem about {}.",
        "Name three dangers of {}.",
        "Who studies {}?",
        "Translate '{}' into French.",
    ]
    texts = [ask.format(subject) for subject in subjects for ask in asks]
    texts += [f"Please write me a poem about {subject}" for subject in subjects[:9]] + [texts[0]]
    rows = made.planned.with_columns(
        pl.Series("instruction", texts),
        pl.lit("stop").alias("finish_reason"),
        pl.lit(5).alias("tokens"),
    )
    made.instruction.append(rows)
    return made


@pytest.mark.parametrize("limit", [1000, 10])
def test_a_recipe_measures_groups_of_near_duplicates_with_stored_vectors(
    tmp_path: Path, limit: int, capsys: pytest.CaptureFixture[str]
) -> None:
    if limit == 10:
        pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    made = recipe_pool(tmp_path, limit)
    where = "neighbor_group_size > 1 AND NOT neighbor_group_duplicate"
    arm = resolve_filter("one of each", ArmConfig.model_validate({"where": where, "choose": "all"}))
    log = Log()
    counts = measure(
        made, [(arm, (0,))], Servers(log, tmp_path / "logs"), log, task=Task(only=["neighbors"])
    )
    frame = made.frame().sort("index")
    assert counts["neighbors"]["cells"] == 60 and frame["status:neighbors"].unique().to_list() == [
        "ok"
    ]
    kept = frame.filter((pl.col("neighbor_group_size") > 1) & ~pl.col("neighbor_group_duplicate"))
    assert {0, *range(1, 46, 5)} <= set(kept["index"].to_list()), (
        "each repeated row and the first of the copies"
    )
    assert (
        frame["neighbor_group"][59] == frame["id"][0] and frame["min_neighbor_distance"][59] == 0.0
    )
    assert ("by an index with" in capsys.readouterr().err) == (limit == 10)
    assert len(list((tmp_path / "vectors").rglob("rows-*.parquet"))) == 1
