"""What stages need of a machine, the recipe that fits one, and rows that rules refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from core.errors import UserError
from recipes import schema
from recipes.cli import app
from recipes.verbs import refusals
from recipes.verbs.readiness import doctor, first_recipe, needs, serving
from recipes.verbs.readiness.needs import Model, Place
from synth.filters.where import parse
from synth.measures import SHIPPED
from train.sizes.memory import GIB
from train.sizes.shapes import Shape, shape_of

LLAMA_8B, LLAMA_70B = "meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-70B-Instruct"
LAPTOP = Place(0, None, 24 * GIB, False)
NODE = Place(8, 80 * GIB, 64 * GIB, True)


def llama() -> Shape:
    return shape_of(LLAMA_8B)


def test_a_server_holds_its_weights_and_one_sequence() -> None:
    need = serving.served(llama(), {"max_model_len": 8192})
    assert need.ranks == 1
    assert need.weights / GIB == pytest.approx(8.03e9 * 2 / GIB, rel=0.01)
    # 32 layers x 8 heads x 128 x (keys and values) x 2 bytes = 128 KiB a token
    assert need.cache == 8192 * 128 * 1024


@pytest.mark.parametrize(
    ("args", "share", "cache"),
    [
        ({"tensor_parallel_size": 2}, 2, 2),
        ({"pipeline_parallel_size": 4}, 4, 4),
        ({"tensor_parallel_size": 16}, 16, 8),  # 8 heads of keys: two GPUs hold the same one
        ({"data_parallel_size": 2}, 1, 1),
        ({"quantization": "fp8"}, 2, 1),
        ({"dtype": "float32"}, 0.5, 1),
        ({"kv_cache_dtype": "fp8"}, 1, 2),
    ],
)
def test_what_makes_a_server_smaller(args: dict[str, Any], share: float, cache: float) -> None:
    whole = serving.served(llama(), {"max_model_len": 1024})
    part = serving.served(llama(), {"max_model_len": 1024, **args})
    assert part.weights == pytest.approx(whole.weights / share)
    assert part.cache == pytest.approx(whole.cache / cache)


def test_a_server_fits_what_vllm_may_use_and_not_more() -> None:
    need = serving.served(llama(), {"max_model_len": 8192, "gpu_memory_utilization": 0.5})
    assert need.fits(int(need.needs / 0.5) + 1)
    assert not need.fits(int(need.needs / 0.5) - 1)


@pytest.mark.parametrize(
    ("model", "gpus", "memory", "size"),
    [
        (LLAMA_8B, 1, 24, 1),
        (LLAMA_70B, 8, 80, 2),
        (LLAMA_70B, 8, 40, 4),
        (LLAMA_70B, 1, 80, None),
        (LLAMA_70B, 3, 40, None),
    ],
)
def test_the_least_tensor_parallel_size(
    model: str, gpus: int, memory: int, size: int | None
) -> None:
    found = serving.smallest(shape_of(model), {"max_model_len": 8192}, gpus, memory * GIB)
    assert found == size


def states(model: str, where: Place, **args: Any) -> tuple[str, str]:
    (check,) = needs.of_servers([Model("synth.teacher", model, None, {"args": args})], where)
    return check.state, check.advice


def test_a_large_teacher_is_not_for_a_laptop() -> None:
    state, advice = states(LLAMA_70B, LAPTOP, max_model_len=8192)
    assert state == "fail" and "--gpus 8 --gpu-memory 80" in advice


def test_a_teacher_that_is_not_split_is_told_how() -> None:
    assert states(LLAMA_70B, NODE, max_model_len=8192) == (
        "fail",
        "set synth.teacher.server.args.tensor_parallel_size=2",
    )
    assert states(LLAMA_70B, NODE, max_model_len=8192, tensor_parallel_size=4) == ("ok", "")


def test_a_teacher_that_fits_no_size_is_told_what_else() -> None:
    one = Place(1, 80 * GIB, 64 * GIB, True)
    assert "quantization=fp8" in states(LLAMA_70B, one, max_model_len=4096)[1]
    tiny = Place(1, 8 * GIB, 64 * GIB, True)
    assert "more or larger GPUs" in states(LLAMA_70B, tiny, max_model_len=4096)[1]


def test_more_replicas_than_gpus_fail() -> None:
    server = {"replicas": 9, "args": {"max_model_len": 4096}}
    (check,) = needs.of_servers([Model("synth.teacher", LLAMA_8B, None, server)], NODE)
    assert check.state == "fail" and "replicas" in check.advice


def test_the_8b_recipe_is_refused_on_a_laptop() -> None:
    recipe = schema.load("llama3-8b-magpie-pro-300k").recipe
    assert recipe.train is not None
    (check,) = needs.of_training(recipe.train, LAPTOP)
    assert check.state == "fail" and "119.7 GiB" in check.what


def test_the_demo_fits_a_laptop() -> None:
    recipe = schema.load("demo").recipe
    assert recipe.train is not None
    checks = [
        *needs.of_servers(doctor.serves(recipe), LAPTOP),
        *needs.of_training(recipe.train, LAPTOP),
    ]
    assert {check.state for check in checks} == {"ok"}
    assert len(checks) == 2  # one model and one server's block, wherever it is asked


def test_more_processes_than_gpus_fail() -> None:
    config = schema.load("llama3-8b-magpie-pro-300k", ["train.num_processes=16"]).recipe.train
    assert config is not None
    (check,) = needs.of_training(config, NODE)
    assert check.state == "fail" and "train.num_processes=8" in check.advice


def test_another_machine_is_stated_whole() -> None:
    assert needs.place(8, 80.0) == Place(8, 80 * GIB, needs.place(8, 80.0).ram, True)
    if not needs.gpus():
        with pytest.raises(UserError, match="--gpu-memory GIB is needed"):
            needs.place(8, None)
        with pytest.raises(UserError, match="--gpus N is needed"):
            needs.place(None, 80.0)


# -- init ------------------------------------------------------------------------------------------


def test_a_first_recipe_without_a_gpu_is_loaded_and_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "my first.yaml"
    result = CliRunner().invoke(app, ["init", str(path)])
    assert result.exit_code == 0, result.output
    recipe = schema.load(path).recipe
    assert recipe.name == "my-first" and set(recipe.arms) == {"good", "random"}
    with pytest.raises(UserError, match="exists already"):
        first_recipe.write(path, LAPTOP)
    with pytest.raises(UserError, match=r"ends with \.yaml"):
        first_recipe.write(tmp_path / "recipe.txt", LAPTOP)


@pytest.mark.parametrize(
    ("gpus", "memory", "teacher", "split"),
    [
        (8, 80, "Qwen/Qwen2.5-72B-Instruct", 4),
        (1, 80, "Qwen/Qwen2.5-14B-Instruct", None),
        (1, 24, "Qwen/Qwen2.5-7B-Instruct", None),
    ],
)
def test_a_first_recipe_for_gpus_takes_what_fits_them(
    gpus: int, memory: int, teacher: str, split: int | None, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(first_recipe, "_base", lambda *_: ("Qwen/Qwen2.5-7B", 2, gpus == 1))
    first_recipe.write(tmp_path / "r.yaml", Place(gpus, memory * GIB, 64 * GIB, True))
    recipe = schema.load(tmp_path / "r.yaml").recipe
    assert recipe.synth.teacher.model == teacher
    assert recipe.synth.teacher.server["args"].get("tensor_parallel_size") == split
    assert recipe.train is not None and (recipe.train.lora is not None) == (gpus == 1)
    assert recipe.expected is not None and recipe.expected.gpu_memory == memory


@pytest.mark.slow
def test_a_first_recipes_base_fits_by_the_estimate_of_memory() -> None:
    assert first_recipe._base(8, 80 * GIB) == ("Qwen/Qwen2.5-7B", 2, False)
    assert first_recipe._base(1, 80 * GIB) == ("Qwen/Qwen2.5-7B", 2, True)


@pytest.mark.slow
def test_a_first_recipes_training_is_taken_by_trl(tmp_path: Path) -> None:
    from train.settings import arguments

    for name, where in (("cpu", LAPTOP), ("gpu", NODE)):
        first_recipe.write(tmp_path / f"{name}.yaml", where)
        config = schema.load(tmp_path / f"{name}.yaml").recipe.train
        assert config is not None
        arguments.check(config)


# -- why a row was refused -------------------------------------------------------------------------


GOOD, EITHER = "input_quality = 'good'", "instruct_reward > 2 OR input_quality = 'good'"
POOR = {"input_quality": "poor"}


@pytest.mark.parametrize(
    ("where", "row", "said"),
    [
        (
            "instruct_reward > 2.8",
            {"instruct_reward": 2.6591},
            "instruct_reward 2.659 is not > 2.8",
        ),
        ("input_quality >= 'good'", POOR, "input_quality 'poor' is not >= 'good'"),
        ("language IN ('en', 'de')", {"language": "fr"}, "language 'fr' is not IN ('en', 'de')"),
        (
            EITHER,
            {"instruct_reward": 1.0, **POOR},
            f"{EITHER} is not true: input_quality is 'poor', instruct_reward is 1",
        ),
        (
            f"NOT {GOOD}",
            {"input_quality": "good"},
            f"NOT {GOOD} is not true: input_quality is 'good'",
        ),
        ("instruct_reward > 2.8", {}, "instruct_reward > 2.8 is not true"),
    ],
)
def test_a_refused_row_is_said_with_its_own_value(
    where: str, row: dict[str, Any], said: str
) -> None:
    (predicate,) = parse(where, SHIPPED.fields).predicates()
    assert refusals.of_predicate(predicate, row) == said


def test_a_row_that_others_came_before_says_how_many(tmp_path: Path) -> None:
    funnel = tmp_path / "funnel.json"
    assert refusals.sentence("not chosen", None, None, funnel) == "not chosen"
    funnel.write_text(json.dumps({"chosen": 10, "allowed": 14, "choose": "longest"}))
    assert refusals.sentence("not chosen", None, None, funnel) == (
        "not chosen: 10 of 14 rows filled the budget before it, by longest"
    )


def test_a_row_without_a_response_was_never_answered(tmp_path: Path) -> None:
    assert refusals.sentence("response failed", None, None, tmp_path) == "it was never answered"
