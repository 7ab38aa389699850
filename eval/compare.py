"""Arms -> one comparison: every score with its interval, every difference with a verdict, and
"cannot tell" where it cannot.

Items are paired by prompt and clustered by question. One joint bootstrap over all arms gives the
matrix of differences simultaneous (max |t|) intervals; verdicts come from them, with Holm p-values
beside. Seeds of one arm enter through their pooled variance (eval/comparing/errors.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from core.errors import UserError, nearest
from core.files import write_atomic
from core.store import Counts
from eval import stats
from eval.comparing.arms import Arm, Family
from eval.comparing.differences import Row, score
from eval.comparing.differences import differences as differences_of

VERSION = 2
"""Part of the key of a comparison; raised when the same scores would give another one."""

LOWER_IS_BETTER = {
    "loss", "heldout_loss", "perplexity", "bits_per_byte", "word_perplexity", "byte_perplexity",
}  # fmt: skip
"""Metrics whose smaller value is the better one; every other metric is better when larger."""

AGAINST_BASELINE = {
    "win_rate": 50.0,
    "length_controlled_winrate": 50.0,
    "length_controlled_minimal": 50.0,
    "arena_score": 50.0,
}
"""What the baseline that others are judged against scores by definition (percent), so that it needs
no judgments of itself."""

DECIDES = ("length_controlled_winrate",)
"""Metrics that decide for their benchmark when it is the primary one and has them; otherwise its
first metric does."""

COLUMNS = ["benchmark", "metric", "item", "cluster", "value", "status", "reason"]


def run(
    inputs: dict[str, Path],
    out: Path,
    *,
    baseline: str | None,
    primary: str,
    seed: int = 0,
    resamples: int = 10_000,
) -> Counts:
    """Compare scores folders and write `comparison.json` and `comparison.parquet` into `out`.

    `inputs`: folder of scores by "ARM/SEED", or by "ARM" alone for a finished model that no seed
    varies. `baseline`: the arm that others are compared with first, and that scores by definition
    where a benchmark judges against it. `primary`: the benchmark declared beforehand (or
    "benchmark/metric"); one metric of it decides, all others are exploratory. `seed` is that of the
    bootstrap. Raises UserError for a missing or malformed scores folder, an unknown baseline or
    primary.
    """
    arms: dict[str, list[str]] = {}
    for key in inputs:
        arm_name, _, training_seed = key.partition("/")
        arms.setdefault(arm_name, []).extend([training_seed] if training_seed else ())
    if baseline is not None and baseline not in arms:
        hint = nearest(baseline, arms)
        raise UserError(f"baseline arm '{baseline}' is not among the compared arms{hint}.")
    table = pl.concat([_read(key, folder) for key, folder in inputs.items()])
    names = table.select("benchmark", "metric").unique(maintain_order=True).rows()
    deciding = _deciding(primary, names)
    scores: list[Row] = []
    differences: list[Row] = []
    for benchmark, metric in names:
        rows = table.filter((pl.col("benchmark") == benchmark) & (pl.col("metric") == metric))
        members = [_arm(arm, metric, rows, arm == baseline) for arm in arms]
        family = Family(
            benchmark=benchmark,
            metric=metric,
            members=[arm for arm in members if arm is not None],
            primary=(benchmark, metric) == deciding,
            trained_baseline=_trained_baseline(metric, arms.get(baseline or "", [])),
        )
        scores += [score(arm, family) for arm in family.members]
        lower = lower_is_better(metric)
        own = differences_of(
            family, baseline, lower_is_better=lower, resamples=resamples, seed=seed
        )
        differences = own + differences if family.primary else differences + own
    comparison = {
        "baseline": baseline,
        "primary": primary,
        "arms": [{"name": name, "seeds": seeds} for name, seeds in arms.items()],
        "scores": scores,
        "differences": differences,
        "notes": _notes(arms, scores, differences, deciding),
    }
    out.mkdir(parents=True, exist_ok=True)
    items = table.select("benchmark", "metric", "arm", "seed", "item", "value")
    items.write_parquet(out / "comparison.parquet")
    text = json.dumps(stats.finite(comparison), indent=2, allow_nan=False, ensure_ascii=False)
    write_atomic(out / "comparison.json", text)
    verdicts = [d["verdict"] for d in differences]
    return {
        "arms": len(arms),
        "scores": len(scores),
        "differences": len(verdicts),
        "cannot_tell": verdicts.count("cannot tell"),
    }


def _deciding(primary: str, families: list[tuple[str, str]]) -> tuple[str, str]:
    """The one (benchmark, metric) that was declared beforehand."""
    own = [(b, m) for b, m in families if primary in (b, f"{b}/{m}")]
    if not own:
        names = {b for b, _ in families} | {f"{b}/{m}" for b, m in families}
        raise UserError(f"primary benchmark '{primary}' has no scores{nearest(primary, names)}.")
    return next((family for family in own if family[1] in DECIDES), own[0])


def _trained_baseline(metric: str, seeds: list[str]) -> tuple[str, ...]:
    """The baseline's training seeds where a metric compares with it: a run was judged against the
    baseline's of the same seed."""
    return tuple(seeds) if metric in AGAINST_BASELINE else ()


