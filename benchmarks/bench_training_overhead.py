"""How much CPU time does a step of ours cost beside a step of plain TRL?

python benchmarks/bench_training_overhead.py [--pairs 44] [--processes 1] [--max-length 256]

Two trainings of the same base on the same tokens, under the same DeepSpeed configuration and
SFTConfig: one as `magpie run` trains (guarded, in our order, with our log), one a bare SFTTrainer.
They take their steps in turn, one waiting while the other works, in pairs whose order changes.
What is counted is CPU time of all processes of a side, from one step's beginning to that of the
next (its batches and its log line included), so other work on the machine does not count. Prints
the mean difference as a share of plain TRL's step and its 95 % interval (t over pairs), and exits
with 1 where the upper end is over 5 %.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from benchmarks.bench_training import selection
from core.models import resolve
from train.config import Job, TrainConfig
from train.data import tokens

MOST = 0.05
WARM = 3  # pairs that are not counted: allocators fill, kernels are chosen
SIDES = ("ours", "plain")


@dataclass(frozen=True)
class Rank:
    """A process of one side: it takes a step for each line that it is written, and says its CPU
    seconds."""

    process: subprocess.Popen[bytes]
    go: IO[str]
    said: IO[str]

    def begin(self) -> None:
        self.go.write("go\n")
        self.go.flush()

    def seconds(self) -> float:
        line = self.said.readline()
        if not line:
            sys.exit(f"a training ended with exit code {self.process.wait()}; see above.")
        return float(line)


def start(side: str, out: Path, processes: int) -> list[Rank]:
    """The ranks of a side, each before its first step."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = []
    for rank in range(processes):
        (our_read, their_write), (their_read, our_write) = os.pipe(), os.pipe()
        env = {
            **os.environ,
            **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            # Threads that wait for each other spin, which would count as work.
            **{"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            **{"ACCELERATE_USE_DEEPSPEED": "true", "PACE": f"{their_read} {their_write}"},
        }
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.bench_training_overhead", "--side", side, str(out)],
            env=env,
            pass_fds=(their_read, their_write),
            stdout=subprocess.DEVNULL,
        )
        os.close(their_read)
        os.close(their_write)
        ranks.append(Rank(child, os.fdopen(our_write, "w"), os.fdopen(our_read)))
    return ranks


def step(ranks: list[Rank]) -> float:
    """One step of a side; its CPU seconds over all ranks."""
    for rank in ranks:
        rank.begin()
    return sum(rank.seconds() for rank in ranks)


def paced() -> Any:
    """A callback that waits for its turn before each step."""
    from transformers import TrainerCallback

    read, write = (int(each) for each in os.environ["PACE"].split())
    go, said = os.fdopen(read), os.fdopen(write, "w")

    class Paced(TrainerCallback):  # type: ignore[misc]
        last: float | None = None

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if self.last is not None:
                said.write(f"{time.process_time() - self.last}\n")
                said.flush()
            if not go.readline():
                os._exit(0)  # enough pairs
            self.last = time.process_time()

    return Paced()


def train(side: str, out: Path) -> None:
    """Be a rank of a side."""
    from train import sft

    def ours(*args: Any) -> Any:
        trainer = sft.fine_tuning(*args)
        trainer.add_callback(paced())
        return trainer

    if side == "ours":
        sft.main(out, replace(sft.SFT, trainer=ours))
    else:
        plain(out)


def plain(out: Path) -> None:
    """The same training by TRL alone."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from core.models import load_tokenizer
    from train.resuming import ranks
    from train.settings.arguments import packed_arguments, sft_arguments
    from train.settings.engine import deepspeed_json

    job = Job.model_validate_json((out / "train.json").read_text())
    (out / "scratch").mkdir(parents=True, exist_ok=True)
    (out / "scratch" / "deepspeed.json").write_text(deepspeed_json(job.config))
    listen, ranks.COLLECTIVES.listen = ranks.COLLECTIVES.listen, lambda: None
    ranks.join(job.config)
    ranks.COLLECTIVES.listen = listen
    accumulation = job.config.trainer["gradient_accumulation_steps"]
    arguments = sft_arguments(job, out, accumulation, gpu=False) | packed_arguments(job.config)
    packs = Dataset.from_file(str(Path(str(job.tokens)) / "tokens.arrow"))
    packs = packs.select(range(len(packs) - 1)).remove_columns("ids")  # without the filler
    words = load_tokenizer(job.base)
    words.pad_token = words.pad_token or words.eos_token
    SFTTrainer(
        model=job.base,
        args=SFTConfig(**arguments),
        train_dataset=packs,
        processing_class=words,
        callbacks=[paced()],
    ).train()


def prepared(folder: Path, arguments: argparse.Namespace) -> None:
    """A job for each side, with the same tokens."""
    base = resolve(arguments.base).path
    trainer = {
        "max_length": arguments.max_length,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": arguments.accumulation,
        "max_steps": 10 * (arguments.pairs + WARM),
        "save_strategy": "no",
        "gradient_checkpointing": False,
    }
    config = TrainConfig(base=arguments.base, num_processes=arguments.processes, trainer=trainer)
    given = selection(folder / "selection", 400, arguments.max_length // 4) / "selection.parquet"
    from core.tracking import Log

    tokens.make(config, base, given, folder / "tokens", Log())
    for side in SIDES:
        job = Job(
            config=config, base=base, selection=str(given), tokens=str(folder / "tokens"), seed=0
        )
        (folder / side / "scratch").mkdir(parents=True)
        (folder / side / "train.json").write_text(job.model_dump_json())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="embedded/SmolLM2-135M-Instruct")
    parser.add_argument("--pairs", type=int, default=44)
    parser.add_argument("--processes", type=int, default=1, help="of each side")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--accumulation", type=int, default=2, help="micro-batches of a step")
    parser.add_argument("--times", help="file for the CPU seconds of all pairs, as JSON")
    parser.add_argument("--side", nargs=2, metavar=("SIDE", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        return train(arguments.side[0], Path(arguments.side[1]))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepared(folder, arguments)
        sides = {side: start(side, folder / side, arguments.processes) for side in SIDES}
        pairs = []
        orders = itertools.cycle((SIDES, SIDES[::-1]))
        for number, order in zip(range(arguments.pairs + WARM), orders, strict=False):
            taken = {side: step(sides[side]) for side in order}
            if number >= WARM:
                pairs.append((taken["ours"], taken["plain"]))
            if arguments.times:
                Path(arguments.times).write_text(json.dumps(pairs))
        for ranks in sides.values():
            for rank in ranks:
                rank.go.close()
                rank.process.wait()
    return report(pairs)


def report(pairs: list[tuple[float, float]]) -> None:
    """Print the overhead and leave with 1 where its upper bound is too high."""
    from scipy.stats import t

    differences = [ours - plain for ours, plain in pairs]
    plain = statistics.mean(each for _, each in pairs)
    overhead = statistics.mean(differences) / plain
    error = statistics.stdev(differences) / len(pairs) ** 0.5 / plain
    half = float(t.ppf(0.975, len(pairs) - 1)) * error
    print(
        f"{len(pairs)} pairs of steps: plain TRL {plain:.3f} CPU s, ours {overhead:+.2%} "
        f"(95 % interval {overhead - half:+.2%} to {overhead + half:+.2%})"
    )
    sys.exit(int(overhead + half > MOST))


if __name__ == "__main__":
    main()
