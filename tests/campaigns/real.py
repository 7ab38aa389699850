"""The recipe of the cases on real vLLM and TRL: a tiny Llama, served by vLLM's CPU build and
trained by two processes of TRL under DeepSpeed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests import small_recipe

GROUPS = ("select", "train", "answers")
"""Where a store is copied for the cases of the stages after it."""
STAGES = {
    "instructions": "select",
    "responses": "select",
    "train": "train",
    "answers": "answers",
}
"""Stage -> the group that it is of."""
TIMEOUT = 8.0
"""Seconds that a request may take."""


def is_real(mode: str) -> bool:
    """Whether the cases of a mode need the real stack."""
    return mode.startswith("real")


def plain(mode: str) -> str:
    """The mode whose runs without faults are those of this one too."""
    return mode.partition(" ")[0]


def recipe(folder: Path, llama: Path, mode: str) -> dict[str, Any]:
    """One arm, trained once and asked; in mode "real worker", vLLM's worker is a process of its
    own."""
    args: dict[str, Any] = {"max_model_len": 512}
    if mode == "real worker":
        args["distributed_executor_backend"] = "mp"
    server = {
        "max_in_flight": 4,
        "timeout": TIMEOUT,
        "args": args,
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1"},
    }
    trainer = {
        "max_length": 256,
        "max_steps": 24,
        "save_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "gradient_checkpointing": False,
        "ddp_timeout": 60,
    }
    path = small_recipe.recipe(
        folder,
        llama,
        "http://unused",
        train=True,
        arms={"kept": {"choose": "hash_order", "budget": {"rows": 24}}},
        random_arm=False,
        synth__rows=60,
        train__num_processes=2,
        train__zero_stage=2,
        train__trainer=trainer,
        eval__arena=None,
        eval__heldout=None,
        eval__limit=20,
    )
    made: dict[str, Any] = yaml.safe_load(path.read_text())
    made["synth"]["teacher"]["server"] = server
    made["eval"]["judge"]["server"] = made["eval"]["answers"]["server"] = server
    return made
