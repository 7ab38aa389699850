"""Arena-Hard with style control: what the score would be if both answers had the same length and
the same amount of markdown.

A Bradley-Terry regression over all models at once: one strength a model, shared coefficients of
four style differences (answer tokens, and counts of headers, lists and bold text outside code).
v0.1 compares counts, (m - b) / (m + b + 1); v2.0 compares tokens by (m - b) / (m + b) and the three
others per token, (m - b) / (m + b + 1). Sources: arena-hard-auto efc012e utils_math.py, 196f6b82
show_result.py.

What differs from the official fit (`compat="official"`): it centres the style differences over all
battles, so that a score means "at the average difference of whichever models are in the pool"; ours
only scales them, so 0 is "as long and as marked up as the baseline". And it cuts the wrong columns
for length or markdown alone (v2.0 keeps one column of the strengths, or drops one); here `control`
keeps the ones it names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError, nearest
from eval import stats
from eval.prompt_sets.records import located
from eval.scoring.arena import ROUNDS, Games
from eval.scoring.stored import Row, short_name
from eval.stats import Floats

FEATURES = ("tokens", "headers", "lists", "bold")
CONTROLS = {"length": [0], "markdown": [1, 2, 3]}
"""Which of `FEATURES` each control takes."""

_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_COUNTED = {
    "header_count": re.compile(r"^#{1,6}\s", re.MULTILINE),
    "list_count": re.compile(r"^[^\S\n]*(?:\d+\.|[-*+])\s", re.MULTILINE),
    "bold_count": re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
}

Styles = Mapping[str, Mapping[str, Floats]]
"""Model -> question -> `FEATURES` (4,)."""


def count(text: str, tokens: int) -> Floats:
    """`FEATURES` of one answer: its length in tokens as given, headers, list items and bold runs
    outside code blocks."""
    prose = _CODE.sub("", text)
    marks = [len(pattern.findall(prose)) for pattern in _COUNTED.values()]
    return np.array([tokens, *marks], dtype=np.float64)


def read(paths: Iterable[Path]) -> dict[str, dict[str, Floats]]:
    """`Styles` of Arena-Hard answer files (v0.1: question_id, model_id, choices; v2.0: uid, model,
    messages).

    Stored counts (`conv_metadata`, `metadata`) are taken as they are; without them they are counted
    from the text. Raises UserError where an answer has no number of tokens, which depends on a
    tokenizer that only its maker knows.
    """
    styles: dict[str, dict[str, Floats]] = {}
    for where, record in chain.from_iterable(map(located, paths)):
        question = record.get("uid", record.get("question_id"))
        model = record.get("model", record.get("model_id"))
        style = _style(record)
        if question is None or model is None or style is None:
            raise UserError(
                f"{where}: no style counts; an answer needs its id, its model and metadata, "
                "or token_len beside its text."
            )
        styles.setdefault(short_name(str(model)), {})[str(question)] = style
    return styles


def _style(record: Row) -> Floats | None:
    meta = record.get("metadata") or record.get("conv_metadata")
    if meta is not None:
        return np.array([_total(meta[name]) for name in ("token_len", *_COUNTED)])
    if "choices" not in record:
        return None
    turn = record["choices"][0]["turns"][-1]
    tokens = turn.get("token_len")
    return None if tokens is None else count(turn["content"], int(tokens))


def _total(value: Any) -> float:
    return float(sum(value.values()) if isinstance(value, dict) else value)


def differences(games: Sequence[Games], styles: Styles, *, densities: bool) -> Floats:
    """Style differences model against baseline, one row (4,) a game over all `games`. Raises
    UserError where an answer's counts are missing."""
    played = [(game, question) for game in games for question in game.questions]
    m = np.array([_known(styles, game.model, question) for game, question in played])
    b = np.array([_known(styles, game.baseline, question) for game, question in played])
    if not densities:
        return np.asarray((m - b) / (m + b + 1))
    # An empty answer has no tokens to divide by.
    m_tokens = np.maximum(m[:, :1], 1)
    b_tokens = np.maximum(b[:, :1], 1)
    length = (m_tokens - b_tokens) / (m_tokens + b_tokens)
    m_marks = m[:, 1:] / m_tokens
    b_marks = b[:, 1:] / b_tokens
    return np.hstack([length, (m_marks - b_marks) / (m_marks + b_marks + 1)])


def _known(styles: Styles, model: str, question: str) -> Floats:
    answers = styles.get(short_name(model))
    if answers is None:
        raise UserError(f"style control needs the answers of {model}{nearest(model, styles)}.")
    if question not in answers:
        raise UserError(
            f"style control needs the answer of {model} to question {question}, "
            "which its file lacks."
        )
    return answers[question]


