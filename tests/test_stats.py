"""The statistics: against textbook values, against brute force, and by small simulations with fixed
seeds."""

from __future__ import annotations

import math
import tracemalloc
from itertools import combinations, product

import numpy as np
import pytest

from core.errors import UserError
from eval import stats


def test_a_mean_without_clusters_has_the_usual_error_and_students_t() -> None:
    from scipy.stats import ttest_1samp

    x = np.random.default_rng(0).normal(1, 2, 30)
    found, expected = stats.mean_interval(x), ttest_1samp(x, 0).confidence_interval(0.95)
    assert (found.lower, found.upper) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert found.standard_error == pytest.approx(x.std(ddof=1) / math.sqrt(30)) and found.df == 29


def test_items_repeated_within_a_cluster_add_no_certainty() -> None:
    x = np.random.default_rng(0).normal(size=20)
    once, thrice = (
        stats.mean_interval(x),
        stats.mean_interval(np.repeat(x, 3), np.repeat(np.arange(20), 3)),
    )
    assert (thrice.value, thrice.standard_error, thrice.df) == (
        pytest.approx(once.value),
        pytest.approx(once.standard_error),
        once.df,
    )


def test_clusters_of_unequal_size_follow_the_sandwich_formula() -> None:
    x, g = np.array([1.0, 2, 3, 10, 20, 0]), np.array(["a", "a", "a", "b", "b", "c"])
    sums = np.array([(x[g == c] - x.mean()).sum() for c in "abc"])
    assert stats.mean_interval(x, g).standard_error == pytest.approx(
        math.sqrt(1.5 * (sums**2).sum()) / 6
    )


def test_pairing_takes_the_shared_part_out() -> None:
    rng = np.random.default_rng(1)
    shared = rng.normal(0, 10, 100)
    a, b = shared + rng.normal(0.5, 0.5, 100), shared + rng.normal(0, 0.5, 100)
    paired, apart = stats.mean_interval(a - b), stats.mean_interval(a)
    assert paired.lower > 0
    assert paired.standard_error < apart.standard_error / 5


def test_one_cluster_says_nothing_about_the_error() -> None:
    found = stats.mean_interval([1.0, 2.0], ["a", "a"])
    assert found.value == 1.5 and math.isnan(found.standard_error) and math.isnan(found.lower)


def test_missing_values_are_refused_where_a_mean_is_asked_for() -> None:
    for values in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="finite and not empty"):
            stats.mean_interval(values)


def test_bootstrap_agrees_with_the_t_interval_where_there_are_enough_clusters() -> None:
    x = np.random.default_rng(2).normal(size=200)
    draws = np.concatenate([w @ x / 200 for w in stats.bootstrap_counts(200, 10_000, seed=0)])
    boot, t = stats.draws_interval(x.mean(), draws, 199, 200), stats.mean_interval(x)
    assert boot.standard_error == pytest.approx(t.standard_error, rel=0.05)
    assert boot.lower == pytest.approx(t.lower, abs=0.02)
    assert boot.upper == pytest.approx(t.upper, abs=0.02)


def test_the_same_seed_draws_the_same_resamples() -> None:
    one, two = (next(stats.bootstrap_counts(50, 10, seed=0)) for _ in range(2))
    assert (one == two).all()


def test_bootstrap_is_refused_with_few_clusters() -> None:
    with pytest.raises(UserError, match="at least 40 are needed"):
        next(stats.bootstrap_counts(39, 10, seed=0))
    next(stats.bootstrap_counts(40, 10, seed=0))


def test_each_resample_draws_as_many_clusters_as_there_are() -> None:
    batches = list(stats.bootstrap_counts(50, 2500, seed=0))
    assert [len(b) for b in batches] == [1000, 1000, 500]
    assert (np.concatenate(batches).sum(axis=1) == 50).all()


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (1, 50, 0.0035, 0.1050)],
)
def test_wilson_has_its_textbook_values(k: int, n: int, low: float, high: float) -> None:
    assert stats.wilson(k, n) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_wilson_stays_within_0_and_1() -> None:
    for n in range(1, 300):
        for k in (0, 1, n - 1, n):
            low, high = stats.wilson(k, n)
            assert 0 <= low <= high <= 1


def test_wilson_without_trials_is_the_whole_range() -> None:
    assert stats.wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("a", "b"), [(0, 0), (1, 0), (3, 12), (7, 7), (20, 5)])
def test_mcnemar_is_the_binomial_test_on_discordant_items(a: int, b: int) -> None:
    from scipy.stats import binomtest

    assert stats.mcnemar(a, b) == pytest.approx(binomtest(a, a + b).pvalue if a + b else 1.0)


def test_sign_flip_enumerates_every_assignment_of_few_clusters() -> None:
    x = np.array([1.0, 2.5, -0.5, 3.0, 0.7])
    extreme = [abs(np.dot(s, x)) >= abs(x.sum()) - 1e-9 for s in product((1, -1), repeat=5)]
    assert stats.sign_flip(x) == np.mean(extreme)


