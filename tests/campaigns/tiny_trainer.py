"""A trainer of no model: a launcher with one rank that logs, saves, resumes, is asked to stop and
exports as the real one does, in half a second. What it exports follows from the job and from every
step that was taken, each once."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from core.files import fsync_tree, replacing
from train.resuming import checkpoints, stopping
from train.resuming.record import keep_until

STEPS, EVERY, PAUSE = 24, 4, 0.05
"""Optimizer steps, steps from one checkpoint to the next, and seconds that a step takes."""


def rank(out: Path) -> int:
    """Train; returns the exit code."""
    job = json.loads((out / "train.json").read_text())
    scratch, log = out / "scratch", out / "log.jsonl"
    whole = [
        (step, folder)
        for step, folder in checkpoints.steps(scratch)
        if checkpoints.fault(folder) is None
    ]
    done, state = 0, hashlib.sha256(str(job["seed"]).encode()).hexdigest()
    if whole:
        done, state = whole[0][0], (whole[0][1] / "state").read_text()
    keep_until(log, done)
    stopping.listening(out).touch()
    for step in range(done + 1, STEPS + 1):
        time.sleep(PAUSE)
        state = hashlib.sha256(f"{state} {step}".encode()).hexdigest()
        line = {
            "step": step,
            "total_steps": STEPS,
            "loss": 1 / step,
            "seconds": PAUSE,
            "tokens": step,
        }
        with log.open("a") as handle:
            handle.write(json.dumps(line) + "\n")
        asked = not stopping.listening(out).exists()
        if step % EVERY == 0 or asked:
            _save(scratch, step, state)
        if asked:
            stopping.note(out, step, STEPS)
            return 0
    stopping.listening(out).unlink(missing_ok=True)
    with replacing(out / "checkpoint") as folder:
        shutil.copytree(job["base"], folder)
        (folder / "trained.txt").write_text(state)
    return 0


def _save(scratch: Path, step: int, state: str) -> None:
    """A checkpoint, marked as complete when it is."""
    folder = scratch / f"{checkpoints.PREFIX}{step}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state").write_text(state)
    fsync_tree(folder)
    checkpoints.mark(folder, 1, [checkpoints.written(folder, 0, 1)])


def launcher(out: Path) -> int:
    """Start the rank, and end as accelerate's launcher does."""
    child = subprocess.Popen([sys.executable, __file__, str(out), "rank"])
    code = child.wait()
    if code < 0:
        print(f"  exitcode : {code}", flush=True)
    return code if code >= 0 else 1


if __name__ == "__main__":
    OUT = Path(sys.argv[1])
    sys.exit(rank(OUT) if sys.argv[2:] == ["rank"] else launcher(OUT))
