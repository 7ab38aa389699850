"""The error of a difference that prompts and training seeds vary: its interval, p-value and power,
and how often it finds what is not there."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from eval import stats
from eval.comparing.arms import (
    Arm,
    Asked,
    Family,
    Noise,
    beside_prompts,
    beside_shared_seeds,
    between_seeds,
    of_seeds_prompts,
    pairs,
    seed_parts,
    shared_items,
)
from eval.comparing.errors import Errors, Part, detectable, power
from eval.comparing.estimates import CANNOT_TELL, estimates, verdicts
from eval.comparing.estimates import tested as p_values

SEEDS = ("0", "1", "2")


def arm(name: str, values: np.ndarray, seeds: tuple[str, ...] = SEEDS) -> Arm:
    items = [f"q{k}" for k in range(values.shape[1])]
    return Arm(name, items, items, values, seeds)


def drawn(
    rng: np.random.Generator, arms: int, seeds: int, items: int, spread: float
) -> list[np.ndarray]:
    """Values of equal arms whose seeds' scores deviate by `spread` errors of a paired mean."""
    error = math.sqrt(2 / items)
    return [
        rng.normal(0, spread * error, (seeds, 1))
        + rng.normal(0, math.sqrt(0.5), (1, items))
        + rng.normal(0, math.sqrt(0.5), (seeds, items))
        for _ in range(arms)
    ]


def test_each_part_of_an_error_gets_its_own_t() -> None:
    found = Errors(Part(4.0, 10.0), Part(9.0, 2.0)).interval(1.0, 11)
    half = math.hypot(stats.t_critical(10) * 2, stats.t_critical(2) * 3)
    assert (found.lower, found.upper) == (pytest.approx(1 - half), pytest.approx(1 + half))
    assert found.standard_error == pytest.approx(math.sqrt(13))


def test_without_seeds_the_interval_is_students_t() -> None:
    found = Errors(Part(4.0, 10.0)).interval(0.0, 11)
    assert found.upper == pytest.approx(2 * stats.t_critical(10))


def test_an_error_that_one_cluster_leaves_unknown_stays_unknown() -> None:
    errors = Errors(Part(math.nan, 0.0), Part(1.0, 2.0))
    assert math.isnan(errors.interval(1.0, 2).lower) and math.isnan(errors.p_value(1.0))


def test_the_p_value_is_the_level_at_which_the_interval_touches_zero() -> None:
    errors = Errors(Part(1.0, 30.0), Part(0.5, 3.0))
    p = errors.p_value(2.5)
    assert errors.interval(2.5, 31, level=1 - p).lower == pytest.approx(0, abs=1e-6)
    assert 0.05 < p < 0.2 and errors.p_value(0.0) == pytest.approx(1.0)
    assert errors.p_value(1e9) <= 1.01e-12 and Errors(Part(0.0)).p_value(0.0) == 1.0


def test_the_p_value_without_seeds_is_the_t_tests() -> None:
    of_t = 2 * scipy.stats.t.sf(2.5, 10)
    assert Errors(Part(4.0, 10.0)).p_value(5.0) == pytest.approx(of_t)


def test_detectable_difference_of_a_known_error_is_2_8_standard_errors() -> None:
    criticals = stats.t_critical(math.inf), math.nan
    assert detectable(Errors(Part(4.0)), criticals) == pytest.approx(2.8 * 2, abs=0.01)


def test_power_agrees_with_a_simulation() -> None:
    rng = np.random.default_rng(0)
    errors, criticals = Errors(Part(1.0, 20.0), Part(2.0, 2.0)), (2.1, 4.3)
    true, trials = 9.0, 200_000
    estimates = rng.normal(true, math.sqrt(3.0), trials)
    items = rng.chisquare(20, trials) / 20
    seeds = 2 * rng.chisquare(2, trials) / 2
    found = abs(estimates) > np.sqrt(criticals[0] ** 2 * items + criticals[1] ** 2 * seeds)
    assert power(true, errors, criticals) == pytest.approx(found.mean(), abs=0.01)
    assert power(detectable(errors, criticals), errors, criticals) == pytest.approx(0.8, abs=1e-3)


