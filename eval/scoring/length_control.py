"""The length-controlled win rate of AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475), by a fit
of our own.

For one model: a logistic regression without intercept of the soft preference on
  tanh((baseline's length - model's length) / its sd),  in characters, sd with ddof 1, not centred;
  the instruction's difficulty, published for AlpacaEval's 805 instructions;
  1,
with 1,610 extra "gamed" rows of the baseline told to be verbose or concise (third feature 0, weight
0.1 each). The L1 penalty is on all three coefficients: minimise |w|_1 + C * weighted log loss. The
score is the mean prediction with the length term set to 0.

Two sets of rules. Ours (default): difficulty joined by instruction, C fixed at `DEFAULT_C`,
interval from instructions resampled with a refit each. Official (alpaca_eval 0.6.6,
metrics/glm_winrate.py): difficulty joined by row position, C by 5-fold cross-validation, standard
error that of the fitted probabilities alone. Other prompts or baselines have neither difficulty nor
gamed rows: "length_controlled_minimal".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from core.errors import UserError
from eval import stats
from eval.prompt_sets.prompts import HUB, download, records
from eval.scoring.alpaca import BASELINE, Judged
from eval.scoring.logistic import Features, fit

CS = np.logspace(-4, 4, 10)
"""The official grid of C."""
DEFAULT_C = float(CS[5])
"""2.78: of the grid's values the one that cross-validation chooses most often on published models
(9 of 12 checked; 21.5 for most others). Fixing it removes what made the official value depend on
the library's version; the next value up changes a score by 0.1 at most."""
GAMED_WEIGHT = 0.1
"""Weight of one gamed row: regularize_to_baseline_lambda / 2."""


@dataclass(frozen=True)
class Reference:
    """What AlpacaEval publishes beside its prompts: difficulties (by position and by instruction)
    and the gamed rows' columns (m,)."""

    positions: stats.Floats  # difficulty by position, 0..804
    difficulty: dict[str, float]  # by instruction
    length: stats.Floats  # tanh of the gamed rows' standardised length difference
    gamed_difficulty: stats.Floats
    preference: stats.Floats  # 0..1


@dataclass(frozen=True)
class Design:
    """The regression of one model: own rows (n,) and, where they apply, the gamed rows. `minimal`:
    no difficulty, no gamed rows."""

    delta: stats.Floats  # baseline's length - model's length, characters
    difficulty: stats.Floats
    preference: stats.Floats  # 0..1
    gamed: tuple[
        stats.Floats, stats.Floats, stats.Floats
    ]  # length term, difficulty, preference, each (m,)

    @property
    def minimal(self) -> bool:
        """Whether this is the form for other prompts and baselines."""
        return len(self.gamed[0]) == 0


def load_reference(data: Path | None) -> Reference:
    """Difficulties and gamed rows from a folder with `instruction_difficulty*.csv`, `df_gamed*.csv`
    and the baseline's outputs, else the hub.

    The order of the baseline's outputs is the position that both tables refer to. Raises UserError
    naming what is missing.
    """
    if data is None:
        repo, outputs = HUB["alpaca_eval"]
        tables = [
            download(repo, name) for name in ("instruction_difficulty.csv", "df_gamed.csv", outputs)
        ]
    else:
        tables = [
            _one(data, pattern)
            for pattern in ("instruction_difficulty*.csv", "df_gamed*.csv", "*.json*")
        ]
    by_position = pl.read_csv(tables[0])
    positions = np.full(int(by_position.to_series(0).max()) + 1, np.nan)  # type: ignore[arg-type]
    positions[by_position.to_series(0).to_numpy()] = by_position.to_series(1).to_numpy()
    instructions = [str(row["instruction"]) for _, row in records(tables[2])]
    if len(instructions) != len(positions):
        raise UserError(
            f"{tables[2]} has {len(instructions)} outputs but {tables[0]} has {len(positions)} difficulties; they must be one set."
        )
    gamed = pl.read_csv(tables[1])
    return Reference(
        positions,
        dict(zip(instructions, positions.tolist(), strict=True)),
        np.tanh(gamed["std_delta_len"].to_numpy()),
        gamed["instruction_difficulty"].to_numpy(),
        gamed["preference"].to_numpy(),
    )


def _one(folder: Path, pattern: str) -> Path:
    found = sorted(p for p in folder.glob(pattern) if pattern != "*.json*" or _is_outputs(p))
    if not found:
        what = (
            "the baseline's outputs (a .json list with instruction and output)"
            if pattern == "*.json*"
            else pattern
        )
        raise UserError(
            f"{folder} lacks {what}, which length control needs; download it from the hub's tatsu-lab/alpaca_eval."
        )
    return found[0]


