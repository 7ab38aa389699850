"""Arena-Hard: from two games a question to a score with a question-level interval.

Every battle is against one baseline, so the Bradley-Terry win rate is exactly the weighted mean of
the outcomes (checked to 1e-8): no regression is needed without style control
(eval/scoring/style_control.py). A clear verdict (>>) counts three times. Rules of v0.1:
arena-hard-auto efc012e, of v2.0: 196f6b82.

What differs from the official figures: the published interval resamples battles as if the two games
and the three copies of a clear verdict were independent, which makes it 1.6 times too narrow; ours
resamples questions. Categories are always scored apart (the official loop over several categories
overwrites its table).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from eval import stats
from eval.judging import verdicts
from eval.prompt_sets.prompts import records

WEIGHT = 3
"""How often a clear verdict (A>>B, B>>A) counts."""
V01_BASELINE = "gpt-4-0314"

_OUTCOMES = {
    "A>>B": (1.0, WEIGHT),
    "A>B": (1.0, 1),
    "A=B": (0.5, 1),
    "B>A": (0.0, 1),
    "B>>A": (0.0, WEIGHT),
}
"""For the first answer shown: outcome and weight of each label."""
_MIRRORED = {"A<<B": "B>>A", "A<B": "B>A", "B=A": "A=B", "B<A": "A>B", "B<<A": "A>>B"}
_WINNERS = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5, "tie (bothbad)": 0.5}


@dataclass(frozen=True)
class Games:
    """All judged games of one model against one baseline in one category; arrays of shape (n,), one
    entry a game (or battle)."""

    model: str
    baseline: str
    category: str  # "" where the benchmark has none
    judges: tuple[str, ...]
    questions: list[str]
    outcome: stats.Floats  # 1: the model wins, 0.5, 0
    weight: stats.Floats
    unjudged: int  # games without a usable verdict, which count nowhere


def outcome(label: str, *, model_first: bool) -> tuple[float, int]:
    """(outcome for the model, weight) of one game's label. Raises KeyError for a label that is none
    of the five (or their mirrored spellings)."""
    won, weight = _OUTCOMES[_MIRRORED.get(label, label)]
    return (won if model_first else 1 - won), weight


def read(paths: Iterable[Path]) -> list[Games]:
    """Battles (question_id, model_a, model_b, winner; weights already expanded) and judgments
    (question_id or uid, model, games) of many files.

    Several judges' judgments of one question are pooled. Raises UserError, naming file and record,
    for what is neither form, an unknown winner, and a question judged twice by one judge.
    """
    battles: list[tuple[str, Mapping[str, Any]]] = []
    judgments: dict[tuple[str, str], list[tuple[str, str, float, int]]] = {}
    details: dict[tuple[str, str], dict[str, Any]] = {}
    seen: set[tuple[str, ...]] = set()
    for path in paths:
        for number, record in records(path):
            where = f"{path}, record {number}"
            if "winner" in record:
                battles.append((where, record))
            elif (
                "games" in record
                and "model" in record
                and ("uid" in record or "question_id" in record)
            ):
                _judgment(record, where, judgments, details, seen)
            else:
                raise UserError(
                    f"{where}: neither a battle (question_id, model_a, model_b, winner) nor a judgment (question_id or uid, model, games)."
                )
    found = [
        _games(model, category, rows, details[model, category])
        for (model, category), rows in judgments.items()
    ]
    return found + (_battles(battles) if battles else [])


def _judgment(
    record: Mapping[str, Any],
    where: str,
    judgments: dict[tuple[str, str], list[tuple[str, str, float, int]]],
    details: dict[tuple[str, str], dict[str, Any]],
    seen: set[tuple[str, ...]],
) -> None:
    version = "v2.0" if "uid" in record else "v0.1"
    question, model, judge = (
        str(record.get("uid", record.get("question_id"))),
        str(record["model"]),
        str(record.get("judge", "")),
    )
    category = str(record.get("category") or "")
    if (question, model, judge, category) in seen:
        raise UserError(
            f"{where}: a second judgment of question {question} for {model} by {judge or 'the same judge'}; keep one."
        )
    seen.add((question, model, judge, category))
    key = (model, category)
    facts = details.setdefault(
        key,
        {
            "baseline": record.get("baseline") or (V01_BASELINE if version == "v0.1" else ""),
            "judges": [],
            "unjudged": 0,
        },
    )
    if judge not in facts["judges"]:
        facts["judges"].append(judge)
    labels = [_label(game, version, where) for game in record["games"]]
    if len(labels) != 2:
        raise UserError(
            f"{where}: {len(labels)} games; Arena-Hard judges two, the baseline first and then the model first."
        )
    if version == "v2.0" and None in labels:  # the official rule: half a question counts as none
        labels = [None, None]
    rows = judgments.setdefault(key, [])
    for label, model_first in zip(labels, (False, True), strict=True):
        if label is None:
            facts["unjudged"] += 1
        else:
            rows.append((question, judge, *outcome(label, model_first=model_first)))


def _label(game: Any, version: str, where: str) -> str | None:
    """The stored verdict of one game, or the one that its text holds where none was stored."""
    if game is None:
        return None
    label = (
        game["score"] if "score" in game else verdicts.PARSE[version](str(game.get("judgment", "")))
    )
    if label is not None and not isinstance(label, str):
        raise UserError(
            f"{where}: the verdict {label!r} is no label; it is one of {', '.join(_OUTCOMES)}, or null."
        )
    # A judge that writes [[A]] matches both official patterns: v0.1 then gives the game no weight,
    # v2.0 fails with a KeyError.
    return label if label in _OUTCOMES or label in _MIRRORED else None


def _games(
    model: str, category: str, rows: list[tuple[str, str, float, int]], facts: Mapping[str, Any]
) -> Games:
    questions, _, won, weight = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Games(
        model,
        facts["baseline"],
        category,
        tuple(facts["judges"]),
        list(questions),
        np.array(won),
        np.array(weight, dtype=np.float64),
        facts["unjudged"],
    )


def _battles(battles: list[tuple[str, Mapping[str, Any]]]) -> list[Games]:
    """Battles by model; the baseline is the one that takes part in every battle (of two, the one
    that is model_a more often)."""
    common = set.intersection(*({str(b.get("model_a")), str(b.get("model_b"))} for _, b in battles))
    if not common:
        raise UserError(
            "the battles share no baseline: Arena-Hard compares every model with one and the same; score its files only."
        )
    firsts = Counter(str(b["model_a"]) for _, b in battles)
    baseline = max(sorted(common), key=lambda name: firsts[name])
    rows: dict[str, list[tuple[str, str, float, int]]] = {}
    for where, battle in battles:
        if battle["winner"] not in _WINNERS:
            raise UserError(
                f"{where}: the winner {battle['winner']!r} is none of {', '.join(_WINNERS)}."
            )
        if "question_id" not in battle:
            raise UserError(
                f"{where}: no question_id, which tells the games of one question apart from those of another."
            )
        # also where the baseline meets itself: the second place is the model's
        model_is_b = battle["model_a"] == baseline
        model = str(battle["model_b"] if model_is_b else battle["model_a"])
        first_won = _WINNERS[battle["winner"]]
        rows.setdefault(model, []).append(
            (str(battle["question_id"]), "", 1 - first_won if model_is_b else first_won, 1)
        )
    return [
        _games(model, "", own, {"baseline": baseline, "judges": [], "unjudged": 0})
        for model, own in rows.items()
    ]


def score(games: Games) -> float:
    """The Bradley-Terry win rate against the baseline, in percent (nan without a judged game)."""
    return (
        100 * float(games.weight @ games.outcome / games.weight.sum())
        if len(games.outcome)
        else math.nan
    )


def items(games: Games) -> dict[str, float]:
    """By question: values whose mean is the score and whose spread is its error (the ratio
    estimator made linear), in percent.

    A question's weight depends on its verdicts, so the score is no plain mean of its questions'
    scores; these values may be paired and clustered like any other.
    """
    labels, index = np.unique(games.questions, return_inverse=True)
    pull = (
        np.bincount(index, weights=games.weight * (100 * games.outcome - score(games)))
        / games.weight.sum()
    )
    return dict(zip(labels.tolist(), (score(games) + len(labels) * pull).tolist(), strict=True))


def interval(
    games: Games, *, resamples: int = 10_000, seed: int = 0, level: float = 0.95
) -> stats.Interval:
    """Score with the standard error and percentile interval of a bootstrap over questions; with
    fewer than stats.MINIMUM_CLUSTERS questions the t interval of `items`. `n` counts questions."""
    labels, index = np.unique(games.questions, return_inverse=True)
    if len(labels) < stats.MINIMUM_CLUSTERS:
        values = list(items(games).values()) if len(labels) else []
        return (
            stats.mean_interval(values, level=level)
            if values
            else stats.Interval(math.nan, math.nan, math.nan, math.nan, math.nan, 0)
        )
    won, weight = (
        np.bincount(index, weights=games.weight * games.outcome),
        np.bincount(index, weights=games.weight),
    )
    draws = 100 * np.concatenate(
        [(w @ won) / (w @ weight) for w in stats.bootstrap_counts(len(labels), resamples, seed)]
    )
    return stats.Interval(
        score(games),
        float(draws.std(ddof=1)),
        *stats.percentiles(draws, level),
        len(labels) - 1,
        len(labels),
    )


def official_intervals(models: list[Games], *, rounds: int = 100) -> list[stats.Interval]:
    """The published kind of interval: `rounds` resamples of single battles, clear verdicts as three
    battles of their own.

    v0.1 resamples the battles of all models together (seed 42, 95 %, as pandas draws); v2.0 each
    model's alone, reports the mean over the resamples and the 5th and 95th percentiles, that is 90
    % (its seed is not fixed; 42 here).
    """
    if all(g.category == "" for g in models):
        owner = np.concatenate([np.full(int(g.weight.sum()), i) for i, g in enumerate(models)])
        won = np.concatenate([np.repeat(g.outcome, g.weight.astype(int)) for g in models])
        legacy = np.random.RandomState(42)
        draws = np.empty((rounds, len(models)))
        for r in range(rounds):
            drawn = legacy.choice(len(won), size=len(won), replace=True)
            count = np.bincount(owner[drawn], minlength=len(models))
            draws[r] = (
                100
                * np.bincount(owner[drawn], weights=won[drawn], minlength=len(models))
                / np.maximum(count, 1)
            )
        return [
            stats.Interval(
                score(g),
                float(d.std(ddof=1)),
                *stats.percentiles(d),
                math.inf,
                len(set(g.questions)),
            )
            for g, d in zip(models, draws.T, strict=True)
        ]
    rng = np.random.default_rng(42)
    found = []
    for g in models:
        won = np.repeat(g.outcome, g.weight.astype(int))
        d = 100 * won[rng.integers(0, len(won), size=(rounds, len(won)))].mean(axis=1)
        found.append(
            stats.Interval(
                float(d.mean()),
                float(d.std(ddof=1)),
                *stats.percentiles(d, 0.9),
                math.inf,
                len(set(g.questions)),
            )
        )
    return found
