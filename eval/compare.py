"""Arms -> one comparison: every score with its interval, every difference with a verdict, and
"cannot tell" where it cannot.

Items are paired by prompt and clustered by question. One joint bootstrap over all arms gives the
matrix of differences simultaneous (max |t|) intervals; verdicts come from them, with Holm p-values
beside. Seeds of one arm enter through their pooled variance.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from core.errors import UserError, nearest
from core.files import write_atomic
from core.store import Counts
from eval import stats

VERSION = 1
"""Part of the key of a comparison; raised when the same scores would give another one."""

LOWER_IS_BETTER = {
    "loss",
    "heldout_loss",
    "perplexity",
    "bits_per_byte",
    "word_perplexity",
    "byte_perplexity",
}
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


@dataclass(frozen=True)
class Arm:
    """One arm's items of one metric: those with a value under every seed, in the order of
    `items`."""

    name: str
    items: list[str]
    clusters: list[str]
    values: stats.Floats  # (seeds, items)
    fixed: bool  # a finished model or the baseline itself: no training seed to vary
    unjudged: int  # cells (item under a seed) without a value


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
        name, _, training_seed = key.partition("/")
        arms.setdefault(name, []).append(training_seed)
    if baseline is not None and baseline not in arms:
        raise UserError(
            f"baseline arm '{baseline}' is not among the compared arms{nearest(baseline, arms)}."
        )
    table = pl.concat([_read(key, folder) for key, folder in inputs.items()])
    families = table.select("benchmark", "metric").unique(maintain_order=True).rows()
    deciding = _deciding(primary, families)
    scores: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    for benchmark, metric in families:
        rows = table.filter((pl.col("benchmark") == benchmark) & (pl.col("metric") == metric))
        members = [
            arm for name in arms if (arm := _arm(name, metric, rows, name == baseline)) is not None
        ]
        tag = {"benchmark": benchmark, "metric": metric}
        is_primary = (benchmark, metric) == deciding
        variance = _seeds(members)
        scores += [tag | _score(arm, variance) | {"primary": is_primary} for arm in members]
        members.sort(
            key=lambda arm: arm.name == baseline
        )  # so that the baseline is always the second of a pair
        differences += [
            tag | d for d in _differences(members, metric, variance, is_primary, seed, resamples)
        ]
    order = sorted(families, key=lambda family: family != deciding)
    differences.sort(key=lambda d: (order.index((d["benchmark"], d["metric"])), d["b"] != baseline))
    scores += _only_in_summaries(inputs, {(s["arm"], s["benchmark"], s["metric"]) for s in scores})
    comparison = {
        "baseline": baseline,
        "primary": primary,
        "arms": [{"name": name, "seeds": [s for s in seeds if s]} for name, seeds in arms.items()],
        "scores": scores,
        "differences": differences,
        "notes": _notes(arms, scores, differences, deciding),
    }
    out.mkdir(parents=True, exist_ok=True)
    table.select("benchmark", "metric", "arm", "seed", "item", "value").write_parquet(
        out / "comparison.parquet"
    )
    write_atomic(
        out / "comparison.json",
        json.dumps(_plain(comparison), indent=2, allow_nan=False, ensure_ascii=False),
    )
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
    if missing := [c for c in COLUMNS if c not in frame.columns]:
        raise UserError(
            f"{path} lacks the column {missing[0]}; a scores file has {', '.join(COLUMNS)}."
        )
    twice = frame.filter(pl.struct("benchmark", "metric", "item").is_duplicated())
    if twice.height:
        b, m, item = twice.select("benchmark", "metric", "item").row(0)
        raise UserError(
            f"{path} holds the item {item} of {b}/{m} more than once; give each its own name and share the cluster."
        )
    arm, _, training_seed = key.partition("/")
    value = pl.col("value").cast(pl.Float64).fill_nan(None)
    return frame.select(
        *COLUMNS[:4], value, pl.lit(arm).alias("arm"), pl.lit(training_seed).alias("seed")
    )


def _arm(name: str, metric: str, rows: pl.DataFrame, is_baseline: bool) -> Arm | None:
    """One arm's items, those judged under every one of its seeds; None where it was not scored (and
    is no baseline by definition)."""
    own = rows.filter(pl.col("arm") == name)
    if own.is_empty():
        if not is_baseline or metric not in AGAINST_BASELINE:
            return None
        everyone = rows.select("item", "cluster").unique(subset="item", maintain_order=True)
        neutral = np.full((1, everyone.height), AGAINST_BASELINE[metric])
        return Arm(
            name, everyone["item"].to_list(), everyone["cluster"].to_list(), neutral, True, 0
        )
    seeds = own["seed"].unique(maintain_order=True).to_list()
    items = (
        own.group_by("item", maintain_order=True)
        .agg(pl.col("cluster").first(), "seed", "value")
        .filter(pl.col("value").list.drop_nulls().list.len() == len(seeds))
    )
    position = {s: i for i, s in enumerate(seeds)}
    values = np.empty((len(seeds), items.height))
    for column, (item_seeds, item_values) in enumerate(items.select("seed", "value").iter_rows()):
        for s, v in zip(item_seeds, item_values, strict=True):
            values[position[s], column] = v
    unjudged = own["item"].n_unique() * len(seeds) - own["value"].count()
    return Arm(
        name, items["item"].to_list(), items["cluster"].to_list(), values, seeds == [""], unjudged
    )


def _seeds(members: list[Arm]) -> tuple[float, float]:
    """What a training seed adds to the variance of a score, pooled over the arms that have several,
    and its degrees of freedom."""
    several = [arm for arm in members if len(arm.values) > 1 and len(arm.items) > 1]
    return stats.seed_variance([arm.values for arm in several], [arm.clusters for arm in several])


def _share(arm: Arm, variance: float) -> float:
    """The seed variance of this arm's mean over its seeds."""
    return 0.0 if arm.fixed else variance / len(arm.values)


