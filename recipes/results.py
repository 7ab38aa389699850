"""What a person sees in the terminal: the plan, the comparison's table, what it cost, where the report is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.store import Result
    from recipes.graph import Outcome
    from recipes.schema import Loaded, Recipe
    from train.config import TrainConfig


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A plain table on stdout; wide cells wrap in a terminal and stay whole in a pipe."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    drawn = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*[_plain(cell) for cell in row])
    if console.is_terminal:
        console.print(drawn)
    else:
        Console(width=240).print(drawn)


def _plain(cell: Any) -> str:
    from rich.markup import escape

    return escape("" if cell is None else str(cell))


def show_plan(loaded: Loaded, outcome: Outcome, *, as_json: bool) -> None:
    """One line a stage: reuse, run or waits, and the field that caused it."""
    if as_json:
        steps = [{"stage": s.name, "state": s.state, "why": s.why, "path": str(s.path) if s.path else None} for s in outcome.steps]
        print(json.dumps({"recipe": loaded.recipe.name, "steps": steps, "peak_disk_bytes": peak_disk(loaded)}, indent=2))
        return
    table(["stage", "state", "why"], [[s.name, s.state, s.why] for s in outcome.steps])
    todo = sum(s.state != "reuse" for s in outcome.steps)
    peak = peak_disk(loaded)
    disk = f"; peak disk while one arm trains: about {peak / 1e9:.1f} GB" if peak else ""
    print(f"{todo} of {len(outcome.steps)} stages to run{disk}")


def peak_disk(loaded: Loaded) -> int | None:
    """Bytes that training one arm needs at its peak (checkpoints with optimizer state, then the export), or None where the base is not on disk."""
    from core.errors import UserError
    from core.models import resolve
    from train.throughput import disk, parameters

    config = loaded.recipe.train
    if config is None:
        return None
    try:
        folder = Path(resolve(config.base, config.revision).path)
    except UserError:
        return None
    if not folder.is_dir():
        return None
    weights, _ = parameters(folder)
    kept = int(config.trainer_arguments().get("save_total_limit", 2))
    return disk(weights, bf16=half_precision(config), kept=kept)["peak"] if weights else None


def half_precision(config: TrainConfig) -> bool:
    """Whether training keeps bf16 weights beside fp32 ones: TRL's default where there is a GPU."""
    from train.arguments import gpus

    return bool(config.trainer.get("bf16", gpus() > 0))


def show(loaded: Loaded, outcome: Outcome) -> None:
    """The comparison's table, its notes, what the data cost, the judge's caveat and the path of the report."""
    from eval.compare import table as comparison_rows

    recipe = loaded.recipe
    folder = Path(recipe.store) / "recipes" / recipe.name
    if "compare" in outcome.results:
        comparison = json.loads((outcome.results["compare"].path / "comparison.json").read_text())
        rows = comparison_rows(comparison)
        if rows:
            table(list(rows[0]), [list(r.values()) for r in rows])
        for note in comparison.get("notes", []):
            print(f"- {note}")
    cost = folder / "measure" / "cost.json"
    if cost.is_file():
        spent = json.loads(cost.read_text())
        naive, total = spent["naive_tokens"], spent["tokens_spent"]
        share = f" ({100 * (naive - total) / naive:.0f} % avoided)" if naive else ""
        print(
            f"- synthesis generated {total:,} tokens for {spent['rows_kept']} distinct kept rows ({spent['cost_per_kept_row']} a kept row); "
            f"tagging and answering all {spent['rows_pool']} rows first would have cost about {naive:,}{share}"
        )
    for line in judge_lines(recipe, outcome.results):
        print(f"- {line}")
    report = folder / "report.html"
    if report.is_file():
        print(f"report: {report}")


def show_scores(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Rows of `magpie score`: JSON as it is, or a table with the notes below it."""
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    columns = [c for c in dict.fromkeys(k for row in rows for k in row) if c != "notes"]
    shown = [c for c in columns if any(row.get(c) is not None for row in rows)]
    table(shown, [[f"{v:.4g}" if isinstance(v := row.get(c), float) else v for c in shown] for row in rows])
    for row in rows:
        for note in row.get("notes", []):
            print(f"- {row.get('model')}: {note}")


def judge_lines(recipe: Recipe, results: Mapping[str, Result]) -> list[str]:
    """What is known of the judges: position consistency and verdict mass of this run, and that a small judge's word means little."""
    from eval import calibrate
    from recipes.rating import RATED

    config = recipe.eval
    lines = []
    for name, result in results.items():
        if name.startswith(("judge/", "verdicts/")):
            counts = result.manifest["counts"]
            what = "answers rated" if name.split("/")[1] in RATED else "games judged"
            said = [f"{counts.get('judged', 0)} of {counts.get('rows', 0)} {what}"]
            if counts.get("rewards"):
                said.append(f"{counts['rewards']['judged']} of {counts['rewards']['rows']} compared with references")
            if counts.get("position_pairs"):
                said.append(f"both orders agree in {100 * counts['position_consistency']:.0f} % of {counts['position_pairs']} pairs")
            if counts.get("first_preferred") is not None:
                said.append(f"the first answer is preferred with {counts['first_preferred']:.2f}")
            if counts.get("mass") is not None:
                said.append(f"{100 * counts['mass']:.0f} % of the probability is on the verdict codes")
            if counts.get("agreement_pairs"):
                said.append(f"the judges agree on {100 * counts['agreement']:.0f} % of {counts['agreement_pairs']} items")
            if counts.get("partly_judged"):
                said.append(f"{counts['partly_judged']} items lack a judge")
            lines.append(f"{name}: " + ", ".join(said))
    for benchmark in ("alpaca", "arena"):
        if config is not None and getattr(config, benchmark) is not None and any(n.startswith(f"judge/{benchmark}/") for n in results):
            protocols = config.protocols(benchmark)
            for protocol in protocols:
                who = f"the judge {protocol.judge.model} of {benchmark}" if protocol.judge and len(protocols) > 1 else f"the judge of {benchmark}"
                known = calibrate.find(protocol, Path(recipe.store))
                lines += [f"{who} {calibrate.sentence(k)}" for k in known]
                if not known:
                    lines.append(f"{who} was never compared with people: `magpie agreement RECIPE --data FOLDER` does")
    if recipe.caveat:
        lines.append(recipe.caveat)
    return lines
