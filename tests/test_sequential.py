"""Judging in steps: when it stops, and what its intervals hold to."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from eval import stats
from eval.comparing.arms import Arm, Family, beside_prompts, of_seeds_prompts
from eval.comparing.differences import differences
from eval.comparing.errors import Errors, Part
from eval.comparing.estimates import CANNOT_TELL, Estimate, estimates
from eval.comparing.sequential import (
    FEWEST,
    GIVEN_UP_AFTER,
    Look,
    _decided,
    _differing,
    _still,
    look,
    order,
)


def family(values: dict[str, np.ndarray], planned: int) -> Family:
    """Arms of (items,) or (seeds, items) values."""
    members = []
    for name, own in values.items():
        rows = np.atleast_2d(own)
        items = [f"q{k}" for k in range(rows.shape[1])]
        seeds = tuple(map(str, range(len(rows)))) if len(rows) > 1 else ()
        members.append(Arm(name, items, items, rows, seeds))
    return Family("bench", "win_rate", members, True, planned=planned)


def steps(rng: np.random.Generator, shift: float, planned: int, by: int = 20) -> tuple[Look, int]:
    """Two arms judged until a look says stop, and how many prompts that took."""
    a, b = rng.normal(shift, 1, planned), rng.normal(0, 1, planned)
    for known in range(by, planned + 1, by):
        seen = look(family({"a": a[:known], "b": b[:known]}, planned))
        if seen.stop:
            break
    return seen, known


def test_the_interval_of_a_sequence_is_as_wide_as_its_horizon_asks() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 100), rng.normal(0, 1, 100)
    (pair,) = look(family({"a": a, "b": b}, 400)).pairs
    error = (a - b).std(ddof=1) / 10
    # 97.5 % in place of 95, times the root of planned over judged
    half = stats.t_critical(99, 0.975) * error * 2
    assert pair.upper - pair.difference == pytest.approx(half)
    assert pair.difference - pair.lower == pytest.approx(half)


def test_a_comparison_of_judging_in_steps_has_the_intervals_of_its_last_look() -> None:
    rng = np.random.default_rng(1)
    arms = family({"a": rng.normal(0.4, 1, 100), "b": rng.normal(0, 1, 100)}, 300)
    (row,) = differences(arms, None)
    (pair,) = look(arms).pairs
    assert (row["simultaneous_lower"], row["simultaneous_upper"]) == (pair.lower, pair.upper)
    assert row["test"] == "sequence"


def test_the_p_value_of_a_sequence_is_where_its_interval_touches_zero() -> None:
    rng = np.random.default_rng(2)
    arms = family({"a": rng.normal(0, 1, 100), "b": rng.normal(0, 1, 100)}, 200)
    (one,) = estimates(arms, None)
    edge = one.errors.half_width(*one.criticals)
    assert one.errors.p_value(edge, one.pair.stretch, 2) == pytest.approx(0.05)
    assert one.errors.p_value(0.0, one.pair.stretch, 2) == 1.0


def test_looking_often_gives_no_more_false_verdicts_than_promised() -> None:
    """Intervals of 95 % looked at so often are wrong in 20 %."""
    rng = np.random.default_rng(3)
    trials = 300
    wrong = sum(steps(rng, 0.0, 400, 40)[0].pairs[0].verdict != CANNOT_TELL for _ in range(trials))
    assert wrong / trials <= 0.082  # 5 % and two and a half standard errors


def test_a_clear_difference_stops_early_and_is_found() -> None:
    rng = np.random.default_rng(4)
    # six errors of the difference over all prompts
    found = [steps(rng, 6 * math.sqrt(2 / 400), 400) for _ in range(50)]
    assert sum(seen.pairs[0].verdict == "a is better" for seen, _ in found) >= 49
    assert np.mean([known for _, known in found]) <= 0.6 * 400


def test_equal_arms_are_given_up_before_all_prompts_are_judged() -> None:
    rng = np.random.default_rng(5)
    found = [steps(rng, 0.0, 400) for _ in range(50)]
    assert np.mean([known for _, known in found]) < 0.9 * 400
    assert all(seen.pairs[0].hopeless for seen, _ in found if seen.pairs[0].verdict == CANNOT_TELL)


def test_nothing_stops_before_the_error_is_known() -> None:
    rng = np.random.default_rng(6)
    few = FEWEST - 1
    seen = look(family({"a": rng.normal(9, 1, few), "b": rng.normal(0, 1, few)}, 400))
    assert not seen.stop and seen.pairs[0].verdict == CANNOT_TELL


def test_no_pair_is_given_up_early() -> None:
    values = np.random.default_rng(7).normal(0, 1, 120)
    known = int(GIVEN_UP_AFTER * 400) - 1
    a = values - values.mean()  # no difference at all
    seen = look(family({"a": a[:known], "b": -a[:known]}, 400))
    assert not seen.pairs[0].hopeless


def test_a_declared_difference_that_does_not_matter_decides_too() -> None:
    rng = np.random.default_rng(8)
    shared = rng.normal(0, 1, 200)
    a, b = shared + rng.normal(0, 0.05, 200), shared + rng.normal(0, 0.05, 200)
    arms = family({"a": a, "b": b}, 400)
    assert look(arms).pairs[0].verdict == CANNOT_TELL
    decided = look(arms, equivalent=0.2)
    assert decided.pairs[0].verdict == "equal within 0.2" and decided.stop


def test_one_open_pair_keeps_all_going() -> None:
    rng = np.random.default_rng(9)
    base = rng.normal(0, 1, 100)
    arms = {"a": base + rng.normal(5, 0.7, 100), "b": base + rng.normal(0.15, 0.7, 100), "c": base}
    seen = look(family(arms, 805))
    decided = {(pair.a, pair.b): pair.verdict for pair in seen.pairs}
    assert decided["a", "c"] == "a is better" and decided["b", "c"] == CANNOT_TELL
    assert not seen.stop


def test_the_order_is_random_and_a_smaller_set_keeps_it() -> None:
    names = [f"q{k}" for k in range(200)]
    shuffled = order(names)
    assert shuffled != names and sorted(shuffled) == sorted(names)
    assert order(reversed(names)) == shuffled and order(names, seed=1) != shuffled
    assert order(names[:50]) == [name for name in shuffled if int(name[1:]) < 50]


def test_what_prompts_add_to_one_seeds_score_is_told_from_the_seeds() -> None:
    rng = np.random.default_rng(10)
    values = rng.normal(0, 2, (4, 5000)) + rng.normal(0, 9, (1, 5000)) + 7 * np.arange(4)[:, None]
    assert beside_prompts(values) == pytest.approx(4, rel=0.05)


def decided(one: Estimate, planned: int, seeds: float = 0.0, equal: float = 0.0) -> float:
    """How often a pair is decided after all planned prompts, by drawing the prompts to come: their
    mean is as little known as the difference, and varies around it by their number."""
    rng = np.random.default_rng(0)
    judged = len(one.pair.part.sums)
    left, variance = planned - judged, one.errors.items.variance
    true = rng.normal(one.value, math.sqrt(variance), 400_000)
    coming = rng.normal(true, math.sqrt(variance * judged / left))
    final = (judged * one.value + left * coming) / planned
    critical = one.criticals[0] / one.pair.stretch
    half = math.sqrt(critical**2 * variance * judged / planned + one.criticals[1] ** 2 * seeds)
    return float(((abs(final) > half) | (abs(final) + half < equal)).mean())


@pytest.mark.parametrize(("shift", "known"), [(0.25, 150), (-0.2, 150), (0.0, 60), (0.4, 60)])
def test_a_pair_is_given_up_by_how_often_the_prompts_to_come_would_decide_it(
    shift: float, known: int
) -> None:
    rng = np.random.default_rng(16)
    base = rng.normal(0, 1, known)
    (one,) = estimates(family({"a": base + rng.normal(shift, 1, known), "b": base}, 200), None)
    assert _decided(one, None) == pytest.approx(decided(one, 200), abs=0.003)
    for equivalent in (0.05, 0.3, 0.5):
        expected = decided(one, 200, equal=equivalent)
        assert _decided(one, equivalent) == pytest.approx(expected, abs=0.003)


def test_of_the_seeds_part_what_prompts_make_of_it_shrinks_with_further_prompts() -> None:
    rng = np.random.default_rng(17)
    luck = np.array([[-0.15], [0.0], [0.15]])
    a, b = rng.normal(0.5, 1, (3, 80)) + luck, rng.normal(0, 1, (3, 80)) - luck
    (one,) = estimates(family({"a": a, "b": b}, 200), None)
    of_prompts, share = of_seeds_prompts(one.pair), 80 / 200
    assert one.errors.seeds.variance > of_prompts > 0
    left = one.errors.seeds.variance - of_prompts * (1 - share)
    assert _decided(one, None) == pytest.approx(decided(one, 200, left), abs=0.003)
    # seeds that came out closer than prompts alone make them
    closer = replace(one, errors=Errors(one.errors.items, Part(of_prompts / 10, 4.0)))
    expected = decided(closer, 200, of_prompts * share)
    assert _decided(closer, None) == pytest.approx(expected, abs=0.003)


def test_all_planned_prompts_judged_a_pair_is_never_decided_later() -> None:
    rng = np.random.default_rng(18)
    whole = family({"a": rng.normal(0, 1, 100), "b": rng.normal(0, 1, 100)}, 100)
    (pair,) = look(whole).pairs
    assert pair.hopeless and look(whole).stop


def test_a_look_counts_the_prompts_of_the_pair_that_has_fewest() -> None:
    rng = np.random.default_rng(19)
    arms = family({"a": rng.normal(0, 1, 60), "b": rng.normal(0, 1, 50)}, 200)
    assert look(arms).judged == 50 and look(arms).planned == 200
    assert look(family({"a": np.ones(4)}, 200)).judged == 0
    assert not look(family({"a": np.ones(4)}, 0)).stop  # nothing to decide


def test_of_few_planned_prompts_all_are_enough_to_stop() -> None:
    rng = np.random.default_rng(20)
    a, b = rng.normal(9, 1, 10), rng.normal(0, 1, 10)
    assert not look(family({"a": a[:9], "b": b[:9]}, 10)).stop
    assert look(family({"a": a, "b": b}, 10)).pairs[0].verdict == "a is better"
    assert look(family({"a": a, "b": b}, 10)).stop


def test_a_pair_is_given_up_from_a_third_of_the_planned_prompts_on() -> None:
    rng = np.random.default_rng(21)
    luck = np.array([[-5.0], [0.0], [5.0]])  # nothing is decided by prompts alone
    a, b = rng.normal(0, 1, (3, 100)) + luck, rng.normal(0, 1, (3, 100)) - luck
    for known, given_up in ((99, False), (100, True)):
        (pair,) = look(family({"a": a[:, :known], "b": b[:, :known]}, 300)).pairs
        assert pair.hopeless == given_up


def test_a_judge_that_never_tells_two_arms_apart_is_given_up_before_the_end() -> None:
    alike = np.ones(400)

    def at(known: int) -> Look:
        return look(family({"a": alike[:known], "b": alike[:known]}, 400))

    assert not at(140).stop, "six of the 260 left might still differ, all for the same arm"
    assert at(180).stop and at(180).pairs[0].hopeless
    assert at(400).stop and at(400).pairs[0].verdict == CANNOT_TELL


def test_so_many_prompts_as_would_decide_are_what_a_pair_without_spread_waits_for() -> None:
    """The chance that it goes by is that of a share of differing prompts drawn uniformly."""
    (one,) = estimates(family({"a": np.ones(100), "b": np.ones(100)}, 300), None)
    rng = np.random.default_rng(11)
    shares = rng.uniform(size=4_000_000)
    shares = shares[rng.binomial(100, shares) == 0]
    later = rng.binomial(200, shares)
    assert _still(1, 1, 2) == pytest.approx(1 / 3), "the rule of succession"
    assert _still(6, 100, 300) == pytest.approx((later >= 6).mean(), abs=0.005)
    needed = _differing(one)
    for differing, apart in ((needed - 1, False), (needed, True)):
        values = np.zeros(300)
        values[:differing] = 1.0
        (pair,) = look(family({"a": values, "b": np.zeros(300)}, 300)).pairs
        assert (pair.lower > 0) == apart


@pytest.mark.parametrize("planned", [45, 120, 230])
def test_so_many_differing_prompts_decide_whatever_is_planned(planned: int) -> None:
    (one,) = estimates(family({"a": np.ones(planned), "b": np.ones(planned)}, planned), None)
    for differing, apart in ((_differing(one) - 1, False), (_differing(one), True)):
        values = np.zeros(planned)
        values[:differing] = 1.0
        (pair,) = look(family({"a": values, "b": np.zeros(planned)}, planned)).pairs
        assert (pair.lower > 0) == apart


def test_a_judge_that_prefers_an_arm_everywhere_is_believed_at_the_first_look_that_may_stop() -> (
    None
):
    """No prompt differs from another, so that there is no error, and the exact test decides."""
    won = family({"a": np.full(FEWEST, 1.0), "b": np.full(FEWEST, 0.5)}, 400)
    seen = look(won)
    assert seen.stop and seen.pairs[0].verdict == "a is better"
    (row,) = differences(won, None)
    assert row["verdict"] == "a is better" and row["test"] == "sign flip"


def test_a_margin_that_one_differing_prompt_would_tell_keeps_alike_arms_going() -> None:
    alike = family({"a": np.ones(300), "b": np.ones(300)}, 400)
    assert look(alike).stop and not look(alike, equivalent=0.1).stop
