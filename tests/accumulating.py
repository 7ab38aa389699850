"""What DeepSpeed's engine does with bf16 gradients under the JSON files that ship, one line of JSON
a file; run by tests/test_accumulation.py.

    python -m tests.accumulating FOLDER PORT zero1 zero2 ...
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from tests import tiny

STEPS = 8  # micro-batches that are added up


def main(folder: Path, port: str, names: list[str]) -> None:
    """Print, for each of the JSON files: the optimizer's class, the relative error of the gradient
    of STEPS micro-batches, and how far a resumed engine's weights end from an unbroken one's."""
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(alone, MASTER_PORT=port)
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")
    base = tiny.llama(folder / "model")
    torch.manual_seed(0)
    batches = [torch.randint(4, 280, (1, 64)) for _ in range(2 * STEPS)]
    exact, low = sums(base, batches[:STEPS])
    for name in names:
        first = engine(base, name)
        gradient = step(first, batches[:STEPS])
        first.save_checkpoint(str(folder / name))
        step(first, batches[STEPS:])
        second = engine(base, name)
        second.load_checkpoint(str(folder / name))
        step(second, batches[STEPS:])
        found = {
            "name": name,
            "optimizer": type(first.optimizer).__name__,
            "error": distance(gradient, exact),
            "error_in_bf16": distance(low, exact),
            "resumed_off_by": distance(weights(second), weights(first)),
            "moved_by": distance(weights(first), weights(engine(base, name))),
        }
        print(json.dumps(found), flush=True)


def model(base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)


def sums(base: Path, batches: list[torch.Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The batches' mean gradient by name, each batch's in bf16, added up in fp32 and in bf16."""
    plain = model(base)
    exact = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in plain.named_parameters()}
    low = {name: torch.zeros_like(w) for name, w in plain.named_parameters()}
    for batch in batches:
        plain.zero_grad()
        (plain(input_ids=batch, labels=batch).loss / len(batches)).backward()
        for name, weight in plain.named_parameters():
            exact[name] += weight.grad.float()
            low[name] += weight.grad
    return exact, low


def engine(base: Path, name: str) -> Any:
    """An engine under a JSON that ships, with the values that Transformers fills in."""
    import deepspeed

    config = json.loads((Path(__file__).parents[1] / f"train/deepspeed/{name}.json").read_text())
    zero = {k: v for k, v in config["zero_optimization"].items() if v != "auto"}
    config["bf16"]["enabled"], config["fp16"]["enabled"] = True, False
    config |= {"zero_optimization": zero, "train_batch_size": STEPS, "gradient_clipping": 1.0}
    config |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": STEPS}
    fresh = model(base)
    adam = deepspeed.ops.adam.DeepSpeedCPUAdam if "offload" in name else torch.optim.AdamW
    optimizer = adam(fresh.parameters(), lr=1e-3)
    return deepspeed.initialize(model=fresh, optimizer=optimizer, config=config)[0]


def step(engine: Any, batches: list[torch.Tensor]) -> dict[str, Any]:
    """One optimizer step over the batches; returns what it added up, by name."""
    from deepspeed.utils import safe_get_full_grad

    gradient = {}
    for batch in batches:
        engine.backward(engine(input_ids=batch, labels=batch).loss)
        if engine.is_gradient_accumulation_boundary():
            named = engine.module.named_parameters()
            gradient = {name: safe_get_full_grad(weight).float() for name, weight in named}
        engine.step()
    return gradient


def weights(engine: Any) -> dict[str, Any]:
    """The fp32 weights by name."""
    from deepspeed.utils import safe_get_full_fp32_param

    named = engine.module.named_parameters()
    return {name: safe_get_full_fp32_param(weight).clone() for name, weight in named}


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The relative distance of tensors by name, all together."""
    apart = sum(float((one[name].float() - other[name].float()).square().sum()) for name in other)
    whole = sum(float(other[name].float().square().sum()) for name in other)
    return float((apart / whole) ** 0.5)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
