"""Two arms that were judged directly against each other, beside the way over the baseline."""

from __future__ import annotations

from recipes.report.sources import Record
from recipes.report.verdicts.outcome import Entry, primary_pairs, seen_from


def duels(comparison: Entry) -> list[Record]:
    """One entry a pair that was judged head to head: benchmark, a, b, `direct` as the first arm
    sees it, and `over`: the difference of the two over the baseline, where the figure that decides
    has one (None elsewhere)."""
    found = []
    for pair in comparison.get("head_to_head", []):
        a, b = str(pair["a"]), str(pair["b"])
        over = [p for p in primary_pairs(comparison) if {p["a"], p["b"]} == {a, b}]
        same = [p for p in over if p["benchmark"] == pair["benchmark"]]
        found.append(
            {
                "benchmark": pair["benchmark"],
                "metric": pair["metric"],
                "a": a,
                "b": b,
                "n": pair.get("n"),
                "direct": seen_from(a, pair),
                "over": seen_from(a, same[0]) if same else None,
            }
        )
    return found
