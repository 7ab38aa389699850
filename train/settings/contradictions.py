"""Settings of a training that contradict each other, or that the library they go to would pass over
in silence: found before anything starts, each one sentence.

What each library refuses by itself is left to it (`arguments.check`, `engine.check`); here is what
they let pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from core.errors import UserError
from train.config import DpoConfig, TrainConfig

Settings = Mapping[str, Any]

ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "save_only_model": (
        (False,),
        "a checkpoint without the optimizer's state cannot be resumed from; remove the key",
    ),
    "ignore_data_skip": (
        (False,),
        "a resumed run would train on its first rows again; remove the key",
    ),
    "average_tokens_across_devices": (
        (True,),
        "a token would weigh more on devices that hold fewer of them; remove the key",
    ),
    "auto_find_batch_size": (
        (False,),
        "a batch found by failing is another step than the recipe's; lower "
        "per_device_train_batch_size, which keeps the step where tokens_per_step is given",
    ),
    "dataloader_drop_last": (
        (False,),
        "the last rows of an epoch would not be trained on; remove the key",
    ),
    "accelerator_config": (
        (None, {}),
        "how batches are dealt to the devices is the harness's; remove the key",
    ),
    "load_best_model_at_end": (
        (False,),
        "the last step is what is exported and compared; remove the key",
    ),
    "push_to_hub": (
        (False,),
        "it would publish unfinished checkpoints; publish what was exported instead",
    ),
    "fsdp": ((None, "", False), "the engine is DeepSpeed; use train.zero_stage"),
    "fsdp_config": ((None, {}), "the engine is DeepSpeed; use train.zero_stage"),
    "parallelism_config": (
        (None,),
        "packed documents are kept apart by one device's attention; remove the key",
    ),
    "use_liger_kernel": (
        (False,),
        "TRL gives it up; use train.model_init.use_kernels: true",
    ),
    "trust_remote_code": ((False,), "a base may run no code of its own; remove the key"),
    "eos_token": (
        (None,),
        "the token that ends a turn is that of the chat template, and what the export writes",
    ),
    "pad_token": ((None,), "the export says what pads; remove the key"),
}
"""Argument of the trainer -> (the values that it may have, what is wrong with others)."""

ONLY_SFT: dict[str, tuple[tuple[Any, ...], str]] = {
    "completion_only_loss": (
        (None,),
        "which tokens bear loss is settled before TRL sees them; use assistant_only_loss",
    ),
    "dataset_text_field": (
        ("text",),
        "a selection holds messages, not a text; remove the key",
    ),
}
"""The same where it is of fine-tuning alone."""

WARMS_UP_NEVER = ("constant",)


def check(config: TrainConfig) -> None:
    """Raise UserError for the first contradiction within `trainer`, `model_init` and `lora`."""
    for sentence in (*_of_trainer(config), *_of_model(config), *_of_lora(config)):
        raise UserError(f"{config.block}.{sentence}")


def _of_trainer(config: TrainConfig) -> Iterator[str]:
    """What is wrong with the trainer's arguments by themselves."""
    settings = config.trainer
    only = ONLY if isinstance(config, DpoConfig) else {**ONLY, **ONLY_SFT}
    for key, (allowed, why) in only.items():
        if key in settings and settings[key] not in allowed:
            yield f"trainer.{key}: {settings[key]!r} is refused: {why}."
    if settings.get("lr_scheduler_type") in WARMS_UP_NEVER and settings.get("warmup_steps"):
        yield (
            f"trainer.warmup_steps: {settings['warmup_steps']} has no effect on the "
            "lr_scheduler_type 'constant'; use constant_with_warmup."
        )
    none_recomputed = settings.get("gradient_checkpointing") is False
    if none_recomputed and settings.get("gradient_checkpointing_kwargs"):
        yield (
            "trainer.gradient_checkpointing_kwargs says how activations are recomputed, "
            "and gradient_checkpointing: false that none is; remove one of the two."
        )
    if settings.get("optim_args") and "optim" not in settings:
        yield (
            "trainer.optim_args is read by some optimizers alone, and optim is not given; "
            "name the optimizer that they are for."
        )
    if settings.get("bf16") and settings.get("fp16"):
        yield "trainer: bf16 and fp16 are both true; a training has one number format."


def _of_model(config: TrainConfig) -> Iterator[str]:
    """What is wrong with how the base is loaded."""
    model, trainer = config.model_init, config.trainer
    refused = {
        "device_map": "DeepSpeed places the weights, one device a process; remove the key",
        "revision": "use train.revision, which is in the training's key",
        "torch_dtype": "transformers calls it dtype; rename the key",
        "load_in_4bit": "transformers reads it in quantization_config; move it there",
        "load_in_8bit": "transformers reads it in quantization_config; move it there",
        "trust_remote_code": "a base may run no code of its own; remove the key",
    }
    for key, why in refused.items():
        if model.get(key):
            yield f"model_init.{key}: {why}."
    if model.get("use_safetensors") is False:
        yield (
            "model_init.use_safetensors: false would load weights in a format that can run "
            "code; save the base as safetensors."
        )
    dtype, half = str(model.get("dtype")), trainer.get("bf16")
    if dtype == "float16" and not trainer.get("fp16"):
        yield (
            "model_init.dtype: float16 loses what a bfloat16 base holds beyond its range, "
            "and the training is not in fp16; use bfloat16."
        )
    if dtype in ("bfloat16", "float16") and half is False and not trainer.get("fp16"):
        yield (
            f"model_init.dtype: {dtype} with trainer.bf16: false trains weights of 16 bits "
            "without their copy in fp32, and small updates are lost; remove one of the two."
        )
    yield from _of_quantization(config)


def _of_quantization(config: TrainConfig) -> Iterator[str]:
    """What cannot be done with a base of 4 or 8 bits."""
    quantization = config.model_init.get("quantization_config")
    if not quantization:
        return
    where = "model_init.quantization_config"
    if config.lora is None:
        yield (
            f"{where}: weights of 4 or 8 bits cannot be trained themselves; "
            "add train.lora, or load the base whole."
        )
    if config.zero_stage != 3 or config.deepspeed is not None:
        return
    if quantization.get("load_in_8bit"):
        yield f"{where}: ZeRO-3 cannot partition weights of 8 bits; use zero_stage 2, or 4 bits."
    elif "bnb_4bit_quant_storage" not in quantization:
        yield (
            f"{where}: ZeRO-3 partitions weights of 4 bits only where they are stored as floats; "
            "add bnb_4bit_quant_storage: bfloat16, or use zero_stage 2."
        )


def _of_lora(config: TrainConfig) -> Iterator[str]:
    """What is wrong with the adapter."""
    lora = config.lora
    if lora is None:
        return
    task = lora.get("task_type", "CAUSAL_LM")
    if task != "CAUSAL_LM":
        yield f"lora.task_type: '{task}' is not what is trained here; remove the key."
    targets = lora.get("target_modules")
    named = [targets] if isinstance(targets, str) else list(targets or ())
    whole = isinstance(targets, str) and targets != "all-linear"
    if "lm_head" in named or (whole and re.fullmatch(str(targets), "lm_head")):
        yield (
            "lora.target_modules: TRL's loss multiplies with lm_head's own weights, so an "
            "adapter on lm_head would not be trained; remove it, or give it in modules_to_save."
        )
