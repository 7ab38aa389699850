"""Arguments and options that several verbs have, and reading the recipe that they name."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from core.files import finite

if TYPE_CHECKING:
    from recipes.schema import Loaded

SHIPPED = Path(__file__).parents[1] / "shipped"


def recipe_names(begun: str) -> list[str]:
    """For the shell: shipped recipes and YAML files that begin so, and folders on the way."""
    names = [path.stem for path in sorted(SHIPPED.rglob("*.yaml"))]
    typed, _, last = begun.rpartition("/")
    folder = Path(f"{typed}/" if typed or begun.startswith("/") else ".").expanduser()
    beside = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in beside:
        if path.suffix in (".yaml", ".yml") or (path.is_dir() and not path.name.startswith(".")):
            name = f"{path.name}/" if path.is_dir() else path.name
            names.append(begun.removesuffix(last) + name if last else begun + name)
    return [name for name in names if name.startswith(begun)]


RecipeFile = Annotated[
    str,
    Argument(
        help="Recipe file, or the name of a shipped one (demo, llama3-8b-magpie-pro-300k).",
        autocompletion=recipe_names,
    ),
]
Overrides = Annotated[
    list[str] | None, Argument(help="Dotted overrides: train.trainer.num_train_epochs=1")
]
Gpus = Annotated[
    int | None,
    Option(min=1, max=100_000, help="GPUs over all machines; default: as the recipe states."),
]
GpuMemory = Annotated[
    float | None, Option(min=1, max=10_000, help="GiB of each GPU; default: as the recipe states.")
]
AsJson = Annotated[bool, Option("--json", help="Print JSON.")]


def told(verb: Callable[[], Mapping[str, Any]], *, as_json: bool) -> None:
    """Do what a verb does, which says so on stdout; with `as_json` that goes to stderr, and what
    was done is one JSON document on stdout."""
    if not as_json:
        verb()
        return
    with redirect_stdout(sys.stderr):
        done = verb()
    print(json.dumps(finite(dict(done)), indent=2))


def load(recipe: str, overrides: list[str] | None) -> Loaded:
    """A verb's recipe, checked."""
    from recipes import schema

    return schema.load(recipe, overrides or [])
