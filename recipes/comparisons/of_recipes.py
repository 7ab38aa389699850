"""`magpie compare RECIPE`: the comparison of a finished recipe again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.errors import UserError
from recipes.comparisons.asked import RecipeAsked

if TYPE_CHECKING:
    from recipes.schema import Loaded
    from recipes.stages.graph import Outcome


def show(asked: RecipeAsked, *, as_json: bool) -> None:
    """Print a finished recipe's comparison. Raises UserError where it is not made yet."""
    from recipes.verbs import terminal

    loaded, outcome = finished(asked)
    if as_json:
        print((outcome.results["compare"].path / "comparison.json").read_text())
    else:
        terminal.show(loaded, outcome)


def finished(asked: RecipeAsked) -> tuple[Loaded, Outcome]:
    """A recipe and its results, the comparison among them. Raises UserError where it is not made
    yet."""
    from recipes import schema
    from recipes.stages import graph

    loaded = schema.load(asked.name, asked.overrides)
    outcome = graph.plan(loaded)
    if "compare" not in outcome.results:
        raise UserError(
            f"recipe {loaded.recipe.name} has no finished comparison; "
            f"`magpie plan {asked.name}` shows what is missing."
        )
    return loaded, outcome
