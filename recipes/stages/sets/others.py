"""Selections of other recipes: what one of their arms chose, in that order."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from core.errors import UserError, nearest
from core.files import file_digest
from core.store import Result
from recipes.schema import Recipe, load, with_random
from recipes.stages.session import WAITS, Session
from recipes.stages.sets import beside
from recipes.stages.sets.parts import CountTokens, Part, Waits, of_selection
from recipes.stages.synthesis import FILE, selection_of
from recipes.stages.walk import Arms, Selections
from synth.filters.arm import Budget, Choosing


def part_of(session: Session, recipe: Recipe, name: str, choosing: Choosing, seed: int) -> Part:
    """What another recipe's arm chose, as something to take from. `name`: the place in this recipe.

    Of an arm that was drawn for several seeds, the sample of this seed, else of the first. Raises
    UserError for a recipe or arm that there is not, and for one that has not run; in a plan `Waits`
    for the latter.
    """
    file, arm = str(choosing.recipe), str(choosing.arm)
    other = load(file).recipe
    arms = with_random(other)
    if other.folder.resolve() == recipe.folder.resolve():
        raise UserError(f"{name}.recipe: {file} is this recipe itself; name the arm alone.")
    if arm not in arms:
        raise UserError(f"{name}.arm: {file} has no arm '{arm}'{nearest(arm, arms)}.")
    if arms[arm].kind in ("model", "dpo"):
        raise UserError(f"{name}.arm: '{arm}' of {file} is a model, so it has no rows.")
    folder = beside.selected_folder(other.folder, arm, seed)
    path = folder / FILE
    if not path.is_file():
        if session.planning:
            raise Waits(f"arm {arm} of {file}")
        raise UserError(
            f"{name}: arm {arm} of {file} has no finished selection ({path}); "
            f"`magpie run {file} --until select` makes it."
        )
    licence = choosing.licence or arms[arm].licence
    return of_selection(f"{arm} of {other.name}", file_digest(path), path, folder, licence)


def from_recipes(session: Session, recipe: Recipe, arms: Arms, count: CountTokens) -> Selections:
    """A selection for every arm that is another recipe's, and every seed."""
    found: Selections = {}
    for arm, config in arms.configs.items():
        if config.kind != "recipe":
            continue
        for seed, name in arms.selections(arm):
            try:
                part = part_of(session, recipe, f"arms.{arm}", config, seed)
            except Waits as waits:
                session.note(f"select/{name}", WAITS, f"depends on {waits}")
                found[(arm, seed)] = None
                continue
            rows = _first(part, config.budget, count)
            if not config.allow_short:
                _check_filled(arm, part, rows, config.budget)
            found[(arm, seed)] = _kept(session, name, part, rows)
    return found


def _kept(session: Session, name: str, part: Part, rows: pl.DataFrame) -> Result | None:
    result = selection_of(session, f"select/{name}", part.messages(rows["id"]))
    if result is not None and not session.planning:
        link(session, name, result.path / FILE)
        beside.keep_rows(session, name, rows.drop("text", "tokens", strict=False))
    return result


def link(session: Session, name: str, selection: Path) -> None:
    """The selection beside the recipe, where a person and other recipes look for it."""
    place = beside.folder_of(session, name) / FILE
    if not (place.is_file() and place.samefile(selection)):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.hardlink_to(selection)


def _first(part: Part, budget: Budget | None, count: CountTokens) -> pl.DataFrame:
    """The first rows of a part, as many as the budget has room for."""
    kept: list[pl.DataFrame] = []
    by_tokens = budget is not None and budget.tokens is not None
    for batch in part.counted(0, count) if by_tokens else part.batches(0):
        kept.append(batch)
        if budget and budget.rows and sum(map(len, kept)) >= budget.rows:
            break
        if budget and budget.tokens and sum(rows["tokens"].sum() for rows in kept) > budget.tokens:
            break
    rows = pl.concat(kept)
    if budget and budget.tokens:
        return rows.filter(pl.col("tokens").cum_sum() <= budget.tokens)
    return rows.head(budget.rows) if budget and budget.rows else rows


def _check_filled(arm: str, part: Part, rows: pl.DataFrame, budget: Budget | None) -> None:
    """Raises UserError where the other recipe's arm has fewer rows than the budget asks for."""
    if budget and budget.rows and len(rows) < budget.rows:
        raise UserError(
            f"arms.{arm}: the budget asks for {budget.rows} rows and {part.called} has "
            f"{len(rows)}; lower the budget, or say `allow_short: true`."
        )
    if budget and budget.tokens and rows.is_empty():
        raise UserError(
            f"arms.{arm}: the first row of {part.called} alone has more than the budget's "
            f"{budget.tokens} tokens; raise the budget."
        )
