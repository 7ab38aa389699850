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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError, json_kind
from eval import stats
from eval.judging import verdicts
from eval.prompt_sets.records import located
from eval.scoring.stored import Row
from eval.stats import Floats

WEIGHT = 3
"""How often a clear verdict (A>>B, B>>A) counts."""
V01_BASELINE = "gpt-4-0314"
ROUNDS = 100
"""Resamples of the official interval."""

_OUTCOMES = {
    "A>>B": (1.0, WEIGHT),
    "A>B": (1.0, 1),
    "A=B": (0.5, 1),
    "B>A": (0.0, 1),
    "B>>A": (0.0, WEIGHT),
}
"""For the first answer shown: outcome and weight of each label."""
_WINNERS = {
    "model_a": 1.0,
    "model_b": 0.0,
    "tie": 0.5,
    "tie (bothbad)": 0.5,
}

Outcome = tuple[str, float, float]
"""One judged game: its question, the outcome for the model, its weight."""


@dataclass(frozen=True)
class Games:
    """All judged games of one model against one baseline in one category; arrays of shape (n,), one
    entry a game (or battle)."""

    model: str
    baseline: str
    category: str  # "" where the benchmark has none
    judges: tuple[str, ...]
    questions: list[str]
    outcome: Floats  # 1: the model wins, 0.5, 0
    weight: Floats
    unjudged: int  # games without a usable verdict, which count nowhere

    @property
    def asked(self) -> int:
        """How many questions have a judged game."""
        return len(set(self.questions))

    def by_question(self, values: Floats) -> Floats:
        """Sums of per-game values over each question, in the questions' sorted order."""
        _, index = np.unique(self.questions, return_inverse=True)
        return np.bincount(index, weights=values).astype(np.float64)


@dataclass
class _Pile:
    """The games of one model in one category, while files are read."""

    model: str
    category: str
    baseline: str
    judges: list[str] = field(default_factory=list)
    known: set[tuple[str, str]] = field(default_factory=set)  # (question, judge) of judgments
    outcomes: list[Outcome] = field(default_factory=list)
    unjudged: int = 0

    def games(self) -> Games:
        columns = arrays(self.outcomes)
        judges = tuple(self.judges)
        return Games(self.model, self.baseline, self.category, judges, *columns, self.unjudged)


def arrays(outcomes: Sequence[Outcome]) -> tuple[list[str], Floats, Floats]:
    """Questions, outcomes and weights, as `Games` has them."""
    won = np.array([outcome for _, outcome, _ in outcomes], dtype=np.float64)
    weight = np.array([weight for _, _, weight in outcomes], dtype=np.float64)
    return [question for question, _, _ in outcomes], won, weight


def outcome(label: str, *, model_first: bool) -> tuple[float, int]:
    """(outcome for the model, weight) of one game's label. Raises KeyError for a label that is none
    of the five."""
    won, weight = _OUTCOMES[label]
    return (won if model_first else 1 - won), weight


def read(paths: Iterable[Path]) -> list[Games]:
    """Battles (question_id, model_a, model_b, winner; weights already expanded) and judgments
    (question_id or uid, model, games) of many files.

    Several judges' judgments of one question are pooled. Raises UserError, naming file and record,
    for what is neither form, an unknown winner, and a question judged twice by one judge.
    """
    battles: list[tuple[str, Row]] = []
    piles: dict[tuple[str, str], _Pile] = {}
    for where, record in chain.from_iterable(map(_some, paths)):
        if "winner" in record:
            battles.append((where, record))
        elif {"games", "model"} <= record.keys() and {"uid", "question_id"} & record.keys():
            _add_judgment(record, where, piles)
        else:
            raise UserError(
                f"{where}: neither a battle (question_id, model_a, model_b, winner) "
                "nor a judgment (question_id or uid, model, games)."
            )
    judged = [pile.games() for pile in piles.values()]
    return judged + (_battles(battles) if battles else [])