def test_the_variance_between_seeds_is_pooled_and_nothing_is_taken_off() -> None:
    one = arm("a", np.array([[1.0, 1.0], [3.0, 3.0], [2.0, 2.0]]))
    two = arm("b", np.array([[0.0, 0.0], [4.0, 4.0]]), ("0", "1"))
    assert between_seeds([one, two]) == Part(pytest.approx((2 + 8) / 3), 3.0)
    assert between_seeds([arm("c", np.ones((1, 4)), ("0",))]) == Part(0.0)


def test_rounding_is_no_variance_between_seeds() -> None:
    items = ["p", "q"]
    values = np.array([[0.3, 0.3], [0.1 + 0.2, 0.1 + 0.2]])
    assert between_seeds([Arm("a", items, items, values, ("0", "1"))]).variance == 0


def test_a_trained_baselines_luck_falls_out_between_two_arms() -> None:
    luck = np.array([[-30.0], [0.0], [30.0]])
    rng = np.random.default_rng(0)
    members = [arm(name, 50 + luck + rng.normal(0, 1, (3, 100))) for name in "ab"]
    base = Arm(
        "base", members[0].items, members[0].items, np.full((1, 100), 50.0), by_definition=True
    )
    members.append(base)
    shared = Family("bench", "win_rate", members, trained_baseline=SEEDS)
    apart = Family("bench", "win_rate", members)
    parts = seed_parts(shared, pairs(shared, "base")).parts
    names = [(pair.a.name, pair.b.name) for pair in pairs(shared, "base")]
    by_pair = dict(zip(names, parts, strict=True))
    assert by_pair["a", "b"].variance < 0.1 and by_pair["a", "b"].df == 2
    assert by_pair["a", "base"].variance == pytest.approx(900 / 3, rel=0.05)
    assert by_pair["a", "base"].df == 2
    before = seed_parts(apart, pairs(apart, "base")).parts
    assert max(part.variance for part in before) == pytest.approx(2 * 900 / 3, rel=0.05)


def test_under_a_trained_baseline_arms_are_compared_on_the_seeds_that_both_have() -> None:
    luck = np.array([[-30.0], [0.0], [30.0]])
    whole = arm("a", np.zeros((3, 50)) + luck)
    part = arm("b", np.zeros((2, 50)) + luck[:2], ("0", "1"))
    family = Family("bench", "win_rate", [whole, part], trained_baseline=SEEDS)
    (pair,) = pairs(family, None)
    assert pair.part.mean == 0.0


@pytest.mark.parametrize(("seeds", "arms"), [(2, 1), (2, 2), (3, 2)])
def test_few_seeds_give_no_more_false_verdicts_than_promised(seeds: int, arms: int) -> None:
    """8 to 13 % before, with a seed variance that had its prompts' part taken off."""
    rng = np.random.default_rng(seeds * 10 + arms)
    names = tuple(str(k) for k in range(seeds))
    trials, wrong = 400, 0
    for _ in range(trials):
        values = drawn(rng, arms, seeds, 100, 1.5)
        members = [arm(f"arm{k}", each, names) for k, each in enumerate(values)]
        fixed = arm("base", rng.normal(0, 0.7, (1, 100)), ())
        made = estimates(Family("b", "m", [*members, fixed]), "base", resamples=1000)
        wrong += any(said != CANNOT_TELL for said in verdicts(made))
    assert wrong / trials <= 0.075  # 5 % and two and a half standard errors


def test_a_true_difference_is_found_as_often_as_said() -> None:
    rng = np.random.default_rng(1)
    found, trials = 0, 500
    for _ in range(trials):
        values = drawn(rng, 2, 3, 200, 1.0)
        values[0] += 0.38
        members = [arm(f"arm{k}", each) for k, each in enumerate(values)]
        made = estimates(Family("b", "m", members), None, resamples=1000)
        found += verdicts(made) == ["arm0 is better"]
    # items: 0.5 of an arm's prompts, 0.5 of each seed's; seeds: one paired error of 0.1 each
    items, seeds = 2 * (0.5 + 0.5 / 3) / 200, 2 * (0.01 + 0.5 / 200) / 3
    errors = Errors(Part(items, 199.0), Part(seeds, 4.0))
    said = power(0.38, errors, (stats.t_critical(199), stats.t_critical(4)))
    assert 0.5 < said < 0.95
    assert found / trials == pytest.approx(said, abs=0.06)


