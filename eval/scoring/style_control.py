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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError, nearest
from eval import stats
from eval.prompt_sets.prompts import records
from eval.scoring.arena import Games

FEATURES = ("tokens", "headers", "lists", "bold")
CONTROLS = {"length": [0], "markdown": [1, 2, 3]}
"""Which of `FEATURES` each control takes."""

_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_COUNTED = {
    "header_count": re.compile(r"^#{1,6}\s", re.MULTILINE),
    "list_count": re.compile(r"^[^\S\n]*(?:\d+\.|[-*+])\s", re.MULTILINE),
    "bold_count": re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
}

Styles = Mapping[str, Mapping[str, stats.Floats]]
"""Model -> question -> `FEATURES` (4,)."""


def count(text: str, tokens: int) -> stats.Floats:
    """`FEATURES` of one answer: its length in tokens as given, headers, list items and bold runs
    outside code blocks."""
    prose = _CODE.sub("", text)
    return np.array(
        [tokens, *(len(pattern.findall(prose)) for pattern in _COUNTED.values())], dtype=np.float64
    )


def read(paths: Iterable[Path]) -> dict[str, dict[str, stats.Floats]]:
    """`Styles` of Arena-Hard answer files (v0.1: question_id, model_id, choices; v2.0: uid, model,
    messages).

    Stored counts (`conv_metadata`, `metadata`) are taken as they are; without them they are counted
    from the text. Raises UserError where an answer has no number of tokens, which depends on a
    tokenizer that only its maker knows.
    """
    found: dict[str, dict[str, stats.Floats]] = {}
    for path in paths:
        for number, record in records(path):
            question, model = (
                record.get("uid", record.get("question_id")),
                record.get("model", record.get("model_id")),
            )
            meta, text, tokens = record.get("metadata") or record.get("conv_metadata"), "", None
            if meta is None and "choices" in record:
                turn = record["choices"][0]["turns"][-1]
                text, tokens = turn["content"], turn.get("token_len")
            if question is None or model is None or (meta is None and tokens is None):
                raise UserError(
                    f"{path}, record {number}: no style counts; an answer needs its id, its model and metadata, or token_len beside its text."
                )
            style = (
                np.array([_total(meta[k]) for k in ("token_len", *_COUNTED)])
                if meta is not None
                else count(text, int(tokens or 0))
            )
            found.setdefault(str(model).rsplit("/", 1)[-1], {})[str(question)] = style
    return found


def _total(value: Any) -> float:
    return float(sum(value.values()) if isinstance(value, dict) else value)


def differences(games: Sequence[Games], styles: Styles, *, densities: bool) -> stats.Floats:
    """Style differences model against baseline, one row (4,) a game over all `games`. Raises
    UserError where an answer's counts are missing."""
    rows = []
    for model in games:
        for question in model.questions:
            pair = []
            for name in (model.model, model.baseline):
                answers = styles.get(name.rsplit("/", 1)[-1])
                if answers is None:
                    raise UserError(
                        f"style control needs the answers of {name}{nearest(name, styles)}."
                    )
                if question not in answers:
                    raise UserError(
                        f"style control needs the answer of {name} to question {question}, which its file lacks."
                    )
                pair.append(answers[question])
            rows.append(pair)
    m, b = np.array(rows).transpose(1, 0, 2)
    if not densities:
        return np.asarray((m - b) / (m + b + 1))
    tokens = np.maximum(
        np.stack([m[:, 0], b[:, 0]]), 1
    )  # an empty answer has no tokens to divide by
    dense_m, dense_b = m[:, 1:] / tokens[0][:, None], b[:, 1:] / tokens[1][:, None]
    length = (tokens[0] - tokens[1]) / (tokens[0] + tokens[1])
    return np.column_stack([length, (dense_m - dense_b) / (dense_m + dense_b + 1)])


