"""WildBench v2 from stored judgments: WB-Score (one answer, 1 to 10 with a checklist) and WB-Reward
(against a reference model).

Rules: WildBench d6b8dcaf, src/view_wb_eval.py and leaderboard/data_dir/_merge_results.py. Both
scores are plain means, so their errors are those of a mean over tasks. Task groups are averaged
only where the file or a tags file names them; the published groups are on the hub alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from core.errors import UserError
from eval import stats
from eval.judging.verdicts import REWARDS, worth
from eval.prompt_sets.prompts import records
from eval.scoring import wildbench

GROUPS = {
    "Information seeking": "Information/Advice seeking",
    "Advice seeking": "Information/Advice seeking",
    "Creative Writing": "Creative Tasks",
    "Editing": "Creative Tasks",
    "Brainstorming": "Creative Tasks",
    "Role playing": "Creative Tasks",
    "Others": "Creative Tasks",
    "Coding & Debugging": "Coding & Debugging",
    "Reasoning": "Planning & Reasoning",
    "Planning": "Planning & Reasoning",
    "Math": "Math & Data Analysis",
    "Data Analysis": "Math & Data Analysis",
}
"""Task group of each of WildBench's tags; a task counts once in the group of each of its tags."""


def rating(text: Any) -> float | None:
    """A judge's score field as a number from 1 to 10, or None (WildBench's judges write it as a
    string)."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if 1 <= value <= 10 else None


def score(
    rows: Iterable[Mapping[str, Any]],
    where: str = "judgments",
    tags: Mapping[str, list[str]] | None = None,
) -> list[dict[str, Any]]:
    """WB-Score of each model: rows with session_id, model_test, score and model_output.

    `score` is the mean, `adjusted_score` (mean - 5) * 2 as published; standard_error, lower and
    upper (95 %, t) are in the adjusted unit. `task_macro_score` needs `tags` (session_id ->
    WildBench tags). A score that is no number from 1 to 10 counts as unjudged. Raises UserError,
    naming `where` and the row, for a missing field or a task scored twice.
    """
    models: dict[str, dict[str, tuple[float | None, int]]] = {}
    for number, row in enumerate(rows, 1):
        if "session_id" not in row or "model_test" not in row or "score" not in row:
            raise UserError(
                f"{where}, row {number}: a WB-Score judgment needs session_id, model_test and score."
            )
        own = models.setdefault(str(row["model_test"]), {})
        if row["session_id"] in own:
            raise UserError(
                f"{where}, row {number}: the task {row['session_id']} of {row['model_test']} is scored a second time; keep one."
            )
        own[row["session_id"]] = (rating(row["score"]), len(str(row.get("model_output") or "")))
    found = []
    for model, tasks in models.items():
        values = [value for value, _ in tasks.values() if value is not None]
        mean = (
            stats.mean_interval(values)
            if values
            else stats.Interval(math.nan, math.nan, math.nan, math.nan, math.nan, 0)
        )
        lengths = [
            length for _, length in tasks.values() if length
        ]  # the published average leaves empty outputs out
        found.append(
            {
                "model": model,
                "score": mean.value,
                "adjusted_score": (mean.value - 5) * 2,
                "standard_error": mean.standard_error * 2,
                "lower": (mean.lower - 5) * 2,
                "upper": (mean.upper - 5) * 2,
                "task_macro_score": _macro(tasks, tags),
                "total": len(values),
                "unjudged": len(tasks) - len(values),
                "avg_len": sum(lengths) / len(lengths) if lengths else None,
            }
        )
    return found


def _macro(
    tasks: Mapping[str, tuple[float | None, int]], tags: Mapping[str, list[str]] | None
) -> float | None:
    """Mean over task groups of the adjusted mean score; None without tags for every task."""
    if tags is None or any(task not in tags for task in tasks):
        return None
    groups: dict[str, list[float]] = {}
    for task, (value, _) in tasks.items():
        for tag in tags[task]:
            if tag not in GROUPS:
                raise UserError(
                    f"task {task} has the tag '{tag}', which is none of {', '.join(GROUPS)}."
                )
            if value is not None:
                groups.setdefault(GROUPS[tag], []).append((value - 5) * 2)
    return sum(sum(v) / len(v) for v in groups.values()) / len(groups)


def reward(
    rows: Iterable[Mapping[str, Any]],
    where: str = "judgments",
    reference: str | None = None,
    margin: int | None = None,
) -> list[dict[str, Any]]:
    """WB-Reward of each (model, reference): rows with session_id, model_A, model_B, winner, extent
    (0 to 2) and model_outputs.

    The reward is +-1 for a clear win or loss, +-0.5 for a slight one, 0 for a tie; `margin`
    (characters) turns a slight win of an answer that is longer by more than that into a tie.
    `reference` is the model that takes part in every comparison; it must be named where two do.
    Raises UserError like `score`.
    """
    battles = list(rows)
    for number, row in enumerate(battles, 1):
        missing = [
            k for k in ("session_id", "model_A", "model_B", "winner", "extent") if k not in row
        ]
        if missing:
            raise UserError(f"{where}, row {number}: a WB-Reward judgment lacks {missing[0]}.")
        if (
            row["winner"] not in (row["model_A"], row["model_B"], "tie")
            or row["extent"] not in REWARDS
        ):
            raise UserError(
                f"{where}, row {number}: winner {row['winner']!r} with extent {row['extent']!r} is no verdict on these two models."
            )
        if margin is not None and len(row.get("model_outputs", {})) != 2:
            raise UserError(
                f"{where}, row {number}: the length margin needs model_outputs, the texts of both models."
            )
    if not battles:
        return []
    common = set.intersection(*({row["model_A"], row["model_B"]} for row in battles))
    if reference is None and len(common) == 1:
        (reference,) = common
    if reference not in common:
        named = (
            f"{reference} is not in"
            if reference
            else f"{' and '.join(sorted(common)) or 'no model'} could be the reference of"
        )
        raise UserError(
            f"{where}: {named} every comparison; name the reference as the official folders do, in a path with ref=MODEL."
        )
    models: dict[str, list[tuple[str, float]]] = {}
    for row in battles:
        model = row["model_A"] if row["model_B"] == reference else row["model_B"]
        sign = 0 if row["winner"] == "tie" else 1 if row["winner"] == model else -1
        ours, theirs = (
            (0, 0)
            if margin is None
            else (len(row["model_outputs"][name]) for name in (model, reference))
        )
        value = worth(sign, row["extent"], ours, theirs, margin)
        models.setdefault(model, []).append((row["session_id"], value))
    found = []
    for model, tasks in models.items():
        mean = stats.mean_interval([v for _, v in tasks], [task for task, _ in tasks])
        found.append(
            {
                "model": model,
                "reference": reference,
                "reward": mean.value,
                "standard_error": mean.standard_error,
                "lower": mean.lower,
                "upper": mean.upper,
                "total": mean.n,
            }
        )
    return found


def read(path: Path) -> tuple[str, list[dict[str, Any]]]:
    """("score" or "reward", rows) of a stored WildBench file (a JSON list; .gz too)."""
    rows = [row for _, row in records(path)]
    if not rows:
        raise UserError(f"{path} holds no judgments.")
    return ("reward" if "model_A" in rows[0] else "score"), rows


def by_reference(frame: pl.DataFrame, where: str) -> dict[str, dict[str, Any]]:
    """WB-Reward against each reference, from rewards.parquet: reward, standard_error, lower, upper,
    total and unjudged."""
    found: dict[str, dict[str, Any]] = {}
    for (reference,), own in frame.group_by("reference", maintain_order=True):
        battles = [
            {
                "session_id": item,
                "model_A": "model",
                "model_B": "reference",
                "extent": round(2 * abs(reward)),
                "winner": "tie" if reward == 0 else "model" if reward > 0 else "reference",
            }
            for item, reward in own.filter(pl.col("reward").is_not_null())
            .select("item", "reward")
            .iter_rows()
        ]
        figures = (
            wildbench.reward(battles, where, "reference")[0]
            if battles
            else {"reward": None, "total": 0}
        )
        named = {
            name: value for name, value in figures.items() if name not in ("model", "reference")
        }
        found[str(reference)] = {**named, "unjudged": own.height - len(battles)}
    return found
