"""Settings that contradict each other, one a row: each is refused before anything starts, in a
sentence that names where."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from recipes.schema import Source
from recipes.stages import checks
from train.config import TrainConfig
from train.settings import arguments, kernels, machine

Changes = dict[str, Any]


def json_of(**changes: Any) -> Changes:
    """A DeepSpeed configuration of one's own that says what the trainer says, with `changes`
    (SECTION__KEY for one within a section; ... takes the section out)."""
    own: dict[str, Any] = {
        "bf16": {"enabled": "auto"},
        "zero_optimization": {"stage": 2},
        "gradient_clipping": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if value is ...:
            del own[section]
        elif key:
            own[section] = {**own.get(section, {}), key: value}
        else:
            own[section] = value
    return {"deepspeed": own}


def trainer(**settings: Any) -> Changes:
    return {"trainer": settings}


FOUR_BIT = {"quantization_config": {"load_in_4bit": True}}

TABLE: list[tuple[Changes, str]] = [
    # a DeepSpeed JSON of one's own against the trainer's arguments
    (json_of(gradient_clipping=...), "no gradient is clipped, and trainer.max_grad_norm is 1.0"),
    (json_of(checkpoint=None), "section 'checkpoint' is an object in braces, not null; "),
    (json_of(checkpoint=["load_universal"]), "section 'checkpoint' is an object in braces"),
    (json_of(data_types=None), "section 'data_types' is an object in braces, not null; "),
    (json_of(checkpoint__load_universal=True), "checkpoint.load_universal: .* remove it"),
    (json_of(gradient_clipping=0.5), "gradient_clipping=0.5, trainer has max_grad_norm=1.0"),
    (
        json_of(optimizer={"type": "AdamW", "params": {"lr": 1e-3}}),
        "optimizer.params.lr=0.001, trainer has learning_rate=2e-05",
    ),
    (
        {**json_of(optimizer={"type": "AdamW"}), **trainer(optim="adafactor")},
        "its optimizer takes the place of trainer.optim: 'adafactor'",
    ),
    (
        {**json_of(scheduler={"type": "WarmupLR"}), **trainer(lr_scheduler_type="cosine")},
        "its scheduler takes the place of trainer.lr_scheduler_type",
    ),
    (
        json_of(train_micro_batch_size_per_gpu=4),
        "per_gpu=4, trainer has per_device_train_batch_size=8",
    ),
    (json_of(gradient_accumulation_steps=4), "=4, trainer has gradient_accumulation_steps=1"),
    (
        {**json_of(gradient_accumulation_steps=4), "tokens_per_step": 4096},
        "4 beside train.tokens_per_step",
    ),
    (json_of(train_batch_size=64), "holds for one number of processes"),
    ({**json_of(train_batch_size=64), "num_processes": 2}, r"=64, trainer has train_batch_size"),
    (
        {**json_of(bf16__enabled=True), **trainer(bf16=False)},
        r"bf16.enabled=True, trainer has bf16",
    ),
    ({**json_of(bf16__enabled=False), **trainer(bf16=True)}, r"bf16.enabled=False, trainer has"),
    ({**json_of(fp16__enabled=True, bf16=...), **trainer(bf16=True)}, "fp16.enabled=True, trainer"),
    (json_of(fp16__enabled=True, bf16__enabled=True), "bf16 and fp16 are both enabled"),
    (
        json_of(gradient_cliping="auto"),
        "no section 'gradient_cliping'; did you mean 'gradient_clipping",
    ),
    (json_of(zero_optimization__stge=2), "stge"),
    (json_of(zero_optimization__stage=4), "stage"),
    (json_of(bf16__enable=True), "enable"),
    (json_of(zero_optimization__stage=3), "stage3_gather_16bit_weights_on_model_save"),
    (
        json_of(zero_optimization__offload_param={"device": "cpu"}),
        "offload_param is passed over at stage 2",
    ),
    (
        json_of(
            zero_optimization={"stage": 0, "offload_optimizer": {"device": "cpu"}},
        ),
        "offload_optimizer is passed over at stage 0",
    ),
    (
        json_of(
            zero_optimization={"stage": 0},
            bf16__enabled=True,
            data_types={"grad_accum_dtype": "fp32"},
        ),
        "at stage 0 DeepSpeed does not add up bf16 gradients in fp32",
    ),
    (
        json_of(activation_checkpointing={"partition_activations": True}),
        "use trainer.gradient_checkpointing",
    ),
    (json_of(tensor_parallel={"autotp_size": 2}), "a device holds whole layers here"),
    (json_of(amp={"enabled": True}), "apex is not used"),
    # the trainer's arguments
    (trainer(dataset_kwargs={"skip_prepare_dataset": True}), "packed before the training"),
    (trainer(bf16=True, fp16=True), "bf16 and fp16 are both true"),
    (trainer(save_only_model=True), "cannot be resumed from"),
    (trainer(ignore_data_skip=True), "train on its first rows again"),
    (trainer(average_tokens_across_devices=False), "a token would weigh more"),
    (trainer(auto_find_batch_size=True), "the packs of a step are fixed"),
    (trainer(dataloader_drop_last=True), "packs that bear no loss fill"),
    (trainer(accelerator_config={"split_batches": True}), "dealt to the devices"),
    (trainer(train_sampling_strategy="group_by_length"), "an order of its own"),
    (trainer(push_to_hub=True), "publish unfinished checkpoints"),
    (trainer(fsdp="full_shard"), "the engine is DeepSpeed"),
    (trainer(use_liger_kernel=True), "use_kernels: true"),
    (trainer(trust_remote_code=True), "no code of its own"),
    (trainer(completion_only_loss=True), "use assistant_only_loss"),
    (trainer(truncation_mode="keep_end"), "the beginning of a row is kept"),
    (trainer(eos_token="<|im_end|>"), "that of the chat template"),
    (trainer(lr_scheduler_type="constant", warmup_steps=10), "use constant_with_warmup"),
    (trainer(optim_args="rank=64"), "optim is not given"),
    (
        trainer(
            gradient_checkpointing=False, gradient_checkpointing_kwargs={"use_reentrant": True}
        ),
        "that none is",
    ),
    # the base and its adapter
    ({"lora": {"r": 8, "target_modules": ["q_proj", "lm_head"]}}, "adapter on lm_head"),
    ({"lora": {"r": 8, "target_modules": ".*(q_proj|lm_head)"}}, "adapter on lm_head"),
    ({"lora": {"r": 8, "task_type": "SEQ_CLS"}}, "not what is trained here"),
    ({"model_init": FOUR_BIT, "zero_stage": 3}, "cannot be trained themselves"),
    ({"model_init": FOUR_BIT}, "cannot be trained themselves"),
    ({"model_init": FOUR_BIT, "zero_stage": 3, "lora": {"r": 8}}, "bnb_4bit_quant_storage"),
    ({"model_init": {"load_in_4bit": True}, "lora": {"r": 8}}, "quantization_config"),
    ({"model_init": {"device_map": "auto"}}, "DeepSpeed places the weights"),
    ({"model_init": {"trust_remote_code": True}}, "no code of its own"),
    ({"model_init": {"revision": "main"}}, "use train.revision"),
    ({"model_init": {"dtype": "float16"}}, "bfloat16 base"),
    ({"model_init": {"dtype": "bfloat16"}, **trainer(bf16=False)}, "without their copy in fp32"),
]


def config(changes: Changes) -> TrainConfig:
    return TrainConfig(**{"base": "some/base", "chat_template_path": "chatml", **changes})


@pytest.mark.parametrize(("changes", "words"), TABLE, ids=[words for _, words in TABLE])
def test_a_contradiction_is_refused_in_a_sentence_that_names_it(
    changes: Changes, words: str
) -> None:
    with pytest.raises(UserError, match=words) as refused:
        arguments.check(config(changes))
    assert str(refused.value).startswith("train."), "where it is"
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        json_of(),
        json_of(bf16__enabled=True),
        json_of(gradient_clipping=1.0),
        json_of(optimizer={"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto"}}),
        json_of(scheduler={"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}}),
        json_of(zero_optimization={"stage": 1, "reduce_bucket_size": "auto"}),
        json_of(wall_clock_breakdown=True, comms_logger={"enabled": True}),
        json_of(fp16__enabled="auto", activation_checkpointing={}),
        {**json_of(gradient_clipping=...), **trainer(max_grad_norm=0.0)},
        trainer(warmup_steps=10),
        {"lora": {"r": 8, "target_modules": "all-linear"}, "zero_stage": 3},
        {
            "model_init": {
                "quantization_config": {
                    "load_in_4bit": True,
                    "bnb_4bit_quant_storage": "bfloat16",
                }
            },
            "lora": {"r": 8},
            "zero_stage": 3,
        },
        {"model_init": {"dtype": "bfloat16", "attn_implementation": "flash_attention_2"}},
    ],
)
def test_settings_that_agree_pass(changes: Changes) -> None:
    arguments.check(config(changes))


# --- what depends on the machine ---


@pytest.fixture
def eight_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (trainer(optim="paged_adamw_8bit"), r"optim: paged_adamw_8bit needs the package bitsandb"),
        (trainer(optim="galore_adamw"), "galore_torch"),
        ({"model_init": FOUR_BIT, "lora": {"r": 8}}, "quantization_config needs the package bits"),
        ({"model_init": {"attn_implementation": "flash_attention_2"}}, "needs the package kernels"),
        ({"model_init": {"attn_implementation": "some/kernel"}}, "needs the package kernels"),
        ({"model_init": {"use_kernels": True}}, "use_kernels: True needs the package kernels"),
        ({"num_processes": 16}, "asks for 16 GPUs on this machine, which shows 8"),
    ],
)
def test_what_a_machine_with_gpus_lacks_is_one_sentence(
    eight_gpus: None, changes: Changes, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        machine.check(config(changes))


def test_gpus_of_several_machines_are_counted_for_each(eight_gpus: None) -> None:
    machine.check(config({"num_processes": 16, "num_machines": 2, "main_process_ip": "a"}))


def test_offloading_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"g\+\+ and ninja"):
        machine.check(config({"offload": True}))


def test_a_base_that_another_machine_has_is_said_to_be_missing() -> None:
    with pytest.raises(UserError, match="need one file system"):
        machine.check(config({}), Path("/nowhere/base"))


def test_a_machine_without_gpus_goes_without_what_only_gpus_have() -> None:
    for_gpus = config(
        {"model_init": {"attn_implementation": "flash_attention_2", "use_kernels": True}}
    )
    machine.check(for_gpus)
    assert machine.model_init(for_gpus, gpu=False) == {"attn_implementation": "sdpa"}
    assert machine.replaced(for_gpus) == (
        "no GPU here: trained without attn_implementation: flash_attention_2, use_kernels: True"
    )
    assert machine.replaced(config({})) is None


def test_a_gpu_loads_the_base_in_the_number_format_of_the_training() -> None:
    assert machine.model_init(config({}), gpu=True)["dtype"] == "bfloat16"
    assert machine.model_init(config(trainer(fp16=True)), gpu=True)["dtype"] == "float16"
    assert "dtype" not in machine.model_init(config(trainer(bf16=False)), gpu=True)
    chosen = {"dtype": "float32", "attn_implementation": "eager"}
    assert machine.model_init(config({"model_init": chosen}), gpu=True) == chosen


def test_attention_is_flash_where_a_package_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine.model_init(config({}), gpu=True)["attn_implementation"] == "sdpa"
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert machine.model_init(config({}), gpu=True)["attn_implementation"] == "flash_attention_2"


def test_attention_with_a_package_of_its_own_needs_no_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flash = {"attn_implementation": "flash_attention_2"}
    assert kernels.of_the_hub(flash) == flash
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert kernels.of_the_hub(flash) == {}


@pytest.mark.process
def test_kernels_that_cannot_be_had_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kernels", None)
    with pytest.raises(UserError, match=r"flash_attention_2\) needs kernels of the hub .*sdpa"):
        kernels.fetch({"attn_implementation": "flash_attention_2"})


def test_the_loader_works_ahead_on_a_gpu_alone() -> None:
    on_gpu = arguments.sft_settings(config({}), gpu=True)
    assert (on_gpu["dataloader_num_workers"], on_gpu["dataloader_persistent_workers"]) == (2, True)
    none = arguments.sft_settings(config(trainer(dataloader_num_workers=0)), gpu=True)
    assert none["dataloader_persistent_workers"] is False
    assert "dataloader_num_workers" not in arguments.sft_settings(config({}), gpu=False)


def test_the_cpu_trains_in_the_format_of_weights_of_16_bits() -> None:
    half = config({"model_init": {"dtype": "bfloat16"}})
    assert arguments.sft_settings(half, gpu=False)["bf16"] is True
    assert arguments.sft_settings(config({}), gpu=False)["bf16"] is False


# --- what is remembered ---


def judge(given: TrainConfig, root: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAGPIE_CACHE", str(root))
        checks.trainer(given, Source(Path("recipe.yaml"), {}))


def test_a_deepspeed_file_that_changed_is_judged_anew(tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text(json.dumps(json_of()["deepspeed"]))
    given = config({"deepspeed": str(own)})
    judge(given, tmp_path)
    own.write_text(json.dumps(json_of(gradient_clipping=...)["deepspeed"]))
    with pytest.raises(UserError, match="no gradient is clipped"):
        judge(given, tmp_path)


def test_what_a_machine_lacks_is_looked_for_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = config({"offload": True})
    judge(given, tmp_path)
    assert any((tmp_path / "checked").iterdir()), "what depends on no machine is remembered"
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"g\+\+ and ninja"):
        judge(given, tmp_path)