def _score(arm: Arm, seeds: tuple[float, float]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "arm": arm.name,
        "value": None,
        "standard_error": None,
        "lower": None,
        "upper": None,
    }
    if arm.items:
        parts = stats.residuals(arm.values.mean(axis=0), arm.clusters)
        shares = [(parts.variance, len(parts.sums) - 1.0), (_share(arm, seeds[0]), seeds[1])]
        error = math.sqrt(sum(v for v, _ in shares))
        interval = stats.t_interval(parts.mean, error, stats.satterthwaite(shares), parts.n)
        row |= {
            "value": interval.value,
            "standard_error": error,
            "lower": interval.lower,
            "upper": interval.upper,
        }
    return row | {"n": len(arm.items), "unjudged": arm.unjudged}


def _differences(
    members: list[Arm],
    metric: str,
    seeds: tuple[float, float],
    primary: bool,
    seed: int,
    resamples: int,
) -> list[dict[str, Any]]:
    """All pairs of arms of one metric: one family for the simultaneous intervals and for Holm."""
    pairs, contrasts, parts = [], [], []
    labels: dict[str, int] = {}
    for i, j in combinations(range(len(members)), 2):
        a, b = members[i], members[j]
        place = {item: k for k, item in enumerate(b.items)}
        left = [k for k, item in enumerate(a.items) if item in place]
        if not left:
            continue
        right = [place[a.items[k]] for k in left]
        clusters = [a.clusters[k] for k in left]
        pairs.append((a, b, a.values[:, left], b.values[:, right], clusters))
        parts.append(
            stats.residuals(
                a.values[:, left].mean(axis=0) - b.values[:, right].mean(axis=0), clusters
            )
        )
        contrasts.append([(k == i) - (k == j) for k in range(len(members))])
        for c in sorted(set(clusters)):
            labels.setdefault(c, len(labels))
    if not pairs:
        return []
    errors = np.zeros((len(labels), len(pairs)))
    for k, ((*_, clusters), part) in enumerate(zip(pairs, parts, strict=True)):
        errors[[labels[c] for c in np.unique(clusters)], k] = part.sums
    contrast = np.array(contrasts, dtype=np.float64)
    seed_covariance = contrast @ np.diag([_share(arm, seeds[0]) for arm in members]) @ contrast.T
    item_df = min(len(p.sums) for p in parts) - 1.0
    critical = stats.max_t_critical(
        np.nan_to_num(errors), seed_covariance, item_df, seeds[1], resamples=resamples, seed=seed
    )
    rows: list[dict[str, Any]] = []
    for k, ((a, b, x, y, clusters), part) in enumerate(zip(pairs, parts, strict=True)):
        shares = [(part.variance, len(part.sums) - 1.0), (float(seed_covariance[k, k]), seeds[1])]
        error, df = math.sqrt(sum(v for v, _ in shares)), stats.satterthwaite(shares)
        interval = stats.t_interval(part.mean, error, df, part.n)
        wide = (
            max(critical, stats.t_critical(df)) if error > 0 else 0.0
        )  # never narrower than the interval of one pair
        p, test = _p_value(x, y, clusters, interval, seed, resamples)
        checkpoints = any(len(arm.values) < 2 and not arm.fixed for arm in (a, b))
        rows.append(
            {
                "a": a.name,
                "b": b.name,
                "difference": part.mean,
                "standard_error": error,
                "lower": interval.lower,
                "upper": interval.upper,
                "simultaneous_lower": part.mean - wide * error,
                "simultaneous_upper": part.mean + wide * error,
                "p": p,
                "test": test,
                "detectable": stats.detectable_difference(error, wide, df)
                if error > 0
                else math.nan,
                "n": part.n,
                "scope": ("these two checkpoints" if checkpoints else "these filters")
                + ("" if primary else "; exploratory"),
            }
        )
    for row, adjusted in zip(rows, stats.holm([r["p"] for r in rows]), strict=True):
        row["p_holm"] = adjusted
        row["verdict"] = _verdict(row, lower_is_better(metric))
    return rows


