"""`magpie memory`: what each GPU holds while a recipe trains, at every ZeRO stage, with more and
less recomputation, with adapters; what fits, and the smallest change that would."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from recipes.verbs.terminal import say, table

if TYPE_CHECKING:
    from recipes.schema import Recipe
    from train.config import TrainConfig
    from train.sizes.fitting import Machine
    from train.sizes.memory import Estimate
    from train.sizes.shapes import Shape

PARTS = ("weights", "gradients", "optimizer", "activations", "momentary", "buffers", "context")
RECOMPUTED = ("full", "every_2_layers", "none")


@dataclass(frozen=True)
class Row:
    """One way to train: how it is called, and what a GPU holds."""

    name: str
    needs: Estimate


def main(recipe: Recipe, gpus: int | None, gpu_memory: float | None, *, as_json: bool) -> int:
    """Print the tables and the verdict; returns 1 when the training does not fit."""
    from train.sizes.fitting import verdict
    from train.sizes.shapes import shape_of

    config = recipe.train
    if config is None:
        raise UserError(f"recipe {recipe.name} trains nothing; `magpie memory` needs a `train:`.")
    shape = shape_of(config.base, config.revision)
    where = machine(recipe, gpus, gpu_memory)
    rows = [Row("as the recipe says", _needs(config, shape, where)), *others(config, shape, where)]
    line = verdict(config, shape, where)
    if as_json:
        print(json.dumps(_plain(rows, where, line), indent=2))
    else:
        _show(config, shape, where, rows)
        print(line)
    return int(not line.startswith("fits"))


def machine(recipe: Recipe, gpus: int | None, gpu_memory: float | None) -> Machine:
    """GPUs and their memory (`gpu_memory`: GiB): as asked for, else as the recipe states them, else
    this machine's. Raises UserError where none of them says."""
    from core.serving import devices
    from train.settings.machine import processes
    from train.sizes.fitting import Machine
    from train.sizes.memory import GIB
    from train.sizes.memory import gpu_memory as of_driver

    stated, config = recipe.expected, recipe.train or recipe.dpo
    count = gpus or (config and config.num_processes) or (stated and stated.gpus)
    if not count and config is not None and devices.gpus():
        count = processes(config)
    size = gpu_memory or (stated and stated.gpu_memory)
    memory = int(size * GIB) if size else of_driver()
    if not count or not memory:
        missing = "--gpus" if not count else "--gpu-memory (GiB)"
        raise UserError(
            f"this machine has no GPU and recipe {recipe.name} states none, so {missing} is needed "
            "(for example `--gpus 8 --gpu-memory 80`)."
        )
    return Machine(count, memory)


def others(config: TrainConfig, shape: Shape, where: Machine) -> Iterator[Row]:
    """The same training at every stage and with every recomputation, and with adapters; only
    recomputation where the DeepSpeed file is the user's."""
    from train.sizes.fitting import ADAPTER, FOUR_BITS, changed

    whole = {"lora": None, "model_init": {"quantization_config": None}}
    method = "as it is" if config.deepspeed is not None else "full"
    stages: list[dict[str, Any]] = [{}]
    if config.deepspeed is None:
        stages = [{"zero_stage": stage, "offload": False, **whole} for stage in range(4)]
        stages += [{"zero_stage": stage, "offload": True, **whole} for stage in (2, 3)]
    for stage in stages:
        label = f"{method}, ZeRO-{stage['zero_stage']}" if stage else method
        label += ", offloaded" if stage.get("offload") else ""
        for kept in RECOMPUTED:
            change = {**stage, "checkpointing": kept}
            yield Row(
                f"{label}, checkpointing {kept}", _needs(changed(config, change), shape, where)
            )
    if config.deepspeed is not None:
        return
    adapter = config.lora or ADAPTER
    for name, bits in (("LoRA", {"quantization_config": None}), ("QLoRA", FOUR_BITS)):
        for kept in RECOMPUTED:
            given = {"zero_stage": 2, "offload": False, "lora": adapter, "model_init": bits}
            tried = changed(config, {**given, "checkpointing": kept})
            label = f"{name} r={adapter.get('r', 8)}, ZeRO-2, checkpointing {kept}"
            yield Row(label, _needs(tried, shape, where))


def _needs(config: TrainConfig, shape: Shape, where: Machine) -> Estimate:
    from train.sizes.memory import estimate

    return estimate(config, shape, where.devices)


def _show(config: TrainConfig, shape: Shape, where: Machine, rows: list[Row]) -> None:
    """Print what is trained on what, and one line a way to train."""
    from train.settings.engine import half_precision
    from train.sizes.memory import GIB, pass_of
    from train.sizes.published import beside

    one = pass_of(config, shape, half=half_precision(config, on_gpu=True))
    say(
        f"{config.base}: {shape.weights / 1e9:.2f} billion weights (shape from {shape.source}); "
        f"{where.devices} GPUs of {where.memory / GIB:.0f} GiB, {one.rows} x {one.length:,} tokens "
        f"a pass, {one.attention}"
    )
    columns = ("GiB a GPU", *PARTS, "peak", "CPU memory a GPU", "")
    cells = []
    for row in rows:
        sizes = [f"{getattr(row.needs, part) / GIB:.1f}" for part in PARTS]
        fits = "fits" if row.needs.peak <= where.room else "does not fit"
        host = f"{row.needs.host / GIB:.0f}" if row.needs.host else ""
        cells.append([row.name, *sizes, f"{row.needs.peak / GIB:.1f}", host, fits])
    table(columns, cells)
    say(
        "momentary: what a step of the optimizer needs when activations are gone; the peak holds "
        "the larger of the two. Figures are arithmetic and traces, not measured on these GPUs."
    )
    for peak in beside(config.base):
        say(
            f"published of this shape ({peak.source}, by its own optimizer and recomputation): "
            f"{peak.method}, {peak.rows} x {peak.length:,} tokens a pass: {peak.gib} GiB"
        )


def _plain(rows: list[Row], where: Machine, line: str) -> dict[str, Any]:
    """The same in bytes, for scripts."""
    listed = []
    for row in rows:
        parts = {part: getattr(row.needs, part) for part in (*PARTS, "host", "peak")}
        listed.append({"name": row.name, **parts, "fits": row.needs.peak <= where.room})
    return {"gpus": where.devices, "gpu_memory": where.memory, "rows": listed, "verdict": line}
