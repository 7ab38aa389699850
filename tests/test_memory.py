"""Memory of a training: states against DeepSpeed's own estimators, activations against published
rows and against peaks that were measured here, what fits, and disk."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from train.config import TrainConfig
from train.sizes import activations, bases
from train.sizes.activations import Pass, traced
from train.sizes.disk import adapter_weights, checkpoint, disk
from train.sizes.fitting import ADAPTER, FOUR_BITS, Machine, changed, remedy, verdict
from train.sizes.memory import (
    GIB,
    LIVE,
    Engine,
    Estimate,
    Held,
    buffers,
    engine_of,
    estimate,
    moments,
    states,
)
from train.sizes.shapes import Shape, counted

LLAMA = 8_030_261_248


def shape(name: str) -> Shape:
    config = bases.known(name)
    assert config is not None
    return counted(config, "table")


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"base": "meta-llama/Meta-Llama-3-8B", **changes})


def full(weights: int) -> Held:
    return Held(2 * weights, weights)


def sum_of(held: Held, engine: Engine, devices: int) -> int:
    found = states(held, engine, devices)
    return found.weights + found.gradients + found.optimizer


# --- states ---


def test_states_follow_the_stages_of_the_zero_paper() -> None:
    # Figure 1: 16 bytes a weight, then 4 + 12/N, 2 + 14/N, 16/N.
    totals = [sum_of(full(1_000), Engine(stage), 10) for stage in range(4)]
    assert totals == [16_000, 5_200, 3_400, 1_600]


def test_stage_2_is_deepspeeds_estimate() -> None:
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as theirs

    found = states(full(LLAMA), Engine(2), 8)
    ours = found.weights + found.gradients + found.optimizer + found.at_step
    assert ours == pytest.approx(theirs(LLAMA, 8, 1, cpu_offload=False)[1], abs=100)
    offloaded = states(full(LLAMA), Engine(2, offload_optimizer=True), 8)
    assert offloaded.weights == theirs(LLAMA, 8, 1, cpu_offload=True)[1]
    assert offloaded.gradients == offloaded.optimizer == offloaded.at_step == 0


def test_stage_3_is_deepspeeds_estimate() -> None:
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as theirs

    layer = 525_336_576

    def beside_the_largest_layer(**where: bool) -> int:
        found: int = theirs(LLAMA, layer, 8, 1, **where)[1]
        return found - 4 * layer

    inside = beside_the_largest_layer(cpu_offload=False, cpu_offload_params=False)
    assert sum_of(full(LLAMA), Engine(3, accumulates=4), 8) == pytest.approx(inside, abs=100)
    weights_inside = beside_the_largest_layer(cpu_offload=True, cpu_offload_params=False)
    assert sum_of(full(LLAMA), Engine(3, True), 8) == pytest.approx(weights_inside, abs=100)
    assert beside_the_largest_layer(cpu_offload=True, cpu_offload_params=True) == 0
    assert sum_of(full(LLAMA), Engine(3, True, True), 8) == 0


def test_fp32_accumulation_doubles_the_gradients_and_needs_no_copy_at_the_step() -> None:
    short, long = states(full(800), Engine(2), 8), states(full(800), Engine(2, accumulates=4), 8)
    assert (short.gradients, short.at_step) == (200, 400)
    assert (long.gradients, long.at_step) == (400, 0)


def test_stage_1_holds_whole_gradients_in_both_formats_unless_added_up_at_once() -> None:
    assert states(full(800), Engine(1, accumulates=4), 8).gradients == 6 * 800
    assert states(full(800), Engine(1, accumulates=4, at_once=True), 8).gradients == 4 * 800


def test_stage_3_copies_one_group_of_gradients_at_the_step() -> None:
    assert states(full(4 * LIVE), Engine(3, accumulates=4), 2).at_step == 4 * LIVE
    assert states(full(LIVE), Engine(3, accumulates=4), 2).at_step == 2 * LIVE


def test_what_is_offloaded_lies_in_cpu_memory() -> None:
    assert states(full(800), Engine(2, True), 8).host == 16 * 100
    assert states(full(800), Engine(3, True, True), 8).host == 18 * 100


def test_fp32_training_has_a_second_copy_from_stage_1_on() -> None:
    held = Held(4 * 800, 800, small=4)
    assert states(held, Engine(0), 1).optimizer == 8 * 800
    assert states(held, Engine(1), 1).optimizer == 12 * 800


def test_an_adapter_alone_has_gradients_and_state() -> None:
    found = states(Held(2 * 1_000, 10), Engine(2), 1)
    assert (found.weights, found.gradients, found.optimizer) == (2_000, 20, 120)


def test_two_buckets_are_there_where_communication_overlaps() -> None:
    given = {"zero_optimization": {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 1_000}}
    engine = engine_of(config(deepspeed=given), 64)
    assert buffers(full(LLAMA), engine, LLAMA) == 2 * 1_000 * 2
    given["zero_optimization"]["overlap_comm"] = False
    assert buffers(full(LLAMA), engine_of(config(deepspeed=given), 64), LLAMA) == 1_000 * 2


def test_a_users_file_says_stage_offload_and_format() -> None:
    zero = {"stage": 3, "offload_param": {"device": "nvme"}, "reduce_bucket_size": "auto"}
    given = {"zero_optimization": zero, "data_types": {"grad_accum_dtype": "fp32"}}
    engine = engine_of(config(deepspeed=given), 64)
    assert (engine.stage, engine.offload_weights, engine.offload_optimizer) == (3, True, False)
    assert (engine.accumulates, engine.bucket) == (4, 64 * 64)


@pytest.mark.parametrize(
    ("optim", "bytes_"),
    [("adamw_torch", 8), ("paged_adamw_8bit", 2), ("lion_32bit", 4), ("lion_8bit", 1), ("sgd", 0)],
)
def test_an_optimizers_state_by_its_name(optim: str, bytes_: int) -> None:
    assert moments(config(trainer={"optim": optim})) == bytes_


# --- activations ---


def test_a_line_through_two_depths_is_what_a_deeper_model_shows() -> None:
    smol = shape("HuggingFaceTB/SmolLM2-135M")
    for recomputed in (0, 1):
        one = Pass(1, 2048, "flash_attention_2", recomputed=recomputed)
        really = activations.trace(activations._configuration(smol.config, 7), one)
        cut = Shape({**smol.config, "num_hidden_layers": 7}, "", 0, 0, 0, 0)
        assert traced(cut, one).peak == pytest.approx(really.peak, rel=0.005)


def test_every_layer_that_is_not_recomputed_keeps_the_same() -> None:
    smol = shape("HuggingFaceTB/SmolLM2-135M")
    kept = [
        traced(smol, Pass(1, 2048, "flash_attention_2", recomputed=every)).peak
        for every in (1, 2, 0)
    ]
    assert kept[1] - kept[0] == pytest.approx(kept[2] - kept[1], rel=0.1)


def test_the_mask_of_packed_rows_costs_memory_where_attention_reads_one() -> None:
    smol = shape("HuggingFaceTB/SmolLM2-135M")
    masked = traced(smol, Pass(1, 4096, "sdpa", recomputed=0)).peak
    positions = traced(smol, Pass(1, 4096, "flash_attention_2", recomputed=0)).peak
    # at least the mask as numbers, in every layer
    assert masked - positions > 30 * 4096 * 4096 * 2


def test_an_adapter_is_traced_with_the_weights_that_peft_trains() -> None:
    smol = shape("HuggingFaceTB/SmolLM2-135M")
    lora = {"r": 8, "target_modules": "all-linear"}
    found = traced(smol, Pass(1, 512, lora=lora))
    assert found.trained == adapter_weights(lora, smol)


# Peaks of real passes of SmolLM2-135M's shape in fp32 on a CPU, by benchmarks/bench_memory.py.
MEASURED = {
    Pass(1, 512, packed=False, half=False): 0.683,
    Pass(1, 1024, packed=False, half=False): 1.238,
    Pass(1, 512, packed=False, half=False, recomputed=0): 1.362,
    Pass(1, 1024, packed=False, half=False, recomputed=2): 1.946,
    Pass(2, 512, packed=True, half=False, recomputed=0): 2.652,
}


@pytest.mark.parametrize("one", MEASURED, ids=str)
def test_the_estimate_is_within_15_percent_of_a_measured_peak(one: Pass) -> None:
    found = traced(shape("HuggingFaceTB/SmolLM2-135M"), one).peak / GIB
    assert found == pytest.approx(MEASURED[one], rel=0.15)


def titan_pass(depth: int) -> int:
    """torchtitan's pass as a fixture, not ours: its head (all logits, cross-entropy in fp32) and
    its policy (attention and every second matrix product are kept, the rest is computed again), 2
    rows of 8,192 tokens of Llama-3.1-8B."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker
    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
    from transformers import AutoModelForCausalLM

    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default

    def contexts() -> Any:
        products: Counter[bool] = Counter()

        def policy(context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
            kept = operator == flash
            if operator == torch.ops.aten.mm.default:
                products[context.is_recompute] += 1
                kept = products[context.is_recompute] % 2 == 1
            return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

        return create_selective_checkpoint_contexts(policy)

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            activations._configuration(shape("meta-llama/Llama-3.1-8B").config, depth),
            attn_implementation="sdpa",
            dtype=torch.bfloat16,
        )
    model.config.use_cache = False
    model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
    model.train()
    with FakeTensorMode():
        activations.materialise(model)
        ids = torch.zeros(2, 8192, dtype=torch.long)
        tracker = MemTracker()
        tracker.track_external(model)
        with tracker:
            logits = model(input_ids=ids).logits.flatten(0, 1).float()
            torch.nn.functional.cross_entropy(logits, ids.flatten()).backward()
        (peak,) = tracker.get_tracker_snapshot("peak").values()
    return activations.beyond_weights(peak)


