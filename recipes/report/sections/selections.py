"""How each arm came to its rows: the funnel of its predicates, the parts of a mixture."""

from __future__ import annotations

import polars as pl

from recipes.report import sources
from recipes.report.drawing import figures, marks
from recipes.report.sources import Colours, Inputs, Record


def funnels(inputs: Inputs, colours: Colours) -> list[Record]:
    """One funnel a selection that has one."""
    found = []
    for run, folder in sources.runs(inputs, "select").items():
        funnel = sources.read_object(folder / "funnel.json")
        if funnel:
            dropped = sources.read_table(folder / "dropped.parquet", ["reason"])
            found.append(_funnel(run, funnel, dropped, colours[run.arm]))
    return found


def mixtures(inputs: Inputs, colours: Colours) -> list[Record]:
    """What each part gave to a mixture, one entry a selection that is one: its parts with their
    share of what it holds as a bar."""
    found = []
    for run, folder in sources.runs(inputs, "select").items():
        mixture = sources.read_object(folder / "mixture.json")
        parts = []
        held = sum(part["amount"] for part in mixture.get("sources", []))
        for part in mixture.get("sources", []):
            bars = [(part["name"], colours[run.arm], part["amount"])]
            label = f"{part['name']}: its share of {run.name}"
            share = marks.percent(part["amount"] / held) if held else ""
            parts.append(part | {"held": share, "bar": figures.share_bar(bars, held, label)})
        if mixture:
            named = {"name": run.name, "arm": run.arm, "css": colours[run.arm]}
            found.append({**named, **mixture, "parts": parts})
    return found


def _funnel(run: sources.Run, funnel: Record, dropped: pl.DataFrame | None, css: str) -> Record:
    """Its steps, each with a bar of what it stopped and what it left, and the counts of its dropped
    rows by reason."""
    pool = int(funnel.get("pool") or 0)
    steps = []
    for step in funnel.get("steps", []):
        parts = [("left", css, step["left"]), ("stopped here", "stopped", step["stopped"])]
        steps.append(step | {"bar": figures.share_bar(parts, pool, step["predicate"])})
    chosen = [("chosen", css, int(funnel.get("chosen") or 0))]
    reasons: list[tuple[str, int]] = []
    if dropped is not None:
        reasons = dropped["reason"].fill_null("no reason given").value_counts(sort=True).rows()
    return {
        "name": run.name,
        "arm": run.arm,
        "css": css,
        "funnel": funnel,
        "steps": steps,
        "reasons": reasons,
        "bar": figures.share_bar(chosen, pool, f"{run.name}: rows chosen of the pool"),
    }
