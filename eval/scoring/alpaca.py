"""AlpacaEval 2: from judgments to win rates. The length-controlled win rate is in
eval/scoring/length_control.py.

A judgment's `preference` is 1 where the baseline (output_1) wins and 2 where the model (output_2)
does, soft values between; old files hold 0 for a tie. What the official table calls `win_rate` and
so on is computed exactly as alpaca_eval 0.6.6 does (metrics/helpers.py).
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.errors import UserError, brief
from eval.prompt_sets.records import records
from eval.scoring.stored import Row, numbered
from eval.stats import Floats

BASELINE = "gpt4_1106_preview"
"""The only baseline for which AlpacaEval publishes length-controlled win rates."""


@dataclass(frozen=True)
class Judged:
    """All judgments of one model against one baseline, in the order of the file; arrays of shape
    (n,)."""

    model: str
    baseline: str
    instructions: list[str]
    # 1 (the baseline wins) to 2 (the model wins); nan where unjudged or out of that range
    preference: Floats
    length: Floats  # characters of the model's answer; nan where there is none
    baseline_length: Floats
    judges: tuple[str, ...] = ()
    """The annotators, as far as the rows name them."""

    @property
    def comparable(self) -> npt.NDArray[np.bool_]:
        """Which judgments length control can use: those with a preference and both texts."""
        known = [self.preference, self.length, self.baseline_length]
        return np.asarray(np.isfinite(known).all(axis=0))

    def take(self, index: npt.NDArray[np.bool_] | Sequence[int]) -> Judged:
        """The judgments at these positions (a mask or a list of positions)."""
        chosen = np.arange(len(self.instructions))[index]
        return Judged(
            self.model,
            self.baseline,
            [self.instructions[i] for i in chosen],
            self.preference[chosen],
            self.length[chosen],
            self.baseline_length[chosen],
            self.judges,
        )


def judged(rows: Iterable[Row], where: str = "annotations") -> list[Judged]:
    """AlpacaEval annotations (dicts with instruction, output_1, output_2, generator_1, generator_2,
    preference) as arrays, one `Judged` a model.

    Rows of several models may be mixed. Raises UserError, naming `where` and the row, for a missing
    field, a preference that is no number, two baselines for one model, or an instruction judged
    twice for one model.
    """
    models: dict[str, list[Row]] = {}
    for place, row in numbered(rows, where):
        _check(row, place)
        models.setdefault(row["generator_2"], []).append(row)
    return [_of_model(model, own, where) for model, own in models.items()]


def _check(row: Row, place: str) -> None:
    for name in ("instruction", "generator_1", "generator_2"):
        if not isinstance(row.get(name), str):
            raise UserError(
                f"{place}: no {name}; an annotation needs instruction, generator_1, generator_2 "
                "and preference."
            )
    preference = row.get("preference")
    number = type(preference) in (int, float, type(None))
    beyond = isinstance(preference, int) and abs(preference) > sys.float_info.max
    if not number or beyond:
        raise UserError(
            f"{place}: the preference {brief(preference)} is not a number from 1 to 2 "
            "(or null where unjudged)."
        )


def _of_model(model: str, rows: Sequence[Row], where: str) -> Judged:
    """One model's rows as arrays."""
    baselines = sorted({row["generator_1"] for row in rows})
    if len(baselines) > 1:
        raise UserError(
            f"{where}: {model} is compared with {baselines[0]} and with {baselines[1]}; "
            "score one baseline at a time."
        )
    instructions = [row["instruction"] for row in rows]
    text, times = Counter(instructions).most_common(1)[0]
    if times > 1:
        raise UserError(
            f"{where}: {model} has two judgments of the instruction {text[:60]!r}; keep one."
        )
    preference = np.array([row.get("preference") for row in rows], dtype=np.float64)
    preference[preference == 0] = 1.5  # how old files write a tie
    preference[~((preference >= 1) & (preference <= 2))] = np.nan
    preference[[not _answered(row) for row in rows]] = np.nan
    length, baseline_length = (_characters(rows, output) for output in ("output_2", "output_1"))
    annotators = [row["annotator"] for row in rows if isinstance(row.get("annotator"), str)]
    judges = tuple(dict.fromkeys(annotators))
    return Judged(model, baselines[0], instructions, preference, length, baseline_length, judges)


def _answered(row: Row) -> bool:
    """Whether both answers are texts, as far as the row has them: nobody can have preferred an
    answer that is null or a number."""
    return all(isinstance(row.get(output, ""), str) for output in ("output_1", "output_2"))


def _characters(rows: Sequence[Row], output: str) -> Floats:
    texts = [row.get(output) for row in rows]
    return np.array([len(text) if isinstance(text, str) else math.nan for text in texts])


def read(path: Path) -> list[Judged]:
    """`judged` of an annotation file (.json, .jsonl, .gz too). Raises UserError also for one that
    holds no annotation."""
    models = judged((row for _, row in records(path)), str(path))
    if not models:
        raise UserError(f"{path} holds no annotations.")
    return models


def win_rate(model: Judged) -> dict[str, Any]:
    """The official table's figures over valid judgments, in percent: win_rate, its standard_error,
    counts, discrete_win_rate, avg_length.

    `n_total` counts valid judgments only; `n_unjudged`, ours, counts the others. With no valid
    judgment the figures are None.
    """
    valid = model.preference[~np.isnan(model.preference)]
    answered = model.length[~np.isnan(model.length)]
    n = len(valid)
    wins = int((valid > 1.5).sum())
    draws = int((valid == 1.5).sum())
    figures: dict[str, Any] = {
        "win_rate": None,
        "standard_error": None,
        "n_wins": wins,
        "n_wins_base": n - wins - draws,
        "n_draws": draws,
        "n_total": n,
        "discrete_win_rate": None,
        "avg_length": None,
        "n_unjudged": len(model.preference) - n,
    }
    if n:
        figures["win_rate"] = 100 * float(valid.mean() - 1)
        figures["discrete_win_rate"] = 100 * (wins + draws / 2) / n
    if n > 1:
        figures["standard_error"] = 100 * float(valid.std(ddof=1)) / math.sqrt(n)
    if len(answered):
        figures["avg_length"] = int(answered.mean())
    return figures
