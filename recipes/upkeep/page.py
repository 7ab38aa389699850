"""`magpie report`: the page of a recipe, where it holds what was written."""

from __future__ import annotations

from pathlib import Path

from core.cells import kept
from core.cells.references import REFERS, References
from core.cells.seals import CHANGED
from core.errors import UserError
from core.store import check_version
from recipes.report.beside import FIGURES, TABLES
from recipes.schema import Recipe
from recipes.upkeep.verified import Found, check_result

PAGE = "report.html"
SHOWN = ("compare", "report")
"""The stages whose results the page shows."""


def of_recipe(recipe: Recipe, asked: str) -> Path:
    """The page of a recipe, of which `asked` is what it was called by. Raises UserError where there
    is none, and where it, its tables and figures, or the comparison that it shows is damaged or
    gone."""
    root, folder = Path(recipe.store), recipe.folder
    check_version(root)
    kept.look(root, recipe.name, only=(PAGE, TABLES, FIGURES))
    path = folder / PAGE
    again = f"make it with `magpie run {asked}`"
    if not path.is_file():
        raise UserError(f"{path} does not exist yet; {again}.")
    made = References(folder / REFERS).results
    for result in [root / "results" / made[stage] for stage in SHOWN if stage in made]:
        check_result(root, result, Found())
        if not result.is_dir():
            raise UserError(f"{path} shows {result}, which is not there; {again} again.")
        page = result / PAGE
        if page.is_file() and page.read_bytes() != path.read_bytes():
            raise UserError(f"{path}: {CHANGED}; {again} again.")
    return path