def _is_outputs(path: Path) -> bool:
    _, first = next(records(path), (0, {}))
    return {"instruction", "output"} <= first.keys() and first.get(
        "generator", BASELINE
    ) == BASELINE


def design(model: Judged, reference: Reference | None) -> Design:
    """Our rules: judged rows only, difficulty joined by instruction; minimal without `reference` or
    where it does not cover the rows."""
    rows = _judged_rows(model)
    delta, preference = rows.baseline_length - rows.length, rows.preference - 1
    if reference is None or not covers(reference, model):
        return Design(
            delta, np.zeros(len(delta)), preference, (np.empty(0), np.empty(0), np.empty(0))
        )
    joined = np.array([reference.difficulty[text] for text in rows.instructions])
    return Design(
        delta,
        joined,
        preference,
        (reference.length, reference.gamed_difficulty, reference.preference),
    )


def _judged_rows(model: Judged) -> Judged:
    return model.take(
        ~np.isnan(model.preference) & ~np.isnan(model.length) & ~np.isnan(model.baseline_length)
    )


def covers(reference: Reference, model: Judged) -> bool:
    """Whether AlpacaEval's length control is defined for these judgments: its own baseline, and
    none but its own instructions."""
    return model.baseline == BASELINE and all(
        text in reference.difficulty for text in model.instructions
    )


def _problem(
    own: Design, counts: stats.Floats | None = None
) -> tuple[Features, stats.Floats, stats.Floats]:
    """Features, labels and weights of own and gamed rows; `counts` (B, n): how often each own row
    was drawn (the sd follows the draw)."""
    n, m = len(own.delta), len(own.gamed[0])
    drawn = np.ones((1, n)) if counts is None else counts
    total = drawn.sum(axis=1, keepdims=True)
    mean = (drawn * own.delta).sum(axis=1, keepdims=True) / total
    sd = np.sqrt((drawn * (own.delta - mean) ** 2).sum(axis=1, keepdims=True) / (total - 1))
    length = np.tanh(np.divide(own.delta, sd, out=np.zeros((len(drawn), n)), where=sd > 0))
    batch = len(drawn)
    x = (
        np.hstack([length, np.broadcast_to(own.gamed[0], (batch, m))]),
        np.concatenate([own.difficulty, own.gamed[1]]),
        np.concatenate([np.ones(n), np.zeros(m)]),
    )
    weight = np.hstack([drawn, np.full((batch, m), GAMED_WEIGHT)])
    return x, np.concatenate([own.preference, own.gamed[2]]), weight


def _predictions(w: stats.Floats, difficulty: stats.Floats) -> stats.Floats:
    """P(the model wins) at equal length (B, n)."""
    return np.asarray(1 / (1 + np.exp(-(w[:, 1:2] * difficulty + w[:, 2:]))))


def point(own: Design, c: float = DEFAULT_C) -> float:
    """The length-controlled win rate, in percent. Raises UserError below two judged rows."""
    if len(own.delta) < 2:
        raise UserError(
            f"length control needs at least 2 judged answers with their texts, there are {len(own.delta)}."
        )
    return 100 * float(_predictions(fit(*_problem(own), c), own.difficulty).mean())


def draws(own: Design, counts: stats.Floats, c: float = DEFAULT_C) -> stats.Floats:
    """The score (B,) of resamples, refitted each: `counts` (B, n) says how often each row was
    drawn. Gamed rows are never resampled."""
    w = fit(*_problem(own, counts), c, start=fit(*_problem(own), c)[0])
    return np.asarray(
        100 * (counts * _predictions(w, own.difficulty)).sum(axis=1) / counts.sum(axis=1)
    )


