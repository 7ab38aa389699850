"""`magpie score`: files of other tools, scored by the rules of each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option, Typer

app = Typer(help="Score annotation and battle files that exist already.", no_args_is_help=True)
Files = Annotated[list[Path], Argument(help="Annotation, battle or judgment files.")]
AsJson = Annotated[bool, Option("--json", help="Print a list with one object a model.")]
Data = Annotated[
    Path | None,
    Option(
        help="Folder with the benchmark's reference files "
        "(difficulty, gamed rows, baseline outputs, answers)."
    ),
]
Compat = Annotated[str | None, Option(help="`official`: the published rules, defects included.")]


@app.command("alpaca-eval")
def alpaca_eval(
    files: Files, as_json: AsJson = False, data: Data = None, compat: Compat = None
) -> None:
    """Win rate, length-controlled win rate and their errors of AlpacaEval annotation files."""
    from eval.scoring import of_files
    from recipes.verbs.terminal import show_scores

    show_scores(of_files.score_alpaca(files, data, compat), as_json=as_json)


@app.command("arena-hard")
def arena_hard(
    files: Files,
    as_json: AsJson = False,
    data: Data = None,
    compat: Compat = None,
    control: Annotated[
        list[str] | None,
        Option(help="Style control: length, markdown (repeatable); needs --data."),
    ] = None,
) -> None:
    """Scores of Arena-Hard battle or judgment files."""
    from eval.scoring import of_files
    from recipes.verbs.terminal import show_scores

    show_scores(of_files.score_arena(files, data, compat, control or ()), as_json=as_json)


@app.command("wildbench")
def wildbench(
    files: Files, as_json: AsJson = False, data: Data = None, compat: Compat = None
) -> None:
    """WB-Score or WB-Reward of WildBench judgment files."""
    from eval.scoring import of_files
    from recipes.verbs.terminal import show_scores

    show_scores(of_files.score_wildbench(files, data, compat), as_json=as_json)
