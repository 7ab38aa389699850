"""The DeepSpeed configuration of a training, and whether it says what the trainer's arguments say.

DeepSpeed passes over what it does not know, and the trainer over what it does not compare: clipping
that no JSON asks for is not done, two learning rates are one too many. So a configuration of the
user's own goes through our rules, the trainer's own comparison and DeepSpeed's own reading, all
before anything starts.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pydantic import ValidationError

from core.errors import UserError, first_line, nearest
from core.serving.devices import gpus
from train.config import DpoConfig, TrainConfig

DEEPSPEED = Path(__file__).parents[1] / "deepspeed"
ACCUMULATION = "grad_accum_dtype"


def deepspeed_json(config: TrainConfig) -> str:
    """Text of the DeepSpeed configuration: the user's file byte for byte, the user's mapping, or
    ours for the stage. Raises UserError."""
    given = config.deepspeed
    if isinstance(given, dict):
        _check_sections(given, config.block)
        return json.dumps(given, indent=2)
    offload = "_offload" if config.offload else ""
    ours = DEEPSPEED / f"zero{config.zero_stage}{offload}.json"
    path = ours if given is None else Path(given).expanduser()
    try:
        text = path.read_text()
        _check_sections(json.loads(text), config.block)
    except OSError as error:
        raise UserError(
            f"{config.block}.deepspeed: {path} cannot be read ({error.strerror}); "
            "give the path of a DeepSpeed JSON file."
        ) from error
    except ValueError as error:
        raise UserError(f"{config.block}.deepspeed: {path} is not valid JSON ({error}).") from error
    return text


def _check_sections(given: object, block: str) -> None:
    """Raise UserError where what is read of a DeepSpeed configuration is no mapping."""
    if not isinstance(given, Mapping):
        raise UserError(f"{block}.deepspeed: DeepSpeed's configuration is an object.")
    if not isinstance(given.get("zero_optimization", {}), Mapping):
        raise UserError(f"{block}.deepspeed: zero_optimization is a section: {{stage: 2, ...}}.")


def accumulated_as(given: Mapping[str, Any]) -> Any:
    """The type that a DeepSpeed configuration states for gradients that are added up."""
    types = given.get("data_types")
    return types.get(ACCUMULATION) if isinstance(types, Mapping) else None


def half_precision(config: TrainConfig, *, on_gpu: bool) -> bool:
    """Whether training keeps bf16 or fp16 weights beside fp32 ones: TRL's default on a GPU."""
    settings = config.trainer
    return bool(settings.get("fp16") or settings.get("bf16", on_gpu))


def adds_up_in_bf16(config: TrainConfig, accumulation: int) -> str | None:
    """What is lost where bf16 gradients of `accumulation` micro-batches are added up in bf16, and
    what to do, in a sentence; None where they are added up in fp32, or there is nothing to add.

    Relative error of the sum of 8: 0.33 % (tests/test_accumulation.py).
    """
    given = json.loads(deepspeed_json(config))
    stage = given.get("zero_optimization", {}).get("stage", 0)
    told = accumulated_as(given) == "fp32"
    if accumulation < 2 or not half_precision(config, on_gpu=bool(gpus())) or (stage and told):
        return None
    remedy = "DeepSpeed has nothing else at zero_stage 0; use 1, 2 or 3"
    if stage:
        remedy = f'set data_types.{ACCUMULATION}: "fp32" in train.deepspeed'
    return (
        f"the bf16 gradients of {accumulation} micro-batches are added up in bf16 (an error of "
        f"some tenths of a percent of the gradient): {remedy}."
    )


def check(config: TrainConfig) -> None:
    """Raise UserError for the first thing that a DeepSpeed configuration leaves out, says twice, or
    asks of a stage that has it not."""
    given: dict[str, Any] = json.loads(deepspeed_json(config))
    # One after the other: what follows reads sections that the first has found to be objects.
    for sentence in chain(_sections(given), _stages(given, config), _said_twice(given, config)):
        raise UserError(f"{config.block}.deepspeed: {sentence}")


