"""What a pool of a million rows costs, without a model: plan, a run with nothing to do, passes over
stored cells, files, memory.

    python benchmarks/bench_scale.py            # up to 2M rows, 12 GB of disk
    python benchmarks/bench_scale.py --quick    # a tenth of every size

Cells are made up (benchmarks/synthetic_pool.py) with texts of the paper's lengths. A pass is what
the harness does around a model: it reads texts slice by slice, hands each row to a stand-in that
looks at every text once, and appends the cells that come back. What a reward model, a guard, a
scorer or an encoder computes is not in the figures, nor is rendering prompts.

Seconds of passes are processor time, best of three, each with a pool of its own; `plan` and `run`
are wall time of a process of their own, `magpie`'s imports aside. Memory is the peak of a process.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks import synthetic_pool
from core import models
from core.columns import OK
from core.servers import Servers
from core.tracking import Log
from recipes import schema
from recipes.stages import graph
from recipes.stages.tokens import Conversations, rows_digest
from synth.config.synthesis import SynthConfig
from synth.context import Context, Serving
from synth.duplicates import embeddings, neighbors
from synth.filters import orders
from synth.generate.ask import Frames, Rows, batched
from synth.pool.columns import open_column
from synth.pool.computed import Computed
from synth.pool.draw import mine
from synth.pool.measure import filled
from synth.pool.pool import Pool

FEEDS = {"reward": "reward", "guard": "safety", "IFD": "ifd", "PII": "response_pii"}
"""Pass -> the measure whose texts it reads."""
PASSES = ("snapshot", "conversations", *FEEDS, "embeddings")
DIMENSIONS = 384
BARS = {
    "ratio": 5.0,
    "plan": 20.0,
    "run": 30.0,
    "files": 200,
    "memory": 3.0,
    "growth": 1.6,
    "rewritten": 0,
}
Figures = dict[str, Any]


# -- one process each ------------------------------------------------------------------------------


def opened(folder: Path) -> Pool:
    recipe = schema.load(folder / "recipe.yaml").recipe
    return Pool(recipe.synth, Context(Path(recipe.store), cache(models.resolve)))


def made(folder: Path, rows: int) -> Figures:
    """Write the store."""
    synthetic_pool.recipe(folder, rows)
    synthetic_pool.fill(opened(folder))
    parts = (folder / "store" / "columns").rglob("*.parquet")
    return {"columns": sum(path.stat().st_size for path in parts)}


def selected(folder: Path, rows: int) -> Figures:
    """The first `magpie run` over it: three arms choose, the snapshot is written."""
    started = time.perf_counter()
    graph.run(schema.load(folder / "recipe.yaml"), "select")
    snapshots = (folder / "store" / "snapshots").iterdir()
    size = sum(path.stat().st_size for path in snapshots)
    return {"wall": time.perf_counter() - started, "snapshot": size}


def planned(folder: Path, rows: int) -> Figures:
    """`magpie plan` of what is finished."""
    started = time.perf_counter()
    steps = graph.plan(schema.load(folder / "recipe.yaml")).steps
    took = time.perf_counter() - started
    assert {step.state for step in steps} == {"reuse"}, steps
    return {"wall": took}


def idle(folder: Path, rows: int) -> Figures:
    """`magpie run` with nothing to do."""
    before = states(folder / "store")
    started = time.perf_counter()
    graph.run(schema.load(folder / "recipe.yaml"), "select")
    took = time.perf_counter() - started
    after = states(folder / "store")
    changed = [name for name in {*before, *after} if before.get(name) != after.get(name)]
    return {"wall": took, "rewritten": len(changed)}


def states(folder: Path) -> dict[str, tuple[int, int]]:
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock")]
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in files}


def passed(folder: Path, rows: int, times: int = 3) -> Figures:
    """Processor seconds of each pass, best of `times`."""
    best: Figures = {}
    for name in PASSES:
        seconds = []
        for _ in range(times):
            seconds.append(alone(name, folder))
        best[name] = min(seconds)
    before = time.process_time()
    opened(folder).frame()
    return best | {"frame": time.process_time() - before}


def alone(name: str, folder: Path) -> float:
    """Processor seconds of a pass over a pool of its own, which is gone when it ends."""
    pool = opened(folder)
    frame = pool.frame()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        before = time.process_time()
        one_pass(name, pool, frame, Path(scratch))
        return time.process_time() - before


def passed_once(folder: Path, rows: int) -> Figures:
    return passed(folder, rows, 1)


def one_pass(name: str, pool: Pool, frame: pl.DataFrame, scratch: Path) -> None:
    if name == "snapshot":
        pool.snapshot(frame, scratch / "pool.parquet")
    elif name == "conversations":
        rows_digest(Conversations(pool, frame).slices())
    elif name == "embeddings":
        texts = (text for part in pool.instructions(frame) for text in part)
        model = models.Model("stand-in", "stand-in", "r1")
        embeddings.vectors(scratch, frame["id"].to_list(), texts, model)
    else:
        fed(FEEDS[name], pool, frame, scratch)


def fed(measure: str, pool: Pool, frame: pl.DataFrame, scratch: Path) -> None:
    """Hand every row's texts to a stand-in and append what comes back, as `measure` does."""
    known = pool.computed[measure]
    streamed = standing_in if known.stream is not None else None
    pool.computed = {**pool.computed, measure: Computed(known.determines, standing_in, streamed)}
    column = open_column(scratch, measure, {}, pool.measures.table[measure])
    with Servers(Log(), scratch / "logs") as servers:
        context = pool.context.serving(servers)
        done = sum(len(cells) for cells, _ in filled(pool, measure, frame, column, context))
    column.cut()
    assert done == len(frame)


