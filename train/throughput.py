"""How fast a training is and what it needs: FLOPs a token, MFU, memory a device, disk. Arithmetic
only; torch is never imported.

FLOPs of one trained token = 6·N + 12·L·d·c (forward 2·N, backward 4·N; Kaplan et al. 2020, PaLM
appendix B), where N counts every weight but the input embedding (a look-up; a tied output head
counts), L layers, d = heads times head size, and c the mean number of tokens that a token attends
to, itself included (causal: half its own document, not half the packed sequence). With a frozen
base (LoRA) the 2·N for weight gradients fall away: 4·N. Recomputation by gradient checkpointing is
not counted, so this is MFU, not hardware utilisation.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.models import resolve
from train.config import TrainConfig
from train.settings.machine import gpus

PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989.5e12,
    "H100 PCIe": 756e12,
    "H100": 989.5e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Dense bf16 peak of a device in FLOP/s, by a part of its name (NVIDIA data sheets; the first that
matches counts)."""


def peak_flops(device: str) -> float | None:
    """Dense bf16 peak (FLOP/s) of a device by its name, None when it is not known."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device), None)


def shapes(folder: Path) -> dict[str, tuple[str, list[int]]]:
    """Tensor name -> (dtype as safetensors writes it, shape), read from the headers of every
    *.safetensors file in `folder`."""
    tensors: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as handle:
            (size,) = struct.unpack("<Q", handle.read(8))
            tensors |= json.loads(handle.read(size))
    tensors.pop("__metadata__", None)
    return {name: (entry["dtype"], entry["shape"]) for name, entry in tensors.items()}


def parameters(folder: Path) -> tuple[int, int]:
    """(all weights, weights that multiply: without the input embedding unless the head is tied to
    it) of a model folder, from its headers."""
    sizes = {name: math.prod(shape) for name, (_, shape) in shapes(folder).items()}
    total = sum(sizes.values())
    if not any("lm_head" in name for name in sizes):
        return total, total
    embedding = sum(size for name, size in sizes.items() if "embed_tokens" in name)
    return total, total - embedding


def flops_per_token(
    multiplying: int, config: dict[str, Any], context: float, *, frozen_base: bool = False
) -> float:
    """FLOPs of one trained token. `multiplying` from `parameters`, `config` the model's
    config.json, `context` mean tokens attended to."""
    heads = config["num_attention_heads"]
    width = heads * (config.get("head_dim") or config["hidden_size"] // heads)
    passes = 4 if frozen_base else 6
    return float(passes * multiplying + 12 * config["num_hidden_layers"] * width * context)


def mfu(tokens_per_second: float, flops_a_token: float, devices: int, peak: float) -> float:
    """Model FLOPs utilisation (0 to 1): tokens/s over all devices times FLOPs a token, over the
    devices' dense peak."""
    return tokens_per_second * flops_a_token / (devices * peak)


def memory(
    weights: int, *, zero_stage: int, devices: int, bf16: bool, offload: bool = False
) -> dict[str, int]:
    """Bytes on each device for weights, gradients and optimizer state (Adam), without activations
    and buffers (ZeRO paper, section 3.1).

    Mixed precision: 2 bytes a weight and gradient, 12 for the fp32 copy and two moments; fp32: 4, 4
    and 8. Offloaded parts count nothing here: they are in CPU memory.
    """
    small, state = (2, 12) if bf16 else (4, 8)
    shares = [devices if zero_stage >= stage else 1 for stage in (3, 2, 1)]
    needed = {
        "weights": weights * small // shares[0],
        "gradients": weights * small // shares[1],
        "optimizer": weights * state // shares[2],
    }
    if offload:
        needed["optimizer"] = 0
    if offload and zero_stage == 3:
        needed["weights"] = 0
    return needed


def disk(weights: int, *, bf16: bool, kept: int = 2) -> dict[str, int]:
    """Bytes on disk: one resumable checkpoint (weights, fp32 copy and moments), and the peak while
    training, with the bf16 export that stays.

    `kept` is save_total_limit; one more exists while a checkpoint is written. Everything but the
    export is deleted after the export.
    """
    checkpoint = weights * (2 + 12 if bf16 else 4 + 8)
    return {"checkpoint": checkpoint, "peak": checkpoint * (kept + 1) + weights * 2}


def peak_disk(config: TrainConfig | None) -> int | None:
    """Bytes that training one arm needs at its peak (checkpoints with optimizer state, then the
    export), or None where the base is not on disk."""
    if config is None:
        return None
    try:
        folder = Path(resolve(config.base, config.revision).path)
    except UserError:
        return None
    weights, _ = parameters(folder)
    kept = int(config.trainer_arguments()["save_total_limit"])
    return disk(weights, bf16=half_precision(config), kept=kept)["peak"] if weights else None


def half_precision(config: TrainConfig) -> bool:
    """Whether training keeps bf16 weights beside fp32 ones: TRL's default where there is a GPU."""
    return bool(config.trainer.get("bf16", gpus() > 0))
