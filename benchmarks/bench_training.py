"""How fast does a `train:` block train here, and what does starting it cost?

python benchmarks/bench_training.py [--base embedded/SmolLM2-135M-Instruct] [--zero-stage 2]
[--processes 2] [--max-length 512] [--steps 5]

Runs a real training (`train.launch.run`: Accelerate, DeepSpeed, SFTTrainer, export) on made-up rows
and prints tokens per second, loss-bearing tokens per second, MFU where the device's peak is known,
seconds a step, and the seconds that are not steps (start, checkpoints, export). Rates are medians
over all steps but the first, over all devices. FLOPs: see train/sizes/speed.py.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from pathlib import Path

import polars as pl

from core.models import resolve
from core.tracking import Log
from train.config import TrainConfig
from train.launch import run
from train.resuming.record import read_log

WORDS = Path(__file__).parents[1].joinpath("LICENSE").read_text().split()


def selection(folder: Path, rows: int, words: int) -> Path:
    """`rows` conversations whose answers have `words` words on average (half to one and a half of
    it), from this project's licence text."""
    draw = random.Random(0)

    def text(length: int) -> str:
        at = draw.randrange(len(WORDS) - length)
        return " ".join(WORDS[at : at + length])

    lengths = [draw.randint(words // 2, words + words // 2) for _ in range(rows)]
    messages = [
        [{"role": "user", "content": text(n // 4 + 1)}, {"role": "assistant", "content": text(n)}]
        for n in lengths
    ]
    folder.mkdir(parents=True)
    pl.DataFrame({"id": [str(i) for i in range(rows)], "messages": messages}).write_parquet(
        folder / "selection.parquet"
    )
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="embedded/SmolLM2-135M-Instruct")
    parser.add_argument(
        "--template", help="chat_template_path, for a base without a template of its own"
    )
    parser.add_argument("--zero-stage", type=int, default=2)
    parser.add_argument("--processes", type=int, help="default: one a GPU, else 2")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1, help="packed sequences a device and pass")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--words", type=int, default=100, help="words of an answer, on average")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--lora-rank", type=int)
    parser.add_argument("--attention", help="attn_implementation, e.g. flash_attention_2")
    arguments = parser.parse_args()
    from core.serving.devices import gpus

    model = resolve(arguments.base)
    config = TrainConfig(
        base=arguments.base,
        chat_template_path=arguments.template,
        zero_stage=arguments.zero_stage,
        num_processes=arguments.processes or len(gpus()) or 2,
        lora={"r": arguments.lora_rank, "target_modules": "all-linear"}
        if arguments.lora_rank
        else None,
        model_init={"attn_implementation": arguments.attention} if arguments.attention else {},
        trainer={
            "max_length": arguments.max_length,
            "per_device_train_batch_size": arguments.batch,
            "max_steps": arguments.steps,
            "gradient_checkpointing": arguments.gradient_checkpointing,
            "save_strategy": "no",
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        tokens = (
            arguments.max_length * arguments.batch * (config.num_processes or 1) * arguments.steps
        )
        given = selection(
            Path(folder) / "selection", max(64, tokens // arguments.words), arguments.words
        )
        out = Path(folder) / "out"
        counts = run(config, {"selection": given}, out, base=model.path, seed=0, log=Log())
        steps = read_log(out / "log.jsonl")[1:]
    middle = {
        key: statistics.median(line[key] for line in steps)
        for key in ("tokens_per_second", "loss_tokens_per_second", "seconds")
    }
    utilisation = (
        f", MFU {statistics.median(line['mfu'] for line in steps):.1%}" if "mfu" in steps[0] else ""
    )
    around = counts["seconds"] - counts["training_seconds"]
    print(
        f"{arguments.base}, ZeRO-{arguments.zero_stage}, {config.num_processes} processes, "
        f"{counts['tokens_per_step']:,} tokens a step: {middle['tokens_per_second']:,.0f} tokens/s "
        f"({middle['loss_tokens_per_second']:,.0f} bear loss){utilisation}, "
        f"{middle['seconds']:.1f} s a step; {around:.0f} s for start and export"
    )


if __name__ == "__main__":
    main()
