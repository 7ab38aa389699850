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
from core.store import MANIFEST, Counts, canonical
from recipes.report import browser, figures, outcome, sources, tags
from synth.pool.mode_agreement import sentence

FOLDER = Path(__file__).parent
VERSION = 2
"""Part of the key of a report; raised when the same inputs would give another page."""


def build(
    inputs: Mapping[str, Path], out: Path, recipe: Mapping[str, Any], notes: Sequence[str] = ()
) -> Counts:
    """Write `out/report.html` from the folders of finished stages; returns how much is on the page.

    inputs: "comparison", "measure", "select/ARM", "train/RUN", "answers/RUN" (or
    "answers/RUN/BENCHMARK"), "judge/BENCHMARK/RUN", "scores/RUN" -> a result folder, and
    "prompts/BENCHMARK" -> a prompt set's jsonl file (for categories), where RUN is ARM/SEED, or ARM
    alone for a finished model. Any may be absent: the page says what is missing. recipe: the
    resolved recipe as plain data; its `name` is the title. notes: sentences to stand beside the
    comparison's own. Raises UserError when a file that is there cannot be read.
    """
    comparison = (
        sources.read_object(inputs["comparison"] / "comparison.json")
        if "comparison" in inputs
        else {}
    )
    arms = sources.arms(inputs, comparison)
    colours = {arm: figures.css_class(i) for i, arm in enumerate(arms)}
    data, left_out = browser.gather(inputs, colours)
    cards, sentences, pool_rows = _tags(inputs, colours)
    judges = _judges(inputs)
    provenance = sources.provenance(inputs)
    script, style = (
        (FOLDER / name).read_text(encoding="utf-8")
        for name in ("script.js.jinja", "style.css.jinja")
    )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = figures.number
    environment.filters["plain"] = lambda value: yaml.safe_dump(
        value, sort_keys=False, allow_unicode=True, width=100
    )
    html = environment.get_template("page.html.jinja").render(
        name=str(recipe.get("name") or "unnamed recipe"),
        date=_date(provenance),
        recipe=yaml.safe_dump(
            json.loads(canonical(dict(recipe))), sort_keys=False, allow_unicode=True, width=120
        ),
        comparison=comparison,
        headline=outcome.headline(comparison),
        arms=[{"name": arm, "css": colours[arm]} for arm in arms],
        notes=[*comparison.get("notes", []), *notes],
        judges=judges,
        warnings=outcome.judge_warnings(judges),
        scores=outcome.scores(comparison, colours),
        matrices=outcome.matrices(comparison, arms),
        measure="measure" in inputs,
        cost=sources.read_object(inputs["measure"] / "cost.json") if "measure" in inputs else {},
        funnels=_funnels(inputs, colours),
        cards=cards,
        sentences=sentences,
        pool_rows=pool_rows,
        **_training(inputs, colours),
        browser=browser.embed(data),
        prompts=len(data["prompts"]),
        runs=data["runs"],
        left_out=left_out,
        categories=sorted({p["category"] for p in data["prompts"]} - {""}),
        provenance=provenance,
        script=Markup(script),
        style=Markup(style),
        script_digest=_csp(script),
        style_digest=_csp(style),
    )
    write_atomic(out / "report.html", html)
    return {
        "bytes": len(html.encode()),
        "arms": len(arms),
        "prompts": len(data["prompts"]),
        "prompts_left_out": left_out,
        "tags": len(cards),
    }


