"""How long each arm's answers are, beside what they scored: judges like long answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from recipes.report import sources
from recipes.report.drawing.marks import number
from recipes.report.drawing.scatter import Point, scatter
from recipes.report.sources import Colours, Inputs, Record, Run
from recipes.report.verdicts.outcome import Entry, deciding
from recipes.report.verdicts.seeds import Seeds


@dataclass(frozen=True)
class Length:
    """One run's answers: their mean length in tokens, and how many there are and were cut."""

    tokens: float
    answers: int
    cut: int


def of_runs(inputs: Inputs, benchmark: str) -> dict[Run, Length]:
    """Each run's answers in a benchmark: its own where it asked for itself, else those that
    benchmarks share. Failed answers have no length."""
    found: dict[Run, Length] = {}
    for (run, asked), folder in sources.answers(inputs).items():
        if asked not in ("", benchmark) or (asked == "" and run in found):
            continue
        table = sources.read_table(folder / "answers.parquet")
        if table is None or "tokens" not in table.columns:
            continue
        known = table.filter(pl.col("tokens").is_not_null())
        if known.is_empty():
            continue
        tokens = float(known["tokens"].cast(pl.Float64).mean())  # type: ignore[arg-type]
        cut = 0
        if "finish_reason" in known.columns:
            cut = known.filter(pl.col("finish_reason") == "length").height
        found[run] = Length(tokens, known.height, cut)
    return found


def lengths(inputs: Inputs, comparison: Entry, colours: Colours, seeds: Seeds) -> Record:
    """`rows`: each arm's mean answer in tokens, the share that was cut at the token limit, and its
    score; `figure`: score against length, an arm a large dot and its seeds small ones. {} where
    nothing decides or no answer has a length."""
    family = deciding(comparison)
    if family is None:
        return {}
    measured = of_runs(inputs, family[0])
    scores = {
        str(score["arm"]): score["value"]
        for score in comparison.get("scores", [])
        if family == (score["benchmark"], score["metric"]) and score["value"] is not None
    }
    by_arm: dict[str, list[tuple[str, Length]]] = defaultdict(list)
    for run, length in measured.items():
        by_arm[run.arm].append((run.seed, length))
    rows, points = [], []
    for arm, css in colours.items():
        if arm not in by_arm or arm not in scores:
            continue
        own = by_arm[arm]
        answers = sum(length.answers for _, length in own)
        mean = sum(length.tokens * length.answers for _, length in own) / answers
        cut = sum(length.cut for _, length in own) / answers
        rows.append({"arm": arm, "css": css, "tokens": mean, "cut": cut, "score": scores[arm]})
        said = f"{arm}\n{number(mean)} tokens an answer\n{family[1]} {number(scores[arm])}"
        points.append(Point(css, mean, scores[arm], said, arm))
        points += _of_seeds(arm, css, dict(own), dict(seeds.get((*family, arm), [])))
    if not rows:
        return {}
    label = f"{' '.join(family)} against the mean length of the answers"
    figure = scatter(points, label, ("tokens an answer (mean)", " ".join(family)))
    return {"rows": rows, "figure": figure, "benchmark": family[0], "metric": family[1]}


def _of_seeds(
    arm: str, css: str, measured: Mapping[str, Length], scored: Mapping[str, float]
) -> list[Point]:
    """A dot for each training seed of which both are known."""
    points = []
    for seed, score in scored.items():
        if seed in measured:
            tokens = measured[seed].tokens
            said = f"{arm}, seed {seed}\n{number(tokens)} tokens an answer\n{number(score)}"
            points.append(Point(css, tokens, score, said))
    return points
