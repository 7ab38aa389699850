"""What goes to SFTConfig, peft and DeepSpeed: the user's settings verbatim, ours beside them, and a
check of both before anything runs."""

from __future__ import annotations

import dataclasses
import inspect
import re
import tempfile
from pathlib import Path
from typing import Any

from core.errors import UserError, first_line, near, nearest
from core.serving.devices import gpus
from train import chat
from train.config import OWNED, DpoConfig, Job, TrainConfig
from train.settings import choices, contradictions, engine, machine, values

KEEPS_DOCUMENTS_APART = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
"""Attention implementations that read position ids and so keep packed documents from attending to
each other (checked; flex_attention cannot train on CPU). Kernels from the hub that name flash
attention count too."""


def sft_arguments(job: Job, out: Path, accumulation: int, *, gpu: bool) -> dict[str, Any]:
    """Keyword arguments of trl.SFTConfig for this job: `trainer:` over our defaults, and what only
    the launch knows."""
    config = job.config
    revision = {"revision": config.revision} if config.revision else {}
    return {
        **sft_settings(config, gpu=gpu),
        "output_dir": str(out / "scratch"),
        "seed": job.seed,
        "deepspeed": str(out / "scratch" / "deepspeed.json"),
        "gradient_accumulation_steps": accumulation,
        "model_init_kwargs": {**revision, **machine.model_init(config, gpu=gpu)},
        "use_cpu": not gpu,
    }


REPLACED: dict[str, tuple[Any, str]] = {
    "dataset_kwargs": (None, "rows are tokenised and packed before the training"),
    "shuffle_dataset": (False, "each epoch has an order of its own, by the seed"),
    "train_sampling_strategy": ("random", "each epoch has an order of its own, by the seed"),
    "dataloader_drop_last": (False, "packs that bear no loss fill the last step"),
    "auto_find_batch_size": (False, "the packs of a step are fixed"),
    "truncation_mode": ("keep_start", "the beginning of a row is kept"),
    "eval_packing": (None, "rows that are held out are packed as those that are trained on"),
}
"""Arguments of SFTConfig that our tokens and steps stand in for: the one value that says what is
done, and what that is."""


def packed_arguments(config: TrainConfig) -> dict[str, Any]:
    """What SFTConfig is told of rows that are token ids, labels and packs already: to leave them as
    they are, and to keep the documents of a pack apart by their positions."""
    settings = config.trainer_arguments()
    apart = settings["packing"] and settings["packing_strategy"] in ("bfd", "bfd_split")
    return {
        "packing": False,
        "padding_free": apart or settings.get("padding_free", False),
        "max_length": None,
        "assistant_only_loss": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }


def agreed(arguments: Any) -> Any:
    """The trainer's arguments, made with DeepSpeed's configuration on the machine that trains.
    Raises UserError where the two differ, before any weight is loaded."""
    differ = arguments.hf_deepspeed_config.mismatches
    if differ:
        raise UserError(f"deepspeed: {engine.mismatch(ValueError(chr(10).join(differ)))}")
    return arguments


def sft_settings(config: TrainConfig, *, gpu: bool) -> dict[str, Any]:
    """`trainer:` over our defaults, those of the kind of machine among them."""
    settings = config.trainer_arguments()
    if gpu:
        # The next batches are made while a step runs.
        workers = settings.setdefault("dataloader_num_workers", 2)
        settings.setdefault("dataloader_persistent_workers", workers > 0)
    elif "fp16" not in settings:
        # On the CPU fp32 is the faster one (262 against 157 tokens/s for SmolLM2-135M).
        settings.setdefault("bf16", config.model_init.get("dtype") == "bfloat16")
    return settings


def check(config: TrainConfig) -> None:
    """Refuse what would fail, or have no effect, only when training starts, on whatever machine.
    Imports TRL and DeepSpeed (about fifteen seconds on two cores), so call it when a training must
    run.

    Raises UserError for an unknown or owned `trainer:` key, a value that the trainer's arguments
    refuse, an unknown `lora:` key, settings that contradict each other, a DeepSpeed configuration
    that is not JSON, cannot export or says something else, a missing template, and attention that
    would mix packed documents. What depends on the machine is `machine.check`'s.
    """
    if config.chat_template_path is not None:
        chat.read(config.chat_template_path, training=True)
    if config.inference_template is not None:
        chat.read(config.inference_template, training=False)
    settings = config.trainer_arguments()
    for key, instead in OWNED.items():
        if key in settings:
            raise UserError(f"{config.block}.trainer.{key} is set by the harness: {instead}.")
    if settings.get("eval_strategy", "no") != "no":
        raise UserError(
            f"{config.block}.trainer.eval_strategy: training has no evaluation set; the "
            "loss on held-out rows is train.validation's, that on other texts the eval stage's. "
            "Remove the key."
        )
    if not isinstance(config, DpoConfig):
        _check_replaced(settings)
    _check_values(config, settings)
    contradictions.check(config)
    if not isinstance(config, DpoConfig):
        _check_attention(config, packing=settings["packing"])
    engine.check(config)
    _check_lora(config, config.lora or {})
    _check_trainer(config, settings)


