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
from recipes.report import sources
from recipes.report.drawing import figures, marks
from recipes.report.sections import (
    browser,
    judge_card,
    outcome,
    pool_tags,
    selections,
    training,
)
from recipes.report.sources import Inputs, Record

TEMPLATES = Path(__file__).parent / "templates"
VERSION = 3
"""Part of the key of a report; raised when the same inputs would give another page."""


def build(
    inputs: Inputs, out: Path, recipe: Mapping[str, Any], notes: Sequence[str] = ()
) -> Counts:
    """Write `out/report.html` from the folders of finished stages; returns how much is on the page.

    inputs: "comparison", "measure", "select/ARM", "train/RUN", "answers/RUN" (or
    "answers/RUN/BENCHMARK"), "judge/BENCHMARK/RUN", "scores/RUN" -> a result folder, and
    "prompts/BENCHMARK" -> a prompt set's jsonl file (for categories), where RUN is ARM/SEED, or ARM
    alone for a finished model. Any may be absent: the page says what is missing. recipe: the
    resolved recipe as plain data; its `name` is the title. notes: sentences to stand beside the
    comparison's own. Raises UserError when a file that is there cannot be read.
    """
    comparison = sources.of_stage(inputs, "comparison", "comparison.json")
    arms = sources.arms(inputs, comparison)
    colours = {arm: figures.css_class(place) for place, arm in enumerate(arms)}
    data, left_out = browser.gather(inputs, colours)
    prompts = data["prompts"]
    tagged = pool_tags.of_pool(inputs, colours, pool_tags.declared(recipe))
    judges = judge_card.judgings(inputs)
    provenance = sources.provenance(inputs)
    html = _render(
        name=str(recipe.get("name") or "unnamed recipe"),
        date=_date(provenance),
        recipe=_yaml(json.loads(canonical(dict(recipe))), 120),
        comparison=comparison,
        headline=outcome.headline(comparison),
        arms=[{"name": arm, "css": css} for arm, css in colours.items()],
        notes=[*comparison.get("notes", []), *notes],
        judges=judges,
        warnings=outcome.judge_warnings(judges),
        scores=outcome.scores(comparison, colours),
        matrices=outcome.matrices(comparison, arms),
        measure="measure" in inputs,
        cost=sources.of_stage(inputs, "measure", "cost.json"),
        funnels=selections.funnels(inputs, colours),
        mixtures=selections.mixtures(inputs, colours),
        **tagged,
        **training.training(inputs, colours),
        browser=browser.embed(data),
        prompts=len(prompts),
        runs=data["runs"],
        left_out=left_out,
        categories=sorted({prompt["category"] for prompt in prompts} - {""}),
        provenance=provenance,
    )
    write_atomic(out / "report.html", html)
    return {
        "bytes": len(html.encode()),
        "arms": len(arms),
        "prompts": len(prompts),
        "prompts_left_out": left_out,
        "tags": len(tagged["cards"]),
    }


def _render(**shown: Any) -> str:
    """The page from its template, with script and style inside."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = marks.number
    environment.filters["plain"] = _yaml
    for name in ("script.js", "style.css"):
        text = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
        kind = name.partition(".")[0]
        shown |= {kind: Markup(text), f"{kind}_digest": _csp(text)}
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