def _some(path: Path) -> Iterator[tuple[str, Row]]:
    """The records of a file. Raises UserError where there is none."""
    found = 0
    for each in located(path):
        found += 1
        yield each
    if not found:
        raise UserError(f"{path} holds no judgments.")


def _add_judgment(record: Row, where: str, piles: dict[tuple[str, str], _Pile]) -> None:
    """Put the two games of one judgment on the pile of its model and category."""
    version = "v2.0" if "uid" in record else "v0.1"
    question = str(record.get("uid", record.get("question_id")))
    model = str(record["model"])
    category = str(record.get("category") or "")
    judge = str(record.get("judge", ""))
    baseline = str(record.get("baseline") or (V01_BASELINE if version == "v0.1" else ""))
    pile = piles.setdefault((model, category), _Pile(model, category, baseline))
    if (question, judge) in pile.known:
        raise UserError(
            f"{where}: a second judgment of question {question} for {model} "
            f"by {judge or 'the same judge'}; keep one."
        )
    pile.known.add((question, judge))
    if judge not in pile.judges:
        pile.judges.append(judge)
    if not isinstance(record["games"], list):
        raise UserError(f"{where}: `games` is {json_kind(record['games'])}; it is a list of two.")
    labels = [_label(game, version, where) for game in record["games"]]
    if len(labels) != 2:
        raise UserError(
            f"{where}: {len(labels)} games; Arena-Hard judges two, "
            "the baseline first and then the model first."
        )
    if version == "v2.0" and None in labels:  # the official rule: half a question counts as none
        labels = [None, None]
    for label, model_first in zip(labels, (False, True), strict=True):
        if label is None:
            pile.unjudged += 1
        else:
            pile.outcomes.append((question, *outcome(label, model_first=model_first)))


def _label(game: Any, version: str, where: str) -> str | None:
    """The stored verdict of one game, or the one that its text holds where none was stored."""
    if game is None:
        return None
    if not isinstance(game, dict):
        raise UserError(f"{where}: a game is {json_kind(game)}; it is an object with a score.")
    if "score" in game:
        label = game["score"]
    else:
        label = verdicts.PARSE[version](str(game.get("judgment", "")))
    if label is None:
        return None
    if not isinstance(label, str):
        raise UserError(
            f"{where}: the verdict {label!r} is no label; "
            f"it is one of {', '.join(_OUTCOMES)}, or null."
        )
    # "B<<A" says what "A>>B" says.
    label = label if label in _OUTCOMES else label[::-1].replace("<", ">")
    # A judge that writes [[A]] matches both official patterns: v0.1 then gives the game no weight,
    # v2.0 fails with a KeyError.
    return label if label in _OUTCOMES else None


def _battles(battles: Sequence[tuple[str, Row]]) -> list[Games]:
    """Battles by model; the baseline is the one that takes part in every battle (of two, the one
    that is model_a more often)."""
    for where, battle in battles:
        if not {"model_a", "model_b"} <= battle.keys():
            raise UserError(f"{where}: a battle needs model_a and model_b, the two that met.")
    players = [{str(b["model_a"]), str(b["model_b"])} for _, b in battles]
    common = set.intersection(*players)
    if not common:
        raise UserError(
            "the battles share no baseline: Arena-Hard compares every model with one and the same; "
            "score its files only."
        )
    firsts = Counter(str(battle["model_a"]) for _, battle in battles)
    baseline = max(sorted(common), key=lambda name: firsts[name])
    piles: dict[str, _Pile] = {}
    for where, battle in battles:
        if not isinstance(battle["winner"], str) or battle["winner"] not in _WINNERS:
            raise UserError(
                f"{where}: the winner {battle['winner']!r} is none of {', '.join(_WINNERS)}."
            )
        if "question_id" not in battle:
            raise UserError(
                f"{where}: no question_id, which tells the games of one question apart "
                "from those of another."
            )
        won = _WINNERS[battle["winner"]]
        model = str(battle["model_a"])
        if str(battle["model_a"]) == baseline:
            # Also where the baseline meets itself: the second place is the model's.
            won = 1 - won
            model = str(battle["model_b"])
        pile = piles.setdefault(model, _Pile(model, "", baseline))
        pile.outcomes.append((str(battle["question_id"]), won, 1))
    return [pile.games() for pile in piles.values()]