@pytest.mark.filterwarnings("ignore")
def test_torchtitans_rows_are_within_15_percent_with_its_policy_and_head() -> None:
    # benchmarks/llama3_h100_202412_torchtitan.md: 82.4 GiB on 8 GPUs, 67.0 on 128.
    llama = shape("meta-llama/Llama-3.1-8B")
    passed = activations._at(32, (2, 4), (titan_pass(2), titan_pass(4)))
    # FSDP2 gathers two layers, and the embedding and the head, in bf16
    gathered = 2 * (2 * llama.layer + 2 * 128256 * 4096)
    for devices, published in ((8, 82.4), (128, 67.0)):
        divided = sum_of(Held(4 * LLAMA, LLAMA, small=4), Engine(3), devices) * 16 // 20
        assert (divided + gathered + passed) / GIB == pytest.approx(published, rel=0.15)


# --- what fits ---


def test_llama3_8b_needs_30_to_34_gb_of_states_at_stage_2_on_eight_gpus() -> None:
    for accumulates, gigabytes in ((2, 30), (4, 32)):
        found = sum_of(full(LLAMA), Engine(2, accumulates=accumulates), 8)
        assert found / 1e9 == pytest.approx(gigabytes, abs=0.5)


EIGHT = Machine(8, 80 * GIB)


