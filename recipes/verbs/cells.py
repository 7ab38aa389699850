"""One item under one run, for `magpie why`: what it scored in every metric, what was answered and
by whom it was judged, or what it lost as a held-out row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from core.errors import UserError, nearest
from core.store import Result

Results = Mapping[str, Result]

JUDGED = (
    "item", "judge", "game", "reference", "turn", "order", "preference", "rating", "choice",
    "reward", "label", "mass", "status", "reason", "verdict",
)  # fmt: skip
"""What is shown of a judgment."""

TABLES = ("judgments.parquet", "ratings.parquet", "rewards.parquet")


def lines(results: Results, run: str, item: str) -> Iterator[str]:
    """Everything that a run has of one item of any benchmark (a prompt, a task's document, a
    held-out row), in all of them. Raises UserError where it has nothing of that name."""
    scored, known = list[str](), set[str]()
    if (score := results.get(f"score/{run}")) is not None:
        scores = pl.read_parquet(score.path / "scores.parquet", glob=False)
        scored = list(_scored(scores, run, item))
        known |= set(scores["item"])
    answered = list(_answered(results, run, item))
    if not scored and not answered:
        for name in _own_answers(results, run):
            path = results[name].path / "answers.parquet"
            known |= set(pl.read_parquet(path, columns=["id"], glob=False)["id"])
        hint = nearest(item, sorted(known))
        raise UserError(f"{item}: no prompt or item of {run} is called that{hint}.")
    yield from scored
    yield from answered
    judged = [name for name in results if name.startswith("judge/") and name.endswith(f"/{run}")]
    yield from _judged(results, judged, item)
    yield from _judged(results, met(results, run), item, f", where {run} was the rival")


def _is(item: str, column: str = "item") -> pl.Expr:
    """Rows of an item or of its turns ("ITEM#2")."""
    return (pl.col(column) == item) | pl.col(column).str.starts_with(f"{item}#")


def _scored(scores: pl.DataFrame, run: str, item: str) -> Iterator[str]:
    """Its value in every metric."""
    for row in scores.filter(_is(item)).iter_rows(named=True):
        turn = row["item"].removeprefix(item)
        value = "no value" if row["value"] is None else f"{row['value']:.4g}"
        why = f" ({row['reason']})" if row["reason"] else ""
        yield f"{run} {row['benchmark']} {row['metric']}{turn}: {value}{why}"


def _answered(results: Results, run: str, item: str) -> Iterator[str]:
    """The run's answers, and those that they were judged against."""
    shown: set[str] = set()
    for name in _own_answers(results, run):
        for row in _answers(results[name].path, item):
            if row["id"] not in shown:
                yield f"prompt {row['id']}: {row.get('prompt')}"
            shown.add(row["id"])
            how = f"{row.get('finish_reason')}, {row.get('tokens')} tokens, {name}"
            yield f"answer ({how}):\n{row['answer']}"
    for name, rival in _rivals(results, run).items():
        for row in _answers(results[rival].path, item):
            yield f"answer it was judged against in {name} ({rival}):\n{row['answer']}"


def _own_answers(results: Results, run: str) -> list[str]:
    """The results that hold a run's answers."""
    return sorted(name for name in results if f"{name}/".startswith(f"answers/{run}/"))


def met(results: Results, run: str) -> list[str]:
    """The judgings of other runs in which a run's answers were those that theirs were judged
    against."""
    own = {results[name].digest for name in _own_answers(results, run)}
    found = []
    for name, result in results.items():
        if name.partition("/")[0] in ("judge", "verdicts") and not name.endswith(f"/{run}"):
            inputs = (result.manifest.get("spec") or {}).get("inputs") or {}
            if inputs.get("baseline") in own:
                found.append(name)
    return sorted(found)


def _answers(folder: Path, item: str) -> list[dict[str, Any]]:
    """The answers of a folder to an item, turn by turn."""
    rows = pl.scan_parquet(folder / "answers.parquet", glob=False)
    return rows.filter(_is(item, "id")).collect().to_dicts()


def _rivals(results: Results, run: str) -> dict[str, str]:
    """By benchmark: the result that holds the answers that a run's were judged against."""
    holding = {
        result.digest: name
        for name, result in results.items()
        if name.startswith(("answers/", "baseline/"))
    }
    found: dict[str, str] = {}
    for name, result in results.items():
        stage, _, rest = name.partition("/")
        if stage in ("judge", "verdicts") and rest.endswith(f"/{run}"):
            inputs = (result.manifest.get("spec") or {}).get("inputs") or {}
            if (rival := holding.get(str(inputs.get("baseline")))) is not None:
                found[rest.partition("/")[0]] = rival
    return found


def _judged(results: Results, names: Iterable[str], item: str, where: str = "") -> Iterator[str]:
    """Every judgment of the item in some judgings: games, ratings of its turns, comparisons with
    references; `where` stands behind the name of each."""
    for name in sorted(names):
        for table in TABLES:
            path = results[name].path / table
            if not path.is_file():
                continue
            for row in (
                pl.scan_parquet(path, glob=False).filter(_is(item)).collect().iter_rows(named=True)
            ):
                shown = {field: row[field] for field in JUDGED if row.get(field) is not None}
                yield f"{name}{where}: {json.dumps(shown, ensure_ascii=False)}"