def score(games: Games) -> float:
    """The Bradley-Terry win rate against the baseline, in percent (nan without a judged game)."""
    if not len(games.outcome):
        return math.nan
    return 100 * float(games.weight @ games.outcome / games.weight.sum())


def items(games: Games) -> dict[str, float]:
    """By question: values whose mean is the score and whose spread is its error (the ratio
    estimator made linear), in percent; none without a judged game.

    A question's weight depends on its verdicts, so the score is no plain mean of its questions'
    scores; these values may be paired and clustered like any other.
    """
    labels = np.unique(games.questions).tolist()
    # How far a question pulls the score from where it is: the derivative of the ratio.
    distance = games.weight * (100 * games.outcome - score(games))
    pull = games.by_question(distance) / games.weight.sum()
    values = score(games) + len(labels) * pull
    return dict(zip(labels, values.tolist(), strict=True))


def interval(games: Games, *, resamples: int = 10_000) -> stats.Interval:
    """Score with the standard error and percentile interval of a bootstrap over questions; with
    fewer than stats.MINIMUM_CLUSTERS questions the t interval of `items`. `n` counts questions."""
    n = games.asked
    if n == 0:
        return stats.NOTHING
    if n < stats.MINIMUM_CLUSTERS:
        return stats.mean_interval(list(items(games).values()))
    won = games.by_question(games.weight * games.outcome)
    weight = games.by_question(games.weight)
    resampled = stats.bootstrap_counts(n, resamples, seed=0)
    draws = 100 * np.concatenate([(w @ won) / (w @ weight) for w in resampled])
    return stats.draws_interval(score(games), draws, n - 1, n)


def official_intervals(models: Sequence[Games]) -> list[stats.Interval]:
    """The published kind of interval: `ROUNDS` resamples of single battles, clear verdicts as three
    battles of their own.

    v0.1 resamples the battles of all models together (seed 42, 95 %, as pandas draws); v2.0 each
    model's alone, reports the mean over the resamples and the 5th and 95th percentiles, that is 90
    % (its seed is not fixed; 42 here).
    """
    battles = [np.repeat(games.outcome, games.weight.astype(int)) for games in models]
    if all(games.category == "" for games in models):
        draws = _pooled_draws(battles)
        return [
            stats.draws_interval(score(games), own, math.inf, games.asked)
            for games, own in zip(models, draws.T, strict=True)
        ]
    rng = np.random.default_rng(42)
    intervals = []
    for games, won in zip(models, battles, strict=True):
        n = len(won)
        drawn = rng.integers(0, n, size=(ROUNDS, n))
        own = 100 * won[drawn].mean(axis=1)
        intervals.append(
            stats.draws_interval(float(own.mean()), own, math.inf, games.asked, level=0.9)
        )
    return intervals


def _pooled_draws(battles: Sequence[Floats]) -> Floats:
    """Scores (ROUNDS, models) of resamples of all models' battles together, in which a model's
    number of battles varies too."""
    models = len(battles)
    owner = np.repeat(np.arange(models), [len(own) for own in battles])
    won = np.concatenate(battles)
    legacy = np.random.RandomState(42)  # pandas draws by it
    draws = np.empty((ROUNDS, models))
    for r in range(ROUNDS):
        drawn = legacy.choice(len(won), size=len(won), replace=True)
        count = np.bincount(owner[drawn], minlength=models)
        wins = np.bincount(owner[drawn], weights=won[drawn], minlength=models)
        draws[r] = 100 * wins / np.maximum(count, 1)
    return draws
