"""Real trainings of a tiny Llama under DeepSpeed: stages and processes agree, a killed run
continues, what is logged and exported is right."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.errors import UserError
from core.store import Counts
from core.tracking import Log
from tests import tiny
from tests.waiting import exit_code, until
from train.config import TrainConfig
from train.launch import run
from train.resuming import checkpoints
from train.resuming.record import read_log
from train.sizes.shapes import shapes

pytestmark = pytest.mark.stack

STEPS = 24
TRAINER = {
    "max_length": 128,
    "per_device_train_batch_size": 2,
    "max_steps": STEPS,
    "learning_rate": 1e-3,
    "save_steps": 4,
    "gradient_checkpointing": False,
}


class Watched(Log):
    """A log that remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self.steps: list[tuple[int, int | None]] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, done: int, total: int | None, unit: str = "rows") -> None:
        self.steps.append((done, total))


def config(base: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(
        **{
            "base": str(base),
            "chat_template_path": "chatml",
            "tokens_per_step": 900,
            "trainer": TRAINER,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(base model, selection folder)."""
    folder = tmp_path_factory.mktemp("given")
    return tiny.llama(folder / "model"), tiny.selection(folder / "selection", 96, turns=2)


@pytest.fixture(scope="module")
def runs(
    given: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[int, int], tuple[Path, Counts, Watched]]:
    """(stage, processes) -> (result folder, counts, log) of three trainings that differ in nothing
    else."""
    base, selection = given
    done = {}
    for stage, processes in ((0, 1), (2, 2), (3, 2)):
        out, log = tmp_path_factory.mktemp(f"zero{stage}"), Watched()
        made = config(base, zero_stage=stage, num_processes=processes)
        done[stage, processes] = (
            out,
            run(made, {"selection": selection}, out, base=str(base), seed=7, log=log),
            log,
        )
    return done


def losses(out: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_log(out / "log.jsonl")}


@pytest.mark.parametrize("stage", [2, 3])
def test_two_processes_give_the_losses_of_one_at_the_same_global_batch(
    runs: dict[tuple[int, int], Any], stage: int
) -> None:
    one, two = losses(runs[0, 1][0]), losses(runs[stage, 2][0])
    assert list(one) == list(two) == list(range(1, STEPS + 1))
    assert [two[s] for s in two] == pytest.approx([one[s] for s in one], abs=1e-4)
    assert one[STEPS] < one[1] - 0.5, (
        "it learned something, so equal losses are not those of an untouched model"
    )


def test_the_log_counts_the_tokens_of_all_devices(runs: dict[tuple[int, int], Any]) -> None:
    one, two = (read_log(runs[key][0] / "log.jsonl")[-1] for key in ((0, 1), (2, 2)))
    assert (one["tokens"], one["loss_tokens"]) == (two["tokens"], two["loss_tokens"])
    assert one["tokens"] == one["num_tokens"], "TRL's own count, while there is no resume"
    ledger = runs[0, 1][1]
    assert one["loss_tokens"] / one["tokens"] == pytest.approx(
        ledger["trained_loss_tokens"] / ledger["trained_tokens"], rel=0.05
    )
    assert two["tokens_per_second"] > two["loss_tokens_per_second"] > 0


def test_progress_reaches_the_watcher_and_scratch_is_gone(runs: dict[tuple[int, int], Any]) -> None:
    out, counts, log = runs[2, 2]
    assert log.steps == [(step, STEPS) for step in range(1, STEPS + 1)]
    assert counts["steps"] == STEPS and counts["last_loss"] == losses(out)[STEPS]
    assert sorted(p.name for p in out.iterdir()) == [
        "checkpoint",
        "ledger.json",
        "log.jsonl",
        "train.json",
        "trainer.log",
    ]


def test_all_stages_export_the_same_weights(runs: dict[tuple[int, int], Any]) -> None:
    from safetensors.torch import load_file

    one, *others = (load_file(runs[key][0] / "checkpoint" / "model.safetensors") for key in runs)
    assert {kind for kind, _ in shapes(runs[3, 2][0] / "checkpoint").values()} == {"BF16"}
    for other in others:
        assert all((one[name].float() - other[name].float()).abs().max() < 2e-3 for name in one)


def test_a_finished_training_is_not_repeated(
    runs: dict[tuple[int, int], Any], given: tuple[Path, Path]
) -> None:
    out, counts, _ = runs[2, 2]
    before = (out / "trainer.log").read_bytes()
    again = run(
        config(given[0], zero_stage=2, num_processes=2),
        {"selection": given[1]},
        out,
        base=str(given[0]),
        seed=7,
        log=Watched(),
    )
    assert again["last_loss"] == counts["last_loss"]
    assert (out / "trainer.log").read_bytes() == before


def test_a_killed_training_continues_from_its_newest_complete_checkpoint(
    runs: dict[tuple[int, int], Any], given: tuple[Path, Path], tmp_path: Path
) -> None:
    base, selection = given
    made = config(base, zero_stage=2, num_processes=2)
    harness = subprocess.Popen(
        [
            sys.executable,
            "-c",
            _HARNESS,
            made.model_dump_json(),
            str(base),
            str(selection),
            str(tmp_path),
        ],
        cwd=Path(__file__).parents[1],
    )
    scratch = tmp_path / "scratch"
    until(
        lambda: any(checkpoints.fault(folder) is None for _, folder in checkpoints.steps(scratch)),
        "a complete checkpoint",
        harness,
    )
    os.kill(harness.pid, signal.SIGKILL)
    harness.wait()
    until(lambda: not _trainers(tmp_path), "the end of every trainer")
    assert not (tmp_path / "checkpoint").exists(), "the kill came before the end"
    killed_at = max(losses(tmp_path))

    complete = next(
        folder for _, folder in checkpoints.steps(scratch) if checkpoints.fault(folder) is None
    )
    resumed = int(complete.name.removeprefix("checkpoint-"))
    broken = scratch / f"checkpoint-{resumed + 1}"
    shutil.copytree(complete, broken)
    next(broken.glob("global_step*/*optim*")).unlink()

    run(made, {"selection": selection}, tmp_path, base=str(base), seed=7, log=Watched())
    text = (tmp_path / "trainer.log").read_text(errors="replace")
    assert (
        f"checkpoint of step {resumed + 1} is incomplete" in text
        and f"resuming from step {resumed}" in text
    )
    whole = losses(runs[2, 2][0])
    assert killed_at < STEPS and losses(tmp_path) == pytest.approx(whole, abs=1e-5)
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == list(range(1, STEPS + 1))
    assert (
        read_log(tmp_path / "log.jsonl")[-1]["tokens"]
        == read_log(runs[2, 2][0] / "log.jsonl")[-1]["tokens"]
    )


def test_a_failing_trainer_is_one_sentence_with_the_path_of_its_log(
    given: tuple[Path, Path], tmp_path: Path
) -> None:
    base, selection = given
    wrong = config(base, num_processes=1, model_init={"no_such_argument": 1})
    with pytest.raises(
        UserError,
        match="training failed: TypeError: .*no_such_argument.* "
        f"The whole log is {tmp_path}/trainer.log",
    ):
        run(wrong, {"selection": selection}, tmp_path, base=str(base), seed=0, log=Watched())


@pytest.mark.slow
def test_an_adapter_trains_under_zero_3_and_is_merged(
    given: tuple[Path, Path], tmp_path: Path
) -> None:
    base, selection = given
    made = config(
        base,
        zero_stage=3,
        num_processes=2,
        lora={"r": 8, "target_modules": "all-linear"},
        trainer={**TRAINER, "max_steps": 4},
    )
    run(made, {"selection": selection}, tmp_path, base=str(base), seed=0, log=Watched())
    before, after = shapes(base), shapes(tmp_path / "checkpoint")
    assert {name: shape for name, (_, shape) in before.items()} == {
        name: shape for name, (_, shape) in after.items()
    }


@pytest.mark.slow
def test_two_machines_train_as_one_does(
    runs: dict[tuple[int, int], Any], given: tuple[Path, Path], tmp_path: Path
) -> None:
    """Two machines, both played by this one: the second waits until the first has prepared, and
    they meet at its port."""
    base, selection = given
    first, second = (
        config(
            base,
            zero_stage=2,
            num_processes=2,
            num_machines=2,
            machine_rank=rank,
            main_process_ip="127.0.0.1",
            main_process_port=29611,
        )
        for rank in (0, 1)
    )
    other = subprocess.Popen(
        [sys.executable, "-c", _OTHER, second.model_dump_json(), str(tmp_path)],
        cwd=Path(__file__).parents[1],
    )
    try:
        until(lambda: other.poll() is None, "the second machine, which waits", other)
        log = Watched()
        counts = run(first, {"selection": selection}, tmp_path, base=str(base), seed=7, log=log)
        assert exit_code(other) == 0
    finally:
        other.kill()
    assert counts["steps"] == STEPS and losses(tmp_path) == pytest.approx(
        losses(runs[2, 2][0]), abs=1e-5
    )


_OTHER = """
import sys
from pathlib import Path
from core.tracking import Log
from train.config import TrainConfig
from train.launch import join
join(TrainConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]), Log())
"""

_HARNESS = """
import sys
from pathlib import Path
from core.tracking import Log
from train.config import TrainConfig
from train.launch import run
given, base, selection, out = sys.argv[1:]
config = TrainConfig.model_validate_json(given)
run(config, {"selection": Path(selection)}, Path(out), base=base, seed=7, log=Log())
"""


def _trainers(out: Path) -> list[int]:
    """Processes of the training in `out`, its launcher and supervisor included."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "train.sft" in line and str(out) in line:
            found.append(process.pid)
    return found
