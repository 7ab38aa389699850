"""The parts of bench_scale.py, each for a process of its own: what it prints is a line of JSON.

python -m benchmarks.pool_costs planned FOLDER ROWS
"""

from __future__ import annotations

import json
import resource
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
from core.cells.seals import VERIFIED
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
Figures = dict[str, Any]


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
    """What tells that a file of a store was written; not of locks, nor of what is remembered of
    files that were checked, which every run says anew."""
    held = [p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock")]
    files = [p for p in held if p.relative_to(folder).parts[0] != VERIFIED]
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
        model = models.Model("stand-in", str(scratch), "r1")  # a folder: nothing to fetch
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
    embeddings._load = lambda path, name: None  # nothing is loaded or computed
    embeddings._encode = encoded
    figures = SIDES[name](folder, rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cpu = time.process_time()
    print(json.dumps(figures | {"peak": peak, "cpu": cpu}))


if __name__ == "__main__":
    side(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
