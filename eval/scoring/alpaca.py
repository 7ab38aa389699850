"""AlpacaEval 2: from judgments to win rates. The length-controlled win rate is in
eval/scoring/length_control.py.

A judgment's `preference` is 1 where the baseline (output_1) wins and 2 where the model (output_2)
does, soft values between; old files hold 0 for a tie. What the official table calls `win_rate` and
so on is computed exactly as alpaca_eval 0.6.6 does (metrics/helpers.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.errors import UserError
from eval import stats
from eval.prompt_sets.prompts import records

BASELINE = "gpt4_1106_preview"
"""The only baseline for which AlpacaEval publishes length-controlled win rates."""


@dataclass(frozen=True)
class Judged:
    """All judgments of one model against one baseline, in the order of the file; arrays of shape
    (n,)."""

    model: str
    baseline: str
    instructions: list[str]
    preference: (
        stats.Floats
    )  # 1 (the baseline wins) to 2 (the model wins); nan where unjudged or out of that range
    length: stats.Floats  # characters of the model's answer; nan where there is none
    baseline_length: stats.Floats

    def take(self, index: npt.NDArray[np.bool_] | Sequence[int]) -> Judged:
        """The judgments at these positions (a mask or a list of positions)."""
        chosen = np.arange(len(self.instructions))[index]
        names = [self.instructions[i] for i in chosen]
        return Judged(
            self.model,
            self.baseline,
            names,
            self.preference[chosen],
            self.length[chosen],
            self.baseline_length[chosen],
        )


def judged(rows: Iterable[Mapping[str, Any]], where: str = "annotations") -> list[Judged]:
    """AlpacaEval annotations (dicts with instruction, output_1, output_2, generator_1, generator_2,
    preference) as arrays, one `Judged` a model.

    Rows of several models may be mixed. Raises UserError, naming `where` and the row, for a missing
    field, a preference that is no number, two baselines for one model, or an instruction judged
    twice for one model.
    """
    models: dict[str, list[Mapping[str, Any]]] = {}
    for number, row in enumerate(rows, 1):
        for name in ("instruction", "generator_1", "generator_2"):
            if not isinstance(row.get(name), str):
                raise UserError(
                    f"{where}, row {number}: no {name}; an annotation needs instruction, generator_1, generator_2 and preference."
                )
        preference = row.get("preference")
        if preference is not None and (
            isinstance(preference, (bool, str)) or not isinstance(preference, (int, float))
        ):
            raise UserError(
                f"{where}, row {number}: the preference {preference!r} is not a number from 1 to 2 (or null where unjudged)."
            )
        models.setdefault(row["generator_2"], []).append(row)
    found = []
    for model, own in models.items():
        baselines = sorted({row["generator_1"] for row in own})
        if len(baselines) > 1:
            raise UserError(
                f"{where}: {model} is compared with {baselines[0]} and with {baselines[1]}; score one baseline at a time."
            )
        instructions = [row["instruction"] for row in own]
        if len(set(instructions)) < len(instructions):
            twice = next(text for i, text in enumerate(instructions) if text in instructions[:i])
            raise UserError(
                f"{where}: {model} has two judgments of the instruction {twice[:60]!r}; keep one."
            )
        preference = np.array(
            [math.nan if row.get("preference") is None else row["preference"] for row in own],
            dtype=np.float64,
        )
        preference[preference == 0] = 1.5
        preference[~((preference >= 1) & (preference <= 2))] = np.nan
        lengths = [
            [len(row[k]) if isinstance(row.get(k), str) else math.nan for row in own]
            for k in ("output_1", "output_2")
        ]
        found.append(
            Judged(
                model,
                baselines[0],
                instructions,
                preference,
                np.array(lengths[1]),
                np.array(lengths[0]),
            )
        )
    return found


def read(path: Path) -> list[Judged]:
    """`judged` of an annotation file (.json, .jsonl, .gz too)."""
    return judged((row for _, row in records(path)), str(path))


def win_rate(model: Judged) -> dict[str, Any]:
    """The official table's figures over valid judgments, in percent: win_rate, its standard_error,
    counts, discrete_win_rate, avg_length.

    `n_total` counts valid judgments only; `n_unjudged`, ours, counts the others. With no valid
    judgment the figures are None.
    """
    valid = model.preference[~np.isnan(model.preference)]
    n = len(valid)
    wins, losses, draws = (
        int((valid > 1.5).sum()),
        int((valid < 1.5).sum()),
        int((valid == 1.5).sum()),
    )
    answered = model.length[~np.isnan(model.length)]
    return {
        "win_rate": 100 * float(valid.mean() - 1) if n else None,
        "standard_error": 100 * float(valid.std(ddof=1)) / math.sqrt(n) if n > 1 else None,
        "n_wins": wins,
        "n_wins_base": losses,
        "n_draws": draws,
        "n_total": n,
        "discrete_win_rate": 100 * (wins + draws / 2) / n if n else None,
        "avg_length": int(answered.mean()) if len(answered) else None,
        "n_unjudged": len(model.preference) - n,
    }
