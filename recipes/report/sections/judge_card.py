"""The card of each judge: what it judged, how it behaved, how far it agrees with people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from core.store import MANIFEST
from recipes.report import sources
from recipes.report.sources import Inputs, Record

CLOSE = 0.02
"""Two answers whose lengths differ by less than this share count as equally long."""


def judgings(inputs: Inputs) -> list[Record]:
    """What each judging counted, from its manifest: games judged, agreement of the two orders,
    preference for what was shown first; and `longer`, from its judgments (see `longer_preferred`).
    """
    judges = []
    for (benchmark, run), folder in sources.judgments(inputs).items():
        counts = sources.read_object(folder / MANIFEST).get("counts") or {}
        if "rows" in counts:
            bias = longer_preferred(folder / "judgments.parquet")
            judges.append({"benchmark": benchmark, "name": run.name, **counts, **bias})
    return judges


def cards(judges: Sequence[Record], people: Mapping[str, Sequence[str]]) -> list[Record]:
    """One card a benchmark, over the judgings of all runs: games, judged, models, asked, the means
    of the biases weighted by what they were measured on, and `people`: sentences on the judge's
    agreement with people (none: it was not measured).

    `people`: benchmark -> sentences.
    """
    cards = []
    for benchmark in dict.fromkeys(judge["benchmark"] for judge in judges):
        own = [judge for judge in judges if judge["benchmark"] == benchmark]
        cards.append(
            {
                "benchmark": benchmark,
                "models": sorted({m for judge in own for m in judge.get("models") or []}),
                "rows": _sum(own, "rows"),
                "judged": _sum(own, "judged"),
                "identical": _sum(own, "identical"),
                "pairs": _sum(own, "position_pairs"),
                "consistency": _mean(own, "position_consistency", "position_pairs"),
                "first": _mean(own, "first_preferred", "judged"),
                "longer": _mean(own, "longer", "unequal"),
                "unequal": _sum(own, "unequal"),
                "mass": _mean(own, "mass", "judged"),
                "money": _sum(own, "money"),
                "people": list(people.get(benchmark, [])),
            }
        )
    return cards


def longer_preferred(path: Path) -> Record:
    """How often the longer of two answers was preferred (ties a half), by length in characters,
    among the judged games of a file whose answers differ in length by more than CLOSE: `longer` (0
    to 1; None without such games) and `unequal`, how many these are. Games that no judge was asked
    about do not count."""
    known = sources.read_table(path)
    needed = {"preference", "model_characters", "baseline_characters", "judgment"}
    if known is None or not needed <= set(known.columns):
        return {"longer": None, "unequal": 0}
    asked = known.filter(pl.all_horizontal(pl.col(*needed).is_not_null()))
    mine = asked["model_characters"].cast(pl.Float64).to_numpy()
    theirs = asked["baseline_characters"].cast(pl.Float64).to_numpy()
    apart = np.abs(mine - theirs) > CLOSE * np.maximum(mine, theirs)
    preferred = asked["preference"].cast(pl.Float64).to_numpy()[apart]
    ours = (mine > theirs)[apart]
    wins = np.where(preferred == 0.5, 0.5, ((preferred > 0.5) == ours).astype(float))
    share = float(wins.mean()) if len(wins) else None
    return {"longer": share, "unequal": len(wins)}


def _sum(judges: Sequence[Mapping[str, Any]], name: str) -> float:
    return sum(judge.get(name) or 0 for judge in judges)


def _mean(judges: Sequence[Mapping[str, Any]], name: str, weight: str) -> float | None:
    """A mean over judgings that have it, each weighted by how much it was measured on."""
    known = [judge for judge in judges if judge.get(name) is not None and judge.get(weight)]
    total = sum(judge[weight] for judge in known)
    return sum(judge[name] * judge[weight] for judge in known) / total if total else None
