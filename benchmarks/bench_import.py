"""Import and export of a published set: rows per second and peak memory, against reading row by row
in Python.

    python benchmarks/bench_import.py --rows 1000000

A file in the 23-column form is written (instructions of about 150 characters, responses and base
answers of about 1,700), imported to our form with the counts that `magpie import` prints, and
exported to the 23-column form again. The loop beside it does what a script does: `to_pylist`, a
dict a row, `Table.from_pylist`; it is timed on 20,000 rows. Seconds are given by the clock and of
the processor, which a busy machine does not stretch.
"""

from __future__ import annotations

import argparse
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from synth.published.rows import Counted, Writer, read, write

BLOCK = 20_000
WORDS = [
    "river",
    "stone",
    "tree",
    "bird",
    "write",
    "count",
    "red",
    "blue",
    "seven",
    "small",
    "great",
    "why",
    "make",
    "water",
    "energy",
    "code",
]


def block(number: int) -> pl.DataFrame:
    """BLOCK rows whose ids are new; texts repeat after 2,000 rows."""
    dice = random.Random(0)
    words = [dice.choice(WORDS) for _ in range(6_000)]
    texts = [" ".join(words[at : at + 300]) for at in range(2_000)]
    of = [texts[row % 2_000] for row in range(BLOCK)]
    rows = pl.DataFrame(
        {
            "uuid": [
                f"{number * BLOCK + row:012d}-e7fa-52f7-a778-ab847f36f123" for row in range(BLOCK)
            ],
            "text": of,
        }
    )
    short, answer = pl.col("text").str.slice(0, 150), pl.col("text")
    turns = [
        pl.struct(pl.lit(who).alias("from"), value.alias("value"))
        for who, value in (("human", short), ("gpt", answer))
    ]
    tags = {
        "task_category": "Math",
        "difficulty": "easy",
        "intent": "to know",
        "knowledge": "numbers",
        "input_quality": "good",
    }
    return rows.select(
        "uuid",
        pl.lit("meta-llama/Meta-Llama-3-8B-Instruct").alias("model"),
        pl.struct(pl.lit(1.0).alias("temperature"), pl.lit(1.0).alias("top_p")).alias(
            "gen_input_config"
        ),
        short.alias("input"),
        answer.alias("output"),
        pl.concat_list(turns).alias("conversations"),
        *[pl.lit(v).alias(k) for k, v in tags.items()],
        short.alias("quality_explanation"),
        pl.lit("safe").alias("llama_guard_2"),
        pl.lit("r").alias("reward_model"),
        pl.lit(-4.5).alias("instruct_reward"),
        answer.alias("base_output"),
        pl.lit(-9.0).alias("base_reward"),
        pl.lit(4.5).alias("reward_difference"),
        pl.lit(0.3).alias("min_neighbor_distance"),
        pl.lit(0, pl.Int64).alias("repeat_count"),
        pl.lit(None, pl.String).alias("min_similar_uuid"),
        short.str.len_chars().cast(pl.Int64).alias("input_length"),
        answer.str.len_chars().cast(pl.Int64).alias("output_length"),
    )


def looped(source: Path, out: Path, rows: int) -> None:
    """The plain loop over the first rows."""
    done, writer = 0, None
    for part in pq.ParquetFile(source).iter_batches(batch_size=1_000):
        made = [
            {**row, "instruction": row["input"], "response": row["output"]}
            for row in part.to_pylist()
        ]
        table = pa.Table.from_pylist(made)
        writer = writer or pq.ParquetWriter(out, table.schema)
        writer.write_table(table.cast(writer.schema))
        done += len(made)
        if done >= rows:
            break
    if writer is not None:
        writer.close()


def timed(name: str, rows: int, work: Callable[[], object]) -> None:
    """Do it and print the rate."""
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    print(
        f"{name}: {clock:.1f} s ({rows / clock:,.0f} rows/s), "
        f"{cpu:.1f} s of the processor ({rows / cpu:,.0f} rows/s)"
    )


def main() -> None:
    """Print the rates."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rows", type=int, default=1_000_000)
    rows = options.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        source, ours, again = (
            Path(folder) / f"{name}.parquet" for name in ("set", "ours", "again")
        )
        with Writer(source, "magpie") as writer:
            for number in range(-(-rows // BLOCK)):
                writer.add(block(number).head(rows - number * BLOCK))
        print(f"{rows:,} rows, {source.stat().st_size / 1e6:,.0f} MB on disk")
        counted = Counted()
        timed(
            "import",
            rows,
            lambda: write(counted.watch(read(source)), ours, "magpie"),
        )
        timed("export", rows, lambda: write(read(ours), again, "23"))
        print(
            f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:,.0f} "
            f"MB; {sum(counted.failed.values())} failed rows"
        )
        few = min(rows, 20_000)
        timed(
            "import, row by row in Python",
            few,
            lambda: looped(source, Path(folder) / "loop.parquet", few),
        )


if __name__ == "__main__":
    main()
