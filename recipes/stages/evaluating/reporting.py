"""The page of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from core import models
from core.errors import UserError
from core.files import file_digest, write_changed
from core.sending.purse import Ledger
from core.store import Counts, Result, digest
from core.tracking import Log
from recipes.schema import Recipe
from recipes.stages.evaluating import declared
from recipes.stages.session import Session, Stage
from recipes.stages.sets.held import told
from recipes.stages.walk import Arms

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from recipes.report.sections.pool_map import Stored

REPORTED = {
    "train": "train",
    "tasks": "tasks",
    "heldout": "heldout",
    "answers": "answers",
    "judge": "judge",
    "verdicts": "verdicts",
    "looks": "looks",
    "score": "scores",
    "compare": "comparison",
}
"""Stages whose results the report reads, and what it calls them."""


def report(session: Session, recipe: Recipe, arms: Arms, comparison: Result | None) -> None:
    """The page, and a copy of it where a person finds it: STORE/recipes/NAME/report.html, its
    tables and figures beside it."""
    from eval.judging.people import labelled
    from recipes.report import beside, page
    from recipes.report.sections import judges

    measured, funnels = _measured(session.folder), _funnels(session.folder, arms)
    kept = {"declared": declared.FILE, "people": labelled.FILE}
    beside_it = {name: session.folder / file for name, file in kept.items()}
    beside_it = {name: path for name, path in beside_it.items() if path.is_file()}
    shown = {**measured, **_shown_results(session.results), **funnels, **beside_it}
    snapshot = {name: told(path) for name, path in {**measured, **funnels}.items()}
    snapshot |= {name: file_digest(path) for name, path in beside_it.items()}
    settings = recipe.model_dump(mode="json")
    notes = judges.judge_lines(recipe, session.results)
    people = judges.people(recipe, session.results)

    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        everything = {**shown, "spent": session.folder / "spent"}
        stored = _embedded(recipe, session.store.root)
        counts = page.build(everything, out, settings, notes, people=people, stored=stored)
        # The tracker gets the very tables that lie beside the page.
        for path in sorted((out / beside.TABLES).glob("*.parquet")):
            log.table(path.stem, pl.read_parquet(path, glob=False))
        return counts

    spec = {
        "page": page.VERSION,
        "snapshot": snapshot,
        "name": recipe.name,
        "notes": notes,
        "recipe": digest(settings),
        "spent": _bought(session.folder / "spent"),
    }
    made = session.result(Stage("report", spec, {"compare": comparison}, make))
    if made is not None and not session.planning:
        shown_page = (made.path / "report.html").read_text(encoding="utf-8")
        write_changed(session.folder / "report.html", shown_page)
        beside.copy(made.path, session.folder)


def _bought(folder: Path) -> str:
    """A digest of what was paid for, without the money, which follows from it: its sum differs in
    the last place when the ledger's lines are added up."""
    return digest({model: bill[:3] for model, bill in Ledger(folder).bills().items()})


def _embedded(recipe: Recipe, root: Path) -> Stored:
    """The embeddings of instructions that the store holds, by the model that neighbours are found
    with; of none where that model is not known on this machine."""
    from synth.context import Context
    from synth.duplicates import embeddings, services

    def stored(texts: Sequence[str]) -> NDArray[np.float32] | None:
        if not (root / "vectors").is_dir():
            return None
        try:
            model = services.model_of(recipe.synth.tags.neighbors, Context(root, models.resolve))
        except UserError:
            return None
        return embeddings.stored(root, texts, model)

    return stored


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
    """The results that the page reads; the others by name alone, for their cost and where they come
    from."""
    from recipes.report import sources

    shown = {}
    for name, result in results.items():
        stage, _, rest = name.partition("/")
        if stage in REPORTED:
            shown[f"{REPORTED[stage]}/{rest}" if rest else REPORTED[stage]] = result.path
        elif stage == "prompts":
            shown[name] = result.path / "prompts.jsonl"
        if stage not in (*REPORTED, "report"):
            shown[f"{sources.MADE}{name}"] = result.path
    return shown
