"""Scoring judgments that exist: what `magpie score alpaca-eval | arena-hard | wildbench` prints,
one row a model under the official tables' names.

Everything is in the unit of the official table (percent for win rates). Default figures follow our
rules, `compat="official"` the official code; docs/evaluation.md says where and why they differ.
What a row cannot tell is None, and its `notes` say why.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from core.errors import UserError, nearest
from core.files import finite
from eval import stats
from eval.prompt_sets.prompts import is_folder
from eval.prompt_sets.records import located
from eval.scoring import alpaca, arena, length_control, style_control, wildbench
from eval.scoring.stored import short_name

Row = dict[str, Any]


def score_alpaca(
    files: Sequence[Path], data: Path | None = None, compat: str | None = None
) -> list[Row]:
    """AlpacaEval annotation files -> model, win_rate, standard_error, n_wins, n_wins_base, n_draws,
    n_total, discrete_win_rate, avg_length, n_unjudged, length_controlled_winrate,
    lc_standard_error, lc_lower, lc_upper, notes.

    `data`: folder with instruction_difficulty*.csv, df_gamed*.csv and the baseline's outputs; None
    takes them from the hub, and where neither can be had the length-controlled figures are None.
    Other prompts or another baseline get `length_controlled_minimal` with its standard error
    instead, which is not AlpacaEval's figure. Raises UserError for malformed files.
    """
    _check(files, compat, data)
    models = [(path, model) for path in files for model in alpaca.read(path)]
    reference = None
    missing = ""
    if any(model.baseline == alpaca.BASELINE for _, model in models):
        try:
            reference = length_control.load_reference(data)
        except UserError as error:
            missing = str(error)
    rows = []
    for path, model in models:
        row: Row = {
            "model": model.model,
            **alpaca.win_rate(model),
            "length_controlled_winrate": None,
            "lc_standard_error": None,
            "lc_lower": None,
            "lc_upper": None,
            "notes": [],
        }
        if row["n_unjudged"]:
            row["notes"].append(
                f"{row['n_unjudged']} rows of {path.name} have no valid preference "
                "and count nowhere"
            )
        if missing and model.baseline == alpaca.BASELINE:
            row["notes"].append(f"no length-controlled win rate: {missing}")
        elif compat == "official" and reference and length_control.covers(reference, model):
            _official(row, model, reference)
        else:
            _length_controlled(row, model, reference)
        rows.append(row)
    return rows


def _official(row: Row, model: alpaca.Judged, reference: length_control.Reference) -> None:
    """Fill in the length-controlled figures by the official rules."""
    value, error = length_control.official(model, reference)
    row |= {"length_controlled_winrate": value, "lc_standard_error": error}
    if model.instructions != list(reference.difficulty)[: len(model.instructions)]:
        row["notes"].append(
            "the official rules join difficulty by row position, "
            "and these rows are not in the published order"
        )


def _length_controlled(
    row: Row, model: alpaca.Judged, reference: length_control.Reference | None
) -> None:
    """Fill in the default length-controlled figures of one model."""
    own = length_control.design(model, reference)
    notes = row["notes"]
    if len(own.delta) < 2:
        notes.append("no length-controlled win rate: fewer than 2 judged rows with both texts")
        return
    error = "lc_minimal_standard_error" if own.minimal else "lc_standard_error"
    row |= {own.metric: length_control.point(own), error: None}
    if len(own.delta) >= stats.MINIMUM_CLUSTERS:
        found = length_control.interval(own)
        row |= {
            error: found.standard_error,
            "lc_lower": found.lower,
            "lc_upper": found.upper,
        }
    else:
        notes.append(
            "no length-controlled interval: a bootstrap over fewer than "
            f"{stats.MINIMUM_CLUSTERS} instructions is too narrow"
        )
    if own.minimal:
        why = "these are not AlpacaEval's instructions"
        if model.baseline != alpaca.BASELINE:
            why = f"the baseline is {model.baseline}"
        notes.append(
            f"{why}: length_controlled_minimal, without difficulty and gamed rows, "
            "is not AlpacaEval's length-controlled win rate"
        )


def score_arena(
    files: Sequence[Path],
    data: Path | None = None,
    compat: str | None = None,
    control: Sequence[str] = (),
) -> list[Row]:
    """Arena-Hard battle or judgment files -> model, score, standard_error, lower, upper, category,
    baseline, questions, unjudged, notes.

    One row a model and category (v2.0 has two, v0.1 none). `control`: "length", "markdown" or both,
    which needs `data`, a folder with the models' and the baseline's answer files (*answer*.jsonl).
    Raises UserError for malformed files.
    """
    _check(files, compat, data)
    for name in sorted(set(control) - style_control.CONTROLS.keys()):
        hint = nearest(name, style_control.CONTROLS)
        raise UserError(f"style control '{name}' is unknown{hint}.")
    games = arena.read(files)
    rows = []
    for category in dict.fromkeys(g.category for g in games):
        own = [g for g in games if g.category == category]
        known = _rivals(own, data, compat, control)
        for g in own:
            row: Row = {
                "model": g.model,
                "score": None,
                "standard_error": None,
                "lower": None,
                "upper": None,
                "category": g.category or None,
                "baseline": g.baseline or None,
                "questions": g.asked,
                "unjudged": g.unjudged,
                "notes": [],
            }
            if g.model in known:
                row |= known[g.model]
            elif g.asked:
                row |= _bounds(arena.interval(g))
            _explain(row, g, compat)
            rows.append(row)
    return rows


def _rivals(
    games: Sequence[arena.Games], data: Path | None, compat: str | None, control: Sequence[str]
) -> dict[str, Row]:
    """By model: the figures that all models of a category share one computation for, which are the
    style-controlled and the official ones; the baseline has none."""
    rivals = [g for g in games if g.model != g.baseline and g.asked]
    if control:
        if data is None:
            raise UserError(
                "style control needs --data, a folder with the answer files of the models "
                "and of the baseline."
            )
        answers = sorted({*data.rglob("*answer*.jsonl"), *data.rglob("*answer*.jsonl.gz")})
        styles = style_control.read(answers)
        rows = style_control.scores(rivals, styles, control=control, compat=compat)
        return {row["model"]: row for row in rows}
    if compat == "official" and rivals:
        intervals = arena.official_intervals(rivals)
        return {g.model: _bounds(found) for g, found in zip(rivals, intervals, strict=True)}
    return {}


def _explain(row: Row, g: arena.Games, compat: str | None) -> None:
    """What a reader must know beside one model's score."""
    notes = row["notes"]
    if g.unjudged:
        notes.append(f"{g.unjudged} games have no verdict and count nowhere")
    if len(g.judges) > 1:
        notes.append(f"pooled over the judges {', '.join(g.judges)}")
    if g.model == g.baseline:
        if compat == "official":
            row |= {
                "score": 50.0,
                "standard_error": 0.0,
                "lower": 50.0,
                "upper": 50.0,
            }
        notes.append(
            "the baseline: 50 by definition; its battles against itself measure the judge's noise"
        )
    elif 0 < g.asked < stats.MINIMUM_CLUSTERS and compat != "official":
        notes.append(f"t interval: {g.asked} questions are too few for a bootstrap")