def _p_value(
    x: stats.Floats,
    y: stats.Floats,
    clusters: list[str],
    interval: stats.Interval,
    seed: int,
    resamples: int,
) -> tuple[float, str]:
    """An exact test where prompts are all that varies (one seed an arm), else the t test that holds
    the seeds' variance too."""
    if len(x) > 1 or len(y) > 1:
        return (
            stats.t_p_value(interval.value / interval.standard_error, interval.df)
            if interval.standard_error
            else 1.0
        ), "t"
    outcomes = set(np.unique([x, y]).tolist())
    if len(set(clusters)) == len(clusters) and outcomes in ({0.0, 1.0}, {0.0, 100.0}):
        return stats.mcnemar(int((x > y).sum()), int((x < y).sum())), "McNemar"
    return stats.sign_flip(x[0] - y[0], clusters, resamples, seed), "sign flip"


def _verdict(row: dict[str, Any], lower_is_better: bool) -> str:
    """Which arm is better, by the simultaneous interval; by the exact test where all differences
    are equal and no interval exists."""
    low, high = row["simultaneous_lower"], row["simultaneous_upper"]
    told = (low > 0 or high < 0) and (row["standard_error"] > 0 or row["p_holm"] <= 0.05)
    if not told:  # also for nan: one cluster says nothing
        return "cannot tell"
    return f"{row['a'] if (row['difference'] > 0) != lower_is_better else row['b']} is better"