def standing_in(rows: Rows, config: SynthConfig, context: Serving) -> Frames:
    """Looks at every text once, and says nothing."""
    frames = [rows] if isinstance(rows, pl.DataFrame) else rows

    def cells() -> Iterator[dict[str, Any]]:
        for frame in frames:
            for row in frame.iter_rows(named=True):
                sum(len(text) for text in row.values() if isinstance(text, str))
                yield {"id": row["id"], "status": OK}

    return batched(cells(), {})


def encoded(encoder: Any, texts: list[str]) -> np.ndarray:
    dice = np.random.default_rng(len(texts[0]))
    vectors = dice.normal(size=(len(texts), DIMENSIONS)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def launched(folder: Path, rows: int) -> Figures:
    """Eight tasks fill two columns, each its own rows, 32 cells at a time; then the chain's step
    merges. Files a column."""
    synthetic_pool.recipe(folder, rows)
    pool = opened(folder)
    words = synthetic_pool.Words()
    texts = words.texts(rows, synthetic_pool.INSTRUCTION).alias("instruction")
    draws = pool.planned.with_columns(
        texts, pl.lit(60).alias("tokens"), finish_reason=pl.lit("stop")
    )
    for rank in range(8):
        appended(opened(folder).instruction, mine(draws, (rank, 8)))
    for rank in range(8):
        task = opened(folder)
        rows_of = mine(task.frame().select("id", "of"), (rank, 8))
        appended(task.columns["quality"], rows_of.with_columns(input_quality=pl.lit("good")))
    before = files_of(pool)
    started = time.perf_counter()
    opened(folder).merge(lambda line: None, files=0)
    order = opened(folder).drawn()["id"]
    merged = pl.concat([pl.read_parquet(p, columns=["id"]) for p in pool.instruction.parts()])["id"]
    return {
        "before": before,
        "files": files_of(pool),
        "merging": time.perf_counter() - started,
        "in order": bool((merged == order).all()),
    }


def appended(column: Any, cells: pl.DataFrame) -> None:
    for part in cells.iter_slices(32):
        column.append(part)
    column.cut()


def files_of(pool: Pool) -> int:
    """The most files that a column has."""
    return max(len(column.files()) for column in (pool.instruction, *pool.columns.values()))


def beside(folder: Path, rows: int) -> Figures:
    """What compares rows with each other: seconds."""
    dice = np.random.default_rng(0)
    vectors = dice.normal(size=(rows, DIMENSIONS)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [str(number) for number in range(rows)]

    def diverse() -> None:
        taken = 0
        for batch in orders.farthest_first(vectors):
            taken += len(batch)
            if taken >= rows // 10:
                return

    def deita() -> None:
        for _ in orders.unlike(lambda top, end: vectors[top:end], rows, 0.9):
            pass

    return {
        "exact neighbours": seconds_of(lambda: neighbors.neighbors(ids, vectors)),
        "diverse": seconds_of(diverse),
        "deita": seconds_of(deita),
    }


def seconds_of(what: Callable[[], object]) -> float:
    started = time.perf_counter()
    what()
    return time.perf_counter() - started


SIDES: dict[str, Callable[[Path, int], Figures]] = {
    "made": made,
    "selected": selected,
    "planned": planned,
    "idle": idle,
    "passed": passed,
    "passed_once": passed_once,
    "launched": launched,
    "beside": beside,
}


def side(name: str, folder: Path, rows: int) -> None:
    """One part, in this process: prints what it found."""
    embeddings._load = lambda path: None  # nothing is loaded or computed
    embeddings._encode = encoded
    figures = SIDES[name](folder, rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cpu = time.process_time()
    print(json.dumps(figures | {"peak": peak, "cpu": cpu}))


# -- the table -------------------------------------------------------------------------------------


def asked(name: str, folder: Path, rows: int) -> Figures:
    """A part in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--side", name, "--folder", str(folder)]
    started = time.perf_counter()
    done = subprocess.run([*command, "--rows", str(rows)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{name} at {rows:,} rows ended with {done.returncode}")
    print(f"# {name} {rows:,}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    found: Figures = json.loads(done.stdout.splitlines()[-1])
    return found


class Bars:
    """Whether each bar is met."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def line(self, name: str, value: float, bar: float, unit: str = "") -> None:
        met = value <= bar
        if not met:
            self.missed.append(name)
        print(f"{name:<58} {value:>9.2f} {unit:<3} bar {bar:g}: {'met' if met else 'NOT MET'}")


def passes(root: Path, sizes: list[int], bars: Bars) -> None:
    """Passes at three sizes, each four times the first at most: near linear."""
    found = {}
    for rows in sizes:
        asked("made", root / str(rows), rows)
        found[rows] = asked("passed", root / str(rows), rows)
    print("\npass, processor seconds:", *(f"{rows:>10,}" for rows in sizes), "   ratio   at 4M")
    small, large = sizes[0], sizes[-1]
    for name in (*PASSES, "frame"):
        seconds = [found[rows][name] for rows in sizes]
        ratio = seconds[-1] / seconds[0]
        power = math.log(ratio) / math.log(large / small)
        at_4m = seconds[-1] * (4e6 / large) ** max(power, 1)
        shown = " ".join(f"{each:>10.2f}" for each in seconds)
        print(f"{name:<24} {shown}  {ratio:>6.2f}  {at_4m / 60:>5.1f} min")
        if name in PASSES:
            bars.line(f"  {name}: {large:,} against {small:,}", ratio, BARS["ratio"])


def whole(root: Path, rows: int, bars: Bars) -> None:
    """`plan`, a `run` with nothing to do, and their memory."""
    folder = root / str(rows)
    columns = asked("made", folder, rows)["columns"]
    first = asked("selected", folder, rows)
    print(
        f"\n{rows:,} rows: columns {columns / 1e9:.2f} GB and snapshot "
        f"{first['snapshot'] / 1e9:.2f} GB on disk; the run that chose and wrote it "
        f"{first['wall']:.0f} s (processor {first['cpu']:.0f} s)"
    )
    plan, run = asked("planned", folder, rows), asked("idle", folder, rows)
    bars.line(
        f"plan at {rows:,} rows (processor {plan['cpu']:.1f} s)", plan["wall"], BARS["plan"], "s"
    )
    bars.line(
        f"run with nothing to do at {rows:,} rows (processor {run['cpu']:.1f} s)",
        run["wall"],
        BARS["run"],
        "s",
    )
    bars.line("files written by that run", run["rewritten"], BARS["rewritten"])
    peak = max(figures["peak"] for figures in (first, plan, run))
    print(
        f"peak: first run {first['peak']:.2f}, plan {plan['peak']:.2f}, "
        f"run with nothing to do {run['peak']:.2f} GiB"
    )
    bars.line(f"memory of plan and run at {rows:,} rows", peak, BARS["memory"], "GiB")


def memory(root: Path, rows: int, bars: Bars) -> None:
    """Memory of all passes, at `rows` and at twice as many."""
    found = {}
    for size in (rows, 2 * rows):
        folder = root / str(size)
        if not folder.is_dir():
            asked("made", folder, size)
        found[size] = asked("passed_once", folder, size)
        each = ", ".join(f"{name} {found[size][name]:.0f} s" for name in PASSES)
        print(f"\npasses once at {size:,} rows: {each}; peak {found[size]['peak']:.2f} GiB")
    bars.line(f"memory of the passes at {rows:,} rows", found[rows]["peak"], BARS["memory"], "GiB")
    growth = found[2 * rows]["peak"] / found[rows]["peak"]
    bars.line(f"memory of the passes at {2 * rows:,} against {rows:,}", growth, BARS["growth"])


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rows", type=int, default=1_000_000, help="size of the largest store")
    options.add_argument("--quick", action="store_true", help="a tenth of every size")
    options.add_argument(
        "--only", choices=["passes", "launch", "whole", "memory", "beside"], default=None
    )
    options.add_argument("--folder", type=Path, help="keep the stores here")
    options.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.side:
        return side(given.side, given.folder, given.rows)
    rows = given.rows // 10 if given.quick else given.rows
    bars = Bars()
    with tempfile.TemporaryDirectory() as scratch:
        root = given.folder or Path(scratch)
        if given.only in (None, "passes"):
            passes(root, [rows // 10, rows // 5, rows * 2 // 5], bars)
        if given.only in (None, "launch"):
            launch = asked("launched", root / "launch", rows // 5)
            print(
                f"\nlaunch of 8 tasks, {rows // 5:,} rows: {launch['before']} files a column, "
                f"merged in {launch['merging']:.0f} s, in the order of the pool: "
                f"{launch['in order']}"
            )
            bars.line(
                "files a column after the launch's merging step", launch["files"], BARS["files"]
            )
        if given.only in (None, "whole"):
            whole(root, rows, bars)
        if given.only in (None, "memory"):
            memory(root, rows, bars)
        if given.only in (None, "beside"):
            some = min(rows // 25, 40_000)
            found = asked("beside", root / "beside", some)
            print(
                f"\nbeside, without a bar, {some:,} x {DIMENSIONS} vectors: "
                + ", ".join(
                    f"{n} {found[n]:.1f} s" for n in ("exact neighbours", "diverse", "deita")
                )
                + " (a tenth is taken by diverse, all are looked at by deita)"
            )
    print(f"\nbars: {'all met' if not bars.missed else 'NOT MET: ' + '; '.join(bars.missed)}")
    sys.exit(1 if bars.missed else 0)


if __name__ == "__main__":
    main()
