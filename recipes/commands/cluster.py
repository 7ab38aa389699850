"""The same experiment on many machines."""

from __future__ import annotations

from typing import Annotated

from typer import Option, Typer

from recipes.commands.options import Overrides, RecipeFile

app = Typer()

PANEL = "Cluster"


@app.command(rich_help_panel=PANEL)
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
    """Run a recipe on a cluster, or its trainings here.

    Trains every arm and seed, with the evaluation after it; or runs the synthesis on many
    machines.
    """
    from recipes.launching import launch as launching

    asked = launching.Asked(stage, on, arm, seed, nodes, gpus, tasks)
    launching.main(recipe, overrides or [], asked, dry_run)
