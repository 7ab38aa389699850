"""Going on with another number of processes, by DeepSpeed's universal checkpoint.

DeepSpeed's partitions load into the number of processes that wrote them. `convert` adds to the
newest complete checkpoint a copy of weights and optimizer state by parameter, which any number of
processes loads; for its own number the checkpoint stays what it was. That happens in the launching
process, before any rank starts. What DeepSpeed loads of the copy not quite as it was, `repair` puts
right on every rank. Without ZeRO every process holds everything, and nothing is converted.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import Stopped, UserError
from core.files import fsync_tree, read_json, remove, write_atomic
from core.serving.supervisor import Supervised
from train.config import TrainConfig
from train.resuming import checkpoints, stopping
from train.settings import engine
from train.settings.machine import environment

UNIVERSAL = checkpoints.UNIVERSAL
POLL = 0.5  # seconds between looks at the conversion


@dataclass(frozen=True)
class Foreign:
    """A complete checkpoint that another number of processes made."""

    folder: Path
    made: dict[str, Any]
    """What its mark says."""

    config: TrainConfig
    """Of the training that is to go on from it."""

    @property
    def by(self) -> int:
        """How many processes made it."""
        return int(self.made["processes"])

    @property
    def source(self) -> Path:
        """DeepSpeed's own folder in it."""
        return next(path for path in self.folder.glob("global_step*") if not _is_copy(path))

    def refused(self, why: str) -> UserError:
        """The error of a checkpoint that goes on with its own number of processes alone."""
        return UserError(
            f"checkpoint {self.folder} was made by {self.by} process(es), and {why}. Go on with "
            f"{self.config.block}.num_processes={self.by}, or remove {self.folder.parent} to start "
            "again."
        )


def convert(
    config: TrainConfig, out: Path, per_step: int, processes: int, say: Callable[[str], None]
) -> None:
    """Make the newest complete checkpoint of the training in `out` loadable by `processes` where
    others wrote it; `per_step`: the packs (of DPO: the pairs) of a step of this number.

    Raises UserError where a step would not be what it was, where the disk has no room, and where
    DeepSpeed cannot convert the checkpoint; Stopped when this process is asked to stop meanwhile.
    """
    # What as many processes made they read themselves, each its part.
    newest = _newest(out / "scratch", reads=False)
    if newest is None or read_json(newest / checkpoints.MARK)["processes"] == processes:
        return
    newest = _newest(out / "scratch")
    if newest is None:
        return
    checkpoint = Foreign(newest, read_json(newest / checkpoints.MARK), config)
    if checkpoint.by == processes:
        return
    _check_steps(checkpoint, per_step, processes)
    if not checkpoint.made.get("elastic"):
        say(
            f"the checkpoint of step {checkpoints.step_of(newest)} was made by {checkpoint.by} "
            f"process(es); {processes} go on from it"
        )
        zero = json.loads(engine.deepspeed_json(config)).get("zero_optimization", {})
        if zero.get("stage", 0):
            _check_whole(checkpoint, zero)
            _check_room(checkpoint)
            _to_universal(checkpoint)
    _random_numbers(newest, checkpoint.by, processes)
    _mark_anew(checkpoint)


def per_step(ledger: dict[str, Any]) -> int:
    """The packs of an optimizer step by a training's ledger; of DPO, the pairs."""
    of_packs: int | None = ledger.get("packs_per_step")
    return ledger["pairs_per_step"] if of_packs is None else of_packs


def engine_json(config: TrainConfig, resumed: Path | None, processes: int) -> str:
    """Text of the DeepSpeed configuration of a training on `processes` that goes on from `resumed`
    (None: from its base)."""
    text = engine.deepspeed_json(config)
    if resumed is None or not _is_universal(resumed, processes):
        return text
    given = json.loads(text)
    loads = {**(given.get("checkpoint") or {}), "load_universal": True}
    return json.dumps(given | {"checkpoint": loads}, indent=2)


def repair(optimizer: Any, resumed: Path | None, processes: int) -> None:
    """Give a DeepSpeed `optimizer` that has loaded the copy of `resumed` by parameter what it had;
    nothing for any other. Call it on every rank, between loading and the first step.

    ZeRO-3 loads the settings of the first group of parameters into all of them, so that weights
    that do not decay would, and one step count for all, which each group would then raise. Any
    count that was loaded lies in host memory, where torch's fused optimizers do not take it on a
    GPU.
    """
    if resumed is None or not _is_universal(resumed, processes):
        return
    import torch

    file = next(resumed.glob(f"global_step*{UNIVERSAL}")) / "zero" / "optimizer_state.pt"
    # Mapped: of ZeRO-3 it holds a whole partition. DeepSpeed's own loss scaler is among it.
    saved = torch.load(file, map_location="cpu", weights_only=False, mmap=True)
    inner = optimizer.optimizer
    for group, was in zip(inner.param_groups, saved["param_groups"], strict=True):
        group.update({key: value for key, value in was.items() if key != "params"})
    on_device = any(group.get("fused") or group.get("capturable") for group in inner.param_groups)
    for weight, state in inner.state.items():
        if torch.is_tensor(count := state.get("step")):
            state["step"] = count.to(weight.device, copy=True) if on_device else count.clone()


