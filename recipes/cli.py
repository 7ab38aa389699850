"""`magpie`: one verb, one function. Everything heavy is imported inside the verb that needs it.

Exit codes: 0 done, 1 a run failed, 2 the request was wrong (one sentence says what, where and what
to do), 75 a training was asked to stop, is saved, and goes on with the same command.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Exit, Option, Typer

from recipes import cli_data
from recipes.verbs import score

if TYPE_CHECKING:
    from recipes.schema import Loaded

app = Typer(
    help="Which data makes the better model, and how sure are you? "
    "Magpie synthesis, filters, SFT and evaluation from one recipe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeFile = Annotated[
    str,
    Argument(help="Recipe file, or the name of a shipped one (demo, llama3-8b-magpie-pro-300k)."),
]
Overrides = Annotated[
    list[str] | None, Argument(help="Dotted overrides: train.trainer.num_train_epochs=1")
]
Gpus = Annotated[
    int | None, Option(min=1, help="GPUs over all machines; default: as the recipe states.")
]
GpuMemory = Annotated[
    float | None, Option(min=1, help="GiB of each GPU; default: as the recipe states.")
]
AsJson = Annotated[bool, Option("--json", help="Print JSON.")]


def _load(recipe: str, overrides: list[str] | None) -> Loaded:
    from recipes import schema

    return schema.load(recipe, overrides or [])


@app.command()
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
) -> None:
    """Make everything that the recipe asks for and is not made yet, then print the comparison."""
    from core.errors import UserError, nearest
    from recipes.stages import graph
    from recipes.stages.session import Trainings
    from recipes.verbs import terminal

    if until is not None and until not in graph.STAGES:
        raise UserError(f"--until {until}: no such stage{nearest(until, graph.STAGES)}.")
    if only is not None and (trained or until is not None):
        raise UserError("--only makes one training and nothing else: no --until, no --trained.")
    loaded = _load(recipe, overrides)
    outcome = graph.run(loaded, until, Trainings(only, trained), retry=retry)
    if not outcome.stopped:
        terminal.show(loaded, outcome)


@app.command()
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    gpus: Gpus = None,
    gpu_memory: GpuMemory = None,
    gpu: Annotated[str, Option(help="Device that hours are worked out for.")] = "H100",
    mfu: Annotated[float, Option(min=0.01, max=1, help="Share of its peak that is reached.")] = 0.4,
    stages: Annotated[
        bool,
        Option("--stages", help="Also every stage, why it runs, and what each training needs."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show in ten lines what would run, what is reused, what it costs and which difference it can
    find; with --stages also every stage, the field that caused it, and every training."""
    from recipes.planning import plan as planning
    from recipes.stages import graph
    from recipes.verbs.trainings import Hardware

    loaded = _load(recipe, overrides)
    hardware = Hardware(gpus, gpu_memory, gpu, mfu)
    planning.show(loaded, graph.plan(loaded), hardware, stages=stages, as_json=as_json)


@app.command()
def memory(
    recipe: RecipeFile,
    overrides: Overrides = None,
    gpus: Gpus = None,
    gpu_memory: GpuMemory = None,
    as_json: AsJson = False,
) -> None:
    """Show what each GPU holds while the recipe trains (every ZeRO stage, recomputation, adapters),
    whether it fits, and the smallest change that would. Exits with 1 where it does not."""
    from recipes.verbs import memory as of_training

    asked = _load(recipe, overrides).recipe
    raise Exit(of_training.main(asked, gpus, gpu_memory, as_json=as_json))