def test_without_a_difference_an_interval_leaves_out_0_as_often_as_its_level_on_both_sides() -> (
    None
):
    errors = Errors(Part(1.0), Part(0.0))
    assert power(0.0, errors, (1.959964, 1.0)) == pytest.approx(0.05, abs=1e-6)
    assert power(-3.0, errors, (1.959964, 1.0)) == pytest.approx(
        power(3.0, errors, (1.959964, 1.0))
    )


def test_what_seeds_and_prompts_leave_of_a_cell_is_worked_out_from_two_of_each() -> None:
    # residuals of +1 and -1, four squares over one degree of freedom
    assert beside_prompts(np.array([[0.0, 0.0], [0.0, 4.0]])) == pytest.approx(4.0)
    assert math.isnan(beside_prompts(np.array([[0.0, 4.0]])))
    assert math.isnan(beside_prompts(np.array([[0.0], [4.0]])))


def test_differences_move_together_where_they_share_an_arm_and_against_each_other_behind_it() -> (
    None
):
    rng = np.random.default_rng(11)
    family = Family("b", "m", [arm(name, rng.normal(size=(3, 20))) for name in "abc"])
    found = pairs(family, None)
    assert [pair.a.name + pair.b.name for pair in found] == ["ab", "ac", "bc"]
    # one third of one seed's variance is left in the mean of three
    expected = np.array([[2, 1, -1], [1, 2, 1], [-1, 1, 2]]) / 3
    assert seed_parts(family, found).covariance == pytest.approx(expected)


def test_a_finished_model_adds_no_seeds_and_an_arm_of_two_half_of_ones_variance() -> None:
    rng = np.random.default_rng(12)
    members = [
        arm("a", rng.normal(size=(2, 20)), ("0", "1")),
        arm("b", rng.normal(size=(3, 20))),
        arm("finished", rng.normal(size=(1, 20)), ()),
    ]
    family = Family("b", "m", members)
    found = pairs(family, None)
    made = seed_parts(family, found)
    pooled = between_seeds(members)
    shares = [1 / 2 + 1 / 3, 1 / 2, 1 / 3]
    assert np.diag(made.covariance) == pytest.approx(shares)
    assert [part.variance for part in made.parts] == pytest.approx(
        [pooled.variance * share for share in shares]
    )
    assert {part.df for part in made.parts} == {3.0} == {pooled.df}


def test_a_finished_model_under_one_checkpoint_of_a_trained_baseline_holds_all_of_its_luck() -> (
    None
):
    rng = np.random.default_rng(13)
    members = [
        arm("a", rng.normal(size=(3, 20))),
        arm("b", rng.normal(size=(3, 20))),
        arm("finished", rng.normal(size=(1, 20)), ()),
        Arm("base", *[[f"q{k}" for k in range(20)]] * 2, np.full((1, 20), 50.0), (), 0, True),
    ]
    family = Family("b", "win_rate", members, trained_baseline=SEEDS)
    found = pairs(family, "base")
    made = seed_parts(family, found)
    share = {"a": 1 / 3, "b": 1 / 3, "finished": 1.0, "base": 1 / 3}
    names = [(pair.a.name, pair.b.name) for pair in found]
    assert np.diag(made.covariance) == pytest.approx([share[a] + share[b] for a, b in names])
    of_seeds = between_seeds(members).variance
    by_pair = dict(zip(names, made.parts, strict=True))
    assert by_pair["a", "base"].variance == pytest.approx(of_seeds / 3)
    assert by_pair["finished", "base"].variance == pytest.approx(of_seeds)
    assert by_pair["a", "finished"].variance == pytest.approx(of_seeds * (1 / 3 + 1))