def lower_is_better(metric: str) -> bool:
    """Whether a metric's smaller value is the better one; lm-eval's names ("TASK METRIC,FILTER")
    count by their metric."""
    return metric.split(" ")[-1].split(",")[0] in LOWER_IS_BETTER


def _read(key: str, folder: Path) -> pl.DataFrame:
    """One scores folder with its arm and seed beside each item; one row an item of a metric is a
    condition of everything below."""
    path = folder / "scores.parquet"
    if not path.is_file():
        raise UserError(
            f"the scores of {key} are missing: there is no {path}; run its evaluation first."
        )
    frame = pl.read_parquet(path)
    missing = [column for column in COLUMNS if column not in frame.columns]
    if missing:
        raise UserError(
            f"{path} lacks the column {missing[0]}; a scores file has {', '.join(COLUMNS)}."
        )
    names = frame.select("benchmark", "metric", "item")
    twice = names.filter(names.is_duplicated())
    if twice.height:
        benchmark, metric, item = twice.row(0)
        raise UserError(
            f"{path} holds the item {item} of {benchmark}/{metric} more than once; "
            "give each its own name and share the cluster."
        )
    arm, _, training_seed = key.partition("/")
    return frame.select(
        *COLUMNS[:4],
        pl.col("value").cast(pl.Float64).fill_nan(None),
        arm=pl.lit(arm),
        seed=pl.lit(training_seed),
    )


def _arm(name: str, metric: str, rows: pl.DataFrame, is_baseline: bool) -> Arm | None:
    """One arm's items, those judged under every one of its seeds; None where it was not scored (and
    is no baseline by definition)."""
    own = rows.filter(pl.col("arm") == name)
    by_definition = own.is_empty() and is_baseline and metric in AGAINST_BASELINE
    if by_definition:
        everyone = rows.unique("item", keep="first", maintain_order=True)
        own = everyone.with_columns(value=AGAINST_BASELINE[metric], seed=pl.lit(""))
    if own.is_empty():
        return None
    seeds = own["seed"].unique(maintain_order=True).to_list()
    items = own.unique("item", keep="first", maintain_order=True).select("item", "cluster")
    by_seed = own.pivot("seed", index="item", values="value")
    judged = items.join(by_seed, on="item", maintain_order="left").drop_nulls(seeds)
    return Arm(
        name=name,
        items=judged["item"].to_list(),
        clusters=judged["cluster"].to_list(),
        values=np.ascontiguousarray(judged.select(seeds).to_numpy().T),
        seeds=() if seeds == [""] else tuple(seeds),
        unjudged=items.height * len(seeds) - own["value"].count(),
        by_definition=by_definition,
    )


