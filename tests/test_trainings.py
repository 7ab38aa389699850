"""Trainings of a recipe one by one, as a cluster's tasks make them, and a comparison of those that
are finished. The training itself is replaced by a copy of its base; tests of real ones are in
test_train_runs.py and test_launch_slurm.py."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.store import Counts
from core.tracking import Log
from recipes import schema
from recipes.stages import graph
from recipes.stages.session import Trainings
from synth.filters.arm import ArmConfig
from tests import small_recipe
from tests.scripted_server import ScriptedServer
from train.config import TrainConfig


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe.model(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(small_recipe.answer) as running:
        yield running


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds that were trained so far, each by copying the base; seed 13 fails."""
    seeds: list[int] = []

    def train(
        config: TrainConfig, inputs: dict[str, Path], out: Path, *, base: str, seed: int, log: Log
    ) -> Counts:
        seeds.append(seed)
        if seed == 13:
            (out / "scratch").mkdir(exist_ok=True)
            (out / "scratch" / "error-0.txt").write_text("the loss diverged at step 3\nmore")
            raise UserError("training failed: the loss diverged at step 3.")
        shutil.copytree(base, out / "checkpoint")
        (out / "checkpoint" / "seed.txt").write_text(str(seed))
        return {"steps": 1}

    monkeypatch.setattr("train.launch.run", train)
    return seeds


def recipe(tmp_path: Path, llama: Path, server: ScriptedServer, **changes: Any) -> schema.Loaded:
    changes = {"train__seeds": [0, 13], "arms__same": None, **changes}
    path = small_recipe.recipe(tmp_path, llama, server.url, train=True, **changes)
    return schema.load(path)


def states(loaded: schema.Loaded) -> dict[str, str]:
    return {step.name: step.state for step in graph.plan(loaded).steps}


def test_a_training_alone_makes_nothing_of_what_it_reads(
    tmp_path: Path, llama: Path, server: ScriptedServer, trained: list[int]
) -> None:
    loaded = recipe(tmp_path, llama, server)
    before = len(server.requests)
    with pytest.raises(UserError, match=r"train/good/0 cannot start .*--until tokens"):
        graph.run(loaded, trainings=Trainings(only="good/0"))
    assert len(server.requests) == before and trained == []


