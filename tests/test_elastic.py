"""A training that goes on with another number of processes: by DeepSpeed's universal checkpoint,
through TRL, as if it had had that number from the start; or a refusal."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.errors import Stopped, UserError
from core.tracking import Log
from tests import tiny
from tests.waiting import until
from train import machines
from train.config import DpoConfig, Job, TrainConfig
from train.data import pairs
from train.data import tokens as data
from train.launch import GIVEN, ROOT, run
from train.resuming import checkpoints, elastic
from train.resuming.record import read_log
from train.settings import engine

STEPS, SAVED, SEED = 8, 3, 7
TRAINER = {
    "max_length": 128,
    "per_device_train_batch_size": 1,
    "max_steps": STEPS,
    "learning_rate": 1e-3,
    "weight_decay": 10.0,
    "save_steps": SAVED,
    "save_total_limit": 5,
    "gradient_checkpointing": False,
}


def config(base: Path, **changes: Any) -> TrainConfig:
    fixed = {"base": str(base), "chat_template_path": "chatml", "tokens_per_step": 500}
    trainer = {**TRAINER, **changes.pop("trainer", {})}
    return TrainConfig(**{**fixed, "trainer": trainer, **changes})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llama(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def selection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A selection of 52 conversations: an epoch ends after SAVED, with a step that is not full."""
    return tiny.selection(tmp_path_factory.mktemp("selection"), 52) / "selection.parquet"


def figures(out: Path) -> list[tuple[float, float]]:
    lines = read_log(out / "log.jsonl")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return [(line["loss"], line.get("grad_norm", 0.0)) for line in lines]


def whole(made: TrainConfig, given: Path, out: Path) -> list[tuple[float, float]]:
    """Train to the end on the file `given`, keeping everything, and forget what came after SAVED,
    as a machine that was lost then would leave it; the figures of all steps."""
    (out / "scratch").mkdir(parents=True)
    job = Job(config=made, base=made.base, selection=str(given), seed=SEED)
    (out / "train.json").write_text(job.model_dump_json())
    prepare = pairs.prepare if isinstance(made, DpoConfig) else data.prepare
    prepare(job, out, processes=made.num_processes or 1)
    with (out / "trainer.log").open("w") as log:
        command = machines.command(made, out)
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=True)
    found = figures(out)
    shutil.rmtree(out / "checkpoint")
    for step, folder in checkpoints.steps(out / "scratch"):
        if step > SAVED:
            shutil.rmtree(folder)
    return found


def resumed(made: TrainConfig, given: Path, out: Path) -> list[tuple[float, float]]:
    """The figures of all steps, once this number of processes has gone on."""
    name = next(name for name, file in GIVEN.items() if file == given.name)
    run(made, {name: given.parent}, out, base=made.base, seed=SEED, log=Log())
    assert f"resuming from step {SAVED}" in (out / "trainer.log").read_text()
    return figures(out)


# --- what is converted, and what is refused; no process is started ---

STATE = f"global_step{SAVED}"
"""DeepSpeed's own folder in a checkpoint."""


def checkpoint(out: Path, made_by: int, per_step: int | None = 6) -> Path:
    """A complete checkpoint as `made_by` processes would leave it, without DeepSpeed's content."""
    folder = out / "scratch" / f"checkpoint-{SAVED}"
    (folder / STATE).mkdir(parents=True)
    for rank in range(made_by):
        rng = f"rng_state_{rank}.pth" if made_by > 1 else "rng_state.pth"
        (folder / rng).write_text(f"of rank {rank}")
        (folder / STATE / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").write_bytes(
            b"." * 1000
        )
    written = [checkpoints.written(folder, rank, made_by) for rank in range(made_by)]
    checkpoints.mark(folder, made_by, written, per_step)
    return folder


def convert(out: Path, processes: int, per_step: int = 6, **changes: Any) -> list[str]:
    """What is said of the newest checkpoint, made ready for `processes`."""
    said: list[str] = []
    elastic.convert(config(out, **changes), out, per_step, processes, said.append)
    return said


def test_without_zero_any_number_of_processes_goes_on_and_nothing_is_copied(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, made_by=2)
    assert "was made by 2 process(es); 4 go on" in convert(tmp_path, 4, zero_stage=0)[0]
    assert [path.name for path in folder.glob("global_step*")] == [STATE]
    random = [(folder / f"rng_state_{rank}.pth").read_text() for rank in range(4)]
    assert random == ["of rank 0", "of rank 1"] * 2
    assert checkpoints.fault(folder) is None
    (folder / "rng_state_2.pth").unlink()
    assert checkpoints.fault(folder) == "rng_state_2.pth is missing", "it is part of it"


def test_one_process_takes_the_random_numbers_of_the_first(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, made_by=2)
    convert(tmp_path, 1, zero_stage=0)
    assert (folder / "rng_state.pth").read_text() == "of rank 0"


def test_a_checkpoint_of_as_many_processes_stays_as_it_is(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, made_by=2)
    before = (folder / checkpoints.MARK).read_bytes()
    assert convert(tmp_path, 2, per_step=7) == []
    assert (folder / checkpoints.MARK).read_bytes() == before


@pytest.mark.parametrize(("before", "said"), [(6, "held 6 packs"), (None, "an unknown number")])
def test_other_packs_in_a_step_are_refused_with_the_remedy(
    tmp_path: Path, before: int | None, said: str
) -> None:
    checkpoint(tmp_path, made_by=2, per_step=before)
    with pytest.raises(UserError, match=f"{said} .* would hold 3, .*train.num_processes=2, or"):
        convert(tmp_path, 1, per_step=3)


