"""Shapes of a model's weights, without loading them."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any


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
