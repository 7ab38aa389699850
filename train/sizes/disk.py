"""Disk that a training needs: its checkpoints, then the export."""

from __future__ import annotations

from typing import Any

from core.errors import UserError
from train.config import TrainConfig
from train.settings.engine import deepspeed_json, half_precision
from train.sizes.memory import engine_of
from train.sizes.shapes import Shape, linear_maps, shape_of

OVERHEAD = 1.02
"""Measured checkpoints against the bytes of their tensors: 16.3 and 14.3 bytes a weight where those
are 16 and 14."""


def adapter_weights(lora: dict[str, Any], shape: Shape) -> int:
    """Weights of an adapter, by arithmetic: never fewer than there are. `target_modules` that are
    no list of known names count as every linear map."""
    maps = linear_maps(shape.config)
    wanted = lora.get("target_modules", ["q_proj", "v_proj"])
    named = isinstance(wanted, (list, tuple)) and set(wanted) <= maps.keys()
    chosen = [maps[name] for name in wanted] if named else list(maps.values())
    rank = int(lora.get("r", 8))
    whole = len(lora.get("modules_to_save") or ()) * shape.hidden * int(shape.config["vocab_size"])
    return shape.layers * rank * sum(inputs + outputs for inputs, outputs in chosen) + whole


def checkpoint(trained: int, *, stage: int, half: bool) -> int:
    """Bytes of one resumable checkpoint of so many trained weights: fp32 copies and two moments,
    DeepSpeed's weights, and below stage 3 the same weights for transformers once more."""
    small = 2 if half else 4
    copies = 1 if stage == 3 else 2
    return round(trained * (12 + small * copies) * OVERHEAD)


def disk(config: TrainConfig, shape: Shape, *, half: bool) -> dict[str, int]:
    """Bytes on disk: one resumable checkpoint, and the peak while training: what save_total_limit
    keeps, one more while it is written, the weights as they are gathered (with an adapter also the
    base with it merged, in fp32) and as they are exported. Everything but the export is deleted
    after the export."""
    adapter = config.lora
    trained = shape.weights if adapter is None else adapter_weights(adapter, shape)
    stage = engine_of(config, shape.hidden).stage
    one = checkpoint(trained, stage=stage, half=half)
    kept = int(config.trainer_arguments()["save_total_limit"] or 4)
    gathered = trained * (2 if half else 4)
    exported = shape.weights * (4 if config.export_dtype == "float32" else 2)
    merged = 0 if adapter is None else shape.weights * 4
    return {"checkpoint": one, "peak": one * (kept + 1) + gathered + merged + exported}


def peak_disk(config: TrainConfig | None, *, on_gpu: bool) -> int | None:
    """Bytes that training one arm needs at its peak, on a GPU or the CPU; None where nothing knows
    the base."""
    if config is None:
        return None
    try:
        shape = shape_of(config.base, config.revision)
        deepspeed_json(config)
    except UserError:
        return None
    return disk(config, shape, half=half_precision(config, on_gpu=on_gpu))["peak"]