def _notes(
    arms: Mapping[str, list[str]],
    scores: Sequence[Row],
    differences: Sequence[Row],
    deciding: tuple[str, str],
) -> list[str]:
    """What a reader must know beside the figures, as sentences."""
    notes = [
        f"{deciding[0]} is the primary benchmark, declared beforehand, and its {deciding[1]} "
        "decides; every other figure is exploratory."
    ]
    if any(d["scope"].startswith("these two checkpoints") for d in differences):
        notes.append(
            "Arms with one training seed are compared as checkpoints: their intervals cover other "
            "prompts, not another training run, so they say nothing about the filters themselves."
        )
    if any(len(seeds) > 1 for seeds in arms.values()):
        notes.append(
            "The variance between training seeds is pooled over the arms and part of every "
            "interval; a seed also redraws the random arm."
        )
    families: dict[str, list[Row]] = {}
    for d in differences:
        families.setdefault(f"{d['benchmark']} {d['metric']}", []).append(d)
    for name, family in families.items():
        smallest = [d["detectable"] for d in family if isfinite(d["detectable"])]
        if smallest:
            notes.append(
                f"{name}: intervals hold for all {len(family)} differences at once (95 %); "
                f"with {min(d['n'] for d in family)} items the smallest difference found 8 times "
                f"in 10 is {min(smallest):.3g} to {max(smallest):.3g}."
            )
    for s in scores:
        if s["unjudged"]:
            notes.append(
                f"{s['arm']}: {s['unjudged']} unjudged items in {s['benchmark']} {s['metric']}, "
                "left out of its score and of every pair."
            )
    return notes


def table(comparison: dict[str, Any]) -> list[dict[str, str]]:
    """Rows for a terminal: each arm's scores, primary benchmark first, its difference from the
    baseline (or the first arm), the verdict."""
    first = comparison["baseline"] or comparison["arms"][0]["name"]
    differences = comparison["differences"]
    against = {
        (d["benchmark"], d["metric"], d["a"]): d
        for d in [*differences, *map(_turned, differences)]
        if d["b"] == first
    }
    rows = []
    for s in sorted(comparison["scores"], key=lambda s: not s["primary"]):
        difference = ""
        verdict = ""
        if d := against.get((s["benchmark"], s["metric"], s["arm"])):
            bounds = d["simultaneous_lower"], d["simultaneous_upper"]
            difference = _shown(d["difference"], bounds, "+.3g")
            verdict = f"{d['verdict']} ({d['scope'].split(';')[0]})"
        unjudged = f" ({s['unjudged']} unjudged)" if s["unjudged"] else ""
        rows.append(
            {
                "benchmark": s["benchmark"] + ("" if s["primary"] else " (exploratory)"),
                "metric": s["metric"],
                "arm": s["arm"],
                "score": _shown(s["value"], (s["lower"], s["upper"]), ".4g"),
                "n": f"{s['n']}{unjudged}",
                f"against {first}": difference,
                "verdict": verdict,
            }
        )
    return rows


def _turned(difference: Row) -> Row:
    """The same difference, seen from the other arm."""
    low = difference["simultaneous_lower"]
    high = difference["simultaneous_upper"]
    turned = {"a": difference["b"], "b": difference["a"], "difference": -difference["difference"]}
    if low is not None:
        turned |= {"simultaneous_lower": -high, "simultaneous_upper": -low}
    return difference | turned


def _shown(value: float | None, bounds: tuple[float | None, float | None], form: str) -> str:
    """A figure and, where it has one, its interval, in the number format `form`."""
    if value is None:
        return "-"
    low, high = bounds
    interval = "" if low is None else f" [{low:{form}}, {high:{form}}]"
    return f"{value:{form}}{interval}"
