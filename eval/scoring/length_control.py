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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from core.errors import UserError, first_line
from eval import stats
from eval.prompt_sets.prompts import HUB, download, text_id
from eval.prompt_sets.records import records
from eval.scoring.alpaca import BASELINE, Judged
from eval.scoring.logistic import Features, fit
from eval.stats import Floats

CS = np.logspace(-4, 4, 10)
"""The official grid of C."""
DEFAULT_C = float(CS[5])
"""2.78: of the grid's values the one that cross-validation chooses most often on published models
(9 of 12 checked; 21.5 for most others). Fixing it removes what made the official value depend on
the library's version; the next value up changes a score by 0.1 at most."""
GAMED_WEIGHT = 0.1
"""Weight of one gamed row: regularize_to_baseline_lambda / 2."""

_OUTPUTS = "*.json*"
_PATTERNS = {
    "instruction_difficulty*.csv": "instruction_difficulty*.csv",
    "df_gamed*.csv": "df_gamed*.csv",
    _OUTPUTS: "the baseline's outputs (a .json list with instruction and output)",
}
"""The three files of a folder of AlpacaEval's tables, and what an error calls them."""

Gamed = tuple[Floats, Floats, Floats]
"""Length term (tanh of the standardised length difference), difficulty and preference (0..1) of the
gamed rows, each (m,)."""


@dataclass(frozen=True)
class Reference:
    """What AlpacaEval publishes beside its prompts: difficulties (by position and by instruction)
    and the gamed rows."""

    positions: Floats  # difficulty by position, 0..804
    difficulty: dict[str, float]  # by instruction
    gamed: Gamed


@dataclass(frozen=True)
class Design:
    """The regression of one model: own rows (n,) and, where they apply, the gamed rows. `minimal`:
    no difficulty, no gamed rows."""

    delta: Floats  # baseline's length - model's length, characters
    difficulty: Floats
    preference: Floats  # 0..1
    gamed: Gamed

    @property
    def minimal(self) -> bool:
        """Whether this is the form for other prompts and baselines."""
        return len(self.gamed[0]) == 0

    @property
    def metric(self) -> str:
        """What its score is called: the minimal form is not AlpacaEval's figure."""
        return "length_controlled_minimal" if self.minimal else "length_controlled_winrate"


def load_reference(data: Path | None) -> Reference:
    """Difficulties and gamed rows from a folder with `instruction_difficulty*.csv`, `df_gamed*.csv`
    and the baseline's outputs, else the hub.

    The order of the baseline's outputs is the position that both tables refer to. Raises UserError
    naming what is missing.
    """
    difficulties, gamed_rows, outputs = tables(data)
    positions = _positions(difficulties)
    instructions = [str(row.get("instruction")) for _, row in records(outputs)]
    if len(instructions) != len(positions):
        raise UserError(
            f"{outputs} has {len(instructions)} outputs but {difficulties} has {len(positions)} "
            "difficulties; they must be one set."
        )
    gamed = _table(gamed_rows, _GAMED)
    length, difficulty, preference = (gamed[column].to_numpy() for column in _GAMED)
    by_instruction = dict(zip(instructions, positions.tolist(), strict=True))
    return Reference(positions, by_instruction, (np.tanh(length), difficulty, preference))


_GAMED = ("std_delta_len", "instruction_difficulty", "preference")


def _positions(path: Path) -> Floats:
    """The difficulty at each position of AlpacaEval's outputs; nan where there is none."""
    table = _table(path, ())
    places = table.to_series(0).to_list()
    whole = all(isinstance(place, int) and 0 <= place < _MOST for place in places)
    if not places or not whole or len(table.columns) < 2 or not table.dtypes[1].is_numeric():
        raise UserError(f"{path} is no table of positions and difficulties; get it again.")
    positions = np.full(max(places) + 1, np.nan)
    positions[places] = table.to_series(1).cast(pl.Float64).fill_null(np.nan).to_numpy()
    return positions


_MOST = 1_000_000
"""More instructions than any set of AlpacaEval's has."""


def _table(path: Path, numbers: Sequence[str]) -> pl.DataFrame:
    """A CSV file. Raises UserError where it cannot be read, or lacks one of these columns of
    numbers."""
    try:
        table = pl.read_csv(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as CSV ({first_line(error)}); get it again."
        ) from error
    for name in numbers:
        if name not in table.columns or not table[name].dtype.is_numeric():
            raise UserError(f"{path} has no column of numbers `{name}`; get it again.")
    return table


def tables(data: Path | None, *, fetch: bool = True) -> tuple[Path, Path, Path]:
    """The files of difficulties, gamed rows and the baseline's outputs: of a folder, or (None) of
    the hub; with `fetch` false only from its cache. Raises UserError naming what is missing."""
    if data is None:
        repo, outputs = HUB["alpaca_eval"]
        names = ("instruction_difficulty.csv", "df_gamed.csv", outputs)
        first, second, third = (download(repo, name, fetch=fetch) for name in names)
    else:
        first, second, third = (_one(data, pattern) for pattern in _PATTERNS)
    return first, second, third