def test_what_arms_do_not_share_under_a_seed_is_the_residual_of_arms_by_seeds() -> None:
    a = arm("a", np.array([[1.0, 1.0], [4.0, 4.0], [9.0, 9.0]]))
    b = arm("b", np.array([[2.0, 2.0], [4.0, 4.0], [4.0, 4.0]]), ("2", "1", "0"))
    # scores by seed: a 1, 4, 9; b 4, 4, 2: half of what differs between the differences
    apart = np.array([1.0 - 4, 4 - 4, 9 - 2])
    expected = ((apart - apart.mean()) ** 2).sum() / 2 / 2
    assert beside_shared_seeds([a, b]) == Part(pytest.approx(expected), 2.0)
    assert beside_shared_seeds([a]) is None
    assert beside_shared_seeds([a, arm("c", np.ones((2, 2)), ("2", "7"))]) is None


def test_pairs_share_the_items_that_both_have_in_the_same_place() -> None:
    a = Arm("a", ["p", "q", "r"], ["1", "1", "2"], np.array([[1.0, 2.0, 3.0]]))
    b = Arm("b", ["r", "s", "p"], ["2", "3", "1"], np.array([[10.0, 20.0, 30.0]]))
    (pair,) = pairs(Family("b", "m", [a, b]), None)
    assert (pair.x.tolist(), pair.y.tolist()) == ([[1.0, 3.0]], [[30.0, 10.0]])
    assert pair.part.mean == -18.0 and len(pair.part.sums) == 2
    assert pairs(Family("b", "m", [a, Arm("c", ["t"], ["9"], np.ones((1, 1)))]), None) == []


def test_pairs_with_fewer_items_in_common_than_either_was_asked_are_named() -> None:
    def of(name: str, items: str, asked: str = "") -> Arm:
        missing = Asked([*asked], [*asked], np.full((1, len(asked)), math.nan)) if asked else None
        return Arm(name, [*items], [*items], np.ones((1, len(items))), asked=missing)

    def shared(*members: Arm) -> list[tuple[str, str, int, int]]:
        return shared_items(Family("b", "m", list(members)))

    assert shared(of("a", "pqr"), of("b", "pqr")) == []
    assert shared(of("a", "pqr"), of("b", "pqs")) == [("a", "b", 2, 3)]
    assert shared(of("a", "pqr"), of("b", "pq")) == []  # all that the smaller one was asked
    assert shared(of("a", "p"), of("b", "q")) == [("a", "b", 0, 1)]
    assert shared(of("a", "pq", "pqr"), of("b", "pqr")) == []  # only unjudged
    assert shared(of("a", "p", "pq"), of("b", "q", "pq")) == [("a", "b", 0, 2)]
    only = Family("b", "m", [of("a", "p"), of("b", "q")], compared=frozenset())
    assert shared_items(only) == [] == pairs(only, None)


def test_of_averaged_values_the_share_of_their_number_is_left() -> None:
    assert Noise(4, 8.0).share == 2.0 and Noise().share == 0.0


def test_the_interval_of_one_pair_is_named_by_the_larger_part() -> None:
    assert Errors(Part(1.0, 10.0), Part(2.0, 3.0)).interval(0.0, 9).df == 3.0
    assert Errors(Part(2.0, 10.0), Part(2.0, 3.0)).interval(0.0, 9).df == 10.0


def test_a_part_without_variance_adds_nothing_whatever_its_critical_value() -> None:
    assert Errors(Part(4.0), Part(0.0)).half_width(2.0, math.nan) == 4.0
    assert Errors(Part(0.0), Part(9.0)).half_width(math.nan, 2.0) == 6.0


def test_what_a_finite_set_of_prompts_makes_of_the_seeds_part_is_each_arms_residual() -> None:
    rng = np.random.default_rng(14)
    a, b = arm("a", rng.normal(size=(3, 20))), arm("b", rng.normal(size=(1, 20)), ("0",))
    (pair,) = pairs(Family("b", "m", [a, b]), None)
    assert of_seeds_prompts(pair) == pytest.approx(beside_prompts(a.values) / 60)
    c = arm("c", rng.normal(size=(2, 20)), ("0", "1"))
    (pair,) = pairs(Family("b", "m", [a, c]), None)
    assert of_seeds_prompts(pair) == pytest.approx(
        beside_prompts(a.values) / 60 + beside_prompts(c.values) / 40
    )


