"""WildBench v2 from stored judgments: WB-Score (one answer, 1 to 10 with a checklist) and WB-Reward
(against a reference model).

Rules: WildBench d6b8dcaf, src/view_wb_eval.py and leaderboard/data_dir/_merge_results.py. Both
scores are plain means, so their errors are those of a mean over tasks. The published macro score is
a weighted mean over task groups (`WEIGHTS`), which leaves out answers that are empty or that the
judge saw cut; WB-Reward counts those as 0. Task groups are known only where the file or a tags file
names the tags; the published ones are on the hub alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from core.errors import UserError, json_kind
from eval import stats
from eval.judging.verdicts import REWARDS
from eval.prompt_sets.records import records
from eval.scoring.stored import Row, numbered

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
"""Task group of each of WildBench's tags; a task counts once in each group that it has tags of."""

WEIGHTS = {
    "Information/Advice seeking": 0.75,
    "Creative Tasks": 0.5,
    "Coding & Debugging": 1.25,
    "Planning & Reasoning": 1.25,
    "Math & Data Analysis": 1.0,
}
"""What each task group weighs in the published macro score (all published macros follow from the
published scores by group so, to 1e-15)."""

CUT = "... (truncated)"
"""Ends an answer that the official code cut for the judge."""

EMPTY = ("", "[This model response is empty.]")
"""An empty answer, as it is and as the official judge saw it."""


def rating(text: Any) -> float | None:
    """A judge's score field as a number from 1 to 10, or None (WildBench's judges write it as a
    string)."""
    try:
        value = float(text)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if 1 <= value <= 10 else None


def rating_of(row: Row) -> float | None:
    """The rating of a stored judgment; None also where its `model_output` is no text (null, a
    number), so that there was nothing to judge."""
    answered = isinstance(row.get("model_output", ""), str)
    return rating(row["score"]) if answered else None


def adjusted(score: float) -> float:
    """A mean rating on the published scale, where 5 is 0."""
    return (score - 5) * 2


def is_whole(output: Any) -> bool:
    """Whether a stored answer is neither empty nor cut."""
    text = str(output or "")
    return text.strip() not in EMPTY and not text.endswith(CUT)


def score(
    rows: Iterable[Row], where: str = "judgments", tags: Mapping[str, list[str]] | None = None
) -> list[dict[str, Any]]:
    """WB-Score of each model: rows with session_id, model_test, score and model_output.

    `score` is the mean, `adjusted_score` (mean - 5) * 2 as published; standard_error, lower and
    upper (95 %, t) are in the adjusted unit. `task_macro_score` needs `tags` (session_id ->
    WildBench tags). A score that is no number from 1 to 10 counts as unjudged. Raises UserError,
    naming `where` and the row, for a missing field or a task scored twice.
    """
    models: dict[str, dict[str, Row]] = {}
    for place, row in numbered(rows, where):
        if not {"session_id", "model_test", "score"} <= row.keys():
            raise UserError(f"{place}: a WB-Score judgment needs session_id, model_test and score.")
        model, task = str(row["model_test"]), str(row["session_id"])
        tasks = models.setdefault(model, {})
        if task in tasks:
            raise UserError(
                f"{place}: the task {task} of {model} is scored a second time; keep one."
            )
        tasks[task] = row
    return [{"model": model} | _score(tasks, tags) for model, tasks in models.items()]


def _score(tasks: Mapping[str, Row], tags: Mapping[str, list[str]] | None) -> dict[str, Any]:
    """One model's figures."""
    ratings = {task: rating_of(row) for task, row in tasks.items()}
    values = [value for value in ratings.values() if value is not None]
    mean = stats.mean_interval(values) if values else stats.NOTHING
    whole = [task for task, row in tasks.items() if is_whole(row.get("model_output", "unknown"))]
    lengths = [len(str(row.get("model_output") or "")) for row in tasks.values()]
    answered = [length for length in lengths if length]  # as in the published average
    return {
        "score": mean.value,
        "adjusted_score": adjusted(mean.value),
        "standard_error": mean.standard_error * 2,
        "lower": adjusted(mean.lower),
        "upper": adjusted(mean.upper),
        "task_macro_score": macro_score({task: ratings[task] for task in whole}, tags or {}),
        "total": len(values),
        "unjudged": len(tasks) - len(values),
        "avg_len": sum(answered) / len(answered) if answered else None,
    }


def groups_of(task: str, tags: Iterable[str]) -> list[str]:
    """The task groups of a task's tags, each once, in the order of `WEIGHTS`: what is computed from
    them, and written, is the same in every process. Raises UserError for a tag that WildBench does
    not have."""
    groups = set()
    for tag in tags:
        if tag not in GROUPS:
            raise UserError(
                f"task {task} has the tag '{tag}', which is none of {', '.join(GROUPS)}."
            )
        groups.add(GROUPS[tag])
    return [group for group in WEIGHTS if group in groups]


def by_group(
    ratings: Mapping[str, float | None], tags: Mapping[str, list[str]]
) -> dict[str, dict[str, float]]:
    """Adjusted ratings of each task group, by task."""
    groups: dict[str, dict[str, float]] = {}
    for task, value in ratings.items():
        known = groups_of(task, tags[task])
        if value is None:
            continue
        for group in known:
            groups.setdefault(group, {})[task] = adjusted(value)
    return {group: groups[group] for group in WEIGHTS if group in groups}