def _csp(text: str) -> str:
    """The digest by which a content security policy allows exactly this script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _date(provenance: list[dict[str, Any]]) -> str:
    """When the newest input was finished (UTC), so that the same results give the same page; today
    where no manifest says."""
    ends = [e["started"] + (e["seconds"] or 0) for e in provenance if e["started"]]
    return (datetime.fromtimestamp(max(ends), UTC) if ends else datetime.now(UTC)).strftime(
        "%Y-%m-%d %H:%M UTC"
    )


def _tags(
    inputs: Mapping[str, Path], colours: Mapping[str, str]
) -> tuple[list[dict[str, Any]], list[str], int]:
    """Cards of the pool's tags (see `tags.cards`), what has no figure, and the pool's rows. An arm
    with a selection a seed shows its first."""
    pool = sources.read_table(inputs["measure"] / "pool.parquet") if "measure" in inputs else None
    if pool is None or pool.is_empty():
        return [], [], 0
    selections: dict[str, tuple[str, list[str]]] = {}
    for run, folder in sources.runs(inputs, "select").items():
        table = sources.read_table(folder / "selection.parquet", ["id"])
        if table is not None and run.arm not in selections:
            selections[run.arm] = (colours[run.arm], table["id"].to_list())
    cards, sentences = tags.cards(pool, selections)
    agreed = sources.read_object(inputs["measure"] / "tag_agreement.json")
    return (
        cards,
        [*sentences, *(sentence(name, found) for name, found in agreed.items())],
        pool.height,
    )


def _funnels(inputs: Mapping[str, Path], colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """One funnel a selection: its steps, each with a bar of what it stopped and what it left, and
    the counts of its dropped rows by reason."""
    found = []
    for run, folder in sources.runs(inputs, "select").items():
        funnel = sources.read_object(folder / "funnel.json")
        if not funnel:
            continue
        pool = int(funnel.get("pool") or 0)
        steps = [
            {
                **s,
                "bar": figures.share_bar(
                    [
                        ("left", colours[run.arm], s["left"]),
                        ("stopped here", "stopped", s["stopped"]),
                    ],
                    pool,
                    s["predicate"],
                ),
            }
            for s in funnel.get("steps", [])
        ]
        chosen = int(funnel.get("chosen") or 0)
        dropped = sources.read_table(folder / "dropped.parquet", ["reason"])
        reasons = (
            []
            if dropped is None
            else dropped["reason"].fill_null("no reason given").value_counts(sort=True).rows()
        )
        found.append(
            {
                "name": run.name,
                "arm": run.arm,
                "css": colours[run.arm],
                "funnel": funnel,
                "steps": steps,
                "reasons": reasons,
                "bar": figures.share_bar(
                    [("chosen", colours[run.arm], chosen)],
                    pool,
                    f"{run.name}: rows chosen of the pool",
                ),
            }
        )
    return found


def _judges(inputs: Mapping[str, Path]) -> list[dict[str, Any]]:
    """What each judging counted, from its manifest: games judged, agreement of the two orders,
    preference for what was shown first."""
    found = []
    for (benchmark, run), folder in sources.judgments(inputs).items():
        counts = sources.read_object(folder / MANIFEST).get("counts") or {}
        if "rows" in counts:
            found.append({"benchmark": benchmark, "name": run.name, **counts})
    return found


def _counts(ledger: Mapping[str, Any]) -> dict[str, float]:
    """The ledger's numbers, those by reason ("dropped": {reason: rows}) as "dropped: reason"."""
    flat: dict[str, float] = {}
    for name, value in ledger.items():
        if isinstance(value, Mapping):
            flat.update(
                {
                    f"{name}: {reason}": rows
                    for reason, rows in value.items()
                    if isinstance(rows, (int, float))
                }
            )
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[name] = value
    return flat


def _training(inputs: Mapping[str, Path], colours: Mapping[str, str]) -> dict[str, Any]:
    """Loss curves of all runs on one figure, and the ledger of each; `ledger_keys` are what some
    ledger counts, `ledger_zeros` what none met."""
    lines: list[figures.Curve] = []
    rows: list[dict[str, Any]] = []
    keys: dict[str, None] = {}
    seeds: dict[str, int] = {}
    for run, folder in sources.runs(inputs, "train").items():
        log = sources.read_log(folder / "log.jsonl")
        points = [
            (float(e["step"]), float(e["loss"]))
            for e in log
            if e.get("loss") is not None and e.get("step") is not None
        ]
        lines.append(
            figures.Curve(run.name, colours[run.arm], points, seeds.setdefault(run.arm, 0))
        )
        seeds[run.arm] += 1
        ledger = _counts(sources.read_object(folder / "ledger.json"))
        keys.update(dict.fromkeys(ledger))
        speeds = [
            float(e["tokens_per_second"]) for e in log if e.get("tokens_per_second") is not None
        ]
        rows.append(
            {
                "name": run.name,
                "css": colours[run.arm],
                "dash": lines[-1].dash % 4,
                "ledger": ledger,
                "steps": int(points[-1][0]) if points else None,
                "loss": points[-1][1] if points else None,
                "speed": sorted(speeds)[len(speeds) // 2] if speeds else None,
            }
        )
    zeros = [key for key in keys if all(row["ledger"].get(key) == 0 for row in rows)]
    curves = figures.curves(lines, "Training loss by step, all runs") if lines else ""
    return {
        "trainings": rows,
        "ledger_keys": [k for k in keys if k not in zeros],
        "ledger_zeros": zeros,
        "curves": curves,
    }
