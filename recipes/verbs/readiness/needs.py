"""What each stage of a recipe needs of a machine, beside what is there: servers of models, the
training, memory of a machine without GPUs, disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from core.errors import UserError
from core.serving.devices import gpus
from recipes.verbs.readiness import serving

if TYPE_CHECKING:
    from recipes.schema import Recipe
    from train.config import TrainConfig
    from train.sizes.shapes import Shape

ELSEWHERE = "`magpie doctor RECIPE --gpus 8 --gpu-memory 80` asks about GPUs of another machine"
CPU_CACHE = 4
"""GiB of keys and values that vLLM's CPU build takes unless VLLM_CPU_KVCACHE_SPACE says another."""
CPU_STATES = 16
"""Bytes a weight of a training in fp32: the weight, its gradient and AdamW's two moments."""


class Check(NamedTuple):
    """One finding: `state` is ok, warn or fail; `advice` says what to do (empty when ok)."""

    state: str
    what: str
    advice: str = ""


def check(fine: bool, what: str, advice: str) -> Check:
    """A finding that is ok or fails."""
    return Check("ok", what) if fine else Check("fail", what, advice)


@dataclass(frozen=True)
class Place:
    """Where a recipe is to run."""

    gpus: int
    memory: int | None
    """Bytes of each GPU; None where no driver says."""
    ram: int
    """Bytes of the machine's own memory."""
    stated: bool
    """Whether a person stated it: another machine than this one."""

    @property
    def said(self) -> str:
        """The GPUs in words."""
        from train.sizes.memory import GIB

        if not self.gpus:
            return "no GPU"
        each = f" of {self.memory / GIB:.0f} GiB" if self.memory else ""
        return f"{self.gpus} GPU{'s' * (self.gpus > 1)}{each}"


def place(count: int | None, memory: float | None) -> Place:
    """This machine, or `count` GPUs of `memory` GiB. Raises UserError where one of them is missing
    and this machine's GPUs do not say it."""
    import psutil

    from train.sizes.memory import GIB, gpu_memory

    here, ram = len(gpus()), psutil.virtual_memory().total
    if count is None and memory is None:
        return Place(here, gpu_memory(), ram, False)
    size = int(memory * GIB) if memory else gpu_memory()
    if not (count or here) or not size:
        missing = "--gpu-memory GIB" if count else "--gpus N"
        raise UserError(f"this machine has no GPU that would say it, so {missing} is needed too.")
    return Place(count or here, size, ram, True)


@dataclass(frozen=True)
class Model:
    """A model that a stage serves: where the recipe says so, which, and its server's block."""

    where: str
    name: str
    revision: str | None
    server: Mapping[str, Any]


def of_servers(models: list[Model], where: Place) -> Iterator[Check]:
    """What every model that vLLM serves needs; each has the GPUs for itself while it is asked."""
    for model in models:
        shape = _shape(model.name, model.revision)
        if isinstance(shape, UserError):
            yield Check("warn", f"{model.where}: {model.name}", str(shape))
        elif where.gpus and where.memory:
            yield _on_gpus(model, shape, where, where.memory)
        elif where.gpus:
            yield Check("warn", f"{model.where}: no driver says how much memory a GPU has", "")
        else:
            yield _on_cpu(model, shape, where)


@cache
def _shape(name: str, revision: str | None) -> Shape | UserError:
    """The shape of a model, or why it is not known; the hub is asked once."""
    from train.sizes.shapes import shape_of

    try:
        return shape_of(name, revision)
    except UserError as error:
        return error
    except (KeyError, TypeError, ValueError) as error:
        return UserError(f"its config.json lacks what its size is worked out from ({error})")


def _on_gpus(model: Model, shape: Shape, where: Place, memory: int) -> Check:
    """One replica on the GPUs that there are."""
    from train.sizes.memory import GIB

    args = model.server.get("args") or {}
    need = serving.served(shape, args)
    what = (
        f"{model.where}: {model.name} on {need.ranks} of {where.said}: "
        f"{need.weights / GIB:.1f} GiB of weights, {need.cache / GIB:.1f} for one sequence of "
        f"{need.length:,} tokens and about {serving.WORKING / GIB:.0f} more, of "
        f"{memory * need.share / GIB:.1f} that vLLM may use"
    )
    replicas = int(model.server.get("replicas") or 1)
    if need.ranks * replicas > where.gpus:
        advice = f"lower {model.where}.server.args.tensor_parallel_size or replicas"
        if need.ranks > where.gpus:
            advice = f"it needs {need.ranks} GPUs: {_smaller(model, shape, where, memory)}"
        return Check("fail", what, advice)
    if need.fits(memory):
        return Check("ok", what)
    return Check("fail", what, _smaller(model, shape, where, memory))


def _smaller(model: Model, shape: Shape, where: Place, memory: int) -> str:
    """What would make a model fit."""
    args = dict(model.server.get("args") or {})
    size = serving.smallest(shape, args, where.gpus, memory)
    if size is not None:
        return f"set {model.where}.server.args.tensor_parallel_size={size}"
    small = serving.smallest(shape, {**args, "quantization": "fp8"}, where.gpus, memory)
    if small is not None:
        return (
            f"set {model.where}.server.args.quantization=fp8 and tensor_parallel_size={small}, or "
            "take more GPUs"
        )
    return "take more or larger GPUs, a smaller model, or a service (`server.urls`)"


def _on_cpu(model: Model, shape: Shape, where: Place) -> Check:
    """vLLM's CPU build, with the machine's own memory."""
    from train.sizes.memory import GIB

    args = model.server.get("args") or {}
    weights = shape.weights * serving.weight_bytes(shape.config, args)
    need = weights + CPU_CACHE * GIB
    what = (
        f"{model.where}: {model.name} without a GPU: {need / GIB:.1f} GiB of memory, "
        f"there are {where.ram / GIB:.0f}"
    )
    advice = f"take GPUs, a smaller model, or a service (`server.urls`); {ELSEWHERE}"
    return check(need < where.ram, what, advice)


