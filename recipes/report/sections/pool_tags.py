"""Tags of the pool and of what each arm chose from it, read from the files of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import polars as pl

from recipes.report import sources
from recipes.report.sections import tags
from recipes.report.sources import Colours, Inputs, Record
from synth.config.tags import TagsConfig
from synth.pool.mode_agreement import sentence
from synth.tags.asking.own import measures

BY_CHOICE = {"longest": "response_length", "diverse": "min_neighbor_distance"}
"""Columns that a choice reads without naming them."""


def declared(recipe: Mapping[str, Any]) -> tags.Columns:
    """Every column that is declared, the recipe's own among them."""
    own = ((recipe.get("synth") or {}).get("tags") or {}).get("own") or {}
    return measures(TagsConfig.model_validate({"own": own})).columns


def of_pool(inputs: Inputs, colours: Colours, columns: tags.Columns) -> Record:
    """`cards` of the pool's tags (see `tags.cards`), those that a filter reads first (`used`),
    `sentences` about what has no figure, and
    `pool_rows`. An arm with a selection a seed shows its first."""
    long = {name for name, declared in columns.items() if declared.field.long}
    path = inputs["measure"] / "pool.parquet" if "measure" in inputs else None
    pool = sources.read_pool(path, long) if path is not None else None
    if pool is None or pool.is_empty():
        return {"cards": [], "sentences": [], "pool_rows": 0}
    selections: dict[str, tuple[str, list[str] | pl.DataFrame]] = {}
    for run, folder in sources.runs(inputs, "select").items():
        table = sources.read_table(folder / "selection.parquet", ["id"])
        # Rows of other people's data are not in the pool: what is known of them lies beside.
        known = sources.read_table(folder / "rows.parquet")
        of_data = known is not None and (folder / "funnel.json").is_file()
        rows = known if of_data else None
        if table is not None:
            chosen = table["id"].to_list() if rows is None else rows
            selections.setdefault(run.arm, (colours[run.arm], chosen))
    cards, sentences = tags.cards(pool, selections, columns)
    read = _read(inputs)
    cards = [card | {"used": card["name"] in read} for card in cards]
    cards.sort(key=lambda card: not card["used"])
    agreed = sources.of_stage(inputs, "measure", "tag_agreement.json")
    sentences += [sentence(name, agreement) for name, agreement in agreed.items()]
    return {"cards": cards, "sentences": sentences, "pool_rows": len(pool)}


def _read(inputs: Inputs) -> set[str]:
    """The words of every predicate and choice, the columns that filters read among them."""
    said: list[str] = []
    for folder in sources.runs(inputs, "select").values():
        funnel = sources.read_object(folder / "funnel.json")
        said += [str(step["predicate"]) for step in funnel.get("steps", [])]
        said.append(str(funnel.get("choose") or ""))
    words = set(re.findall(r"\w+", " ".join(said)))
    return words | {name for choice, name in BY_CHOICE.items() if choice in words}