def scores(
    games: Sequence[Games],
    styles: Styles,
    *,
    control: Sequence[str] = ("length", "markdown"),
    compat: str | None = None,
    resamples: int = 300,
    seed: int = 0,
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
    columns = [c for name in control for c in CONTROLS[name]]
    diff = differences(games, styles, densities=v2)[:, columns]
    owner = np.concatenate([np.full(len(g.outcome), i) for i, g in enumerate(games)])
    outcome, weight = (
        np.concatenate([g.outcome for g in games]),
        np.concatenate([g.weight for g in games]),
    )
    mean = (weight @ diff) / weight.sum()
    spread = np.sqrt(weight @ (diff - mean) ** 2 / weight.sum())
    scaled = np.divide(
        diff - mean if official else diff, spread, out=np.zeros_like(diff), where=spread > 0
    )
    x = np.hstack([np.eye(len(games))[owner], scaled])
    penalty = np.full(
        x.shape[1], 1e-6
    )  # only so that a model which wins every battle has a finite strength
    if official and not v2:
        # scikit-learn's C = 1 on battles counted twice is half a unit here, with strengths in units
        # of log 10. The penalty makes the baseline's own strength count, so it gets a column.
        x = np.column_stack([x, -np.ones(len(x))])
        penalty = np.array(
            [0.5 / math.log(10) ** 2] * len(games)
            + [0.5] * len(columns)
            + [0.5 / math.log(10) ** 2]
        )
    start = _fit(x, outcome, weight, penalty)
    if official:
        rng = np.random.default_rng(42)
        battles = np.repeat(np.arange(len(outcome)), weight.astype(int))
        counts = (
            np.bincount(rng.choice(battles, len(battles)), minlength=len(outcome)).astype(
                np.float64
            )
            for _ in range(100)
        )
    else:
        labels, index = np.unique(np.concatenate([g.questions for g in games]), return_inverse=True)
        counts = (
            weight * w[index]
            for batch in stats.bootstrap_counts(len(labels), resamples, seed)
            for w in batch
        )
    draws = np.array([_fit(x, outcome, c, penalty, start) for c in counts])
    rates, (best,) = (_rates(w, len(games), official and not v2) for w in (draws, start[None]))
    rows = []
    for i, g in enumerate(games):
        value = float(np.median(rates[:, i]) if official and v2 else best[i])
        lower, upper = stats.percentiles(rates[:, i], 0.9 if official and v2 else 0.95)
        style = {
            FEATURES[c]: float(v)
            for c, v in zip(columns, start[len(games) : len(games) + len(columns)], strict=True)
        }
        rows.append(
            {
                "model": g.model,
                "score": value,
                "standard_error": float(rates[:, i].std(ddof=1)),
                "lower": lower,
                "upper": upper,
                "style": style,
            }
        )
    return rows


def _rates(w: stats.Floats, models: int, with_baseline: bool) -> stats.Floats:
    """Win rates in percent (R, models) at z = 0 from coefficients (R, …), whose last column is the
    baseline's strength if it has one."""
    strength = w[:, :models] - (w[:, -1:] if with_baseline else 0.0)
    return np.asarray(100 / (1 + np.exp(-strength)))


def _fit(
    x: stats.Floats,
    y: stats.Floats,
    weight: stats.Floats,
    penalty: stats.Floats,
    start: stats.Floats | None = None,
) -> stats.Floats:
    """Minimise the weighted log loss + penalty @ w^2 / 2 by Newton's method with halved steps;
    returns w (features,)."""
    used = weight > 0
    x, y, weight = x[used], y[used], weight[used]

    def loss(w: stats.Floats) -> float:
        eta = x @ w
        return float(weight @ (np.logaddexp(0, eta) - y * eta) + penalty @ w**2 / 2)

    w = np.zeros(x.shape[1]) if start is None else start
    value = loss(w)
    for _ in range(100):
        p = 1 / (1 + np.exp(-x @ w))
        slope = x.T @ (weight * (p - y)) + penalty * w
        step = np.linalg.solve(
            (x * (weight * p * (1 - p))[:, None]).T @ x + np.diag(penalty), slope
        )
        size = 1.0
        while (now := loss(w - size * step)) > value + 1e-10 and size > 1e-6:
            size /= 2
        w, value = w - size * step, now
        if abs(step).max() < 1e-8:
            break
    return w
