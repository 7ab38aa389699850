"""What `magpie plan` and `magpie memory` say of trainings before they are paid for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from recipes.schema import Loaded, load
from recipes.stages import graph
from recipes.verbs.planning.trainings import Hardware, lines, trainings
from recipes.verbs.readiness import memory
from train.config import DpoConfig, TrainConfig
from train.sizes.published import beside
from train.sizes.schedule import hours, peak_of, schedule
from train.sizes.shapes import counted, shape_of

EIGHT_B = "llama3-8b-magpie-pro-300k"


def config(**changes: Any) -> TrainConfig:
    trainer = {"max_length": 8192, "per_device_train_batch_size": 1, "num_train_epochs": 2}
    given = {"base": "some/base", "tokens_per_step": 262_144, "trainer": trainer}
    return TrainConfig.model_validate({**given, **changes})


def test_the_papers_run_is_826_steps_an_epoch_give_or_take_what_packs_leave_empty() -> None:
    planned = schedule(config(), 300_000, 216_000_000, 8)
    assert planned.steps_per_epoch == pytest.approx(826, rel=0.01)
    assert planned.steps == 2 * planned.steps_per_epoch
    assert (planned.sequences_per_step, planned.accumulation, planned.empty) == (32, 4, 0)


def test_a_number_of_gpus_that_does_not_divide_a_step_leaves_some_without_rows() -> None:
    planned = schedule(config(), 300_000, 216_000_000, 6)
    assert (planned.sequences_per_step, planned.accumulation, planned.empty) == (32, 6, 4)


def test_hours_count_devices_that_wait_for_others() -> None:
    shape = shape_of("meta-llama/Meta-Llama-3-8B")
    peak = peak_of("H100") * 0.4
    six, eight = (schedule(config(), 300_000, 216_000_000, count) for count in (6, 8))
    waited = hours(config(), shape, six, 720, peak) / hours(config(), shape, eight, 720, peak)
    assert waited == pytest.approx(36 / 32)


def test_8b_at_6667_tokens_a_second_and_gpu_takes_18_gpu_hours() -> None:
    # 432 million tokens at torchtitan's compiled rate; its attention is over 8,192 tokens
    shape = shape_of("meta-llama/Meta-Llama-3-8B")
    planned = schedule(config(), 300_000, 216_000_000, 8)
    spent = hours(config(), shape, planned, 4096, peak_of("H100") * 0.39)
    assert spent == pytest.approx(432e6 / 6_667 / 3600, rel=0.15)


def test_an_adapter_takes_two_thirds_of_the_products() -> None:
    shape = shape_of("meta-llama/Meta-Llama-3-8B")
    planned = schedule(config(), 300_000, 216_000_000, 8)
    full, frozen = config(), config(lora={"r": 8})
    ratio = hours(frozen, shape, planned, 0, 1e15) / hours(full, shape, planned, 0, 1e15)
    assert ratio == pytest.approx(2 / 3)


def test_without_packing_a_sequence_is_a_row_and_warm_up_may_be_a_share() -> None:
    trainer = {
        "packing": False, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3,
        "num_train_epochs": 1, "warmup_ratio": 0.1,
    }  # fmt: skip
    planned = schedule(config(tokens_per_step=None, trainer=trainer), 100, 20_000, 4)
    assert (planned.sequences, planned.sequences_per_step) == (100, 24)
    assert (planned.steps, planned.warmup, planned.tokens_per_step) == (5, 1, 4_800)


@pytest.mark.parametrize(
    ("trainer", "steps", "warmup"),
    [
        ({}, 15, 0),
        ({"warmup_steps": 3}, 15, 3),
        ({"warmup_steps": 1}, 15, 1),
        ({"warmup_steps": 0.1}, 15, 2),
        ({"warmup_ratio": 0.5}, 15, 8),
        ({"num_train_epochs": 1.5}, 8, 0),
        ({"max_steps": 7, "warmup_ratio": 0.5}, 7, 4),
        ({"max_steps": 1}, 1, 0),
        ({"max_steps": 0}, 15, 0),
        ({"max_steps": -1}, 15, 0),
    ],
)
def test_steps_and_warm_up_are_those_of_the_trainer(
    trainer: dict[str, Any], steps: int, warmup: int
) -> None:
    set_up = {"packing": False, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3,
              "num_train_epochs": 3, "warmup_ratio": 0, "warmup_steps": 0}  # fmt: skip
    planned = schedule(config(tokens_per_step=None, trainer=set_up | trainer), 100, 20_000, 4)
    assert (planned.steps, planned.warmup) == (steps, warmup)
    assert planned.trained_tokens == round(20_000 * steps / 5)


def test_a_trainer_that_names_no_warm_up_has_none() -> None:
    assert schedule(config(), 300_000, 216_000_000, 8).warmup == 0


@pytest.mark.parametrize(("lora", "part"), [(None, 1 / 3), ({"r": 8}, 1 / 2)])
def test_a_dpo_adds_one_pass_forward_of_the_reference_over_all_pairs(
    lora: dict[str, Any] | None, part: float
) -> None:
    shape = shape_of("meta-llama/Meta-Llama-3-8B")
    trainer = {"per_device_train_batch_size": 1, "num_train_epochs": 2}
    dpo = DpoConfig(pairs_per_step=8, trainer=trainer, lora=lora)
    planned = schedule(dpo, 800, 800_000, 8)
    assert (planned.steps_per_epoch, planned.steps, planned.empty) == (100, 200, 0)
    plain = hours(config(lora=lora), shape, planned, 300, 1e15)
    assert hours(dpo, shape, planned, 300, 1e15) == pytest.approx(plain * (1 + part / 2))


def test_a_device_that_the_table_does_not_have_is_a_sentence() -> None:
    with pytest.raises(UserError, match="--gpu H900: no such device"):
        peak_of("H900")


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    store = tmp_path_factory.mktemp("store")
    return load(EIGHT_B, [f"store={store}"])


@pytest.fixture(scope="module")
def planned(offline: Loaded) -> list[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        return trainings(offline.recipe, graph.plan(offline), Hardware())


def test_the_8b_recipe_says_everything_without_a_hub(planned: list[dict[str, Any]]) -> None:
    first = planned[0]
    assert (first["arm"], first["seeds"], first["rows"]) == ("magpie-pro", 3, 300_000)
    assert (first["said"], first["gpus"], first["warmup"]) == ("stated", 8, 100)
    assert first["memory"].startswith("fits: ")
    assert first["disk_bytes"] > 350e9
    assert first["hours_of_all_seeds"] == pytest.approx(3 * first["hours"])


def test_an_arm_may_state_other_rows_than_the_recipe(planned: list[dict[str, Any]]) -> None:
    assert [(one["arm"], one["tokens"]) for one in planned] == [
        ("magpie-pro", 216_000_000),
        ("random", 143_400_000),
    ]


def test_a_reader_is_told_that_rows_and_speed_are_stated(planned: list[dict[str, Any]]) -> None:
    text = "\n".join(lines(planned, Hardware()))
    assert "216,000,000 tokens an epoch (stated)" in text
    assert "of its peak (stated)" in text


def test_what_a_recipe_expects_moves_no_key(offline: Loaded) -> None:
    without = load(EIGHT_B, [f"store={offline.recipe.store}", "expected=null"])
    paths = [[step.path for step in graph.plan(one).steps] for one in (offline, without)]
    assert paths[0] == paths[1]


def test_rows_of_a_ledger_stand_in_place_of_what_is_stated(offline: Loaded) -> None:
    from recipes.stages.session import Step
    from recipes.verbs.planning.trainings import _work

    folder = Path(offline.recipe.store) / "train" / "KEY.partial"
    folder.mkdir(parents=True)
    counted = {"trained_rows": 7, "trained_tokens": 70}
    (folder / "ledger.json").write_text(json.dumps(counted))
    step = Step("train/magpie-pro/0", "run", "", folder.with_name("KEY"))
    found = _work(offline.recipe, "magpie-pro", [step.path])
    assert (found.rows, found.tokens, found.said) == (7, 70, "counted")


def test_memory_of_the_8b_recipe_lists_stages_and_adapters_and_fits(
    offline: Loaded, capsys: pytest.CaptureFixture[str]
) -> None:
    assert memory.main(offline.recipe, 8, 80, as_json=True) == 0
    said = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in said["rows"]}
    assert said["verdict"].startswith("fits: ")
    assert sum("ZeRO-" in name for name in rows) >= 4 * 3
    peaks = [rows[f"full, ZeRO-{stage}, checkpointing full"]["peak"] for stage in range(4)]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == 4
    assert not rows["full, ZeRO-0, checkpointing full"]["fits"]


def test_memory_of_what_does_not_fit_ends_with_1_and_the_change(
    offline: Loaded, capsys: pytest.CaptureFixture[str]
) -> None:
    assert memory.main(offline.recipe, 8, 16, as_json=False) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("does not fit: ") and "train." in last


def test_gpus_are_never_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    recipe = load(EIGHT_B, ["expected=null"]).recipe
    with pytest.raises(UserError, match="--gpus is needed"):
        memory.machine(recipe, None, 80)


def test_a_shape_that_cannot_be_traced_is_a_sentence() -> None:
    from train.sizes.activations import Pass, traced

    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 4}
    config |= {"num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 64}
    shape = counted(config, "test")
    assert math.isclose(shape.layers, 4)
    with pytest.raises(UserError, match="cannot be traced"):
        traced(shape, Pass(1, 64, lora={"target_modules": ["nonesuch"]}))


def test_an_arm_that_goes_on_by_dpo_is_forecast_in_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loaded = load("llama3-8b-magpie-pro-dpo", [f"store={tmp_path}/store"])
    planned = trainings(loaded.recipe, graph.plan(loaded), Hardware())
    (dpo,) = [one for one in planned if one["arm"] == "magpie-pro-dpo"]
    assert (dpo["rows"], dpo["steps"], dpo["accumulation"]) == (100_000, 782, 8)
    assert dpo["memory"].startswith("fits: ")
    told = "\n".join(lines([dpo], Hardware()))
    assert "100,000 pairs, 95,600,000 tokens an epoch (stated)" in told
    assert "128 pairs, 8 passes a device" in told
    # 6 N a token forward and backward, 2 N for the reference, and attention
    spent = 95.6e6 * 8 * 7.5e9 / (989.5e12 * 0.4) / 3600
    assert spent < dpo["hours"] * 8 < 1.1 * spent


def test_a_dpo_of_a_finished_model_is_forecast_by_that_model(tmp_path: Path) -> None:
    pairs = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 8
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    model = "embedded/SmolLM2-135M-Instruct"
    arms = {"m": {"model": model}, "d": {"dpo": "m", "data": str(tmp_path / "pairs.jsonl")}}
    said = {
        "name": "only-dpo",
        "synth": {"teacher": {"model": model}, "rows": 8},
        "random_arm": False,
        "arms": arms,
        "dpo": {"chat_template_path": "chatml", "pairs_per_step": 8},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(said))
    loaded = load(tmp_path / "recipe.yaml", [f"store={tmp_path}/store"])
    (planned,) = trainings(loaded.recipe, graph.plan(loaded), Hardware(gpus=1, gpu_memory=80))
    assert (planned["arm"], planned["method"]) == ("d", "dpo")
    assert planned["weights"] == shape_of(model).weights and planned["memory"].startswith("fits")


def test_pairs_that_devices_cannot_share_are_refused_by_the_plan() -> None:
    dpo = DpoConfig(pairs_per_step=128, trainer={"per_device_train_batch_size": 2})
    with pytest.raises(UserError, match="no multiple of the 6 pairs that 3 device"):
        schedule(dpo, 1000, 1_000_000, 3)


def test_peaks_that_others_published_stand_beside_the_estimate() -> None:
    of_torchtune = {
        peak.method: peak.gib
        for peak in beside("meta-llama/Meta-Llama-3-8B-Instruct")
        if "torchtune" in peak.source
    }
    assert of_torchtune == {"full": 37.4, "LoRA": 30.3, "QLoRA": 7.4}
    assert beside("Qwen/Qwen2.5-7B") == beside("not/known") == []


def test_a_plan_takes_no_more_than_an_epoch_a_step() -> None:
    planned = schedule(config(tokens_per_step=1_048_576), 100, 100_000, 8)
    assert planned.steps_per_epoch == 1 and planned.trained_tokens == 200_000


def test_a_plan_refuses_what_the_training_would() -> None:
    with pytest.raises(UserError, match="of the work would be idle"):
        schedule(config(tokens_per_step=20_000), 300_000, 216_000_000, 32)