@pytest.mark.parametrize(("free", "fits"), [(4000, True), (3999, False)])
def test_a_copy_that_would_not_fit_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, fits: bool
) -> None:
    """Twice the optimizer's state of two ranks."""
    folder = checkpoint(tmp_path, made_by=2)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
    begun: list[Path] = []
    monkeypatch.setattr(elastic, "_to_universal", lambda *given: begun.append(given[0].folder))
    if fits:
        convert(tmp_path, 1)
        assert begun == [folder]
        return
    with pytest.raises(UserError, match=r"no room for what another number .*continues from step 3"):
        convert(tmp_path, 1)
    assert not begun


def test_state_on_nvme_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path, made_by=2)
    offload = {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/x"}}
    given = {"zero_optimization": offload}
    with pytest.raises(UserError, match=r"offload_optimizer keeps on NVMe .*num_processes=2"):
        convert(tmp_path, 1, deepspeed=given)


def test_an_incomplete_checkpoint_is_passed_over(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, made_by=2)
    (folder / checkpoints.MARK).unlink()
    assert convert(tmp_path, 1) == []


def test_only_what_other_processes_made_is_loaded_by_parameter(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, made_by=2)
    (folder / f"{STATE}_universal").mkdir()
    own = {"zero_optimization": {"stage": 2}, "checkpoint": {"tag_validation": "Fail"}}
    given = config(tmp_path, deepspeed=own)
    assert json.loads(elastic.engine_json(given, folder, 1))["checkpoint"] == {
        "tag_validation": "Fail",
        "load_universal": True,
    }
    unchanged = engine.deepspeed_json(given)
    assert elastic.engine_json(given, folder, 2) == unchanged
    assert elastic.engine_json(given, None, 1) == unchanged


@pytest.mark.process
def test_a_conversion_is_stopped_when_that_is_asked_for(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, made_by=2)
    log = folder.parent / "conversion.log"

    def ask() -> None:
        until(log.exists, "a conversion")
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(Stopped, match="the same command goes on"):
        convert(tmp_path, 1)
    asking.join()
    assert [pid for pid in psutil.pids() if str(folder) in " ".join(_command(pid))] == []
    assert checkpoints.fault(folder) is None


def _command(pid: int) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).cmdline()
    return []


# --- real trainings ---


@pytest.mark.stack
@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on_as_one_that_never_stopped(
    base: Path, selection: Path, tmp_path: Path, before: int, after: int, stage: Any
) -> None:
    first = config(base, zero_stage=stage, num_processes=before)
    unbroken = whole(first, selection, tmp_path)
    found = resumed(first.model_copy(update={"num_processes": after}), selection, tmp_path)
    assert found == [pytest.approx(both, abs=1e-5) for both in unbroken]


HALF = {"model_init": {"dtype": "bfloat16"}, "trainer": {"bf16": True}}
ADAPTER = {"lora": {"r": 8, "target_modules": "all-linear"}, "trainer": {"learning_rate": 1e-2}}


@pytest.mark.stack
@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("changes", [HALF, ADAPTER], ids=["bf16", "lora"])
def test_so_does_one_with_bf16_weights_or_an_adapter(
    base: Path, selection: Path, tmp_path: Path, changes: dict[str, Any], stage: Any
) -> None:
    first = config(base, zero_stage=stage, num_processes=2, **changes)
    unbroken = whole(first, selection, tmp_path)
    found = resumed(first.model_copy(update={"num_processes": 1}), selection, tmp_path)
    assert found[SAVED][0] == pytest.approx(unbroken[SAVED][0], abs=1e-5), "all of it is loaded"
    # At stages 2 and 3 two ranks add their gradients up in bf16, which one has no need of.
    off = 2e-3 if changes is HALF and stage > 1 else 1e-5
    assert found == [pytest.approx(both, abs=off) for both in unbroken]


@pytest.mark.stack
@pytest.mark.slow
def test_so_does_a_dpo(base: Path, tmp_path: Path) -> None:
    folder = tiny.pairs(tmp_path / "pairs", 24)
    trainer = {**TRAINER, "beta": 0.5}
    first = DpoConfig(
        base=str(base),
        chat_template_path="chatml",
        pairs_per_step=8,
        num_processes=2,
        trainer=trainer,
    )
    unbroken = whole(first, folder / "train.parquet", tmp_path / "out")
    one = first.model_copy(update={"num_processes": 1})
    found = resumed(one, folder / "train.parquet", tmp_path / "out")
    assert found == [pytest.approx(both, abs=1e-5) for both in unbroken]


@pytest.mark.stack
@pytest.mark.slow
def test_an_optimizer_that_deepspeed_does_not_convert_is_refused_and_goes_on_as_it_was(
    base: Path, selection: Path, tmp_path: Path
) -> None:
    first = config(base, num_processes=2, trainer={"optim": "sgd"})
    unbroken = whole(first, selection, tmp_path)
    with pytest.raises(UserError, match=r"cannot convert it .*exp_avg.*train.num_processes=2"):
        resumed(first.model_copy(update={"num_processes": 1}), selection, tmp_path)
    assert resumed(first, selection, tmp_path) == [pytest.approx(x, abs=1e-5) for x in unbroken]
