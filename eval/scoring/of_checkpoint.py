"""From judgments, losses and task outcomes of one checkpoint to its scores: one value an item, and
one figure a metric.

`scores.parquet` keeps every item, also those without a value, so that a comparison pairs arms item
by item; `summary.json` has the figures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from core.errors import UserError
from core.files import write_atomic
from core.store import Counts
from eval import stats
from eval.judging import several_judges
from eval.judging.pairwise import judging
from eval.prompt_sets.prompts import text_id
from eval.prompt_sets.rated_tasks import SECOND
from eval.scoring import alpaca, arena, length_control, mtbench, wildbench

VERSION = 1

SCORES = {
    "benchmark": pl.String,
    "metric": pl.String,
    "item": pl.String,
    "cluster": pl.String,
    "value": pl.Float64,
    "status": pl.String,
    "reason": pl.String,
}
"""Columns of scores.parquet; `value` is in percent for win rates and arena scores, in nats for the
loss, as lm-eval gives it for tasks, from 1 to 10 for ratings, from -1 to 1 for WB-Reward."""

CREATIVE = "creative_writing"
"""The category that Arena-Hard v2.0 scores apart, against a baseline of its own."""

Rows = list[dict[str, Any]]
Figures = dict[str, dict[str, Any]]
"""Metric -> {"value", "standard_error", "lower", "upper", "n", "unjudged", …}."""


def run(inputs: Mapping[str, Path], out: Path) -> Counts:
    """Write `out`/scores.parquet and `out`/summary.json for one checkpoint from whichever of these
    folders are given:

    `judgments-alpaca`, `judgments-arena` (eval.judges), `ratings-wildbench`, `ratings-mtbench`
    (eval.ratings), `heldout` (eval.heldout), `tasks` (eval.tasks), and `alpaca-data`, AlpacaEval's
    published difficulties and gamed rows for the length-controlled win rate (see
    eval/scoring/length_control.py; without it, or for other prompts, the figure is the minimal form
    and is called so). Counts: items, unjudged, and each benchmark's main figure. Raises UserError
    when a folder does not hold what it should.
    """
    rows: Rows = []
    summary: dict[str, Figures] = {}
    score: dict[str, Callable[[Path], Iterable[tuple[str, Rows, Figures]]]] = {
        "judgments-alpaca": lambda folder: _alpaca(folder, inputs.get("alpaca-data")),
        "judgments-arena": _arena,
        "ratings-wildbench": _wildbench,
        "ratings-mtbench": _mtbench,
        "heldout": _heldout,
        "tasks": _tasks,
    }
    for name, scored in score.items():
        if name in inputs:
            for benchmark, items, figures in scored(inputs[name]):
                rows += [{"benchmark": benchmark} | item for item in items]
                summary[benchmark] = figures
    if not rows:
        raise UserError(f"there is nothing to score: give at least one of {', '.join(score)}.")
    out.mkdir(parents=True, exist_ok=True)
    frame = pl.DataFrame(rows, schema=SCORES)
    frame.write_parquet(out / "scores.parquet")
    write_atomic(out / "summary.json", json.dumps(_finite(summary), indent=2, allow_nan=False))
    main = {
        f"{benchmark}/{metric}": _finite(facts["value"])
        for benchmark, figures in summary.items()
        for metric, facts in figures.items()
    }
    return {"items": frame.height, "unjudged": frame["value"].null_count(), **main}


def _read(folder: Path, name: str) -> pl.DataFrame:
    try:
        return pl.read_parquet(folder / name)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(
            f"{folder / name} cannot be read ({error}); run that evaluation first."
        ) from error


def _alpaca(folder: Path, data: Path | None) -> Iterable[tuple[str, Rows, Figures]]:
    """One value an item: the preference in percent, averaged over both orders where both were asked
    (then both must be judged), and over the judges where there are several."""
    games = _read(folder, "judgments.parquet")
    items = several_judges.by_item(games)
    rows = [
        _row("win_rate", i, None if p is None else 100 * p, reason, reason if partly else None)
        for i, p, reason, partly in items.select(
            "item", "preference", "reason", "partly"
        ).iter_rows()
    ]
    judged = alpaca.Judged(
        "model",
        alpaca.BASELINE if data is not None else "baseline",
        items["item"].to_list(),
        (items["preference"] + 1).cast(pl.Float64).fill_null(math.nan).to_numpy(),
        *(
            items[c].cast(pl.Float64).fill_null(math.nan).to_numpy()
            for c in ("model_characters", "baseline_characters")
        ),
    )
    whole = alpaca.win_rate(judged)
    figures: Figures = {
        "win_rate": _figure(rows)
        | _judges(games)
        | {k: v for k, v in whole.items() if k not in ("win_rate", "standard_error")}
    }
    valid = np.flatnonzero(
        ~np.isnan(judged.preference) & ~np.isnan(judged.length) & ~np.isnan(judged.baseline_length)
    )
    if len(valid) >= stats.MINIMUM_CLUSTERS:  # a regression on fewer says nothing
        own = length_control.design(
            judged, _by_id(length_control.load_reference(data)) if data is not None else None
        )
        metric = "length_controlled_minimal" if own.minimal else "length_controlled_winrate"
        values = dict(zip(valid.tolist(), length_control.items(own).tolist(), strict=True))
        controlled = [
            _row(metric, name, values.get(i), rows[i]["reason"])
            for i, name in enumerate(judged.instructions)
        ]
        figures[metric] = _figure(controlled)
        rows += controlled
    yield "alpaca", rows, figures


def _judges(games: pl.DataFrame) -> dict[str, Any]:
    """What to know about the judge, or about the judges together, beside a score."""
    known = judging(games)
    if "judge" not in games.columns:
        return known
    share, pairs = several_judges.agreement(games)
    partly = int(several_judges.by_item(games)["partly"].sum())
    return known | {
        "judges": games["judge"].n_unique(),
        "partly_judged": partly,
        "judge_agreement": share,
        "judge_agreement_pairs": pairs,
    }


def _by_id(reference: length_control.Reference) -> length_control.Reference:
    """The difficulties by prompt id instead of by instruction: judgments name prompts by id."""
    known = {text_id(text): value for text, value in reference.difficulty.items()}
    return length_control.Reference(
        reference.positions,
        known,
        reference.length,
        reference.gamed_difficulty,
        reference.preference,
    )


def _arena(folder: Path) -> Iterable[tuple[str, Rows, Figures]]:
    """One value a question, whose mean is the Bradley-Terry score. Creative writing of v2.0 is a
    benchmark of its own, "arena-creative_writing"."""
    everything = _read(folder, "judgments.parquet")
    version = json.loads((folder / "protocol.json").read_text()).get("version")
    creative = pl.col("category") == CREATIVE
    parts = (
        {"arena": everything.filter(~creative), f"arena-{CREATIVE}": everything.filter(creative)}
        if version == "v2.0"
        else {"arena": everything}
    )
    for name, games in parts.items():
        if games.is_empty():
            continue
        usable = games.filter(pl.col("status") == "ok")
        if version == "v2.0":  # the official rule: a question counts with both games or not at all
            usable = usable.filter(
                pl.len().over("item", *(["judge"] if "judge" in games.columns else [])) == 2
            )
        outcomes = [
            arena.outcome(label, model_first=order == "model")
            for label, order in usable.select("label", "order").iter_rows()
        ]
        won, weight = zip(*outcomes, strict=True) if outcomes else ((), ())
        battles = arena.Games(
            "model",
            "baseline",
            "",
            (),
            usable["item"].to_list(),
            np.array(won),
            np.array(weight, dtype=np.float64),
            games.height - usable.height,
        )
        values = arena.items(battles) if outcomes else {}
        questions = several_judges.by_item(games).select("item", "reason", "partly")
        rows = [
            _row("arena_score", item, values.get(item), reason, reason if partly else None)
            for item, reason, partly in questions.iter_rows()
        ]
        interval = arena.interval(battles)
        bounds = {
            "standard_error": interval.standard_error,
            "lower": interval.lower,
            "upper": interval.upper,
        }
        yield (
            name,
            rows,
            {
                "arena_score": _figure(rows)
                | bounds
                | _judges(games)
                | {"unjudged_games": battles.unjudged}
            },
        )


def _wildbench(folder: Path) -> Iterable[tuple[str, Rows, Figures]]:
    """WB-Score: the mean rating, and the published (mean - 5) * 2 beside it; over task groups where
    every task has WildBench's own tags. WB-Reward where it was judged: the mean over tasks of the
    mean over references, and each reference by itself."""
    frame = _read(folder, "ratings.parquet")
    rows = [
        _row("wb_score", item, rating, reason)
        for item, rating, reason in frame.select("item", "rating", "reason").iter_rows()
    ]
    tags = dict(frame.select("item", "tags").iter_rows())
    known = all(own and set(own) <= set(wildbench.GROUPS) for own in tags.values())
    ratings = [
        {"session_id": item, "model_test": "model", "score": rating}
        for item, rating in frame.select("item", "rating").iter_rows()
    ]
    (found,) = wildbench.score(ratings, str(folder), tags if known else None)
    figures: Figures = {
        "wb_score": _figure(rows)
        | {name: found[name] for name in ("adjusted_score", "task_macro_score")}
    }
    if (folder / "rewards.parquet").is_file():
        compared = _read(folder, "rewards.parquet")
        own = [
            _reward(str(item), pairs)
            for (item,), pairs in compared.group_by("item", maintain_order=True)
        ]
        figures["wb_reward"] = _figure(own) | {
            "references": wildbench.by_reference(compared, str(folder))
        }
        rows += own
    yield "wildbench", rows, figures


def _reward(item: str, pairs: pl.DataFrame) -> dict[str, Any]:
    """A task's WB-Reward: the mean over its references, of which each must be judged, or tasks
    would differ in whom they were compared with."""
    whole = pairs["reward"].null_count() == 0
    reasons = pairs.filter(pl.col("reward").is_null())["reason"].to_list()
    return _row(
        "wb_reward",
        item,
        sum(pairs["reward"]) / pairs.height if whole else None,
        reasons[0] if reasons else None,
    )


def _mtbench(folder: Path) -> Iterable[tuple[str, Rows, Figures]]:
    """The mean rating over both turns; a question's turns are one cluster."""
    frame = _read(folder, "ratings.parquet")
    rows = [
        _row("mt_score", item + (SECOND if turn == 2 else ""), rating, reason) | {"cluster": item}
        for item, turn, rating, reason in frame.select(
            "item", "turn", "rating", "reason"
        ).iter_rows()
    ]
    ratings = [
        {"question_id": item, "model": "model", "turn": turn, "score": rating}
        for item, turn, rating in frame.select("item", "turn", "rating").iter_rows()
    ]
    (found,) = mtbench.score(ratings, str(folder))
    named = {"value": "score", "n": "total"} | {
        name: name for name in ("standard_error", "lower", "upper", "unjudged", "turn_1", "turn_2")
    }
    yield "mtbench", rows, {"mt_score": {name: found[place] for name, place in named.items()}}


