"""The data of the page's prompt browser: prompts with every run's answers, judgments and item
scores, as JSON that is safe inside HTML.

Answers and verdicts are hostile text (a model may write `</script>`), so they never become markup:
they travel in a `<script type="application/json">` without the characters that HTML gives a
meaning, and the page's script puts them on screen by `textContent` only.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from recipes.report.drawing.marks import finite
from recipes.report.sources import (
    Colours,
    Inputs,
    Record,
    Run,
    answers,
    judgments,
    read_log,
    read_table,
    runs,
)

BROWSER_CHARACTERS = 8_000_000
"""Characters of model text embedded in the page; prompts beyond are left out (by hash of their id,
a fair sample) and counted."""

ANSWER = {
    "text": "answer",
    "finish": "finish_reason",
    "tokens": "tokens",
    "status": "status",
    "reason": "reason",
}
"""What the page shows of an answer -> its column."""
SCORE = ("benchmark", "metric", "value", "status")
"""What the page shows of an item's score."""
GAME = ("game", "order", "preference", "label", "verdict", "mass", "status", "reason")
"""What the page shows of a judgment; columns that the judge did not fill stay null."""

_ESCAPES = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"})


def embed(value: Any) -> Markup:
    """JSON text that cannot end or confuse the script element around it: `<`, `>`, `&` and the two
    line separators as \\u escapes."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.translate(_ESCAPES))


def gather(inputs: Inputs, colours: Colours, limit: int = BROWSER_CHARACTERS) -> tuple[Record, int]:
    """The browser's data and how many prompts were left out to stay under `limit` characters.

    Data: {"runs": [{"arm", "seed", "name", "css"}], "prompts": [{"id", "prompt", "benchmark",
    "category", "answers": [one a run, or null]}]}; an entry's benchmark is "" where benchmarks
    share the answers. An answer is {"text", "finish", "tokens", "status", "reason", "games": [...],
    "scores": [[benchmark, metric, value, status], ...]}. Runs stand in the order of `colours` (arm
    -> colour class). Categories come from "prompts/NAME" inputs (the prompt set's jsonl), else from
    the judgments.
    """
    answered = answers(inputs)
    ranks = {arm: rank for rank, arm in enumerate(colours)}
    asked = dict.fromkeys(run for run, _ in answered)
    order = sorted(asked, key=lambda run: ranks.get(run.arm, len(ranks)))
    entries = _Entries(order, {benchmark for _, benchmark in answered})
    for (run, benchmark), folder in answered.items():
        entries.add_answers(run, benchmark, folder)
    for key, path in inputs.items():
        if key.startswith("prompts/"):
            entries.add_categories(key.removeprefix("prompts/"), path)
    for (benchmark, run), folder in judgments(inputs).items():
        entries.add_games(run, benchmark, folder)
    for run, folder in runs(inputs, "scores").items():
        entries.add_scores(run, folder)
    prompts = list(entries.prompts.values())
    for prompt in prompts:
        place = (prompt["benchmark"], prompt["id"])
        prompt["category"] = entries.categories.get(place, "")
    kept = _within(prompts, limit)
    heads = [
        {"arm": run.arm, "seed": run.seed, "name": run.name, "css": colours.get(run.arm, "")}
        for run in order
    ]
    return {"runs": heads, "prompts": kept}, len(prompts) - len(kept)


def name_prompts(
    rows: Sequence[Record], prompts: Sequence[Mapping[str, Any]], benchmark: str
) -> None:
    """Give rows of items (`item`) of a benchmark the text and the group of their prompt, where the
    page holds it: the prompt of that id that the benchmark asked itself, else the one whose answers
    it shares and has judged or scored. An id that stands for several is left without."""
    known: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for prompt in prompts:
        if prompt["benchmark"] == benchmark or _measured_by(prompt, benchmark):
            known[prompt["benchmark"], prompt["id"]].append(prompt)
    for row in rows:
        found = known.get((benchmark, row["item"])) or known.get(("", row["item"]), [])
        if len(found) == 1:
            row |= {"prompt": found[0]["prompt"], "benchmark": found[0]["benchmark"]}


def _measured_by(prompt: Mapping[str, Any], benchmark: str) -> bool:
    """Whether a benchmark judged or scored an answer to a prompt."""
    answers = list(filter(None, prompt["answers"]))
    games = [game["benchmark"] for answer in answers for game in answer["games"]]
    scored = [score[0] for answer in answers for score in answer["scores"]]
    return benchmark in games or benchmark in scored


class _Entries:
    """The prompts, as they fill with what was answered, judged and scored.

    Benchmarks share their answers, in the group "", except those in `own`: they asked the
    checkpoints once more, with prompts or settings of their own.
    """

    def __init__(self, order: list[Run], own: set[str]) -> None:
        self.order, self.own = order, own
        # Two benchmarks may give one id to different prompts.
        self.prompts: dict[tuple[str, str, str], Record] = {}
        self.answers: dict[tuple[str, str, Run], list[Record]] = defaultdict(list)
        self.categories: dict[tuple[str, str], str] = {}

    def add_answers(self, run: Run, benchmark: str, folder: Path) -> None:
        for row in _rows(folder / "answers.parquet"):
            entry = {"id": str(row["id"]), "prompt": str(row["prompt"]), "benchmark": benchmark}
            key = (benchmark, entry["id"], entry["prompt"])
            blank = {"category": "", "answers": [None] * len(self.order)}
            prompt = self.prompts.setdefault(key, entry | blank)
            shown: Record = {name: row.get(column) for name, column in ANSWER.items()}
            answer = shown | {"games": [], "scores": []}
            prompt["answers"][self.order.index(run)] = answer
            self.answers[benchmark, entry["id"], run].append(answer)

    def add_categories(self, benchmark: str, prompts: Path) -> None:
        for row in read_log(prompts):
            if row.get("category") and "id" in row:
                self.categories[self._group(benchmark), str(row["id"])] = str(row["category"])

    def add_games(self, run: Run, benchmark: str, folder: Path) -> None:
        group = self._group(benchmark)
        for row in _rows(folder / "judgments.parquet"):
            item = str(row["item"])
            game = {name: _plain(row.get(name)) for name in GAME}
            for answer in self.answers[group, item, run]:
                answer["games"].append({"benchmark": benchmark} | game)
            self.categories.setdefault((group, item), str(row.get("category") or ""))

    def add_scores(self, run: Run, folder: Path) -> None:
        for row in _rows(folder / "scores.parquet"):
            group = self._group(row["benchmark"])
            score = [_plain(row.get(name)) for name in SCORE]
            for answer in self.answers[group, str(row["item"]), run]:
                answer["scores"].append(score)

    def _group(self, benchmark: str) -> str:
        return benchmark if benchmark in self.own else ""


def _rows(path: Path) -> Iterator[Record]:
    table = read_table(path)
    return iter(()) if table is None else table.iter_rows(named=True)


def _plain(value: Any) -> Any:
    """The value, or None in place of a number that JSON does not know."""
    return value if finite(value) or not isinstance(value, float) else None


def _within(prompts: Sequence[Record], limit: int) -> list[Record]:
    """Those prompts, in their order, whose texts together stay under `limit` characters: a fixed
    pseudo-random sample when not all fit."""
    kept, spent = set[int](), 0
    hashes = [hashlib.sha256(prompt["id"].encode()).digest() for prompt in prompts]
    for place in sorted(range(len(prompts)), key=hashes.__getitem__):
        spent += _characters(prompts[place])
        if spent > limit and kept:
            break
        kept.add(place)
    return [prompts[place] for place in sorted(kept)]


def _characters(prompt: Mapping[str, Any]) -> int:
    texts = [prompt["prompt"]]
    for answer in filter(None, prompt["answers"]):
        texts += [answer["text"], *(game["verdict"] for game in answer["games"])]
    return sum(map(len, filter(None, texts)))
