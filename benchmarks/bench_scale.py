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
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.pool_costs import DIMENSIONS, PASSES, Figures

ROOT = Path(__file__).parents[1]
BARS = {
    "ratio": 5.0,
    "plan": 20.0,
    "run": 30.0,
    "files": 200,
    "memory": 3.0,
    "growth": 1.6,
    "rewritten": 0,
}


def asked(name: str, folder: Path, rows: int) -> Figures:
    """A part in a process of its own."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.pool_costs", name, str(folder), str(rows)]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
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
    given = options.parse_args()
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