def packed(**changes: Any) -> TrainConfig:
    trainer = {"max_length": 8192, "per_device_train_batch_size": 1}
    return config(
        model_init={"attn_implementation": "flash_attention_2"},
        **{"trainer": trainer, "zero_stage": 2, **changes},
    )


def test_a_training_that_fits_says_so() -> None:
    line = verdict(packed(), shape("meta-llama/Meta-Llama-3-8B"), EIGHT)
    assert line.startswith("fits: ") and line.endswith(" of 80 GiB a GPU")


@pytest.mark.parametrize(
    ("changes", "machine", "change"),
    [
        ({"checkpointing": "none"}, EIGHT, {"checkpointing": "full"}),
        ({"zero_stage": 0}, EIGHT, {"zero_stage": 1}),
        ({}, Machine(8, 32 * GIB), {"zero_stage": 3}),
        ({}, Machine(1, 80 * GIB), {"zero_stage": 2, "offload": True}),
    ],
)
def test_the_smallest_change_that_fits_is_named(
    changes: dict[str, Any], machine: Machine, change: dict[str, Any]
) -> None:
    llama, given = shape("meta-llama/Meta-Llama-3-8B"), packed(**changes)
    found = remedy(given, llama, machine)
    assert found is not None and found[0] == change
    assert found[1].peak <= machine.room < estimate(given, llama, machine.devices).peak


