"""Tests that would notice: small mutations of what figures rest on, each met by its module's tests.

    python -m benchmarks.mutants --seed 0 --sample 200

What a mutation is, is in `mutations.py`; how it meets its tests, in `mutant_runs.py`, by what
`mutant_reach.py` found and in the processes of `mutant_forks.py`. All of it
runs over a copy of the tree. Every result is appended to `--out`, so that a stopped campaign
continues, and one of changed code or tests does only what changed: a mutant that was noticed stays
so while its module is the same, one that was not is met again when its module's tests change.
Mutations that change nothing which can be observed are named in `equivalent_mutants.json`, each
with its reason; the share noticed is of those that are left.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.mutant_runs import meet
from benchmarks.mutations import ROOT, Mutant, mutants

EQUIVALENT = Path(__file__).with_name("equivalent_mutants.json")
TREE = ("core", "synth", "train", "eval", "recipes", "tests", "benchmarks")

TESTS: dict[str, tuple[str, ...]] = {
    "eval/stats.py": ("stats", "errors", "sequential", "arena", "alpaca", "compare"),
    "eval/compare.py": ("compare", "controls_compared", "planning", "duels", "tasks"),
    "eval/comparing/arms.py": ("errors", "sequential", "planning", "compare", "controls_compared"),
    "eval/comparing/differences.py": ("planning", "sequential", "compare", "errors"),
    "eval/comparing/errors.py": ("errors", "sequential", "planning", "compare"),
    "eval/comparing/estimates.py": ("errors", "planning", "sequential", "compare"),
    "eval/comparing/metrics.py": ("compare", "controls_compared", "tasks", "duels", "terminal"),
    "eval/comparing/missing.py": ("missing_values", "planning", "compare"),
    "eval/comparing/scores.py": ("compare", "tasks", "duels"),
    "eval/comparing/sequential.py": ("sequential", "planning"),
    "eval/scoring/length_control.py": ("length_control", "alpaca"),
    "eval/scoring/arena.py": ("arena",),
    "synth/filters/where.py": ("where", "schedule"),
    "synth/filters/choices.py": ("choices",),
    "synth/filters/choosing/kinds.py": ("choices", "strategies"),
    "synth/filters/choosing/facility.py": ("strategies",),
    "synth/filters/choosing/label_gain.py": ("strategies",),
    "synth/filters/choosing/lazy.py": ("strategies",),
    "synth/filters/choosing/near_queries.py": ("strategies",),
    "synth/filters/schedule.py": ("schedule", "strategies"),
    "synth/filters/orders.py": ("orders", "choose"),
    "synth/filters/ranking.py": ("schedule", "strategies"),
    "synth/filters/rule.py": ("schedule", "strategies", "tagged"),
    "synth/filters/arm.py": ("mixing", "schedule"),
    "synth/filters/mixing.py": ("mixing",),
    "synth/filters/verdicts.py": ("schedule", "tagged"),
    "synth/generate/sampling_grid.py": ("grid",),
    "synth/published/forms.py": ("published",),
    "synth/published/to_ours.py": ("published", "reading"),
    "synth/published/to_published.py": ("published",),
    "synth/tags/sanitize.py": ("sanitize",),
    "synth/pool/columns.py": ("pool",),
    "train/data/order.py": ("training_parts", "order"),
    "train/data/packs.py": ("training_parts", "order"),
    "train/data/pairs.py": ("training_parts", "dpo"),
    "train/data/parts.py": ("training_parts", "train_data"),
    "train/data/rows.py": ("train_data",),
    "train/data/tokens.py": ("training_parts", "train_data", "order"),
    "train/data/tools.py": ("training_parts", "train_data"),
    "train/sizes/schedule.py": ("plan",),
    "eval/judging/verdicts.py": ("verdicts_read", "wildbench", "rewarding"),
    "core/columns.py": ("columns", "pool"),
    "core/store.py": ("store", "columns"),
    "core/cells/content.py": ("scale",),
    "core/cells/journal.py": ("sealed_files", "columns"),
    "core/cells/merging.py": ("columns", "scale"),
    "core/cells/seals.py": ("sealed_files", "store"),
    "core/cells/whole.py": ("columns", "damage"),
}
"""Module -> its tests (tests/test_NAME.py) that start no process, most telling first. Not here:
`train/data/feeding.py`, which only a training's own process imports."""


def drawn(sample: int, seed: int) -> list[Mutant]:
    """A sample of all mutations, those whose names hash lowest: of code that changed elsewhere, the
    same ones."""
    everything = [mutant for module in TESTS for mutant in mutants(module)]
    return sorted(everything, key=partial(_rank, seed))[:sample]


def _rank(seed: int, mutant: Mutant) -> str:
    return hashlib.sha256(f"{seed} {mutant.name}".encode()).hexdigest()


def files_of(module: str) -> list[str]:
    """The test files of a module."""
    return [f"tests/test_{name}.py" for name in TESTS[module]]


