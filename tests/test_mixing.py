"""How many rows each part of a mixture gives, and which."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import pairwise
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from synth.filters.arm import (
    ArmConfig,
    Budget,
    check_alignments,
    check_mixtures,
    check_shuffled,
    mixing_order,
)
from synth.filters.mixing import interleaved, quotas, take


def shares(*written: str) -> dict[str, Fraction]:
    return {f"part{place}": Fraction(share) for place, share in enumerate(written)}


@pytest.mark.parametrize(
    ("written", "total", "given"),
    [
        (("0.7", "0.3"), 10, [7, 3]),
        (("0.7", "0.3"), 1, [1, 0]),
        (("0.7", "0.3"), 1001, [701, 300]),
        (("0.5", "0.5"), 3, [2, 1]),  # equal remainders: the first written
        (("0.333", "0.333", "0.334"), 10, [3, 3, 4]),
        (("0.41", "0.41", "0.18"), 10, [4, 4, 2]),
        (("0.45", "0.45", "0.1"), 11, [5, 5, 1]),
        (("0.1", "0.2", "0.7"), 1_000_003, [100_000, 200_001, 700_002]),
    ],
)
def test_rows_are_exact_by_largest_remainder(
    written: tuple[str, ...], total: int, given: list[int]
) -> None:
    assert list(quotas(shares(*written), total).values()) == given


def test_quotas_always_sum_to_the_budget_and_stay_within_one_of_the_share() -> None:
    dice = random.Random(0)
    for _ in range(300):
        weights = [dice.randint(1, 1000) for _ in range(dice.randint(2, 6))]
        exact = {f"{i}": Fraction(w, sum(weights)) for i, w in enumerate(weights)}
        total = dice.randint(1, 10_000)
        given = quotas(exact, total)
        assert sum(given.values()) == total
        assert all(abs(given[name] - exact[name] * total) < 1 for name in given)


def batches(*texts: str, size: int = 2, tokens: dict[str, int] | None = None) -> Any:
    frame = pl.DataFrame({"id": [str(i) for i in range(len(texts))], "text": list(texts)})
    if tokens is not None:
        frame = frame.with_columns(tokens=pl.Series([tokens[text] for text in texts]))
    return frame.iter_slices(size)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_rows_are_taken_in_order_and_no_text_twice(size: int) -> None:
    taken = {"b"}
    part = take(batches("a", "b", "a", "c", "d", "e", size=size), 3, "rows", taken)
    assert part.rows["text"].to_list() == ["a", "c", "d"]
    assert (part.amount, part.twice, part.short) == (3, 2, 0)
    assert taken == {"a", "b", "c", "d"}


def test_a_part_without_further_rows_says_how_many_it_lacks() -> None:
    part = take(batches("a", "a", "b"), 5, "rows", set())
    assert (part.amount, part.twice, part.short) == (2, 1, 3)
    assert take(iter(()), 4, "rows", set()).short == 4


def test_no_more_batches_are_asked_for_than_the_share_needs() -> None:
    def stream() -> Any:
        yield from batches("a", "b", size=2)
        raise AssertionError("asked for more")

    assert take(stream(), 2, "rows", set()).amount == 2
    assert take(stream(), 0, "rows", set()).amount == 0


@pytest.mark.parametrize("size", [1, 2, 100])
def test_tokens_come_within_one_row_of_the_share(size: int) -> None:
    lengths = {f"t{i}": length for i, length in enumerate([40, 30, 50, 10, 70, 20])}
    order = [*lengths]
    for quota in range(40, 221):
        part = take(batches(*order, size=size, tokens=lengths), quota, "tokens", set())
        places = [order.index(text) for text in part.rows["text"]]
        assert places == list(range(len(places))), "a prefix of the part's order"
        following = order[len(places)] if len(places) < len(order) else None
        assert part.amount <= quota
        if following:
            assert quota - part.amount < lengths[following] and part.short == 0


def test_tokens_that_run_out_are_short_by_more_than_a_row_only() -> None:
    lengths = {"a": 40, "b": 30}
    near = take(batches("a", "b", tokens=lengths), 100, "tokens", set())
    far = take(batches("a", "b", tokens=lengths), 120, "tokens", set())
    assert (near.amount, near.short) == (70, 0) and (far.amount, far.short) == (70, 50)


@pytest.mark.parametrize("counts", [[7, 3], [1, 1, 1], [70, 25, 5], [3, 0, 2]])
def test_every_prefix_of_a_mixture_holds_its_shares(counts: list[int]) -> None:
    order = interleaved(counts)
    assert len(order) == sum(counts) and len(set(order)) == len(order)
    for end in range(1, len(order) + 1):
        for part, count in enumerate(counts):
            held = sum(each == part for each, _ in order[:end])
            assert abs(held - end * count / len(order)) <= 1.5
    for part in range(len(counts)):
        places = [place for each, place in order if each == part]
        assert all(a < b for a, b in pairwise(places))


# -- what a recipe may say -------------------------------------------------------------------------


def arm(**fields: Any) -> ArmConfig:
    return ArmConfig.model_validate(fields)


def mixture(**parts: Any) -> ArmConfig:
    return arm(mix=parts, budget={"rows": 10})


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"mix": {"a": 0.7, "b": 0.2}, "budget": {"rows": 9}}, "sum to 1, and these to 0.9"),
        ({"mix": {"a": 1.2, "b": -0.2}, "budget": {"rows": 9}}, "above 0"),
        ({"mix": {"a": 0.5, "b": 0.5}}, "needs a budget"),
        ({"mix": {"a": 1.0}, "budget": {"rows": 9}}, "two parts or more"),
        (
            {"mix": {"a": 0.5, "b": 0.5}, "budget": {"rows": 9}, "where": "turns = 1"},
            "with its parts",
        ),
        ({"mix": {"a": 0.5, "b": {"share": 0.5}}, "budget": {"rows": 9}}, "by its name alone"),
        ({"mix": {"a": 0.5, "b": 0.5}, "data": "x.jsonl", "budget": {"rows": 9}}, "with its parts"),
        ({"recipe": "other.yaml"}, "named by two keys"),
        ({"arm": "good"}, "named by two keys"),
        ({"recipe": "o.yaml", "arm": "good", "where": "turns = 1"}, "filter them there"),
        ({"recipe": "o.yaml", "arm": "good", "data": "x.jsonl"}, "not both"),
        ({"split": "train_sft", "budget": {"rows": 9}}, "has no `data`"),
        ({"model": "m", "data": "x.jsonl"}, "takes nothing but"),
        ({"model": "m", "mix": {"a": 0.5, "b": 0.5}}, "takes nothing but"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_sentence(
    fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        arm(**fields)


def test_thirds_written_to_six_places_are_a_whole() -> None:
    assert len(mixture(a=0.333333, b=0.333333, c=0.333334).parts) == 3


@pytest.mark.parametrize(
    ("third", "whole"), [(0.333335, True), (0.333336, False), (0.333333, True), (0.333332, False)]
)
def test_shares_sum_to_one_within_a_millionth(third: float, whole: bool) -> None:
    if whole:
        assert len(mixture(a=0.333333, b=0.333333, c=third).parts) == 3
    else:
        with pytest.raises(ValueError, match="sum to 1"):
            mixture(a=0.333333, b=0.333333, c=third)


def test_a_budget_is_one_row_or_token_at_least_and_in_one_unit() -> None:
    for unit in ("rows", "tokens"):
        assert arm(choose="all", budget={unit: 1}).budget == Budget(**{unit: 1})
        with pytest.raises(ValueError, match="greater than or equal to 1"):
            arm(budget={unit: 0})
    for budget in ({}, {"rows": 1, "tokens": 1}):
        with pytest.raises(ValueError, match="either"):
            arm(budget=budget)


@pytest.mark.parametrize(
    ("share", "right"), [(1.0, True), (0.01, True), (0.0, False), (1.1, False)]
)
def test_a_control_moves_a_share_of_the_answers(share: float, right: bool) -> None:
    if right:
        assert arm(of="a", shuffled=share).shuffled == share
    else:
        with pytest.raises(ValueError, match="shuffled"):
            arm(of="a", shuffled=share)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"of": "a"}, "named by two keys"),
        ({"shuffled": 0.5}, "named by two keys"),
        *[
            ({"of": "a", "shuffled": 0.5, **more}, "takes `of` and `shuffled` alone")
            for more in ({"data": "x"}, {"budget": {"rows": 1}}, {"where": "turns = 1"},
                         {"licence": "mit"}, {"dpo": "b"})
        ],
        *[
            ({"dpo": "a", **more}, "takes nothing but `data`")
            for more in ({"budget": {"rows": 1}}, {"choose": "all"},
                         {"data": "x", "answers": "all"})
        ],
        ({"model": "m", "licence": "mit"}, "takes nothing but `model`"),
        ({"model": "m", "budget": {"rows": 1}}, "takes nothing but `model`"),
        ({"mix": {"a": 0.5, "b": 0.5}, "budget": {"rows": 1}, "licence": "mit"}, "with its parts"),
        ({"dpo": "a", "split": "train"}, "has no `data`"),
    ],
)  # fmt: skip
def test_arms_that_take_little_else_say_so(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        arm(**fields)


def test_arms_of_each_kind_may_have_what_belongs_to_them() -> None:
    assert arm(model="m", revision="v1").kind == "model"
    assert arm(dpo="a", data="pairs.jsonl", split="train", licence="mit").kind == "dpo"
    assert arm(data="x.jsonl", split="train", licence="mit", choose="all").kind == "data"
    assert mixture(a=0.5, b={"share": 0.5, "data": "x", "licence": "mit"}).kind == "mix"
    assert arm(recipe="o.yaml", arm="good").kind == "recipe" and arm(choose="all").kind == "pool"


TRAINED: dict[str, object] = {"train": {}, "dpo": {}, "preferences": None}


@pytest.mark.parametrize(
    ("aligned", "given", "says"),
    [
        ({"dpo": "a", "data": "x"}, {"dpo": None}, "the recipe has no block `dpo`"),
        (None, {}, "no arm goes on"),
        ({"dpo": "b", "data": "x"}, {}, "no other arm is called 'b'"),
        ({"dpo": "on", "data": "x"}, {}, "no other arm is called 'on'"),
        ({"dpo": "a", "data": "x"}, {"train": None}, "'a' is not trained here"),
        ({"dpo": "a"}, {}, "there are no pairs for it"),
        ({"dpo": "m"}, {"preferences": {}}, "there are no pairs for it"),
    ],
)
def test_an_arm_that_goes_on_from_what_there_is_not_is_refused(
    aligned: dict[str, Any] | None, given: dict[str, object], says: str
) -> None:
    arms = {"a": arm(choose="all"), "m": arm(model="base")}
    if aligned is not None:
        arms["on"] = arm(**aligned)
    with pytest.raises(UserError, match=says):
        check_alignments(arms, TRAINED | given)


def test_an_arm_goes_on_from_a_trained_one_or_from_a_finished_model() -> None:
    arms = {"a": arm(choose="all"), "m": arm(model="base")}
    check_alignments({**arms, "on": arm(dpo="a", data="x")}, TRAINED)
    check_alignments({**arms, "on": arm(dpo="a")}, TRAINED | {"preferences": {}})
    check_alignments({**arms, "on": arm(dpo="m", data="x")}, TRAINED | {"train": None})
    check_alignments(arms, {"train": {}, "dpo": None, "preferences": None})
    twice = {**arms, "on": arm(dpo="a", data="x"), "again": arm(dpo="on", data="x")}
    with pytest.raises(UserError, match="'on' went on by `dpo` itself"):
        check_alignments(twice, TRAINED)


def test_a_control_is_made_of_an_arm_that_chooses_rows() -> None:
    arms = {"a": arm(choose="all"), "m": arm(model="base"), "d": arm(dpo="a", data="x")}
    check_shuffled({**arms, "s": arm(of="a", shuffled=0.5)})
    for of, says in (("m", "chooses no rows"), ("d", "chooses no rows"), ("s", "no other arm"),
                     ("b", "no other arm")):  # fmt: skip
        with pytest.raises(UserError, match=says):
            check_shuffled({**arms, "s": arm(of=of, shuffled=0.5)})
    twice = {**arms, "s": arm(of="a", shuffled=0.5), "t": arm(of="s", shuffled=0.5)}
    with pytest.raises(UserError, match="chooses no rows"):
        check_shuffled(twice)


def test_a_mixture_of_an_arm_that_is_not_there_names_the_nearest() -> None:
    arms = {"good": arm(choose="all"), "mixed": mixture(goood=0.7, good=0.3)}
    with pytest.raises(UserError, match=r"arms\.mixed\.mix\.goood: no arm .* did you mean 'good'"):
        check_mixtures(arms)


def test_a_mixture_of_itself_is_a_circle_however_far() -> None:
    arms = {"x": mixture(y=0.5, a=0.5), "y": mixture(z=0.5, a=0.5), "z": mixture(x=0.5, a=0.5)}
    with pytest.raises(UserError, match="x -> y -> z -> x is a circle"):
        check_mixtures({"a": arm(choose="all"), **arms})


def test_a_finished_model_has_no_rows_to_mix() -> None:
    arms = {"m": arm(model="base"), "a": arm(choose="all"), "x": mixture(m=0.5, a=0.5)}
    with pytest.raises(UserError, match=r"arms\.x\.mix\.m: this arm is a finished model"):
        check_mixtures(arms)


def test_a_part_called_as_an_arm_is_refused() -> None:
    arms = {"a": arm(choose="all"), "b": arm(choose="all")}
    arms["x"] = mixture(a=0.5, b={"share": 0.5, "data": "x.jsonl"})
    with pytest.raises(UserError, match="an arm is called so as well"):
        check_mixtures(arms)


def test_mixtures_come_behind_those_that_they_mix() -> None:
    a = arm(choose="all")
    arms = {"x": mixture(y=0.5, a=0.5), "y": mixture(z=0.5, a=0.5), "z": mixture(a=0.5, b=0.5)}
    assert mixing_order({**arms, "a": a, "b": a}) == ["z", "y", "x"]
