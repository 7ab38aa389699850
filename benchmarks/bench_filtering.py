"""How long do all of the paper's filters take on a million tagged rows, and how long with
`datasets.Dataset.filter` and with DuckDB?

    python benchmarks/bench_filtering.py [--rows 1000000] [--whole-rows 50000] [--runs 3] [--keep
    FOLDER]

Writes a synthetic set in the 23-column form of the Llama-3 v0.1 sets (texts included; figures
distributed about as the cards show) into a temporary folder, then applies the nine strategies of
the paper, its cards and its notebook in one call, `recipes.verbs.filter.apply_all`: read, `where`,
choose, funnel. That runs in a process of its own, `--runs` times; the fastest is held against the
bars (5 s, imports included, and 2 GB), because other work on the machine only ever adds, and its
processor seconds are printed beside it.

Beside it the same rules as Python lambdas with `datasets.Dataset.filter`, in one process, on rows
that are loaded (memory mapped), cache off. It only filters, so what it is held against is filtering
alone: the Parquet file read and every rule decided. Twice: every row of a set of nothing but the
columns that the rules name, where as many rows must be kept (bar: at least 20 times as long); and
whole rows as published, the first `--whole-rows` of them, scaled up in proportion.

And the same rules as SQL with DuckDB (`pip install duckdb`; left out where it is not installed):
one query counts what every rule keeps, straight from the Parquet file, on all cores; the fastest of
`--runs`. It too is held against filtering alone, and must keep as many rows. There is no bar: what
it leaves out is which rule dropped a row, which is what `where` answers of every row.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

ROWS = 1_000_000
GROUP = 50_000
QUALITY = ("very poor", "poor", "average", "good", "excellent")
DIFFICULTY = ("very easy", "easy", "medium", "hard", "very hard")
CATEGORY = (
    "Information seeking",
    "Creative writing",
    "Advice seeking",
    "Planning",
    "Math",
    "Reasoning",
    "Coding & Debugging",
    "Editing",
    "Others",
)
WORDS = (
    "the",
    "of",
    "and",
    "to",
    "a",
    "in",
    "is",
    "that",
    "for",
    "it",
    "as",
    "was",
    "with",
    "be",
    "by",
    "on",
    "not",
    "model",
    "number",
    "write",
)

At = dict[str, int]
RULES: dict[str, Callable[[dict[str, Any], At, At], bool]] = {
    "magpie-air": lambda x, q, d: (
        q[x["input_quality"]] >= 3
        and d[x["difficulty"]] >= 2
        and x["min_neighbor_distance"] > 0
        and x["reward_difference"] > 0
    ),
    "magpie-pro": lambda x, q, d: (
        q[x["input_quality"]] >= 2 and x["min_neighbor_distance"] > 0 and x["instruct_reward"] > -12
    ),
    "magpie-pro-2": lambda x, q, d: (
        q[x["input_quality"]] >= 3
        and d[x["difficulty"]] >= 1
        and x["min_neighbor_distance"] > 0
        and x["instruct_reward"] > -12
    ),
    "magpie-pro-3": lambda x, q, d: x["min_neighbor_distance"] > 0 and x["instruct_reward"] > -12,
    "magpie-pro-4": lambda x, q, d: (
        q[x["input_quality"]] >= 3
        and d[x["difficulty"]] >= 1
        and x["min_neighbor_distance"] > 0
        and x["reward_difference"] > 0
    ),
    "magpie-pro-5": lambda x, q, d: (
        q[x["input_quality"]] >= 3
        and d[x["difficulty"]] >= 1
        and x["min_neighbor_distance"] > 0
        and x["instruct_reward"] > -12
    ),
    "magpie-pro-6": lambda x, q, d: x["min_neighbor_distance"] > 0 and x["instruct_reward"] > -12,
    "magpie-pro-300k-card": lambda x, q, d: (
        q[x["input_quality"]] >= 2
        and x["instruct_reward"] >= -10
        and x["min_neighbor_distance"] > 0
        and not x["input"].endswith(":")
    ),
    "magpie-notebook": lambda x, q, d: (
        x["input_quality"] in ("good", "excellent")
        and x["instruct_reward"] > -10
        and not x["input"].endswith(":")
        and (x["min_similar_uuid"] is None or x["min_similar_uuid"] == x["uuid"])
    ),
}
"""Paper Table 5, the card of Magpie-Pro-300K-Filtered and data_filter.ipynb, as a user of
`datasets` would write them."""
FAIR = "input_quality IN ('average', 'good', 'excellent')"
GOOD = "input_quality IN ('good', 'excellent')"
ALONE = "min_neighbor_distance > 0"
EASY = "difficulty IN ('easy', 'medium', 'hard', 'very hard')"
MEDIUM = "difficulty IN ('medium', 'hard', 'very hard')"
SQL = {
    "magpie-air": f"{GOOD} AND {MEDIUM} AND {ALONE} AND reward_difference > 0",
    "magpie-pro": f"{FAIR} AND {ALONE} AND instruct_reward > -12",
    "magpie-pro-2": f"{GOOD} AND {EASY} AND {ALONE} AND instruct_reward > -12",
    "magpie-pro-3": f"{ALONE} AND instruct_reward > -12",
    "magpie-pro-4": f"{GOOD} AND {EASY} AND {ALONE} AND reward_difference > 0",
    "magpie-pro-5": f"{GOOD} AND {EASY} AND {ALONE} AND instruct_reward > -12",
    "magpie-pro-6": f"{ALONE} AND instruct_reward > -12",
    "magpie-pro-300k-card": (
        f"{FAIR} AND instruct_reward >= -10 AND {ALONE} AND NOT suffix(input, ':')"
    ),
    "magpie-notebook": (
        f"{GOOD} AND instruct_reward > -10 AND NOT suffix(input, ':') "
        "AND (min_similar_uuid IS NULL OR min_similar_uuid = uuid)"
    ),
}
"""The same rules as a user of DuckDB would write them."""
NAMED = [
    "uuid",
    "input",
    "input_quality",
    "difficulty",
    "min_neighbor_distance",
    "instruct_reward",
    "reward_difference",
    "min_similar_uuid",
]


def made(path: Path, rows: int, seed: int = 0) -> None:
    """Write a synthetic tagged set of the 23-column form to a Parquet file, in row groups, so that
    memory stays small."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    dice = np.random.default_rng(seed)
    prose = " ".join(dice.choice(WORDS, 200_000))
    writer: pq.ParquetWriter | None = None
    for top in range(0, rows, GROUP):
        table = pa.Table.from_pydict(_group(dice, prose, min(GROUP, rows - top)))
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None
    writer.close()


