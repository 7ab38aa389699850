"""Set functions: orders, ties, greedy choices against plain loops, and what each asks the schedule
for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from core.errors import UserError
from synth.filters.choosing.candidates import Vectors
from synth.filters.orders import by_hash, by_rank, farthest_first, hash_rank, round_robin, unlike
from synth.filters.schedule import select, wanted
from synth.measures import CATEGORY
from tests import small_recipe
from tests.scripted_server import ScriptedServer
from tests.test_schedule import World, rule


def unit(n: int, d: int, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


# -- hashes and ranks ------------------------------------------------------------------------------


def test_hash_of_an_id_is_the_same_for_ever() -> None:
    golden = {
        "": 10536606528379439361,
        "a": 13225821061156283261,
        "12345678": 14167430728578386997,
        "123456789": 8541628479667528656,
        "ü€": 7946321721720795795,
        "0f3c9a1b2c3d4e5f6071": 2468640908717243472,
        "5b7f3c1e-8a55-5d1f-9a3c-0123456789ab": 6403347068571269111,
    }
    assert hash_rank(golden, 0).to_list() == list(golden.values())
    assert hash_rank(pl.Series(["5b7f3c1e-8a55-5d1f-9a3c-0123456789ab"]), "heldout").to_list() == [
        11242309189412896262
    ]


def plain_hash(text: str, seed: str) -> int:
    """splitmix64 over 8-byte words, in Python's integers."""
    whole = 2**64 - 1

    def mixed(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) & whole
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & whole
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & whole
        return x ^ (x >> 31)

    state = 0
    for each in (seed, text):
        data = each.encode()
        for at in range(0, len(data), 8):
            state = mixed(state ^ int.from_bytes(data[at : at + 8], "little"))
        state = mixed(state ^ len(data))
    return state


def test_hash_does_not_depend_on_the_other_ids() -> None:
    ids = [f"row-{'x' * (n % 23)}{n}" for n in range(500)]
    assert (
        hash_rank(ids, 3).to_list()
        == [hash_rank([i], 3)[0] for i in ids]
        == [plain_hash(i, "3") for i in ids]
    )


def test_hashes_are_spread_evenly() -> None:
    hashes = hash_rank([f"{n:020x}" for n in range(20_000)], 1).to_numpy()
    for bits in (hashes >> np.uint64(60), hashes & np.uint64(15)):
        shares = np.bincount(bits.astype(np.int64), minlength=16) / len(hashes)
        assert shares.min() > 0.055 and shares.max() < 0.07


def test_rank_takes_high_values_first_nulls_last_and_ties_by_hash() -> None:
    ids, values = pl.Series(list("abcdef")), pl.Series([2.0, None, 5.0, 2.0, None, 5.0])
    ties = dict(zip(ids, hash_rank(ids, "ties"), strict=True))
    expected = sorted(range(6), key=lambda i: (values[i] is None, -(values[i] or 0), ties[ids[i]]))
    assert by_rank(values, ids).tolist() == expected
    for limit in range(8):
        assert by_rank(values, ids, limit).tolist() == expected[:limit]


def test_round_robin_gives_every_prefix_its_equal_shares_and_passes_on_what_a_group_lacks() -> None:
    groups = np.array([2, 2, 0, 2, -1, 1, 2, 1, 2])
    order = round_robin(groups)
    assert groups[order].tolist() == [0, 1, 2, 1, 2, 2, 2, 2, -1]
    assert order[groups[order] == 2].tolist() == [0, 1, 3, 6, 8]
    assert groups[round_robin(groups, even=3)].tolist() == [0, 1, 2]
    assert round_robin(np.array([1, 1, 1]), even=2).tolist() == [], (
        "a half without rows leaves nothing to mix"
    )


# -- greedy choices --------------------------------------------------------------------------------


def plain_k_center(vectors: NDArray[np.float32]) -> list[int]:
    near, taken = np.full(len(vectors), np.inf), [0]
    while len(taken) < len(vectors):
        distance = 2 - 2 * (vectors.astype(np.float64) @ vectors[taken[-1]].astype(np.float64))
        near = np.minimum(near, np.where(distance < 1e-6, 0, distance))
        near[taken] = -1
        taken.append(int(near.argmax()))
    return taken


@pytest.mark.parametrize("candidates", [1, 7, 64, 10_000])
def test_farthest_first_is_the_plain_greedy_choice(candidates: int) -> None:
    vectors = unit(300, 12)
    vectors[100:120] = vectors[:20]  # exact duplicates come last, in order
    order = np.concatenate(list(farthest_first(vectors, candidates)))
    assert order.tolist() == plain_k_center(vectors)
    assert order[-20:].tolist() == list(range(100, 120))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_farthest_first_of_few_rows_takes_them_all(count: int) -> None:
    assert sum(map(len, farthest_first(unit(5, 4)[:count]))) == count


