"""Why a training is slow: where the time of its steps goes and which of its settings cost speed, in
one sentence. Arithmetic only; torch is never imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from train.config import TrainConfig

LEAST_MFU = 0.2
"""Share of a device's peak below which a training says why it is not more."""
AFTER = 10
"""Logged steps before it is said: the first ones compile and fill caches."""
TELLING = 0.15
"""Share of a step from which on something is named."""
SMALL_PASS = 4096
"""Tokens of one pass of a device below which kernels are too small for a large GPU."""

PARTS = ("data_seconds", "communication_seconds", "idle_seconds")


def why(lines: Sequence[Mapping[str, Any]], config: TrainConfig) -> str | None:
    """Why the MFU of these lines of log.jsonl (the last of one start, `AFTER` or more) is low; None
    where it is not, or not known."""
    known = [line["mfu"] for line in lines if "mfu" in line]
    if len(known) < AFTER or (reached := median(known)) >= LEAST_MFU:
        return None
    seconds = sum(line["seconds"] for line in lines)
    shares: dict[str, float] = {}
    for part in PARTS:
        shares[part] = sum(line.get(part, 0.0) for line in lines) / seconds
    waits = sorted(
        (part for part in PARTS if shares[part] >= TELLING), key=lambda part: -shares[part]
    )
    said = [
        f"{shares[part]:.0%} of a step {_WHAT[part]}: {_remedy(part, config)}" for part in waits
    ]
    if not said:
        said = list(_settings(config)) or [
            "no wait and no setting explains it: look at the GPU's clock and power, and at other "
            "processes on it"
        ]
    return f"MFU is {reached:.1%}, under {LEAST_MFU:.0%}: {'; '.join(said)}."


_WHAT = {
    "data_seconds": "waits for data",
    "communication_seconds": "waits for other devices",
    "idle_seconds": "the GPU is idle while Python prepares its work",
}


def _remedy(part: str, config: TrainConfig) -> str:
    if part == "data_seconds":
        return "raise trainer.dataloader_num_workers, or keep the store on a faster disk"
    if part == "idle_seconds":
        if config.offload:
            return "the optimizer steps on the CPU; set offload: false where `magpie memory` fits"
        return "raise trainer.per_device_train_batch_size"
    if config.zero_stage == 3:
        return "use zero_stage 2 where `magpie memory` fits: 3 gathers every layer in every pass"
    return (
        "raise trainer.per_device_train_batch_size or tokens_per_step, or look at the network "
        "(NCCL_DEBUG=INFO says which one is used)"
    )


def _settings(config: TrainConfig) -> Iterator[str]:
    """Settings that make the computing itself slow."""
    settings = config.trainer_arguments()
    attention = str(config.model_init.get("attn_implementation") or "sdpa")
    if "flash" not in attention:
        yield f"attention is {attention}: set model_init.attn_implementation: flash_attention_2"
    size = int(settings.get("per_device_train_batch_size", 8))
    if config.max_length is not None and size * config.max_length < SMALL_PASS:
        yield (
            f"a pass has {size * config.max_length:,} tokens: raise "
            "trainer.per_device_train_batch_size or max_length"
        )
    if not settings.get("packing"):
        yield "rows are padded: set trainer.packing: true"
    if settings.get("bf16") is False and not settings.get("fp16"):
        yield "it computes in fp32: leave trainer.bf16 to its default"
    if config.offload:
        yield "the optimizer steps on the CPU: set offload: false where `magpie memory` fits"
    if settings.get("gradient_checkpointing", True):
        yield "layers are computed twice: set checkpointing: none where `magpie memory` fits"