@app.command()
def report(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Print the path of the recipe's report."""
    from core.errors import UserError

    path = _load(recipe, overrides).recipe.folder / "report.html"
    if not path.is_file():
        raise UserError(f"{path} does not exist yet; make it with `magpie run {recipe}`.")
    print(path)


@app.command()
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
    """Write blinded pairs of the arms' own answers for people to label, as a page and a table, or
    --read their labels: the judge's agreement on this task and the difference that people see."""
    from eval.judging.people.labelled import sentences
    from recipes.comparisons import labelled, labels

    loaded = _load(recipe, overrides)
    folder = out or loaded.recipe.folder / "labels"
    if not read:
        asked = labels.Asked(labels.two_arms(arms or ()), count, benchmark)
        for path in labels.write(loaded, asked, folder):
            print(path)
        return
    said = labelled.write(loaded, read, folder / "key.json")
    print(json.dumps(said, indent=2) if as_json else "\n".join(sentences(said)))


@app.command()
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
    """Compare anyone's result files in pairs (lm-eval, alpaca_eval, Arena-Hard, JSONL of item and
    value), print the comparison of a finished recipe again, or say how often a pilot's pairs came
    out as in the full run."""
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


@app.command()
def why(
    recipe: RecipeFile,
    what: Annotated[str, Argument(help="ARM, ARM/SEED, ARM/SEED/PROMPT or a row's id.")],
    overrides: Overrides = None,
) -> None:
    """Lead from a score back to judgments, answers, checkpoint, selection and rows; or from a row
    to the arms that took it."""
    from recipes.verbs.why import explain

    for line in explain(_load(recipe, overrides), what):
        print(line)


app.add_typer(score.app, name="score")
app.add_typer(cli_data.app)


@app.command("annotations")
def write_annotations(
    recipe: RecipeFile,
    overrides: Overrides = None,
    out: Annotated[Path, Option(help="Folder to write to.")] = Path("annotations"),
) -> None:
    """Write the judgments of every finished run as files of alpaca_eval and Arena-Hard, which
    `magpie score` and their own tools read."""
    from recipes.verbs import annotations

    for path in annotations.write(_load(recipe, overrides), out):
        print(path)


@app.command()
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
    """Ask a judge about pairs that people judged, in both orders; the figure is stored and printed
    beside its scores."""
    from eval.judging.people.against_people import Labelled
    from recipes.verbs import agreement as agreeing

    labelled = Labelled(on, data, limit)
    agreeing.main(judge, overrides or [], benchmark, labelled, as_json=as_json)


@app.command()
def schema() -> None:
    """Print the recipe's JSON schema, for editors."""
    from recipes.schema import json_schema

    print(json.dumps(json_schema(), indent=2))


@app.command()
def doctor(
    recipe: Annotated[str | None, Argument(help="Also check what this recipe needs.")] = None,
    overrides: Overrides = None,
) -> None:
    """Check versions, GPUs, disk, memory, W&B, model paths and access to gated models, each with
    what to do."""
    from recipes.verbs import doctor as checks

    raise Exit(checks.main(_load(recipe, overrides).recipe if recipe else None))


@app.command()
def launch(
    recipe: RecipeFile,
    overrides: Overrides = None,
    stage: Annotated[
        str,
        Option(
            help="train, or synth: instructions, tags, answers and selections on many machines."
        ),
    ] = "train",
    on: Annotated[
        str | None,
        Option(help="train: local, slurm, sky (SkyPilot) or print (by hand); synth: slurm or ray."),
    ] = None,
    nodes: Annotated[int | None, Option(help="Machines of one training (default: 1).")] = None,
    gpus: Annotated[
        int | None, Option(help="GPUs of each of them; never guessed from this machine.")
    ] = None,
    arm: Annotated[str | None, Option(help="Only this arm's trainings.")] = None,
    seed: Annotated[int | None, Option(help="Only this seed's trainings.")] = None,
    tasks: Annotated[
        int,
        Option(
            help="With --stage synth: how many tasks share the rows, "
            "each with a model server of its own."
        ),
    ] = 1,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Write the script, print its path; start nothing.")
    ] = False,
) -> None:
    """Train every arm and seed, here or on a cluster, with the evaluation after it; or run the
    synthesis on many machines."""
    from recipes.launching import launch as launching

    asked = launching.Asked(stage, on, arm, seed, nodes, gpus, tasks)
    launching.main(recipe, overrides or [], asked, dry_run)


def main() -> None:
    """Entry point: errors are sentences, `--debug` shows tracebacks."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if sys.argv[1:2] == ["template"]:
        from core.models import without_torch

        without_torch()
    try:
        app()
    except KeyboardInterrupt:
        _end(130, "stopped; the same command continues where it was.")
    except SystemExit:
        raise
    except BaseException as error:  # polars' panics are no Exception
        from core.errors import Stopped, of_system

        if isinstance(error, Stopped):
            _end(Stopped.code, str(error))
        if debug:
            raise
        if (sentence := of_system(error)) is not None:
            _end(2, sentence)
        _end(1, f"{type(error).__name__}: {error} (a defect: --debug shows the traceback)")


def _end(code: int, sentence: str) -> None:
    print(f"magpie: {sentence}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
