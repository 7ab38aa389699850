"""How fast does a selection become tokens, and how full are its packs?

python benchmarks/bench_tokens.py [--tokenizer FOLDER] [--rows 8000] [--processes 2] [--pairs 3]

Rows of the paper's kind (a short instruction, an answer of about 500 tokens, log-normal) are
tokenised by one process and by `--processes` in turn, `--pairs` times; prints the rows a second of
each and their ratio (start of the processes included; medians of the pairs), and the packing
efficiency at 8192 tokens over the whole set beside that of TRL's batches of 1,000.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from core.models import resolve, tokenizer
from train import chat
from train.config import TrainConfig
from train.data import parts
from train.data.packs import pack
from train.data.rows import Rendering

WORDS = Path(__file__).parents[1].joinpath("LICENSE").read_text().split()
LENGTH = 8192


def rows(count: int) -> pl.DataFrame:
    """Conversations of one turn from this project's licence text."""
    draw = np.random.default_rng(0)
    lengths = draw.lognormal(5.8, 0.6, count).astype(int).clip(10, 5000)
    text = WORDS * (1 + 5000 // len(WORDS)) * 2
    starts = draw.integers(0, len(WORDS), count)
    messages = [
        [
            {"role": "user", "content": " ".join(text[start : start + 30])},
            {"role": "assistant", "content": " ".join(text[start : start + length])},
        ]
        for start, length in zip(starts, lengths, strict=True)
    ]
    return pl.DataFrame({"id": [str(i) for i in range(count)], "messages": messages})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", help="folder; default: embedded/SmolLM2-135M-Instruct")
    parser.add_argument("--template", default="chatml", help="chat_template_path")
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    arguments = parser.parse_args()
    folder = arguments.tokenizer or resolve("embedded/SmolLM2-135M-Instruct").path
    config = TrainConfig(base=folder, chat_template_path=arguments.template)
    made = chat.choose(config, tokenizer(folder))
    how = Rendering(
        folder, None, made.training, made.end_of_turn, True, LENGTH, True, "made-up rows"
    )
    frame = rows(arguments.rows)
    seconds: dict[int, list[float]] = {1: [], arguments.processes: []}
    for _ in range(arguments.pairs):
        for processes, taken in seconds.items():
            with tempfile.TemporaryDirectory() as scratch:
                began = time.perf_counter()
                documents = parts.tokenise(frame, how, Path(scratch), processes)
                taken.append(time.perf_counter() - began)
                lengths = np.array([len(each) for each in documents.input_ids])
                del documents
    ratios = [one / many for one, many in zip(*seconds.values(), strict=True)]
    rates = [arguments.rows / statistics.median(each) for each in seconds.values()]
    packs = pack(lengths, LENGTH, "bfd_split")
    by_trl = sum(
        len(pack(lengths[i : i + 1000], LENGTH, "bfd")) for i in range(0, len(lengths), 1000)
    )
    print(
        f"{arguments.rows:,} rows of {lengths.mean():,.0f} tokens: {rates[0]:,.0f} rows/s by one "
        f"process, {rates[1]:,.0f} by {arguments.processes}: "
        f"{statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    print(
        f"packs of {LENGTH}: {lengths.sum() / (len(packs) * LENGTH):.2%} full over the whole set, "
        f"{lengths.sum() / (by_trl * LENGTH):.2%} by batches of 1,000 rows"
    )


if __name__ == "__main__":
    main()
