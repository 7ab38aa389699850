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
            known = {"benchmark": benchmark, "name": run.name, "revision": _revision(folder)}
            judges.append({**known, **counts, **bias})
    return judges


def _revision(folder: Path) -> str | None:
    """The judge's revision, as the judgments' own key has it; None where several judged."""
    spec = (sources.read_object(folder / MANIFEST).get("spec") or {}).get("spec") or {}
    revision = ((spec.get("cell") or {}).get("judge") or {}).get("revision")
    return str(revision) if revision else None


def asked(
    recipe: Mapping[str, Any], benchmark: str, judges: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """How the judges of a benchmark were asked, as (what, how): model and revision of each, the
    mode, the order of the answers, the prompt, sampling; what the recipe does not say is left
    out."""
    config = recipe.get("eval") or {}
    block = config.get(benchmark) or {}
    each = block.get("judges") or [block.get("judge") or config.get("judge") or {}]
    revisions = sorted({judge["revision"] for judge in judges if judge.get("revision")})
    said = [("model", ", ".join(str(one["model"]) for one in each if one.get("model")))]
    stated = [str(one["revision"]) for one in each if one.get("revision")]
    said.append(("revision", ", ".join(name[:12] for name in revisions or stated)))
    how = [block.get(name) for name in ("version", "mode")]
    said.append(("mode", ", ".join(map(str, filter(None, how)))))
    said.append(("order of the answers", _order(block)))
    prompt = block.get("prompt")
    said.append(
        ("prompt", ", ".join(prompt.values()) if isinstance(prompt, dict) else prompt or "")
    )
    sampling = block.get("sampling") or {}
    said.append(("sampling", ", ".join(f"{name} {value}" for name, value in sampling.items())))
    return [(what, how) for what, how in said if how]


def _order(block: Mapping[str, Any]) -> str:
    """Which answer the judge sees first."""
    if block.get("kind") == "arena":
        return "both, two games a prompt"
    order = block.get("order")
    return "both" if order == "both" else "drawn at random, one a prompt" * bool(order)


def cards(
    judges: Sequence[Record],
    people: Mapping[str, Sequence[str]],
    recipe: Mapping[str, Any] | None = None,
) -> list[Record]:
    """One card a benchmark, over the judgings of all runs: games, judged, models, how they were
    asked (see `asked`), the means of the biases weighted by what they were measured on, tokens and
    money, and `people`: sentences on the judge's agreement with people (none: it was not measured).

    `people`: benchmark -> sentences. `recipe`: the resolved one.
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
                "calls": _sum(own, "asked"),
                "prompt_tokens": _sum(own, "prompt_tokens"),
                "tokens": _sum(own, "tokens"),
                "money": _sum(own, "money"),
                "asked": asked(recipe or {}, benchmark, own),
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
