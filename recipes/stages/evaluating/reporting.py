"""The page of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from core.files import write_changed
from core.store import Result
from recipes.schema import Recipe
from recipes.stages.session import Session, Stage, told
from recipes.stages.walk import Arms

REPORTED = {
    "train": "train",
    "answers": "answers",
    "judge": "judge",
    "score": "scores",
    "compare": "comparison",
}
"""Stages whose results the report reads, and what it calls them."""


def report(session: Session, recipe: Recipe, arms: Arms, comparison: Result | None) -> None:
    """The page, and a copy of it where a person finds it: STORE/recipes/NAME/report.html."""
    from recipes.report import page
    from recipes.report.sections.judges import judge_lines

    measured, funnels = _measured(session.folder), _funnels(session.folder, arms)
    shown = {**measured, **_shown_results(session.results), **funnels}
    snapshot = {name: told(path) for name, path in {**measured, **funnels}.items()}
    settings = recipe.model_dump(mode="json")
    notes = judge_lines(recipe, session.results)

    spec = {
        "page": page.VERSION,
        "snapshot": snapshot,
        "name": recipe.name,
        "notes": notes,
    }
    stage = Stage(
        "report",
        spec,
        {"compare": comparison},
        lambda out, log, inputs: page.build(shown, out, settings, notes),
    )
    made = session.result(stage)
    if made is not None and not session.planning:
        shown_page = (made.path / "report.html").read_text(encoding="utf-8")
        write_changed(session.folder / "report.html", shown_page)


def _measured(folder: Path) -> dict[str, Path]:
    """The pool as it was measured, and its cost, where there is a pool."""
    measure = folder / "measure"
    return {"measure": measure} if measure.is_dir() else {}


def _funnels(folder: Path, arms: Arms) -> dict[str, Path]:
    """How each arm came to its rows; of an arm that seeds draw anew, the first seed's."""
    shown = {}
    for arm in arms.with_rows:
        beside = folder / "select" / arms.selections(arm)[0][1]
        if any((beside / kept).is_file() for kept in ("funnel.json", "mixture.json")):
            shown[f"select/{arm}"] = beside
    return shown


def _shown_results(results: Mapping[str, Result]) -> dict[str, Path]:
    shown = {}
    for name, result in results.items():
        stage, _, rest = name.partition("/")
        if stage in REPORTED:
            shown[f"{REPORTED[stage]}/{rest}" if rest else REPORTED[stage]] = result.path
        elif stage == "prompts":
            shown[name] = result.path / "prompts.jsonl"
    return shown