def test_an_unknown_training_names_the_nearest(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    with pytest.raises(UserError, match="called 'goood/0'; did you mean 'good/0'"):
        graph.run(recipe(tmp_path, llama, server), trainings=Trainings(only="goood/0"))


def test_trainings_one_by_one_are_what_a_run_finds(
    tmp_path: Path, llama: Path, server: ScriptedServer, trained: list[int]
) -> None:
    loaded = recipe(tmp_path, llama, server, train__seeds=[0, 1])
    graph.run(loaded, "tokens")
    for run in ("good/0", "random/1"):
        graph.run(loaded, trainings=Trainings(only=run))
    assert trained == [0, 1]
    made = {name: s for name, s in states(loaded).items() if name.startswith("train/")}
    assert made == {
        "train/good/0": "reuse",
        "train/good/1": "run",
        "train/random/0": "run",
        "train/random/1": "reuse",
    }
    graph.run(loaded, "train")
    assert sorted(trained) == [0, 0, 1, 1]


def test_seeds_whose_selection_is_the_same_share_its_tokens(
    tmp_path: Path, llama: Path, server: ScriptedServer, trained: list[int]
) -> None:
    loaded = recipe(tmp_path, llama, server, train__seeds=[0, 1])
    made = graph.run(loaded, "tokens").results
    assert trained == []
    assert {name for name in made if name.startswith("tokens/")} == {
        "tokens/good",
        "tokens/random/0",
        "tokens/random/1",
    }
    other = recipe(tmp_path, llama, server, train__seeds=[0, 1], train__trainer__learning_rate=0.5)
    assert states(other)["tokens/good"] == "reuse"


def test_a_training_of_an_arm_that_reads_the_evaluations_prompts_finds_its_selection(
    tmp_path: Path, llama: Path, server: ScriptedServer, trained: list[int]
) -> None:
    """A plan does not know those prompts, a training that is run alone does."""
    apart = {"where": "eval_overlap < 0.5", "choose": "longest", "budget": {"rows": 10}}
    loaded = recipe(tmp_path, llama, server, arms__apart=apart, synth__tags__decontaminate={})
    graph.run(loaded, "tokens")
    graph.run(loaded, trainings=Trainings(only="apart/0"))
    assert trained == [0]


def test_a_failed_seed_is_left_out_of_the_comparison_which_says_so(
    tmp_path: Path, llama: Path, server: ScriptedServer, trained: list[int]
) -> None:
    loaded = recipe(tmp_path, llama, server, baseline="random")
    graph.run(loaded, "tokens")
    for run in ("good/0", "good/13", "random/0"):
        try:
            graph.run(loaded, trainings=Trainings(only=run))
        except UserError as error:
            assert "diverged" in str(error)
    outcome = graph.run(loaded, trainings=Trainings(finished=True))
    assert trained == [0, 13, 0], "an evaluation of what is finished trains nothing"
    comparison = json.loads((outcome.results["compare"].path / "comparison.json").read_text())
    assert {arm["name"]: arm["seeds"] for arm in comparison["arms"]} == {
        "good": ["0"],
        "random": ["0"],
        "untuned": [],
    }
    assert comparison["notes"][:2] == [
        "good/13 is left out: its training failed (the loss diverged at step 3).",
        "random/13 is left out: its training has not begun.",
    ]
    page = (loaded.recipe.folder / "report.html").read_text()
    assert "good/13 is left out" in page


def test_a_run_whose_baseline_is_left_out_is_scored_and_not_judged(
    tmp_path: Path, llama: Path, server: ScriptedServer, trained: list[int]
) -> None:
    loaded = recipe(tmp_path, llama, server, baseline="random", train__seeds=[0, 1])
    graph.run(loaded, "tokens")
    for run in ("good/0", "good/1", "random/0"):
        graph.run(loaded, trainings=Trainings(only=run))
    outcome = graph.run(loaded, trainings=Trainings(finished=True))
    assert {"judge/alpaca/good/0", "score/good/1"} <= set(outcome.results)
    assert "judge/alpaca/good/1" not in outcome.results
    comparison = json.loads((outcome.results["compare"].path / "comparison.json").read_text())
    assert "good/1 is not judged, because random/1 is left out." in comparison["notes"]


def test_nothing_finished_is_a_sentence(
    tmp_path: Path, llama: Path, server: ScriptedServer, trained: list[int]
) -> None:
    loaded = recipe(tmp_path, llama, server)
    graph.run(loaded, until="tokens")
    with pytest.raises(UserError, match="none of 4 trainings is finished"):
        graph.run(loaded, trainings=Trainings(finished=True))
    assert trained == []


def test_an_evaluation_of_what_is_trained_makes_no_data(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    before = len(server.requests)
    with pytest.raises(UserError, match=r"instructions is not made .* --until tokens` first"):
        graph.run(recipe(tmp_path, llama, server), trainings=Trainings(finished=True))
    assert len(server.requests) == before


def test_the_cap_on_gpu_hours_counts_what_is_finished_below_a_new_arm(
    tmp_path: Path, llama: Path, server: ScriptedServer, trained: list[int]
) -> None:
    loaded = recipe(tmp_path, llama, server, train__seeds=[0])
    graph.run(loaded, "train")
    first = ArmConfig.model_validate({"choose": "longest", "budget": {"rows": 3}})
    new = {"first": first, **loaded.recipe.arms}
    capped = loaded.recipe.model_copy(update={"arms": new, "gpu_hours": 1e-9})
    with pytest.raises(UserError, match=r"gpu_hours: [1-9]\d* trainings took .* train/first/0"):
        graph.run(replace(loaded, recipe=capped), "train")