def test_sign_flip_flips_whole_clusters() -> None:
    x = np.array([1.0, 2.0, 1.5, 0.5, 3.0, 1.0])
    assert (
        stats.sign_flip(x, [0, 0, 1, 1, 2, 2]) == 2 / 8
    )  # three clusters: only all-plus and all-minus are as extreme


def test_sign_flip_of_many_clusters_is_near_the_t_test_and_never_zero() -> None:
    from scipy.stats import ttest_1samp

    x = np.random.default_rng(3).normal(0.15, 1, 300)
    assert stats.sign_flip(x) == pytest.approx(ttest_1samp(x, 0).pvalue, abs=0.01)
    assert stats.sign_flip(np.ones(100)) == pytest.approx(1 / 10_001)


def test_sign_flip_of_no_difference_is_1() -> None:
    assert stats.sign_flip(np.zeros(5)) == 1.0 and stats.sign_flip(np.zeros(50)) == 1.0


def test_holm_steps_down_and_keeps_the_order_given() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.5, 0.9]) == [1.0, 1.0]
    assert math.isnan(stats.holm([math.nan, 0.01])[0]) and stats.holm([math.nan, 0.01])[1] == 0.02
    assert stats.holm([]) == []


def test_simultaneous_critical_value_of_one_estimate_is_students_t() -> None:
    errors = stats.residuals(np.random.default_rng(0).normal(size=12)).sums[:, None]
    assert stats.max_t_critical(errors, df=11, resamples=200_000) == pytest.approx(
        stats.t_critical(11), rel=0.01
    )


def test_the_critical_value_grows_with_the_family_but_less_where_estimates_move_together() -> None:
    rng = np.random.default_rng(0)
    apart, together = (
        rng.normal(size=(400, 10)),
        rng.normal(size=(400, 1)) + 0.1 * rng.normal(size=(400, 10)),
    )
    one, same, ten = (stats.max_t_critical(e, df=399) for e in (apart[:, :1], together, apart))
    bonferroni = stats.t_critical(399, 1 - 0.05 / 10)
    assert one < same < ten <= bonferroni * 1.01
    assert ten == pytest.approx(bonferroni, rel=0.02)


def test_all_pairs_of_arms_have_the_critical_value_of_tukeys_range() -> None:
    from scipy.stats import studentized_range

    arms = np.random.default_rng(0).normal(size=(2000, 5))
    pairs = np.stack([arms[:, i] - arms[:, j] for i, j in combinations(range(5), 2)], axis=1)
    expected = studentized_range.ppf(0.95, 5, 10_000) / math.sqrt(2)
    assert stats.max_t_critical(
        pairs - pairs.mean(axis=0), df=1999, resamples=40_000
    ) == pytest.approx(expected, rel=0.01)


def test_estimates_without_variance_do_not_break_the_family() -> None:
    errors = np.column_stack([np.random.default_rng(0).normal(size=50), np.zeros(50)])
    assert stats.max_t_critical(errors, df=49) == pytest.approx(
        stats.max_t_critical(errors[:, :1], df=49), rel=0.03
    )
    assert math.isnan(stats.max_t_critical(np.zeros((50, 1)), df=49))


def test_t_intervals_cover_at_five_clusters_of_unequal_size() -> None:
    rng = np.random.default_rng(7)
    sizes = np.repeat(np.arange(5), [2, 2, 3, 3, 2])
    covered = 0
    for _ in range(2000):
        x = rng.normal(size=5)[sizes] + rng.normal(size=12)
        found = stats.mean_interval(x, sizes)
        covered += found.lower <= 0 <= found.upper
    assert 0.935 < covered / 2000 < 0.965


def test_simultaneous_intervals_hold_together_as_often_as_they_promise() -> None:
    rng = np.random.default_rng(8)
    held = 0
    for trial in range(400):
        arms = rng.normal(size=(60, 4)) + rng.normal(size=(60, 1))
        parts = [stats.residuals(arms[:, i] - arms[:, j]) for i, j in combinations(range(4), 2)]
        c = stats.max_t_critical(
            np.stack([p.sums for p in parts], axis=1), df=59, resamples=2000, seed=trial
        )
        held += all(abs(p.mean) <= c * math.sqrt(p.variance) for p in parts)
    assert 0.925 < held / 400 < 0.975


def test_estimates_of_different_degrees_each_get_their_own_t() -> None:
    few, many = stats.simultaneous(
        np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([2.0, 50.0]), resamples=200_000
    )
    # two independent estimates at one level: 1 - (1 - a)^2 = 0.05
    level = math.sqrt(0.95)
    assert few == pytest.approx(stats.t_critical(2, level), rel=0.03)
    assert many == pytest.approx(stats.t_critical(50, level), rel=0.01)