def test_a_refusal_names_the_override_and_the_gpus() -> None:
    llama = shape("meta-llama/Meta-Llama-3-8B")
    line = verdict(packed(), llama, Machine(1, 80 * GIB))
    assert "train.zero_stage=2 train.offload=true" in line and "4 GPUs as it is" in line


def test_4_bits_hold_the_base_in_less_than_a_third() -> None:
    llama = shape("meta-llama/Meta-Llama-3-8B")

    def needs(**changes: Any) -> Estimate:
        return estimate(changed(packed(), {"lora": ADAPTER, **changes}), llama, 1)

    assert needs().weights / LLAMA == pytest.approx(2, rel=0.05)
    # 6.98 of 8.03 billion weights at 0.516 bytes, the others and the adapter at 2
    assert needs(model_init=FOUR_BITS).weights / 1e9 == pytest.approx(6.0, abs=0.1)


# --- recomputation as a setting ---


@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        ("full", {"gradient_checkpointing": True}),
        ("none", {"gradient_checkpointing": False}),
        (
            "every_3_layers",
            {
                "gradient_checkpointing": True,
                "gradient_checkpointing_kwargs": {"every_n_layers": 3},
            },
        ),
    ],
)
def test_checkpointing_becomes_the_trainers_arguments(said: str, arguments: Any) -> None:
    given = config(checkpointing=said).trainer_arguments()
    assert {key: given[key] for key in arguments} == arguments
    assert "checkpointing" not in given


def test_every_second_layer_is_recomputed_by_the_real_trainer(tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    from tests import tiny

    small = LlamaConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=1, intermediate_size=16,
        vocab_size=2048,
    )  # fmt: skip
    settings = config(checkpointing="every_2_layers", trainer={"packing": False})
    arguments = {
        **settings.trainer_arguments(), "output_dir": str(tmp_path), "max_steps": 1,
        "save_strategy": "no", "use_cpu": True, "bf16": False, "assistant_only_loss": False,
    }  # fmt: skip
    trainer = SFTTrainer(
        model=LlamaForCausalLM(small),
        args=SFTConfig(**arguments),
        train_dataset=Dataset.from_dict({"input_ids": [[1, 2, 3]] * 8, "labels": [[1, 2, 3]] * 8}),
        processing_class=tiny.tokenizer(),
    )
    trainer.train()
    layers = trainer.model.model.layers
    assert [layer.gradient_checkpointing for layer in layers] == [True, False, True, False]


def test_checkpointing_beside_the_trainers_own_is_an_error() -> None:
    with pytest.raises(ValidationError, match="give one of the two"):
        config(checkpointing="full", trainer={"gradient_checkpointing": True})


@pytest.mark.parametrize("said", ["some", "every_0_layers", "every_2"])
def test_other_words_for_checkpointing_are_refused(said: str) -> None:
    with pytest.raises(ValidationError):
        config(checkpointing=said)


# --- disk ---


def test_checkpoints_take_what_was_measured() -> None:
    assert checkpoint(1_000, stage=2, half=True) / 1_000 == pytest.approx(16.3, abs=0.05)
    assert checkpoint(1_000, stage=3, half=True) / 1_000 == pytest.approx(14.3, abs=0.05)


def test_the_8b_recipe_needs_more_than_350_gb_without_a_hub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from train.sizes.disk import peak_disk

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    need = peak_disk(config(zero_stage=3, trainer={"bf16": True}), on_gpu=False)
    assert need is not None and need / 1e9 == pytest.approx(376, abs=2)


def test_an_adapters_checkpoints_are_the_adapters() -> None:
    llama = shape("meta-llama/Meta-Llama-3-8B")
    lora = {"r": 16, "target_modules": ["q_proj", "v_proj"]}
    assert adapter_weights(lora, llama) == 6_815_744
    needs = disk(config(lora=lora), llama, half=True)
    assert needs["checkpoint"] < 0.2e9
    assert needs["peak"] / 1e9 == pytest.approx(48.5, abs=0.3)  # merged in fp32, then exported
