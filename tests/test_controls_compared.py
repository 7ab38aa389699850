"""What a comparison says of its controls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval import compare
from eval.comparing import controls
from eval.comparing.arms import Family
from eval.comparing.metrics import Control, Declared
from tests.test_compare import scores

CONTROLS = {
    "again": Control("random", None),
    "shuffled-10": Control("random", 0.1),
    "shuffled-30": Control("random", 0.3),
    "shuffled-100": Control("random", 1.0),
}


def compared(
    folder: Path,
    shifts: dict[str, float],
    *,
    known: dict[str, Control] = CONTROLS,
    metric: str = "loss",
    baseline: str | None = "random",
    equivalent: float | None = None,
) -> dict[str, Any]:
    """A comparison of arms whose items lie `shift` above a common value, with noise of 0.1."""
    hard = np.random.default_rng(0).normal(2, 1, 120)
    inputs = {}
    for place, (arm, shift) in enumerate(shifts.items()):
        for seed in (0, 1, 2):
            noise = np.random.default_rng([place, seed]).normal(0, 0.1, len(hard))
            values = {f"q{k}": float(v) for k, v in enumerate(hard + shift + noise)}
            inputs[f"{arm}/{seed}"] = scores(folder / arm / str(seed), values, metric=metric)
    declared = Declared("bench", baseline, known, equivalent=equivalent)
    compare.run(inputs, folder / "out", declared)
    found: dict[str, Any] = json.loads((folder / "out" / "comparison.json").read_text())
    return found


SHIFTS = {"good": -0.2, "random": 0.0, "again": 0.0, "shuffled-10": 0.01}
SHIFTS |= {"shuffled-30": 0.3, "shuffled-100": 1.0}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return compared(tmp_path_factory.mktemp("controlled"), SHIFTS)


def test_the_smallest_share_of_wrong_answers_that_was_detected_is_named(
    found: dict[str, Any],
) -> None:
    (control,) = found["controls"]
    assert control["smallest_detected"] == 0.3 and not control["sees_nothing"]
    assert [row["detected"] for row in control["shuffled"]] == [False, True, True]
    assert control["sentences"][-1] == "bench loss: 30% wrong answers are detected; 10% were not."


def test_a_second_random_sample_ties_and_is_shown_as_an_interval(found: dict[str, Any]) -> None:
    (row,) = found["controls"][0]["negative"]
    assert row["ties"] and row["simultaneous_lower"] < 0 < row["simultaneous_upper"]
    assert "as it should: 0." in found["controls"][0]["sentences"][0]


def test_a_controls_difference_is_the_control_minus_its_arm(found: dict[str, Any]) -> None:
    last = found["controls"][0]["shuffled"][-1]
    assert last["difference"] == pytest.approx(1.0, abs=0.05)
    assert last["simultaneous_lower"] < last["difference"] < last["simultaneous_upper"]


def test_controls_widen_no_interval_of_the_arms_in_question(
    found: dict[str, Any], tmp_path: Path
) -> None:
    asked = {name: SHIFTS[name] for name in ("good", "random")}
    alone = compared(tmp_path, asked)
    (pair,) = found["differences"]
    assert {pair["a"], pair["b"]} == {"good", "random"}
    assert alone["controls"] == []
    widths = [
        p["simultaneous_upper"] - p["simultaneous_lower"] for p in (pair, alone["differences"][0])
    ]
    # all six arms say how much a seed varies, so with controls it is known better
    assert widths[0] <= widths[1] * 1.02


def test_a_design_that_sees_not_even_wrong_answers_says_that_it_sees_nothing(
    tmp_path: Path,
) -> None:
    (control,) = compared(tmp_path, dict.fromkeys(SHIFTS, 0.0))["controls"]
    assert control["sees_nothing"] and control["smallest_detected"] is None
    assert "can see nothing here" in control["sentences"][-1]


def test_a_share_counts_as_detected_only_where_every_larger_one_is(tmp_path: Path) -> None:
    shifts = SHIFTS | {"shuffled-10": 0.5, "shuffled-30": 0.0}
    (control,) = compared(tmp_path, shifts)["controls"]
    assert [row["detected"] for row in control["shuffled"]] == [True, False, True]
    assert control["smallest_detected"] == 1.0


def test_wrong_answers_that_win_are_no_detection(tmp_path: Path) -> None:
    shifts = SHIFTS | {"shuffled-100": -1.0}
    (control,) = compared(tmp_path, shifts)["controls"]
    assert control["sees_nothing"]
    assert any("does not measure what was learnt" in line for line in control["sentences"])


def test_where_higher_is_better_wrong_answers_lose_by_being_lower(tmp_path: Path) -> None:
    shifts = {name: -shift for name, shift in SHIFTS.items()}
    (control,) = compared(tmp_path, shifts, metric="accuracy")["controls"]
    assert control["smallest_detected"] == 0.3


def test_two_random_samples_that_differ_are_said_to(tmp_path: Path) -> None:
    (control,) = compared(tmp_path, SHIFTS | {"again": 0.4})["controls"]
    assert not control["negative"][0]["ties"]
    assert "may be chance as well" in control["sentences"][0]


def test_the_arm_that_controls_are_made_of_may_be_the_baseline_or_not(tmp_path: Path) -> None:
    one = compared(tmp_path / "a", SHIFTS, baseline="random")["controls"][0]["shuffled"]
    two = compared(tmp_path / "b", SHIFTS, baseline="good")["controls"][0]["shuffled"]
    assert [row["difference"] for row in one] == pytest.approx([row["difference"] for row in two])
    for row in [*one, *two]:
        assert row["simultaneous_lower"] < row["difference"] < row["simultaneous_upper"]


def test_a_second_sample_within_what_would_matter_still_ties(tmp_path: Path) -> None:
    found = compared(tmp_path, SHIFTS, equivalent=0.5)
    assert {d["verdict"] for d in found["differences"]} == {"good is better"}
    (row,) = found["controls"][0]["negative"]
    assert row["ties"] and row["verdict"] == "cannot tell"


def test_a_second_sample_called_equal_ties() -> None:
    row = dict.fromkeys(controls.KEPT, 0.0) | {"a": "again", "b": "random"}
    shown = controls.shown(
        Family("bench", "loss", []), [row | {"verdict": "equal within 0.5"}], CONTROLS
    )
    assert shown["negative"][0]["ties"] and "as it should" in shown["sentences"][0]