def interval(
    own: Design, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> stats.Interval:
    """The score with the standard error and percentile interval of an instruction bootstrap. Raises
    UserError with too few instructions."""
    value = point(own)
    values = np.concatenate(
        [
            draws(own, counts)
            for counts in stats.bootstrap_counts(len(own.delta), resamples, seed, batch=100)
        ]
    )
    lower, upper = stats.percentiles(values, level)
    return stats.Interval(
        value, float(values.std(ddof=1)), lower, upper, len(own.delta) - 1, len(own.delta)
    )


def joint_draws(
    models: list[Judged], reference: Reference | None, *, resamples: int = 1000, seed: int = 0
) -> stats.Floats:
    """Scores (resamples, models) under one joint resample of the instructions that all models were
    judged on, refitted for each model.

    The difference of two columns is the bootstrap distribution of those models' difference, prompts
    paired.
    """
    common = set.intersection(*(set(_judged_rows(m).instructions) for m in models))
    order = sorted(common)
    designs = []
    for model in models:
        place = {text: i for i, text in enumerate(model.instructions)}
        designs.append(design(model.take([place[text] for text in order]), reference))
    batches = stats.bootstrap_counts(len(order), resamples, seed, batch=100)
    return np.concatenate(
        [np.stack([draws(own, counts) for own in designs], axis=1) for counts in batches]
    )


def items(own: Design, c: float = DEFAULT_C) -> stats.Floats:
    """What each judged row contributes to the score (n,), in percent: values whose mean is the
    score and whose spread is its error.

    They are score + n * the change of the score per unit of weight on that row (infinitesimal
    jackknife), so that a comparison can pair, cluster and resample them like any other per-item
    value without refitting.
    """
    x, y, weight = _problem(own)
    w = fit(x, y, weight, c)
    n = len(own.delta)
    rows = np.stack([np.broadcast_to(np.atleast_2d(column)[0], y.shape) for column in x], axis=1)
    p = 1 / (1 + np.exp(-rows @ w[0]))
    active = w[0] != 0
    curve = c * (rows * (weight[0] * p * (1 - p))[:, None]).T @ rows
    predicted = _predictions(w, own.difficulty)[0]
    gradient = (
        (predicted * (1 - predicted))[:, None]
        * np.stack([np.zeros(n), own.difficulty, np.ones(n)], axis=1)
    ).mean(axis=0)
    pull = np.zeros(3)
    pull[active] = np.linalg.solve(curve[np.ix_(active, active)], gradient[active])
    change = (predicted - predicted.mean()) / n + c * (rows[:n] @ pull) * (y[:n] - p[:n])
    # A row also moves the sd that scales every length term: d(score)/d(log sd) times d(log
    # sd)/d(weight of the row).
    stretch = -np.arctanh(np.clip(rows[:n, 0], -1 + 1e-15, 1 - 1e-15)) * (1 - rows[:n, 0] ** 2)
    by_sd = (
        -c
        * stretch
        @ (pull[0] * (p[:n] - y[:n]) + w[0, 0] * p[:n] * (1 - p[:n]) * (rows[:n] @ pull))
    )
    centred = (own.delta - own.delta.mean()) ** 2
    if centred.sum() > 0:
        change += by_sd * (n * centred / centred.sum() - 1) / (2 * n)
    return np.asarray(100 * (predicted.mean() + n * (change - change.mean())))


def official(model: Judged, reference: Reference, c: float | None = None) -> tuple[float, float]:
    """(length_controlled_winrate, lc_standard_error) by the official rules, in percent. `c` skips
    the cross-validation.

    Kept as they are: row i has the difficulty of position i; the sd is over all rows and the mean
    prediction too, judged or not. Raises UserError above 805 rows, where the official function
    raises KeyError.
    """
    n = len(model.instructions)
    if n > len(reference.positions):
        raise UserError(
            f"{model.model} has {n} rows; the official rules know {len(reference.positions)} positions."
        )
    delta = model.baseline_length - model.length
    spread = delta[~np.isnan(delta)].std(ddof=1)
    valid = ~np.isnan(model.preference) & ~np.isnan(delta)
    gamed = (reference.length, reference.gamed_difficulty, reference.preference)
    m = len(gamed[0])
    difficulty = reference.positions[:n]
    x = (  # gamed rows first: their place decides the folds
        np.concatenate([gamed[0], np.tanh(delta[valid] / spread)]),
        np.concatenate([gamed[1], difficulty[valid]]),
        np.concatenate([np.zeros(m), np.ones(int(valid.sum()))]),
    )
    y = np.concatenate([gamed[2], model.preference[valid] - 1])
    weight = np.concatenate([np.full(m, GAMED_WEIGHT), np.ones(len(y) - m)])
    chosen = cross_validated_c(x, y, weight) if c is None else c
    predicted = 100 * _predictions(fit(x, y, weight, chosen), difficulty)[0]
    return float(predicted.mean()), float(predicted.std(ddof=1) / math.sqrt(n))


def cross_validated_c(x: Features, y: stats.Floats, weight: stats.Floats, folds: int = 5) -> float:
    """The C of the official grid with the least held-out log loss; folds as scikit-learn 1.9's
    GroupKFold deals equal groups: from the last row."""
    fold = (len(y) - 1 - np.arange(len(y))) % folds
    training = np.stack([weight * (fold != k) for k in range(folds)])
    w = fit(x, y, np.repeat(training, len(CS), axis=0), np.tile(CS, folds))
    eta = w @ np.stack(x)
    p = np.clip(1 / (1 + np.exp(-eta)), 1e-15, 1 - 1e-15)
    loss = -(weight * (y * np.log(p) + (1 - y) * np.log(1 - p)))
    held_out = np.repeat(np.stack([fold == k for k in range(folds)]), len(CS), axis=0)
    means = (loss * held_out).sum(axis=1) / held_out.sum(axis=1)
    return float(CS[means.reshape(folds, -1).mean(axis=0).argmin()])
