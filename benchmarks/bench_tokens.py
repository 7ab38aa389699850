"""How fast does a selection become tokens, and how full are its packs?

python benchmarks/bench_tokens.py [--tokenizer FOLDER] [--rows 8000] [--processes 2] [--pairs 3]

Rows of the paper's kind (a short instruction, an answer of about 500 tokens, log-normal) are
tokenised in turn, `--pairs` times: by one process and transformers' apply_chat_template with its
mask, which is how this was done before; by one process as it is now (its tokenizer works on all
cores); and by `--processes` of them, their start included. Prints the rows a second of each, by
the clock and by CPU time (of all processes), the ratios to the first (medians of the rounds), and
the packing efficiency at 8192 tokens over the whole set beside that of TRL's batches of 1,000.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl

from core.models import resolve, tokenizer
from train import chat
from train.config import TrainConfig
from train.data import parts
from train.data import rows as rows_of_training
from train.data.packs import Ints, pack
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


@contextmanager
def as_before() -> Iterator[None]:
    """Rows are encoded by transformers, one batch after another."""

    def encode(words: Any, conversations: Any, template: str) -> list[tuple[Any, Any]]:
        encoded = words.apply_chat_template(
            conversations,
            chat_template=template,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        both = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        return [(np.asarray(ids, np.int32), np.asarray(mask, bool)) for ids, mask in both]

    with (
        patch.object(chat, "encode_arrays", encode),
        patch.object(rows_of_training, "_one_ahead", lambda batches: batches),
    ):
        yield


def lengths_of(frame: pl.DataFrame, how: Rendering, scratch: Path, processes: int) -> Ints:
    """The rows' lengths as our tokenising finds them."""
    documents = parts.tokenise(frame, how, scratch, processes)
    return np.array([len(each) for each in documents.input_ids], dtype=np.int64)


def cpu_seconds() -> float:
    """CPU time of this process and of those that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


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
    ways = {
        "as before": (as_before, 1),
        "one process": (nullcontext, 1),
        f"{arguments.processes} processes": (nullcontext, arguments.processes),
    }
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(arguments.pairs):
        for way, (encoding, processes) in ways.items():
            with tempfile.TemporaryDirectory() as scratch, encoding():
                clock, cpu = time.perf_counter(), cpu_seconds()
                lengths = lengths_of(frame, how, Path(scratch), processes)
                taken[way].append((time.perf_counter() - clock, cpu_seconds() - cpu))
    print(f"{arguments.rows:,} rows of {lengths.mean():,.0f} tokens, {arguments.pairs} rounds")
    first, *_ = taken.values()
    for way, times in taken.items():
        for name, which in (("the clock", 0), ("CPU time", 1)):
            rate = arguments.rows / statistics.median(each[which] for each in times)
            ratios = [before[which] / now[which] for before, now in zip(first, times, strict=True)]
            print(
                f"{way}: {rate:,.0f} rows/s by {name}, {statistics.median(ratios):.2f} x "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )
    packs = pack(lengths, LENGTH, "bfd_split")
    by_trl = sum(
        len(pack(lengths[i : i + 1000], LENGTH, "bfd")) for i in range(0, len(lengths), 1000)
    )
    print(
        f"packs of {LENGTH}: {lengths.sum() / (len(packs) * LENGTH):.2%} full over the whole set, "
        f"{lengths.sum() / (by_trl * LENGTH):.2%} by batches of 1,000 rows"
    )


if __name__ == "__main__":
    main()
