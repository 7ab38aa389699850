"""What goes to SFTConfig, peft and DeepSpeed: the user's settings verbatim, ours beside them, and a
check of both before anything runs."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import tempfile
from pathlib import Path
from typing import Any

from core.errors import UserError, first_line, nearest
from core.serving.devices import gpus
from train import chat
from train.config import OWNED, DpoConfig, Job, TrainConfig
from train.settings import engine

KEEPS_DOCUMENTS_APART = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
"""Attention implementations that read position ids and so keep packed documents from attending to
each other (checked; flex_attention cannot train on CPU). Kernels from the hub that name flash
attention count too."""


def sft_arguments(job: Job, out: Path, accumulation: int, *, gpu: bool) -> dict[str, Any]:
    """Keyword arguments of trl.SFTConfig for this job: `trainer:` over our defaults, and what only
    the launch knows."""
    config = job.config
    settings = config.trainer_arguments()
    if not gpu and "fp16" not in settings:
        # On the CPU fp32 is the faster one (262 against 157 tokens/s for SmolLM2-135M).
        settings.setdefault("bf16", False)
    revision = {"revision": config.revision} if config.revision else {}
    return {
        **settings,
        "output_dir": str(out / "scratch"),
        "seed": job.seed,
        "deepspeed": str(out / "scratch" / "deepspeed.json"),
        "gradient_accumulation_steps": accumulation,
        "model_init_kwargs": {**revision, **config.model_init},
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


def check(config: TrainConfig) -> None:
    """Refuse what would fail only when training starts. Imports TRL (about ten seconds on two
    cores), so call it when a training must run.

    Raises UserError for an unknown or owned `trainer:` key, a value that SFTConfig refuses, an
    unknown `lora:` key, a DeepSpeed file that is not JSON or cannot export, a missing template, and
    attention that would mix packed documents.
    """
    if config.chat_template_path is not None:
        chat.read(config.chat_template_path, training=True)
    if config.inference_template is not None:
        chat.read(config.inference_template, training=False)
    settings = config.trainer_arguments()
    for key, instead in OWNED.items():
        if key in settings:
            raise UserError(f"{block_of(config)}.trainer.{key} is set by the harness: {instead}.")
    if settings.get("eval_strategy", "no") != "no":
        raise UserError(
            f"{block_of(config)}.trainer.eval_strategy: training has no evaluation set; the "
            "loss on held-out rows is train.validation's, that on other texts the eval stage's. "
            "Remove the key."
        )
    if not isinstance(config, DpoConfig):
        _check_replaced(settings)
        _check_attention(config, packing=settings["packing"])
    engine.check(config)
    _check_keys(config)


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


def block_of(config: TrainConfig) -> str:
    """What a recipe calls the block of this training."""
    return "dpo" if isinstance(config, DpoConfig) else "train"


def _check_attention(config: TrainConfig, *, packing: bool) -> None:
    """Raise UserError where packed documents would not stay apart, or attention lacks a package."""
    if packing and config.max_length is None:
        raise UserError(
            "train.trainer.max_length is null, but packing needs a length to pack to; "
            "give one, or set packing: false."
        )
    attention = str(config.model_init.get("attn_implementation", "sdpa"))
    apart = attention in KEEPS_DOCUMENTS_APART or "flash-attn" in attention
    if packing and not apart:
        raise UserError(
            f"train.model_init.attn_implementation '{attention}' is not known to keep packed "
            f"documents apart; use one of {', '.join(KEEPS_DOCUMENTS_APART)}, "
            "or set trainer.packing: false."
        )
    kernels = ("flash_attn", "flash_attn_interface", "kernels")
    here = any(map(importlib.util.find_spec, kernels))
    if attention.startswith("flash_attention") and gpus() and not here:
        raise UserError(
            f"train.model_init.attn_implementation '{attention}' needs the package "
            "flash-attn or kernels; install one, or use sdpa."
        )


def _check_keys(config: TrainConfig) -> None:
    """Raise UserError for a key or a value that SFTConfig (DPOConfig) or LoraConfig refuses."""
    import trl
    from peft import LoraConfig

    settings, lora, block = config.trainer_arguments(), config.lora or {}, block_of(config)
    name = "DPOConfig" if block == "dpo" else "SFTConfig"
    theirs = getattr(trl, name)
    arguments = {field.name for field in dataclasses.fields(theirs)}
    for key in settings:
        if key not in arguments:
            hint = nearest(key, arguments - OWNED.keys())
            raise UserError(f"{block}.trainer: {name} has no argument '{key}'{hint}")
    arguments = set(inspect.signature(LoraConfig).parameters)
    for key in lora:
        if key not in arguments:
            hint = nearest(key, arguments)
            raise UserError(f"{block}.lora: peft's LoraConfig has no argument '{key}'{hint}")
    try:
        LoraConfig(**lora)
    except (TypeError, ValueError) as error:
        raise UserError(f"{block}.lora is refused by peft: {first_line(error)}") from error
    # On the CPU whatever the machine, so that the command line never starts CUDA; number formats
    # are judged where they run.
    formats = {"use_cpu": True, "bf16": False, "fp16": False, "tf32": None}
    with tempfile.TemporaryDirectory() as folder:
        try:
            theirs(**{**settings, **formats, "output_dir": folder})
        except (TypeError, ValueError, ImportError) as error:
            raise UserError(f"{block}.trainer is refused by {name}: {first_line(error)}") from error
