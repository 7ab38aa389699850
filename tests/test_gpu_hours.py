"""The cap on an experiment's GPU hours."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from core.errors import UserError
from core.store import Result
from recipes.schema import Recipe, load
from recipes.stages import checks
from recipes.stages.session import Session, Stage, Trainings


@dataclass
class Walked:
    """What of a session the cap looks at."""

    seconds: list[float]
    made: bool = False
    starts_nothing: bool = False
    trainings: Trainings = field(default_factory=Trainings)

    @property
    def results(self) -> dict[str, Result]:
        return {
            f"train/a/{number}": Result(Path(str(number)), {"seconds": took})
            for number, took in enumerate(self.seconds)
        }

    def find(self, stage: Stage) -> Result | None:
        return Result(Path(), {}) if self.made else None


def recipe(cap: str) -> Recipe:
    return load("llama3-8b-magpie-pro-300k", ["train.num_processes=8", f"gpu_hours={cap}"]).recipe


def check(walked: Walked, cap: str = "20", finished: dict[str, Result] | None = None) -> None:
    stage = Stage("train/b/0", {}, {}, lambda out, log, inputs: {})
    checks.gpu_hours(cast(Session, walked), recipe(cap), stage, finished or {})


def test_a_training_that_would_pass_the_cap_does_not_begin() -> None:
    # two trainings of 1800 s on 8 devices are 8 hours, and a third makes 12
    check(Walked([1800, 1800]), "12.1")
    with pytest.raises(UserError, match=r"2 trainings took 8 of 11.9 GPU hours, and train/b/0"):
        check(Walked([1800, 1800]), "11.9")


def test_the_first_training_may_begin() -> None:
    check(Walked([]), "0.1")


@pytest.mark.parametrize(
    "changes",
    [
        {"made": True},
        {"starts_nothing": True},
        {"trainings": Trainings(finished=True)},
        {"trainings": Trainings(only="a/5")},
    ],
)
def test_what_begins_no_training_is_never_refused(changes: dict[str, Any]) -> None:
    check(Walked([1e6], **changes))


def test_without_a_cap_nothing_is_refused() -> None:
    check(Walked([1e9]), "null")


def test_trainings_that_stand_below_in_the_recipe_count() -> None:
    finished = {f"train/z/{seed}": Result(Path(f"z{seed}"), {"seconds": 1800}) for seed in (0, 1)}
    with pytest.raises(UserError, match=r"3 trainings took 12 of 13 GPU hours"):
        check(Walked([1800]), "13", finished)


def test_attempts_that_were_killed_count_and_a_training_of_two_arms_counts_once() -> None:
    resumed = Result(Path("a"), {"seconds": 60, "counts": {"training_seconds": 3600}})
    loaded = Result(Path("b"), {"seconds": 3600, "counts": {"training_seconds": 60}})
    results = {"train/a/0": resumed, "train/same/0": resumed, "train/b/0": loaded, "pool": loaded}
    assert checks.spent(results, 2) == [2.0, 2.0]