def _only_in_summaries(
    inputs: dict[str, Path], known: set[tuple[str, str, str]]
) -> list[dict[str, Any]]:
    """Scores that exist only as a figure (no per-item values, so no pairing): the mean over seeds,
    without an interval of ours."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for key, folder in inputs.items():
        path = folder / "summary.json"
        for benchmark, metrics in json.loads(path.read_text()).items() if path.is_file() else ():
            for metric, facts in metrics.items():
                place = (key.partition("/")[0], benchmark, metric)
                if (
                    place not in known
                    and isinstance(facts, dict)
                    and isinstance(facts.get("value"), (int, float))
                ):
                    found.setdefault(place, []).append(facts)
    return [
        {
            "benchmark": benchmark,
            "metric": metric,
            "arm": arm,
            "value": float(np.mean([f["value"] for f in facts])),
            "standard_error": facts[0].get("standard_error") if len(facts) == 1 else None,
            "lower": None,
            "upper": None,
            "n": facts[0].get("n"),
            "unjudged": sum(f.get("unjudged") or 0 for f in facts),
            "primary": False,
        }
        for (arm, benchmark, metric), facts in found.items()
    ]


def _notes(
    arms: dict[str, list[str]],
    scores: list[dict[str, Any]],
    differences: list[dict[str, Any]],
    deciding: tuple[str, str],
) -> list[str]:
    """What a reader must know beside the figures, as sentences."""
    notes = [
        f"{deciding[0]} is the primary benchmark, declared beforehand, and its {deciding[1]} decides; every other figure is exploratory."
    ]
    if any(d["scope"].startswith("these two checkpoints") for d in differences):
        notes.append(
            "Arms with one training seed are compared as checkpoints: their intervals cover other prompts, not another training run, "
            "so they say nothing about the filters themselves."
        )
    if any(len(seeds) > 1 for seeds in arms.values()):
        notes.append(
            "The variance between training seeds is pooled over the arms and part of every interval; a seed also redraws the random arm."
        )
    for benchmark, metric in dict.fromkeys((d["benchmark"], d["metric"]) for d in differences):
        family = [d for d in differences if (d["benchmark"], d["metric"]) == (benchmark, metric)]
        smallest = [d["detectable"] for d in family if math.isfinite(d["detectable"])]
        if smallest:
            notes.append(
                f"{benchmark} {metric}: intervals hold for all {len(family)} differences at once (95 %); with {min(d['n'] for d in family)} items "
                f"the smallest difference found 8 times in 10 is {min(smallest):.3g} to {max(smallest):.3g}."
            )
    for s in scores:
        if s["unjudged"]:
            notes.append(
                f"{s['arm']}: {s['unjudged']} unjudged items in {s['benchmark']} {s['metric']}, left out of its score and of every pair."
            )
    return notes


def _plain(value: Any) -> Any:
    """For JSON: nan and infinities as null, everything else as it is."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(comparison: dict[str, Any]) -> list[dict[str, str]]:
    """Rows for a terminal: each arm's scores, primary benchmark first, its difference from the
    baseline (or the first arm), the verdict."""
    first = comparison["baseline"] or comparison["arms"][0]["name"]
    against = {
        (d["benchmark"], d["metric"], d["a"]): (d, 1)
        for d in comparison["differences"]
        if d["b"] == first
    }
    against |= {
        (d["benchmark"], d["metric"], d["b"]): (d, -1)
        for d in comparison["differences"]
        if d["a"] == first
    }
    rows = []
    for s in sorted(comparison["scores"], key=lambda s: not s["primary"]):
        d, sign = against.get((s["benchmark"], s["metric"], s["arm"]), (None, 1))
        bounds = (
            sorted(sign * d[k] for k in ("simultaneous_lower", "simultaneous_upper"))
            if d and d["simultaneous_lower"] is not None
            else None
        )
        rows.append(
            {
                "benchmark": s["benchmark"] + ("" if s["primary"] else " (exploratory)"),
                "metric": s["metric"],
                "arm": s["arm"],
                "score": "-"
                if s["value"] is None
                else f"{s['value']:.4g}"
                + ("" if s["lower"] is None else f" [{s['lower']:.4g}, {s['upper']:.4g}]"),
                "n": f"{s['n']}" + (f" ({s['unjudged']} unjudged)" if s["unjudged"] else ""),
                f"against {first}": ""
                if d is None
                else f"{sign * d['difference']:+.3g}"
                + (f" [{bounds[0]:+.3g}, {bounds[1]:+.3g}]" if bounds else ""),
                "verdict": "" if d is None else f"{d['verdict']} ({d['scope'].split(';')[0]})",
            }
        )
    return rows
