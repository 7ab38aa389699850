"""What the machine that trains offers: processes, their environment, how the base is loaded, and
whether anything is missing. Asked where a training runs, each time; no answer is remembered."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.serving.devices import cores, gpus, rocm
from train.config import TrainConfig
from train.settings import kernels

# glibc returns large blocks to the system and faults them in again at every step; 37 s -> 24 s for
# five steps with a vocabulary of 49k.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}

# Sequences of every length come and go, and blocks of fixed size leave gaps between them.
SEGMENTS = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
OLDER_NAMES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


def processes(config: TrainConfig) -> int:
    """Processes over all machines: the recipe's number, else one a GPU, else one a machine."""
    return config.num_processes or max(1, len(gpus())) * config.num_machines


def environment(config: TrainConfig) -> dict[str, str]:
    """What the training processes of one machine need in their environment beside ours. What the
    user's own says of threads and of CUDA's allocator stays."""
    # ninja lives beside the interpreter
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    ranks = max(1, processes(config) // config.num_machines)
    # Accelerate's launcher says 1 where nothing is said; DeepSpeed's optimizer on the CPU would use
    # one core of a hundred.
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // ranks))
    said = {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", "PATH": path}
    said |= {
        "OMP_NUM_THREADS": threads,
        "HF_HUB_OFFLINE": "1",
    }  # all is here
    if not gpus():
        return {**said, **MALLOC}
    chosen = any(name in os.environ for name in (*SEGMENTS, *OLDER_NAMES))
    return said if chosen or rocm() else {**said, **SEGMENTS}


def model_init(config: TrainConfig, *, gpu: bool) -> dict[str, Any]:
    """Arguments of from_pretrained on a machine with GPUs, or without: `model_init:` over what is
    fastest there.

    A GPU gets flash attention where a package brings it, and weights in the number format of the
    training, so that no process holds them in 32 bits first. The CPU has neither flash attention
    nor kernels, whatever a recipe made for GPUs says.
    """
    given = dict(config.model_init)
    if not gpu:
        given.pop("use_kernels", None)
        if _flash(str(given.get("attn_implementation"))):
            given["attn_implementation"] = "sdpa"
        return given
    fp16 = config.trainer.get("fp16", False)
    half = "float16" if fp16 else "bfloat16"
    if fp16 or config.trainer.get("bf16", True):
        given.setdefault("dtype", half)
        given.setdefault("attn_implementation", _attention())
    return given


def _flash(attention: str) -> bool:
    return attention in kernels.PACKAGES or "/" in attention


def _attention() -> str:
    """The fastest attention that is installed here: a package's own, that of the hub by `kernels`,
    or torch's."""
    brought = importlib.util.find_spec("flash_attn") or importlib.util.find_spec("kernels")
    return "flash_attention_2" if brought else "sdpa"


def replaced(config: TrainConfig) -> str | None:
    """What of `model_init` this machine cannot do and goes without, in one line; None for none."""
    used = model_init(config, gpu=bool(gpus()))
    lost = {k: v for k, v in config.model_init.items() if used.get(k) != v}
    if not lost:
        return None
    said = ", ".join(f"{key}: {value}" for key, value in lost.items())
    return f"no GPU here: trained without {said}"


def ready(config: TrainConfig, say: Callable[[str], None]) -> None:
    """Look whether this machine can do what it is to do, fetch the kernels that it needs, and say
    what it goes without. Raises UserError as `check` and `kernels.fetch` do."""
    if config.num_machines == 1:  # several are asked each for itself, by the processes there
        check(config)
    if gpus():
        kernels.fetch(model_init(config, gpu=True))
    elif (without := replaced(config)) is not None:
        say(without)


def check(config: TrainConfig, base: Path | None = None) -> None:
    """Raise UserError for the first thing that this machine lacks; `base` is the folder of the
    model, where it is to be here already."""
    here = gpus()
    if base is not None and not base.is_dir():
        raise UserError(
            f"the base {base} is not on this machine: machines that train together need one "
            "file system, for the store and for the hub's cache (HF_HOME)."
        )
    used = model_init(config, gpu=bool(here))
    for sentence in (*_gpus_for(config, len(here)), *_packages_for(config, used)):
        raise UserError(f"{config.block}.{sentence}")


def _gpus_for(config: TrainConfig, here: int) -> Iterator[str]:
    wanted = processes(config) // config.num_machines
    if here and wanted > here:
        yield (
            f"num_processes asks for {wanted} GPUs on this machine, which shows {here}; "
            "lower it (tokens_per_step keeps the step), or show more (CUDA_VISIBLE_DEVICES)."
        )


EIGHT_BIT = ("8bit", "bnb", "paged")
PACKAGE_OF = {
    "galore": "galore_torch",
    "lomo": "lomo_optim",
    "apollo": "apollo_torch",
    "schedule_free": "schedulefree",
    "grokadamw": "grokadamw",
    "apex": "apex",
    "torchao": "torchao",
    "4bit": "torchao",
}
"""Part of an optimizer's name under `trainer.optim` -> the package that it is in."""


def _packages_for(config: TrainConfig, used: Mapping[str, Any]) -> Iterator[str]:
    """Packages and compilers that are missing here."""
    wanted: dict[str, str] = {}
    optimizer = str(config.trainer.get("optim", ""))
    if any(part in optimizer for part in EIGHT_BIT):
        wanted["bitsandbytes"] = f"trainer.optim: {optimizer}"
    else:
        found = (package for part, package in PACKAGE_OF.items() if part in optimizer)
        wanted |= dict.fromkeys(found, f"trainer.optim: {optimizer}")
    quantization = used.get("quantization_config") or {}
    if any(quantization.get(key) for key in ("load_in_4bit", "load_in_8bit")):
        wanted["bitsandbytes"] = "model_init.quantization_config"
    for key, value in kernels.of_the_hub(used).items():
        wanted["kernels"] = f"model_init.{key}: {value}"
    for package, setting in wanted.items():
        if importlib.util.find_spec(package) is None:
            yield f"{setting} needs the package {package}, which is not installed here; install it."
    ninja = shutil.which("ninja") or (Path(sys.executable).parent / "ninja").exists()
    if config.offload and not (ninja and shutil.which("g++")):
        yield (
            "offload: DeepSpeed compiles its CPU optimizer on first use and needs g++ "
            "and ninja for it; install both."
        )
