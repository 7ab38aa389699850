"""Length control against independent formulas, on small made-up judgments."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.errors import UserError
from eval import stats
from eval.prompt_sets.prompts import text_id
from eval.scoring import alpaca, length_control, logistic
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


@pytest.mark.parametrize("n", [9, 23])
@pytest.mark.parametrize("seed", range(6))
def test_c_is_the_one_of_least_held_out_loss_in_folds_that_are_dealt_from_the_last_row(
    n: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    folds = 4
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


# -- the official rules, and the tables that they need ---------------------------------------------


def judged(n: int, seed: int = 0) -> alpaca.Judged:
    """Judgments of which some have no preference, and some no text."""
    rng = np.random.default_rng(seed)
    length, baseline = rng.integers(100, 3000, (2, n)).astype(float)
    preference = 1 + 1 / (1 + np.exp(-rng.normal((baseline - length) / 800, 1)))
    preference[2] = length[3] = baseline[4] = math.nan
    texts = [f"prompt {k}" for k in range(n)]
    return alpaca.Judged("m", alpaca.BASELINE, texts, preference, length, baseline)


def tables(folder: Path, n: int, gamed: int = 24) -> Path:
    """A folder as AlpacaEval publishes it; the difficulties do not stand in the prompts' order."""
    rng = np.random.default_rng(9)
    lines = [f"{k},{rng.normal()}" for k in reversed(range(n))]
    (folder / "instruction_difficulty.csv").write_text("\n".join([",difficulty", *lines]) + "\n")
    lines = [
        ",".join(map(str, [*rng.normal(size=2).tolist(), rng.uniform()])) for _ in range(gamed)
    ]
    head = "std_delta_len,instruction_difficulty,preference"
    (folder / "df_gamed.csv").write_text("\n".join([head, *lines]) + "\n")
    rows = [{"instruction": f"prompt {k}", "output": f"answer {k}"} for k in range(n)]
    # neither an answer of another model, nor a list without answers
    (folder / "a.json").write_text(json.dumps([{"instruction": "prompt 0"}]))
    (folder / "b.json").write_text(json.dumps([rows[0] | {"generator": "other"}]))
    (folder / "c.json").write_text(json.dumps(rows))
    return folder


def test_the_tables_are_joined_by_the_place_of_each_prompt(tmp_path: Path) -> None:
    reference = length_control.load_reference(tables(tmp_path, 6))
    written = dict(
        line.split(",")
        for line in (tmp_path / "instruction_difficulty.csv").read_text().splitlines()[1:]
    )
    for k in range(6):
        assert (
            reference.positions[k] == reference.difficulty[f"prompt {k}"] == float(written[str(k)])
        )
    gamed = np.loadtxt(tmp_path / "df_gamed.csv", delimiter=",", skiprows=1)
    assert reference.gamed[0] == pytest.approx(np.tanh(gamed[:, 0]))
    assert (reference.gamed[1] == gamed[:, 1]).all() and (reference.gamed[2] == gamed[:, 2]).all()
    assert length_control.tables(tmp_path)[2].name == "c.json"


def test_why_the_tables_do_not_hold_for_prompts_or_a_baseline(tmp_path: Path) -> None:
    folder = tables(tmp_path, 4)
    ids = [text_id(f"prompt {k}") for k in range(4)]
    answers = {name: f"answer {k}" for k, name in enumerate(ids)}
    assert length_control.misfit(folder, ids, answers) == ""
    assert length_control.misfit(folder, ids[:2], {ids[0]: None}) == ""  # what failed says nothing
    said = length_control.misfit(folder, [*ids, "x"], answers)
    assert said == "1 of its 5 prompts are none of AlpacaEval's (the first: x)"
    changed = answers | {ids[1]: "other", ids[2]: None}
    said = length_control.misfit(folder, ids, changed)
    assert said == f"1 of 3 answers of its baseline are not {alpaca.BASELINE}'s"


@pytest.mark.parametrize("n", [7, 40])
def test_the_official_rules_take_difficulty_by_place_and_their_error_from_the_fit(
    n: int, tmp_path: Path
) -> None:
    reference, model = length_control.load_reference(tables(tmp_path, 40)), judged(n)
    delta = model.baseline_length - model.length
    spread = np.std([d for d in delta if not math.isnan(d)], ddof=1)
    rows = [k for k in range(n) if k not in (2, 3, 4)]
    own = [(math.tanh(delta[k] / spread), reference.positions[k], 1.0) for k in rows]
    others = list(zip(reference.gamed[0], reference.gamed[1], [0.0] * 24, strict=True))
    x = np.array(others + own).T
    y = np.concatenate([reference.gamed[2], [model.preference[k] - 1 for k in rows]])
    weight = np.array([0.1] * 24 + [1.0] * len(rows))
    c = length_control.cross_validated_c((x[0], x[1], x[2]), y, weight)
    (w,) = logistic.fit((x[0], x[1], x[2]), y, weight, c)
    predicted = [100 / (1 + math.exp(-(w[1] * reference.positions[k] + w[2]))) for k in range(n)]
    score, error = length_control.official(model, reference)
    assert score == pytest.approx(np.mean(predicted))
    assert error == pytest.approx(np.std(predicted, ddof=1) / math.sqrt(n))


def test_more_rows_than_the_official_rules_know_places_for_are_refused(tmp_path: Path) -> None:
    reference = length_control.load_reference(tables(tmp_path, 12))
    length_control.official(judged(12), reference)
    with pytest.raises(UserError, match="m has 13 rows; the official rules know 12 positions"):
        length_control.official(judged(13), reference)


def test_only_alpacaevals_own_prompts_and_baseline_have_difficulties(tmp_path: Path) -> None:
    reference = length_control.load_reference(tables(tmp_path, 12))
    assert length_control.covers(reference, judged(12))
    assert not length_control.covers(reference, judged(13))
    assert not length_control.covers(reference, replace(judged(12), baseline="other"))
    own = length_control.design(judged(12), reference)
    assert not own.minimal and len(own.delta) == len(own.difficulty) == 9
    assert own.metric == "length_controlled_winrate"
    assert own.preference.tolist() == (judged(12).preference[[0, 1, *range(5, 12)]] - 1).tolist()
    other = length_control.design(judged(13), reference)
    assert other.minimal and other.metric == "length_controlled_minimal"
    assert not other.difficulty.any() and len(other.gamed[0]) == 0
    delta = judged(13).baseline_length - judged(13).length
    assert other.delta.tolist() == delta[[0, 1, *range(5, 13)]].tolist()
