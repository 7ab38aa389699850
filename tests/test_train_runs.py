"""Real trainings of a tiny Llama under DeepSpeed: stages and processes agree, a killed run
continues, what is logged and exported is right."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.errors import Stopped, UserError
from core.store import Counts
from core.tracking import Log
from tests import harness, tiny
from tests.waiting import exit_code, last_words, until
from train.config import TrainConfig
from train.launch import run
from train.resuming import divergence
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
            "validation": 0.05,
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


@pytest.mark.parametrize("stage", [2, 3])
def test_the_loss_on_held_out_rows_is_that_of_one_process_and_falls(
    runs: dict[tuple[int, int], Any], stage: int
) -> None:
    one, two = (read_log(runs[key][0] / "validation.jsonl") for key in ((0, 1), (stage, 2)))
    epochs = runs[0, 1][1]["steps_per_epoch"]
    assert [line["step"] for line in one] == [1, *range(epochs, STEPS, epochs), STEPS]
    assert [line["eval_loss"] for line in two] == pytest.approx(
        [line["eval_loss"] for line in one], abs=1e-4
    )
    assert one[-1]["eval_loss"] < one[0]["eval_loss"] - 0.3


def test_packs_that_bear_no_loss_fill_what_two_processes_have_room_for(
    runs: dict[tuple[int, int], Any],
) -> None:
    one, two = (runs[key][1] for key in ((0, 1), (2, 2)))
    assert one["packs_per_step"] == two["packs_per_step"]
    assert two["packs"] % two["packs_per_step"] or two["idle_share"] > 0, "some places are filled"


def test_the_log_counts_the_tokens_of_all_devices(runs: dict[tuple[int, int], Any]) -> None:
    one, two = (read_log(runs[key][0] / "log.jsonl")[-1] for key in ((0, 1), (2, 2)))
    assert (one["tokens"], one["loss_tokens"]) == (two["tokens"], two["loss_tokens"])
    ledger = runs[0, 1][1]
    epochs, rest = divmod(STEPS, ledger["steps_per_epoch"])
    assert not rest and one["tokens"] == epochs * ledger["trained_tokens"], "and none of fillers"
    assert one["loss_tokens"] / one["tokens"] == pytest.approx(
        ledger["trained_loss_tokens"] / ledger["trained_tokens"], rel=0.05
    )
    assert two["tokens_per_second"] > two["loss_tokens_per_second"] > 0


def test_the_time_of_a_step_is_split_into_data_communication_and_computing(
    runs: dict[tuple[int, int], Any],
) -> None:
    parts = ("data_seconds", "communication_seconds", "compute_seconds")
    for key in runs:
        for line in read_log(runs[key][0] / "log.jsonl"):
            assert min(line[part] for part in parts) > 0
            assert sum(line[part] for part in parts) == pytest.approx(line["seconds"], rel=0.01)


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
        "validation.jsonl",
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


def test_a_training_that_is_stopped_or_killed_loses_no_step(
    runs: dict[tuple[int, int], Any], given: tuple[Path, Path], tmp_path: Path
) -> None:
    """SIGTERM to the harness, then SIGKILL, then a checkpoint that is not whole: each time it goes
    on from the step at which it was stopped, and ends as one that was never stopped."""
    base, selection = given
    never_saves = {**TRAINER, "save_steps": 1000}
    made = config(base, zero_stage=2, num_processes=2, trainer=never_saves)

    process = harness.started(made, base, {"selection": selection}, tmp_path)
    process.terminate()
    assert exit_code(process) == Stopped.code
    first = harness.saved(tmp_path)
    assert 0 < first < STEPS and first == max(losses(tmp_path)), "saved where it stopped"
    assert f"is saved after step {first} of {STEPS}" in last_words(process)

    process = harness.started(made, base, {"selection": selection}, tmp_path)
    process.kill()
    process.wait()
    until(lambda: not harness.trainers(tmp_path), "the end of every trainer")
    second = harness.saved(tmp_path)
    assert first < second < STEPS and second == max(losses(tmp_path))
    assert not (tmp_path / "checkpoint").exists()

    broken = tmp_path / "scratch" / f"checkpoint-{second + 1}"
    shutil.copytree(broken.with_name(f"checkpoint-{second}"), broken)
    next(broken.glob("global_step*/*pp_rank_1*optim*")).unlink()
    run(made, {"selection": selection}, tmp_path, base=str(base), seed=7, log=Watched())
    text = (tmp_path / "trainer.log").read_text(errors="replace")
    assert f"checkpoint of step {second + 1} is incomplete (rank 1: " in text
    assert f"resuming from step {first}" in text and f"resuming from step {second}" in text
    whole = losses(runs[2, 2][0])
    assert losses(tmp_path) == pytest.approx(whole, abs=1e-5)
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == list(range(1, STEPS + 1))
    ends = [read_log(out / "log.jsonl")[-1]["tokens"] for out in (tmp_path, runs[2, 2][0])]
    assert ends[0] == ends[1]


def test_a_training_that_diverges_is_no_success_and_keeps_what_was_good(
    given: tuple[Path, Path], tmp_path: Path
) -> None:
    base, selection = given
    wild = {**TRAINER, "learning_rate": 1e12, "save_steps": 1}
    made = config(base, zero_stage=2, num_processes=2, trainer=wild)
    with pytest.raises(
        UserError, match=r"training diverged at step 2 \(rows row-.*its loss is nan"
    ):
        run(made, {"selection": selection}, tmp_path, base=str(base), seed=7, log=Watched())
    assert harness.saved(tmp_path) == 1, "the step before"
    assert not (tmp_path / "checkpoint").exists()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1]
    told = json.loads((tmp_path / divergence.FILE).read_text())
    assert told["step"] == 2 and 8 <= len(told["rows"]) < 96, "those of one step of six"


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_training_with_a_sentence_and_the_next_goes_on(
    runs: dict[tuple[int, int], Any], given: tuple[Path, Path], tmp_path: Path
) -> None:
    base, selection = given
    made = config(base, zero_stage=2, num_processes=2, trainer={**TRAINER, "save_steps": 1})
    process = harness.started(made, base, {"selection": selection}, tmp_path)
    until(lambda: harness.saved(tmp_path), "a checkpoint", process)
    os.kill(harness.ranks(tmp_path)[1], signal.SIGKILL)
    assert exit_code(process) != 0
    assert "a training process was killed (signal 9)" in last_words(process)
    assert not harness.trainers(tmp_path)
    step = harness.saved(tmp_path)
    assert 0 < step < STEPS
    run(made, {"selection": selection}, tmp_path, base=str(base), seed=7, log=Watched())
    assert f"resuming from step {step}" in (tmp_path / "trainer.log").read_text()
    assert losses(tmp_path) == pytest.approx(losses(runs[2, 2][0]), abs=1e-5)


CHECKPOINT = 20
"""Bytes of a checkpoint for a weight in fp32: three copies, DeepSpeed's, and transformers'."""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk in a namespace of its own")
@pytest.mark.parametrize(
    ("room", "said", "goes_on"),
    [
        (0.5, "no room for what the training writes in {}: .*same command starts", "starting from"),
        (1.6, "no room for the checkpoint of step 8 in {}: .*same command cont", "resuming from"),
    ],
)
def test_a_full_disk_is_said_and_with_room_the_same_command_goes_on(
    runs: dict[tuple[int, int], Any],
    given: tuple[Path, Path],
    tmp_path: Path,
    room: float,
    said: str,
    goes_on: str,
) -> None:
    """A disk for half of a checkpoint, where also no rank can write down why, and one for a
    checkpoint and a half."""
    base, selection = given
    made = config(base, zero_stage=2, num_processes=2)
    weights = sum(math.prod(shape) for _, shape in shapes(base).values())
    disk, kept = tmp_path / "small", tmp_path / "kept"
    for folder in (disk, kept):
        folder.mkdir()
    size = int(room * weights * CHECKPOINT)
    script = (
        f'mount -t tmpfs -o size={size} tmpfs {disk} || exit 3; "$@" && exit 4; '
        f'mount -o remount,size=1g {disk} || exit 5; "$@"; cp {disk}/out/*log* {kept}'
    )
    argv = harness.command(made, base, {"selection": selection}, disk / "out")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *argv],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(said.format(disk / "out" / "scratch"), done.stderr)
    begun = re.findall("starting from|resuming from", (kept / "trainer.log").read_text())
    assert begun == ["starting from", goes_on]
    assert losses(kept) == pytest.approx(losses(runs[2, 2][0]), abs=1e-5)


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
