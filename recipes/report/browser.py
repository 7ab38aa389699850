"""The data of the page's prompt browser: prompts with every run's answers, judgments and item
scores, as JSON that is safe inside HTML.

Answers and verdicts are hostile text (a model may write `</script>`), so they never become markup:
they travel in a `<script type="application/json">` without the characters that HTML gives a
meaning, and the page's script puts them on screen by `textContent` only.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from recipes.report.sources import answers, judgments, read_log, read_table, runs

BROWSER_CHARACTERS = 8_000_000
"""Characters of model text embedded in the page; prompts beyond are left out (by hash of their id,
a fair sample) and counted."""

_ESCAPES = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}


def embed(value: Any) -> Markup:
    """JSON text that cannot end or confuse the script element around it: `<`, `>`, `&` and the two
    line separators as \\u escapes."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return Markup(text)


def gather(
    inputs: Mapping[str, Path], colours: Mapping[str, str], limit: int = BROWSER_CHARACTERS
) -> tuple[dict[str, Any], int]:
    """The browser's data and how many prompts were left out to stay under `limit` characters.

    Data: {"runs": [{"arm", "seed", "name", "css"}], "prompts": [{"id", "prompt", "benchmark",
    "category", "answers": [one a run, or null]}]}; an entry's benchmark is "" where benchmarks
    share the answers. An answer is {"text", "finish", "tokens", "status", "reason", "games": [...],
    "scores": [[benchmark, metric, value, status], ...]}. Runs stand in the order of `colours` (arm
    -> colour class). Categories come from "prompts/NAME" inputs (the prompt set's jsonl), else from
    the judgments.
    """
    answered = answers(inputs)
    rank = {arm: place for place, arm in enumerate(colours)}
    order = sorted(
        dict.fromkeys(run for run, _ in answered), key=lambda run: rank.get(run.arm, len(rank))
    )
    places = {run: place for place, run in enumerate(order)}
    own = {
        benchmark for _, benchmark in answered
    }  # benchmarks that asked the checkpoints once more, with prompts or settings of their own
    prompts: dict[tuple[str, str, str], dict[str, Any]] = {}
    found: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    categories = _categories(inputs, own)
    for (run, benchmark), folder in answered.items():
        for row in _rows(folder / "answers.parquet"):
            name, text = str(row["id"]), str(row["prompt"])
            blank = {
                "id": name,
                "prompt": text,
                "benchmark": benchmark,
                "category": "",
                "answers": [None] * len(order),
            }
            entry = prompts.setdefault((benchmark, name, text), blank)
            answer: dict[str, Any] = {
                "text": row.get("answer"),
                "finish": row.get("finish_reason"),
                "tokens": row.get("tokens"),
                "status": row.get("status"),
                "reason": row.get("reason"),
                "games": [],
                "scores": [],
            }
            entry["answers"][places[run]] = answer
            found.setdefault((benchmark, name, places[run]), []).append(answer)
    for (benchmark, run), folder in judgments(inputs).items():
        group = benchmark if benchmark in own else ""
        for row in _rows(folder / "judgments.parquet"):
            for answer in found.get((group, str(row["item"]), places.get(run, -1)), []):
                answer["games"].append(_game(benchmark, row))
            categories.setdefault((group, str(row["item"])), str(row.get("category") or ""))
    for run, folder in runs(inputs, "scores").items():
        for row in _rows(folder / "scores.parquet"):
            group = row["benchmark"] if row["benchmark"] in own else ""
            for answer in found.get((group, str(row["item"]), places.get(run, -1)), []):
                answer["scores"].append(
                    [row["benchmark"], row["metric"], _finite(row["value"]), row.get("status")]
                )
    for entry in prompts.values():
        entry["category"] = categories.get((entry["benchmark"], entry["id"]), "")
    kept = _within(list(prompts.values()), limit)
    data = {
        "runs": [
            {"arm": r.arm, "seed": r.seed, "name": r.name, "css": colours.get(r.arm, "")}
            for r in order
        ],
        "prompts": kept,
    }
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


def _categories(inputs: Mapping[str, Path], own: set[str]) -> dict[tuple[str, str], str]:
    """(benchmark with answers of its own or "", prompt id) -> category, from the
    "prompts/BENCHMARK" inputs: jsonl files, one object a line."""
    found: dict[tuple[str, str], str] = {}
    for key, path in inputs.items():
        head, _, benchmark = key.partition("/")
        if head == "prompts":
            group = benchmark if benchmark in own else ""
            found.update(
                {
                    (group, str(row["id"])): str(row["category"])
                    for row in read_log(path)
                    if row.get("category") and "id" in row
                }
            )
    return found


def _within(prompts: Sequence[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """Those prompts, in their order, whose texts together stay under `limit` characters: a fixed
    pseudo-random sample when not all fit."""
    chosen, spent = set[int](), 0
    for place in sorted(
        range(len(prompts)), key=lambda i: hashlib.sha256(prompts[i]["id"].encode()).digest()
    ):
        spent += _characters(prompts[place])
        if spent > limit and chosen:
            break
        chosen.add(place)
    return [prompt for place, prompt in enumerate(prompts) if place in chosen]


def _characters(prompt: Mapping[str, Any]) -> int:
    total = len(prompt["prompt"])
    for answer in prompt["answers"]:
        if answer is not None:
            total += len(answer["text"] or "") + sum(
                len(game["verdict"] or "") for game in answer["games"]
            )
    return total