def misfit(data: Path, ids: Sequence[str], baseline: Mapping[str, str | None]) -> str:
    """Why the tables in a folder do not hold for prompts (by id) and a baseline's answers (by
    prompt's id); "" where they do."""
    reference = load_reference(data)
    known = {text_id(text) for text in reference.difficulty}
    strange = [name for name in ids if name not in known]
    if strange:
        return (
            f"{len(strange)} of its {len(ids)} prompts are none of AlpacaEval's (the first: "
            f"{strange[0]})"
        )
    outputs = tables(data)[2]
    published = {text_id(row["instruction"]): row["output"] for _, row in records(outputs)}
    given = {name: text for name in ids if (text := baseline.get(name)) is not None}
    other = sum(text != published[name] for name, text in given.items())
    if other:
        return f"{other} of {len(given)} answers of its baseline are not {BASELINE}'s"
    return ""


def _one(folder: Path, pattern: str) -> Path:
    """The first file of a pattern; of JSON files only one that holds the baseline's outputs."""
    for path in sorted(folder.glob(pattern)):
        if pattern != _OUTPUTS or _is_outputs(path):
            return path
    raise UserError(
        f"{folder} lacks {_PATTERNS[pattern]}, which length control needs; "
        "download it from the hub's tatsu-lab/alpaca_eval."
    )


def _is_outputs(path: Path) -> bool:
    _, first = next(records(path), (0, {}))
    named = first.get("generator", BASELINE)
    return {"instruction", "output"} <= first.keys() and named == BASELINE


def design(model: Judged, reference: Reference | None) -> Design:
    """Our rules: judged rows only, difficulty joined by instruction; minimal without `reference` or
    where it does not cover the rows."""
    rows = model.take(model.comparable)
    delta = rows.baseline_length - rows.length
    preference = rows.preference - 1
    if reference is None or not covers(reference, model):
        none = np.empty(0)
        return Design(delta, np.zeros(len(delta)), preference, (none, none, none))
    joined = np.array([reference.difficulty[text] for text in rows.instructions])
    return Design(delta, joined, preference, reference.gamed)


def covers(reference: Reference, model: Judged) -> bool:
    """Whether AlpacaEval's length control is defined for these judgments: its own baseline, and
    none but its own instructions."""
    return model.baseline == BASELINE and reference.difficulty.keys() >= set(model.instructions)


def _problem(own: Design, counts: Floats | None = None) -> tuple[Features, Floats, Floats]:
    """Features, labels and weights of own and gamed rows; `counts` (B, n): how often each own row
    was drawn (the sd follows the draw)."""
    length, difficulty, preference = own.gamed
    n = len(own.delta)
    m = len(length)
    drawn = np.ones((1, n)) if counts is None else counts
    batch = len(drawn)
    total = drawn.sum(axis=1, keepdims=True)
    mean = (drawn * own.delta).sum(axis=1, keepdims=True) / total
    squares = drawn * (own.delta - mean) ** 2
    sd = np.sqrt(squares.sum(axis=1, keepdims=True) / (total - 1))
    # Answers of one length have no sd: their length term is 0 for all.
    scaled = np.divide(own.delta, sd, out=np.zeros((batch, n)), where=sd > 0)
    x = (
        np.hstack([np.tanh(scaled), np.broadcast_to(length, (batch, m))]),
        np.concatenate([own.difficulty, difficulty]),
        np.concatenate([np.ones(n), np.zeros(m)]),
    )
    weight = np.hstack([drawn, np.full((batch, m), GAMED_WEIGHT)])
    return x, np.concatenate([own.preference, preference]), weight


def _sigmoid(eta: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-eta)))


def _predictions(w: Floats, difficulty: Floats) -> Floats:
    """P(the model wins) at equal length (B, n)."""
    return _sigmoid(w[:, 1:2] * difficulty + w[:, 2:])


def point(own: Design) -> float:
    """The length-controlled win rate, in percent; there must be two judged rows at least."""
    w = fit(*_problem(own), DEFAULT_C)
    return 100 * float(_predictions(w, own.difficulty).mean())


def draws(own: Design, counts: Floats) -> Floats:
    """The score (B,) of resamples, refitted each: `counts` (B, n) says how often each row was
    drawn. Gamed rows are never resampled."""
    start = fit(*_problem(own), DEFAULT_C)[0]  # no resample's answer is far from it
    w = fit(*_problem(own, counts), DEFAULT_C, start)
    won = (counts * _predictions(w, own.difficulty)).sum(axis=1)
    return np.asarray(100 * won / counts.sum(axis=1))


def interval(own: Design, *, resamples: int = 1000) -> stats.Interval:
    """The score with the standard error and percentile interval of an instruction bootstrap. Raises
    UserError with too few instructions."""
    n = len(own.delta)
    batches = stats.bootstrap_counts(n, resamples, seed=0, batch=100)
    values = np.concatenate([draws(own, counts) for counts in batches])
    return stats.draws_interval(point(own), values, n - 1, n)


