"""What `magpie compare` was given: recipes with their overrides, or result files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from core.errors import UserError


@dataclass
class RecipeAsked:
    """A recipe by its file or name, and the overrides that follow it."""

    name: str
    overrides: list[str] = field(default_factory=list)


def recipes_of(arguments: Sequence[str]) -> list[RecipeAsked]:
    """The recipes among the arguments; none where all of them are result files.

    A .yaml file or the name of a shipped recipe is a recipe, and key.path=value after it one of its
    overrides, unless it names an existing file by what is no key; all else is data. Raises
    UserError where both are given.
    """
    recipes: list[RecipeAsked] = []
    data = []
    for argument in arguments:
        if is_recipe(argument):
            recipes.append(RecipeAsked(argument))
        elif recipes and "=" in argument and _is_override(argument):
            recipes[-1].overrides.append(argument)
        else:
            data.append(argument)
    if recipes and data:
        raise UserError(
            f"{data[0]} is no recipe and {recipes[0].name} is one; compare recipes with recipes, "
            "or result files with result files."
        )
    return recipes


def is_recipe(argument: str) -> bool:
    """Whether an argument means a recipe."""
    from recipes import schema

    name = argument.removeprefix("recipes/").removeprefix("shipped/")
    shipped = {path.stem for path in schema.shipped()}
    return Path(argument).suffix in (".yaml", ".yml") or name in shipped


def _is_override(argument: str) -> bool:
    """Whether KEY=VALUE after a recipe means a setting of it: its key is one, or its value no
    file."""
    from recipes import schema

    path, _, value = argument.partition("=")
    keyed = (
        re.fullmatch(r"[a-z_][\w.]*", path) and path.partition(".")[0] in schema.Recipe.model_fields
    )
    return bool(keyed) or not Path(value).exists()
