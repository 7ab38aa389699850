"""How long does `magpie --help` take?

    python benchmarks/bench_help.py [--runs 9]

Runs the console script of this environment as a process of its own, once to warm the disk's cache
and then `--runs` times, and prints the fastest, the median and the slowest in seconds. The bar is
0.4 s: the command line loads no library that it does not need. It is held against the fastest run,
because other work on the machine only ever adds. Exits with 1 above the bar, and lists the slowest
imports.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

BAR = 0.4


def seconds(command: list[str]) -> float:
    """Wall-clock seconds of one run; a run that fails ends the benchmark."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def slowest_imports(script: Path, count: int = 12) -> list[str]:
    """The modules that take longest to import, by their own time: lines of `-X importtime`, slowest
    first."""
    traced = subprocess.run(
        [sys.executable, "-X", "importtime", str(script), "--help"],
        check=True,
        capture_output=True,
        text=True,
    )
    lines = [
        line
        for line in traced.stderr.splitlines()
        if line.startswith("import time:") and "self" not in line
    ]
    return sorted(lines, key=lambda line: -int(line.split(":")[1].split("|")[0]))[:count]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=9)
    runs: int = parser.parse_args().runs
    script = Path(sys.executable).with_name("magpie")
    if not script.is_file():
        sys.exit(
            f"there is no {script}: "
            "install the package into this environment first (pip install -e .)"
        )
    seconds([str(script), "--help"])
    taken = [seconds([str(script), "--help"]) for _ in range(runs)]
    middle = statistics.median(taken)
    figures = f"fastest {min(taken):.3f} s, median {middle:.3f} s, slowest {max(taken):.3f} s"
    print(f"magpie --help: {figures} over {runs} runs (bar: fastest under {BAR} s)")
    if min(taken) >= BAR:
        print("\n".join(slowest_imports(script)))
        sys.exit(1)


if __name__ == "__main__":
    main()
