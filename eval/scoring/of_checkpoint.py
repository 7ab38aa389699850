"""From judgments, losses and task outcomes of one checkpoint to its scores: one value an item, and
one figure a metric.

`scores.parquet` keeps every item, also those without a value, so that a comparison pairs arms item
by item; `summary.json` has the figures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from core.errors import UserError
from core.files import finite, write_atomic
from core.store import Counts
from eval import stats
from eval.judging import several_judges
from eval.judging.pairwise import judging
from eval.prompt_sets import samples
from eval.prompt_sets.prompts import text_id
from eval.prompt_sets.rated_tasks import SECOND
from eval.prompt_sets.samples import prompts_of
from eval.scoring import alpaca, arena, length_control, mtbench, wildbench
from eval.scoring.items import PARTLY, SCORES, figure_of, floats, rows_of

VERSION = 4

TASK_MACRO = "task_macro_score"
NOT_WHOLE = "the answer is empty or cut, which the macro score leaves out"

CREATIVE = "creative_writing"
"""The category that Arena-Hard v2.0 scores apart, against a baseline of its own."""

Inputs = Mapping[str, Path]
Figures = dict[str, dict[str, Any]]
"""Metric -> {"value", "standard_error", "lower", "upper", "n", "unjudged", …}."""
Scored = tuple[str, pl.DataFrame, Figures]
"""A benchmark's name, its rows of scores.parquet without that name, its figures."""


def run(inputs: Inputs, out: Path) -> Counts:
    """Write `out`/scores.parquet and `out`/summary.json for one checkpoint from whichever of these
    folders are given:

    `judgments-alpaca`, `judgments-arena` (eval.judging.pairwise), `ratings-wildbench`,
    `ratings-mtbench` (eval.judging.ratings), `heldout`, `heldout-foreign` (the same of rows that no
    arm was drawn from), `checks` and `tasks` (eval.checkpoint), and
    `alpaca-data`, AlpacaEval's published difficulties and gamed rows for the length-controlled win
    rate (see eval/scoring/length_control.py; without it, or for other prompts, the figure is the
    minimal form and is called so). Counts: items, unjudged, and each benchmark's main figure.
    Raises UserError when a folder does not hold what it should.
    """
    columns = [pl.col(name).cast(kind) for name, kind in SCORES.items()]
    frames = [pl.DataFrame(schema=SCORES)]
    summary: dict[str, Figures] = {}
    for name in SCORED:
        for benchmark, items, figures in SCORED[name](inputs) if name in inputs else ():
            named = items.with_columns(benchmark=pl.lit(benchmark))
            frames.append(named.select(columns))
            summary.setdefault(benchmark, {}).update(figures)
    frame = pl.concat(frames)
    if frame.is_empty():
        raise UserError(f"there is nothing to score: give at least one of {', '.join(SCORED)}.")
    out.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(out / "scores.parquet")
    known = finite(summary)
    write_atomic(out / "summary.json", json.dumps(known, indent=2, allow_nan=False))
    main = {
        f"{benchmark}/{metric}": facts["value"]
        for benchmark, figures in known.items()
        for metric, facts in figures.items()
    }
    return {
        "items": frame.height,
        "unjudged": frame["value"].null_count(),
        **main,
    }


