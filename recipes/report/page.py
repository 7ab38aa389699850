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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median_high
from typing import Any

import jinja2
import polars as pl
import yaml
from markupsafe import Markup

from core.files import write_atomic
from core.store import MANIFEST, Counts, canonical
from recipes.report import browser, figures, marks, outcome, sources, tags
from recipes.report.sources import Colours, Inputs, Record
from synth.config.tags import TagsConfig
from synth.pool.mode_agreement import sentence
from synth.tags.asking.own import measures

FOLDER = Path(__file__).parent
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
    comparison = _of_stage(inputs, "comparison", "comparison.json")
    arms = sources.arms(inputs, comparison)
    colours = {arm: figures.css_class(place) for place, arm in enumerate(arms)}
    data, left_out = browser.gather(inputs, colours)
    prompts = data["prompts"]
    tagged = _tags(inputs, colours, _columns(recipe))
    judges = _judges(inputs)
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
        cost=_of_stage(inputs, "measure", "cost.json"),
        funnels=_funnels(inputs, colours),
        mixtures=_mixtures(inputs, colours),
        **tagged,
        **_training(inputs, colours),
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
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = marks.number
    environment.filters["plain"] = _yaml
    for name in ("script.js", "style.css"):
        text = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
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


def _of_stage(inputs: Inputs, stage: str, name: str) -> Record:
    """The object in a file of a stage that there is one of; {} where the stage is absent."""
    return sources.read_object(inputs[stage] / name) if stage in inputs else {}


def _columns(recipe: Mapping[str, Any]) -> tags.Columns:
    """Every column that is declared, the recipe's own among them."""
    own = ((recipe.get("synth") or {}).get("tags") or {}).get("own") or {}
    return measures(TagsConfig.model_validate({"own": own})).columns


def _tags(inputs: Inputs, colours: Colours, columns: tags.Columns) -> Record:
    """`cards` of the pool's tags (see `tags.cards`), `sentences` about what has no figure, and
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
    agreed = _of_stage(inputs, "measure", "tag_agreement.json")
    sentences += [sentence(name, agreement) for name, agreement in agreed.items()]
    return {"cards": cards, "sentences": sentences, "pool_rows": len(pool)}


def _funnels(inputs: Inputs, colours: Colours) -> list[Record]:
    """One funnel a selection that has one."""
    funnels = []
    for run, folder in sources.runs(inputs, "select").items():
        funnel = sources.read_object(folder / "funnel.json")
        if funnel:
            dropped = sources.read_table(folder / "dropped.parquet", ["reason"])
            funnels.append(_funnel(run, funnel, dropped, colours[run.arm]))
    return funnels


def _mixtures(inputs: Inputs, colours: Colours) -> list[Record]:
    """What each part gave to a mixture, one entry a selection that is one: its parts with their
    share of what it holds as a bar."""
    mixtures = []
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
            mixtures.append({**named, **mixture, "parts": parts})
    return mixtures


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


def _judges(inputs: Inputs) -> list[Record]:
    """What each judging counted, from its manifest: games judged, agreement of the two orders,
    preference for what was shown first."""
    judges = []
    for (benchmark, run), folder in sources.judgments(inputs).items():
        counts = sources.read_object(folder / MANIFEST).get("counts") or {}
        if "rows" in counts:
            judges.append({"benchmark": benchmark, "name": run.name, **counts})
    return judges


def _training(inputs: Inputs, colours: Colours) -> Record:
    """Loss curves of all runs on one figure, and the ledger of each; `ledger_keys` are what some
    ledger counts, `ledger_zeros` what none met."""
    lines: list[figures.Curve] = []
    rows: list[Record] = []
    seeds = Counter[str]()
    for run, folder in sources.runs(inputs, "train").items():
        log = sources.read_log(folder / "log.jsonl")
        points = [(float(step), float(loss)) for step, loss in _filled(log, "step", "loss")]
        lines.append(figures.Curve(run.name, colours[run.arm], points, seeds[run.arm]))
        seeds[run.arm] += 1
        speeds = [float(speed) for (speed,) in _filled(log, "tokens_per_second")]
        step, loss = (int(points[-1][0]), points[-1][1]) if points else (None, None)
        rows.append(
            {
                "name": run.name,
                "css": colours[run.arm],
                "dash": lines[-1].dash % figures.DASHES,
                "ledger": _counts(sources.read_object(folder / "ledger.json")),
                "steps": step,
                "loss": loss,
                "speed": median_high(speeds) if speeds else None,
            }
        )
    ledgers = [row["ledger"] for row in rows]
    keys = dict.fromkeys(key for ledger in ledgers for key in ledger)
    zeros = list(keys)
    for ledger in ledgers:
        zeros = [key for key in zeros if ledger.get(key) == 0]
    return {
        "trainings": rows,
        "ledger_keys": [key for key in keys if key not in zeros],
        "ledger_zeros": zeros,
        "curves": figures.curves(lines, "Training loss by step, all runs") if lines else "",
    }


def _filled(log: list[Record], *names: str) -> Iterator[tuple[Any, ...]]:
    """These fields of every entry of a log that has all of them."""
    for entry in log:
        values = tuple(map(entry.get, names))
        if None not in values:
            yield values


def _counts(ledger: Mapping[str, Any]) -> dict[str, float]:
    """The ledger's numbers, those by reason ("dropped": {reason: rows}) as "dropped: reason"."""
    flat: dict[str, float] = {}
    for name, value in ledger.items():
        parts = value if isinstance(value, Mapping) else {"": value}
        for reason, count in parts.items():
            if isinstance(count, (int, float)) and not isinstance(count, bool):
                flat[f"{name}: {reason}" if reason else name] = count
    return flat