def macro_score(ratings: Mapping[str, float | None], tags: Mapping[str, list[str]]) -> float | None:
    """The mean of the task groups' adjusted mean ratings, weighted by `WEIGHTS`; None without tags
    for every task. `ratings` are of answers that are whole (`is_whole`). Raises UserError for a tag
    that WildBench does not have."""
    if not ratings.keys() <= tags.keys():
        return None
    groups = by_group(ratings, tags)
    if not groups:
        return None
    means = {name: sum(own.values()) / len(own) for name, own in groups.items()}
    total = sum(WEIGHTS[name] for name in means)
    return sum(WEIGHTS[name] * mean for name, mean in means.items()) / total


def macro_items(
    ratings: Mapping[str, float | None], tags: Mapping[str, list[str]]
) -> dict[str, float]:
    """One value a rated task, whose mean is the macro score and whose spread gives its error: the
    score plus what the task moves it by, times the number of tasks (the influence of a mean of
    means). Needs tags for every task."""
    groups = by_group(ratings, tags)
    whole = sum(WEIGHTS[name] for name in groups)
    tasks = list(dict.fromkeys(task for own in groups.values() for task in own))
    macro = macro_score(ratings, tags)
    values = dict.fromkeys(tasks, 0.0 if macro is None else macro)
    for name, own in groups.items():
        mean = sum(own.values()) / len(own)
        for task, value in own.items():
            values[task] += len(tasks) * WEIGHTS[name] / whole * (value - mean) / len(own)
    return values


def reward(
    rows: Iterable[Row], where: str = "judgments", reference: str | None = None
) -> list[dict[str, Any]]:
    """WB-Reward of each (model, reference): rows with session_id, model_A, model_B, winner and
    extent (0 to 2).

    The reward is +-1 for a clear win or loss, +-0.5 for a slight one, 0 for a tie, and 0 where
    either answer (`model_outputs`, where the file has them) is empty or cut: those stay in the
    mean, as published, and are counted as `empty_or_cut`. `reference` is
    the model that takes part in every comparison; it must be named where two do. Raises UserError
    like `score`.
    """
    battles = list(rows)
    for place, row in numbered(battles, where):
        _check_battle(row, place)
    if not battles:
        return []
    rival = _reference(battles, where, reference)
    rewards: dict[str, list[tuple[str, float]]] = {}
    broken: Counter[str] = Counter()
    for row in battles:
        model = row["model_A"] if row["model_B"] == rival else row["model_B"]
        sign = {"tie": 0, model: 1}.get(row["winner"], -1)
        value = sign * REWARDS[row["extent"]]
        if not all(map(is_whole, (row.get("model_outputs") or {}).values())):
            value = 0.0
            broken[model] += 1
        rewards.setdefault(model, []).append((str(row["session_id"]), value))
    return [
        {"model": model, "reference": rival} | _mean_reward(own) | {"empty_or_cut": broken[model]}
        for model, own in rewards.items()
    ]


def _check_battle(row: Row, place: str) -> None:
    """Raise UserError where a row is no verdict on two models."""
    for name in ("session_id", "model_A", "model_B", "winner", "extent"):
        if name not in row:
            raise UserError(f"{place}: a WB-Reward judgment lacks {name}.")
    _check_outputs(row, place)
    winner, extent = row["winner"], row["extent"]
    told = all(isinstance(row[name], str) for name in ("model_A", "model_B", "winner"))
    counted = isinstance(extent, (int, str))
    if not told or not counted:
        raise UserError(
            f"{place}: model_A, model_B and winner are texts and extent is 0, 1 or 2; "
            f"here the winner is {winner!r} with extent {extent!r}."
        )
    if winner not in (row["model_A"], row["model_B"], "tie") or extent not in REWARDS:
        raise UserError(
            f"{place}: winner {winner!r} with extent {extent!r} is no verdict on these two models."
        )


def _check_outputs(row: Row, place: str) -> None:
    """Raise UserError where the models' answers are not told by name."""
    outputs = row.get("model_outputs")
    if outputs is not None and not isinstance(outputs, dict):
        kind = json_kind(outputs)
        raise UserError(f"{place}: model_outputs is {kind}; it is an object, an answer a model.")


def _reference(battles: Sequence[Row], where: str, named: str | None) -> str:
    """The model that takes part in every comparison."""
    common = set.intersection(*({row["model_A"], row["model_B"]} for row in battles))
    if named in common:
        return str(named)
    if named is None and len(common) == 1:
        return str(common.pop())
    who = f"{named} is not in"
    if not named:
        who = f"{' and '.join(sorted(common)) or 'no model'} could be the reference of"
    raise UserError(
        f"{where}: {who} every comparison; name the reference as the official folders do, "
        "in a path with ref=MODEL."
    )


def _mean_reward(rewards: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """Figures of (task, reward) pairs, of which there is at least one."""
    tasks, values = zip(*rewards, strict=True)
    mean = stats.mean_interval(values, tasks)
    return {
        "reward": mean.value,
        **mean.bounds(),
        "total": mean.n,
    }


def read(path: Path) -> tuple[str, list[Row]]:
    """("score" or "reward", rows) of a stored WildBench file (a JSON list; .gz too)."""
    rows: list[Row] = [row for _, row in records(path)]
    if not rows:
        raise UserError(f"{path} holds no judgments.")
    return ("reward" if "model_A" in rows[0] else "score"), rows


def by_reference(frame: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """WB-Reward against each reference, from rewards.parquet: reward, standard_error, lower, upper,
    total and unjudged."""
    figures: dict[str, dict[str, Any]] = {}
    for (reference,), pairs in frame.group_by("reference", maintain_order=True):
        judged = pairs.drop_nulls("reward").select("item", "reward").rows()
        own = _mean_reward(judged) if judged else {"reward": None, "total": 0}
        figures[str(reference)] = own | {"unjudged": pairs.height - len(judged)}
    return figures
