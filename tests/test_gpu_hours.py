"""The cap on an experiment's GPU hours."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from core.errors import UserError
from core.models import Model
from core.serving import devices
from core.store import Result
from core.tracking import Log
from recipes.schema import Recipe, load
from recipes.stages import checks, graph, training
from recipes.stages.session import Session, Stage, Trainings
from recipes.stages.walk import Arms, Selections
from recipes.verbs.planning.trainings import Hardware, trainings

EIGHT_B = "llama3-8b-magpie-pro-300k"


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
    return load(EIGHT_B, ["train.num_processes=8", f"gpu_hours={cap}"]).recipe


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


# -- where trainings begin -------------------------------------------------------------------------


@dataclass
class Walking(Walked):
    """A session in which every training takes as long, and is begun by being asked for."""

    seconds: list[float] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    log: Log = field(default_factory=Log)

    def done(self, name: str) -> None:
        """Nothing is remembered."""

    def result(self, stage: Stage) -> Result:
        """The training, of half an hour."""
        self.begun.append(stage.name)
        self.seconds.append(1800)
        return Result(Path(stage.name), {"seconds": 1800, "digest": stage.name})


def walk(patch: pytest.MonkeyPatch, cap: str, tokens: Selections, **changes: Any) -> Walking:
    """Come to the trainings of the 8B recipe, whose tokens are made."""
    walked, capped = Walking(**changes), recipe(cap)
    patch.setattr(training, "_all_tokens", lambda *given: tokens)

    def resolve(name: str, revision: str | None) -> Model:
        return Model(name, name, "0")

    given = (capped, Arms.of(capped), {}, {}, resolve)
    try:
        training.stages(cast(Session, walked), *given)
    except UserError as error:
        walked.left_out["refused"] = str(error)
    return walked


def tokens_of(folder: Path) -> tuple[Selections, float]:
    """Tokens of every arm and seed, as many as the recipe states, and the GPU hours that a plan
    says that they take."""
    stated = load(EIGHT_B, [f"store={folder}/store"])
    plan = trainings(stated.recipe, graph.plan(stated), Hardware(gpus=8, gpu_memory=80))
    found: Selections = {}
    for one in plan:
        made = folder / one["arm"]
        made.mkdir()
        ledger = {"trained_rows": one["rows"], "trained_tokens": one["tokens"]}
        (made / "ledger.json").write_text(json.dumps(ledger))
        for seed in range(one["seeds"]):
            found[(one["arm"], seed)] = Result(made, {"digest": one["arm"]})
    return found, sum(one["gpu_hours"] for one in plan)


Made = tuple[Selections, float]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        return tokens_of(tmp_path_factory.mktemp("tokens"))


@pytest.fixture
def patch(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(devices, "name", lambda: "NVIDIA H100 80GB HBM3")
    return monkeypatch


def test_a_run_asks_before_each_training(patch: pytest.MonkeyPatch, made: Made) -> None:
    tokens, _ = made
    patch.setattr(devices, "name", lambda: None)
    walked = walk(patch, "9", tokens)
    assert walked.begun == ["train/magpie-pro/0", "train/magpie-pro/1"]
    assert "2 trainings took 8 of 9 GPU hours" in walked.left_out["refused"]


def test_nothing_begins_where_the_forecast_of_a_plan_is_over_the_cap(
    patch: pytest.MonkeyPatch, made: Made
) -> None:
    tokens, hours = made
    cap = f"{hours - 1:.1f}"
    walked = walk(patch, cap, tokens)
    assert walked.begun == []
    said = walked.left_out["refused"]
    assert f"6 trainings are to take about {hours:.3g} GPU hours (at 40% of the peak" in said
    assert f"and {float(cap):g} are allowed in all" in said
    assert len(walk(patch, f"{hours + 1:.1f}", tokens).begun) == 6


def test_what_is_finished_counts_beside_the_forecast(patch: pytest.MonkeyPatch, made: Made) -> None:
    tokens, hours = made
    finished = [3600.0] * 4  # 8 devices: 32 hours
    walked = walk(patch, f"{hours + 31:.1f}", tokens, seconds=finished)
    assert walked.begun == [] and "beside the 32 of those" in walked.left_out["refused"]


@pytest.mark.parametrize(
    ("device", "changes", "begun"),
    [
        (None, {}, 6),
        ("NVIDIA H100 80GB HBM3", {"trainings": Trainings(only="random/1")}, 1),
    ],
)
def test_of_unknown_gpus_and_of_other_machines_trainings_nothing_is_forecast(
    patch: pytest.MonkeyPatch,
    made: Made,
    device: str | None,
    changes: dict[str, Any],
    begun: int,
) -> None:
    tokens, hours = made
    patch.setattr(devices, "name", lambda: device)
    assert len(walk(patch, f"{hours / 2:.1f}", tokens, **changes).begun) == begun