def _group(dice: np.random.Generator, prose: str, n: int) -> dict[str, Any]:
    """Some rows, by column."""

    def texts(lengths: Any) -> list[str]:
        starts = dice.integers(0, len(prose) - 12_000, n)
        return [prose[s : s + k] for s, k in zip(starts.tolist(), lengths.tolist(), strict=True)]

    def labels(names: tuple[str, ...], shares: list[float]) -> list[str]:
        return np.array(names)[dice.choice(len(names), n, p=shares)].tolist()

    asked = texts(np.clip(dice.gamma(2, 60, n), 8, 2000).astype(int))
    asked = [
        text + ":" if ends else text
        for text, ends in zip(asked, dice.random(n) < 0.03, strict=True)
    ]
    answers = texts(np.clip(dice.normal(1900, 800, n), 20, 9000).astype(int))
    ids = [str(uuid.UUID(bytes=raw.tobytes())) for raw in dice.integers(0, 256, (n, 16), np.uint8)]
    alone = dice.random(n) < 0.9
    similar = [
        None if lone else other
        for lone, other in zip(alone, [ids[i] for i in dice.integers(0, n, n)], strict=True)
    ]
    reward, base = dice.normal(-10, 4, n), dice.normal(-12, 4, n)
    said = [
        [{"from": "human", "value": a}, {"from": "gpt", "value": b}]
        for a, b in zip(asked, answers, strict=True)
    ]
    return {
        "uuid": ids,
        "model": ["meta-llama/Meta-Llama-3-70B-Instruct"] * n,
        "gen_input_config": [{"temperature": 1.0, "top_p": 1.0}] * n,
        "input": asked,
        "output": answers,
        "conversations": said,
        "task_category": labels(CATEGORY, [0.5, *[0.0625] * 8]),
        "difficulty": labels(DIFFICULTY, [0.1, 0.35, 0.4, 0.13, 0.02]),
        "intent": ["the user wants to know"] * n,
        "knowledge": ["general"] * n,
        "input_quality": labels(QUALITY, [0.03, 0.1, 0.2, 0.3, 0.37]),
        "quality_explanation": [text[:120] for text in asked],
        "llama_guard_2": ["safe"] * n,
        "reward_model": ["sfairXC/FsfairX-LLaMA3-RM-v0.1"] * n,
        "instruct_reward": reward,
        "base_output": ["?"] * n,
        "base_reward": base,
        "reward_difference": reward - base,
        "min_neighbor_distance": np.where(dice.random(n) < 0.04, 0.0, dice.beta(3, 5, n)),
        "repeat_count": np.where(alone, 0, 1).astype(np.int64),
        "min_similar_uuid": similar,
        "input_length": [len(t) for t in asked],
        "output_length": [len(t) for t in answers],
    }


