"""The guarded trainer on transformers', TRL's and DeepSpeed's own code: each method and callback
that it hangs on is still called as it is today. tests/guarded_training.py is what runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import tiny

pytestmark = pytest.mark.stack

FAST = ("2-bfloat16", "3-bfloat16")
EVERY = tuple(f"{stage}-{dtype}" for stage in range(4) for dtype in ("float32", "bfloat16"))
"""ZeRO stage and number format."""

WITHOUT_NORM = ("0-float32", "0-bfloat16")
"""DeepSpeed works out no gradient norm there, so none is judged."""


def guarded(folder: Path, *names: str) -> dict[str, Any]:
    """What tests/guarded_training.py found, one process for all of `names`."""
    base = tiny.llama(folder / "model")
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29683"}
    env = {**os.environ, **ranks, **meeting, "ACCELERATE_USE_DEEPSPEED": "true"}
    argv = [sys.executable, "-m", "tests.guarded_training", str(base), str(folder), *names]
    subprocess.run(argv, env=env, cwd=Path(__file__).parents[1], check=True)
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return guarded(tmp_path_factory.mktemp("guarded"), *FAST)


def check(of: dict[str, Any]) -> None:
    """A step with a loss 50 times too high, third of four, came to nothing."""
    second, third, fourth = of["changes"]
    assert third == 0.0, "no weight of the dropped step"
    assert second > 1e-4 and fourth > 1e-5, "the others were taken"
    assert of["leaked"] == 0.0, "nothing of its gradients is in the next step"
    assert of["skipped"] == 1
    assert of["losses"][2] == pytest.approx(290, rel=0.05), "the log says what the loss was"
    assert of["rates"] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4]), "the schedule goes on"


@pytest.mark.parametrize("name", FAST)
def test_a_dropped_step_changes_nothing_but_the_schedule(found: dict[str, Any], name: str) -> None:
    check(found[name])


@pytest.mark.parametrize("name", FAST)
def test_a_norm_is_logged_for_steps_that_are_taken(found: dict[str, Any], name: str) -> None:
    norms = found[name]["norms"]
    assert norms[2] is None and all(norm > 0 for norm in (*norms[:2], norms[3]))


def test_a_gradient_norm_that_is_not_finite_ends_the_training(found: dict[str, Any]) -> None:
    assert "diverged at step 1 (rows row-of-1, all in" in found["infinite"]
    assert "its gradient norm is inf" in found["infinite"]


def test_figures_that_are_gathered_later_are_those_of_trl(found: dict[str, Any]) -> None:
    theirs, ours = found["plain"], found["guarded"]
    assert len(theirs) == len(ours) == 4 and set(theirs[0]) <= set(ours[0])
    for name in ("loss", "grad_norm", "learning_rate", "entropy", "mean_token_accuracy"):
        wanted = [line[name] for line in theirs]
        assert [line[name] for line in ours] == pytest.approx(wanted, rel=1e-5), name
    counts = [line["num_tokens"] for line in theirs]
    assert [line["num_tokens"] for line in ours] == counts and counts[-1] == 4 * counts[0] > 0


def test_the_time_of_a_step_is_the_mean_of_all_devices(found: dict[str, Any]) -> None:
    line = found["beside_another"]
    assert line["seconds"] == pytest.approx(2.0)
    assert line["communication_seconds"] == pytest.approx(1.3), "more than this device's second"
    assert line["compute_seconds"] == pytest.approx(0.6)
    assert line["tokens_per_second"] == pytest.approx(100 / 2.0)


def test_every_group_waits_as_long_as_ddp_timeout_says(found: dict[str, Any]) -> None:
    assert len(found["timeouts"]) >= 2, "DeepSpeed makes one of its own"
    assert set(found["timeouts"]) == {1234.0}


@pytest.mark.slow
def test_every_stage_and_number_format_drops_a_step(tmp_path: Path) -> None:
    every = guarded(tmp_path, *EVERY)
    for name in EVERY:
        check(every[name])
        if name not in WITHOUT_NORM:
            assert every[name]["norms"][3] > 0
