"""Whether a training fits a device, and the smallest change that would make it fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from train.config import TrainConfig
from train.sizes.memory import GIB, Estimate, estimate
from train.sizes.shapes import Shape

LEFT = 0.05
"""Share of a device that is left to its allocator: blocks of many sizes leave gaps."""

ADAPTER = {"r": 64, "lora_alpha": 128, "target_modules": "all-linear"}
FOUR_BITS = {
    "quantization_config": {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
    }
}
Change = dict[str, Any]
"""Fields of a `train:` block with what they become; a dotted one (`trainer.max_length`) stands for
one key of a mapping."""


@dataclass(frozen=True)
class Machine:
    """Devices that train together, and the memory of each in bytes."""

    devices: int
    memory: int

    @property
    def room(self) -> int:
        """What a training may use of a device."""
        return int(self.memory * (1 - LEFT))


def changed(config: TrainConfig, change: Change) -> TrainConfig:
    """The same training with some settings changed."""
    update: dict[str, Any] = {}
    for key, value in change.items():
        block, dot, inner = key.partition(".")
        if dot:
            before = update.get(block, getattr(config, block) or {})
            update[block] = {**before, inner: value}
        elif block == "model_init":
            update[block] = {**config.model_init, **value}
        else:
            update[block] = value
    if "checkpointing" in change:  # stands in place of the library's own two
        own = ("gradient_checkpointing", "gradient_checkpointing_kwargs")
        kept = update.get("trainer", config.trainer)
        update["trainer"] = {key: value for key, value in kept.items() if key not in own}
    return config.model_copy(update=update)


def remedies(config: TrainConfig) -> Iterator[Change]:
    """Changes from the one that costs least to the one that costs most: none alters what is
    learned until adapters do, and shorter rows."""
    steps = [*_recomputing(config), *_partitioning(config)]
    yield from steps
    gathered: Change = {}
    for step in steps:  # together
        gathered |= step
        yield dict(gathered)
    rest = {key: value for key, value in gathered.items() if key not in ("zero_stage", "offload")}
    if config.lora is None:
        yield {**rest, "lora": ADAPTER}
    if config.deepspeed is None:
        stage = {"zero_stage": 2, "offload": False}  # bitsandbytes' weights are not partitioned
        yield {**rest, **stage, "lora": config.lora or ADAPTER, "model_init": FOUR_BITS}
    length = config.max_length or 8192
    while length > 512:
        length //= 2
        yield {**rest, "trainer.max_length": length}
        yield {**gathered, "trainer.max_length": length}


def _recomputing(config: TrainConfig) -> Iterator[Change]:
    """Recompute every layer, then one sequence at a time."""
    settings = config.trainer_arguments()
    if not settings.get("gradient_checkpointing", True):
        own = "gradient_checkpointing" in config.trainer
        yield {"trainer.gradient_checkpointing": True} if own else {"checkpointing": "full"}
    elif (config.checkpointing or "full") != "full":
        yield {"checkpointing": "full"}
    if int(settings.get("per_device_train_batch_size", 8)) > 1:
        yield {"trainer.per_device_train_batch_size": 1}


def _partitioning(config: TrainConfig) -> Iterator[Change]:
    """Higher stages, then state in CPU memory; none where the DeepSpeed file is the user's."""
    if config.deepspeed is not None:
        return
    for stage in range(config.zero_stage + 1, 4):
        yield {"zero_stage": stage}
    for stage in range(max(2, config.zero_stage), 4):
        if not (config.offload and stage == config.zero_stage):
            yield {"zero_stage": stage, "offload": True}


def remedy(config: TrainConfig, shape: Shape, machine: Machine) -> tuple[Change, Estimate] | None:
    """The first of the changes with which the training fits, and what it then needs."""
    tried: list[Change] = []
    for change in remedies(config):
        if change in tried:
            continue
        tried.append(change)
        found = estimate(changed(config, change), shape, machine.devices)
        if found.peak <= machine.room:
            return change, found
    return None


def more_devices(config: TrainConfig, shape: Shape, machine: Machine) -> int | None:
    """The fewest devices, by doubling up to 512, on which the training fits as it is."""
    devices = machine.devices * 2
    while devices <= 512:
        if estimate(config, shape, devices).peak <= machine.room:
            return devices
        devices *= 2
    return None


def written(change: Change) -> str:
    """A change as overrides of the command line."""
    words = []
    for key, value in change.items():
        if key == "model_init":
            key, value = "model_init.quantization_config", value["quantization_config"]
        words.append(f"train.{key}={_yaml(value)}")
    return " ".join(words)


def _yaml(value: Any) -> str:
    """A value as YAML on one line, in quotes where the shell would split it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        inside = ", ".join(f"{key}: {_yaml(each)}" for key, each in value.items())
        return f"'{{{inside}}}'"
    return str(value)


def verdict(config: TrainConfig, shape: Shape, machine: Machine) -> str:
    """One line: "fits: ..." or "does not fit: ..." with the smallest change that would."""
    needs = estimate(config, shape, machine.devices)
    here = f"{needs.peak / GIB:.1f} of {machine.memory / GIB:.0f} GiB a GPU"
    if needs.peak <= machine.room:
        return f"fits: {here}"
    found = remedy(config, shape, machine)
    devices = more_devices(config, shape, machine)
    ways = []
    if found is not None:
        ways.append(f"{written(found[0])} ({found[1].peak / GIB:.1f} GiB)")
    if devices is not None:
        ways.append(f"{devices} GPUs as it is")
    instead = "; it would with " + ", or on ".join(ways) if ways else "; no change makes it fit"
    return f"does not fit: {here}, {LEFT:.0%} of them left to the allocator{instead}"
