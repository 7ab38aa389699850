"""The schedule: what is measured next and for which rows, simulated without a model: cells appear
when they are asked for."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from core.errors import UserError
from synth.filters.arm import ArmConfig
from synth.filters.orders import by_hash
from synth.filters.rule import Rule, resolve
from synth.filters.schedule import Selection, select, wanted
from synth.filters.verdicts import held_out
from synth.measures import DIFFICULTY, MEASURES, QUALITY

N = 400


class World:
    """A pool whose true cells are known; `measure` reveals them and counts what was paid for."""

    def __init__(self, n: int = N, heldout: float = 0.0, failing: float = 0.0) -> None:
        dice = random.Random(0)
        self.ids = [f"{dice.getrandbits(64):016x}" for _ in range(n)]
        quality = pl.Series([dice.choice(QUALITY) for _ in self.ids], dtype=pl.Enum(QUALITY))
        difficulty = pl.Series(
            [dice.choice(DIFFICULTY) for _ in self.ids], dtype=pl.Enum(DIFFICULTY)
        )
        self.truth = pl.DataFrame(
            {
                "id": self.ids,
                "instruction": [f"question {i}" for i in range(n)],
                "input_quality": quality,
                "difficulty": difficulty,
                "min_neighbor_distance": [dice.choice([0.0, 0.3, 0.5]) for _ in self.ids],
                "response_length": [float(dice.randrange(10, 1000)) for _ in self.ids],
                "instruct_reward": [dice.gauss(-10, 3) for _ in self.ids],
                "heldout": held_out(pl.Series(self.ids), heldout),
            }
        )
        self.failing = {i for i in self.ids if dice.random() < failing}
        self.known: dict[str, set[str]] = {m: set() for m in MEASURES}
        self.paid: Counter[str] = Counter()

    def frame(self) -> pl.DataFrame:
        frame = self.truth.with_columns(pl.col("heldout").alias("reserved"))
        for measure, declared in MEASURES.items():
            if measure == "text":
                continue
            seen = pl.col("id").is_in(list(self.known[measure]))
            failed = pl.col("id").is_in(list(self.failing)) & (measure in ("quality", "response"))
            status = pl.when(seen).then(
                pl.when(failed).then(pl.lit("failed")).otherwise(pl.lit("ok"))
            )
            frame = frame.with_columns(status.alias(f"status:{measure}"))
            usable = pl.col(f"status:{measure}") == "ok"
            present = [c for c in declared.columns if c in frame.columns and c != "instruction"]
            frame = frame.with_columns([pl.when(usable).then(pl.col(c)).alias(c) for c in present])
        return frame

    def measure(self, rules: list[tuple[Rule, tuple[int, ...]]]) -> list[str]:
        order = []
        while wants := wanted(self.frame(), rules):
            name, ids = next(iter(wants.items()))
            ids = self.ids if name == "neighbors" else ids
            assert not self.known[name] & set(ids) or name == "neighbors", "a cell was bought twice"
            self.known[name] |= set(ids)
            self.paid[name] += len(ids)
            order.append(name)
        return order


def rule(**arm: object) -> Rule:
    return resolve("arm", ArmConfig.model_validate(arm))


GOOD = "input_quality >= 'good' AND min_neighbor_distance > 0"


def test_longest_answers_exactly_the_rows_that_no_instruction_predicate_refused() -> None:
    world = World()
    world.measure([(rule(where=GOOD, choose="longest", budget={"rows": 20}), (0,))])
    bound = world.truth.filter(
        (pl.col("input_quality") >= "good") & (pl.col("min_neighbor_distance") > 0)
    ).height
    assert world.paid["response"] == bound


def test_hash_order_answers_only_the_rows_that_fill_its_budget() -> None:
    world = World()
    world.measure([(rule(choose="hash_order", budget={"rows": 50}), (0,))])
    assert world.paid == Counter(response=50)


def test_hash_order_with_where_tags_rows_in_order_until_the_budget_is_full() -> None:
    world = World()
    chosen = rule(where="input_quality >= 'good'", choose="hash_order", budget={"rows": 50})
    world.measure([(chosen, (0,))])
    assert world.paid["response"] == 50
    picked = select(world.frame(), chosen, 0)
    assert world.paid["quality"] < N, "not every row needs its tag"
    assert len(picked.ids) == 50


def test_the_cheapest_undecided_column_comes_first() -> None:
    world = World()
    assert world.measure([(rule(where=GOOD, choose="longest", budget={"rows": 20}), (0,))]) == [
        "neighbors",
        "quality",
        "response",
    ]


def test_a_row_refused_by_a_cheap_column_never_pays_for_a_dear_one() -> None:
    world = World()
    world.measure([(rule(where=GOOD, choose="longest", budget={"rows": 20}), (0,))])
    assert world.paid["quality"] == world.truth.filter(pl.col("min_neighbor_distance") > 0).height


def test_a_tag_that_no_arm_names_is_never_measured() -> None:
    world = World()
    world.measure([(rule(where=GOOD, choose="longest", budget={"rows": 20}), (0,))])
    assert world.paid["difficulty"] == world.paid["reward"] == 0


def test_top_of_an_instruction_column_answers_only_the_chosen_rows() -> None:
    world = World()
    world.measure(
        [
            (
                rule(
                    where="min_neighbor_distance > 0", choose="top(difficulty)", budget={"rows": 30}
                ),
                (0,),
            )
        ]
    )
    assert world.paid["response"] == 30


def test_a_reward_wants_the_response_first() -> None:
    world = World()
    order = world.measure(
        [(rule(where="instruct_reward > -12", choose="hash_order", budget={"rows": 10}), (0,))]
    )
    assert order[0] == "response" and order[1] == "reward"


def test_a_second_arm_pays_only_for_what_the_first_did_not() -> None:
    world = World()
    first = rule(where=GOOD, choose="longest", budget={"rows": 20})
    world.measure([(first, (0,))])
    before = dict(world.paid)
    stricter = rule(
        where="input_quality >= 'excellent' AND min_neighbor_distance > 0",
        choose="longest",
        budget={"rows": 10},
    )
    world.measure([(first, (0,)), (stricter, (0,))])
    assert dict(world.paid) == before


def test_each_seed_draws_its_own_random_sample_and_unites_the_answers() -> None:
    world = World()
    plain = rule(choose="hash_order", budget={"rows": 50})
    world.measure([(plain, (0, 1, 2))])
    frame = world.frame()
    samples = [set(select(frame, plain, seed).ids) for seed in (0, 1, 2)]
    assert samples[0] != samples[1]
    assert world.paid["response"] == len(samples[0] | samples[1] | samples[2])


def test_held_out_rows_are_answered_and_never_chosen() -> None:
    world = World(heldout=0.2)
    everything = rule(choose="all")
    world.measure([(everything, (0,))])
    held = set(world.truth.filter("heldout")["id"])
    assert held and held <= world.known["response"]
    assert not held & set(select(world.frame(), everything, 0).ids)


def test_held_out_rows_stay_the_same_when_the_pool_grows() -> None:
    small, large = World(100, heldout=0.2), World(400, heldout=0.2)
    assert set(small.truth.filter("heldout")["id"]) == set(
        large.truth.head(100).filter("heldout")["id"]
    )


def test_a_failed_tag_refuses_its_row_and_is_counted() -> None:
    world = World(failing=0.1)
    chosen = rule(where="input_quality >= 'very poor'", choose="all")
    world.measure([(chosen, (0,))])
    picked: Selection = select(world.frame(), chosen, 0)
    assert not set(picked.ids) & world.failing
    assert picked.funnel["failed"] == {"tag failed": len(world.failing)}


def test_a_failed_response_is_replaced_by_the_next_row() -> None:
    world = World(failing=0.1)
    plain = rule(choose="hash_order", budget={"rows": 100})
    world.measure([(plain, (0,))])
    assert len(select(world.frame(), plain, 0).ids) == 100


def test_every_row_is_chosen_or_has_a_reason() -> None:
    world = World(heldout=0.1, failing=0.05)
    chosen = rule(where=GOOD, choose="longest", budget={"rows": 20})
    world.measure([(chosen, (0,))])
    picked = select(world.frame(), chosen, 0)
    assert sorted([*picked.ids, *picked.dropped["id"]]) == sorted(world.ids)
    assert picked.dropped["reason"].null_count() == 0


def test_longest_takes_the_longest_of_the_allowed() -> None:
    world = World()
    chosen = rule(where=GOOD, choose="longest", budget={"rows": 20})
    world.measure([(chosen, (0,))])
    allowed = world.truth.filter(
        (pl.col("input_quality") >= "good") & (pl.col("min_neighbor_distance") > 0)
    )
    best = allowed.sort("response_length", descending=True).head(20)["response_length"].to_list()
    picked = world.truth.filter(pl.col("id").is_in(select(world.frame(), chosen, 0).ids))
    assert sorted(picked["response_length"].to_list(), reverse=True) == best


def test_difficulty_mix_is_half_easy_half_hard() -> None:
    world = World()
    chosen = rule(choose="difficulty_mix", budget={"rows": 60})
    world.measure([(chosen, (0,))])
    picked = world.truth.filter(pl.col("id").is_in(select(world.frame(), chosen, 0).ids))
    assert picked.filter(pl.col("difficulty") <= "easy").height == 30


def test_a_token_budget_is_filled_and_not_exceeded() -> None:
    world = World()
    plain = rule(choose="hash_order", budget={"tokens": 5000})

    def tokens(frame: pl.DataFrame) -> pl.Series:
        return frame.select(pl.when(pl.col("status:response") == "ok").then(pl.lit(100)))["literal"]

    while wants := wanted(world.frame(), [(plain, (0,))], tokens):
        world.known["response"] |= set(wants["response"])
    picked = select(world.frame(), plain, 0, tokens)
    assert len(picked.ids) == 50 and picked.funnel["chosen_tokens"] == 5000


def test_a_budget_that_cannot_be_filled_stops_before_training() -> None:
    world = World()
    chosen = rule(where="input_quality >= 'excellent'", choose="longest", budget={"rows": 399})
    world.measure([(chosen, (0,))])
    with pytest.raises(
        UserError, match=r"arms\.arm: the budget asks for 399 rows but only \d+ rows of 400"
    ):
        select(world.frame(), chosen, 0)


def test_allow_short_trains_on_what_there_is() -> None:
    world = World()
    chosen = rule(
        where="input_quality >= 'excellent'",
        choose="longest",
        budget={"rows": 399},
        allow_short=True,
    )
    world.measure([(chosen, (0,))])
    assert 0 < len(select(world.frame(), chosen, 0).ids) < 399


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        ({"where": GOOD}, "no budget"),
        ({"strategy": "magpie-prp"}, "did you mean 'magpie-pro'?"),
        ({"choose": "shortest", "budget": {"rows": 1}}, "unknown choice 'shortest'"),
        ({"choose": "top(instruction)", "budget": {"rows": 1}}, "has no order"),
        ({"choose": "top(reward)", "budget": {"rows": 1}}, "unknown column `reward`"),
        ({"strategy": "magpie-pro", "params": {"tau": -3}}, "did you mean 'tau1'?"),
    ],
)
def test_a_bad_arm_is_one_sentence(arm: dict[str, object], says: str) -> None:
    with pytest.raises(UserError) as error:
        rule(**arm)
    assert says in str(error.value) and str(error.value).startswith("arms.arm")


def test_every_named_strategy_resolves(tmp_path: Path) -> None:
    from synth.filters.strategies import STRATEGIES

    listed = tmp_path / "ids.txt"
    listed.write_text("a")
    for name, strategy in STRATEGIES.items():
        budget = {} if name == "all" else {"budget": {"rows": 5}}
        needed = {key: str(listed) for key, default in strategy.params.items() if default == ""}
        assert rule(strategy=name, params=needed, **budget).name == "arm"


def test_a_choice_that_ranks_by_what_the_text_shows_measures_only_its_label() -> None:
    world = World()
    world.truth = world.truth.with_columns(
        pl.Series("task_category", ["Math", "Others"] * (N // 2)),
        pl.Series("instruction_length", range(N)),
    )
    world.measure(
        [(rule(choose="balanced(task_category, instruction_length)", budget={"rows": 20}), (0,))]
    )
    assert world.paid["category"] == N and world.paid["response"] == 20


def test_a_budget_in_tokens_answers_some_rows_before_it_is_translated_into_rows() -> None:
    world = World(2000)
    chosen = rule(choose="hash_order", budget={"tokens": 400_000})

    def count(frame: pl.DataFrame) -> pl.Series:
        return frame.select(pl.when(pl.col("status:response") == "ok").then(1500)).to_series()

    while wants := wanted(world.frame(), [(chosen, (0,))], count):
        name, ids = next(iter(wants.items()))
        world.known[name] |= set(ids)
    assert len(world.known["response"]) == 400_000 // 1500, (
        "a constant guess of 256 would have answered 1,562 rows"
    )
    assert len(select(world.frame(), chosen, 0, count).ids) == 266


def test_a_budget_in_tokens_that_no_row_fits_into_is_an_error() -> None:
    world = World()
    chosen = rule(choose="hash_order", budget={"tokens": 5})
    world.known["response"] = set(world.ids)
    with pytest.raises(UserError, match="raise the budget"):
        select(world.frame(), chosen, 0, lambda frame: pl.Series([9] * len(frame)))


def test_the_funnel_counts_each_row_once_by_the_first_predicate_that_stopped_it() -> None:
    world = World(heldout=0.1, failing=0.1)
    where = "input_quality >= 'good' AND min_neighbor_distance > 0 AND response_length > 200"
    chosen = rule(where=where, choose="longest", budget={"rows": 30})
    world.measure([(chosen, (0,))])
    frame = world.frame()
    twins = set(world.truth.filter(~pl.col("heldout"))["id"].head(5))  # equal a held-out row
    frame = frame.with_columns(reserved=pl.col("heldout") | pl.col("id").is_in(list(twins)))
    picked = select(frame, chosen, 0)
    terms = ["input_quality >= 'good'", "min_neighbor_distance > 0", "response_length > 200"]
    expected = {}
    for row in frame.iter_rows(named=True):
        quality, distance = row["input_quality"], row["min_neighbor_distance"]
        said = [
            None if quality is None else QUALITY.index(quality) >= QUALITY.index("good"),
            None if distance is None else distance > 0,
            None if row["response_length"] is None else row["response_length"] > 200,
        ]
        first = next((term for term, ok in zip(terms, said, strict=True) if ok is False), None)
        if row["reserved"]:
            first = "held out" if row["heldout"] else "equals a held-out instruction"
        elif row["status:response"] == "failed":
            first = "response failed"
        elif first is None and None in said:
            first = "tag failed"
        expected[row["id"]] = first or "not chosen"
    dropped = dict(picked.dropped.iter_rows())
    assert dropped == {i: why for i, why in expected.items() if i not in picked.ids}
    counts = Counter(expected.values())
    left = N - counts["held out"] - counts["equals a held-out instruction"]
    steps = []
    for term in terms:
        left -= counts[term]
        steps.append({"predicate": term, "stopped": counts[term], "left": left})
    funnel = picked.funnel
    assert funnel["steps"] == steps and funnel["pool"] == N
    assert funnel["heldout"] == counts["held out"] > 0 and funnel["reserved_duplicates"] == 5
    assert funnel["failed"] == {
        why: counts[why] for why in ("response failed", "tag failed") if counts[why]
    }
    assert funnel["allowed"] == counts["not chosen"] and funnel["chosen"] == 30
    assert funnel["chosen_tokens"] is None and funnel["budget"] == {"rows": 30}
    assert world.ids.index(picked.ids[3]) == picked.rows[3]


def test_a_budget_in_tokens_takes_the_rows_of_its_order_that_fit_and_no_other() -> None:
    world = World()
    world.known["response"] = set(world.ids)
    sizes = pl.Series([int(length) for length in world.truth["response_length"]])
    order = [world.ids[at] for at in by_hash(pl.Series(world.ids), 0)]
    size = dict(zip(world.ids, sizes, strict=True))
    for taken in (1, 7, 40):
        exact = sum(size[i] for i in order[:taken])
        for budget, count in ((exact, taken), (exact - 1, taken - 1), (exact + 9, taken)):
            if count:
                chosen = rule(choose="hash_order", budget={"tokens": budget}, allow_short=True)
                picked = select(world.frame(), chosen, 0, lambda frame: sizes)
                assert picked.ids == order[:count]
                assert picked.funnel["chosen_tokens"] == sum(size[i] for i in order[:count])


def test_a_file_of_scores_gives_the_chosen_rows_their_scores(tmp_path: Path) -> None:
    world = World()
    path = tmp_path / "scores.csv"
    path.write_text("".join(["id,score\n", *(f"{i},{k}\n" for k, i in enumerate(world.ids[:9]))]))
    chosen = rule(choose=f"ids({path})", budget={"rows": 3})
    world.measure([(chosen, (0,))])
    picked = select(world.frame(), chosen, 0)
    assert picked.ids == world.ids[8:5:-1] and picked.scores is not None
    assert picked.scores.rows() == [(i, 8 - k) for k, i in enumerate(picked.ids)]
    plain = rule(choose="hash_order", budget={"rows": 3})
    world.measure([(plain, (0,))])
    assert select(world.frame(), plain, 0).scores is None


def test_choosing_before_all_is_measured_is_a_mistake_of_the_caller() -> None:
    chosen = rule(where=GOOD, choose="longest", budget={"rows": 3})
    with pytest.raises(ValueError, match="before measuring"):
        select(World().frame(), chosen, 0)


def test_a_budget_in_tokens_without_the_students_tokenizer_is_one_sentence() -> None:
    chosen = rule(choose="hash_order", budget={"tokens": 30})
    with pytest.raises(UserError, match="give the budget in rows"):
        wanted(World().frame(), [(chosen, (0,))])


def test_before_the_first_answer_a_row_counts_256_tokens_and_then_the_mean_of_those_answered() -> (
    None
):
    world = World()
    chosen = rule(choose="hash_order", budget={"tokens": 256 * 10})

    def asked(counted: list[int | None]) -> int:
        tokens = pl.Series([*counted, *[None] * (N - len(counted))], dtype=pl.Int64)
        return len(wanted(world.frame(), [(chosen, (0,))], lambda frame: tokens)["response"])

    assert asked([]) == 10
    assert asked([500, 524]) == 256 * 10 // 512
    large = rule(choose="hash_order", budget={"tokens": 10**9}, allow_short=True)
    wants = wanted(
        world.frame(), [(large, (0,))], lambda frame: pl.Series([None] * N, dtype=pl.Int64)
    )
    assert len(wants["response"]) == 200  # answered before a budget is translated into rows
