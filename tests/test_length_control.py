"""Length control against independent formulas, on small made-up judgments."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eval import stats
from eval.scoring import length_control, logistic
from eval.scoring.length_control import CS, DEFAULT_C, Design
from eval.stats import Floats


def made_up(n: int, *, gamed: int = 30, seed: int = 0) -> Design:
    """Judgments that follow length and difficulty, with noise, and gamed rows."""
    rng = np.random.default_rng(seed)
    delta, difficulty = rng.normal(300, 800, n), rng.normal(size=n)
    eta = 1.5 * np.tanh(delta / delta.std()) + 0.8 * difficulty + 0.4
    preference = np.clip(1 / (1 + np.exp(-eta)) + rng.normal(0, 0.15, n), 0, 1)
    rows = (np.tanh(rng.normal(size=gamed)), rng.normal(size=gamed), rng.uniform(size=gamed))
    return Design(delta, difficulty, preference, rows)


def repeated(own: Design, times: list[int]) -> Design:
    return Design(
        np.repeat(own.delta, times),
        np.repeat(own.difficulty, times),
        np.repeat(own.preference, times),
        own.gamed,
    )


@pytest.mark.parametrize("n", [4, 7, 60])
def test_the_score_is_the_mean_prediction_of_the_papers_regression_at_equal_length(n: int) -> None:
    own = made_up(n)
    x = np.array(
        [[math.tanh(d / own.delta.std(ddof=1)), k, 1.0] for d, k in zip(*_two(own), strict=True)]
        + [[length, k, 0.0] for length, k in zip(own.gamed[0], own.gamed[1], strict=True)]
    )
    y = np.concatenate([own.preference, own.gamed[2]])
    weight = np.array([1.0] * n + [0.1] * 30)
    (w,) = logistic.fit((x[:, 0], x[:, 1], x[:, 2]), y, weight, DEFAULT_C)
    eta = [w[1] * difficulty + w[2] for difficulty in own.difficulty]
    expected = 100 * np.mean([1 / (1 + math.exp(-value)) for value in eta])
    assert length_control.point(own) == pytest.approx(expected, abs=1e-9)


def _two(own: Design) -> tuple[Floats, Floats]:
    return own.delta, own.difficulty


def test_a_row_that_is_drawn_twice_counts_like_two_rows() -> None:
    own = made_up(8)
    times = [0, 1, 2, 1, 0, 3, 1, 1]
    drawn = length_control.draws(own, np.array([times, [1] * 8], dtype=np.float64))
    expected = [length_control.point(repeated(own, times)), length_control.point(own)]
    assert drawn == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("n", "seed"), [(12, 0), (12, 1), (90, 2)])
def test_each_value_is_the_score_and_what_a_little_more_weight_on_its_row_adds(
    n: int, seed: int
) -> None:
    own, little = made_up(n, seed=seed), 0.002
    more = length_control.draws(own, 1 + little * np.eye(n))
    less = length_control.draws(own, 1 - little * np.eye(n))
    slope = n * (more - less) / (2 * little)
    found = length_control.items(own)
    assert found.mean() == pytest.approx(length_control.point(own), abs=1e-9)
    assert found - found.mean() == pytest.approx(slope - slope.mean(), abs=2e-3 * slope.std())


def test_a_coefficient_that_the_penalty_holds_at_0_is_pulled_by_no_row() -> None:
    own = made_up(30)
    plain = Design(own.delta, np.zeros(30), own.preference, (np.empty(0),) * 3)
    more = length_control.draws(plain, 1 + 0.002 * np.eye(30))
    less = length_control.draws(plain, 1 - 0.002 * np.eye(30))
    slope = 30 * (more - less) / 0.004
    found = length_control.items(plain)
    assert found - found.mean() == pytest.approx(slope - slope.mean(), abs=2e-3 * slope.std())


def test_the_interval_is_that_of_resampled_instructions_each_fitted_again() -> None:
    own = made_up(50)
    found = length_control.interval(own, resamples=250)
    batches = list(stats.bootstrap_counts(50, 250, seed=0, batch=100))
    drawn = [
        length_control.point(repeated(own, [int(c) for c in counts]))
        for counts in np.concatenate(batches)[:5]
    ]
    assert length_control.draws(own, batches[0])[:5] == pytest.approx(drawn, abs=1e-6)
    every = np.concatenate([length_control.draws(own, batch) for batch in batches])
    assert found.standard_error == pytest.approx(every.std(ddof=1))
    assert (found.df, found.n) == (49, 50)


@pytest.mark.parametrize("seed", range(6))
def test_c_is_the_one_of_least_held_out_loss_in_folds_that_are_dealt_from_the_last_row(
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    n, folds = 23, 4
    x = rng.normal(size=(3, n))
    y = np.clip(1 / (1 + np.exp(-(x[0] - 0.5 * x[1]))) + rng.normal(0, 0.3, n), 0, 1)
    weight = rng.choice([0.1, 1.0], n)
    fold = np.array([place % folds for place in range(n)][::-1])
    losses = []
    for c in CS:
        means = []
        for left_out in range(folds):
            rest, here = fold != left_out, fold == left_out
            (w,) = logistic.fit((x[0][rest], x[1][rest], x[2][rest]), y[rest], weight[rest], c)
            p = 1 / (1 + np.exp(-(w @ x[:, here])))
            loss = -(y[here] * np.log(p) + (1 - y[here]) * np.log(1 - p))
            means.append((weight[here] * loss).sum() / here.sum())
        losses.append(np.mean(means))
    found = length_control.cross_validated_c((x[0], x[1], x[2]), y, weight, folds)
    assert found == CS[int(np.argmin(losses))]
