"""What serving a model by vLLM takes of each GPU, worked out from its shape: weights, the cache of
keys and values of one sequence, and what vLLM itself works with.

vLLM refuses to start where the cache does not hold one sequence of `max_model_len`; that is the
least that is asked for here. More cache is more requests at once, and no matter of fitting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from train.sizes.memory import GIB
from train.sizes.shapes import Shape

UTILIZATION = 0.92
"""vLLM's default for `gpu_memory_utilization`."""
WORKING = 2 * GIB
"""What a GPU holds beside weights and cache: activations of one batch, CUDA graphs, the context. An
allowance, not measured."""
LENGTH = 8192
"""Tokens of a sequence where neither `max_model_len` nor the model's configuration says."""
BYTES = {"fp8": 1.0, "int8": 1.0, "awq": 0.56, "gptq": 0.56, "bitsandbytes": 0.56, "mxfp4": 0.53}
"""Bytes a weight by the beginning of `quantization`: four bits with their scales are about 4.5."""
SIZES = (1, 2, 4, 8, 16)
"""Tensor parallel sizes that are tried."""


@dataclass(frozen=True)
class Served:
    """What one GPU of a replica holds, in bytes, and how many GPUs a replica has."""

    ranks: int
    weights: float
    cache: float
    length: int
    share: float
    """Of a GPU's memory that vLLM may use."""

    @property
    def needs(self) -> float:
        """Bytes of a GPU, of the share that vLLM may use."""
        return self.weights + self.cache + WORKING

    def fits(self, memory: int) -> bool:
        """Whether a GPU with so many bytes is enough."""
        return self.needs <= memory * self.share


def served(shape: Shape, args: Mapping[str, Any]) -> Served:
    """What `vllm serve` with these `args` needs for a model of this shape."""
    tensor, pipeline, data = (_parallel(args, kind) for kind in ("tensor", "pipeline", "data"))
    config = shape.config
    heads = int(config.get("num_key_value_heads") or config["num_attention_heads"])
    size = int(config.get("head_dim") or shape.hidden // int(config["num_attention_heads"]))
    length = int(args.get("max_model_len") or config.get("max_position_embeddings") or LENGTH)
    wide = 1 if str(args.get("kv_cache_dtype", "auto")).startswith("fp8") else 2
    of_token = 2 * shape.layers * math.ceil(heads / tensor) * size * wide / pipeline
    weights = shape.weights * weight_bytes(config, args) / (tensor * pipeline)
    share = float(args.get("gpu_memory_utilization") or UTILIZATION)
    return Served(tensor * pipeline * data, weights, of_token * length, length, share)


def _parallel(args: Mapping[str, Any], kind: str) -> int:
    return int(args.get(f"{kind}_parallel_size") or 1)


def weight_bytes(config: Mapping[str, Any], args: Mapping[str, Any]) -> float:
    """Bytes of a weight: by `quantization`, of the server or in the model's configuration, else by
    `dtype`, else two."""
    own = config.get("quantization_config") or {}
    said = str(args.get("quantization") or own.get("quant_method") or "")
    for name, size in BYTES.items():
        if said.startswith(name):
            return size
    return 4.0 if args.get("dtype") in ("float32", "float") else 2.0


def smallest(shape: Shape, args: Mapping[str, Any], gpus: int, memory: int) -> int | None:
    """The least tensor parallel size at which a replica fits so many GPUs of so many bytes; None
    where none does."""
    heads = int(shape.config["num_attention_heads"])
    for size in SIZES:
        tried = served(shape, {**args, "tensor_parallel_size": size})
        if tried.ranks <= gpus and heads % size == 0 and tried.fits(memory):
            return size
    return None
