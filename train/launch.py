"""Start a training: its processes and their end, and what it says while it works. What is started
on which machine: train/machines.py."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from core.errors import Stopped, UserError
from core.files import write_atomic
from core.serving.supervisor import Saves, Supervised
from core.store import Counts
from core.tracking import Log
from train import machines
from train.config import DpoConfig, Job, TrainConfig
from train.data import pairs
from train.data import tokens as data
from train.resuming import checkpoints, divergence, elastic, stopping
from train.resuming.record import VALIDATION, read_log
from train.settings import engine
from train.settings.machine import environment, processes, ready

ROOT = Path(__file__).parent.parent
GIVEN = {"tokens": "tokens.arrow", "selection": "selection.parquet", "pairs": "train.parquet"}
"""What a training is given: the file of each input."""
POLL = 0.5  # seconds between looks at log.jsonl


def run(
    config: TrainConfig, inputs: dict[str, Path], out: Path, *, base: str, seed: int, log: Log
) -> Counts:
    """Fine-tune `base` (its folder) on `inputs["tokens"]`, which `train.data.tokens` made, or on
    `inputs["selection"]`/selection.parquet (a `DpoConfig`: on the pairs of
    `inputs["pairs"]`/train.parquet) with `seed`, on this machine; the checkpoint is OUT/checkpoint.

    Continues what an earlier, killed call left in `out`: from its newest complete checkpoint, or
    not at all when the export is there. Returns the ledger's counts, steps, seconds, tokens and
    last loss. Raises UserError when the data are refused, when the trainer fails (its last error
    line and the log's path), and for several machines, once OUT is prepared, with the command that
    each of them has to run; the same call after those have ended finds the checkpoint.
    """
    out = out.resolve()
    started = time.time()
    config = config.located()
    tokens = str(inputs["tokens"].resolve()) if "tokens" in inputs else None
    given = next(inputs[name] / file for name, file in GIVEN.items() if name in inputs)
    job = Job(config=config, base=base, selection=str(given.resolve()), tokens=tokens, seed=seed)
    # The command reads it on every machine.
    write_atomic(out / "train.json", job.model_dump_json(indent=2) + "\n")
    machines.closed(out)  # what a killed call left
    if not (out / "checkpoint").is_dir():
        _prepare(job, out, log)
        try:
            _train(config, out, log)
        finally:
            machines.closed(out)
    # Optimizer state; the verified export is what stays.
    shutil.rmtree(out / "scratch", ignore_errors=True)
    lines = read_log(out / "log.jsonl")
    last = lines[-1] if lines else {}
    counts: Counts = data.read_ledger(out)
    del counts["key"]
    return {
        **counts,
        "steps": last.get("step"),
        "trained_tokens_total": last.get("tokens"),
        "last_loss": last.get("loss"),
        "validation_losses": [line["eval_loss"] for line in read_log(out / VALIDATION)],
        "training_seconds": sum(line["seconds"] for line in lines),
        "seconds": time.time() - started,
        "devices": processes(config),
    }


def join(config: TrainConfig, out: Path, log: Log) -> None:
    """Be another machine than the first (`config.machine_rank`): wait until that one starts its
    ranks in OUT, start this one's, and return when they have ended. Raises UserError where they
    fail."""
    out = out.resolve()
    if not machines.await_opening(out, log.say):
        return
    text = out / f"trainer-{config.machine_rank}.log"
    env = {**os.environ, **environment(config)}
    child = Supervised(
        ["env", "-C", str(ROOT), *machines.command_here(config, out)],
        env,
        text,
        saves=Saves(stopping.listening(out), config.grace),
    )
    with stopping.noticing() as signalled:
        while not child.wait(POLL) and not signalled():
            pass
        child.stop()
    if stopping.noted(out) is not None or signalled():
        raise Stopped("the training was asked to stop; machine 0 says after which step it saved.")
    if child.exit_code != 0:
        raise UserError(
            f"the ranks of machine {config.machine_rank} failed (exit code {child.exit_code}); "
            f"machine 0 says why, and the log of these is {text}."
        )


def _prepare(job: Job, out: Path, log: Log) -> None:
    """Tokenise, and say what came of it."""
    config = job.config
    (out / "scratch").mkdir(parents=True, exist_ok=True)
    ready(config, log.say)
    prepare = pairs.prepare if isinstance(config, DpoConfig) else data.prepare
    ranks = processes(config)
    ledger = prepare(job, out, processes=ranks)
    log.say(_told(ledger))
    if lost := engine.adds_up_in_bf16(config, ledger["gradient_accumulation_steps"]):
        log.say(lost)
    elastic.convert(config, out, elastic.per_step(ledger), ranks, log.say)


def _told(ledger: data.Ledger) -> str:
    """What came of a training's rows, or of a DPO's pairs, in a sentence."""
    by_pairs = "pairs_per_step" in ledger
    rows = "pairs" if by_pairs else "rows"
    step = f"{ledger['pairs_per_step']:,} pairs" if by_pairs else f"{ledger['tokens_per_step']:,}"
    split = "" if by_pairs else f"{ledger['split_rows']} split, "
    idle = ledger.get("idle_share", 0)
    wasted = f"; {idle:.0%} of each step is idle on so many devices" if idle else ""
    return (
        f"training on {ledger['trained_rows']} {rows}, {ledger['trained_tokens']:,} tokens an "
        f"epoch ({ledger['trained_loss_tokens']:,} bear loss), {step} a step; "
        f"{ledger['truncated_rows']} {rows} truncated, {split}{ledger['dropped_rows']} "
        f"dropped{wasted}"
    )


def _train(config: TrainConfig, out: Path, log: Log) -> None:
    """Run the command to its end under a supervisor, which ends every rank when this process is
    gone, SIGKILL included.

    Asked to stop (SIGTERM, SIGUSR1, Ctrl-C), it has the training save first and raises Stopped; a
    second Ctrl-C ends it at once. Stopped is also raised where a rank was killed after a step was
    saved that was not saved before: there is something to go on from.
    """
    for old in (out / "scratch").glob("error-*.txt"):
        old.unlink()
    stopping.forget(out)
    begun = _saved(out)
    (out / divergence.FILE).unlink(missing_ok=True)
    text, arguments = out / "trainer.log", machines.command_here(config, out)
    machines.opened(out)
    with text.open("ab") as handle:
        handle.write(f"$ {shlex.join(arguments)}\n".encode())
        beginning = handle.tell()
    env = {**os.environ, **environment(config), **log.trainer_env()}
    # A folder named train/ in the user's working directory would shadow this package, so the
    # command runs in its own root.
    child = Supervised(
        ["env", "-C", str(ROOT), *arguments],
        env,
        text,
        saves=Saves(stopping.listening(out), config.grace),
    )
    with stopping.noticing() as signalled:
        asked = _watch(child, out, log, signalled)
        if asked:
            log.say(f"asked to stop: the training saves and ends, within {config.grace:g} s")
        try:
            child.stop()
        except KeyboardInterrupt:
            child.kill()
            raise
    if (out / "checkpoint").is_dir() and child.exit_code == 0:
        return
    if (saved := stopping.noted(out)) is not None:
        raise Stopped(
            f"the training was asked to stop and is saved after step {saved[0]} of {saved[1]}; "
            "the same command continues it."
        )
    if asked:
        raise Stopped("the training was asked to stop; the same command continues it.")
    reason = _reason(out, beginning, child.exit_code)
    scratch = out / "scratch"
    if checkpoints.is_full(scratch, OSError(reason)):  # then no rank could write down why
        raise checkpoints.no_room(scratch, "what the training writes", reason.rstrip("."))
    if reason == KILLED and (now := _saved(out)) > begun:
        raise Stopped(
            f"{KILLED.rstrip('.')}. It is saved after step {now}; the same command continues it."
        )
    raise UserError(f"training failed: {reason} The whole log is {text}.")


def _watch(child: Supervised, out: Path, log: Log, signalled: Callable[[], bool]) -> bool:
    """Pass on what the training logs until it has ended, or until this process is asked to stop;
    whether it was."""
    reported = len(read_log(out / "log.jsonl"))
    try:
        while not child.wait(POLL):
            reported = _report(out, reported, log)
            if signalled():
                return True
    except KeyboardInterrupt:
        return True
    except BaseException:
        child.kill()  # a defect of ours: nothing is worth waiting for
        raise
    _report(out, reported, log)
    return False


def _report(out: Path, reported: int, log: Log) -> int:
    """Pass on log lines beyond the first `reported`; returns how many there are now (fewer after a
    resume drops some)."""
    lines = read_log(out / "log.jsonl")
    for line in lines[reported:]:
        step, total = line.pop("step"), line.pop("total_steps")
        figures = {k: float(v) for k, v in line.items() if isinstance(v, (int, float))}
        log.metrics(figures, step=step)
        if "slow" in line:
            log.say(line["slow"])
        log.progress(step, total, "steps")
    return len(lines)


_ERROR = re.compile(
    r"^(?:\s*\d+:\s)?(?:\[rank\d+\]:\s*)?((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt)\b.*)$"
)


_FALLOUT = re.compile(
    r"closed by peer|Connection (?:reset|refused|closed)|Broken pipe|remote process exited|"
    r"nccl(?:Remote|System|Internal)Error|NCCL|gloo|[Ww]atchdog|DistStoreError|DistNetworkError|"
    r"DistBackendError|[Tt]imed? ?out|monitoredBarrier|TCPStore|[Rr]endezvous|pair\.cc|"
    r"recvBytes|sendBytes|SignalException|Socket"
)
"""What ranks say when another has gone."""


KILLED = (
    "a training process was killed (signal 9), most likely for memory: "
    "use a higher zero_stage, offload, or a smaller batch."
)


def _saved(out: Path) -> int:
    """The newest step that is saved as a whole; 0 for none."""
    folders = checkpoints.steps(out / "scratch")
    return max(
        (step for step, folder in folders if (folder / checkpoints.MARK).exists()), default=0
    )


def _crashes(text: str) -> list[str]:
    """A sentence for the first rank that a signal ended which nobody sends: a crash in a
    library."""
    ended = (int(number) for number in re.findall(r"exitcode\s*:\s*-(\d+)", text))
    crashed = [number for number in ended if number in _CRASHES]
    return [
        f"a training process crashed ({signal.Signals(number).name}: {_CRASHES[number]})."
        for number in crashed[:1]
    ]


_CRASHES: dict[int, str] = {
    signal.SIGBUS: "often too little shared memory in /dev/shm",
    signal.SIGSEGV: "a fault in a library or a driver",
    signal.SIGABRT: "a library gave up; its words stand before in the log",
    signal.SIGFPE: "a fault in a library or a driver",
    signal.SIGILL: "a library is built for another processor",
}
"""Signals that a process causes itself, and what they mean most often."""


def _reason(out: Path, beginning: int, code: int | None) -> str:
    """One sentence on why the trainer ended: what a rank wrote down, else the signal, else the
    first error line of the log. What ranks say of a peer that is gone comes last."""
    files = sorted((out / "scratch").glob("error-*.txt"), key=lambda p: p.stat().st_mtime)
    noted = [path.read_text().strip().splitlines()[0].rstrip(".") + "." for path in files]
    if causes := [line for line in noted if not _FALLOUT.search(line)]:
        return causes[0]
    text = (out / "trainer.log").read_bytes()[beginning:].decode(errors="replace")
    if re.search(r"exitcode\s*:\s*-9", text) or code == 128 + signal.SIGKILL:
        return KILLED
    errors = filter(None, map(_ERROR.match, text.splitlines()))
    lines = [error[1] for error in errors if "ChildFailedError" not in error[0]]
    causes = [*(f"{line}." for line in lines if not _FALLOUT.search(line)), *_crashes(text), *noted]
    return causes[0] if causes else f"exit code {code} without an error line."
