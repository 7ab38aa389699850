"""Orders of `choose` in small blocks, and what a control is matched by, against plain loops."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from synth.filters import orders
from synth.filters.orders import by_nearness, by_rank, farthest_first, hash_rank, matched, unlike
from tests.test_choose import plain_k_center, plain_unlike, unit


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows at once, so that every block has neighbours."""
    for name, value in {"BLOCK": 16, "STEP": 8, "CANDIDATES": 5}.items():
        monkeypatch.setattr(orders, name, value)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("threshold", [0.3, 0.8, 0.99])
def test_unlike_in_small_blocks_is_the_plain_choice(threshold: float) -> None:
    vectors = unit(400, 4)
    vectors[200:220] = vectors[:20]
    order = np.concatenate(list(unlike(lambda top, end: vectors[top:end], 400, threshold)))
    assert order.tolist() == plain_unlike(vectors, threshold)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("candidates", [1, 5, 11])
def test_farthest_first_in_small_blocks_is_the_plain_choice(candidates: int) -> None:
    vectors = unit(100, 5)
    vectors[50:60] = vectors[:10]
    order = np.concatenate(list(farthest_first(vectors, candidates)))
    assert order.tolist() == plain_k_center(vectors)


def plain_matched(values: NDArray[np.float64], like: NDArray[np.float64], bins: int) -> list[int]:
    """Row by row from the bin that lags most behind its share, until one that does has no row
    left."""
    edges = np.unique(np.quantile(like, np.linspace(0, 1, bins + 1)))

    def bin_of(value: float) -> int | None:
        if not edges[0] <= value <= edges[-1]:
            return None
        return max(0, min(sum(value >= edge for edge in edges) - 1, len(edges) - 2))

    shares = [sum(bin_of(x) == at for x in like) for at in range(max(len(edges) - 1, 1))]
    rows = [[n for n, x in enumerate(values) if bin_of(x) == at] for at in range(len(shares))]
    taken, order = [0] * len(shares), list[int]()
    while True:
        lag = {at: (taken[at] + 0.5) / share for at, share in enumerate(shares) if share}
        last = [at for at in lag if lag[at] == min(lag.values())]
        if any(taken[at] == len(rows[at]) for at in last):
            return order
        at = last[0]
        order.append(rows[at][taken[at]])
        taken[at] += 1


@pytest.mark.parametrize("trial", range(30))
def test_a_matched_order_takes_from_the_bin_that_lags_until_it_is_used_up(trial: int) -> None:
    rng = np.random.default_rng(trial)
    like = rng.integers(0, 12, int(rng.integers(1, 25))).astype(float)
    values = rng.integers(-3, 16, 80).astype(float)
    values[rng.integers(0, 80, 5)] = np.nan
    bins = int(rng.integers(1, 8))
    assert matched(values, like, bins).tolist() == plain_matched(values, like, bins)


def test_a_control_is_matched_by_twenty_bins_of_value() -> None:
    rng = np.random.default_rng(1)
    like, values = rng.normal(size=500), rng.normal(size=900)
    assert matched(values, like).tolist() == plain_matched(values, like, 20)
    assert matched(values, np.empty(0)).tolist() == []


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_the_middle_part_is_what_is_nearest_to_the_middle_rank(count: int) -> None:
    rng = np.random.default_rng(count)
    numbers = [*rng.permutation(count).astype(float).tolist(), None]
    values, ids = pl.Series(numbers), pl.Series([f"r{n}" for n in range(count + 1)])
    middle = (count - 1) / 2
    known = sorted(range(count), key=lambda n: (abs(values[n] - middle), -values[n]))
    assert by_nearness(values, ids).tolist() == [*known, count]


def test_of_many_rows_only_the_first_are_ranked_and_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(3)
    values = pl.Series(rng.integers(0, 6, 60).astype(float))
    ids = pl.Series([f"r{n}" for n in range(60)])
    ties = hash_rank(ids, "ties").to_list()
    expected = sorted(range(60), key=lambda n: (-values[n], ties[n]))
    hashed: list[int] = []
    plain = orders.hash_rank
    monkeypatch.setattr(
        orders, "hash_rank", lambda ids, seed: hashed.append(len(ids)) or plain(ids, seed)
    )
    for limit in (1, 7, 59, 60, 61):
        assert by_rank(values, ids, limit).tolist() == expected[:limit]
    assert hashed[0] == (values == 5).sum() < 60


def test_a_block_without_a_row_to_keep_behind_many_kept_ones_ends_nothing() -> None:
    vectors = unit(8192, 64)
    vectors = np.concatenate([vectors, np.repeat(vectors[:1], 3000, axis=0)])
    order = np.concatenate(list(unlike(lambda top, end: vectors[top:end], len(vectors), 0.9)))
    assert order.tolist() == list(range(8192))