@pytest.mark.parametrize("lower_is_better", [False, True])
@pytest.mark.parametrize("value", [-3.0, -1.0, 1.0, 3.0])
@pytest.mark.parametrize("half", [0.5, 1.0, 2.0, 3.0, 5.0])
@pytest.mark.parametrize("matters", [None, 1.5, 2.0, 4.0, 8.0])
def test_a_verdict_follows_from_the_interval_and_from_what_would_matter(
    value: float, half: float, lower_is_better: bool, matters: float | None
) -> None:
    a, b = arm("a", np.full((1, 4), value), ()), arm("b", np.zeros((1, 4)), ())
    (one,) = estimates(Family("b", "m", [a, b]), None)
    one = replace(one, errors=Errors(Part(half**2)), criticals=(1.0, math.nan))
    (said,) = verdicts([one], lower_is_better=lower_is_better, equivalent=matters)
    ahead = "a" if (value > 0) != lower_is_better else "b"
    least, most = abs(value) - half, abs(value) + half  # by how much it is ahead
    expected = CANNOT_TELL
    if least > 0:
        expected = f"{ahead} is better"
    elif matters is not None and most < matters:
        expected = f"equal within {matters:g}"
    elif matters is not None and least > -matters:
        expected = f"{ahead} is no worse"
    assert said == expected


def test_without_any_spread_only_the_exact_test_tells_arms_apart() -> None:
    def said(items: int) -> list[str]:
        a, b = arm("a", np.ones((1, items)), ()), arm("b", np.zeros((1, items)), ())
        return verdicts(estimates(Family("b", "m", [a, b]), None), equivalent=9.0)

    # of 5 items that all differ alike a sign test has p = 2/32, of 6 p = 2/64
    assert said(5) == [CANNOT_TELL] and said(6) == ["a is better"]


@pytest.mark.parametrize("shared", [1, 2, 5])
def test_all_intervals_are_as_wide_as_all_pairs_that_have_an_error_ask_for(shared: int) -> None:
    rng = np.random.default_rng(15)
    a, b = (arm(name, rng.normal(size=(1, 30)), ()) for name in "ab")
    few = [f"q{k}" for k in range(shared)]
    c = Arm("c", few, few, rng.normal(size=(1, shared)))
    found = estimates(Family("b", "m", [a, b, c]), None)
    known = [one.pair for one in found if shared > 1 or one.pair.b.name == "b"]
    errors = stats.joint_errors([(pair.part, pair.clusters) for pair in known])
    expected = stats.max_t_critical(errors, 29 if shared == 1 else shared - 1)
    for one in found:
        single = stats.t_critical(len(one.pair.part.sums) - 1)
        assert one.criticals[0] == (single if single > expected else expected)


@pytest.mark.parametrize("value", [0.1, 0.6, 0.7, 1.5, 2.5])
def test_looked_at_twice_a_p_value_is_twice_the_tests_and_never_more_than_1(value: float) -> None:
    once = 2 * scipy.stats.norm.sf(value)
    found = Errors(Part(4.0)).p_value(2 * 3 * value, 3.0, 2)
    assert found == pytest.approx(min(1.0, 2 * once))


@pytest.mark.parametrize(
    ("outcomes", "test"), [((0, 1), "McNemar"), ((0, 100), "McNemar"), ((0, 200), "sign flip")]
)
def test_outcomes_of_right_and_wrong_are_compared_by_mcnemars_test(
    outcomes: tuple[int, int], test: str
) -> None:
    rng = np.random.default_rng(16)
    a, b = (arm(name, rng.choice(outcomes, (1, 30)).astype(float), ()) for name in "ab")
    found = estimates(Family("b", "m", [a, b]), None)
    (said,) = p_values(found, 1000, 0)
    only = int((a.values > b.values).sum()), int((a.values < b.values).sum())
    expected = {"McNemar": stats.mcnemar(*only), "sign flip": said["p"]}[test]
    assert said == {"p": expected, "test": test}
    clustered = replace(b, clusters=[f"c{k // 2}" for k in range(30)])
    paired = [replace(a, clusters=clustered.clusters), clustered]
    (said,) = p_values(estimates(Family("b", "m", paired), None), 1000, 0)
    assert said["test"] == "sign flip"  # two items of one cluster are not independent
