"""A comparison as rows of a terminal's table."""

from __future__ import annotations

from typing import Any

from eval.comparing.differences import Row


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
    turned = {
        "a": difference["b"],
        "b": difference["a"],
        "difference": 0 - difference["difference"],
    }
    if low is not None:
        turned |= {"simultaneous_lower": 0 - high, "simultaneous_upper": 0 - low}
    return difference | turned


def _shown(value: float | None, bounds: tuple[float | None, float | None], form: str) -> str:
    """A figure and, where it has one, its interval, in the number format `form`."""
    if value is None:
        return "-"
    low, high = bounds
    interval = "" if low is None else f" [{low:{form}}, {high:{form}}]"
    return f"{value:{form}}{interval}"
