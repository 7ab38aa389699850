"""Gradients of micro-batches are added up in fp32 wherever DeepSpeed can, and what it cannot do is
said."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from train.config import TrainConfig
from train.settings import engine

OPTIMIZERS = {
    "zero1": "BF16_Optimizer",
    "zero2": "DeepSpeedZeroOptimizer",
    "zero3": "DeepSpeedZeroOptimizer_Stage3",
}


def measured(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """What tests/accumulating.py finds of the JSON files."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    done = subprocess.run(
        [sys.executable, "-m", "tests.accumulating", str(folder), port, *names],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name"')]
    return {line["name"]: line for line in lines}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return measured(tmp_path_factory.mktemp("accumulating"), list(OPTIMIZERS))


@pytest.mark.stack
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_of_micro_batches_are_added_up_in_fp32(
    found: dict[str, dict[str, Any]], name: str
) -> None:
    assert found[name]["optimizer"] == OPTIMIZERS[name]
    assert found[name]["error"] < 1e-6
    assert found[name]["error_in_bf16"] > 1e-3, "the test would see what bf16 loses"


@pytest.mark.stack
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_stages_optimizer_resumes_as_if_never_stopped(
    found: dict[str, dict[str, Any]], name: str
) -> None:
    assert found[name]["resumed_off_by"] == 0
    assert found[name]["moved_by"] > 1e-3


@pytest.mark.stack
@pytest.mark.slow
def test_an_offloaded_optimizer_is_given_fp32_sums_too(tmp_path: Path) -> None:
    """DeepSpeed compiles its CPU optimizer first: minutes."""
    for found in measured(tmp_path, ["zero2_offload", "zero3_offload"]).values():
        assert found["error"] < 1e-6 and found["resumed_off_by"] == 0


# --- what is said ---


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(base="b", **{"trainer": {"bf16": True}, **changes})


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_nothing_is_said_where_fp32_adds_up(stage: Any) -> None:
    assert engine.adds_up_in_bf16(config(zero_stage=stage), 32) is None


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"zero_stage": 0}, "use 1, 2 or 3"),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, r"set data_types.grad_accum_dtype"),
    ],
)
def test_sums_in_bf16_are_said_with_the_remedy(changes: dict[str, Any], remedy: str) -> None:
    said = engine.adds_up_in_bf16(config(**changes), 32)
    assert said is not None and "gradients of 32 micro-batches" in said
    assert remedy in said


def test_nothing_is_said_of_one_micro_batch_or_of_fp32_weights() -> None:
    assert engine.adds_up_in_bf16(config(zero_stage=0), 1) is None
    assert engine.adds_up_in_bf16(config(zero_stage=0, trainer={"bf16": False}), 32) is None


def test_fp32_sums_of_bf16_gradients_at_stage_0_are_refused() -> None:
    given = {"bf16": {"enabled": "auto"}, "data_types": {"grad_accum_dtype": "fp32"}}
    with pytest.raises(UserError, match=r"at stage 0 .*remove data_types.grad_accum_dtype"):
        engine.check(config(deepspeed=given))
