"""What the machine that trains offers: GPUs, and how many processes follow from them."""

from __future__ import annotations

import os
from pathlib import Path

from train.config import TrainConfig


def gpus() -> int:
    """GPUs this machine offers, without loading torch or starting CUDA: CUDA_VISIBLE_DEVICES, else
    the NVIDIA device nodes."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([d for d in visible.split(",") if d.strip() not in ("", "-1")])
    return len([p for p in Path("/dev").glob("nvidia[0-9]*") if p.name[6:].isdigit()])


def processes(config: TrainConfig) -> int:
    """Processes over all machines: the recipe's number, else one a GPU, else one a machine."""
    return config.num_processes or max(1, gpus()) * config.num_machines