def _check_replaced(settings: dict[str, Any]) -> None:
    """Raise UserError for settings that would be without effect."""
    for key, (done, what) in REPLACED.items():
        if settings.get(key, done) != done:
            raise UserError(
                f"train.trainer.{key}: {settings[key]} has no effect: {what}. Remove the key."
            )
    strategy, known = settings["packing_strategy"], ("bfd_split", "bfd", "wrapped")
    if settings["packing"] and strategy not in known:
        raise UserError(
            f"train.trainer.packing_strategy: there is no '{strategy}'{nearest(strategy, known)}"
        )


def _check_attention(config: TrainConfig, *, packing: bool) -> None:
    """Raise UserError where packed documents would not stay apart."""
    if packing and config.max_length is None:
        raise UserError(
            f"{config.block}.trainer.max_length is null, but packing needs a length to pack to; "
            "give one, or set packing: false."
        )
    attention = str(config.model_init.get("attn_implementation", "sdpa"))
    apart = attention in KEEPS_DOCUMENTS_APART or "flash-attn" in attention
    if packing and not apart:
        raise UserError(
            f"{config.block}.model_init.attn_implementation '{attention}' is not known to keep "
            f"packed documents apart; use one of {', '.join(KEEPS_DOCUMENTS_APART)}, "
            "or set trainer.packing: false."
        )


def _check_values(config: TrainConfig, settings: dict[str, Any]) -> None:
    """Raise UserError for a value of another type than its library says, or out of its range."""
    from peft import LoraConfig
    from trl import DPOConfig, SFTConfig

    kind = DPOConfig if isinstance(config, DpoConfig) else SFTConfig
    values.check(f"{config.block}.trainer", kind, settings)
    values.check(f"{config.block}.lora", LoraConfig, config.lora or {})
    values.check_model_init(f"{config.block}.model_init", config.model_init, config.base)


def _check_lora(config: TrainConfig, lora: dict[str, Any]) -> None:
    """Raise UserError for a key or a value that LoraConfig refuses."""
    from peft import LoraConfig

    known = set(inspect.signature(LoraConfig).parameters)
    for key in lora:
        if key not in known:
            hint = near(key, known)
            raise UserError(f"{config.block}.lora: peft knows no argument '{key}'{hint}")
    try:
        LoraConfig(**lora)
    except (TypeError, ValueError) as error:
        raise UserError(f"{config.block}.lora: peft refuses it: {first_line(error)}") from error


def _check_trainer(config: TrainConfig, settings: dict[str, Any]) -> None:
    """Raise UserError for a key or a value that the trainer's arguments refuse, and where they and
    DeepSpeed's configuration differ."""
    from trl import DPOConfig, SFTConfig

    kind = DPOConfig if isinstance(config, DpoConfig) else SFTConfig
    known = {field.name for field in dataclasses.fields(kind)}
    for key in settings:
        if key not in known:
            hint = near(key, known - OWNED.keys())
            raise UserError(f"{config.block}.trainer: TRL knows no argument '{key}'{hint}")
    # On the CPU whatever the machine, so that the command line never starts CUDA; number formats
    # are judged where they run.
    neutral = {"use_cpu": True, "bf16": False, "fp16": False, "tf32": None}
    with tempfile.TemporaryDirectory() as folder:
        try:
            arguments = kind(**{**settings, **neutral, "output_dir": folder})
        except (TypeError, ValueError, ImportError) as error:
            raise UserError(f"{config.block}.trainer{_refusal(error, settings)}") from error
        choices.check(config, arguments)
    _check_engine(config, arguments)


def _refusal(error: Exception, settings: dict[str, Any]) -> str:
    """What the trainer's arguments say, with the setting that they mean, and the nearest of a long
    list of names in its place."""
    said = first_line(error)
    listed = re.match(r"(\S+) is not a valid \w+, please select one of \[(.*)\]", said)
    if listed is None:
        return f" is refused: {said}"
    given, names = listed.groups()
    name = next((f".{key}" for key, value in settings.items() if str(value) == given), "")
    known = re.findall(r"'([^']+)'", names)
    return f"{name}: there is no '{given}'{nearest(given, known)}"


def _check_engine(config: TrainConfig, arguments: Any) -> None:
    """Raise UserError where DeepSpeed's configuration and the trainer's `arguments` differ in every
    number format that this recipe may train in."""
    refused: UserError | None = None
    for gpu in (True,) if gpus() else (True, False):
        settings = sft_settings(config, gpu=gpu)
        arguments.fp16 = bool(settings.get("fp16"))
        arguments.bf16 = bool(settings.get("bf16", not arguments.fp16))
        try:
            return engine.agree(config, arguments, processes=machine.processes(config))
        except UserError as error:
            refused = refused or error
    if refused is not None:
        raise refused
