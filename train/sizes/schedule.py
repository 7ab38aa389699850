"""Steps and hours of a training before it starts, by the arithmetic that the training itself goes
by: packs, packs a step, warm-up, FLOPs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from core.errors import UserError
from train.config import DpoConfig, TrainConfig
from train.data.order import accumulation_of_pairs
from train.data.order import steps as steps_of
from train.sizes.shapes import Shape
from train.sizes.speed import PEAK_FLOPS, flops_per_token

FILLED = 0.995
"""Share of a pack that holds tokens, at least, where whole sets are packed by best fit."""
MFU = 0.4
"""Share of a device's dense bf16 peak that hours are worked out from, where nothing else is said:
what eight GPUs reach at this size (torchtitan: 33 to 39 % of an H100 at 8 x 8192)."""


@dataclass(frozen=True)
class Schedule:
    """Sequences (packs, or rows) an epoch, those of one step over all devices and how many of them
    bear no row, optimizer steps an epoch and in all, those of the warm-up, non-pad tokens a step
    and over all epochs, and the passes of each device that a step accumulates."""

    sequences: int
    sequences_per_step: int
    empty: int
    steps_per_epoch: int
    steps: int
    warmup: int
    tokens_per_step: int
    trained_tokens: int
    accumulation: int


def schedule(config: TrainConfig, rows: int, tokens: int, devices: int) -> Schedule:
    """What `rows` rows (of a DPO: pairs) of `tokens` tokens in all make on so many devices. Raises
    UserError where too many of them would be idle."""
    settings = config.trainer_arguments()
    sequences = rows
    if settings.get("packing") and config.max_length:
        sequences = math.ceil(tokens / (config.max_length * FILLED))
    micro_batch = int(settings.get("per_device_train_batch_size", 8))
    accumulation = int(settings.get("gradient_accumulation_steps", 1))
    if isinstance(config, DpoConfig):
        accumulation = accumulation_of_pairs(config, devices)
    passes = (devices, micro_batch, accumulation)
    taken = steps_of(sequences, tokens, config.tokens_per_step, passes)
    steps = math.ceil(taken.steps_per_epoch * float(settings.get("num_train_epochs", 3)))
    if int(settings.get("max_steps", -1)) > 0:
        steps = int(settings["max_steps"])
    warmup = float(settings.get("warmup_steps", 0) or settings.get("warmup_ratio", 0) or 0)
    return Schedule(
        sequences=sequences,
        sequences_per_step=taken.packs_per_step,
        empty=taken.places - taken.packs_per_step,
        steps_per_epoch=taken.steps_per_epoch,
        steps=steps,
        warmup=math.ceil(warmup * steps) if warmup < 1 else int(warmup),
        tokens_per_step=round(taken.packs_per_step * tokens / sequences),
        trained_tokens=round(tokens * steps / taken.steps_per_epoch),
        accumulation=taken.accumulation,
    )


def hours(
    config: TrainConfig, shape: Shape, planned: Schedule, context: float, peak: float
) -> float:
    """Device-hours of a training: `context` is the mean number of tokens that a token attends to,
    `peak` FLOP/s of a device that are really done. Of a DPO, the reference's one pass forward over
    all pairs is among them."""
    frozen = config.lora is not None
    flops = flops_per_token(shape.multiplying, shape.config, context, frozen_base=frozen)
    empty = planned.empty / planned.sequences_per_step  # devices wait for those that have a pack
    total = planned.trained_tokens * (1 + empty) * flops
    if isinstance(config, DpoConfig):
        epoch = planned.trained_tokens * planned.steps_per_epoch / planned.steps
        total += epoch * flops * (2 / 4 if frozen else 2 / 6)  # forward only, of all passes
    return total / peak / 3600


def expected_hours(
    config: TrainConfig, shape: Shape, planned: Schedule, rows: int, tokens: int, peak: float
) -> float:
    """`hours` of rows whose lengths spread as an exponential distribution: half of twice the mean
    is what a token attends to."""
    context = tokens / (rows * (2 if isinstance(config, DpoConfig) else 1))
    return hours(config, shape, planned, context, peak)


def peak_of(device: str) -> float:
    """Dense bf16 peak in FLOP/s of a device by the name that the table has. Raises UserError for
    another."""
    if device not in PEAK_FLOPS:
        raise UserError(f"--gpu {device}: no such device; one of {', '.join(PEAK_FLOPS)}.")
    return PEAK_FLOPS[device]
