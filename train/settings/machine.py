"""What the machine that trains offers, and how many processes follow from it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from core.serving.devices import cores, gpus, rocm
from train.config import TrainConfig

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
    said |= {"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}  # all is here, see settings.base
    if not gpus():
        return {**said, **MALLOC}
    chosen = any(name in os.environ for name in (*SEGMENTS, *OLDER_NAMES))
    return said if chosen or rocm() else {**said, **SEGMENTS}