@dataclass(frozen=True)
class _Regression:
    """Games as rows: a column of zeros and ones for each model, then the style differences."""

    x: Floats
    outcome: Floats
    weight: Floats
    penalty: Floats  # (columns,)

    def fit(self, weight: Floats, start: Floats | None = None) -> Floats:
        """Minimise the log loss weighted by `weight` + penalty @ w^2 / 2 by Newton's method with
        halved steps; returns w (columns,)."""
        used = weight > 0
        x = self.x[used]
        y = self.outcome[used]
        weight = weight[used]

        def loss(w: Floats) -> float:
            eta = x @ w
            losses = np.logaddexp(0, eta) - y * eta
            return float(weight @ losses + self.penalty @ w**2 / 2)

        w = np.zeros(x.shape[1]) if start is None else start
        value = loss(w)
        for _ in range(100):
            p = 1 / (1 + np.exp(-x @ w))
            slope = x.T @ (weight * (p - y)) + self.penalty * w
            information = weight * p * (1 - p)
            curve = (x * information[:, None]).T @ x + np.diag(self.penalty)
            step = np.linalg.solve(curve, slope)
            # The loss is convex, so a step that is short enough always lowers it.
            size = 1.0
            while (now := loss(w - size * step)) > value + 1e-10 and size > 1e-6:
                size /= 2
            w = w - size * step
            value = now
            if abs(step).max() < 1e-8:
                break
        return w


def scores(
    games: Sequence[Games],
    styles: Styles,
    *,
    control: Sequence[str] = ("length", "markdown"),
    compat: str | None = None,
    resamples: int = 300,
) -> list[dict[str, Any]]:
    """Style-controlled scores of the models of one category, fitted together; percent. One row a
    model: model, score, standard_error, lower, upper, and `style`, the coefficients of the
    controlled features per standard deviation of the difference.

    Intervals: 95 %, questions resampled (the same for all models) and everything refitted.
    `compat="official"`: v0.1 centres, has an L2 penalty of scikit-learn's default strength and
    resamples single battles; v2.0 centres, gives the median and the 5th and 95th percentiles of the
    resamples.
    """
    v2 = games[0].category != ""
    official = compat == "official"
    columns = [column for name in control for column in CONTROLS[name]]
    diff = differences(games, styles, densities=v2)[:, columns]
    baseline_has_strength = official and not v2
    problem = _regression(games, diff, official, baseline_has_strength)
    point = problem.fit(problem.weight)
    counts = _battle_counts(problem) if official else _question_counts(games, problem, resamples)
    draws = np.array([problem.fit(weight, point) for weight in counts])
    rates = _rates(np.vstack([point, draws]), len(games), baseline_has_strength)
    coefficients = point[len(games) : len(games) + len(columns)].tolist()
    style = dict(zip([FEATURES[column] for column in columns], coefficients, strict=True))
    rows = []
    for game, (best, *resampled) in zip(games, rates.T, strict=True):
        own = np.array(resampled)
        value = float(best)
        level = 0.95
        if official and v2:
            value = float(np.median(own))
            level = 0.9
        found = stats.draws_interval(value, own, math.inf, len(own), level)
        rows.append(
            {
                "model": game.model,
                "score": value,
                **found.bounds(),
                "style": dict(style),
            }
        )
    return rows


def _regression(
    games: Sequence[Games], diff: Floats, centred: bool, baseline_has_strength: bool
) -> _Regression:
    """The problem whose coefficients are the models' strengths and the style's; `diff` (n, style)
    is scaled to a standard deviation of 1, and to a mean of 0 where it is `centred`."""
    lengths = [len(game.outcome) for game in games]
    owner = np.repeat(np.arange(len(games)), lengths)
    outcome = np.concatenate([game.outcome for game in games])
    weight = np.concatenate([game.weight for game in games])
    mean = (weight @ diff) / weight.sum()
    spread = np.sqrt(weight @ (diff - mean) ** 2 / weight.sum())
    shifted = diff - mean if centred else diff
    scaled = np.divide(shifted, spread, out=np.zeros_like(diff), where=spread > 0)
    x = np.hstack([np.eye(len(games))[owner], scaled])
    # Only so that a model which wins every battle has a finite strength.
    penalty = np.full(x.shape[1], 1e-6)
    if baseline_has_strength:
        # scikit-learn's C = 1 on battles counted twice is half a unit here, with strengths in units
        # of log 10. The penalty makes the baseline's own strength count, so it gets a column.
        strength = 0.5 / math.log(10) ** 2
        x = np.column_stack([x, -np.ones(len(x))])
        penalty = np.full(x.shape[1], 0.5)
        penalty[: len(games)] = penalty[-1] = strength
    return _Regression(x, outcome, weight, penalty)


def _battle_counts(problem: _Regression) -> Iterator[Floats]:
    """Weights of the official resamples: single battles, a clear verdict being three."""
    rng = np.random.default_rng(42)
    n = len(problem.outcome)
    battles = np.repeat(np.arange(n), problem.weight.astype(int))
    for _ in range(ROUNDS):
        drawn = rng.choice(battles, len(battles))
        yield np.bincount(drawn, minlength=n).astype(np.float64)


def _question_counts(
    games: Sequence[Games], problem: _Regression, resamples: int
) -> Iterator[Floats]:
    """Weights of our resamples: whole questions, the same for all models."""
    questions = np.concatenate([game.questions for game in games])
    labels, index = np.unique(questions, return_inverse=True)
    for batch in stats.bootstrap_counts(len(labels), resamples, seed=0):
        for drawn in batch:
            yield problem.weight * drawn[index]


def _rates(w: Floats, models: int, with_baseline: bool) -> Floats:
    """Win rates in percent (R, models) at z = 0 from coefficients (R, …), whose last column is the
    baseline's strength if it has one."""
    strength = w[:, :models] - (w[:, -1:] if with_baseline else 0.0)
    return np.asarray(100 / (1 + np.exp(-strength)))