def _read(folder: Path, name: str) -> pl.DataFrame:
    try:
        return pl.read_parquet(folder / name, glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(
            f"{folder / name} cannot be read ({error}); run that evaluation first."
        ) from error


def _alpaca(inputs: Inputs) -> Iterator[Scored]:
    """One value an item: the preference in percent, averaged over both orders where both were asked
    (then both must be judged), and over the judges where there are several."""
    games = _read(inputs["judgments-alpaca"], "judgments.parquet")
    items = several_judges.by_item(games)
    named = items.with_columns(
        value=100 * pl.col("preference"), note=PARTLY, judge_variance=1e4 * pl.col("judge_variance")
    )
    won = rows_of("win_rate", named)
    data = inputs.get("alpaca-data")
    judged = alpaca.Judged(
        "model",
        "baseline" if data is None else alpaca.BASELINE,
        items.select(prompts_of("item"))["item"].to_list(),
        floats(items["preference"] + 1),
        floats(items["model_characters"]),
        floats(items["baseline_characters"]),
    )
    official = alpaca.win_rate(judged)
    del official["win_rate"], official["standard_error"]  # over items, in `figure_of`
    figures: Figures = {"win_rate": figure_of(won) | _judges(games) | official}
    frames = [won]
    if judged.comparable.sum() >= stats.MINIMUM_CLUSTERS:  # a regression on fewer says nothing
        reference = None if data is None else _by_id(length_control.load_reference(data))
        design = length_control.design(judged, reference)
        values = np.full(len(judged.instructions), np.nan)
        values[judged.comparable] = length_control.items(design)
        controlled = items.drop("judges", "judge_variance").with_columns(
            pl.Series("value", values, nan_to_null=True), note=PARTLY
        )
        frames.append(rows_of(design.metric, controlled))
        figures[design.metric] = figure_of(frames[-1])
    yield "alpaca", pl.concat(frames), figures


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
    by_id = {text_id(text): value for text, value in reference.difficulty.items()}
    return replace(reference, difficulty=by_id)


def _arena(inputs: Inputs) -> Iterator[Scored]:
    """One value a question, whose mean is the Bradley-Terry score. Creative writing of v2.0 is a
    benchmark of its own, "arena-creative_writing"."""
    folder = inputs["judgments-arena"]
    everything = _read(folder, "judgments.parquet")
    v2 = json.loads((folder / "protocol.json").read_text()).get("version") == "v2.0"
    creative = (pl.col("category") == CREATIVE) & v2
    parts = {
        "arena": everything.filter(~creative),
        f"arena-{CREATIVE}": everything.filter(creative),
    }
    for name, games in parts.items():
        if games.height:
            rows, figures = _arena_category(games, v2)
            yield name, rows, {"arena_score": figures}


def _arena_category(games: pl.DataFrame, v2: bool) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Rows and figures of the games that are scored together."""
    usable = games.filter(pl.col("status") == "ok")
    if v2:  # the official rule: a question counts with both games or not at all
        question = [name for name in ("item", "judge") if name in games.columns]
        usable = usable.filter(pl.len().over(question) == 2)
    outcomes = [
        (item, *arena.outcome(label, model_first=order == "model"))
        for item, label, order in usable.select("item", "label", "order").iter_rows()
    ]
    unjudged = games.height - usable.height
    battles = arena.Games("model", "baseline", "", (), *arena.arrays(outcomes), unjudged)
    values = arena.items(battles)
    questions = several_judges.by_item(games).drop("judges", "judge_variance")
    value = pl.Series("value", map(values.get, questions["item"]), dtype=pl.Float64)
    rows = rows_of("arena_score", questions.with_columns(value, note=PARTLY))
    asked = [samples.prompt_of(item) for item in battles.questions]
    bounds = arena.interval(replace(battles, questions=asked)).bounds()
    return rows, figure_of(rows) | bounds | _judges(games) | {"unjudged_games": unjudged}


def _wildbench(inputs: Inputs) -> Iterator[Scored]:
    """WB-Score: the mean rating, and the published (mean - 5) * 2 beside it; the published macro
    score over task groups where every task has WildBench's own tags. WB-Reward where it was judged:
    the mean over tasks of the mean over references, and each reference by itself."""
    folder = inputs["ratings-wildbench"]
    frame = _read(folder, "ratings.parquet")
    rated = rows_of("wb_score", frame.rename({"rating": "value"}))
    score = figure_of(rated)
    score["adjusted_score"] = wildbench.adjusted(score["value"])
    frames = [rated]
    figures = {"wb_score": score}
    tags = dict(frame.select("item", "tags").iter_rows())
    if all(own and set(own) <= wildbench.GROUPS.keys() for own in tags.values()):
        frames.append(_task_macro(frame, tags))
        figures[TASK_MACRO] = figure_of(frames[-1]) | {"groups": _groups(frame, tags)}
    if (folder / "rewards.parquet").is_file():
        pairs = _read(folder, "rewards.parquet")
        compared = rows_of("wb_reward", _rewards(pairs))
        references = {"references": wildbench.by_reference(pairs)}
        figures["wb_reward"] = figure_of(compared) | references
        frames.append(compared)
    yield "wildbench", pl.concat(frames), figures


def _task_macro(frame: pl.DataFrame, tags: Mapping[str, list[str]]) -> pl.DataFrame:
    """The macro score's value of each task."""
    whole = frame.filter("whole").select("item", "rating")
    values = wildbench.macro_items(dict(whole.iter_rows()), tags)
    left = pl.when(pl.col("rating").is_null()).then("reason").otherwise(pl.lit(NOT_WHOLE))
    value = pl.Series("value", map(values.get, frame["item"]), dtype=pl.Float64)
    return rows_of(TASK_MACRO, frame.with_columns(value, reason=left))


def _groups(frame: pl.DataFrame, tags: Mapping[str, list[str]]) -> dict[str, float]:
    """The adjusted mean rating of each task group."""
    whole = frame.filter("whole").select("item", "rating")
    groups = wildbench.by_group(dict(whole.iter_rows()), tags)
    return {name: sum(own.values()) / len(own) for name, own in groups.items()}


def _rewards(pairs: pl.DataFrame) -> pl.DataFrame:
    """A task's WB-Reward: the mean over its references, of which each must be judged, or tasks
    would differ in whom they were compared with."""
    unjudged = pl.col("reward").is_null()
    return pairs.group_by("item", maintain_order=True).agg(
        value=pl.when(~unjudged.any()).then(pl.col("reward").mean()),
        reason=pl.col("reason").filter(unjudged).first(),
    )


def _mtbench(inputs: Inputs) -> Iterator[Scored]:
    """The mean rating over both turns; a question's turns are one cluster."""
    frame = _read(inputs["ratings-mtbench"], "ratings.parquet")
    second = pl.when(pl.col("turn") == 2).then(pl.lit(SECOND)).otherwise(pl.lit(""))
    turns = frame.select(
        pl.col("item") + second, "reason", cluster=pl.col("item"), value=pl.col("rating")
    )
    yield "mtbench", rows_of("mt_score", turns), {"mt_score": mtbench.figures(frame)}


def _heldout(inputs: Inputs, folder: str = "heldout", metric: str = "loss") -> Iterator[Scored]:
    frame = _read(inputs[folder], "losses.parquet")
    rows = rows_of(metric, frame.rename({"id": "item", "loss": "value"}))
    loss = figure_of(rows) | {"tokens": int(frame["tokens"].sum())}
    yield "heldout", rows, {metric: loss}


def _checks(inputs: Inputs) -> Iterator[Scored]:
    """Instruction level (each check by itself; those of a prompt are one cluster), prompt level
    (all of its checks), and whether answers end by themselves."""
    frame = _read(inputs["checks"], "followed.parquet")
    each = frame.select(
        "reason",
        item=pl.format("{}#{}", "id", "number"),
        cluster="id",
        value=pl.col("followed").cast(pl.Float64),
    )
    whole = frame.group_by("id", maintain_order=True).agg(
        pl.col("reason").first(),
        # all() of nothing but nulls would be true
        all_followed=pl.when(pl.col("followed").is_not_null().all()).then(pl.col("followed").all()),
        stopped=pl.col("stopped").first(),
    )
    frames = [rows_of("followed", each)]
    for metric in ("all_followed", "stopped"):
        value = pl.col(metric).cast(pl.Float64)
        frames.append(rows_of(metric, whole.select("reason", item="id", value=value)))
    figures = {str(rows["metric"][0]): figure_of(rows) for rows in frames}
    yield "checks", pl.concat(frames), figures


def _tasks(inputs: Inputs) -> Iterator[Scored]:
    """One metric for each task and metric of lm-eval, named "TASK METRIC"; a group of many subjects
    is clustered by subject."""
    outcomes = _read(inputs["tasks"], "outcomes.parquet")
    frames: list[pl.DataFrame] = []
    figures: Figures = {}
    for (task, metric), frame in outcomes.group_by("task", "metric", maintain_order=True):
        finite = pl.when(pl.col("value").is_finite()).then(pl.col("value"))
        infinite = pl.when(pl.col("value").is_infinite()).then(pl.lit("infinite"))
        reason = infinite.otherwise(pl.lit("no number"))
        values = frame.with_columns(value=finite, reason=reason)
        frames.append(rows_of(f"{task} {metric}", values))
        figures[f"{task} {metric}"] = figure_of(frames[-1])
    yield "tasks", pl.concat(frames), figures


SCORED: dict[str, Callable[[Inputs], Iterator[Scored]]] = {
    "judgments-alpaca": _alpaca,
    "judgments-arena": _arena,
    "ratings-wildbench": _wildbench,
    "ratings-mtbench": _mtbench,
    "heldout": _heldout,
    "checks": _checks,
    "heldout-foreign": partial(_heldout, folder="heldout-foreign", metric="foreign_loss"),
    "tasks": _tasks,
}
"""What each folder is scored by."""