def plain_unlike(vectors: NDArray[np.float32], threshold: float) -> list[int]:
    kept: list[int] = []
    for row in range(len(vectors)):
        if not kept or (vectors[kept] @ vectors[row]).max() < threshold:
            kept.append(row)
    return kept


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_unlike_keeps_what_is_not_near_to_anything_kept(threshold: float) -> None:
    vectors = unit(3000, 6)
    asked: list[int] = []

    def slices(top: int, end: int) -> NDArray[np.float32]:
        asked.append(end)
        return vectors[top:end]

    assert np.concatenate(list(unlike(slices, len(vectors), threshold))).tolist() == plain_unlike(
        vectors, threshold
    )
    first = next(iter(unlike(slices, len(vectors), threshold)))
    assert len(first) and asked[-1] == 1024, "no more is embedded than is taken from"


# -- in a pool -------------------------------------------------------------------------------------


class Embedded(World):
    """A pool with categories, pair scores, and a vector for every instruction."""

    def __init__(self, failing: float = 0.0) -> None:
        super().__init__(failing=failing)
        dice = np.random.default_rng(1)
        ranks = self.truth["difficulty"].to_physical() + 1
        self.truth = self.truth.with_columns(
            pl.Series(
                "task_category",
                np.array(CATEGORY)[dice.choice(12, len(self.ids), p=[0.6, 0.3, 0.1, *[0] * 9])],
                dtype=pl.Enum(CATEGORY),
            ),
            ranks.cast(pl.Float64).alias("difficulty_rank"),
            pl.Series("pair_score", dice.uniform(1, 5, len(self.ids))),
            pl.lit(None, pl.Float64).alias("pair_score_rank"),
        )
        self.all = dict(zip(self.ids, unit(len(self.ids), 8), strict=True))
        self.embedded = 0
        self.vectors = Vectors(self._embed)

    def _embed(self, ids: pl.Series) -> NDArray[np.float32]:
        self.embedded += 1
        return np.array([self.all[i] for i in ids])

    def bought(
        self, chosen: Any, tokens: Callable[[pl.DataFrame], pl.Series] | None = None
    ) -> list[str]:
        """Measure what is wanted, then choose: ids."""
        while wants := wanted(self.frame(), [(chosen, (0,))], tokens, vectors=self.vectors):
            name, ids = next(iter(wants.items()))
            ids = self.ids if name == "neighbors" else ids
            self.known[name] |= set(ids)
            self.paid[name] += len(ids)
        return select(self.frame(), chosen, 0, tokens, self.vectors).ids


def test_diverse_answers_only_the_chosen_rows() -> None:
    world = Embedded()
    ids = world.bought(rule(where="input_quality >= 'good'", choose="diverse", budget={"rows": 40}))
    kept = world.truth.filter(pl.col("input_quality") >= "good")["id"]
    order = [kept[int(i)] for i in by_hash(kept, "ties")]
    assert ids == [order[i] for i in plain_k_center(np.array([world.all[i] for i in order]))[:40]]
    assert world.paid["response"] == 40 and world.embedded == 1, (
        "the order is made once, though it is asked for before and after the answers"
    )


def test_diverse_does_not_choose_otherwise_because_an_answer_failed() -> None:
    sound, broken = Embedded(), Embedded(failing=0.1)
    chosen = rule(choose="diverse", budget={"rows": 60}, where="min_neighbor_distance > 0")
    # what comes in place of a row without an answer comes from further back in the same order
    expected = [
        i
        for i in sound.bought(
            rule(choose="diverse", budget={"rows": 90}, where="min_neighbor_distance > 0")
        )
        if i not in broken.failing
    ]
    assert broken.bought(chosen) == expected[:60]
    assert broken.paid["response"] <= 60 + len(broken.failing)


def test_a_greedy_choice_waits_until_every_row_is_decided() -> None:
    world = Embedded()
    chosen = rule(where="instruct_reward > -10", choose="diverse", budget={"rows": 20})
    ids = world.bought(chosen)
    assert world.paid["reward"] == len(world.ids) and len(ids) == 20
    assert world.truth.filter(pl.col("id").is_in(ids))["instruct_reward"].min() > -10  # type: ignore[operator]


def test_balanced_gives_every_category_the_same_and_answers_only_the_chosen_rows() -> None:
    world = Embedded()
    ids = world.bought(rule(strategy="category-balanced", budget={"rows": 60}))
    counts = (
        world.truth.filter(pl.col("id").is_in(ids))["task_category"]
        .value_counts()["count"]
        .to_list()
    )
    assert counts == [20, 20, 20] and world.paid["response"] == 60


def test_balanced_by_length_takes_the_longest_of_each() -> None:
    world = Embedded()
    ids = world.bought(rule(choose="balanced(task_category, response_length)", budget={"rows": 30}))
    for _, rows in world.truth.group_by("task_category"):
        mine = rows.filter(pl.col("id").is_in(ids))["response_length"]
        rest = rows.filter(~pl.col("id").is_in(ids))["response_length"].max()
        assert len(mine) == 10 and mine.min() >= rest  # type: ignore[operator]


