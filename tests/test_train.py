"""Training without a trainer: configuration, commands, checkpoints, arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from core.errors import UserError
from tests import small_recipe
from train import launch
from train.config import DpoConfig, Job, TrainConfig
from train.machines import await_opening, closed, command, command_here, opened
from train.settings import arguments, engine, machine


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"base": "some/base", "chat_template_path": "chatml", **changes})


# --- configuration ---


def test_tokens_per_step_and_gradient_accumulation_together_are_an_error() -> None:
    with pytest.raises(ValidationError, match=r"give one of the two"):
        config(tokens_per_step=1024, trainer={"gradient_accumulation_steps": 2})


def test_a_machine_of_several_needs_the_address_of_the_first() -> None:
    with pytest.raises(ValidationError, match=r"machine 1 of 2 needs main_process_ip"):
        config(num_machines=2, machine_rank=1)


def test_machines_are_counted_from_zero() -> None:
    with pytest.raises(ValidationError, match=r"machine_rank is 2 of 2 machine\(s\)"):
        config(num_machines=2, machine_rank=2, main_process_ip="a")


def test_a_configuration_survives_its_own_json() -> None:
    given = config(
        deepspeed={"zero_optimization": {"stage": 1}}, trainer={"max_length": 64}, lora={"r": 4}
    )
    assert TrainConfig.model_validate_json(given.model_dump_json()) == given


def test_an_unknown_trainer_key_names_the_nearest_argument() -> None:
    with pytest.raises(
        UserError, match=r"no argument 'learning_rat'; did you mean 'learning_rate'"
    ):
        arguments.check(config(trainer={"learning_rat": 1e-5}))


def test_an_unknown_lora_key_names_the_nearest_argument() -> None:
    with pytest.raises(UserError, match=r"no argument 'lora_alph'; did you mean 'lora_alpha'"):
        arguments.check(config(lora={"r": 8, "lora_alph": 16}))


def test_a_value_that_sftconfig_refuses_is_one_sentence() -> None:
    with pytest.raises(UserError, match="lr_scheduler_type: there is no 'notascheduler'"):
        arguments.check(config(trainer={"lr_scheduler_type": "notascheduler"}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trainer": {"seed": 3}}, "use train.seeds"),
        (
            {"trainer": {"learning_rate": "1e-5"}},
            r"trainer.learning_rate: needs a number \(it is '1e",
        ),
        ({"trainer": {"learning_rate": -1}}, "trainer.learning_rate: needs 0 or more"),
        ({"trainer": {"max_length": -5}}, r"trainer.max_length: needs 1 or more \(it is -5\)"),
        ({"trainer": {"max_length": 1.5}}, r"trainer.max_length: needs a whole number \(it is 1.5"),
        ({"trainer": {"bf16": "maybe"}}, r"trainer.bf16: needs true or false \(it is 'maybe'\)"),
        ({"trainer": {"num_train_epochs": 0}}, "num_train_epochs: needs more than 0"),
        ({"trainer": {"max_steps": 0}}, "max_steps: needs 1 or more"),
        ({"trainer": {"adam_beta1": 1}}, "adam_beta1: needs a number from 0 to below 1"),
        ({"trainer": {"loss_type": "zzz"}}, "loss_type: there is no 'zzz'; valid names are .*nll"),
        ({"trainer": {"report_to": ["wandb", "zzz"]}}, "report_to: there is no 'zzz'; valid"),
        ({"trainer": {"lr_scheduler_kwargs": {"zzz": 1}}}, "schedule 'linear' takes no 'zzz'"),
        ({"trainer": {"lr_scheduler_type": "cosine_with_min_lr"}}, "cannot be made: One of min_lr"),
        ({"trainer": {"dataset_num_proc": 0}}, "dataset_num_proc: needs 1 or more"),
        ({"trainer": {"save_strategy": "zzz"}}, "save_strategy: there is no 'zzz'; valid names"),
        ({"model_init": {"low_cpu_mem_usage": "maybe"}}, "low_cpu_mem_usage: needs true or false"),
        ({"model_init": {"max_position_embeddings": -5}}, "needs 1 or more"),
        ({"trainer": {"report_to": 5}}, "report_to: needs a text or a list"),
        ({"trainer": {"optim": "adamm"}}, "trainer.optim: there is no 'adamm'; did you mean"),
        ({"lora": {"r": 0}}, "lora.r: needs 1 or more"),
        ({"lora": {"r": 4, "lora_dropout": 2}}, "lora.lora_dropout: needs a share from 0 to 1"),
        ({"lora": {"r": 4, "bias": "some"}}, "lora.bias: needs one of none, all, lora_only"),
        ({"model_init": {"dtype": "bf16"}}, "no number format 'bf16' here; did you mean"),
        ({"model_init": {"attn_implementaton": "sdpa"}}, "did you mean 'attn_implementation'"),
        ({"trainer": {"eval_strategy": "steps"}}, "eval stage"),
        ({"trainer": {"max_length": None}}, "packing needs a length"),
        ({"model_init": {"attn_implementation": "flex_attention"}}, "packed documents apart"),
        ({"chat_template_path": "chatlm"}, "did you mean 'chatml'"),
        (
            {"deepspeed": {"zero_optimization": {"stage": 3}}},
            "stage3_gather_16bit_weights_on_model_save",
        ),
        ({"deepspeed": "/nowhere.json"}, "cannot be read"),
    ],
)
def test_a_setting_that_would_fail_in_training_is_refused_before(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        arguments.check(config(**changes))


@pytest.mark.parametrize(
    "trainer",
    [
        {"loss_type": "dft", "report_to": "all"},
        {"report_to": [], "dataset_num_proc": 4},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": '{"min_lr": 1e-6}'},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 9}},
        {"lr_scheduler_type": "inverse_sqrt", "warmup_steps": 0.05},
    ],
)
def test_names_and_arguments_that_libraries_know_are_accepted(trainer: dict[str, Any]) -> None:
    arguments.check(config(trainer=trainer))


def test_the_losses_of_preferences_are_names_of_their_own() -> None:
    def check(*losses: str) -> None:
        given = {"loss_type": [*losses], "label_smoothing": 0.1}
        arguments.check(DpoConfig(base="b", chat_template_path="chatml", trainer=given))

    check("sigmoid", "sft", "robust")
    with pytest.raises(UserError, match=r"dpo.trainer.loss_type: there is no 'nll'; valid names"):
        check("sigmoid", "nll")


@pytest.mark.parametrize("targets", [["nosuch"], "nosuch.*", ["q_proj", "nosuch"], r".*\.v_proj"])
def test_an_adapter_needs_a_module_of_its_base(tmp_path: Path, targets: str | list[str]) -> None:
    base = small_recipe.model(tmp_path / "base")
    adapted = config(base=str(base), lora={"r": 4, "target_modules": targets})
    if "nosuch" not in str(targets) or "q_proj" in targets:
        return arguments.check(adapted)
    with pytest.raises(UserError, match=r"the base has no module 'nosuch.*; it has .*q_proj"):
        arguments.check(adapted)
    # where the base is not here, training says so
    return arguments.check(adapted.model_copy(update={"base": "some/base"}))


def test_the_shipped_settings_pass_the_check() -> None:
    for stage in (0, 1, 2, 3):
        arguments.check(config(zero_stage=stage, lora={"r": 4} if stage == 3 else None))


def test_trainer_settings_reach_sftconfig_verbatim(tmp_path: Path) -> None:
    given = {
        "learning_rate": 3e-4,
        "report_to": ["tensorboard"],
        "packing_strategy": "bfd",
        "save_total_limit": 7,
        "optim": "adafactor",
    }
    made = arguments.sft_arguments(
        Job(config=config(trainer=given), base="b", selection="s", seed=5), tmp_path, 4, gpu=True
    )
    assert given.items() <= made.items()
    assert (made["seed"], made["gradient_accumulation_steps"], "bf16" in made) == (5, 4, False)


def test_the_users_deepspeed_file_passes_through_byte_for_byte(tmp_path: Path) -> None:
    text = '{ "zero_optimization": {"stage": 1},\n\n  "train_batch_size": "auto" }\n'
    (tmp_path / "mine.json").write_text(text)
    assert engine.deepspeed_json(config(deepspeed=str(tmp_path / "mine.json"))) == text


@pytest.mark.parametrize(
    ("stage", "offload"), [(0, False), (1, False), (2, False), (2, True), (3, False), (3, True)]
)
def test_every_stage_has_a_deepspeed_configuration(stage: Any, offload: bool) -> None:
    zero = json.loads(engine.deepspeed_json(config(zero_stage=stage, offload=offload)))[
        "zero_optimization"
    ]
    assert zero["stage"] == stage
    assert ("offload_optimizer" in zero) == offload
    assert ("offload_param" in zero) == (offload and stage == 3)


# --- the command ---


def test_one_machine_runs_one_command_on_a_free_port(tmp_path: Path) -> None:
    made = command(config(num_processes=2), tmp_path)
    assert made[1:4] == ["-m", "accelerate.commands.launch", "--use_deepspeed"]
    assert made[-3:] == ["-m", "train.sft", str(tmp_path)]
    assert made[made.index("--num_processes") + 1] == "2"
    assert made[made.index("--main_process_port") + 1] == "0"
    assert "--machine_rank" not in made


def test_two_machines_run_commands_that_differ_in_the_rank_alone(tmp_path: Path) -> None:
    several = config(num_processes=16, num_machines=2, main_process_ip="10.0.0.1")
    first, second = (command(several, tmp_path, machine_rank=rank) for rank in (0, 1))
    meeting = "join_timeout=1800,read_timeout=1800"
    assert [(a, b) for a, b in zip(first, second, strict=True) if a != b] == [
        ("0", "1"),
        (f"is_host=1,{meeting}", f"is_host=0,{meeting}"),
    ]
    assert first[first.index("--rdzv_backend") + 1] == "c10d"
    assert first[first.index("--machine_rank") + 1] == "0"
    for flag, value in {
        "--num_machines": "2",
        "--num_processes": "16",
        "--main_process_ip": "10.0.0.1",
        "--main_process_port": "29500",
    }.items():
        assert first[first.index(flag) + 1] == value
    assert (
        first[first.index("--deepspeed_multinode_launcher") + 1] == "standard"
    )  # never DeepSpeed's own ssh launcher


def in_slurm(monkeypatch: pytest.MonkeyPatch, nodes: int, **more: str) -> None:
    """The environment of a batch script on the first of so many nodes."""
    there = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": str(nodes), "SLURM_JOB_NODELIST": "n[1-2]"}
    for name, value in {**there, **more}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("train.machines._first_node", lambda: "n1")


def test_an_allocation_is_started_by_srun_and_numbers_are_read_on_the_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_slurm(monkeypatch, 2, SLURM_CPUS_PER_TASK="96")
    made = command_here(config(num_processes=16, num_machines=2), tmp_path)
    srun, script = made[: made.index("sh")], made[-1]
    assert srun[:4] == ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    assert {"--kill-on-bad-exit=1", "--cpus-per-task=96"} <= set(srun)
    assert '--machine_rank "$SLURM_PROCID"' in script and "--main_process_ip n1" in script
    assert "is_host=$((SLURM_PROCID == 0))," in script and script.endswith(f"train.sft {tmp_path}")


def test_ports_of_an_allocation_are_free_ones_of_its_first_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_slurm(monkeypatch, 2)
    made = [command_here(config(num_processes=2, num_machines=2), tmp_path)[-1] for _ in range(2)]
    assert made[0] != made[1] and "--main_process_port 29500" not in made[0]


def test_an_allocation_of_another_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_slurm(monkeypatch, 1)
    with pytest.raises(UserError, match=r"num_machines is 2 and this Slurm job has 1 node\(s\)"):
        command_here(config(num_processes=2, num_machines=2), tmp_path)


def test_machines_that_nobody_starts_are_told_their_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    two = config(num_processes=2, num_machines=2, main_process_ip="10.0.0.1")
    with pytest.raises(UserError, match=r"prepared for 2 machines; start one of these") as error:
        command_here(two, tmp_path)
    assert str(error.value).count("--main_process_ip 10.0.0.1") == 2


def test_a_machine_whose_first_never_begins_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="machine 0 has not begun to train"):
        await_opening(tmp_path, lambda _: None, seconds=0.05)


def test_the_number_of_processes_follows_the_visible_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,5")
    assert machine.processes(config(num_machines=2, main_process_ip="a")) == 6
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.processes(config()) == 1


@pytest.mark.parametrize("label", ["", "[rank0]: ", "1: ", " 0: [rank0]: "])
def test_an_error_is_read_whoever_labels_its_line(tmp_path: Path, label: str) -> None:
    (tmp_path / "trainer.log").write_text(f"{label}ModuleNotFoundError: No module named 'x'\n")
    assert launch._reason(tmp_path, 0, 1) == "ModuleNotFoundError: No module named 'x'."


def test_machines_without_an_address_are_told_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(UserError, match="ADDRESS_OF_MACHINE_0"):
        command_here(config(num_processes=2, num_machines=2), tmp_path)


def test_another_machine_does_not_wait_for_what_is_exported(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    assert not await_opening(tmp_path, lambda _: None, seconds=5)


def test_a_killed_training_leaves_no_word_that_it_runs(tmp_path: Path) -> None:
    opened(tmp_path)
    closed(tmp_path)
    with pytest.raises(UserError, match="machine 0 has not begun to train"):
        await_opening(tmp_path, lambda _: None, seconds=0.05)