def agree(config: TrainConfig, arguments: Any, *, processes: int) -> None:
    """Raise UserError where the DeepSpeed configuration and the trainer's arguments (an SFTConfig
    or DPOConfig) differ by the trainer's own rules, or DeepSpeed refuses its form."""
    from transformers.integrations import deepspeed as hf

    given = json.loads(deepspeed_json(config))
    read = hf.HfTrainerDeepSpeedConfig(copy.deepcopy(given))
    try:
        read.trainer_config_process(_Of(arguments, processes))
        # Sizes "auto" follow the hidden size, which no rule compares.
        model = SimpleNamespace(config=SimpleNamespace(hidden_size=1024))
        read.trainer_config_finalize(arguments, model, 1000)
        _read_by_deepspeed(read.config)
    except ValueError as error:
        raise UserError(f"{config.block}.deepspeed: {mismatch(error)}") from error
    finally:
        hf.unset_hf_deepspeed_config()


def mismatch(error: ValueError) -> str:
    """One sentence of what the trainer, or DeepSpeed's models, say of a configuration."""
    lines = [line[2:].strip() for line in str(error).splitlines() if line.startswith("- ds ")]
    if not lines:
        return f"it is refused: {first_line(error)}."
    said = "; ".join(
        line.replace("ds ", "it says ", 1).replace(" vs hf ", ", trainer has ") for line in lines
    )
    return f'it and train.trainer differ: {said}. Write "auto" in it.'


class _Of:
    """The trainer's arguments as they are on `world_size` processes."""

    def __init__(self, arguments: Any, world_size: int) -> None:
        self._arguments, self.world_size = arguments, world_size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._arguments, name)


