r"""Instructions per second with a sampling seed for each row, and without: `synth.seeds: per_row`
against `none`, in turns, on vLLM servers of this machine.

    # on a GPU: the default changes if `none` gains at least 10 % here
    python benchmarks/bench_seeds.py --model meta-llama/Meta-Llama-3-8B-Instruct --rows 20000 \
        --in-flight 512 --max-instruction 512
    # whether it works at all: 4 minutes on two cores, whose figure says nothing of a GPU
    python benchmarks/bench_seeds.py --rows 200 --repeats 1 --max-instruction 64

vLLM samples requests that have seeds one by one. Both sides draw from servers that are warm;
prints each pass, exact duplicates, and the medians' ratio in tokens per second.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from core.models import resolve
from core.servers import Servers
from core.tracking import Log
from synth.config.synthesis import SynthConfig
from synth.context import Context
from synth.pool.draw import draw
from synth.pool.pool import Pool


class Quiet(Log):
    """Says nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


def drawn(options: argparse.Namespace, seeds: str, seed: int, servers: Servers) -> tuple[int, int]:
    """Fill a pool of its own; (tokens drawn, exact duplicates among its instructions)."""
    server: dict[str, Any] = {
        "args": {"max_model_len": 2048},
        "replicas": options.replicas,
        "max_in_flight": options.in_flight,
    }
    with tempfile.TemporaryDirectory() as store:
        config = SynthConfig.model_validate(
            {
                "teacher": {"model": options.model, "server": server},
                "rows": options.rows,
                "seed": seed,
                "seeds": seeds,
                "instruction": {"temperature": 1.0, "max_tokens": options.max_instruction},
            }
        )
        pool = Pool(config, Context(Path(store), resolve))
        counts = draw(pool, servers, Quiet())
        texts = pool.instruction.read()["instruction"].drop_nulls()
        return int(counts["tokens"]), len(texts) - texts.n_unique()


def main() -> None:
    """Measure, in turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded/SmolLM2-135M-Instruct")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--max-instruction", type=int, default=256)
    options = parser.parse_args()
    rates: dict[str, list[float]] = {"none": [], "per_row": []}
    with tempfile.TemporaryDirectory() as logs, Servers(Log(), Path(logs)) as servers:
        warm = argparse.Namespace(**{**vars(options), "rows": 16, "max_instruction": 8})
        drawn(warm, "none", 99, servers)
        for repeat in range(options.repeats):
            for seeds, passes in rates.items():
                started = time.perf_counter()
                tokens, copies = drawn(options, seeds, repeat, servers)
                seconds = time.perf_counter() - started
                passes.append(tokens / seconds)
                print(
                    f"{seeds}: {options.rows} rows, {tokens:,} tokens in {seconds:.1f} s: "
                    f"{tokens / seconds:,.1f} tokens/s, {copies} exact duplicates",
                    flush=True,
                )
    ratio = statistics.median(rates["none"]) / statistics.median(rates["per_row"])
    print(f"none / per_row: {ratio:.3f} in tokens per second")


if __name__ == "__main__":
    main()
