"""A harness that trains, as a process that tests can stop and kill, and what it left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
from pydantic import TypeAdapter

from core.errors import Stopped, UserError
from core.tracking import Log
from tests.waiting import until
from train.config import DpoConfig, TrainConfig
from train.launch import run
from train.resuming import checkpoints, stopping

SEED = 7
Configured = TrainConfig | DpoConfig


def command(made: Configured, base: Path, inputs: dict[str, Path], out: Path) -> list[str]:
    """What starts the harness: `train.launch.run` with SEED; its last words are its error."""
    given = {name: str(path) for name, path in inputs.items()}
    argv = [sys.executable, "-m", "tests.harness", made.model_dump_json()]
    return [*argv, str(base), json.dumps(given), str(out)]


def started(
    made: Configured, base: Path, inputs: dict[str, Path], out: Path
) -> subprocess.Popen[bytes]:
    """The harness, once its training can be asked to stop."""
    harness = subprocess.Popen(
        command(made, base, inputs, out), cwd=Path(__file__).parents[1], stderr=subprocess.PIPE
    )
    until(stopping.listening(out).exists, "a training", harness)
    return harness


def saved(out: Path) -> int:
    """The step of the newest checkpoint that is complete; 0 for none."""
    whole = [s for s, at in checkpoints.steps(out / "scratch") if checkpoints.fault(at) is None]
    return max(whole, default=0)


def ranks(out: Path) -> list[int]:
    """Processes of the ranks of the training in `out`, by rank."""
    found = {}
    for pid in trainers(out):
        process = psutil.Process(pid)
        if "accelerate" not in " ".join(process.cmdline()):
            found[int(process.environ()["RANK"])] = pid
    return [found[rank] for rank in sorted(found)]


def trainers(out: Path) -> list[int]:
    """Processes of the training in `out`, its launcher and supervisor included."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if {"train.sft", "train.dpo"} & set(line) and str(out) in line:
            found.append(process.pid)
    return found


if __name__ == "__main__":
    MADE: Configured = TypeAdapter(Configured).validate_json(sys.argv[1])
    GIVEN = {name: Path(path) for name, path in json.loads(sys.argv[3]).items()}
    try:
        run(MADE, GIVEN, Path(sys.argv[4]), base=sys.argv[2], seed=SEED, log=Log())
    except (Stopped, UserError) as error:
        print(error, file=sys.stderr)
        sys.exit(error.code if isinstance(error, Stopped) else 1)