def _read_by_deepspeed(filled: dict[str, Any]) -> None:
    """Let DeepSpeed's models read a filled configuration. Raises ValueError as they do, also for
    what they assert."""
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError
    from deepspeed.utils import logger

    # The batch is judged where the processes are.
    one = {k: v for k, v in filled.items() if k not in BATCH} | {BATCH[0]: 1}
    level, _ = logger.level, logger.setLevel(logging.ERROR)
    try:
        DeepSpeedConfig(one)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or error.title
        raise ValueError(f"{place}: {first['msg']} (it has {first['input']!r})") from error
    except (AssertionError, DeepSpeedConfigError, KeyError, TypeError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    finally:
        logger.setLevel(level)


BATCH = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size")

ELSEWHERE = {
    "activation_checkpointing": "it recomputes nothing here; use trainer.gradient_checkpointing",
    "amp": "apex is not used; use trainer.bf16",
    "elasticity": "the batch is the recipe's; remove it",
    "curriculum_learning": "the order of rows is that of train.seeds; remove it",
    "data_efficiency": "the order of rows is that of train.seeds; remove it",
    "tensor_parallel": "a device holds whole layers here; use zero_optimization.stage 3",
    "sequence_parallel_size": "a device holds whole documents here; remove it",
    "pipeline": "a device holds all layers here; use zero_optimization.stage 3",
    "torch_autocast": "the number format is trainer.bf16's; remove it",
}
"""Sections of DeepSpeed's that have no effect, or another than the recipe says."""

MORE = {"pipeline", "compile", "hybrid_engine", "timers", "datastates", "weight_quantization"} | {
    "sequence_parallel_size",
    "tensor_parallel",
    "expert_parallel",
    "comms_logger",
    "tensorboard",
    "wandb",
    "csv_monitor",
    "comet",
    "flops_profiler",
    "autotuning",
    "elasticity",
    "aio",
    "data_efficiency",
    "zero_optimization",
    "nebula",
    "compression_training",
}
"""Sections that DeepSpeed does not list among its constants."""


OBJECTS = ("checkpoint", "data_types", "bf16", "bfloat16", "fp16")
"""Sections that are read here, besides zero_optimization; DeepSpeed fails on them as anything
else than objects."""


def _sections(given: Mapping[str, Any]) -> Iterator[str]:
    """Sections that nobody reads, and those with another place."""
    from deepspeed.runtime import constants

    known = {value for value in vars(constants).values() if isinstance(value, str)}
    known |= MORE | ELSEWHERE.keys()
    for name, section in given.items():
        if name not in known:
            yield f"DeepSpeed has no section '{name}'{nearest(name, sorted(known))}"
        if name in ELSEWHERE and _asks(section):
            yield f"section '{name}': {ELSEWHERE[name]}."
        if name in OBJECTS and not isinstance(section, Mapping):
            said = json.dumps(section)
            yield f"section '{name}' is an object in braces, not {said}; write it so, or remove it."


def _asks(section: Any) -> bool:
    """Whether a section is on: one that is false, 1, or not `enabled`, asks for nothing."""
    if isinstance(section, Mapping):
        return bool(section) and section.get("enabled", True) is not False
    return section not in (False, None, 1)


def _stages(given: Mapping[str, Any], config: TrainConfig) -> Iterator[str]:
    """What a stage of ZeRO has not."""
    zero = given.get("zero_optimization", {})
    if not isinstance(zero, Mapping):
        yield "zero_optimization is a section: {stage: 2, ...}."
        return
    stage = zero.get("stage", 0)
    if stage == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
        yield (
            "at stage 3 the weights can be exported only with "
            "zero_optimization.stage3_gather_16bit_weights_on_model_save: true; add it."
        )
    parameters, optimizer = (
        _offloads(zero, part) for part in ("offload_param", "offload_optimizer")
    )
    if parameters and stage != 3:
        yield f"offload_param is passed over at stage {stage}; use stage 3, or remove it."
    if optimizer and stage == 0:
        yield "offload_optimizer is passed over at stage 0; use stage 1, 2 or 3, or remove it."
    accumulated = accumulated_as(given)
    half = any(given.get(kind, {}).get("enabled") is True for kind in ("bf16", "bfloat16"))
    half = half or bool(config.trainer.get("bf16"))
    if stage == 0 and half and accumulated == "fp32":
        yield (
            "at stage 0 DeepSpeed does not add up bf16 gradients in fp32; remove "
            f"data_types.{ACCUMULATION} (they are added up in bf16 then), or use stage 1, 2 or 3."
        )
    if all(given.get(kind, {}).get("enabled") is True for kind in ("bf16", "fp16")):
        yield "bf16 and fp16 are both enabled; a training has one number format."


def _offloads(zero: Mapping[str, Any], part: str) -> bool:
    section = zero.get(part)
    return isinstance(section, Mapping) and section.get("device", "none") != "none"


def _said_twice(given: Mapping[str, Any], config: TrainConfig) -> Iterator[str]:
    """What the JSON and the recipe both say, or each leaves to the other."""
    trainer = config.trainer
    if "gradient_clipping" not in given and trainer.get("max_grad_norm", 1.0):
        norm = trainer.get("max_grad_norm", 1.0)
        yield (
            f"without gradient_clipping no gradient is clipped, and trainer.max_grad_norm is {norm}"
            '; add "gradient_clipping": "auto", or max_grad_norm: 0.'
        )
    ours = {"optimizer": ("optim", "optim_args"), "scheduler": ("lr_scheduler_type",)}
    for section, arguments in ours.items():
        for argument in arguments:
            if section in given and argument in trainer:
                yield (
                    f"its {section} takes the place of trainer.{argument}: "
                    f"{trainer[argument]!r}; remove one of the two."
                )
    a_step = "tokens_per_step"
    wanted: int | None = config.tokens_per_step
    if isinstance(config, DpoConfig):
        a_step, wanted = "pairs_per_step", config.pairs_per_step
    for key in BATCH[1:]:
        if wanted is not None and isinstance(given.get(key), int):
            yield f'{key}: {given[key]} beside train.{a_step}, which it follows; write "auto".'
    if (given.get("checkpoint") or {}).get("load_universal"):
        yield (
            "checkpoint.load_universal: what another number of processes made is converted and "
            "loaded by itself; remove it."
        )
    if isinstance(given.get(BATCH[2]), int) and config.num_processes is None:
        yield (
            f"train_batch_size: {given[BATCH[2]]} holds for one number of processes; "
            'write "auto", or give train.num_processes.'
        )
