"""train/resuming/divergence.py: which steps end a training, which are spikes, and what becomes of
those."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from train.resuming import divergence
from train.resuming.divergence import IN_A_ROW, LEAST, Watch, deviations

CALM = [1.0, 1.1, 0.9, 1.05, 0.95] * 4
"""Median 1, median absolute deviation 0.05: ten of those above is 1.5."""


def watch(policy: Any = "warn", losses: list[float] = CALM, threshold: float = 10.0) -> Watch:
    made = Watch(policy, threshold)
    for loss in losses:
        assert made.loss(loss).do == "go"
        assert made.norm(loss).do == "go"
    return made


def test_a_deviation_counts_from_the_median_in_medians_of_deviations() -> None:
    assert deviations(1.5, CALM) == pytest.approx(10)
    assert deviations(0.5, CALM) == pytest.approx(-10)


def test_earlier_spikes_hide_no_later_one() -> None:
    assert deviations(1.5, [*CALM, 900.0, 900.0]) == pytest.approx(10, rel=0.2)


def test_figures_that_hardly_vary_do_not_make_every_step_a_spike() -> None:
    assert deviations(1.05, [1.0] * LEAST) == pytest.approx(5)  # of 1 % each


@pytest.mark.parametrize("policy", ["warn", "skip", "stop"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_ends_a_training_under_every_setting(policy: Any, value: float) -> None:
    assert Watch(policy, 10).loss(value).do == "stop"
    assert Watch(policy, 10).norm(value).do == "stop"


@pytest.mark.parametrize("policy", ["warn", "skip", "stop"])
def test_a_loss_beyond_the_threshold_is_what_the_setting_says(policy: Any) -> None:
    assert watch(policy).loss(1.49).do == "go"
    verdict = watch(policy).loss(1.51)
    assert verdict.do == policy
    assert "loss 1.51 is 10 median absolute deviations above the running median 1" in verdict.why


def test_a_loss_far_below_is_no_spike() -> None:
    assert watch("stop").loss(0.01).do == "go"


def test_the_first_steps_are_not_judged() -> None:
    assert watch("stop", CALM[: LEAST - 1]).loss(1.9).do == "go"
    assert watch("stop", CALM[:LEAST]).loss(1.9).do == "stop"


@pytest.mark.parametrize(("policy", "done"), [("warn", "warn"), ("skip", "warn"), ("stop", "stop")])
def test_a_gradient_norm_is_never_dropped(policy: Any, done: str) -> None:
    assert watch(policy).norm(1.51).do == done


def test_a_dropped_step_leaves_no_trace_in_the_median() -> None:
    guard, told = watch("skip"), watch("warn")
    for _ in range(IN_A_ROW):
        assert guard.loss(1.9).do == "skip"
    assert guard.state()["losses"] == CALM and guard.skipped == IN_A_ROW
    told.loss(1.9)
    assert told.state()["losses"] == [*CALM, 1.9]


def test_dropping_without_end_ends_the_training() -> None:
    guard = watch("skip")
    for _ in range(IN_A_ROW):
        guard.loss(1.9)
    verdict = guard.loss(1.9)
    assert verdict.do == "stop" and "10 steps in a row that were dropped" in verdict.why


def test_a_good_step_between_dropped_ones_begins_the_count_anew() -> None:
    guard = watch("skip")
    for _ in range(3):
        for _ in range(IN_A_ROW - 1):
            assert guard.loss(1.9).do == "skip"
        assert guard.loss(1.0).do == "go"


def test_ten_steps_at_twice_the_first_loss_end_a_training_whose_figures_are_finite() -> None:
    guard = watch("warn")
    for _ in range(IN_A_ROW - 1):
        assert guard.loss(2.01).do != "stop"
    verdict = guard.loss(2.01)
    assert verdict.do == "stop" and "more than twice the 1 " in verdict.why


def test_a_single_good_step_begins_that_count_anew() -> None:
    guard = watch("warn")
    for _ in range(3):
        for _ in range(IN_A_ROW - 1):
            assert guard.loss(2.01).do != "stop"
        assert guard.loss(1.99).do != "stop"


def test_a_short_training_that_ends_far_above_its_beginning_is_not_exported() -> None:
    short = watch("warn", [5.0, 12.0, 900.0])
    assert short.end().do == "stop"


def test_one_spike_at_the_end_of_a_long_training_does_not_lose_it() -> None:
    guard = watch("warn")
    assert guard.loss(5.0).do == "warn"
    assert guard.end().do == "go"


def test_a_resumed_watch_judges_as_an_unbroken_one() -> None:
    whole = watch("skip")
    whole.loss(1.9)
    resumed = Watch("skip", 10, json.loads(json.dumps(whole.state())))
    later = [*[1.9] * IN_A_ROW, 1.0]
    assert [resumed.loss(loss) for loss in later] == [whole.loss(loss) for loss in later]
    assert resumed.norm(1.6) == whole.norm(1.6) and resumed.skipped == whole.skipped


def test_only_the_last_hundred_steps_count() -> None:
    guard = watch("stop", [1.0, 1.01] * 50)
    for _ in range(100):
        guard.loss(0.5)
    assert guard.loss(0.56).do == "stop", "11 deviations above the last, below the earlier ones"


def test_the_error_names_the_step_and_its_rows_and_the_file_has_all(tmp_path: Path) -> None:
    rows = [f"row-{i}" for i in range(8)]
    said = str(divergence.diverged(tmp_path, 37, "its loss is nan", rows))
    assert "at step 37 (rows row-0, row-1, row-2, row-3, row-4 and 3 more, all in" in said
    written = json.loads((tmp_path / divergence.FILE).read_text())
    assert written == {"step": 37, "why": "its loss is nan", "rows": rows}


def test_a_first_step_without_a_token_that_bears_loss_is_not_what_a_training_began_with() -> None:
    """Its loss is 0, and every later one would be more than twice that."""
    made = watch(losses=[])
    assert made.loss(0.0).do == "go"
    assert [made.loss(5.0 - step / 100).do for step in range(3 * IN_A_ROW)] == ["go"] * 30