def _tests_digest(module: str) -> str:
    texts = [(ROOT / file).read_bytes() for file in files_of(module)]
    return hashlib.sha256(b"".join(texts)).hexdigest()[:16]


def known(out: Path) -> dict[str, dict[str, Any]]:
    """What is known of mutants already, by key: what came last."""
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    return {row["key"]: row for row in rows}


def missing(sample: list[Mutant], out: Path) -> list[Mutant]:
    """Those of which nothing is known that still holds."""
    rows, tests = known(out), {module: _tests_digest(module) for module in TESTS}

    def holds(mutant: Mutant) -> bool:
        row = rows.get(mutant.key)
        if row is None:
            return False
        return bool(row["result"] != "passed" or row["tests of"] == tests[mutant.module])

    return [mutant for mutant in sample if not holds(mutant)]


def work(out: Path, mine: list[Mutant], folder: Path) -> None:
    """Meet each of these mutants with its tests, and append what came of it to `out`."""
    before = len(out.read_text().splitlines()) if out.exists() else 0

    def say(mutant: Mutant, result: dict[str, Any]) -> None:
        said = {"key": mutant.key, "name": mutant.name, "line": mutant.line}
        row = {**said, **result, "tests of": _tests_digest(mutant.module)}
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def said() -> set[str]:
        lines = out.read_text().splitlines()[before:] if out.exists() else []
        return {json.loads(line)["key"] for line in lines}

    modules = list(dict.fromkeys(mutant.module for mutant in mine))
    meet(mine, {module: files_of(module) for module in modules}, folder, say, said)


def equivalent() -> dict[str, str]:
    """Mutations that change nothing which can be observed, by name, each with the reason."""
    return dict(json.loads(EQUIVALENT.read_text()))


def told(sample: list[Mutant], results: dict[str, dict[str, Any]]) -> str:
    """The table: by module how many were noticed, then every survivor by name."""
    reasons = equivalent()
    lines = [f"{'module':36} {'mutants':>8} {'noticed':>8} {'equivalent':>11} {'survived':>9}"]
    sums = [0, 0, 0, 0]
    survivors, equal = [], []
    for module in TESTS:
        own = [mutant for mutant in sample if mutant.module == module]
        left = [mutant for mutant in own if results[mutant.key]["result"] == "passed"]
        alike = [mutant for mutant in left if mutant.name in reasons]
        counts = [len(own), len(own) - len(left), len(alike), len(left) - len(alike)]
        sums = [total + count for total, count in zip(sums, counts, strict=True)]
        lines.append(f"{module:36} {counts[0]:8} {counts[1]:8} {counts[2]:11} {counts[3]:9}")
        survivors += [mutant for mutant in left if mutant.name not in reasons]
        equal += alike
    lines.append(f"{'all':36} {sums[0]:8} {sums[1]:8} {sums[2]:11} {sums[3]:9}")
    hung = sum(results[mutant.key]["result"] == "hung" for mutant in sample)
    share = 100 * sums[1] / max(sums[0] - sums[2], 1)
    lines.append(f"noticed: {share:.1f} % of those that are not equivalent ({hung} by their time)")
    lines += [f"survived: line {mutant.line}, {mutant.name}" for mutant in survivors]
    lines += [f"equivalent: {mutant.name}: {reasons[mutant.name]}" for mutant in equal]
    return "\n".join(lines)


def _copied(folder: Path) -> Path:
    for name in TREE:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def _in_a_copy(arguments: list[str], workers: int) -> bool:
    """Run the campaign by several processes over a copy of the tree; whether all came to its
    end."""
    with tempfile.TemporaryDirectory() as folder:
        tree = _copied(Path(folder) / "tree")
        shared = os.environ.get("MAGPIE_SHARED", str(ROOT.parent / "shared"))
        environment = {**os.environ, "PYTHONPATH": str(tree), "MAGPIE_SHARED": shared}
        command = [sys.executable, "-m", "benchmarks.mutants", *arguments]
        started = [
            subprocess.Popen([*command, "--share", f"{place}/{workers}"], cwd=tree, env=environment)
            for place in range(workers)
        ]
        return not any([process.wait() for process in started])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "mutants.jsonl")
    parser.add_argument("--only", help="one module, all of its mutants drawn from")
    parser.add_argument("--share", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.only:
        for name in [name for name in TESTS if name != chosen.only]:
            del TESTS[name]
    out: Path = chosen.out.absolute()
    sample = drawn(chosen.sample, chosen.seed)
    todo = sorted(missing(sample, out), key=lambda mutant: list(TESTS).index(mutant.module))
    if chosen.share:
        place, of = map(int, chosen.share.split("/"))
        size = -(-len(todo) // of)
        with tempfile.TemporaryDirectory() as folder:
            work(out, todo[place * size : (place + 1) * size], Path(folder))
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    arguments = [*sys.argv[1:], "--out", str(out)]
    if todo and not _in_a_copy(arguments, min(chosen.workers, len(todo))):
        raise SystemExit("a worker stopped; run the same command again")
    print(told(sample, known(out)))


if __name__ == "__main__":
    main()
