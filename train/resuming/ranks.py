"""What every rank of a training does whatever is trained: meet the others within a stated time, end
with one sentence in a file, and be the only training in its folder. Only training processes import
this.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
from filelock import FileLock, Timeout

from core.errors import Stopped, UserError, first_line
from core.files import write_atomic
from train.config import TrainConfig
from train.resuming import checkpoints
from train.resuming.clock import COLLECTIVES

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
GPU = torch.cuda.is_available()


def say(text: str) -> None:
    """One line of the training's log."""
    print(text, flush=True)


def run(main: Callable[[Path], None], out: Path) -> None:
    """Run `main(out)` as one rank. What ends it goes to scratch/error-RANK.txt as one sentence (the
    launcher shows that in place of the ranks' interleaved tracebacks) and into the exit code."""
    scratch = out / "scratch"
    (scratch / f"error-{RANK}.txt").unlink(missing_ok=True)  # an earlier attempt's
    try:
        main(out)
    except Stopped as stopped:
        say(str(stopped))
        sys.exit(stopped.code)
    except Exception as error:
        traceback.print_exc()
        if not isinstance(error, UserError) and checkpoints.is_full(scratch, error):
            error = checkpoints.no_room(scratch, "what the training writes", first_line(error))
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        with contextlib.suppress(OSError):  # the disk may be full
            write_atomic(scratch / f"error-{RANK}.txt", kind + str(error))
        sys.exit(1)


def only_training(scratch: Path, grace: float) -> FileLock:
    """Hold the folder (call it on rank 0, and keep what it returns). An earlier training that was
    just killed may still be saving in it for `grace` seconds: wait for it.

    Raises UserError when it does not end.
    """
    lock = FileLock(scratch / "running.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"an earlier training is still ending in {scratch}; waiting for it")
        try:
            lock.acquire(timeout=grace + 60)
        except Timeout as error:
            raise UserError(
                f"another training runs in {scratch}; wait until it has ended, or end it."
            ) from error
    return lock


def join(config: TrainConfig) -> None:
    """Meet the other ranks: the process group that everything after this uses.

    Every group gets `trainer.ddp_timeout` seconds: DeepSpeed's own start knows only its 10 minutes,
    and groups that it makes later would get torch's default of 10 again.
    """
    limit = timedelta(seconds=float(config.trainer_arguments()["ddp_timeout"]))
    # DeepSpeed would compile its shared-memory all-reduce on the CPU first (about a minute, g++ and
    # ninja needed), which serves inference only.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if GPU:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    else:
        COLLECTIVES.listen()
    deepspeed.init_distributed(dist_backend="nccl" if GPU else "gloo", timeout=limit)
    new_group = torch.distributed.new_group

    @functools.wraps(new_group)
    def patient(*args: Any, **kwargs: Any) -> Any:
        return new_group(*args, **{"timeout": limit, **kwargs})

    torch.distributed.new_group = patient


def gather(value: Any) -> list[Any]:
    """`value` of every rank, by rank, on every rank."""
    values: list[Any] = [None] * WORLD
    torch.distributed.all_gather_object(values, value)
    return values
