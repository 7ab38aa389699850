"""The arms by what decides: their scores with intervals, and how far each is from the baseline."""

from __future__ import annotations

from collections.abc import Sequence

from recipes.report.drawing.figures import intervals
from recipes.report.sources import Colours, Record
from recipes.report.verdicts.outcome import (
    Entry,
    deciding,
    interval,
    lower,
    primary_pairs,
    seen_from,
)
from recipes.report.verdicts.seeds import Seeds


def leaderboard(comparison: Entry, colours: Colours, seeds: Seeds) -> Record:
    """The arms of the primary benchmark, the best first: `rows` of arm, colour class, score with
    its interval, items, seeds, and, where there is a baseline, the difference from it with its
    simultaneous interval, verdict and tone; `figure` of the scores, each seed a dot. {} where no
    score decides."""
    family = deciding(comparison)
    own = [s for s in comparison.get("scores", []) if family == (s["benchmark"], s["metric"])]
    if family is None or not own:
        return {}
    descending = not lower(family, own)
    known = [score for score in own if score["value"] is not None]
    ranked = sorted(known, key=lambda score: score["value"], reverse=descending)
    ranked += [score for score in own if score["value"] is None]
    baseline = comparison.get("baseline")
    against = _of_controls(comparison, family) | _against(primary_pairs(comparison), baseline)
    rows, drawn = [], []
    for score in ranked:
        arm = str(score["arm"])
        drawn.append(interval(score, colours.get(arm, ""), seeds))
        rows.append(
            {
                "arm": arm,
                "css": colours.get(arm, ""),
                "score": score,
                "seeds": len(drawn[-1].seeds) or None,
                "baseline": arm == baseline,
                "against": against.get(arm),
            }
        )
    reference = next((score["value"] for score in own if score["arm"] == baseline), None)
    label = f"{' '.join(family)}: each arm's score with its 95 % interval, its seeds as dots"
    return {
        "benchmark": family[0],
        "metric": family[1],
        "lower_is_better": not descending,
        "rows": rows,
        "against": baseline if against else None,
        "figure": intervals(drawn, label, reference),
        "seeds": any(row["seeds"] for row in rows),
    }


def _against(pairs: Sequence[Entry], baseline: str | None) -> dict[str, Record]:
    """Each arm's difference from the baseline, by arm."""
    found: dict[str, Record] = {}
    for pair in pairs:
        if baseline in (pair["a"], pair["b"]):
            arm = str(pair["a"] if pair["b"] == baseline else pair["b"])
            found[arm] = seen_from(arm, pair)
    return found


def _of_controls(comparison: Entry, family: tuple[str, str]) -> dict[str, Record]:
    """Each control's difference from the arm it is made of, where that is the baseline."""
    found = {}
    for shown in comparison.get("controls", []):
        if family != (shown["benchmark"], shown["metric"]):
            continue
        for row in [*shown.get("negative", []), *shown.get("shuffled", [])]:
            if row["of"] == comparison.get("baseline"):
                found[str(row["arm"])] = seen_from(
                    row["arm"], {"a": row["arm"], "b": row["of"], **row}
                )
    return found
