"""What a person sees in the terminal: tables, the comparison's table, what it cost, where the
report is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from core.files import finite
from recipes.report.sections.judges import judge_lines

if TYPE_CHECKING:
    from recipes.schema import Loaded
    from recipes.stages.graph import Outcome


def table(columns: Iterable[str], rows: Iterable[Sequence[object]]) -> None:
    """A plain table on stdout; wide cells wrap in a terminal and stay whole in a pipe."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    drawn = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        cells = ["" if cell is None else str(cell) for cell in row]
        drawn.add_row(*map(escape, cells))
    if not console.is_terminal:
        console = Console(width=240)
    console.print(drawn)


def show(loaded: Loaded, outcome: Outcome) -> None:
    """The comparison's table, its notes, what the data cost, the judge's caveat and the path of the
    report."""
    from core.sending.purse import Ledger
    from eval.comparing.shown.table import table as comparison_rows
    from synth.pool import spending

    recipe = loaded.recipe
    notes: list[str] = []
    if "compare" in outcome.results:
        path = outcome.results["compare"].path / "comparison.json"
        comparison = json.loads(path.read_text())
        rows = comparison_rows(comparison)
        if rows:
            table(rows[0], [list(row.values()) for row in rows])
        primary = [one for one in comparison.get("controls", []) if one["primary"]]
        notes += [sentence for one in primary for sentence in one["sentences"]]
        notes += comparison.get("notes", [])
    cost = recipe.folder / "measure" / "cost.json"
    if cost.is_file():
        notes.append(_cost(json.loads(cost.read_text())))
    notes += spending.lines(Ledger(recipe.folder / "spent").bills())
    for note in [*notes, *judge_lines(recipe, outcome.results)]:
        print(f"- {note}")
    report = recipe.folder / "report.html"
    if report.is_file():
        print(f"report: {report}")


def _cost(spent: dict[str, Any]) -> str:
    naive, total = spent["naive_tokens"], spent["tokens_spent"]
    share = f" ({100 * (naive - total) / naive:.0f} % avoided)" if naive else ""
    return (
        f"synthesis generated {total:,} tokens for {spent['rows_kept']} distinct kept rows "
        f"({spent['cost_per_kept_row']} a kept row); "
        f"tagging and answering all {spent['rows_pool']} rows first "
        f"would have cost about {naive:,}{share}"
    )


def show_scores(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Rows of `magpie score`: JSON as it is, or a table with the notes below it."""
    if as_json:
        print(json.dumps(finite(rows), indent=2, allow_nan=False))
        return
    columns = dict.fromkeys(name for row in rows for name in row)
    filled = {name for row in rows for name, value in row.items() if value is not None}
    shown = [name for name in columns if name in filled and name != "notes"]
    table(shown, [list(map(_score, map(row.get, shown))) for row in rows])
    for row in rows:
        for note in row.get("notes", []):
            print(f"- {row.get('model')}: {note}")


def _score(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value
