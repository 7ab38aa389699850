"""Looking: at this machine, at a recipe, at what a score rests on."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Exit, Option, Typer

from recipes.commands.options import AsJson, GpuMemory, Gpus, Overrides, RecipeFile, load, told

app = Typer()

PANEL = "Look"


@app.command(rich_help_panel=PANEL)
def why(
    recipe: RecipeFile,
    what: Annotated[str, Argument(help="ARM, ARM/SEED, ARM/SEED/PROMPT or a row's id.")],
    overrides: Overrides = None,
) -> None:
    """Go back from a score to its rows, or from a row to arms.

    From a score by judgments, answers, checkpoint and selection to the rows.
    """
    from recipes.verbs.terminal import plain
    from recipes.verbs.why import explain

    for lines in explain(load(recipe, overrides), what):
        for line in lines.split("\n"):  # models wrote some of it
            print(plain(line))


@app.command(rich_help_panel=PANEL)
def doctor(
    recipe: Annotated[str | None, Argument(help="Also check what this recipe needs.")] = None,
    overrides: Overrides = None,
    gpus: Annotated[
        int | None,
        Option(min=1, max=100_000, help="GPUs of another machine, in place of this one's."),
    ] = None,
    gpu_memory: Annotated[
        float | None, Option(min=1, max=10_000, help="GiB of each of them.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine, and what a recipe needs of it.

    Versions, GPUs, memory, W&B; of a recipe: what each of its stages needs (GPUs, memory, disk,
    packages), its models and access to gated ones, keys. Each with what to do. Exits with 1 where
    something fails.
    """
    from recipes.verbs.readiness import doctor as checks
    from recipes.verbs.readiness import needs

    asked = load(recipe, overrides).recipe if recipe else None
    raise Exit(checks.main(asked, needs.place(gpus, gpu_memory), as_json=as_json))


@app.command(rich_help_panel=PANEL)
def verify(
    where: Annotated[str, Argument(help="Folder of a store, or a recipe: its store.")] = "runs",
    overrides: Overrides = None,
    repair: Annotated[
        bool,
        Option("--repair", help="Set aside what is damaged; of a recipe, also make it again."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare every file of a store with what was written.

    Names what is damaged and exits with 1 where anything is; with --repair it is set aside.
    """
    from recipes.upkeep import verifying

    raise Exit(verifying.main(where, overrides or [], repair=repair, as_json=as_json))


@app.command(rich_help_panel=PANEL)
def memory(
    recipe: RecipeFile,
    overrides: Overrides = None,
    gpus: Gpus = None,
    gpu_memory: GpuMemory = None,
    as_json: AsJson = False,
) -> None:
    """Say what each GPU holds while a recipe trains.

    At every ZeRO stage, with every recomputation, with adapters; whether it fits, and the smallest
    change that would. Exits with 1 where it does not fit.
    """
    from recipes.verbs.readiness import memory as of_training

    asked = load(recipe, overrides).recipe
    raise Exit(of_training.main(asked, gpus, gpu_memory, as_json=as_json))


@app.command(rich_help_panel=PANEL)
def schema() -> None:
    """Print the recipe's JSON schema, for editors."""
    from recipes.schema import json_schema

    print(json.dumps(json_schema(), indent=2))


track = Typer(help="What runs reported to W&B.", no_args_is_help=True)
app.add_typer(track, name="track", rich_help_panel=PANEL)


@track.command("sync")
def track_sync(
    recipe: Annotated[str, Argument(help="Recipe, or the folder of a store.")],
    overrides: Annotated[list[str] | None, Argument(help="Dotted overrides.")] = None,
    as_json: AsJson = False,
) -> None:
    """Upload what was reported offline to W&B: every run once, also after kills.

    Needs WANDB_API_KEY. Runs that are still written to are left for the next call, and so is what
    W&B did not take.
    """
    from recipes import schema
    from recipes.report import uploading

    root = Path(recipe)
    if not (root / "wandb").is_dir():
        root = Path(schema.load(recipe, overrides or []).recipe.store)
    done = uploading.Uploaded()

    def sync() -> dict[str, Any]:
        nonlocal done
        done = uploading.sync(root, print)
        for line in uploading.lines(done):
            print(line)
        return asdict(done)

    told(sync, as_json=as_json)
    if done.failed:
        raise Exit(1)


Where = Annotated[str, Argument(help="Folder of a store, or a recipe: its store.")]


@app.command("ls", rich_help_panel=PANEL)
def list_store(
    where: Where = "runs",
    everything: Annotated[
        bool, Option("--all", help="Also every result and column, and who refers to it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List a store's recipes, their results and sizes.

    And what no recipe refers to, which `magpie gc` removes.
    """
    from recipes.upkeep import listing

    listing.main(listing.root_of(where), everything=everything, as_json=as_json)


@app.command(rich_help_panel=PANEL)
def gc(
    where: Where = "runs",
    forget: Annotated[
        list[str] | None,
        Option(help="Also a recipe, by its name, and what only it refers to (repeatable)."),
    ] = None,
    yes: Annotated[bool, Option("--yes", help="Remove without a question.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what no recipe of a store refers to.

    Shows it first, and asks. Nothing that a recipe's last run read or made is removed, nothing that
    was written within the last hour, and no column but those that a recipe once referred to.
    """
    from typer import confirm

    from recipes.upkeep import listing, removal

    asked = removal.Asked(tuple(forget or ()), yes, as_json)
    removal.main(listing.root_of(where), asked, confirm)
