"""How fast a training is: FLOPs a token and MFU. Arithmetic only; torch is never imported.

FLOPs of one trained token = 6·N + 12·L·d·c (forward 2·N, backward 4·N; Kaplan et al. 2020, PaLM
appendix B), where N counts every weight but the input embedding (a look-up; a tied output head
counts), L layers, d = heads times head size, and c the mean number of tokens that a token attends
to, itself included (causal: half its own document, not half the packed sequence). With a frozen
base (LoRA) the 2·N for weight gradients fall away: 4·N. Recomputation by gradient checkpointing is
not counted, so this is MFU, not hardware utilisation.
"""

from __future__ import annotations

import re
from typing import Any

PEAK_FLOPS = {
    "GB300": 2500e12,
    "B300": 2250e12,
    "GB200": 2500e12,
    "B200": 2250e12,
    "GH200": 989.5e12,
    "H200 NVL": 835.5e12,
    "H200": 989.5e12,
    "H100 NVL": 835.5e12,
    "H100 PCIe": 756e12,
    "H100": 989.5e12,
    "H800": 989.5e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L20": 119.5e12,
    "L4": 121e12,
    "RTX 6000 Ada": 364e12,
    "RTX A6000": 154.8e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "MI355X": 2516e12,
    "MI350X": 2307e12,
    "MI325X": 1307e12,
    "MI300X": 1307e12,
    "MI300A": 980e12,
    "MI250X": 383e12,
    "MI250": 362e12,
    "MI210": 181e12,
}
"""Dense bf16 peak of a device in FLOP/s, by words of the name that its driver gives (data sheets of
NVIDIA and AMD; half of what they state with sparsity)."""


def peak_flops(device: str) -> float | None:
    """Dense bf16 peak (FLOP/s) of a device by its name ("NVIDIA H100 NVL");
    None when it is not known, or a part of a device (MIG)."""
    words = set(re.split(r"[\s-]+", device))
    known = [name for name in PEAK_FLOPS if set(name.split()) <= words]
    if "MIG" in words or not known:
        return None
    return PEAK_FLOPS[max(known, key=len)]


def flops_per_token(
    multiplying: int, config: dict[str, Any], context: float, *, frozen_base: bool = False
) -> float:
    """FLOPs of one trained token. `multiplying`: weights without the input embedding's, unless the
    head is tied to it; `config` the model's config.json, `context` mean tokens attended to."""
    heads = config["num_attention_heads"]
    width = heads * (config.get("head_dim") or config["hidden_size"] // heads)
    passes = 4 if frozen_base else 6
    return float(passes * multiplying + 12 * config["num_hidden_layers"] * width * context)


def mfu(tokens_per_second: float, flops_a_token: float, devices: int, peak: float) -> float:
    """Model FLOPs utilisation (0 to 1): tokens/s over all devices times FLOPs a token, over the
    devices' dense peak."""
    return tokens_per_second * flops_a_token / (devices * peak)
