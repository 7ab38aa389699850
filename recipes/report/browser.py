"""The data of the page's prompt browser: prompts with every run's answers, judgments and item scores, as JSON that is safe inside HTML.

Answers and verdicts are hostile text (a model may write `</script>`), so they never become markup: they travel in a
`<script type="application/json">` without the characters that HTML gives a meaning, and the page's script puts them on screen by
`textContent` only.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from recipes.report.sources import judgments, read_log, read_table, runs

BROWSER_CHARACTERS = 8_000_000
"""Characters of model text embedded in the page; prompts beyond are left out (by hash of their id, a fair sample) and counted."""

_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def embed(value: Any) -> Markup:
    """JSON text that cannot end or confuse the script element around it: `<`, `>`, `&` and the two line separators as \\u escapes."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return Markup(text)


def gather(inputs: Mapping[str, Path], colours: Mapping[str, str], limit: int = BROWSER_CHARACTERS) -> tuple[dict[str, Any], int]:
    """The browser's data and how many prompts were left out to stay under `limit` characters.

    Data: {"runs": [{"arm", "seed", "name", "css"}], "prompts": [{"id", "prompt", "category", "answers": [one a run, or null]}]}; an answer is
    {"text", "finish", "tokens", "status", "reason", "games": [...], "scores": [[benchmark, metric, value, status], ...]}.
    Categories come from "prompts/NAME" inputs (the prompt set's jsonl), else from the judgments.
    """
    answered = runs(inputs, "answers")
    order = list(answered)
    prompts: dict[tuple[str, str], dict[str, Any]] = {}
    categories = _categories(inputs)
    for place, folder in enumerate(answered.values()):
        for row in _rows(folder / "answers.parquet"):
            identity = (str(row["id"]), str(row["prompt"]))
            entry = prompts.setdefault(identity, {
                "id": identity[0],
                "prompt": identity[1],
                "category": "",
                "answers": [None] * len(order),
            })  # fmt: skip
            entry["answers"][place] = {
                "text": row.get("answer"),
                "finish": row.get("finish_reason"),
                "tokens": row.get("tokens"),
                "status": row.get("status"),
                "reason": row.get("reason"),
                "games": [],
                "scores": [],
            }
    by_id: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for entry in prompts.values():
        for place, answer in enumerate(entry["answers"]):
            if answer is not None:
                by_id.setdefault((entry["id"], place), []).append(answer)
    places = {run: place for place, run in enumerate(order)}
    for (benchmark, run), folder in judgments(inputs).items():
        for row in _rows(folder / "judgments.parquet"):
            for answer in by_id.get((str(row["item"]), places.get(run, -1)), []):
                answer["games"].append(_game(benchmark, row))
            categories.setdefault(str(row["item"]), str(row.get("category") or ""))
    for run, folder in runs(inputs, "scores").items():
        for row in _rows(folder / "scores.parquet"):
            for answer in by_id.get((str(row["item"]), places.get(run, -1)), []):
                answer["scores"].append([row["benchmark"], row["metric"], _finite(row["value"]), row.get("status")])
    for entry in prompts.values():
        entry["category"] = categories.get(entry["id"], "")
    kept = _within(list(prompts.values()), limit)
    data = {"runs": [{"arm": r.arm, "seed": r.seed, "name": r.name, "css": colours.get(r.arm, "")} for r in order], "prompts": kept}
    return data, len(prompts) - len(kept)


def _rows(path: Path) -> Iterable[dict[str, Any]]:
    table = read_table(path)
    return [] if table is None else table.iter_rows(named=True)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _game(benchmark: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """One judged game as the page shows it; columns the judge did not fill stay null."""
    names = ("game", "order", "preference", "label", "verdict", "mass", "status", "reason")
    return {"benchmark": benchmark} | {name: _finite(row.get(name)) for name in names}


def _categories(inputs: Mapping[str, Path]) -> dict[str, str]:
    """Prompt id -> category, from every "prompts/NAME" input: a jsonl file, one object a line, or a folder with `prompts.jsonl`."""
    found: dict[str, str] = {}
    for key, path in inputs.items():
        if key.split("/")[0] == "prompts":
            rows = read_log(path / "prompts.jsonl" if path.is_dir() else path)
            found.update({str(row["id"]): str(row["category"]) for row in rows if row.get("category") and "id" in row})
    return found


def _within(prompts: Sequence[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """Those prompts, in their order, whose texts together stay under `limit` characters: a fixed pseudo-random sample when not all fit."""
    chosen, spent = set[int](), 0
    for place in sorted(range(len(prompts)), key=lambda i: hashlib.sha256(prompts[i]["id"].encode()).digest()):
        spent += _characters(prompts[place])
        if spent > limit and chosen:
            break
        chosen.add(place)
    return [prompt for place, prompt in enumerate(prompts) if place in chosen]


def _characters(prompt: Mapping[str, Any]) -> int:
    total = len(prompt["prompt"])
    for answer in prompt["answers"]:
        if answer is not None:
            total += len(answer["text"] or "") + sum(len(game["verdict"] or "") for game in answer["games"])
    return total
