"""Judgments of AlpacaEval, Arena-Hard and WildBench -> one value an item, by the rules that a
recipe's own judgments are scored by (eval/scoring/)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.errors import UserError
from eval import stats
from eval.files.parts import Part, frame
from eval.prompt_sets.prompts import text_id
from eval.scoring import alpaca, arena, length_control, wildbench
from eval.scoring.stored import short_name

HARD = ("", "hard_prompt")
"""Categories of Arena-Hard that are the benchmark itself; another is one of its own."""


@dataclass(frozen=True)
class LengthControl:
    """Whether AlpacaEval's win rate is also given at equal length, and where its published tables
    lie (None: the hub)."""

    wanted: bool = True
    data: Path | None = None


@dataclass(frozen=True)
class Judged:
    """The parts of some files, and what a reader must know beside them."""

    parts: list[Part]
    notes: list[str]


def of_alpaca(files: Sequence[Path], control: LengthControl) -> Judged:
    """The win rate of every model in annotation files, and, where it is wanted, at equal length: by
    AlpacaEval's published difficulties where they can be had and fit, else the minimal form."""
    models = [(path, model) for path in files for model in alpaca.read(path)]
    reference, notes = None, []
    if control.wanted and any(model.baseline == alpaca.BASELINE for _, model in models):
        try:
            reference = length_control.load_reference(control.data)
        except UserError as error:
            if control.data is not None:
                raise
            notes.append(
                "length_controlled_minimal stands beside the win rate in place of AlpacaEval's own "
                f"length-controlled win rate, which needs its tables (--data FOLDER): {error}"
            )
    parts: list[Part] = []
    for path, model in models:
        items = [text_id(text) for text in model.instructions]
        parts.append(_alpaca(path, model, "win_rate", items, 100 * (model.preference - 1)))
        if control.wanted and model.comparable.sum() >= stats.MINIMUM_CLUSTERS:
            design = length_control.design(model, reference)
            values = np.full(len(items), np.nan)
            values[model.comparable] = length_control.items(design)
            parts.append(_alpaca(path, model, design.metric, items, values))
    return Judged(parts, notes)


def _alpaca(
    path: Path, model: alpaca.Judged, metric: str, items: list[str], values: stats.Floats
) -> Part:
    name, rival = short_name(model.model), short_name(model.baseline)
    rows = frame(items, values.tolist())
    return Part(name, "alpaca", metric, rows, path, True, rival, model.judges)


def of_arena(files: Sequence[Path]) -> Judged:
    """One value a question of every model, whose mean is the Bradley-Terry score. The files are
    read together: several judges' judgments of one model are pooled."""
    parts, notes = [], []
    for games in arena.read(files):
        by_question = arena.items(games)
        if games.model == games.baseline:
            continue
        if not by_question:
            notes.append(f"{games.model} is left out: none of its games has a verdict.")
            continue
        if games.unjudged:
            notes.append(f"{games.model}: {games.unjudged} games without a verdict count nowhere.")
        benchmark = "arena" if games.category in HARD else f"arena-{games.category}"
        items = frame(list(by_question), list(by_question.values()))
        name, rival = short_name(games.model), short_name(games.baseline)
        origin = files[0] if len(files) == 1 else files[0].parent
        judges = tuple(filter(None, games.judges))
        parts.append(Part(name, benchmark, "arena_score", items, origin, True, rival, judges))
    return Judged(parts, notes)


def of_wildbench(path: Path) -> Iterator[Part]:
    """WB-Score's rating of every task, by model."""
    kind, rows = wildbench.read(path)
    if kind == "reward":
        raise UserError(
            f"{path} holds WB-Reward judgments, which compare two models themselves; "
            "`magpie score wildbench` scores them."
        )
    models: dict[str, dict[str, float | None]] = {}
    for number, row in enumerate(rows, 1):
        if not {"session_id", "model_test", "score"} <= row.keys():
            raise UserError(
                f"{path}, row {number}: a judgment needs session_id, model_test, score."
            )
        tasks = models.setdefault(short_name(str(row["model_test"])), {})
        task = str(row["session_id"])
        if task in tasks:
            raise UserError(f"{path}, row {number}: the task {task} is scored a second time.")
        tasks[task] = wildbench.rating_of(row)
    for model, tasks in models.items():
        items = frame(list(tasks), list(tasks.values()))
        yield Part(model, "wildbench", "wb_score", items, path, True)
