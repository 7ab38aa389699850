"""`magpie compare FILES…`: the comparison of anyone's result files, without a recipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from core.errors import UserError, nearest
from core.files import read_json, write_atomic
from eval.comparing.metrics import Declared
from eval.comparing.shown.notes import without_bounds
from eval.files.reading import Asked, Items, read

COMPARISON = "comparison.json"


@dataclass(frozen=True)
class Wanted:
    """What is asked of the comparison beside the files."""

    baseline: str | None = None
    primary: str | None = None
    out: Path | None = None
    """Folder for comparison.json, comparison.parquet and report.html."""
    as_json: bool = False


def main(arguments: Sequence[str], asked: Asked, wanted: Wanted) -> None:
    """Print the comparison of the arms that the files hold, and write it where that is wanted.

    Raises UserError for files that are none or cannot be compared, an unknown baseline or primary.
    """
    from recipes.report.verdicts import sentence
    from recipes.verbs import terminal

    items = read(arguments, asked)
    with TemporaryDirectory() as scratch:
        out = wanted.out or Path(scratch)
        comparison = compared(items, out, wanted)
        if wanted.out is not None:
            _page(arguments, out)
    if wanted.as_json:
        print(json.dumps(comparison, indent=2, allow_nan=False, ensure_ascii=False))
        return
    terminal.say(sentence.answer(comparison))
    terminal.of_comparison(comparison)
    for note in comparison["notes"]:
        terminal.say(note, "- ")
    if wanted.out is not None:
        print(f"report: {wanted.out / 'report.html'}")


def compared(items: Items, out: Path, wanted: Wanted) -> dict[str, Any]:
    """Write the comparison of some items into `out`, and return it."""
    from eval import compare

    arms = dict(items.arms)
    if wanted.baseline is not None and wanted.baseline in items.rivals.values():
        arms.setdefault(wanted.baseline, [])  # scores by definition
    if wanted.baseline is not None and wanted.baseline not in arms:
        known = [*arms, *items.rivals.values()]
        raise UserError(
            f"--baseline {wanted.baseline}: no such arm{nearest(wanted.baseline, known)}."
        )
    benchmarks = items.rows["benchmark"].unique(maintain_order=True).to_list()
    declared = Declared(
        primary=wanted.primary or benchmarks[0],
        baseline=wanted.baseline,
        # Each by its own name: who was met in one category may never have played in another.
        judged_against={
            benchmark: rival if (rival := items.rivals.get(benchmark)) in arms else None
            for benchmark in benchmarks
        },
    )
    compare.of_items(items.rows, arms, out, declared)
    comparison: dict[str, Any] = read_json(out / COMPARISON)
    _, *notes = comparison["notes"]
    comparison["notes"] = [_of_primary(comparison, wanted.primary), *_gain(comparison), *notes]
    comparison["notes"] += [*without_bounds(comparison), *items.notes]
    write_atomic(
        out / COMPARISON, json.dumps(comparison, indent=2, allow_nan=False, ensure_ascii=False)
    )
    return comparison


def _of_primary(comparison: dict[str, Any], named: str | None) -> str:
    """Which figure decides, and by whose word."""
    scores = comparison["scores"]
    benchmark, metric = next((s["benchmark"], s["metric"]) for s in scores if s["primary"])
    figure = f"{benchmark} {metric}"
    if len({(s["benchmark"], s["metric"]) for s in scores}) == 1:
        return f"{figure} is the only figure here."
    if named is None:
        return (
            f"No primary benchmark was named (--primary), so {figure} stands first because it was "
            "read first; whichever figure is picked afterwards is exploratory."
        )
    return f"{figure} decides, as --primary says; every other figure is exploratory."


def _gain(comparison: dict[str, Any]) -> list[str]:
    """How much smaller pairing the items makes the errors of the primary's differences."""
    gains = paired_gains(comparison)
    if not gains:
        return []
    gain = sum(gains) / len(gains)
    than = f"{gain:.2f} times smaller" if gain >= 1 else f"{1 / gain:.2f} times larger"
    return [
        f"Items are paired: the error of a difference is on average {than} than by the two scores' "
        "own errors."
    ]


def paired_gains(comparison: dict[str, Any]) -> list[float]:
    """For each difference of the primary: the error that two unpaired scores would give, over the
    paired one."""
    own = {s["arm"]: s["standard_error"] for s in comparison["scores"] if s["primary"]}
    deciding = next((s["benchmark"], s["metric"]) for s in comparison["scores"] if s["primary"])
    gains = []
    for d in comparison["differences"]:
        if (d["benchmark"], d["metric"]) == deciding and d["standard_error"]:
            errors = own.get(d["a"]), own.get(d["b"])
            if None not in errors:
                gains.append(sum(e**2 for e in errors if e) ** 0.5 / d["standard_error"])
    return gains


def _page(arguments: Sequence[str], out: Path) -> None:
    """The page of the comparison, beside its files."""
    from recipes.report import page

    page.build({"comparison": out}, out, {"name": "comparison", "files": list(arguments)})