def test_balanced_passes_on_the_quota_that_a_small_category_cannot_fill() -> None:
    world = Embedded()
    ids = world.bought(rule(strategy="category-balanced", budget={"rows": 200}))
    counts = dict(
        world.truth.filter(pl.col("id").is_in(ids))["task_category"].value_counts().iter_rows()
    )
    small = world.truth.filter(pl.col("task_category") == "Planning").height
    assert (
        small < 200 // 3
        and counts["Planning"] == small
        and abs(counts["Reasoning"] - counts["Information seeking"]) <= 1
    )


def test_deita_goes_by_difficulty_times_pair_score_and_passes_over_what_is_alike() -> None:
    world = Embedded()
    ids = world.bought(rule(strategy="deita", params={"cosine": 0.7}, budget={"rows": 30}))
    score = world.truth["difficulty_rank"] * world.truth["pair_score"]
    order = [world.ids[int(i)] for i in by_rank(score, world.truth["id"])]
    kept = [order[i] for i in plain_unlike(np.array([world.all[i] for i in order]), 0.7)]
    assert ids == kept[:30]
    assert len(kept) < len(world.ids)


def test_deita_takes_the_label_where_there_is_no_expected_rank() -> None:
    world = Embedded()
    whole = world.bought(rule(strategy="deita", budget={"rows": 30}))
    other = Embedded()
    other.truth = other.truth.with_columns(pl.lit(None, pl.Float64).alias("difficulty_rank"))
    assert other.bought(rule(strategy="deita", budget={"rows": 30})) == whole


@pytest.mark.parametrize(
    "choose",
    [
        "longest",
        "top(instruct_reward)",
        "hash_order",
        "difficulty_mix(medium)",
        "balanced(task_category)",
        "diverse",
        "deita",
    ],
)
def test_a_budget_in_tokens_is_filled_and_never_passed(choose: str) -> None:
    world = Embedded()
    cost = dict(
        zip(
            world.ids,
            np.random.default_rng(2).integers(5, 50, len(world.ids)).tolist(),
            strict=True,
        )
    )

    def tokens(frame: pl.DataFrame) -> pl.Series:
        answered = (frame["status:response"] == "ok").fill_null(False)
        return pl.Series(
            [cost[i] if ok else None for i, ok in zip(frame["id"], answered, strict=True)],
            dtype=pl.Int64,
        )

    ids = world.bought(rule(choose=choose, budget={"tokens": 1000}), tokens)
    spent = sum(cost[i] for i in ids)
    assert 950 < spent <= 1000 and len(ids) == len(set(ids))
    assert set(ids) <= world.known["response"]


def test_a_mix_of_difficulties_parts_where_it_is_told_to() -> None:
    world = Embedded()
    ids = world.bought(
        rule(strategy="difficulty-mix", params={"boundary": "medium"}, budget={"rows": 40})
    )
    picked = world.truth.filter(pl.col("id").is_in(ids))["difficulty"]
    assert (picked <= "medium").sum() == 20


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        ({"choose": "balanced"}, "should read balanced(COLUMN, BY)"),
        (
            {"choose": "balanced(task_categry)"},
            "unknown column `task_categry`; did you mean 'task_category'?",
        ),
        ({"choose": "balanced(instruct_reward)"}, "`instruct_reward` has no groups to balance"),
        ({"choose": "balanced(task_category, language)"}, "`language` has no order"),
        ({"choose": "diverse(3)"}, "should read diverse"),
        ({"choose": "deita(2)"}, "'2' is no cosine between 0 and 1"),
        (
            {"choose": "difficulty_mix(very hard)"},
            "'very hard' does not part the difficulties in two",
        ),
        ({"choose": "divers"}, "did you mean 'diverse'?"),
        ({"strategy": "magpie-pro", "params": {"tau1": "low"}}, "tau1 is a number; 'low' is not"),
        (
            {"strategy": "magpie-air", "params": {"quality": "god"}},
            "'god' is not a label of `input_quality`; did you mean 'good'?",
        ),
    ],
)
def test_a_choice_that_cannot_be_is_one_sentence(arm: dict[str, object], says: str) -> None:
    with pytest.raises(UserError) as error:
        rule(**arm, budget={"rows": 5})
    assert says in str(error.value)


def test_an_arm_of_a_recipe_chooses_by_likeness_and_pays_for_no_more_answers(
    tmp_path: Path,
) -> None:
    from recipes import schema
    from recipes.stages import graph

    arms = {"diverse": {"strategy": "diverse", "budget": {"rows": 6}}}
    with ScriptedServer(small_recipe.answer) as server:
        llama = small_recipe.model(tmp_path / "llama")
        path = small_recipe.recipe(
            tmp_path,
            llama,
            server.url,
            arms=arms,
            random_arm=False,
            synth__rows=40,
            synth__heldout=0.0,
        )
        graph.run(schema.load(path, []), "select")
        chosen = pl.read_parquet(
            tmp_path / "store" / "recipes" / "small" / "select" / "diverse" / "selection.parquet"
        )
        assert len(chosen) == 6 and len(server.requests) == 40 + 6
        assert {
            s.state for s in graph.plan(schema.load(path, [])).steps if s.name == "select/diverse"
        } == {"reuse"}
