"""Memory a device that a training needs, without activations and buffers."""

from __future__ import annotations

from core.serving.devices import gpus
from train.config import TrainConfig


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


def half_precision(config: TrainConfig) -> bool:
    """Whether training keeps bf16 weights beside fp32 ones: TRL's default where there is a GPU."""
    return bool(config.trainer.get("bf16", gpus()))
