"""Memory and time of a large pool: the frame that filters and the schedule see, one pass of the
schedule, a selection, the snapshot with all texts.

    python benchmarks/bench_pool_memory.py                    # 100,000 and 400,000 rows
    python benchmarks/bench_pool_memory.py --rows 1000000     # a few minutes

Each number of rows has a process of its own.

Every row has an instruction of 300 characters, a response of 1,500, and a quality label. Peak
memory is that of the whole process. The second reading finds what the first one remembered of the
texts.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

from core.models import Model
from synth.config.synthesis import SynthConfig
from synth.context import Context
from synth.filters.arm import ArmConfig
from synth.filters.rule import resolve
from synth.filters.schedule import select, wanted
from synth.measures import QUALITY
from synth.pool.pool import Pool

PART = 20_000


def opened(root: Path, rows: int) -> Pool:
    config = SynthConfig.model_validate({"teacher": {"model": "m"}, "rows": rows})
    return Pool(config, Context(root, lambda name, revision: Model(name, name, "r1")))


def fill(root: Path, rows: int) -> None:
    """Write the pool, part by part."""
    made, dice = opened(root, rows), random.Random(0)
    sentence = " ".join(
        dice.choice(["lens", "why", "table", "river", "seven", "of", "the", "bright", "code", "a"])
        for _ in range(4000)
    )

    def text(length: int) -> str:
        at = dice.randrange(len(sentence) - length)
        return f"{dice.random()} {sentence[at : at + length - 20]}"

    for part in made.planned.iter_slices(PART):
        n = len(part)
        texts = pl.Series("instruction", [text(300) for _ in range(n)])
        made.instruction.append(
            part.with_columns(
                texts, pl.lit("stop").alias("finish_reason"), pl.lit(60).alias("tokens")
            )
        )
    frame = made.frame()
    for part in frame.select("id", "of").iter_slices(PART):
        n = len(part)
        quality = pl.Series("input_quality", [dice.choice(QUALITY) for _ in range(n)])
        made.columns["quality"].append(part.with_columns(quality, pl.lit(1).alias("tokens")))
        response = pl.Series("response", [text(1500) for _ in range(n)])
        made.columns["response"].append(
            part.with_columns(
                response, pl.lit("stop").alias("finish_reason"), pl.lit(300).alias("tokens")
            )
        )


def side(root: Path, rows: int) -> None:
    """Read the pool in this process."""
    empty = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pool = opened(root, rows)
    rule = resolve(
        "arm",
        ArmConfig.model_validate(
            {
                "where": "input_quality >= 'good'",
                "choose": "longest",
                "budget": {"rows": rows // 10},
            }
        ),
    )
    first = time.perf_counter()
    pool.frame()
    started = time.perf_counter()
    pool = opened(root, rows)
    frame = pool.frame()
    read = time.perf_counter()
    assert not wanted(frame, [(rule, (0,))])
    chosen = select(frame, rule, 0)
    decided = time.perf_counter()
    pool.snapshot(frame, root / "pool.parquet")
    ended = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{rows:,} rows, {rows * 1800 / 2**30:.2f} GiB of text: peak "
        f"{peak / 2**20:.2f} GiB, {empty / 2**20:.2f} of it libraries; the frame "
        f"{frame.estimated_size() / rows:.0f} bytes a row; read in "
        f"{started - first:.1f} s, again in {read - started:.1f} s, decided in "
        f"{decided - read:.1f} s ({len(chosen.ids):,} chosen), snapshot in {ended - decided:.1f} s",
        flush=True,
    )


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rows", type=int, nargs="+", default=[100_000, 400_000])
    options.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.side:
        return side(chosen.side, chosen.rows[0])
    for rows in chosen.rows:
        with tempfile.TemporaryDirectory() as folder:
            fill(Path(folder), rows)
            subprocess.run(
                [sys.executable, __file__, "--rows", str(rows), "--side", folder], check=True
            )


if __name__ == "__main__":
    main()