def items(own: Design) -> Floats:
    """What each judged row contributes to the score (n,), in percent: values whose mean is the
    score and whose spread is its error.

    They are score + n * the change of the score per unit of weight on that row (infinitesimal
    jackknife), so that a comparison can pair, cluster and resample them like any other per-item
    value without refitting.
    """
    x, y, weight = _problem(own)
    (w,) = fit(x, y, weight, DEFAULT_C)
    n = len(own.delta)
    rows = np.column_stack([x[0][0], x[1], x[2]])
    p = _sigmoid(rows @ w)
    information = weight[0] * p * (1 - p)
    curve = DEFAULT_C * (rows * information[:, None]).T @ rows
    predicted = _predictions(w[None], own.difficulty)[0]
    slope = predicted * (1 - predicted)
    # d(score)/dw; the length term is set to 0 in the score, so its coefficient moves nothing.
    features = np.column_stack([np.zeros(n), own.difficulty, np.ones(n)])
    gradient = (slope[:, None] * features).mean(axis=0)
    # A row pulls the coefficients by curve^-1 times its own gradient. A coefficient that the
    # penalty holds at 0 stays there, but for that of the model: a score of 50 would be certain.
    active = w != 0
    active[2] = True
    pull = np.zeros(3)
    among = np.ix_(active, active)
    pull[active] = np.linalg.solve(curve[among], gradient[active])
    own_rows = rows[:n]
    own_p = p[:n]
    residual = own_p - y[:n]
    pulled = own_rows @ pull
    mean = predicted.mean()
    change = (predicted - mean) / n - DEFAULT_C * pulled * residual
    # A row also moves the sd that scales every length term: d(score)/d(log sd) times d(log
    # sd)/d(weight of the row).
    length = own_rows[:, 0]
    bounded = np.clip(length, -1 + 1e-15, 1 - 1e-15)
    stretch = -np.arctanh(bounded) * (1 - length**2)
    moved = pull[0] * residual + w[0] * own_p * (1 - own_p) * pulled
    by_sd = -DEFAULT_C * stretch @ moved
    squares = (own.delta - own.delta.mean()) ** 2
    if squares.sum() > 0:
        share = n * squares / squares.sum()
        change += by_sd * (share - 1) / (2 * n)
    centred = change - change.mean()
    return np.asarray(100 * (mean + n * centred))


def official(model: Judged, reference: Reference) -> tuple[float, float]:
    """(length_controlled_winrate, lc_standard_error) by the official rules, in percent.

    Kept as they are: row i has the difficulty of position i; the sd is over all rows and the mean
    prediction too, judged or not. Raises UserError above 805 rows, where the official function
    raises KeyError.
    """
    n = len(model.instructions)
    if n > len(reference.positions):
        raise UserError(
            f"{model.model} has {n} rows; the official rules know {len(reference.positions)} "
            "positions."
        )
    length, gamed_difficulty, gamed_preference = reference.gamed
    m = len(length)
    difficulty = reference.positions[:n]
    delta = model.baseline_length - model.length
    spread = delta[~np.isnan(delta)].std(ddof=1)
    valid = model.comparable
    # Answers of one length (the baseline against itself) have no sd: their length term is 0.
    scaled = delta[valid] / spread if spread > 0 else np.zeros(valid.sum())
    y = np.concatenate([gamed_preference, model.preference[valid] - 1])
    is_own = np.arange(len(y)) >= m  # gamed rows first: their place decides the folds
    x = (
        np.concatenate([length, np.tanh(scaled)]),
        np.concatenate([gamed_difficulty, difficulty[valid]]),
        is_own.astype(np.float64),
    )
    weight = np.where(is_own, 1.0, GAMED_WEIGHT)
    w = fit(x, y, weight, cross_validated_c(x, y, weight))
    predicted = 100 * _predictions(w, difficulty)[0]
    error = predicted.std(ddof=1) / math.sqrt(n)
    return float(predicted.mean()), float(error)


def cross_validated_c(x: Features, y: Floats, weight: Floats, folds: int = 5) -> float:
    """The C of the official grid with the least held-out log loss; folds as scikit-learn 1.9's
    GroupKFold deals equal groups: from the last row."""
    fold = (len(y) - 1 - np.arange(len(y))) % folds
    held_out = fold == np.arange(folds)[:, None]  # (folds, n)
    # Every fold with every C at once: problem k * len(CS) + c leaves out fold k.
    training = np.repeat(weight * ~held_out, len(CS), axis=0)
    w = fit(x, y, training, np.tile(CS, folds))
    p = np.clip(_sigmoid(w @ np.stack(x)), 1e-15, 1 - 1e-15)
    likelihood = y * np.log(p) + (1 - y) * np.log(1 - p)
    loss = -(weight * likelihood)
    counted = np.repeat(held_out, len(CS), axis=0)
    means = (loss * counted).sum(axis=1) / counted.sum(axis=1)
    return float(CS[means.reshape(folds, -1).mean(axis=0).argmin()])
