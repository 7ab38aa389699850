"""Disk that a training needs: its checkpoints, then the export."""

from __future__ import annotations

from pathlib import Path

from core.errors import UserError
from core.models import resolve
from train.config import TrainConfig
from train.sizes.memory import half_precision
from train.sizes.shapes import parameters


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
