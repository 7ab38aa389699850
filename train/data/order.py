"""Which packs train in which optimizer step: fixed by the settings and a seed, whatever the number
of devices.

An epoch is a permutation of the packs, cut into steps of `packs_per_step`. Devices share a step's
packs in rounds of one micro-batch a device; the places that stay free get a pack of a few tokens
that bears no loss, as do those at an epoch's end. So 1, 4, 8, 16 and 32 devices take the same steps
over the same packs, and no pack is trained on twice in an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from core.errors import UserError
from train.config import DpoConfig

FILLER_TOKENS = 8
"""Tokens of a pack that bears no loss and fills a place."""
MOST_WASTE = 0.25
"""The share of places without a pack in every step above which a training is refused."""


@dataclass(frozen=True)
class Steps:
    """How packs become optimizer steps on a number of devices."""

    packs: int
    """Packs of an epoch."""
    packs_per_step: int
    devices: int
    micro_batch: int
    """Packs of one pass of a device (per_device_train_batch_size)."""

    @property
    def accumulation(self) -> int:
        """Passes of each device in a step (gradient_accumulation_steps)."""
        return math.ceil(self.packs_per_step / (self.devices * self.micro_batch))

    @property
    def places(self) -> int:
        """Packs that a step has room for, over all devices and passes."""
        return self.accumulation * self.devices * self.micro_batch

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch; the last one may hold fewer packs."""
        return math.ceil(self.packs / self.packs_per_step)

    @property
    def waste(self) -> float:
        """The share of a step's places that hold no pack."""
        return 1 - self.packs_per_step / self.places

    @property
    def whole_epoch(self) -> bool:
        """Whether a step is all packs that there are, so that nothing could fill its places."""
        return self.packs_per_step == self.packs

    def order(self, seed: int, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """The packs of an epoch (counted from 0) in the order they are trained in."""
        return np.random.default_rng([seed, epoch]).permutation(self.packs)

    def step(self, seed: int, step: int) -> list[int]:
        """The packs of optimizer step `step` of the whole training, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        first = place * self.packs_per_step
        return list(map(int, self.order(seed, epoch)[first : first + self.packs_per_step]))

    def fillers(self, step: int, rank: int) -> int:
        """How many packs of device `rank` bear no loss in optimizer step `step`, counted from 0."""
        place = step % self.steps_per_epoch
        held = min(self.packs_per_step, self.packs - place * self.packs_per_step)
        of_rank = (np.arange(self.places) // self.micro_batch) % self.devices == rank
        return int(of_rank[held:].sum())


def steps(packs: int, tokens: int, wanted: int | None, passes: tuple[int, int, int]) -> Steps:
    """How `packs` of `tokens` tokens in all are trained on.

    `wanted`: tokens of an optimizer step (train.tokens_per_step), which fixes the packs of a step
    on any number of devices; without it a step is `passes` = (devices, micro-batch, accumulation).
    Raises UserError where more than a quarter of a step's places would hold no pack, though there
    are packs.
    """
    devices, micro_batch, accumulation = passes
    if wanted is None:
        return Steps(packs, devices * micro_batch * accumulation, devices, micro_batch)
    a_pack = tokens / max(1, packs)
    # A step that wants more than an epoch has is that epoch.
    made = Steps(packs, max(1, min(round(wanted / a_pack), packs)), devices, micro_batch)
    if made.waste > MOST_WASTE and not made.whole_epoch:
        raise UserError(
            f"train.tokens_per_step {wanted:,} is {made.packs_per_step} packs of about "
            f"{a_pack:,.0f} tokens, and {devices} device(s) with "
            f"trainer.per_device_train_batch_size {micro_batch} have room for {made.places}, so "
            f"{made.waste:.0%} of the work would be idle. {_instead(made)}"
        )
    return made


def _instead(made: Steps) -> str:
    """What to write in place of a number of devices that leaves too much idle: the numbers near it
    that do not, or a smaller micro-batch."""
    fitting = [
        n
        for n in range(1, 2 * made.devices + 1)
        if Steps(made.packs, made.packs_per_step, n, made.micro_batch).waste <= MOST_WASTE
    ]
    near = sorted(sorted(fitting, key=lambda n: (abs(n - made.devices), n))[:4])
    smaller = [
        b
        for b in range(1, made.micro_batch)
        if Steps(made.packs, made.packs_per_step, made.devices, b).waste <= MOST_WASTE
    ]
    ways = []
    if near:
        ways.append(f"train on {', '.join(map(str, near))} device(s)")
    if smaller:
        ways.append(f"set trainer.per_device_train_batch_size to {smaller[-1]}")
    said = " or ".join(ways) or "use fewer devices, a smaller micro-batch or a smaller max_length"
    return f"{said[0].upper()}{said[1:]}, or raise tokens_per_step."


def accumulation_of_pairs(config: DpoConfig, devices: int) -> int:
    """Passes of each of so many devices in an optimizer step of a DPO. Raises UserError where
    pairs_per_step is no multiple of what they take at once."""
    settings = config.trainer_arguments()
    device = int(settings.get("per_device_train_batch_size", 8))
    wanted, at_once = config.pairs_per_step, device * devices
    if wanted is None:
        return int(settings.get("gradient_accumulation_steps", 1))
    if wanted % at_once:
        whole = [n for n in range(1, wanted // device + 1) if wanted % (device * n) == 0]
        raise UserError(
            f"dpo.pairs_per_step {wanted} is no multiple of the {at_once} pairs that "
            f"{devices} device(s) of {device} take at once; use one of "
            f"{', '.join(map(str, whole)) or 'no'} devices, or another "
            "dpo.trainer.per_device_train_batch_size."
        )
    return wanted // at_once


class Order:
    """The sampler of one training: places of the dataset, whose last row is the filler, in the
    order in which micro-batches are dealt to the devices (batch k goes to device k modulo the
    devices).

    `epoch` is set before each pass over it, from the steps done; so a resumed training needs no
    state.
    """

    def __init__(self, made: Steps, seed: int) -> None:
        self.steps, self.seed, self.epoch = made, seed, 0

    def __len__(self) -> int:
        return self.steps.steps_per_epoch * self.steps.places

    def __iter__(self) -> Iterator[int]:
        packs = self.steps.order(self.seed, self.epoch).tolist()
        filler = [self.steps.packs]
        for first in range(0, self.steps.packs, self.steps.packs_per_step):
            held: Sequence[int] = packs[first : first + self.steps.packs_per_step]
            yield from held
            yield from filler * (self.steps.places - len(held))
