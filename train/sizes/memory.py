"""Memory of one device that a training needs: weights, gradients and optimizer state as DeepSpeed
0.19 holds them at each stage of ZeRO (arXiv 1910.02054), the buffers that it communicates by, and
the activations of a traced pass.

Bytes a weight in bf16 with Adam: 2 for the weight, 4 for its gradient where gradients accumulate in
fp32 (else 2), 12 for the fp32 copy and two moments. Stage 1 divides the last by the devices, stage
2 gradients too, stage 3 weights too. In fp32: 4, 4, and 12 (8 at stage 0, which copies nothing).
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass

from core.serving.devices import gpus
from train.config import DpoConfig, TrainConfig
from train.settings.engine import accumulated_as, deepspeed_json, half_precision
from train.sizes.activations import Pass, traced
from train.sizes.shapes import Shape

GIB = 2**30
CONTEXT = 3 * GIB // 2
"""What CUDA, cuBLAS and NCCL hold on a device beside torch's own memory (about; it differs by
driver and by the number of devices)."""

QUANTISED = 0.5 + 4 / 64
"""Bytes a weight in NF4: half a byte, and an fp32 scale for each block of 64 (QLoRA, arXiv
2305.14314, section 3)."""
TWICE_QUANTISED = 0.5 + 1 / 64 + 4 / (64 * 256)
"""The same where the scales are quantised again (`bnb_4bit_use_double_quant`)."""

BUCKET = 500_000_000
"""Gradients that DeepSpeed reduces at once, where the configuration is silent."""
LIVE = 1_000_000_000
"""Weights that stage 3 holds gathered at most, and those of a group that it updates at once."""


@dataclass(frozen=True)
class Engine:
    """What of a DeepSpeed configuration takes memory: the stage, what lies in CPU memory, bytes of
    an accumulated gradient (None: as the weights), weights in a bucket of gradients and buckets at
    once, weights that stage 3 gathers, and whether stage 1 adds gradients up as they come."""

    stage: int
    offload_optimizer: bool = False
    offload_weights: bool = False
    accumulates: int | None = None
    bucket: int = BUCKET
    buckets: int = 1
    live: int = LIVE
    at_once: bool = False


@dataclass(frozen=True)
class Held:
    """What is trained: bytes that the whole model's weights take, weights that are trained, bytes
    of one trained weight, and bytes of optimizer state that one has beside its fp32 copy."""

    size: int
    trained: int
    small: int = 2
    moments: int = 8


@dataclass(frozen=True)
class States:
    """Bytes a device of weights, gradients and optimizer state; what a step of the optimizer needs
    for a moment beside them; and what lies in CPU memory, a device."""

    weights: int
    gradients: int
    optimizer: int
    at_step: int
    host: int


@dataclass(frozen=True)
class Estimate:
    """Bytes a device. `momentary` is what a step of the optimizer needs when activations are gone
    (with foreach, `adamw_torch` copies its state); the peak holds the larger of the two. `host` is
    CPU memory a device."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    momentary: int
    buffers: int
    context: int
    host: int

    @property
    def peak(self) -> int:
        """The most that a device holds at once."""
        states = self.weights + self.gradients + self.optimizer
        return states + self.buffers + self.context + max(self.activations, self.momentary)