def _newest(scratch: Path, *, reads: bool = True) -> Path | None:
    """The checkpoint that the ranks will go on from; incomplete ones they set aside."""
    folders = (folder for _, folder in checkpoints.steps(scratch))
    whole = (folder for folder in folders if checkpoints.fault(folder, reads=reads) is None)
    return next(whole, None)


def _is_copy(path: Path) -> bool:
    return path.name.endswith(UNIVERSAL)


def _is_universal(folder: Path, processes: int) -> bool:
    """Whether `processes` load the copy by parameter of this checkpoint."""
    foreign = read_json(folder / checkpoints.MARK)["processes"] != processes
    return foreign and any(map(_is_copy, folder.glob("global_step*")))


def _check_steps(checkpoint: Foreign, per_step: int, processes: int) -> None:
    """Raise UserError where the steps that are still to come would not be those of a training that
    was never stopped."""
    before = checkpoint.made.get("per_step")
    if before == per_step:
        return
    raise checkpoint.refused(
        f"an optimizer step held {before or 'an unknown number of'} packs or pairs; with "
        f"{processes} process(es) it would hold {per_step}, and the training be another one "
        "(tokens_per_step, and pairs_per_step of DPO, keep a step whatever the number)"
    )


def _check_whole(checkpoint: Foreign, zero: dict[str, Any]) -> None:
    """Raise UserError where the checkpoint does not hold all of the optimizer's state."""
    for part in ("offload_optimizer", "offload_param"):
        if (zero.get(part) or {}).get("device") == "nvme":
            raise checkpoint.refused(f"what {part} keeps on NVMe loads into no other number")


def _check_room(checkpoint: Foreign) -> None:
    """Raise UserError where the disk has no room for the copy."""
    optimizer = _size(checkpoint.source.glob("*optim_states.pt"))
    # The state by parameter and rank, then by parameter alone.
    needed = 2 * optimizer + _size(checkpoint.source.glob("*model_states.pt"))
    free = shutil.disk_usage(checkpoint.folder).free
    if free < needed:
        raise checkpoints.no_room(
            checkpoint.folder.parent,
            f"what another number of processes loads of {checkpoint.folder.name}",
            f"it needs {needed / 1e9:,.1f} GB and {free / 1e9:,.1f} are free",
        )


def _size(files: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def _to_universal(checkpoint: Foreign) -> None:
    """Write the copy by parameter beside DeepSpeed's own folder."""
    source, scratch = checkpoint.source, checkpoint.folder.parent
    target, log = source.with_name(source.name + UNIVERSAL), scratch / "conversion.log"
    remove(target)  # an earlier, killed conversion's
    log.unlink(missing_ok=True)
    # One worker each: a worker holds all that one rank saved.
    command = [sys.executable, "-P", "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(source), "--output_folder", str(target)]
    command += ["--inject_missing_state", "--num_extract_workers", "1", "--num_merge_workers", "1"]
    environ = {**os.environ, **environment(checkpoint.config)}
    with stopping.noticing() as signalled:
        child = Supervised(command, environ, log)
        try:
            while not child.wait(POLL):
                if signalled():
                    raise Stopped(
                        "asked to stop while a checkpoint was converted; the same command goes on."
                    )
        finally:
            child.kill()
    if child.exit_code == 0:
        return
    remove(target)
    lines = log.read_text(errors="replace").strip().splitlines()
    why = lines[-1] if lines else f"exit code {child.exit_code}"
    if checkpoints.is_full(scratch, OSError(why)):
        raise checkpoints.no_room(scratch, "the converted checkpoint", why)
    raise checkpoint.refused(
        f"DeepSpeed cannot convert it for another number ({why}; it knows the state of Adam in "
        f"full precision alone; the whole log is {log})"
    )


def _random_numbers(folder: Path, before: int, processes: int) -> None:
    """A file of random numbers for each rank that there will be; ranks that there were not go on
    with those of another, as all do from one seed at the start."""
    for rank in range(processes):
        file = folder / _random_file(rank, processes)
        if not file.exists():
            shutil.copyfile(folder / _random_file(rank % before, before), file)


def _random_file(rank: int, processes: int) -> str:
    return f"rng_state_{rank}.pth" if processes > 1 else "rng_state.pth"


def _mark_anew(checkpoint: Foreign) -> None:
    """List what was added; written last, so that half of it counts for nothing."""
    folder = checkpoint.folder
    fsync_tree(folder)
    files = checkpoints.written(folder, 0, 1)
    made = checkpoint.made | {"elastic": True, **checkpoints.listed(files)}
    write_atomic(folder / checkpoints.MARK, json.dumps(made, indent=2))