def of_training(config: TrainConfig, where: Place) -> Iterator[Check]:
    """What a device holds of the training, and what is missing for it."""
    from train.sizes.memory import GIB

    shape = _shape(config.base, config.revision)
    if isinstance(shape, UserError):
        yield Check("warn", f"{config.block}: {config.base}", str(shape))
        return
    billions = f"{config.base}, {shape.weights / 1e9:.2f} billion weights"
    if where.gpus and where.memory:
        yield _trained(config, shape, where, where.memory, billions)
    elif where.gpus:
        yield Check("warn", f"{config.block}: {billions}; no driver says how much memory a GPU has")
    else:
        processes = config.num_processes or 1
        states = shape.weights * CPU_STATES if config.lora is None else shape.weights * 4
        copies = processes - 1 if config.zero_stage < 3 else 0
        need = states + copies * shape.weights * 8
        what = (
            f"{config.block}: {billions}, in fp32 without a GPU: {need / GIB:.1f} GiB of memory "
            f"and its activations, there are {where.ram / GIB:.0f}"
        )
        advice = f"take GPUs, or a smaller base; {ELSEWHERE}"
        yield check(need < where.ram, what, advice)


def _trained(config: TrainConfig, shape: Shape, where: Place, memory: int, billions: str) -> Check:
    """A training on GPUs, by the estimate of `magpie memory`."""
    from train.sizes.fitting import Machine, verdict
    from train.sizes.memory import GIB, estimate

    devices = config.num_processes or where.gpus
    if devices > where.gpus * config.num_machines:
        return Check(
            "fail",
            f"{config.block}: num_processes asks for {devices} GPUs, there are {where.said}",
            f"set {config.block}.num_processes={where.gpus} (tokens_per_step keeps the step)",
        )
    try:
        machine = Machine(devices, memory)
        needs = estimate(config, shape, devices)
        line = verdict(config, shape, machine)
    except UserError as error:
        return Check("warn", f"{config.block}: {error}")
    what = f"{config.block}: {billions}: {needs.peak / GIB:.1f} GiB on each of {where.said}"
    if needs.host:
        what += f", {needs.host * devices / GIB:.0f} GiB of the machine's memory"
    return check(line.startswith("fits"), what, line)


def of_packages(config: TrainConfig) -> Iterator[Check]:
    """Packages, compilers and kernels that the training asks for, on this machine."""
    from train.settings import machine

    what = f"{config.block}: its packages and kernels are here"
    try:
        machine.check(config)
    except UserError as error:
        yield Check("fail", f"{config.block}: its packages and kernels", str(error))
        return
    yield Check("ok", what)


def of_disk(recipe: Recipe, models: list[Model], where: Place) -> Iterator[Check]:
    """Whether the store may be written to, and holds what a training needs at its peak beside the
    checkpoints of all runs; and the hub's cache what is to be fetched."""
    store = Path(recipe.store)
    parent = next(folder for folder in (store, *store.resolve().parents) if folder.exists())
    writable = os.access(parent, os.W_OK)
    what = f"store {store}: {'writable' if writable else 'not writable'}"
    yield check(writable, what, "change `store:` or its permissions")
    need = _written(recipe, on_gpu=bool(where.gpus))
    advice = "free space, lower trainer.save_total_limit, or put `store:` on another disk"
    yield _room(f"disk: about {need / 1e9:,.0f} GB for the store", need, parent, advice, where)
    fetched = {name: size for name, size in map(_fetched, models) if size}
    if fetched:
        cached = _hub_cache()
        parent = next(folder for folder in (cached, *cached.parents) if folder.exists())
        need = sum(fetched.values())
        what = f"disk: about {need / 1e9:,.0f} GB for the hub's cache ({', '.join(fetched)})"
        yield _room(what, need, parent, "free space, or set HF_HOME to another disk", where)


def _room(what: str, need: float, folder: Path, advice: str, where: Place) -> Check:
    """Whether a disk has so many bytes free; of another machine only what it needs."""
    if where.stated:
        return Check("ok", what)
    free = shutil.disk_usage(folder).free
    return check(free > need, f"{what}, {free / 1e9:,.0f} are free", advice)


def _written(recipe: Recipe, *, on_gpu: bool) -> float:
    """Bytes that a recipe's store takes at its peak: one training, and the checkpoints of all."""
    from recipes.schema import with_random
    from train.sizes.disk import peak_disk

    config = recipe.train
    if config is None:
        return MINIMUM_DISK / 10
    peak = peak_disk(config, on_gpu=on_gpu) or 0
    shape = _shape(config.base, config.revision)
    if isinstance(shape, UserError):
        return max(peak, MINIMUM_DISK)
    runs = sum(arm.model is None for arm in with_random(recipe).values()) * len(config.seeds)
    width = 4 if config.export_dtype == "float32" else 2
    return max(peak + runs * shape.weights * width, MINIMUM_DISK)


MINIMUM_DISK = 10e9


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _fetched(model: Model) -> tuple[str, float]:
    """(a model, bytes of its weights that are to be fetched from the hub)."""
    from huggingface_hub import try_to_load_from_cache

    shape = _shape(model.name, model.revision)
    if isinstance(shape, UserError) or shape.source == "its folder":
        return model.name, 0.0
    for file in WEIGHTS:
        if isinstance(try_to_load_from_cache(model.name, file, revision=model.revision), str):
            return model.name, 0.0
    return model.name, 2.0 * shape.weights


WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
"""Files one of which is in the hub's cache where a model's weights are."""
