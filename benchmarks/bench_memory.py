"""Peak memory of real passes against the traced estimate, on this machine's CPU: SmolLM2-135M's
shape, fp32, TRL's loss, one forward and backward in a process of its own, gradients dropped as ZeRO
drops what it has reduced.

    MALLOC_MMAP_THRESHOLD_=65536 python benchmarks/bench_memory.py [CASE ...]

Measured: the most that the process held (VmHWM, reset before the pass) less what it held before;
the variable lets the C library give freed blocks back, which the peak would hold otherwise.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from train.sizes.activations import Pass, built, traced
from train.sizes.memory import GIB
from train.sizes.shapes import shape_of

BASE = "HuggingFaceTB/SmolLM2-135M"
UNPACKED = {"packed": False, "half": False}
CASES = {
    "full, 1 x 512": Pass(1, 512, **UNPACKED),
    "full, 1 x 1024": Pass(1, 1024, **UNPACKED),
    "every_2_layers, 1 x 1024": Pass(1, 1024, **UNPACKED, recomputed=2),
    "none, 1 x 512": Pass(1, 512, **UNPACKED, recomputed=0),
    "none, 1 x 1024": Pass(1, 1024, **UNPACKED, recomputed=0),
    "none, 2 x 512": Pass(2, 512, **UNPACKED, recomputed=0),
    "none, packed 2 x 512": Pass(2, 512, packed=True, half=False, recomputed=0),
    "LoRA r=16, none, 1 x 1024": Pass(1, 1024, **UNPACKED, recomputed=0, lora={"r": 16}),
}


def main() -> None:
    """Print one line a case: measured, estimated, their ratio."""
    shape = shape_of(BASE)
    for name in sys.argv[1:] or CASES:
        one = CASES[name]
        command = [sys.executable, __file__, "--measure", name]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
        measured = json.loads(said.stdout.splitlines()[-1])
        estimated = traced(shape, one).peak
        print(
            f"{name:28} measured {measured / GIB:6.3f} GiB  estimated {estimated / GIB:6.3f} GiB  "
            f"ratio {estimated / measured:.3f}",
            flush=True,
        )


def measure(one: Pass) -> int:
    """Bytes that a real pass took at its peak beside the weights."""
    import torch
    from transformers import AutoConfig

    from train.sizes.activations import inputs_of, materialise

    model = built(AutoConfig.for_model(**shape_of(BASE).config), one, one.attention)
    materialise(model)
    for weight in model.parameters():
        torch.nn.init.normal_(weight.data, std=0.02)
    for module in model.modules():  # meta tensors held no positions
        if hasattr(module, "inv_freq"):
            size = module.inv_freq.numel()
            module.inv_freq.copy_(1.0 / (10000 ** (torch.arange(size) / size)))
    inputs = inputs_of(one, masked=one.packed)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again here
    model(**inputs, fused_lm_head=True, num_items_in_batch=torch.tensor(one.tokens)).loss.backward()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    """Bytes that /proc/self/status says."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(measure(CASES[sys.argv[2]]))
    else:
        main()