def states(held: Held, engine: Engine, devices: int) -> States:
    """Bytes of model states a device, as DeepSpeed holds them between two passes."""
    stage, small, trained = engine.stage, held.small, held.trained
    share = -(-trained // devices)
    whole = trained if stage < 2 else share
    copied = 4 if stage or small == 2 else 0
    accumulates = engine.accumulates or small
    if stage == 0:
        accumulates = small  # DeepSpeed refuses another format there
    gradients = whole * accumulates
    apart = accumulates != small
    if stage == 1 and apart and not engine.at_once:
        gradients += trained * small  # until the pass has ended, beside the fp32 ones
    owned = trained if stage == 0 else share
    optimizer = owned * (copied + held.moments)
    # The fp32 gradients that the optimizer reads: at stages 1 and 2 those that accumulated in fp32
    # are read where they lie, everything else is copied.
    at_step = owned * 4 if copied else 0
    if stage == 3:
        at_step = min(share, LIVE) * 4
    elif apart:
        at_step = 0
    weights = held.size // devices if stage == 3 else held.size
    host = 0
    if engine.offload_optimizer:
        host = optimizer + share * 4
        optimizer = gradients = at_step = 0
    if engine.offload_weights:
        host, weights = host + weights, 0
    return States(weights, gradients, optimizer, at_step, host)


def buffers(held: Held, engine: Engine, weights: int) -> int:
    """Bytes of what a device communicates by: buckets of gradients, and weights that stage 3 has
    gathered (`weights`: all of the model's)."""
    if engine.stage == 0:
        return min(engine.bucket, held.trained) * held.small
    if engine.stage == 1 and engine.accumulates == 4 and held.small == 2:
        return min(engine.bucket, held.trained) * 4
    size = engine.bucket * held.small * engine.buckets
    if engine.stage == 3:
        size += min(engine.live, weights) * held.small
    return size


def engine_of(config: TrainConfig, hidden: int) -> Engine:
    """What of the training's DeepSpeed configuration takes memory; `hidden` is the model's width,
    from which Accelerate fills in what is "auto" at stage 3."""
    given = json.loads(deepspeed_json(config))
    zero = given.get("zero_optimization", {})
    stage = int(zero.get("stage", 0))
    silent = zero.get("reduce_bucket_size", BUCKET)
    formats = {"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2}
    accumulates = accumulated_as(given)

    def outside(what: str) -> bool:
        return str((zero.get(what) or {}).get("device", "none")) != "none"

    overlaps = stage in (1, 2) and bool(zero.get("overlap_comm"))
    return Engine(
        stage=stage,
        offload_optimizer=outside("offload_optimizer"),
        offload_weights=outside("offload_param"),
        accumulates=formats.get(str(accumulates)),
        bucket=hidden * hidden if silent == "auto" else int(silent),
        buckets=1 + overlaps,
        live=int(zero.get("stage3_max_live_parameters", LIVE)),
        at_once=bool((given.get("bf16") or {}).get("immediate_grad_update")),
    )


def quantised(config: TrainConfig) -> float | None:
    """Bytes a weight of the decoder's linear maps where the base is loaded in 4 bits, else None."""
    asked = config.model_init.get("quantization_config") or {}
    if not asked.get("load_in_4bit"):
        return None
    return TWICE_QUANTISED if asked.get("bnb_4bit_use_double_quant") else QUANTISED


def moments(config: TrainConfig) -> int:
    """Bytes of optimizer state a trained weight, beside its fp32 copy: two moments in fp32, or in
    8 bits; one for Lion, none for SGD and Adafactor (about)."""
    optim = str(config.trainer.get("optim", "adamw_torch_fused"))
    if "sgd" in optim or "adafactor" in optim:
        return 0
    each = 1 if "8bit" in optim else 4
    return each if "lion" in optim else 2 * each


def pass_of(config: TrainConfig, shape: Shape, *, half: bool) -> Pass:
    """The forward and backward of one device. Rows of a pack count as full; a training without
    `max_length` as long as the model can read, at most 8,192 tokens."""
    settings = config.trainer_arguments()
    length = config.max_length or min(8192, int(shape.config.get("max_position_embeddings", 8192)))
    rows = int(settings.get("per_device_train_batch_size", 8))
    pairs = isinstance(config, DpoConfig)
    every = int((settings.get("gradient_checkpointing_kwargs") or {}).get("every_n_layers", 1))
    recomputes = bool(settings.get("gradient_checkpointing", True))
    return Pass(
        rows=rows * (2 if pairs else 1),
        length=length,
        attention=str(config.model_init.get("attn_implementation", "sdpa")),
        packed=bool(settings.get("packing") or settings.get("padding_free")),
        half=half,
        recomputed=every * recomputes,
        lora=config.lora,
    )


def estimate(config: TrainConfig, shape: Shape, devices: int) -> Estimate:
    """What a GPU holds of the training `config` on so many. Raises UserError where the activations
    cannot be traced."""
    half = half_precision(config, on_gpu=True)
    found = traced(shape, pass_of(config, shape, half=half))
    small = 2 if half else 4
    trained = shape.weights if config.lora is None else found.trained
    size = (shape.weights + (trained if config.lora is not None else 0)) * small
    activations = found.peak
    bits = quantised(config)
    if bits is not None:
        size = round(size - shape.linear * (small - bits))
        # the largest map of a layer is there in bf16 while it is used
        activations += 2 * shape.hidden * int(shape.config.get("intermediate_size", shape.hidden))
    held = Held(size, trained, small, moments(config))
    engine = engine_of(config, shape.hidden)
    owned = states(held, engine, devices)
    # foreach holds the square roots of all second moments at once
    foreach = str(config.trainer.get("optim")) == "adamw_torch" and not engine.offload_optimizer
    roots = -(-trained // (devices if engine.stage else 1)) * 4
    return Estimate(
        weights=owned.weights,
        gradients=owned.gradients,
        optimizer=owned.optimizer,
        activations=activations,
        momentary=owned.at_step + roots * foreach,
        buffers=buffers(held, engine, shape.weights),
        context=CONTEXT if half else 0,
        host=owned.host,
    )


def gpu_memory() -> int | None:
    """Bytes of memory of this machine's smallest NVIDIA GPU, as its driver says; None without."""
    if not gpus():
        return None
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        sizes = [int(line) for line in said.stdout.split()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return min(sizes) * 2**20 if sizes else None
