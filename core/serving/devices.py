"""The GPUs of this machine, counted in one way for trainings and for servers, without importing
torch or starting CUDA."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
"""Variables that say which GPUs a process may use; the first that is set counts. ROCm reads both.
ROCR_VISIBLE_DEVICES, below them, hides devices from both: what it leaves is numbered anew."""

NVIDIA = Path("/dev")
AMD = Path("/sys/class/kfd/kfd/topology/nodes")


def gpus(env: Mapping[str, str] | None = None) -> list[str]:
    """What CUDA_VISIBLE_DEVICES may hold of this machine's GPUs, NVIDIA's or AMD's: its own entries
    (those of HIP_VISIBLE_DEVICES) where `env` or else the environment sets it, else "0", "1", ...
    for all of them.

    As CUDA reads it, a list ends before its first entry that names no device (-1, or nothing).
    """
    around = {**os.environ, **(env or {})}
    for name in VISIBLE:
        if name in around:
            return _before_the_first_invalid(around[name])
    hidden = around.get("ROCR_VISIBLE_DEVICES")
    count = _nvidia() or _amd() if hidden is None else len(_before_the_first_invalid(hidden))
    return [str(index) for index in range(count)]


def pinned(devices: Sequence[str], env: Mapping[str, str]) -> dict[str, str]:
    """The variables that show a process with environment `env` these devices alone."""
    names = [name for name in VISIBLE if name in env] or VISIBLE[:1]
    return dict.fromkeys(names, ",".join(devices))


def rocm() -> bool:
    """Whether this machine's GPUs are AMD's."""
    return not _nvidia() and bool(_amd())


def cores() -> int:
    """CPU cores that this process may run on (a job of a scheduler may have few of them)."""
    return len(os.sched_getaffinity(0))


@functools.cache
def name() -> str | None:
    """What the driver calls this machine's first GPU ("NVIDIA H100 80GB HBM3"); None where there is
    none, or it is not NVIDIA's."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=name", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    names = listed.stdout.splitlines() if listed.returncode == 0 else []
    return names[0].strip() if names else None


def _before_the_first_invalid(listed: str) -> list[str]:
    devices: list[str] = []
    for entry in listed.split(","):
        device = entry.strip()
        if not device or device.startswith("-"):
            break
        devices.append(device)
    return devices


@functools.cache
def _nvidia() -> int:
    """NVIDIA GPUs by the driver's own list, which a container or a scheduler may have shortened;
    by their device nodes where the tool is missing."""
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        query = [tool, "--query-gpu=index", "--format=csv,noheader"]
        listed = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
        # Without a driver it exits with an error, in words that are no numbers.
        return len(re.findall(r"^\d+$", listed.stdout, re.M)) if listed.returncode == 0 else 0
    return len([node for node in NVIDIA.glob("nvidia[0-9]*") if node.name[6:].isdigit()])


@functools.cache
def _amd() -> int:
    """AMD GPUs: nodes of the kernel's compute topology with SIMD units (CPUs are nodes too, with
    none)."""
    count = 0
    for properties in AMD.glob("*/properties"):
        try:
            units = re.search(r"^simd_count (\d+)$", properties.read_text(), re.M)
        except OSError:  # a GPU of another container may not be read
            continue
        count += bool(units and int(units[1]))
    return count
