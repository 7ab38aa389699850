"""One experiment: what it would do, doing it, its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Argument, Option, Typer

from recipes.commands.options import AsJson, GpuMemory, Gpus, Overrides, RecipeFile, load

app = Typer()

PANEL = "Experiment"


@app.command(rich_help_panel=PANEL)
def init(
    file: Annotated[Path, Argument(help="File to write.")] = Path("recipe.yaml"),
    gpus: Annotated[
        int | None,
        Option(min=1, max=100_000, help="GPUs of another machine, in place of this one's."),
    ] = None,
    gpu_memory: Annotated[
        float | None, Option(min=1, max=10_000, help="GiB of each of them (default: 80).")
    ] = None,
) -> None:
    """Write a commented recipe for this machine, to begin with.

    Its models fit this machine, or GPUs that are stated; `magpie plan` takes it as it is.
    """
    from recipes.verbs.readiness import first_recipe, needs

    first_recipe.write(file, needs.place(gpus, gpu_memory or (80 if gpus else None)))
    print(f"{file} is written; `magpie doctor {file}` and `magpie plan {file}` come next")


@app.command(rich_help_panel=PANEL)
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    until: Annotated[
        str | None,
        Option(
            help="Stop after this stage (measure, select, train, tasks, answers, judge, score ...)."
        ),
    ] = None,
    only: Annotated[
        str | None,
        Option(help="Make one training alone, ARM/SEED, of data that are made: a cluster's task."),
    ] = None,
    trained: Annotated[
        bool,
        Option("--trained", help="Train nothing: evaluate what is trained, and say what is not."),
    ] = False,
    retry: Annotated[
        bool,
        Option(
            "--retry",
            help="Also ask again what servers and judges failed at for good (no verdict).",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make what a recipe asks for; print the answer.

    What is made already is reused, and the same command continues what was stopped.
    """
    from core.errors import UserError, nearest
    from recipes.stages import graph
    from recipes.stages.session import Trainings
    from recipes.verbs import terminal

    if until is not None and until not in graph.STAGES:
        raise UserError(f"--until {until}: no such stage{nearest(until, graph.STAGES)}.")
    if only is not None and (trained or until is not None):
        raise UserError("--only makes one training and nothing else: no --until, no --trained.")
    loaded = load(recipe, overrides)
    outcome = graph.run(loaded, until, Trainings(only, trained), retry=retry, judged=True)
    if as_json or not outcome.stopped:
        terminal.show(loaded, outcome, as_json=as_json)


@app.command(rich_help_panel=PANEL)
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    gpus: Gpus = None,
    gpu_memory: GpuMemory = None,
    gpu: Annotated[str, Option(help="Device that hours are worked out for.")] = "H100",
    mfu: Annotated[float, Option(min=0.01, max=1, help="Share of its peak that is reached.")] = 0.4,
    stages: Annotated[
        bool,
        Option(
            "--all",
            "--stages",
            help="Also every stage, why it runs, and what each training needs.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what would run, what it costs and what it can find.

    Ten lines; with --all also every stage, the field that caused it, and every training. Starts
    nothing.
    """
    from recipes.stages import graph
    from recipes.verbs.planning import plan as planning
    from recipes.verbs.planning.trainings import Hardware

    loaded = load(recipe, overrides)
    hardware = Hardware(gpus, gpu_memory, gpu, mfu)
    planning.show(loaded, graph.plan(loaded, judged=True), hardware, stages=stages, as_json=as_json)


@app.command(rich_help_panel=PANEL)
def report(recipe: RecipeFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print the path of the report.

    Where it, or the comparison that it shows, is not what was written, says so instead.
    """
    from recipes.upkeep import page

    path = page.of_recipe(load(recipe, overrides).recipe, recipe)
    print(json.dumps({"report": str(path)}) if as_json else path)