def _bounds(found: stats.Interval) -> Row:
    """An interval as columns; a win rate's bounds stay within 0 and 100."""
    within = {"lower": max(0.0, found.lower), "upper": min(100.0, found.upper)}
    known: Row = finite(found.bounds() | within)
    return {"score": found.value} | known


def score_wildbench(
    files: Sequence[Path], data: Path | None = None, compat: str | None = None
) -> list[Row]:
    """WildBench judgment files -> WB-Score rows (model, score, adjusted_score, standard_error,
    lower, upper, task_macro_score, total, unjudged, avg_len, notes) or WB-Reward rows (model,
    reference, reward, standard_error, lower, upper, total, notes).

    `data`: folder with the tasks' tags, *wildbench*.json or .jsonl with id, primary_tag,
    secondary_tags (from the hub's allenai/WildBench), without which there is no macro score. The
    official rules are ours here.
    """
    _check(files, compat, data)
    tags = _tags(data) if data is not None else None
    rows: list[Row] = []
    for path in files:
        kind, judgments = wildbench.read(path)
        if kind == "reward":
            named = [part for part in path.parts if part.startswith("ref=")]
            reference = named[0].removeprefix("ref=") if named else None
            rows += wildbench.reward(judgments, str(path), reference)
        else:
            rows += wildbench.score(judgments, str(path), tags)
    for row in rows:
        row["model"] = short_name(row["model"])
        row["notes"] = []
        if row.get("unjudged"):
            row["notes"].append(
                f"{row['unjudged']} tasks have no score from 1 to 10 and count nowhere"
            )
        if row.get("task_macro_score", 0) is None:
            row["notes"].append(
                "no macro score: it needs every task's tags, which are on the hub "
                "(allenai/WildBench); give their folder as --data"
            )
    return [finite(row) for row in rows]


def _tags(data: Path) -> dict[str, list[str]]:
    """Each task's tags, from the files of a folder."""
    files = sorted({*data.glob("*wildbench*.json*"), *data.glob("*WildBench*.json*")})
    tags: dict[str, list[str]] = {}
    for where, task in chain.from_iterable(map(located, files)):
        if not {"id", "primary_tag", "secondary_tags"} <= task.keys():
            raise UserError(f"{where}: a task's tags need id, primary_tag and secondary_tags.")
        tags[str(task["id"])] = [task["primary_tag"], *task["secondary_tags"]]
    return tags


def _check(files: Sequence[Path], compat: str | None, data: Path | None) -> None:
    if compat not in (None, "official"):
        raise UserError(f"--compat {compat} is unknown; it can be 'official'.")
    is_folder(data)
    if not files:
        raise UserError("there is nothing to score: name one or more judgment files.")
    for path in files:
        if not path.is_file():
            raise UserError(f"{path} is not a file; give judgment files.")
