"""Arguments and options that several verbs have, and reading the recipe that they name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

if TYPE_CHECKING:
    from recipes.schema import Loaded

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


def load(recipe: str, overrides: list[str] | None) -> Loaded:
    """A verb's recipe, checked."""
    from recipes import schema

    return schema.load(recipe, overrides or [])
