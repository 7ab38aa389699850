"""Scoring judgments that exist: what `magpie score alpaca-eval | arena-hard | wildbench` prints,
one row a model under the official tables' names.

Everything is in the unit of the official table (percent for win rates). Default figures follow our
rules, `compat="official"` the official code; docs/evaluation.md says where and why they differ.
What a row cannot tell is None, and its `notes` say why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError, nearest
from eval import stats
from eval.prompt_sets.prompts import records
from eval.scoring import alpaca, arena, length_control, style_control, wildbench

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
    _check(files, compat)
    models = [(path, model) for path in files for model in alpaca.read(path)]
    reference, missing = None, ""
    if any(model.baseline == alpaca.BASELINE for _, model in models):
        try:
            reference = length_control.load_reference(data)
        except UserError as error:
            if data is not None and not data.is_dir():
                raise UserError(f"--data {data} is not a folder.") from error
            missing = str(error)
    rows = []
    for path, model in models:
        row: Row = {"model": model.model} | alpaca.win_rate(model)
        row |= {
            "length_controlled_winrate": None,
            "lc_standard_error": None,
            "lc_lower": None,
            "lc_upper": None,
            "notes": [],
        }
        if row["n_unjudged"]:
            row["notes"].append(
                f"{row['n_unjudged']} rows of {path.name} have no valid preference and count nowhere"
            )
        if model.baseline == alpaca.BASELINE and reference is None:
            row["notes"].append(f"no length-controlled win rate: {missing}")
        elif (
            reference is not None
            and compat == "official"
            and length_control.covers(reference, model)
        ):
            row["length_controlled_winrate"], row["lc_standard_error"] = length_control.official(
                model, reference
            )
            if model.instructions != list(reference.difficulty)[: len(model.instructions)]:
                row["notes"].append(
                    "the official rules join difficulty by row position, and these rows are not in the published order"
                )
        else:
            _length_controlled(row, model, reference)
        rows.append(row)
    return rows


def _length_controlled(
    row: Row, model: alpaca.Judged, reference: length_control.Reference | None
) -> None:
    """Fill in the default length-controlled figures of one model."""
    own = length_control.design(model, reference)
    if len(own.delta) < 2:
        row["notes"].append(
            "no length-controlled win rate: fewer than 2 judged rows with both texts"
        )
        return
    value, found = length_control.point(own), None
    if len(own.delta) >= stats.MINIMUM_CLUSTERS:
        found = length_control.interval(own)
    else:
        row["notes"].append(
            f"no length-controlled interval: a bootstrap over fewer than {stats.MINIMUM_CLUSTERS} instructions is too narrow"
        )
    if own.minimal:
        why = (
            f"the baseline is {model.baseline}"
            if model.baseline != alpaca.BASELINE
            else "these are not AlpacaEval's instructions"
        )
        row["notes"].append(
            f"{why}: length_controlled_minimal, without difficulty and gamed rows, is not AlpacaEval's length-controlled win rate"
        )
        row |= {
            "length_controlled_minimal": value,
            "lc_minimal_standard_error": found.standard_error if found else None,
        }
    else:
        row["length_controlled_winrate"] = value
        row["lc_standard_error"] = found.standard_error if found else None
    if found:
        row |= {"lc_lower": found.lower, "lc_upper": found.upper}


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
    _check(files, compat)
    if unknown := set(control) - style_control.CONTROLS.keys():
        name = sorted(unknown)[0]
        raise UserError(
            f"style control '{name}' is unknown{nearest(name, style_control.CONTROLS)}."
        )
    games = arena.read(files)
    rows = []
    for category in dict.fromkeys(g.category for g in games):
        own = [g for g in games if g.category == category]
        rivals = [g for g in own if g.model != g.baseline and len(g.outcome)]
        if control:
            if data is None:
                raise UserError(
                    "style control needs --data, a folder with the answer files of the models and of the baseline."
                )
            answers = sorted(
                p
                for pattern in ("*answer*.jsonl", "*answer*.jsonl.gz")
                for p in data.rglob(pattern)
            )
            controlled = {
                r["model"]: r
                for r in style_control.scores(
                    rivals, style_control.read(answers), control=control, compat=compat
                )
            }
        official = (
            dict(zip((g.model for g in rivals), arena.official_intervals(rivals), strict=True))
            if compat == "official" and rivals
            else {}
        )
        for g in own:
            row: Row = {
                "model": g.model,
                "score": None,
                "standard_error": None,
                "lower": None,
                "upper": None,
                "category": g.category or None,
            }
            row |= {
                "baseline": g.baseline or None,
                "questions": len(set(g.questions)),
                "unjudged": g.unjudged,
                "notes": [],
            }
            if control and g.model in controlled:
                row |= controlled[g.model]
            elif g.model in official:
                row |= _bounds(official[g.model])
            elif len(g.outcome):
                row |= _bounds(arena.interval(g))
            _explain(row, g, compat)
            rows.append(row)
    return rows


def _explain(row: Row, g: arena.Games, compat: str | None) -> None:
    """What a reader must know beside one model's score."""
    if g.unjudged:
        row["notes"].append(f"{g.unjudged} games have no verdict and count nowhere")
    if len(g.judges) > 1:
        row["notes"].append(f"pooled over the judges {', '.join(g.judges)}")
    if g.model == g.baseline:
        if compat == "official":
            row |= {"score": 50.0, "standard_error": 0.0, "lower": 50.0, "upper": 50.0}
        row["notes"].append(
            "the baseline: 50 by definition; its battles against itself measure the judge's noise"
        )
    elif len(g.outcome) and row["questions"] < stats.MINIMUM_CLUSTERS and compat != "official":
        row["notes"].append(f"t interval: {row['questions']} questions are too few for a bootstrap")


