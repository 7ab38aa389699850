"""The report: one HTML file that opens anywhere, without a network, and never runs what a model
wrote.

    recipes.report.page.build({"comparison": folder, "select/magpie": folder, ...}, out, recipe)  ->
    out/report.html

Styles, script and figures are inside the file. Jinja escapes everything; the page's own content
security policy allows its one script and its one style sheet by their digests and no connection at
all, so that even a slip in the escaping could run nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from core.files import write_atomic
from core.store import Counts, canonical
from eval.comparing.shown import scales
from eval.comparing.shown.notes import without_bounds
from eval.judging.people import labelled
from recipes.report import beside, sources, tables
from recipes.report.drawing import figures, marks
from recipes.report.sections import (
    browser,
    costs,
    judge_card,
    nearest,
    origins,
    pool_map,
    pool_tags,
    selections,
    training,
)
from recipes.report.sources import Colours, Inputs, Record
from recipes.report.verdicts import (
    controls,
    disagreement,
    duels,
    leaderboard,
    lengths,
    outcome,
    seeds,
    sentence,
)

TEMPLATES = Path(__file__).parent / "templates"
VERSION = 8
"""Part of the key of a report; raised when the same inputs would give another page."""


def build(
    inputs: Inputs,
    out: Path,
    recipe: Mapping[str, Any],
    notes: Sequence[str] = (),
    *,
    people: Mapping[str, Sequence[str]] | None = None,
    stored: pool_map.Stored | None = None,
) -> Counts:
    """Write `out/report.html` from the folders of finished stages, and its tables and figures as
    files beside it (recipes/report/beside.py); returns how much is on the page.

    inputs: "comparison", "measure", "select/ARM", "train/RUN", "answers/RUN" (or
    "answers/RUN/BENCHMARK"), "judge/BENCHMARK/RUN", "scores/RUN" -> a result folder, "spent" -> the
    ledger of hosted models, and "prompts/BENCHMARK" -> a prompt set's jsonl file (for categories),
    where RUN is ARM/SEED, or ARM alone for a finished model. Any may be absent: the page says what
    is missing. recipe: the resolved recipe as plain data; its `name` is the title. notes: sentences
    to stand beside the comparison's own. people: benchmark -> sentences on how far its judge agrees
    with people. stored: the embeddings of texts that the store holds, for the map of the pool.
    Raises UserError when a file that is there cannot be read.
    """
    comparison = _inside(sources.of_stage(inputs, "comparison", "comparison.json"))
    arms = sources.arms(inputs, comparison)
    colours = {arm: figures.css_class(place) for place, arm in enumerate(arms)}
    data, left_out = browser.gather(inputs, colours)
    provenance = sources.provenance(inputs)
    shown = {
        "name": str(recipe.get("name") or "unnamed recipe"),
        "date": _date(provenance),
        "recipe": _yaml(json.loads(canonical(dict(recipe))), 120),
        "arms": [{"name": arm, "css": css} for arm, css in colours.items()],
        "notes": _notes(comparison, notes),
        **_compared(inputs, comparison, colours),
        **_judged(inputs, recipe, people or {}),
        **_chosen(inputs, recipe, colours),
        "map": pool_map.pool_map(inputs, colours, stored),
        **training.training(inputs, colours),
        **_origins(inputs, provenance),
        **_browsed(data, left_out),
        "provenance": provenance,
    }
    _add_prompts(shown["apart"], data["prompts"], inputs, colours, stored)
    html = _render(shown)
    write_atomic(out / "report.html", html)
    beside.write(out, tables.of_page(shown), beside.figures(shown))
    return {
        "bytes": len(html.encode()),
        "arms": len(arms),
        "prompts": len(data["prompts"]),
        "prompts_left_out": left_out,
        "tags": len(shown["cards"]),
    }


def _add_prompts(
    apart: Record,
    prompts: Sequence[Record],
    inputs: Inputs,
    colours: Colours,
    stored: pool_map.Stored | None,
) -> None:
    """To the items on which arms lie furthest apart: their prompts, and the rows of each arm's
    training data that are most like them."""
    browser.name_prompts(apart["rows"], prompts, apart.get("benchmark", ""))
    first = nearest.first_messages(inputs, [row["item"] for row in apart["rows"]])
    for row in apart["rows"]:
        row["text"] = row.get("prompt") or first.get(row["item"], "")
    known = [row for row in apart["rows"] if row["text"]]
    near = nearest.nearest(inputs, [row["text"] for row in known], colours, stored)
    for row, rows in zip(known, near.get("rows", []), strict=False):
        row["nearest"] = rows
    apart["nearest"] = near.get("sentence", "")


def _compared(inputs: Inputs, comparison: Record, colours: Colours) -> Record:
    """What the comparison says."""
    unusable = outcome.unusable(judge_card.judgings(inputs))
    table = seeds.items(inputs)
    by_seed = seeds.scores(table)
    return {
        "comparison": comparison,
        "headline": {
            "sentence": sentence.answer(comparison, unusable),
            "lines": outcome.lines(comparison),
            "controls": controls.line(comparison),
        },
        "duels": duels.duels(comparison),
        "board": leaderboard.leaderboard(comparison, colours, by_seed),
        "scores": outcome.scores(comparison, colours, by_seed),
        "components": outcome.components(comparison),
        "matrices": outcome.matrices(comparison, list(colours)),
        "seeds": by_seed,
        "apart": disagreement.prompts(comparison, table, colours),
        "lengths": lengths.lengths(inputs, comparison, colours, by_seed),
        "controls": controls.controls(comparison, colours),
        "control_arms": controls.arms(comparison),
    }


def _notes(comparison: Record, further: Sequence[str]) -> list[str]:
    """What stands below the answer, each sentence once."""
    own = [*comparison.get("notes", []), *without_bounds(comparison)]
    return list(dict.fromkeys([*own, *further]))


def _inside(comparison: Record) -> Record:
    """A comparison whose scores keep their intervals inside their scales."""
    if "scores" not in comparison:
        return comparison
    return {**comparison, "scores": list(map(scales.shown, comparison["scores"]))}


def _judged(
    inputs: Inputs, recipe: Mapping[str, Any], people: Mapping[str, Sequence[str]]
) -> Record:
    """Who judged, and how they behaved."""
    judges = judge_card.judgings(inputs)
    labels = inputs.get("people", Path())
    said = sources.read_object(labels) if labels.is_file() else {}
    return {
        "judges": judges,
        "cards_of_judges": judge_card.cards(judges, people, recipe),
        "unusable": outcome.unusable(judges),
        "warnings": outcome.judge_warnings(judges),
        "people": said,
        "labels": labelled.sentences(said) if said else [],
    }


def _origins(inputs: Inputs, provenance: Sequence[Record]) -> Record:
    """What made the results, what was declared beforehand, and what all of it cost."""
    spent = costs.costs(inputs)
    return {
        "costs": spent,
        "totals": origins.totals(spent),
        "made_with": origins.made_with(provenance),
        "declared": origins.declared(inputs),
    }


def _chosen(inputs: Inputs, recipe: Mapping[str, Any], colours: Colours) -> Record:
    """How each arm came to its rows, and their tags."""
    return {
        "measure": "measure" in inputs,
        "cost": sources.of_stage(inputs, "measure", "cost.json"),
        "funnels": selections.funnels(inputs, colours),
        "mixtures": selections.mixtures(inputs, colours),
        **pool_tags.of_pool(inputs, colours, pool_tags.declared(recipe)),
    }


def _browsed(data: Record, left_out: int) -> Record:
    """The prompts with every run's answers."""
    prompts = data["prompts"]
    return {
        "browser": browser.embed(data),
        "prompts": len(prompts),
        "runs": data["runs"],
        "left_out": left_out,
        "categories": sorted({prompt["category"] for prompt in prompts} - {""}),
    }


def _render(shown: Record) -> str:
    """The page from its templates, with script and style inside."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["file"] = beside.file_name
    environment.filters["number"] = marks.number
    environment.filters["plain"] = _yaml
    for name in ("script.js", "style.css"):
        text = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
        kind = name.partition(".")[0]
        shown = {**shown, kind: Markup(text), f"{kind}_digest": _csp(text)}
    return environment.get_template("page.html.jinja").render(shown)


def _yaml(value: object, width: int = 100) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=width)


def _csp(text: str) -> str:
    """The digest by which a content security policy allows exactly this script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _date(provenance: list[Record]) -> str:
    """When the newest input was finished (UTC), so that the same results give the same page; today
    where no manifest says."""
    ends = [entry["started"] + (entry["seconds"] or 0) for entry in provenance if entry["started"]]
    when = datetime.fromtimestamp(max(ends), UTC) if ends else datetime.now(UTC)
    return when.strftime("%Y-%m-%d %H:%M UTC")
