"""`magpie compare RECIPE`: the comparison of a finished recipe again."""

from __future__ import annotations

from core.errors import UserError
from recipes.comparisons.asked import RecipeAsked


def show(asked: RecipeAsked, *, as_json: bool) -> None:
    """Print a finished recipe's comparison. Raises UserError where it is not made yet."""
    from recipes import schema
    from recipes.stages import graph
    from recipes.verbs import terminal

    loaded = schema.load(asked.name, asked.overrides)
    outcome = graph.plan(loaded)
    if "compare" not in outcome.results:
        raise UserError(
            f"recipe {loaded.recipe.name} has no finished comparison; "
            f"`magpie plan {asked.name}` shows what is missing."
        )
    if as_json:
        print((outcome.results["compare"].path / "comparison.json").read_text())
    else:
        terminal.show(loaded, outcome)
