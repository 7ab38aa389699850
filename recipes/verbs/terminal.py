"""What a person sees in the terminal: the plan, the comparison's table, what it cost, where the
report is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.report.judges import judge_lines
from train.throughput import peak_disk

if TYPE_CHECKING:
    from recipes.schema import Loaded
    from recipes.stages.graph import Outcome


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
        steps = [
            {
                "stage": s.name,
                "state": s.state,
                "why": s.why,
                "path": str(s.path) if s.path else None,
            }
            for s in outcome.steps
        ]
        print(
            json.dumps(
                {
                    "recipe": loaded.recipe.name,
                    "steps": steps,
                    "peak_disk_bytes": peak_disk(loaded.recipe.train),
                },
                indent=2,
            )
        )
        return
    table(["stage", "state", "why"], [[s.name, s.state, s.why] for s in outcome.steps])
    todo = sum(s.state != "reuse" for s in outcome.steps)
    peak = peak_disk(loaded.recipe.train)
    disk = f"; peak disk while one arm trains: about {peak / 1e9:.1f} GB" if peak else ""
    print(f"{todo} of {len(outcome.steps)} stages to run{disk}")


def show(loaded: Loaded, outcome: Outcome) -> None:
    """The comparison's table, its notes, what the data cost, the judge's caveat and the path of the
    report."""
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
    table(
        shown,
        [[f"{v:.4g}" if isinstance(v := row.get(c), float) else v for c in shown] for row in rows],
    )
    for row in rows:
        for note in row.get("notes", []):
            print(f"- {row.get('model')}: {note}")
