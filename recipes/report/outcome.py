"""What the comparison says: the headline, the table of scores, the interval plots, and who can be
told from whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.compare import lower_is_better
from recipes.report.figures import Interval, intervals, number

CANNOT_TELL = "cannot tell"


def headline(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """The primary benchmark's verdict as one sentence, and one line with the figures for each pair
    that it rests on.

    Pairs with the baseline, or all pairs where there is none. Never more than the comparison's own
    verdicts say.
    """
    primary = [d for d in comparison.get("differences", []) if _is_primary(comparison, d)]
    baseline = comparison.get("baseline")
    pairs = [d for d in primary if baseline in (d["a"], d["b"])] or primary
    if not pairs:
        return {
            "sentence": "No difference between arms was measured on a primary benchmark.",
            "lines": [],
        }
    first = (pairs[0]["benchmark"], pairs[0]["metric"])
    pairs = [d for d in pairs if (d["benchmark"], d["metric"]) == first]
    told = [f"{d['verdict']} than {_other(d)}" for d in pairs if d["verdict"] != CANNOT_TELL]
    untold = [d for d in pairs if d["verdict"] == CANNOT_TELL]
    parts = []
    if told:
        parts.append(_join(told))
    if untold:
        if baseline is None:
            parts.append(
                _join([f"{d['a']} and {d['b']}" for d in untold]) + " cannot be told apart"
            )
        else:
            names = [d["a"] if d["b"] == baseline else d["b"] for d in untold]
            parts.append(f"{_join(names)} cannot be told from {baseline}")
    sentence = f"On {first[0]} ({first[1]}), the primary benchmark: {'; '.join(parts)}."
    if any(str(d.get("scope", "")).startswith("these two checkpoints") for d in pairs):
        sentence += " One training seed: this is about these checkpoints, not about the filters."
    return {"sentence": sentence, "lines": [_line(d) for d in pairs]}


def scores(comparison: Mapping[str, Any], colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """One entry a (benchmark, metric), the primary first: `cells` by arm, and the interval plot
    with the baseline's score as its line."""
    families: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for score in sorted(comparison.get("scores", []), key=lambda s: not s.get("primary")):
        families.setdefault((score["benchmark"], score["metric"]), {})[score["arm"]] = score
    entries = []
    for (benchmark, metric), cells in families.items():
        rows = [
            Interval(arm, css, s["value"], s.get("lower"), s.get("upper"))
            for arm, css in colours.items()
            if (s := cells.get(arm))
        ]
        base = cells.get(str(comparison.get("baseline")), {}).get("value")
        entries.append(
            {
                "benchmark": benchmark,
                "metric": metric,
                "primary": any(s.get("primary") for s in cells.values()),
                "lower_is_better": lower_is_better(metric),
                "cells": cells,
                "figure": intervals(
                    rows, f"{benchmark} {metric}: each arm's score with its 95 % interval", base
                ),
            }
        )
    return entries


def matrices(comparison: Mapping[str, Any], arms: Sequence[str]) -> list[dict[str, Any]]:
    """One matrix a (benchmark, metric), the primary first: `rows` of (arm, cells), a cell None or
    row minus column with verdict and tone."""
    families: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for d in comparison.get("differences", []):
        families.setdefault((d["benchmark"], d["metric"]), []).append(d)
    found = []
    for (benchmark, metric), pairs in families.items():
        names = [arm for arm in arms if any(arm in (d["a"], d["b"]) for d in pairs)]
        by_pair = {(d["a"], d["b"]): d for d in pairs}
        rows = [(row, [_cell(row, column, by_pair) for column in names]) for row in names]
        found.append(
            {
                "benchmark": benchmark,
                "metric": metric,
                "names": names,
                "rows": rows,
                "primary": _is_primary(comparison, pairs[0]),
                "lower_is_better": lower_is_better(metric),
            }
        )
    return sorted(found, key=lambda m: not m["primary"])


def _is_primary(comparison: Mapping[str, Any], d: Mapping[str, Any]) -> bool:
    """Whether a difference is of the deciding figure: the one whose scores say so, else any of the
    primary benchmark."""
    deciding = {
        (s["benchmark"], s["metric"]) for s in comparison.get("scores", []) if s.get("primary")
    }
    if deciding:
        return (d["benchmark"], d["metric"]) in deciding
    return comparison.get("primary") in (d["benchmark"], f"{d['benchmark']}/{d['metric']}")


def _cell(
    row: str, column: str, by_pair: Mapping[tuple[str, str], Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Row minus column: the stored difference, turned round where it was stored the other way."""
    if (row, column) in by_pair:
        d, sign = by_pair[row, column], 1
        low, high = d["simultaneous_lower"], d["simultaneous_upper"]
    elif (column, row) in by_pair:
        d, sign = by_pair[column, row], -1
        low, high = _minus(d["simultaneous_upper"]), _minus(d["simultaneous_lower"])
    else:
        return None
    verdict = str(d["verdict"])
    tone = (
        "untold"
        if verdict == CANNOT_TELL
        else "better"
        if verdict == f"{row} is better"
        else "worse"
    )
    return {
        "difference": signed(sign * d["difference"]),
        "lower": signed(low),
        "upper": signed(high),
        "tone": tone,
        "pair": d,
        "verdict": {"untold": CANNOT_TELL, "better": "better", "worse": "worse"}[tone],
    }


def judge_warnings(judges: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each benchmark whose judge mostly changed its verdict when the two answers
    changed places.

    `judges`: the counts of each judging, with `benchmark`, `position_pairs` and
    `position_consistency` (0 to 1).
    """
    warnings = []
    for benchmark in dict.fromkeys(str(j["benchmark"]) for j in judges):
        counted = [j for j in judges if j["benchmark"] == benchmark and j.get("position_pairs")]
        pairs = sum(j["position_pairs"] for j in counted)
        kept = sum(j["position_pairs"] * j["position_consistency"] for j in counted)
        if pairs and kept < pairs / 2:
            warnings.append(
                f"{benchmark}: with the two answers in changed places the judge kept its verdict in only {100 * kept / pairs:.0f} % of "
                f"{pairs:,} pairs, so its scores say more about the order than about the answers."
            )
    return warnings


def signed(value: float | None) -> str:
    """A difference for people: always with its sign."""
    text = number(value)
    return f"+{text}" if value is not None and value > 0 else text


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def _other(d: Mapping[str, Any]) -> str:
    return str(d["b"] if d["verdict"] == f"{d['a']} is better" else d["a"])


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _line(d: Mapping[str, Any]) -> str:
    text = (
        f"{d['a']} − {d['b']}: {signed(d['difference'])}, simultaneous 95 % interval {signed(d['simultaneous_lower'])} to "
        f"{signed(d['simultaneous_upper'])}, {number(d['n'])} items"
    )
    if d.get("p_holm") is not None:
        text += f", p = {number(d['p_holm'], 2)} (Holm)"
    if d["verdict"] == CANNOT_TELL and d.get("detectable") is not None:
        text += f"; a difference of {number(d['detectable'], 2)} would be found 8 times in 10"
    return f"{text}: {d['verdict']}."