def test_an_estimate_without_variance_has_no_critical_value() -> None:
    found = stats.simultaneous(np.diag([1.0, 0.0]), np.array([5.0, 5.0]), resamples=1000)
    assert found[0] > 0 and math.isnan(found[1])


def test_one_degree_of_freedom_is_enough_for_students_t_and_less_is_not() -> None:
    assert stats.t_critical(1) == pytest.approx(12.7062, abs=1e-4)
    assert stats.t_critical(math.inf) == pytest.approx(1.959964, abs=1e-6)
    assert math.isnan(stats.t_critical(0.99)) and math.isnan(stats.t_critical(math.nan))
    found = stats.simultaneous(np.eye(2), np.array([1.0, 0.5]))
    assert found[0] == stats.t_critical(1) and math.isnan(found[1])
    assert math.isnan(stats.max_t_critical(np.ones((2, 1)), df=0.5))
    assert stats.max_t_critical(np.ones((2, 1)), df=1) == stats.t_critical(1)


def test_percentiles_leave_half_of_the_rest_outside_on_each_side() -> None:
    draws = np.arange(1001.0)
    assert stats.percentiles(draws) == pytest.approx((25.0, 975.0))
    assert stats.percentiles(draws, 0.9) == pytest.approx((50.0, 950.0))
    found = stats.draws_interval(3.0, draws, 7.0, 8, level=0.8)
    assert (found.value, found.lower, found.upper) == pytest.approx((3.0, 100.0, 900.0))
    assert found.standard_error == pytest.approx(draws.std(ddof=1))


@pytest.mark.parametrize("groups", [2, 11, 12])
def test_sign_flips_are_exact_up_to_twelve_clusters(groups: int) -> None:
    x = np.random.default_rng(groups).normal(0.3, 1, (groups, 2))
    every = np.array(list(product((1, -1), repeat=groups)))
    expected = (abs(every @ x) >= abs(x.sum(axis=0)) - 1e-9).mean(axis=0)
    assert stats.sign_flips(x) == expected.tolist()


def test_above_twelve_clusters_sign_flips_are_drawn_for_each_cluster_alone() -> None:
    x = np.random.default_rng(5).normal(0.4, 1, (13, 1))
    every = np.array(list(product((1, -1), repeat=13)))
    expected = (abs(every @ x) >= abs(x.sum())).mean()
    (found,) = stats.sign_flips(x, resamples=20_500)
    assert found == pytest.approx(expected, abs=0.01)
    assert (found * 20_501) == pytest.approx(round(found * 20_501))


def test_sign_flips_are_the_same_however_few_are_held_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = np.random.default_rng(6).normal(0.15, 1, (77, 3))
    whole = stats.sign_flips(x, resamples=2_003)
    for held in (77 * 100, 77 * 13, 1):
        monkeypatch.setattr(stats, "FLIPPED", held)
        assert stats.sign_flips(x, resamples=2_003) == whole


def test_sign_flips_of_many_items_take_little_memory() -> None:
    x = np.random.default_rng(7).normal(0, 1, (100_000, 1))
    tracemalloc.start()
    stats.sign_flips(x, resamples=600)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # of the items themselves and their clusters' numbers about 100 octets each
    assert most < 9 * stats.FLIPPED + 100 * len(x)


def test_estimates_on_the_same_clusters_share_their_errors() -> None:
    of_x = stats.residuals([1.0, 2.0, 6.0], ["a", "b", "c"])
    of_y = stats.residuals([3.0, 5.0], ["d", "b"])
    assert of_x.sums[2] > 0 and of_y.sums[0] > 0  # c, and b
    errors = stats.joint_errors([(of_x, ["a", "b", "c"]), (of_y, ["d", "b"])])
    assert errors[:, 0].tolist() == [*of_x.sums, 0.0]
    assert errors[:, 1].tolist() == [0.0, of_y.sums[0], 0.0, of_y.sums[1]]
    alone = stats.joint_errors([(stats.residuals([1.0]), ["a"])])
    assert alone.tolist() == [[0.0]]  # one cluster has no known error


def test_what_rounding_leaves_is_no_spread_of_differences_of_large_numbers() -> None:
    values = [0.0, 1e-10, 2e-10]
    assert stats.residuals(values, scale=1000.0).variance == 0
    assert stats.residuals(values).variance > 0
    assert stats.without_rounding(np.array([1e-12, 3e-12]), 2.0).tolist() == [0.0, 3e-12]


def test_every_cluster_is_drawn_alike_and_each_resample_on_its_own() -> None:
    counts = np.concatenate(list(stats.bootstrap_counts(40, 4000, seed=1)))
    assert counts.mean(axis=0) == pytest.approx(np.ones(40), abs=0.08)
    assert counts.var(axis=0).mean() == pytest.approx(1 - 1 / 40, abs=0.03)
    assert len({tuple(row) for row in counts.tolist()}) == 4000
