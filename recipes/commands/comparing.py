"""Who won: comparisons, judges, labels by people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Argument, Option, Typer

from recipes.commands import scoring
from recipes.commands.options import AsJson, Overrides, RecipeFile, load, told

app = Typer()

PANEL = "Compare"


@app.command(rich_help_panel=PANEL)
def compare(
    what: Annotated[
        list[str],
        Argument(
            help="Result files or folders, NAME=PATH for arms, NAME/SEED=PATH for their seeds; or "
            "a recipe; or recipes of pilots and, last, of the full run."
        ),
    ],
    as_json: AsJson = False,
    out: Annotated[
        Path | None, Option(help="Write comparison.json, comparison.parquet and report.html here.")
    ] = None,
    baseline: Annotated[
        str | None, Option(help="The arm that the others are compared with first.")
    ] = None,
    primary: Annotated[
        str | None, Option(help="BENCHMARK or BENCHMARK/METRIC that decides; default: the first.")
    ] = None,
    data: Annotated[
        Path | None, Option(help="Folder with AlpacaEval's tables for length control.")
    ] = None,
    length_control: Annotated[
        bool, Option(help="Also compare AlpacaEval's win rate at equal length.")
    ] = True,
    lower_is_better: Annotated[
        bool, Option("--lower-is-better", help="Of the values of JSONL files (losses).")
    ] = False,
) -> None:
    """Compare anyone's result files in pairs.

    Files of lm-eval, alpaca_eval and Arena-Hard, JSONL of item and value. Of a finished recipe:
    print its comparison again. Of recipes of pilots and, last, of the full run: say how often a
    pilot's pairs came out as in the full run.
    """
    from recipes.comparisons import asked, of_files, of_recipes, pilots

    recipes = asked.recipes_of(what)
    if len(recipes) > 1:
        pilots.main(recipes, as_json=as_json)
        return
    if recipes:
        of_recipes.show(recipes[0], as_json=as_json)
        return
    from eval.files.judgments import LengthControl
    from eval.files.reading import Asked

    reading = Asked(LengthControl(length_control, data), lower_is_better)
    wanted = of_files.Wanted(baseline, primary, out, as_json)
    of_files.main(what, reading, wanted)


@app.command(rich_help_panel=PANEL)
def label(
    recipe: RecipeFile,
    overrides: Overrides = None,
    out: Annotated[Path | None, Option(help="Folder to write; default: in the store.")] = None,
    arms: Annotated[
        list[str] | None, Option(help="Two arms, A:B; may be repeated. Default: with the baseline.")
    ] = None,
    count: Annotated[int, Option(min=1, help="Pairs of answers for each two arms.")] = 50,
    benchmark: Annotated[str | None, Option(help="Whose answers; default: the primary's.")] = None,
    read: Annotated[
        list[Path] | None, Option(help="Labels that a person made; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Let people label answers of two arms, blinded.

    Writes pairs of the arms' own answers as a page and a table; with --read takes their labels:
    the judge's agreement on this task and the difference that people see.
    """
    from eval.judging.people.labelled import sentences
    from recipes.comparisons import labelled, labels

    loaded = load(recipe, overrides)
    folder = out or loaded.recipe.folder / "labels"
    if not read:
        asked = labels.Asked(labels.two_arms(arms or ()), count, benchmark)
        for path in labels.write(loaded, asked, folder):
            print(path)
        return
    said = labelled.write(loaded, read, folder / "key.json")
    print(json.dumps(said, indent=2) if as_json else "\n".join(sentences(said)))


@app.command("annotations", rich_help_panel=PANEL)
def write_annotations(
    recipe: RecipeFile,
    overrides: Overrides = None,
    out: Annotated[Path, Option(help="Folder to write to.")] = Path("annotations"),
    as_json: AsJson = False,
) -> None:
    """Write judgments as files of alpaca_eval and Arena-Hard.

    Those of every finished run; `magpie score` and their own tools read them.
    """
    from recipes.verbs import annotations

    def write() -> dict[str, list[str]]:
        files = [str(path) for path in annotations.write(load(recipe, overrides), out)]
        print("\n".join(files))
        return {"files": files}

    told(write, as_json=as_json)


@app.command(rich_help_panel=PANEL)
def agreement(
    judge: Annotated[
        str,
        Argument(help="A recipe (its judge is asked as in its benchmark) or a judge's model."),
    ],
    overrides: Annotated[
        list[str] | None,
        Argument(help="Overrides of the recipe, or of the judge (server.args.max_model_len=4096)."),
    ] = None,
    on: Annotated[
        str,
        Option(
            help="pandalm, llmbar-natural, mt-bench, faireval, ... or a file of labelled pairs."
        ),
    ] = "pandalm",
    data: Annotated[Path, Option(help="Folder that holds the human labels.")] = Path(),
    benchmark: Annotated[
        str, Option(help="Which of the recipe's benchmarks: alpaca or arena.")
    ] = "alpaca",
    limit: Annotated[int | None, Option(help="Only so many pairs, spread evenly.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a judge about pairs that people judged.

    In both orders; the figure is stored and printed beside the judge's scores.
    """
    from eval.judging.people.against_people import Labelled
    from recipes.verbs import agreement as agreeing

    labelled = Labelled(on, data, limit)
    agreeing.main(judge, overrides or [], benchmark, labelled, as_json=as_json)


app.add_typer(scoring.app, name="score", rich_help_panel=PANEL)