def _heldout(folder: Path) -> Iterable[tuple[str, Rows, Figures]]:
    frame = _read(folder, "losses.parquet")
    rows = [
        _row("loss", item, loss, reason)
        for item, loss, reason in frame.select("id", "loss", "reason").iter_rows()
    ]
    yield "heldout", rows, {"loss": _figure(rows) | {"tokens": int(frame["tokens"].sum() or 0)}}


def _tasks(folder: Path) -> Iterable[tuple[str, Rows, Figures]]:
    """One metric for each task and metric of lm-eval, named "TASK METRIC"."""
    rows: Rows = []
    figures: Figures = {}
    for (task, metric), frame in _read(folder, "outcomes.parquet").group_by(
        "task", "metric", maintain_order=True
    ):
        name = f"{task} {metric}"
        own = [
            _row(name, item, value, "no number")
            for item, value in frame.select("item", pl.col("value").fill_nan(None)).iter_rows()
        ]
        figures[name] = _figure(own)
        rows += own
    yield "tasks", rows, figures


def _row(
    metric: str, item: str, value: float | None, reason: str | None, note: str | None = None
) -> dict[str, Any]:
    """A row of scores.parquet; `note` is the reason that stands beside a value."""
    judged = value is not None
    reason = note if judged else reason or "no value"
    return {
        "metric": metric,
        "item": item,
        "cluster": item,
        "value": value,
        "status": "ok" if judged else "unjudged",
        "reason": reason,
    }


def _figure(rows: Rows) -> dict[str, Any]:
    """Mean, standard error and t interval over the items that have a value; the others are
    counted."""
    values = [row["value"] for row in rows if row["value"] is not None]
    found = stats.mean_interval(values) if values else None
    bounds: dict[str, float | None] = {"standard_error": None, "lower": None, "upper": None}
    if found is not None:
        bounds = {
            "standard_error": found.standard_error,
            "lower": found.lower,
            "upper": found.upper,
        }
    return {
        "value": found.value if found else None,
        **bounds,
        "n": len(values),
        "unjudged": len(rows) - len(values),
    }


def _finite(value: Any) -> Any:
    """For JSON: nan and infinities as null."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