def _bounds(found: stats.Interval) -> Row:
    """An interval as columns; a win rate's bounds stay within 0 and 100."""
    return {
        "score": found.value,
        "standard_error": _finite(found.standard_error),
        "lower": _finite(max(0.0, found.lower)),
        "upper": _finite(min(100.0, found.upper)),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def score_wildbench(
    files: Sequence[Path],
    data: Path | None = None,
    compat: str | None = None,
    margin: int | None = None,
) -> list[Row]:
    """WildBench judgment files -> WB-Score rows (model, score, adjusted_score, standard_error,
    lower, upper, task_macro_score, total, unjudged, avg_len, notes) or WB-Reward rows (model,
    reference, reward, standard_error, lower, upper, total, notes).

    `data`: folder with the tasks' tags, *wildbench*.json or .jsonl with id, primary_tag,
    secondary_tags (from the hub's allenai/WildBench), without which there is no macro score.
    `margin`: WB-Reward's length margin in characters. The official rules are ours here.
    """
    _check(files, compat)
    tags = _tags(data) if data is not None else None
    rows = []
    for path in files:
        kind, judgments = wildbench.read(path)
        if kind == "reward":
            reference = next(
                (part.removeprefix("ref=") for part in path.parts if part.startswith("ref=")), None
            )
            rows += wildbench.reward(judgments, str(path), reference, margin)
        else:
            rows += wildbench.score(judgments, str(path), tags)
    for row in rows:
        row["model"] = row["model"].rsplit("/", 1)[-1]  # the official tables leave the maker out
        row["notes"] = (
            [f"{row['unjudged']} tasks have no score from 1 to 10 and count nowhere"]
            if row.get("unjudged")
            else []
        )
        if "task_macro_score" in row and row["task_macro_score"] is None:
            row["notes"].append(
                "no macro score: it needs every task's tags, which are on the hub (allenai/WildBench); give their folder as --data"
            )
        row |= {key: _finite(value) for key, value in row.items() if isinstance(value, float)}
    return rows


def _tags(data: Path) -> dict[str, list[str]] | None:
    found: dict[str, list[str]] = {}
    for path in sorted(
        p for pattern in ("*wildbench*.json*", "*WildBench*.json*") for p in data.glob(pattern)
    ):
        for number, task in records(path):
            if not {"id", "primary_tag", "secondary_tags"} <= task.keys():
                raise UserError(
                    f"{path}, record {number}: a task's tags need id, primary_tag and secondary_tags."
                )
            found[str(task["id"])] = [task["primary_tag"], *task["secondary_tags"]]
    return found or None


def _check(files: Sequence[Path], compat: str | None) -> None:
    if compat not in (None, "official"):
        raise UserError(f"--compat {compat} is unknown; it can be 'official'.")
    if not files:
        raise UserError("there is nothing to score: name one or more judgment files.")
    for path in files:
        if not path.is_file():
            raise UserError(f"{path} is not a file; give judgment files.")