def ours(path: Path) -> dict[str, Any]:
    """Seconds of filtering alone and of everything (imports included), rows kept by strategy,
    processor seconds, and peak memory in bytes."""
    start = time.perf_counter()
    from recipes.verbs.filter import apply_all, rules_of
    from synth.filters.verdicts import ALLOWED, verdicts
    from synth.published import tagged

    imports = time.perf_counter() - start
    start = time.perf_counter()
    applied = apply_all(path, tuple(RULES), allow_short=True)
    whole = imports + time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_SELF)
    kept = {name: int(str(chosen.funnel["allowed"])) for name, chosen in applied.chosen.items()}
    del applied
    start = time.perf_counter()
    data = tagged.read(path, rules_of(tuple(RULES), {"allow_short": True}))
    alone = {rule.name: int((verdicts(data.frame, rule) == ALLOWED).sum()) for rule in data.rules}
    seconds = time.perf_counter() - start
    assert alone == kept
    return {
        "whole": whole,
        "filter": seconds,
        "kept": kept,
        "cpu": used.ru_utime + used.ru_stime,
        "peak": used.ru_maxrss * 1024,
    }


def peer(path: Path, rows: int, columns: list[str] | None) -> tuple[float, dict[str, int]]:
    """Seconds of `Dataset.filter` for all rules on the first rows, with some columns or all, and
    how many rows each rule keeps."""
    from datasets import Dataset, disable_caching, disable_progress_bars

    disable_caching()
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        head = Path(cache) / "rows.parquet"
        pl.scan_parquet(path).head(rows).sink_parquet(head)
        held = Dataset.from_parquet(str(head), columns=columns, cache_dir=cache)
        quality, difficulty = (
            {label: at for at, label in enumerate(labels)} for labels in (QUALITY, DIFFICULTY)
        )
        start, kept = time.perf_counter(), {}
        for name, rule in RULES.items():
            kept[name] = len(
                held.filter(lambda x, rule=rule: rule(x, quality, difficulty), keep_in_memory=True)
            )
        return time.perf_counter() - start, kept


def by_duckdb(path: Path, runs: int) -> tuple[float, dict[str, int]] | None:
    """The fewest seconds of one query that decides every rule, and how many rows each keeps; None
    where DuckDB is not installed."""
    try:
        import duckdb
    except ImportError:
        return None
    counts = ", ".join(f'count(*) FILTER (WHERE {rule}) AS "{name}"' for name, rule in SQL.items())
    taken: list[float] = []
    for _ in range(runs):
        start = time.perf_counter()
        with duckdb.connect() as session:
            kept = session.execute(f"SELECT {counts} FROM read_parquet(?)", [str(path)]).fetchone()
        taken.append(time.perf_counter() - start)
    return min(taken), dict(zip(SQL, kept, strict=True))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument(
        "--whole-rows",
        type=int,
        default=50_000,
        help="rows on which datasets is also timed with every column",
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--keep", type=Path, default=None, help="make the set here, or take the one that is here"
    )
    parser.add_argument("--only", type=Path, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only is not None:
        print(json.dumps(ours(given.only)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"tagged-{given.rows}.parquet"
        if not path.is_file():
            made(path, given.rows)
        print(
            f"{given.rows:,} rows, {path.stat().st_size / 2**20:,.0f} "
            f"MB of Parquet in the 23-column form; {os.cpu_count()} cores"
        )
        runs = []
        for _ in range(given.runs):
            done = subprocess.run(
                [sys.executable, __file__, "--only", str(path)],
                check=True,
                capture_output=True,
                text=True,
            )
            runs.append(json.loads(done.stdout))
        whole, alone = (min(run[what] for run in runs) for what in ("whole", "filter"))
        peak, cpu = max(run["peak"] for run in runs), min(run["cpu"] for run in runs)
        seconds = ", ".join(f"{run['whole']:.2f}" for run in runs)
        print(
            f"magpie, {len(RULES)} strategies: {seconds} s ({cpu:.1f} s of "
            f"processor), peak {peak / 2**30:.2f} GB; filtering alone {alone:.2f} s"
        )
        took, kept = peer(path, given.rows, NAMED)
        print(
            "datasets.Dataset.filter, one process, only the columns "
            f"named: {took:.1f} s; {took / alone:.0f} times as long"
        )
        if kept != runs[0]["kept"]:
            sys.exit(f"the two keep different rows: {runs[0]['kept']} and {kept}")
        rows = min(given.whole_rows, given.rows)
        slow, _ = peer(path, rows, None)
        scaled = slow * given.rows / rows
        print(
            f"datasets.Dataset.filter, whole rows: {slow:.1f} s on {rows:,}, "
            f"in proportion {scaled:.0f} s; {scaled / alone:.0f} times as long"
        )
        queried = by_duckdb(path, given.runs)
    if queried is None:
        print("DuckDB is not installed (pip install duckdb): left out")
    else:
        seconds_of_it, counted = queried
        if counted != runs[0]["kept"]:
            sys.exit(f"the two keep different rows: {runs[0]['kept']} and {counted}")
        print(
            f"DuckDB, one query of counts: {seconds_of_it:.2f} s; "
            f"{seconds_of_it / alone:.2f} times as long"
        )
    met = whole < 5 and peak < 2 * 2**30 and took >= 20 * alone
    print("bars (under 5 s, under 2 GB, at least 20 times): " + ("met" if met else "not met"))
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
