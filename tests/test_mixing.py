"""How many rows each part of a mixture gives, and which."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import pairwise
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from synth.filters.arm import ArmConfig, check_mixtures, mixing_order
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
